"""docker-py's client over connections that a function makes: what reaches an engine need not be a socket that docker-py
knows how to open."""

import contextlib
import http.client
import io
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast
from urllib.parse import urlencode

import docker
import requests
import urllib3


class SocketLike(Protocol):
    """What `Dial` returns: a connected stream."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, count: int, /) -> bytes: ...
    def makefile(self, mode: str, /) -> Any: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


_UNTOLD = -1.0
"""No timeout was named: the client's own counts."""
_MAX_IDLE = 32
"""Connections kept for the next request; over the relay each is a process in the sandbox."""

_MAX_LINE = 1 << 16
_MAX_HEADERS = 100
"""Both as Python's own client has them."""

Dial = Callable[[], SocketLike]


class Stream:
    """A `SocketLike` over another, whose bytes are not its own. What reads and writes is a subclass's."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._readers = 0
        self._closing = False

    def recv_into(self, buffer: memoryview) -> int:
        raise NotImplementedError

    def recv(self, count: int) -> bytes:
        data = bytearray(count)
        return bytes(data[: self.recv_into(memoryview(data))])

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        self._readers += 1
        return io.BufferedReader(_Reader(self), 1 << 16)

    def settimeout(self, seconds: float | None) -> None:
        self._sock.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(how)

    def close(self) -> None:
        """As sockets do: at once, or when the last reader is closed, which may have an answer still to read."""
        self._closing = True
        if self._readers == 0:
            self._end()

    def released(self) -> None:
        """A reader is closed."""
        self._readers -= 1
        if self._closing:
            self.close()

    def fileno(self) -> int:
        return int(self._sock.fileno())

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()


class _Reader(io.RawIOBase):
    """What docker-py and http.client expect under a response: a raw reader that knows its socket."""

    def __init__(self, sock: Stream) -> None:
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


class _Headers(dict[str, str]):
    """An answer's; whatever the case of a name."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class _Response(http.client.HTTPResponse):
    """Reads its beginning at once. Python's own has a parser of mails do it, which took half of the time that a small answer did."""

    def begin(self) -> None:
        status = http.client.CONTINUE
        while status == http.client.CONTINUE:
            version, status, self.reason, headers = _begun(self.fp)
        self.version = 10 if version == "HTTP/1.0" else 11
        self.code = self.status = status
        self.headers = self.msg = cast(Any, headers)
        self.chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        length = headers.get("content-length")
        if status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED) or status < 200 or self._method == "HEAD":  # type: ignore[attr-defined]
            self.length = 0
        else:
            self.length = int(length) if length is not None and length.isdecimal() and not self.chunked else None
        self.will_close = self._check_close() or (self.length is None and not self.chunked)  # type: ignore[attr-defined]


def _head(file: Any) -> list[str]:
    """The lines of an answer up to the empty one; nothing of what follows is read."""
    there: bytes = file.peek(1)  # all of them, mostly
    end = there.find(b"\r\n\r\n")
    if 0 <= end < _MAX_LINE:
        file.read(end + 4)
        return there[:end].decode("latin-1").split("\r\n")
    lines: list[str] = []
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE or len(lines) > _MAX_HEADERS:
            raise http.client.HTTPException("the answer's headers are too long")
        if line in (b"\r\n", b"\n"):
            break
        lines.append(line.decode("latin-1").rstrip("\r\n"))
    return lines


def _begun(file: Any) -> tuple[str, int, str, _Headers]:
    """Version, status, reason and headers of an answer."""
    lines = _head(file)
    if not lines:
        raise http.client.RemoteDisconnected("hung up without an answer")
    if len(lines) > _MAX_HEADERS:
        raise http.client.HTTPException("the answer's headers are too many")
    version, _, rest = lines[0].partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/") or not status.isdecimal() or len(status) != 3:
        raise http.client.BadStatusLine(lines[0])
    headers = _Headers()
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return version, int(status), reason.strip(), headers


