"""The only way to a nested engine: a docker-py client whose every request passes `rules.decide` first."""

import contextlib
import http.client
import json
import re
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast
from urllib.parse import urlencode

import docker
import requests
import urllib3

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.rules import Limits, Request, decide

API_VERSION = "1.41"
"""The version of Docker's Engine API that the rules are written for; podman 5 and dockerd 26 both speak it."""

_VERSION_PREFIX = f"/v{API_VERSION}"
_RAW_BODY = re.compile(r"/build|/images/(create|load)|/containers/[^/]+/archive")
"""Endpoints that take an archive; everywhere else a body is JSON."""


class SocketLike(Protocol):
    """What a host's dialer returns: a connected stream."""

    def sendall(self, data: bytes, /) -> None: ...
    def makefile(self, mode: str, /) -> Any: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


_UNTOLD = -1.0
"""No timeout was named: the client's own counts."""
_MAX_IDLE = 32
"""Connections kept for the next request; over the relay each is a process in the sandbox."""

Dial = Callable[[], SocketLike]


class _Connection(http.client.HTTPConnection):
    def __init__(self, dial: Dial) -> None:
        super().__init__("localhost")
        self._dial = dial

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

    def asked(self, method: str, target: str, body: Any, headers: Any) -> bool:
        """Send a request; whether all of it went out. An engine may answer before it has read all of a body, and hang
        up: the answer says why."""
        try:
            self.request(method, target, body, headers)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True


class GuardedClient(docker.APIClient):  # type: ignore[misc]
    """docker-py's client, whose requests go out from here alone: judged, then sent over connections from `dial`.

    Python's own HTTP client does that: of what requests adds to it (cookies, redirects, proxies, .netrc, hooks) an engine
    behind a socket has no use, and it takes longer than a small answer does. `limits` is read at each request: a sandbox
    that grew grants more at once. `timeout` bounds each request in seconds where the call names none.
    """

    def __init__(self, dial: Dial, limits: Callable[[], Limits], timeout: float = 60) -> None:
        super().__init__(base_url="unix:///nested-engine", version=API_VERSION, timeout=timeout)
        self.adapters.clear()  # whatever bypasses `request` ends there
        self._custom_adapter = None
        self._dial = dial
        self._limits = limits
        self._idle: list[_Connection] = []
        self._thread = threading.local()

    def request(
        self, method: str, url: str, params: Any = None, data: Any = None, headers: Any = None,
        stream: bool = False, timeout: float | None = _UNTOLD, json: Any = None, allow_redirects: bool = False,
    ) -> requests.Response:  # fmt: skip
        """What docker-py asks of its session. A streamed answer has a connection of its own, closed with it. A `timeout`
        of None is none at all.

        Raises PolicyRefused, CapExceeded, and OSError or http.client.HTTPException where the engine does not answer.
        """
        assert json is None, "docker-py writes its JSON itself"
        query = {key: str(value) for key, value in (params or {}).items() if value is not None}
        target, body = self._granted(method, url.removeprefix(str(self.base_url)), query, data, headers or {})
        connection = self._connection(self.timeout if timeout is _UNTOLD else timeout)
        try:
            if (connected := getattr(self._thread, "connected", None)) is not None:
                connected(connection.sock)
            whole = connection.asked(method, target, body, headers or {})
            answer = connection.getresponse()
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

    def _granted(self, method: str, path: str, query: dict[str, str], data: Any, headers: Any) -> tuple[str, Any]:
        """Path and body as they may go out. Raises PolicyRefused, CapExceeded."""
        is_json = str(headers.get("Content-Type", "")).startswith("application/json")
        bare = path.removeprefix(_VERSION_PREFIX)
        if data and not is_json and not _RAW_BODY.fullmatch(bare):
            raise PolicyRefused("a body that is not JSON can't be judged.", "This is the server's fault.")
        allowed = decide(Request(method, bare, query, json.loads(data) if is_json and data else None), self._limits())
        body = data.encode() if isinstance(data, str) else data
        if allowed.body is not None:  # written anew: what was decided on is what is sent, repeated keys and all
            body = json.dumps(allowed.body).encode()
        return f"{path}?{urlencode(allowed.query)}" if allowed.query else path, body

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


class _Stream(urllib3.HTTPResponse):
    def close(self) -> None:
        with contextlib.suppress(ValueError):  # Python 3.13 flushes what the garbage collector may have closed before
            super().close()


def _streamed(url: str, answer: http.client.HTTPResponse, connection: _Connection) -> requests.Response:
    """An answer that is read as it comes, or a connection that is no longer HTTP."""
    response = _response(url, answer)
    response.raw = _Stream(
        cast(Any, answer), dict(answer.headers), answer.status, preload_content=False,
        original_response=cast(Any, answer), connection=cast(Any, connection),
    )  # fmt: skip
    return response


def _response(url: str, answer: http.client.HTTPResponse) -> requests.Response:
    response = requests.Response()
    response.url, response.status_code, response.reason = url, answer.status, answer.reason
    response.headers.update(answer.headers)
    response.encoding = "utf-8"
    return response
