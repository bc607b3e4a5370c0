"""A record as it stands in the log: a line of canonical JSON with its own hash and that of the record before it."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

FIRST = "0" * 64
"""What the very first record holds as the hash of the one before."""


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def seal(record: Mapping[str, Any], prev: str) -> tuple[bytes, str]:
    """The line of a record that follows the one whose hash is `prev`, and its own hash: the SHA-256 of all of it but that, in canonical
    JSON (keys in order, no spaces, nothing but ASCII). In the line the hash stands last."""
    text = _canonical({**record, "prev": prev}).encode()
    digest = hashlib.sha256(text).hexdigest()
    return text[:-1] + f',"hash":"{digest}"}}\n'.encode(), digest


def sound(record: Mapping[str, Any], line: bytes) -> bool:
    """Whether a line is the one way to write its record, with the hash that this has."""
    rest = {key: value for key, value in record.items() if key not in ("hash", "prev")}
    try:
        return seal(rest, str(record["prev"])) == (line, record["hash"])
    except ValueError:
        return False


def read(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds, whether or not its hash is right; None where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in ("hash", "prev", "kind")):
        return None
    return record


def torn(raw: bytes) -> dict[str, Any]:
    """What is noted of bytes at the log's end that are no record: a write that its process's end, or a full disk, cut short."""
    return {"kind": "log", "event": "torn", "at": now(), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def now() -> str:
    """This moment, as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
