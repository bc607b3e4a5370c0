"""The only way to a nested engine: a docker-py client whose every request passes `rules.decide` first."""

import json
import re
from collections.abc import Callable
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import docker
import requests
import urllib3
import urllib3.connection
import urllib3.connectionpool
from docker.transport.basehttpadapter import BaseHTTPAdapter

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.rules import Limits, Request, decide

API_VERSION = "1.41"
"""The version of Docker's Engine API that the rules are written for; podman 5 and dockerd 26 both speak it."""


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


Dial = Callable[[], SocketLike]


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, dial: Dial, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._dial = dial

    def connect(self) -> None:
        sock = self._dial()
        timeout = self.timeout
        sock.settimeout(float(timeout) if isinstance(timeout, int | float) else None)
        self.sock = cast(Any, sock)


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    def __init__(self, dial: Dial, timeout: float | None, maxsize: int) -> None:
        super().__init__("localhost", timeout=timeout, maxsize=maxsize)
        self._dial = dial

    def _new_conn(self) -> Any:
        return _Connection(self._dial, cast("float | None", self.timeout.connect_timeout))


class GuardedAdapter(BaseHTTPAdapter):  # type: ignore[misc]
    """A requests adapter that asks the policy, then sends what it granted over connections from `dial`.

    `limits` is read at each request: a sandbox that grew grants more at once.
    """

    def __init__(self, dial: Dial, limits: Callable[[], Limits], timeout: float, pool_size: int = 32) -> None:
        self._limits = limits
        self._pool = _Pool(dial, timeout, pool_size)
        super().__init__()

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        return self._pool

    def get_connection(self, url: Any, proxies: Any = None) -> Any:
        return self._pool

    def request_url(self, request: Any, proxies: Any) -> str:
        return str(request.path_url)

    def close(self) -> None:
        self._pool.close()

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        self._guard(request)
        return cast(requests.Response, super().send(request, *args, **kwargs))

    def build_response(self, request: Any, raw: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.reason, response.raw = raw.status, raw.reason, raw
        response.headers.update(raw.headers)
        response.encoding = requests.utils.get_encoding_from_headers(response.headers)
        response.url, response.request = request.url, request
        response.connection = self
        return response

    def _guard(self, request: Any) -> None:
        url = urlsplit(request.path_url)
        pairs = parse_qsl(url.query, keep_blank_values=True)
        query = dict(pairs)
        if len(query) != len(pairs):
            raise PolicyRefused("a query parameter is given twice.", "This is the server's fault, not the request's.")
        path = re.sub(r"\A/v1\.[0-9]+(?=/)", "", url.path)
        is_json = str(request.headers.get("Content-Type", "")).startswith("application/json")
        if request.body and not is_json and not _RAW_BODY.fullmatch(path):
            raise PolicyRefused("a body that is not JSON can't be judged.", "This is the server's fault.")
        body = json.loads(request.body) if is_json and request.body else None
        allowed = decide(Request(request.method, path, query, body), self._limits())
        if allowed.query != query:
            request.url = f"http+docker://localhost{url.path}?{urlencode(allowed.query)}"
        if allowed.body is not None:  # written anew: what was decided on is what is sent, repeated keys and all
            request.body = json.dumps(allowed.body).encode()
            request.headers["Content-Length"] = str(len(request.body))


class _Client(docker.APIClient):  # type: ignore[misc]
    """docker-py's client, and of a request only what an engine behind a socket has a use for: no cookies, redirects,
    proxies, .netrc or hooks, which cost requests as long as a small answer takes."""

    def request(
        self, method: str, url: str, params: Any = None, data: Any = None, headers: Any = None,
        stream: bool = False, timeout: Any = None, json: Any = None, allow_redirects: bool = False,
    ) -> requests.Response:  # fmt: skip
        prepared = requests.PreparedRequest()
        prepared.prepare_method(method)
        asked = {key: value for key, value in (params or {}).items() if value is not None}
        prepared.url = f"{url}?{urlencode(asked, doseq=True)}" if asked else url
        prepared.prepare_headers({**self.headers, **(headers or {})})
        prepared.prepare_body(data, None, json)
        response = self.get_adapter(url).send(prepared, stream=stream, timeout=timeout)
        if not stream:
            _ = response.content
        return cast(requests.Response, response)


def guarded_client(dial: Dial, limits: Callable[[], Limits], timeout: float = 60) -> docker.APIClient:
    """A docker-py client for a nested engine. `timeout` bounds each request in seconds where the call names none."""
    client = _Client(base_url="unix:///nested-engine", version=API_VERSION, timeout=timeout)
    client.mount("http+docker://", GuardedAdapter(dial, limits, timeout))
    return client
