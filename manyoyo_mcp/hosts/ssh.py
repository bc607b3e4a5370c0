"""A host's engine over ssh, as docker's own client reaches it: `ssh HOST docker system dial-stdio`, one for a connection.

docker-py has a way of its own to do this, whose connections can't be hijacked as a relay needs them. Ours are sockets:
ssh has the other end for its stdin and stdout.
"""

import shlex
import socket
import subprocess
import tempfile
import threading
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from manyoyo_mcp.dialled import DialledClient, SocketLike

_CONNECT_TIMEOUT = 30
"""Seconds that ssh may take to connect; docker's client uses the same."""
_AT_ONCE = threading.BoundedSemaphore(8)
"""Connections that have not answered yet: sshd drops some of more than ten (sshd_config(5), MaxStartups)."""
_SSH_FAILED = 255
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
    host = parts.netloc.rpartition("@")[2].partition(":")[0]  # as it is written: ssh's configuration minds the case
    try:
        port = parts.port
    except ValueError:
        port, host = None, ""
    if not host or host.startswith("-") or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{address!r} is not ssh://[USER@]HOST[:PORT]")
    # BatchMode: whoever serves MCP has no terminal on which ssh could ask. ControlMaster: a connection that others share
    # must not be one that ends with us; a master that is there is used. ServerAlive: a host that is gone is noticed.
    options = [f"ConnectTimeout={_CONNECT_TIMEOUT}", "BatchMode=yes", "ControlMaster=no", "ServerAliveInterval=15"]
    argv = ["ssh", "-T", *(word for option in options for word in ("-o", option))]
    argv += ["-l", unquote(parts.username)] if parts.username else []
    argv += ["-p", str(port)] if port else []
    socket_path = unquote(parts.path).rstrip("/")
    remote = ["--host", shlex.quote(f"unix://{socket_path}")] if socket_path else []
    return [*argv, "--", host, "docker", *remote, "system", "dial-stdio"]


class _Piped(socket.socket):
    """Our end. `close` ends the process; where it said nothing but why it failed, reading raises that."""

    process: "subprocess.Popen[bytes]"
    complaints: Any
    silent = True
    opening = False  # holds one of _AT_ONCE

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
            self._opened()
        elif self.silent or self._failed():
            self.complaints.seek(0)
            words = self.complaints.read(2000).decode(errors="replace").strip()
            raise ConnectionAbortedError(
                f"ssh: {words or 'it ended without a word'}. {_UNASKED if self.silent else ''}"
            )
        return read

    def _failed(self) -> bool:
        """Whether ssh itself ended the connection: its own exit code for that; else it hands on the remote command's."""
        try:
            return self.process.wait(1) == _SSH_FAILED
        except subprocess.TimeoutExpired:
            return False

    def _opened(self) -> None:
        if self.opening:
            self.opening = False
            _AT_ONCE.release()

    def _real_close(self) -> None:  # called once the last file made from the socket is closed as well
        super()._real_close()  # type: ignore[misc]
        self._opened()
        self.process.terminate()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.complaints.close()


def _dial(argv: list[str]) -> _Piped:
    if not _AT_ONCE.acquire(timeout=_CONNECT_TIMEOUT):
        raise ConnectionError("ssh: too many connections are being made; none of them has answered")
    ours, theirs = socket.socketpair()
    complaints = tempfile.TemporaryFile()  # a pipe could fill up  # noqa: SIM115
    try:
        with theirs:
            # A session of its own: a terminal's Ctrl-C is ours to answer, and it takes ssh's help to clean up.
            process = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=complaints, start_new_session=True
            )
    except OSError as error:
        _AT_ONCE.release()
        ours.close()
        complaints.close()
        raise ConnectionError(f"ssh can't be run: {error}") from error
    piped = _Piped(fileno=ours.detach())
    piped.process, piped.complaints, piped.opening = process, complaints, True
    return piped
