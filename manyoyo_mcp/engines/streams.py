"""What engines stream: JSON lines, and the end of an output."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from manyoyo_mcp.dialled import SocketLike
from manyoyo_mcp.engines.base import Sink
from manyoyo_mcp.policy.transport import GuardedClient

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


class Streaming:
    """A request under way that lasts, for whoever must end it. `over` once its thread has returned."""

    def __init__(self) -> None:
        self.over = False
        self._connection: SocketLike | None = None
        self._stopped = False

    @contextlib.contextmanager
    def on(self, client: GuardedClient) -> Iterator[None]:
        """Within it, `stop` ends what this thread asks of `client`."""
        self.over = False
        try:
            with client.telling(self._connected):
                yield
        finally:
            self._connection = None  # another's by now, perhaps
            self.over = True

    def _connected(self, connection: SocketLike) -> None:
        self._connection = connection
        if self._stopped:
            _hang_up(connection)

    def stop(self) -> None:
        """Hang up, now or as soon as there is a connection: the thread gets the stream's end, or an OSError."""
        self._stopped = True
        if (connection := self._connection) is not None:
            _hang_up(connection)


def _hang_up(connection: SocketLike) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


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
