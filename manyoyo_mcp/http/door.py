"""What each HTTP request passes before MCP sees it: who calls, how often, how large and how slowly."""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import anyio
import h11
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from manyoyo_mcp.config import Settings
from manyoyo_mcp.http.tokens import Tokens
from manyoyo_mcp.sessions.principals import CALLER, USER, Bucket, Caller

HEADERS_S = 10.0
"""Seconds that a client may take for the headers of a request, from its connection or their first byte on."""
BODY_S = 30.0
"""Seconds for all of the body."""
_REQUESTS_A_CALL = 4
"""Requests allowed for each call: what is no call of a tool counts too."""


SESSIONS = 2000
"""Sessions of the older protocol that are open at a time; each is some memory until it was not used for `SESSION_S` seconds."""
SESSION_S = 1800.0
_SESSION, _VERSION = b"mcp-session-id", b"mcp-protocol-version"


class Sessions:
    """Who has which sessions of the older protocol: one principal is not to take them all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: dict[str, dict[bytes, float]] = defaultdict(dict)

    def full(self, principal: str) -> bool:
        mine, now = self._used[principal], time.monotonic()
        for each in [each for each, used in mine.items() if now - used > SESSION_S]:
            del mine[each]
        return len(mine) >= self._most

    def use(self, principal: str, session: bytes) -> None:
        self._used[principal][session] = time.monotonic()

    def end(self, principal: str, session: bytes) -> None:
        self._used[principal].pop(session, None)


class Door:
    """An ASGI application around MCP's. `tokens` is None where nobody is asked for one."""

    def __init__(self, app: ASGIApp, settings: Settings, tokens: Tokens | None) -> None:
        self._app = app
        self._settings = settings
        self._tokens = tokens
        rate = _REQUESTS_A_CALL * settings.http_rate
        self._buckets: dict[str, Bucket] = defaultdict(lambda: Bucket(rate, max(8.0, 2 * rate)))
        self._open: dict[str, int] = defaultdict(int)
        self._sessions = Sessions(SESSIONS // 8)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        caller = self._caller(scope)
        if caller is None:
            unknown = _error(401, "A bearer token is needed, and this is none that is known.")
            unknown.headers["WWW-Authenticate"] = 'Bearer realm="manyoyo-mcp"'
            await unknown(scope, receive, send)
            return
        refused = self._limited(caller)
        if refused is not None:
            await refused(scope, receive, send)
            return
        self._open[caller.principal] += 1
        try:
            await self._admitted(caller, scope, receive, send)
        finally:
            self._open[caller.principal] -= 1

    def _caller(self, scope: Scope) -> Caller | None:
        if self._tokens is None:
            return USER
        given = [value for key, value in scope["headers"] if key == b"authorization"]
        if len(given) != 1:
            return None
        scheme, _, token = given[0].decode("latin-1").partition(" ")
        return self._tokens.caller(token.strip()) if scheme.lower() == "bearer" else None

    def _limited(self, caller: Caller) -> Response | None:
        wait = self._buckets[caller.principal].take()
        if not wait and self._open[caller.principal] >= max(self._settings.http_connections // 4, 1):
            wait = 1.0
        if not wait:
            return None
        refused = _error(429, f"RATE_LIMITED: too many requests of yours. Ask again in {wait:.3f} s.")
        refused.headers["Retry-After"] = str(math.ceil(wait))
        return refused

    async def _admitted(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        with anyio.move_on_after(BODY_S) as slow:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > self._settings.http_body_bytes:
                    refused = _error(413, f"More than {self._settings.http_body_bytes} bytes.")
                    await refused(scope, receive, send)
                    return
        if slow.cancelled_caught:
            await _error(408, f"The body took more than {BODY_S:g} s.")(scope, receive, send)
            return
        who = caller.principal
        session = next((value for key, value in scope["headers"] if key == _SESSION), None)
        version = next((value for key, value in scope["headers"] if key == _VERSION), b"").decode("latin-1")
        begins = session is None and version in ("", *HANDSHAKE_PROTOCOL_VERSIONS)  # as the SDK tells the eras apart
        if begins and self._sessions.full(who):
            await _error(429, "RATE_LIMITED: too many sessions of yours are open. End one (DELETE).")(
                scope, receive, send
            )
            return

        async def noted(message: Message) -> None:
            """Sessions are the SDK's; that it has begun, used or ended one is seen by its answer."""
            if message["type"] == "http.response.start" and message["status"] < 300:
                known = session or next(
                    (value for key, value in message.get("headers", []) if key.lower() == _SESSION), None
                )
                if known is not None and scope["method"] == "DELETE":
                    self._sessions.end(who, known)
                elif known is not None:
                    self._sessions.use(who, known)
            await send(message)

        told = False

        async def again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        # MCP's sessions of the older protocol are bound to who began them by this
        user = AuthenticatedUser(AccessToken(token="", client_id=who, scopes=sorted(caller.scopes)))
        await self._app({**scope, CALLER: caller, "user": user}, again, noted)


def _error(status: int, words: str) -> Response:
    told = {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": words}}
    return JSONResponse(told, status_code=status, headers={"Connection": "close"})


class Protocol(H11Protocol):
    """uvicorn's HTTP, with an end to waiting for a request's headers."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waits = self.loop.call_later(HEADERS_S, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waits is None:
            self._waits = self.loop.call_later(HEADERS_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _too_slow(self) -> None:
        self._waits = None
        close: Callable[[], None] = self.transport.abort
        if self.conn.their_state is h11.IDLE:
            close()