class _Connection(http.client.HTTPConnection):
    """One connection, for a request after another. Small ones are written at once, by us: of what Python's own looks at in each of its words
    no more than this can be wrong."""

    response_class = _Response

    def __init__(self, dial: Dial) -> None:
        super().__init__("localhost")
        self._dial = dial
        self._asked = ""

    def connect(self) -> None:
        self.sock = cast(Any, self._dial())

    def ready(self, timeout: float | None) -> bool:
        """Connected, and at rest: an idle connection that has something to read has been ended by the other side."""
        if self.sock is None:
            self.connect()
        else:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            if poll.poll(0):
                self.close()
                return False
        self.sock.settimeout(timeout)
        return True

    def asked(self, method: str, target: str, body: Any, headers: Mapping[str, str]) -> bool:
        """Send a request; whether all of it went out. An engine may answer before it has read all of a body, and hang
        up: the answer says why. Raises http.client.InvalidURL for what would be two requests."""
        self._asked = ""
        try:
            if body is None or isinstance(body, bytes):
                self.sock.sendall(_written(method, target, body, headers))
                self._asked = method
            else:
                self.request(method, target, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answered(self) -> http.client.HTTPResponse:
        """The answer, to be read to its end before the next request. Raises OSError or http.client.HTTPException."""
        if not self._asked:
            return self.getresponse()
        answer = _Response(self.sock, method=self._asked)
        try:
            answer.begin()
        except BaseException:
            answer.close()
            raise
        if answer.will_close:
            self.close()  # its reader holds what is left
        return answer


def _written(method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    """A request's bytes."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Accept-Encoding: identity"]
    if body is not None or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body or b'')}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if not (target.isascii() and target.isprintable() and " " not in target) or any(
        "\r" in each or "\n" in each for each in lines
    ):
        raise http.client.InvalidURL(f"can't be written as a request: {target[:200]!r}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


class DialledClient(docker.APIClient):  # type: ignore[misc]
    """docker-py's client, whose requests go out over connections from `dial` and in no other way.

    Python's own HTTP client does that: of what requests adds to it (cookies, redirects, proxies, .netrc, hooks) an engine
    behind a socket has no use, and it takes longer than a small answer does. `version` is that of Docker's Engine API; where
    none is named the engine is asked for its own. `timeout` bounds each request in seconds where the call names none.
    """

    def __init__(self, dial: Dial, version: str | None = None, timeout: float = 60) -> None:
        super().__init__(
            base_url="unix:///dialled", version=version or docker.constants.DEFAULT_DOCKER_API_VERSION, timeout=timeout
        )
        self.adapters.clear()  # whatever bypasses `request` ends there
        self._custom_adapter = None
        self._dial = dial
        self._idle: list[_Connection] = []
        self._thread = threading.local()
        if version is None:
            self._version = self._retrieve_server_version()

    def request(
        self, method: str, url: str, params: Any = None, data: Any = None, headers: Any = None,
        stream: bool = False, timeout: float | None = _UNTOLD, json: Any = None, allow_redirects: bool = False,
    ) -> requests.Response:  # fmt: skip
        """What docker-py asks of its session. A streamed answer has a connection of its own, closed with it. A `timeout`
        of None is none at all.

        Raises OSError or http.client.HTTPException where the engine does not answer.
        """
        assert json is None, "docker-py writes its JSON itself"
        query = {key: str(value) for key, value in (params or {}).items() if value is not None}
        target, body = self._outgoing(method, url.removeprefix(str(self.base_url)), query, data, headers or {})
        connection = self._connection(self.timeout if timeout is _UNTOLD else timeout)
        try:
            if (connected := getattr(self._thread, "connected", None)) is not None:
                connected(connection.sock)
            whole = connection.asked(method, target, body, headers or {})
            answer = connection.answered()
            if stream and answer.status < 400:  # an error is read at once, so that keeping it keeps no connection
                return _streamed(url, answer, connection)
            response = _plain(url, answer)
        except BaseException:
            connection.close()
            raise
        if not whole or connection.sock is None or len(self._idle) >= _MAX_IDLE:
            connection.close()
        else:
            self._idle.append(connection)
        return response

    @contextlib.contextmanager
    def telling(self, connected: Callable[[SocketLike], None]) -> Iterator[None]:
        """Within it, this thread's requests tell which connection they go out on, so that another may end them."""
        self._thread.connected = connected
        try:
            yield
        finally:
            del self._thread.connected

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _outgoing(self, method: str, path: str, query: Mapping[str, Any], data: Any, headers: Any) -> tuple[str, Any]:
        """Target and body of a request as they go out."""
        body = data.encode() if isinstance(data, str) else data
        return f"{path}?{urlencode(query, doseq=True)}" if query else path, body

    def _connection(self, timeout: float | None) -> _Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = _Connection(self._dial)
            if connection.ready(timeout):
                return connection


def _plain(url: str, answer: http.client.HTTPResponse) -> requests.Response:
    """An answer read to its end."""
    response = _response(url, answer)
    response._content = answer.read()
    response._content_consumed = True  # type: ignore[attr-defined]
    return response


class _Body(urllib3.HTTPResponse):
    def close(self) -> None:
        with contextlib.suppress(ValueError):  # Python 3.13 flushes what the garbage collector may have closed before
            super().close()


def _streamed(url: str, answer: http.client.HTTPResponse, connection: _Connection) -> requests.Response:
    """An answer that is read as it comes, or a connection that is no longer HTTP."""
    response = _response(url, answer)
    response.raw = _Body(
        cast(Any, answer), dict(answer.headers), answer.status, preload_content=False,
        original_response=cast(Any, answer), connection=cast(Any, connection),
    )  # fmt: skip
    return response


class _Answer(requests.Response):
    """Without a jar for cookies, which takes longer to make than the rest."""

    def __init__(self) -> None:
        self._content = cast(Any, False)
        self._content_consumed = False
        self._next = None
        self.raw = self.request = self.cookies = cast(Any, None)
        self.history = []


def _response(url: str, answer: http.client.HTTPResponse) -> requests.Response:
    response = _Answer()
    response.url, response.status_code, response.reason = url, answer.status, answer.reason
    response.headers = cast(Any, answer.headers)
    response.encoding = "utf-8"
    return response
