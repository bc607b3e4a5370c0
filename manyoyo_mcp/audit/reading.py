"""The log as people look at it: what was asked and what came of it as one entry, the newest last."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyoyo_mcp.audit import chain
from manyoyo_mcp.audit.verifying import lines, snapshot

_CHAINED = ("hash", "prev", "phase", "n")
_ORDER = ("reason", "exit_code", "cause_code", "state", "sandbox_id", "image", "command")
"""What comes first in a line."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries. `session` may be the beginning of one; `tool` also another kind of record, such as gate or command; `since` is a time as records have it."""

    session: str = ""
    tool: str = ""
    refused: bool = False
    since: str = ""
    limit: int = 50

    def has(self, entry: dict[str, Any]) -> bool:
        return (
            str(entry.get("session", "")).startswith(self.session)
            and self.tool in ("", entry.get("tool"), entry["kind"])
            and (not self.refused or entry.get("decision") == "refused")
            and str(entry.get("at", "")) >= self.since
        )


def records(directory: Path) -> Iterator[dict[str, Any]]:
    """All that can be read."""
    for path, size in snapshot(directory):
        for line in lines(path, size):
            if (record := chain.read(line)) is not None:
                yield record


def entries(directory: Path, wanted: Wanted) -> list[dict[str, Any]]:
    """The newest that are wanted. One that has `open` was begun, and its end is not on record: it goes on, or its server was killed."""
    found: deque[dict[str, Any]] = deque(maxlen=wanted.limit)
    begun: dict[str, dict[str, Any]] = {}
    for record in records(directory):
        entry = {key: value for key, value in record.items() if key not in _CHAINED}
        phase, call = record.get("phase"), str(record.get("call", ""))
        if phase == "asked":
            begun[call] = entry
            entry["open"] = True
        elif phase == "ended" and (asked := begun.pop(call, None)) is not None:
            asked.update({"at": asked.get("at"), **{key: value for key, value in entry.items() if key != "at"}})
            asked.pop("open", None)
            if wanted.refused and wanted.has(asked):  # it was none when it was asked
                found.append(asked)
            continue
        if wanted.has(entry):
            found.append(entry)
    return list(found)


def outlined(value: Any) -> str:
    """Arguments or results in a line."""
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    keys = sorted(value, key=lambda key: (_ORDER.index(key) if key in _ORDER else len(_ORDER), key))
    return " ".join(f"{key}={value[key] if isinstance(value[key], str) else json.dumps(value[key])}" for key in keys)
