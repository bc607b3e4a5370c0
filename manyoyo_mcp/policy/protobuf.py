"""Messages of protocol buffers as dicts: read by a table of the fields that are known, refused where there is another, and written anew.

What a library leaves in peace is what matters here: fields that no table names, one that comes twice, a map's key that does. Each of them would
be read in some way by the engine, and not be judged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused

_VARINT, _LENGTH = 0, 2
"""The kinds of field on the wire that any known message has."""
_DEEPEST = 16
"""Messages in messages; those that are known have four."""
_MOST = 10_000
"""Fields of one message, those of its own messages among them."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message. `many`: it may come several times, and is a list. `of`: the fields of a message; of a map the one field of
    its values."""

    name: str
    kind: Literal["text", "bytes", "bool", "int", "message", "map"]
    many: bool = False
    of: "Schema" = field(default_factory=dict)


Schema = Mapping[int, Field]


def mapping(name: str, value: Field) -> Field:
    """A map from texts to `value`."""
    return Field(name, "map", of={1: Field("key", "text"), 2: value})


def texts(name: str) -> Field:
    """A map from texts to texts."""
    return mapping(name, Field("value", "text"))


class _Reader:
    def __init__(self, data: bytes, place: str) -> None:
        self.data, self.place, self.at = data, place, 0

    def wrong(self, why: str) -> InvalidArgument:
        return InvalidArgument(f"{self.place}: {why}.", "Send it as its .proto says.")

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            if self.at >= len(self.data):
                raise self.wrong("the message ends within a number")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value
        raise self.wrong("a number has more than 64 bits")

    def bytes(self) -> bytes:
        end = self.varint() + self.at
        if end > len(self.data):
            raise self.wrong("a field is longer than its message")
        piece, self.at = self.data[self.at : end], end
        return piece


def read(data: bytes, schema: Schema, place: str) -> dict[str, Any]:
    """A message's fields by their names. `place` says in a refusal what it is. Raises InvalidArgument for what is no such message, and
    PolicyRefused for a field that `schema` does not name."""
    return _read(data, schema, place, [_MOST], 0)


def _read(data: bytes, schema: Schema, place: str, left: list[int], depth: int) -> dict[str, Any]:
    reader = _Reader(data, place)
    if depth > _DEEPEST:
        raise reader.wrong("messages lie too deep in one another")
    found: dict[str, Any] = {}
    while reader.at < len(data):
        left[0] -= 1
        if left[0] < 0:
            raise reader.wrong(f"there are more than {_MOST} fields")
        tag = reader.varint()
        number, wire = tag >> 3, tag & 7
        known = schema.get(number)
        if known is None:
            names = ", ".join(each.name for each in schema.values())
            raise PolicyRefused(f"{place} may not have the field {number}.", f"Known: {names or 'none'}.")
        if wire != (_VARINT if known.kind in ("bool", "int") else _LENGTH):
            raise reader.wrong(f"{known.name} is of another kind")
        _keep(found, known, _value(reader, known, left, depth), reader)
    return found


def _value(reader: _Reader, known: Field, left: list[int], depth: int) -> Any:
    if known.kind in ("bool", "int"):
        value = reader.varint()
        if known.kind == "bool":
            if value > 1:
                raise reader.wrong(f"{known.name} is neither true nor false")
            return bool(value)
        return value - (1 << 64) if value >= 1 << 63 else value
    raw = reader.bytes()
    if known.kind == "text":
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise reader.wrong(f"{known.name} is no text in UTF-8") from error
    if known.kind == "bytes":
        return raw
    return _read(raw, known.of, f"{reader.place}'s {known.name}", left, depth + 1)


def _keep(found: dict[str, Any], known: Field, value: Any, reader: _Reader) -> None:
    if known.kind == "map":
        key, into = value.get("key", ""), found.setdefault(known.name, {})
        if key in into:
            raise reader.wrong(f"{known.name} has {key[:60]!r} twice")
        into[key] = value.get(known.of[2].name, _NOTHING[known.of[2].kind]())
    elif known.many:
        found.setdefault(known.name, []).append(value)
    elif known.name in found:
        raise reader.wrong(f"{known.name} comes twice")
    else:
        found[known.name] = value


_NOTHING: Mapping[str, Callable[[], Any]] = {"text": str, "bytes": bytes, "bool": bool, "int": int, "message": dict}
"""What is meant by a value that is not sent."""


def write(message: Mapping[str, Any], schema: Schema) -> bytes:
    """The message with these fields, in the order of their numbers."""
    return b"".join(
        _field(number, known, each)
        for number, known in sorted(schema.items())
        if known.name in message
        for each in _each(known, message[known.name])
    )


def _each(known: Field, value: Any) -> list[Any]:
    if known.kind == "map":
        return [{"key": key, known.of[2].name: each} for key, each in value.items()]
    return list(value) if known.many else [value]


def _field(number: int, known: Field, value: Any) -> bytes:
    if known.kind in ("bool", "int"):
        return _number(number << 3 | _VARINT) + _number(int(value) % (1 << 64))
    raw: bytes
    if known.kind == "text":
        raw = value.encode()
    elif known.kind == "bytes":
        raw = value
    else:
        raw = write(value, known.of)
    return _number(number << 3 | _LENGTH) + _number(len(raw)) + raw


def _number(value: int) -> bytes:
    pieces = bytearray()
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
