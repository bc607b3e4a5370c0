"""Reading what a nested container writes: attached streams, whose frames carry stdout and stderr."""

import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from manyoyo_mcp.engines.base import Sink

_END = 64 << 10
"""Bytes of an output's end that are kept to look for a cause in."""
_HUNG_UP = re.compile(rb"Error: (?:read|write) unixpacket @->/proc/self/fd/[0-9]+/attach: [^\n]{,80}\n")
"""What podman writes into the output itself where the command ended without reading all of its stdin."""


class Attached:
    """A hijacked connection to a container's or exec's stdin, stdout and stderr (no TTY: framed, 8-byte headers)."""

    def __init__(self, raw: Any) -> None:
        # docker-py hands out the raw reader and keeps the response on it. The response's own buffer is what must be
        # read: output may have arrived together with the answer's headers and lie there already.
        self._raw = raw
        self._sock = raw._sock
        self._reader = raw._response.raw._fp.fp
        self._sock.settimeout(None)

    def pump(self, sink: Sink) -> None:
        """Hand on all output until the stream ends. Where the command ended without reading all of its stdin the end is
        a reset, after the output."""
        with contextlib.suppress(ConnectionResetError):
            while len(header := self._reader.read(8)) == 8:
                (left,) = struct.unpack(">xxxxL", header)
                while left > 0:
                    piece = self._reader.read1(min(left, 1 << 18))
                    if not piece:
                        return
                    if not _HUNG_UP.fullmatch(piece):
                        sink(piece)
                    left -= len(piece)

    def feed(self, data: bytes) -> None:
        """Write all of stdin, then close it. A process that does not read all of it is no error."""
        with contextlib.suppress(OSError):
            self._sock.sendall(data)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the stream; a thread that reads it returns."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()


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
