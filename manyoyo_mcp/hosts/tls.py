"""A host's engine over TCP with TLS.

docker-py can do that, but for what a relay needs: two threads at once on a connection, one of them ending its half of it.
Python's TLS socket has neither, so the protocol runs in memory here and the socket is an ordinary one. Nor does an endpoint's
own CA give way to REQUESTS_CA_BUNDLE here, as it would in requests.
"""

import contextlib
import socket
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit

import docker

from manyoyo_mcp.dialled import DialledClient, Stream

_CONNECT_TIMEOUT = 60
"""Seconds for the connection and its handshake."""
_PIECE = 64 << 10
"""Bytes that are read from the socket, or encrypted, at a time."""


def connect(address: str, tls: docker.tls.TLSConfig) -> DialledClient:
    """A client for `tcp://HOST:PORT` with docker-py's settings of TLS. Raises OSError, ssl.SSLError among them; ValueError
    where the address is none."""
    parts = urlsplit(address)
    if not parts.hostname:
        raise ValueError(f"{address!r} is not tcp://HOST:PORT")
    host, port, context = parts.hostname, parts.port or 2376, _context(tls)

    def dial() -> TLSSocket:
        try:
            sock = socket.create_connection((host, port), _CONNECT_TIMEOUT)
            kept_alive(sock)
            return TLSSocket(sock, context, host)
        except OSError as error:  # TLS's own among them
            raise ConnectionError(f"{host}:{port}: {error}") from error

    return DialledClient(dial)


def kept_alive(sock: socket.socket) -> None:
    """Have the system notice within a minute or two that the other side is gone, where it can be told so."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 90_000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _context(tls: docker.tls.TLSConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_cert or None)
    context.verify_flags &= (
        ~ssl.VERIFY_X509_STRICT
    )  # certificates as Docker's documentation makes them lack what it asks
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert:
        context.load_cert_chain(*tls.cert)
    return context


class TLSSocket(Stream):
    """TLS over a connected socket. One thread may read while another writes; `shutdown(SHUT_WR)` leaves reading as it is."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__(sock)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._state = threading.Lock()  # OpenSSL's object is one thread's at a time
        self._order = threading.Lock()  # records go out in the order in which they were made
        self._read_before = b""
        try:
            while not self._try(self._tls.do_handshake):
                self._flush()
                self._more()
            self._flush()
        except BaseException:
            sock.close()
            raise

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._flush(view[start : start + _PIECE])

    def recv_into(self, buffer: memoryview) -> int:
        while True:
            with self._state:
                data = self._read_before[: len(buffer)] or self._decrypted(len(buffer))
                self._read_before = self._read_before[len(data or b"") :]
                answer = data is None and self._out.pending > 0  # the other side wants one, for a new key say
            if data is not None:
                buffer[: len(data)] = data
                return len(data)
            if answer:
                self._flush()
            self._more()

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_WR:
            super().shutdown(how)
            return
        with self._state, contextlib.suppress(OSError):
            while data := self._decrypted(_PIECE):  # to OpenSSL, data that arrives after the farewell is an error
                self._read_before += data
            self._tls.unwrap()  # raises, for it asks for the other side's farewell too, which comes in its time
        with contextlib.suppress(OSError):
            self._flush()

    def _try(self, step: Any) -> bool:
        with self._state, contextlib.suppress(ssl.SSLWantReadError):
            step()
            return True
        return False

    def _decrypted(self, most: int) -> bytes | None:
        """What has arrived, empty at the end; None where more must arrive first."""
        try:
            return self._tls.read(most)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:  # an end without a farewell among them: whatever comes last may be missing
            raise ConnectionAbortedError(f"TLS: {error}") from error

    def _more(self) -> None:
        data = self._sock.recv(_PIECE)
        with self._state:
            if data:
                self._in.write(data)
            else:
                self._in.write_eof()

    def _flush(self, data: memoryview | None = None) -> None:
        """Send what is to be sent, `data` at its end."""
        with self._order:
            with self._state:
                try:
                    if data is not None:
                        self._tls.write(data)
                except ssl.SSLError as error:
                    raise ConnectionAbortedError(f"TLS: {error}") from error
                made = self._out.read()
            if made:
                self._sock.sendall(made)
