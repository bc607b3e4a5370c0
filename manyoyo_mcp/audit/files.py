"""The log's files: appended to by several processes of one owner at once, each record under a lock; rotated by size, with the chain carried on.
Whatever a process that was killed left half written is found by the next that writes, marked in the chain, and no hindrance."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from manyoyo_mcp.audit import chain
from manyoyo_mcp.errors import AuditUnavailable

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

CURRENT = "audit.jsonl"
_OLD = re.compile(r"audit\.([0-9]{6,})\.jsonl")
PATIENCE = 5.0
"""Seconds to wait for a process that holds the lock: it takes well below a millisecond, unless it was stopped."""
_TAIL = 1 << 14
_FLAGS = (
    os.O_RDWR
    | os.O_APPEND
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class Busy(Exception):
    """Another process is writing just now."""


def old_name(number: int) -> str:
    return f"audit.{number:06}.jsonl"


def old_files(directory: Path) -> dict[int, Path]:
    """The files that were rotated away, by number."""
    found = {int(match[1]): path for path in directory.glob("audit.*.jsonl") if (match := _OLD.fullmatch(path.name))}
    return dict(sorted(found.items()))


@contextlib.contextmanager
def locked(descriptor: int, patience: float = PATIENCE, *, shared: bool = False) -> Iterator[None]:
    """Nobody else writes meanwhile. Raises Busy after `patience` seconds. The kernel lets go of it where its holder dies."""
    end = time.monotonic() + patience
    while not _lock(descriptor, shared):
        if time.monotonic() >= end:
            raise Busy
        time.sleep(0.002)
    try:
        yield
    finally:
        _unlock(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int, shared: bool) -> bool:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _lock(descriptor: int, shared: bool) -> bool:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class Files:
    """The log in one directory. `append` may be called from any thread. At more than `max_bytes` a new file is begun; `kept` old ones stay."""

    def __init__(self, directory: Path, max_bytes: int, kept: int) -> None:
        self.path = directory / CURRENT
        self._directory = directory
        self._max_bytes = max_bytes
        self._kept = kept
        self._mutex = threading.Lock()
        self._lock = -1
        self._file = -1
        self._identity = (0, 0)
        self._end = -1
        self._prev = chain.FIRST

    def append(self, record: Mapping[str, Any], patience: float = PATIENCE) -> None:
        """Write a record. Raises AuditUnavailable, naming the file; Busy where another writes and there is no time to wait."""
        if not self._mutex.acquire(timeout=patience) if patience > 0 else not self._mutex.acquire(blocking=False):
            raise Busy
        try:
            try:
                self._append(record, patience)
            except FileNotFoundError:  # somebody has removed the directory: it is made anew
                self._drop()
                self._append(record, patience)
        except OSError as error:
            self._drop()
            raise AuditUnavailable(
                f"The audit log {self.path} can't be written: {error.strerror or error}.",
                "Nothing was done. Make room on its disk, or see to its owner and mode; MANYOYO_STATE_DIR puts it elsewhere, and "
                "MANYOYO_AUDIT=optional lets the server work without it.",
                path=str(self.path),
            ) from error
        finally:
            self._mutex.release()

    def _append(self, record: Mapping[str, Any], patience: float) -> None:
        if self._lock < 0:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _opened(self._directory / "lock")
        with locked(self._lock, patience):
            self._settle()
            line, digest = chain.seal(record, self._prev)
            if self._end + len(line) > self._max_bytes:
                self._rotate()
                line, digest = chain.seal(record, self._prev)
            self._write(line, digest)

    def close(self) -> None:
        with self._mutex:
            self._drop()

    def _drop(self) -> None:
        self._forget()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _forget(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._end = -1, -1

    def _settle(self) -> None:
        """The current file is open, and what its last record is known, whoever wrote it."""
        try:
            now = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116 - some microseconds, at each call
        except FileNotFoundError:
            self._begin()
            return
        if self._file < 0 or (now.st_dev, now.st_ino) != self._identity:
            self._reopen()
        if now.st_size != self._end:
            self._find_last(now.st_size)

    def _reopen(self) -> None:
        self._forget()
        self._file = _opened(self.path)
        opened = os.fstat(self._file)
        self._identity = (opened.st_dev, opened.st_ino)

    def _begin(self) -> None:
        """A new file, which names its number and the oldest that is to be there yet, and goes on where the last one ended. What is the oldest
        only rises: a file that somebody has removed is missed until its time would have come."""
        old = old_files(self._directory)
        number, oldest, prev = max(old, default=0) + 1, 1, chain.FIRST
        if old:
            with old[number - 1].open("rb") as last:
                head = chain.read(last.readline(_TAIL)) or {}
                prev = _last(last.fileno(), last.seek(0, os.SEEK_END))[0] or chain.FIRST
            had = head.get("oldest")
            oldest = max(had if isinstance(had, int) else 1, number - self._kept)
        self._reopen()
        self._end = 0
        begun = {"kind": "log", "event": "begun", "at": chain.now(), "file": number, "oldest": oldest}
        self._write(*chain.seal(begun, prev))
        for each in old:
            if each < oldest:
                old[each].unlink(missing_ok=True)

    def _find_last(self, size: int) -> None:
        """Others have written meanwhile, or nobody of this process yet."""
        last, raw = _last(self._file, size)
        self._end, self._prev = size, last or chain.FIRST
        if not size:  # whoever made it did not come to its first record
            self._forget()
            self.path.unlink()
            self._begin()
        elif (whole := chain.read(raw)) is not None:  # but for its line's end
            self._write(b"\n", str(whole["hash"]))
        elif raw:
            line, digest = chain.seal(chain.torn(raw), self._prev)
            self._write((b"" if raw.endswith(b"\n") else b"\n") + line, digest)

    def _rotate(self) -> None:
        head = _read(self._file, 0, _TAIL).partition(b"\n")[0]
        number = (chain.read(head) or {}).get("file")
        highest = max(old_files(self._directory), default=0)
        if not isinstance(number, int) or number <= highest:
            number = highest + 1
        self._forget()
        self.path.rename(self._directory / old_name(number))
        self._begin()

    def _write(self, line: bytes, digest: str) -> None:
        """All of it, or nothing that stays."""
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            if written:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)
        self._prev = digest


def _opened(path: Path) -> int:
    """A file of this user's own, which nobody else can read. Raises OSError."""
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        found = os.fstat(descriptor)
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            raise PermissionError(0, "it belongs to another user")
        if found.st_mode & 0o077 and sys.platform != "win32":
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read(descriptor: int, begin: int, end: int) -> bytes:
    os.lseek(descriptor, begin, os.SEEK_SET)  # what is written goes to the end all the same
    found = b""
    while begin + len(found) < end and (piece := os.read(descriptor, end - begin - len(found))):
        found += piece
    return found


def _last(descriptor: int, size: int) -> tuple[str | None, bytes]:
    """The hash that the last record of a file has, and the bytes after it, which are none."""
    length = _TAIL
    while True:
        begin = max(0, size - length)
        raw = _read(descriptor, begin, size)
        end = len(raw)
        while (cut := raw.rfind(b"\n", 0, end)) >= 0:
            first = raw.rfind(b"\n", 0, cut) + 1
            if first == 0 and begin:
                break  # its beginning lies before what was read
            if (record := chain.read(raw[first:cut])) is not None:
                return str(record["hash"]), raw[cut + 1 :]
            end = first
            if first == 0:
                break
        if begin == 0:
            return None, raw
        length *= 4
