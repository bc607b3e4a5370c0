"""Whether a log is as it was written: each record's own hash, the chain from one to the next and from file to file, each session's count."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from manyoyo_mcp.audit import chain
from manyoyo_mcp.audit.files import CURRENT, Busy, locked, old_files, old_name
from manyoyo_mcp.errors import AuditUnavailable

How = Literal["edited", "removed", "inserted", "reordered", "torn"]


@dataclass(frozen=True, slots=True)
class Break:
    """The first place at which the log is not as it was written. `line` counts from 1; 0 is the file as a whole."""

    how: How
    file: str
    line: int
    words: str


@dataclass(slots=True)
class Verdict:
    """`records` were sound up to the break, or to the end. `torn` writes were cut short and marked as such by the next. `last` is the hash
    of the last sound record: whoever has kept it somewhere else can tell later that the log still leads there."""

    records: int = 0
    files: int = 0
    torn: int = 0
    last: str = ""
    begins: str = ""
    broken: Break | None = None
    contains: bool = False


@dataclass(slots=True)
class _State:
    prev: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    whole: bool = False
    pending: bytes = b""
    pending_line: int = 0


def snapshot(directory: Path) -> list[tuple[Path, int]]:
    """The log's files, the oldest first, with how much of each is there at one moment at which nobody writes."""
    try:
        lock = (directory / "lock").open("rb")
    except OSError:  # a copy of a log
        return _sizes(directory)
    try:
        with lock, locked(lock.fileno(), shared=True):
            return _sizes(directory)
    except Busy as error:
        raise AuditUnavailable(
            f"A process holds the audit log in {directory}.",
            "Try again; if it stays so, a server of yours was stopped in the middle of a write: continue or end it.",
        ) from error


def _sizes(directory: Path) -> list[tuple[Path, int]]:
    paths = [*old_files(directory).values(), directory / CURRENT]
    return [(path, path.stat().st_size) for path in paths if path.exists()]


def lines(path: Path, size: int) -> Iterator[bytes]:
    """A file's lines with their ends, up to that size."""
    with path.open("rb") as file:
        while size > 0 and (line := file.readline(size)):
            size -= len(line)
            yield line


def verify(directory: Path, expected: str = "") -> Verdict:
    """Read the log from its beginning to the first break. `expected`: a hash that the chain is to hold."""
    verdict, state = Verdict(), _State()
    files = snapshot(directory)
    numbers = list(old_files(directory))
    oldest = _oldest(files)
    state.whole = oldest == 1
    for number in range(oldest, max(numbers, default=0) + 1):
        if number not in numbers:
            verdict.broken = Break("removed", old_name(number), 0, "the file is not there")
            return verdict
    for path, size in files:
        if path.name != CURRENT and path.name < old_name(oldest):
            continue
        verdict.files += 1
        for line, raw in enumerate(lines(path, size), 1):
            record = chain.read(raw) if raw.endswith(b"\n") else None
            if record is None:
                state.pending_line = state.pending_line or line
                state.pending += raw
                continue
            if (found := _judge(state, record, raw, files, path, line)) is not None:
                verdict.broken = found
                return verdict
            verdict.torn += record["kind"] == "log" and record.get("event") == "torn"
            verdict.records += 1
            verdict.begins = verdict.begins or str(record.get("at", ""))
            verdict.last = state.prev = str(record["hash"])
            verdict.contains = verdict.contains or verdict.last == expected
        if state.pending:
            whole_lines = state.pending.endswith(b"\n")
            words = "it is no record" if whole_lines else "the last line is not whole; the next server marks it"
            verdict.broken = Break("edited" if whole_lines else "torn", path.name, state.pending_line, words)
            return verdict
    return verdict


def _oldest(files: list[tuple[Path, int]]) -> int:
    """The number of the oldest file that is to be there, as the newest one says."""
    for path, size in reversed(files):
        for raw in lines(path, size):
            value = (chain.read(raw) or {}).get("oldest")
            if isinstance(value, int):
                return value
            break
    return 1


def _judge(
    state: _State, record: dict[str, Any], raw: bytes, files: list[tuple[Path, int]], path: Path, line: int
) -> Break | None:
    if state.pending:
        marked, rest = state.pending[: record.get("bytes") or 0], state.pending[record.get("bytes") or 0 :]
        sums = record.get("event") == "torn" and record.get("sha256") == hashlib.sha256(marked).hexdigest()
        if not sums or rest not in (b"", b"\n"):
            return Break("edited", path.name, state.pending_line, "it is no record")
        state.pending, state.pending_line = b"", 0
    if not chain.sound(record, raw):
        return Break("edited", path.name, line, "it does not have the hash that it names")
    if state.prev is None:
        if state.whole and record["prev"] != chain.FIRST:
            return Break("removed", path.name, line, "it is not the first record, and the ones before are not there")
    elif record["prev"] != state.prev:
        return _classify(record, files, path, line)
    session, count = record.get("session"), record.get("n")
    if isinstance(session, str) and isinstance(count, int):
        had = state.counts.get(session, 0 if state.whole else count - 1)
        if count != had + 1:
            words = f"session {session} goes on with its record {count} after {had}: what lay between was cut off"
            return Break("removed", path.name, line, words)
        state.counts[session] = count
    return None


def _classify(record: dict[str, Any], files: list[tuple[Path, int]], path: Path, line: int) -> Break:
    """A record that does not follow the one before it: where does the one lie that it follows?"""
    own, before, seen = False, False, False
    for other, size in files:
        for number, raw in enumerate(lines(other, size), 1):
            here = (other, number) == (path, line)
            seen = seen or here
            found = chain.read(raw)
            if found is None or here:
                continue
            if found["hash"] == record["hash"]:
                own = True
            if found["hash"] == record["prev"]:
                if seen:
                    return Break("reordered", path.name, line, f"it follows {other.name}:{number}, which comes later")
                before = True
    if own:
        return Break("inserted", path.name, line, "it is there twice")
    if before:
        return Break("inserted", path.name, line - 1, "the record after it follows an earlier one")
    return Break("removed", path.name, line, "the record that it follows is not there")
