"""What each HTTP request passes before MCP sees it: who calls, how often, how large and how slowly, and with which scopes."""

import json
import math

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Request

from manyoyo_mcp.config import Settings
from manyoyo_mcp.http.callers import Callers, Nobody, refusal
from manyoyo_mcp.http.limits import Share, Shares
from manyoyo_mcp.http.oauth import OAuth
from manyoyo_mcp.http.tokens import Tokens
from manyoyo_mcp.sessions.principals import CALLER, Caller, Scope
from manyoyo_mcp.sessions.witness import HttpWitness
from manyoyo_mcp.tools import TOOLS

BODY_S = 30.0
"""Seconds for all of the body."""
PIECE = 64 << 10
"""Bytes of an answer that are sent at a time: with the next it is waited until its client has taken these."""
_SESSION, _VERSION = b"mcp-session-id", b"mcp-protocol-version"
_SCOPES: dict[str, Scope] = {tool.name: tool.scope for tool in TOOLS}


class Door:
    """An ASGI application around MCP's."""

    def __init__(
        self, app: ASGIApp, settings: Settings, tokens: Tokens, oauth: OAuth | None, witness: HttpWitness
    ) -> None:
        self._app = app
        self._settings = settings
        self._callers = Callers(tokens, oauth)
        self._oauth = oauth
        self._witness = witness
        self._shares = Shares(settings)

    async def __call__(self, request: Request, receive: Receive, send: Send) -> None:
        if request["type"] == "lifespan":
            await self._app(request, receive, send)
            return
        if request["type"] != "http":
            await send({"type": "websocket.close"})
            return
        if self._oauth is not None and (told := self._oauth.routes.get(request["path"])) is not None:
            await told.handle(request, receive, send)
            return
        try:
            caller = await self._callers.find(request["headers"])
        except Nobody as nobody:
            if nobody.given:
                await self._witness.unknown(str((request.get("client") or ("",))[0]))
            await nobody.answer(request, receive, send)
            return
        share = self._shares.of(caller.principal)
        wait = share.wait()
        if wait:
            refused = await self._limited(caller, f"too many requests of yours. Ask again in {wait:.3f} s.")
            refused.headers["Retry-After"] = str(math.ceil(wait))
            await refused(request, receive, send)
            return
        share.open += 1
        try:
            await self._admitted(caller, share, request, receive, send)
        finally:
            share.open -= 1

    async def _limited(self, caller: Caller, words: str) -> Response:
        await self._witness.refused(caller.principal, "RATE_LIMITED", words)
        return refusal(429, f"RATE_LIMITED: {words}")

    async def _admitted(self, caller: Caller, share: Share, request: Request, receive: Receive, send: Send) -> None:
        body = await self._body(receive)
        if body is None:
            return  # it went away
        session = _header(request, _SESSION)
        version = (_header(request, _VERSION) or b"").decode("latin-1")
        has_sessions = version in ("", *HANDSHAKE_PROTOCOL_VERSIONS)  # as the SDK tells the eras apart
        begins = session is None and has_sessions
        refused = body if isinstance(body, Response) else await self._lacking(caller, body)
        if refused is None and begins and share.sessions.full():
            refused = await self._limited(caller, "too many sessions of yours are open. End one (DELETE).")
        if refused is not None:
            await refused(request, receive, send)
            return

        async def noted(message: Message) -> None:
            """Sessions are the SDK's; that it has begun, used or ended one is seen by its answer."""
            if message["type"] == "http.response.start" and message["status"] < 300 and has_sessions:
                known = session or next(
                    (value for key, value in message.get("headers", []) if key.lower() == _SESSION), None
                )
                if known is not None and request["method"] == "DELETE":
                    share.sessions.end(known)
                elif known is not None:
                    share.sessions.use(known)
            await _in_pieces(message, send)

        told = False

        async def again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        # MCP's sessions of the older protocol are bound to who began them by this; nobody behind the door sees a token
        user = AuthenticatedUser(AccessToken(token="", client_id=caller.principal, scopes=sorted(caller.scopes)))
        headers = [(key, value) for key, value in request["headers"] if key != b"authorization"]
        await self._app({**request, CALLER: caller, "user": user, "headers": headers}, again, noted)

    async def _body(self, receive: Receive) -> bytes | Response | None:
        """The whole of it; or what is answered where it is too large or too slow; None where the client has gone."""
        body = bytearray()
        with anyio.move_on_after(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > self._settings.http_body_bytes:
                    return refusal(413, f"More than {self._settings.http_body_bytes} bytes.")
                if not message.get("more_body", False):
                    return bytes(body)
        return refusal(408, f"The body took more than {BODY_S:g} s.")

    async def _lacking(self, caller: Caller, body: bytes) -> Response | None:
        """What is answered where an access token lacks a scope, so that its client can ask for it. This is for the client's sake: the
        tools look for themselves, and refuse the principals with tokens of ours."""
        if self._oauth is None or not caller.issuer:
            return None
        scope = needed(body)
        if scope is None or caller.may(scope):
            return None
        words = f"this token does not have the scope {scope!r}."
        await self._witness.refused(caller.principal, "SCOPE_MISSING", words)
        refused = refusal(403, f"SCOPE_MISSING: {words}")
        refused.headers["WWW-Authenticate"] = self._oauth.lacking(scope)
        return refused


async def _in_pieces(message: Message, send: Send) -> None:
    body = message.get("body", b"")
    for begin in range(0, len(body) - PIECE, PIECE):
        await send({**message, "body": body[begin : begin + PIECE], "more_body": True})
    last = max(len(body) - 1, 0) // PIECE * PIECE
    await send({**message, "body": body[last:]} if last else message)


def _header(request: Request, name: bytes) -> bytes | None:
    return next((value for key, value in request["headers"] if key == name), None)


def needed(body: bytes) -> Scope | None:
    """The scope that a message needs, where it asks for something that there is."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    match message:
        case {"method": "tools/call", "params": {"name": str(name)}}:
            return _SCOPES.get(name)
        case {"method": "resources/read"}:
            return "read"
    return None
