"""The transport where host and sandbox share no file system: an exec in the outer container joins the nested engine's
socket to a hijacked connection of the host's API. `SocketLike` over that connection's multiplexed stream."""

import contextlib
import io
import socket
import struct
from typing import Any

import docker

from manyoyo_mcp.errors import EngineUnreachable

DIAL_STDIO = {
    "podman": ["podman", "--url", "unix:///run/manyoyo/engine.sock", "system", "dial-stdio"],
    "docker": ["docker", "--host", "unix:///run/manyoyo/engine.sock", "system", "dial-stdio"],
}
"""The engines' own clients know how to join a socket to stdin and stdout."""

_STDOUT = 1


def relay(client: docker.APIClient, container_id: str, engine: str) -> "RelaySocket":
    """Connect to the nested engine through the outer container. Raises EngineUnreachable."""
    try:
        exec_id = client.exec_create(container_id, DIAL_STDIO[engine], stdin=True)["Id"]
        stream = client.exec_start(exec_id, socket=True)
    except (docker.errors.APIError, OSError) as error:
        raise EngineUnreachable(
            f"The relay into the sandbox could not be started: {error}", "Start another."
        ) from error
    return RelaySocket(getattr(stream, "_sock", stream), stream._response)


class RelaySocket:
    """A connected stream whose reading side takes the exec's frames apart (8-byte header: stream, 3 zeros, length)."""

    def __init__(self, sock: Any, keep: Any) -> None:
        self._sock = sock
        self._keep = keep  # docker-py's response: the connection lives as long as it
        self._left = 0
        self._errors = b""
        self._readers = 0
        self._closing = False
        with contextlib.suppress(AttributeError):
            sock.settimeout(None)

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data)

    def recv_into(self, buffer: memoryview) -> int:
        while self._left == 0:
            header = self._exactly(8)
            if header is None:
                return 0
            kind, length = struct.unpack(">BxxxL", header)
            if kind == _STDOUT:
                self._left = length
            else:
                self._errors = (self._errors + (self._exactly(length) or b""))[-2000:]
        count = int(self._sock.recv_into(buffer[: self._left]))
        self._left -= count
        return count

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            piece = self._sock.recv(count - len(data))
            if not piece:
                if self._errors:
                    raise EngineUnreachable(
                        f"The relay ended: {self._errors.decode(errors='replace').strip()}", "Try the call again."
                    )
                return None
            data += piece
        return data

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        self._readers += 1
        return io.BufferedReader(_Raw(self), 1 << 16)

    def settimeout(self, seconds: float | None) -> None:
        with contextlib.suppress(AttributeError):
            self._sock.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(how)

    def close(self) -> None:
        """As sockets do: at once, or when the last reader is closed, which may have an answer still to read."""
        self._closing = True
        if self._readers > 0:
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()
        if self._keep is not None:
            self._keep.close()
        self._keep = None

    def released(self) -> None:
        """A reader is closed."""
        self._readers -= 1
        if self._closing:
            self.close()

    def fileno(self) -> int:
        return int(self._sock.fileno())


class _Raw(io.RawIOBase):
    """What docker-py and http.client expect under a response: a raw reader that knows its socket."""

    def __init__(self, sock: RelaySocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.recv_into(memoryview(buffer))

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._sock.released()
