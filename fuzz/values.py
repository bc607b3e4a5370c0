"""What generated calls and requests are made of: names of things that are there, and texts that programs have stumbled over."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = (
    "", " ", "\0", "../../etc/passwd", "/", "/etc/shadow", "/proc/1/root", "-x", "--privileged", "a" * 300, "a\nb", "$(id)", "%00", "%2e%2e/",
    "\u202e\u200b", "None", "null", "0", "-1", "1e309", "host", "container:x", "ns:/proc/1/ns/net", "docker://x", "dir:/etc", "*", "ß€😀", "{}", "[]",
    "sb-0000000000000000", "a,b=c", "a;b", "a|b", "'\"`", "\\..\\", "http://127.0.0.1/", "localhost:99999/x", "x@sha256:1", "\x1b[31m",
)  # fmt: skip
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts = st.one_of(st.sampled_from(ODD_TEXTS), plain)
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 64, 4096, 1 << 20, 64 << 20, 1 << 31, 1 << 63, -(1 << 63), 1 << 70]), st.integers()
)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), numbers, st.floats(allow_nan=False, allow_infinity=False), texts
)
anything: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any], of_ten: int = 8) -> st.SearchStrategy[Any]:
    """So many times of ten what is usual."""
    return st.integers(0, 9).flatmap(lambda number: usual if number < of_ten else odd)


def some(names: Sequence[str]) -> st.SearchStrategy[str]:
    return mostly(st.sampled_from(list(names)), texts)
