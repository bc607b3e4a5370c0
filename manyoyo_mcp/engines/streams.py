"""What engines stream: JSON lines, and the end of an output."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from manyoyo_mcp.engines.base import Sink

_END = 64 << 10
"""Bytes of an output's end that are kept to look for a cause in."""


def json_lines(response: Any) -> Iterator[dict[str, Any]]:
    """The JSON objects of a streamed answer, one a line, as they arrive."""
    pending = b""
    for chunk in response.raw.stream(1 << 16, decode_content=True):
        pending += chunk
        while (end := pending.find(b"\n")) >= 0:
            line, pending = pending[:end].strip(), pending[end + 1 :]
            if line:
                yield json.loads(line)
    if pending.strip():
        yield json.loads(pending)


def hang_up(response: Any) -> None:
    """End a streamed answer from outside: the thread that reads it gets the stream's end."""
    with contextlib.suppress(AttributeError, OSError):
        response.raw._fp.fp.raw._sock.shutdown(socket.SHUT_RDWR)


class Tail:
    """A sink that passes on and remembers the end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.tail = b""

    def __call__(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-_END:] if len(data) < _END else data[-_END:]
        self._sink(data)


def since(begun: float) -> float:
    """Seconds since `begun` of time.monotonic, to the millisecond."""
    return round(time.monotonic() - begun, 3)
