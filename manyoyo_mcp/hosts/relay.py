"""The transport where host and sandbox share no file system: an exec in the outer container joins the nested engine's
socket to a hijacked connection of the host's API. `SocketLike` over that connection's multiplexed stream."""

import contextlib
import secrets
import struct
from collections.abc import Callable
from typing import Any

import docker
import requests

from manyoyo_mcp.dialled import Stream
from manyoyo_mcp.errors import EngineUnreachable, ManyoyoError
from manyoyo_mcp.hosts.execs import execute

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


def reach(client: docker.APIClient, container_id: str, address: str, port: int) -> "Reached":
    """Connect to an address and port in a sandbox's own network, as its nested containers have them. Raises EngineUnreachable."""
    marker = secrets.token_hex(8)
    argv = ["busybox", "nc", address, str(port)]  # joins it to stdin and stdout, and knows an end from the other
    try:
        exec_id = client.exec_create(container_id, argv, stdin=True, environment={"MANYOYO_EXEC": marker})["Id"]
        stream = client.exec_start(exec_id, socket=True)
    except (docker.errors.APIError, requests.exceptions.RequestException, OSError) as error:
        raise EngineUnreachable(
            f"No connection into the sandbox could be made: {error}", "Is it running? sandbox_status says so."
        ) from error
    argv = ["timeout", "30", "/usr/lib/manyoyo/ctl", "kill-exec", marker]
    return Reached(getattr(stream, "_sock", stream), stream._response, lambda: execute(client, container_id, argv, 30))


class RelaySocket(Stream):
    """A connected stream whose reading side takes the exec's frames apart (8-byte header: stream, 3 zeros, length)."""

    def __init__(self, sock: Any, keep: Any) -> None:
        super().__init__(sock)
        self._keep = keep  # docker-py's response: the connection lives as long as it
        self._left = 0
        self._errors = b""
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

    def _end(self) -> None:
        super()._end()
        if self._keep is not None:
            self._keep.close()
        self._keep = None


class Reached(RelaySocket):
    """A connection to what listens in a sandbox, over a program there that lives as long as it."""

    def __init__(self, sock: Any, keep: Any, cut: Callable[[], object]) -> None:
        super().__init__(sock, keep)
        self._cut = cut

    def cut(self) -> None:
        """End that program: it would wait for a service that does not look whether anybody listens."""
        with contextlib.suppress(docker.errors.APIError, requests.exceptions.RequestException, ManyoyoError, OSError):
            self._cut()
