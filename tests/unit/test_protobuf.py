"""Messages of protocol buffers: what is read is what is written, and all else is refused."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy.buildkit_api import MESSAGES
from manyoyo_mcp.policy.protobuf import Field, Schema, mapping, read, texts, write

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
"""A slow machine is no fault of the code."""
SOLVE = "/moby.buildkit.v1.Control/Solve"
SCHEMA: Schema = {
    1: Field("text", "text"),
    2: Field("many", "int", many=True),
    3: texts("map"),
    4: Field("flag", "bool"),
    5: mapping("deep", Field("value", "message", of={1: Field("raw", "bytes")})),
}


def values(known: Field) -> st.SearchStrategy[Any]:
    if known.kind == "map":
        found = st.dictionaries(st.text(max_size=5), values(known.of[2]), min_size=1, max_size=3)
        return found
    one: dict[str, st.SearchStrategy[Any]] = {
        "text": st.text(max_size=20),
        "bytes": st.binary(max_size=300),
        "bool": st.booleans(),
        "int": st.integers(-(1 << 63), (1 << 63) - 1),
    }
    each = one[known.kind] if known.kind in one else messages(known.of)
    return st.lists(each, min_size=1, max_size=3) if known.many else each


def messages(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={known.name: values(known) for known in schema.values()})


@pytest.mark.parametrize("path", sorted(MESSAGES))
def test_what_is_written_is_read(path: str) -> None:
    @SLOW
    @given(messages(MESSAGES[path]))
    def check(message: dict[str, Any]) -> None:
        assert read(write(message, MESSAGES[path]), MESSAGES[path], "x") == message

    check()


@SLOW
@given(st.binary(max_size=400), st.sampled_from(sorted(MESSAGES)))
def test_garbage_is_refused_or_read_the_same_twice(raw: bytes, path: str) -> None:
    try:
        found = read(raw, MESSAGES[path], "x")
    except (InvalidArgument, PolicyRefused):
        return
    assert read(write(found, MESSAGES[path]), MESSAGES[path], "x") == found


@SLOW
@given(messages(MESSAGES[SOLVE]), st.data())
def test_a_message_with_a_byte_changed(message: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(write(message, MESSAGES[SOLVE]))
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(raw), MESSAGES[SOLVE], "x")
    except (InvalidArgument, PolicyRefused):
        return
    assert read(write(found, MESSAGES[SOLVE]), MESSAGES[SOLVE], "x") == found


def test_numbers_and_maps_as_others_write_them() -> None:
    raw = (
        b"\x0a\x02hi"
        + b"\x10\x96\x01"
        + b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
        + b"\x1a\x06\x0a\x01k\x12\x01v"
        + b"\x1a\x03\x0a\x01l"
    )
    assert read(raw, SCHEMA, "x") == {"text": "hi", "many": [150, -1], "map": {"k": "v", "l": ""}}


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x0a\x01a\x0a\x01b", "twice"),
        (b"\x1a\x03\x0a\x01k\x1a\x03\x0a\x01k", "twice"),
        (b"\x0a\x05a", "longer than"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "64 bits"),
        (b"\x08\x01", "another kind"),
        (b"\x09" + bytes(8), "another kind"),
        (b"\x0a\x01\xff", "UTF-8"),
        (b"\x20\x02", "neither true nor false"),
        (b"\x0a", "ends within"),
        (b"\x10\x00" * 10_001, "more than"),
    ],
)  # fmt: skip
def test_what_is_no_message(raw: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        read(raw, SCHEMA, "a build")
    assert caught.value.hint and caught.value.message.startswith("a build: ")


@pytest.mark.parametrize(
    "raw", [b"\x32\x00", b"\x2a\x05\x0a\x01k\x1a\x00", b"\x2a\x06\x12\x04\x12\x02\x0a\x00", b"\xf8\xff\xff\xff\x0f\x00"]
)
def test_a_field_that_no_table_names(raw: bytes) -> None:
    with pytest.raises(PolicyRefused, match="may not have the field"):
        read(raw, SCHEMA, "a build")


def test_messages_in_messages_have_an_end() -> None:
    schema: dict[int, Field] = {}
    schema[1] = Field("deep", "message", of=schema)
    raw = b""
    for _ in range(16):
        raw = b"\x0a" + bytes([len(raw)]) + raw
    assert read(raw, schema, "x")
    with pytest.raises(InvalidArgument, match="too deep"):
        read(b"\x0a" + bytes([len(raw)]) + raw, schema, "x")
