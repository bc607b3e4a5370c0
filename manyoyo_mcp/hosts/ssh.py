"""A host's engine over ssh, as docker's own client reaches it: `ssh HOST docker system dial-stdio`, one for a connection.

docker-py has a way of its own to do this, whose connections can't be hijacked as a relay needs them. Ours are sockets:
ssh has the other end for its stdin and stdout.
"""

import socket
import subprocess
import tempfile
from typing import Any, cast
from urllib.parse import urlsplit

from manyoyo_mcp.dialled import DialledClient, SocketLike

_CONNECT_TIMEOUT = 30
"""Seconds that ssh may take to connect; docker's client uses the same."""
_UNASKED = "It may not ask here: the host must be known to it, and the key in its agent or without a passphrase."


def connect(address: str) -> DialledClient:
    """A client for `ssh://[USER@]HOST[:PORT][/SOCKET]`, by the user's own ssh configuration, agent and known hosts.

    Raises ConnectionError, with ssh's own words where it has any, or ValueError where the address is none.
    """
    argv = command(address)
    return DialledClient(lambda: cast(SocketLike, _dial(argv)))


def command(address: str) -> list[str]:
    """What is run for each connection. A path in the address is the engine's socket over there. Raises ValueError."""
    parts = urlsplit(address)
    if not parts.hostname or parts.hostname.startswith("-") or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{address!r} is not ssh://[USER@]HOST[:PORT]")
    # BatchMode: whoever serves MCP has no terminal on which ssh could ask.
    argv = ["ssh", "-T", "-o", f"ConnectTimeout={_CONNECT_TIMEOUT}", "-o", "BatchMode=yes"]
    argv += ["-l", parts.username] if parts.username else []
    argv += ["-p", str(parts.port)] if parts.port else []
    remote = ["--host", f"unix://{parts.path}"] if parts.path.strip("/") else []
    return [*argv, "--", parts.hostname, "docker", *remote, "system", "dial-stdio"]


class _Piped(socket.socket):
    """Our end. `close` ends the process; where it said nothing but why it failed, reading raises that."""

    process: "subprocess.Popen[bytes]"
    complaints: Any
    silent = True

    def recv(self, count: int, flags: int = 0, /) -> bytes:
        data = bytearray(count)
        return bytes(data[: self.recv_into(data, count, flags)])

    def recv_into(self, buffer: Any, count: int = 0, flags: int = 0) -> int:
        try:
            read = super().recv_into(buffer, count, flags)
        except ConnectionResetError:  # it ended without reading all that it was sent
            read = 0
        if read:
            self.silent = False
        elif self.silent:
            self.complaints.seek(0)
            words = self.complaints.read(2000).decode(errors="replace").strip()
            raise ConnectionError(f"ssh: {words or 'it ended without a word'}. {_UNASKED}")
        return read

    def _real_close(self) -> None:  # called once the last file made from the socket is closed as well
        super()._real_close()  # type: ignore[misc]
        self.process.terminate()
        self.process.wait()
        self.complaints.close()


def _dial(argv: list[str]) -> _Piped:
    ours, theirs = socket.socketpair()
    complaints = tempfile.TemporaryFile()  # a pipe could fill up  # noqa: SIM115
    try:
        with theirs:
            # A session of its own: a terminal's Ctrl-C is ours to answer, and it takes ssh's help to clean up.
            process = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=complaints, start_new_session=True
            )
    except OSError as error:
        ours.close()
        complaints.close()
        raise ConnectionError(f"ssh can't be run: {error}") from error
    piped = _Piped(fileno=ours.detach())
    piped.process, piped.complaints = process, complaints
    return piped
