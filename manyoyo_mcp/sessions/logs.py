"""Whole logs, bounded: the first half of a long one stays, of the rest the newest does. On disk but for short ones."""

import threading
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from manyoyo_mcp.errors import InvalidArgument

_SHORT = 16 << 10
"""Bytes up to which a log is kept in memory: most are, and making, reading and removing a file takes a millisecond and more."""


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a log. `offset` and `next_offset` count bytes written since the log began; `skipped` are bytes between the
    offset asked for and `offset` that were dropped; `end` says that nothing follows by now."""

    data: bytes
    offset: int
    next_offset: int
    skipped: int
    size: int
    end: bool


class Log:
    """One job's log: written from worker threads, read from anywhere.

    A short one is in memory. A longer one is three files whose names begin with `path`: `PATH.head`, never dropped, and two
    segments that follow it in turn, the older dropped when the newer is full.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._head_max = max_bytes // 2
        self._segment_max = max(max_bytes // 4, 1)
        self._lock = threading.Lock()
        self._size = 0
        self._short = bytearray()
        self._closed = False
        self._segments: list[tuple[int, Path]] = []
        self._file: FileIO | None = None
        self._file_size = 0

    @property
    def size(self) -> int:
        """Bytes written since the log began."""
        return self._size

    @property
    def kept(self) -> int:
        """Bytes that it takes, at most."""
        return min(self._size, self._head_max + 2 * self._segment_max)

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._closed:
                return
            if self._file is None:
                if self._size + len(data) <= min(_SHORT, self._head_max):
                    self._short += data
                    self._size += len(data)
                    return
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever tidies up may have taken it
                self._file = self._next_segment(0, "head")
                data, self._size = bytes(self._short) + data, 0
                self._short.clear()
            while data:
                limit = self._head_max if len(self._segments) == 1 else self._segment_max
                if self._file_size >= limit:
                    self._file.close()
                    if len(self._segments) == 3:
                        self._segments.pop(1)[1].unlink(missing_ok=True)
                    self._file = self._next_segment(self._size, f"from-{self._size}")
                    continue
                written = self._file.write(data[: limit - self._file_size])
                self._size += written
                self._file_size += written
                data = data[written:]

    def _next_segment(self, start: int, name: str) -> FileIO:
        path = self._path.with_name(f"{self._path.name}.{name}")
        file = path.open("wb", buffering=0)
        self._segments.append((start, path))
        self._file_size = 0
        return file

    def read(self, offset: int, length: int) -> Page:
        """At most `length` bytes from `offset`; a negative offset counts from the end. Raises InvalidArgument past the end."""
        with self._lock:
            size, segments = self._size, list(self._segments)
            if offset < 0:
                offset = max(0, size + offset)
            if offset > size:
                raise InvalidArgument(
                    f"offset={offset} is past the log's end at {size}.", "Use next_offset of the last page."
                )
            if not segments:
                data = bytes(self._short[offset : offset + length])
                following = offset + len(data)
                return Page(data, offset, following, 0, size, following >= size)
            asked = offset
            for index, (start, path) in enumerate(segments):
                end = start + path.stat().st_size
                if offset < start:
                    offset = start  # what lay between was dropped
                if offset < end or index == len(segments) - 1:
                    with path.open("rb") as file:
                        file.seek(offset - start)
                        data = file.read(min(length, end - offset))
                    following = offset + len(data)
                    return Page(data, offset, following, offset - asked, size, following >= size)
        raise AssertionError("a log has at least one segment")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()

    def remove(self) -> None:
        self.close()
        for _, path in self._segments:
            path.unlink(missing_ok=True)
