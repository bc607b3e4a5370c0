"""`serve --http`: what must be there before an address is listened at, and the listening."""

import logging
import sys

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.http import oauth
from manyoyo_mcp.http.asking import is_loopback
from manyoyo_mcp.http.door import Door
from manyoyo_mcp.http.limits import SESSION_S, SESSIONS
from manyoyo_mcp.http.protocol import Protocol
from manyoyo_mcp.http.tokens import Tokens
from manyoyo_mcp.server import build_server
from manyoyo_mcp.sessions.principals import open_principals
from manyoyo_mcp.sessions.witness import HttpWitness

PATH = "/mcp"
_KEEP_ALIVE_S, _LAST_CALLS_S = 30, 3
_LOCAL = ["127.0.0.1:*", "localhost:*", "[::1]:*"]
_LARGEST_HEADERS = 32 << 10


def address_of(words: str) -> tuple[str, int]:
    """HOST:PORT, or [ADDRESS]:PORT. Raises InvalidArgument."""
    host, colon, port = words.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidArgument(f"--http: {words[:80]!r} is no HOST:PORT.", "For example 127.0.0.1:8765, or [::1]:8765.")
    return host, int(port)


def security(settings: Settings, host: str) -> TransportSecuritySettings:
    """Which Host and Origin headers are served; on loopback its own names, as well as those that the settings name."""
    local = is_loopback(host)
    scheme = "https" if settings.http_certificate else "http"
    return TransportSecuritySettings(
        allowed_hosts=[*settings.http_hosts, *(_LOCAL if local else [])],
        allowed_origins=[*settings.http_origins, *([f"{scheme}://{name}" for name in _LOCAL] if local else [])],
    )


def tokens_for(settings: Settings, host: str) -> Tokens:
    """Who may call; where there is no file of them, and no OAuth, whoever reaches it, which is for loopback alone. Raises InvalidArgument where
    an address needs more than the settings give."""
    tokens = Tokens(settings.http_tokens)
    known = tokens.all() or oauth.check(settings)
    if (settings.http_certificate is None) != (settings.http_key is None):
        raise InvalidArgument("TLS needs both a certificate and its key.", "Set MANYOYO_HTTP_CERTIFICATE and _KEY.")
    if not is_loopback(host):
        if not known:
            raise InvalidArgument(
                f"{host} is not loopback: who may call there must have a token, and there is none.",
                "`manyoyo-mcp token add NAME` makes one; MANYOYO_OAUTH_ISSUER names who else does; or serve 127.0.0.1.",
            )
        if not settings.http_hosts:
            raise InvalidArgument(
                f"{host} is not loopback: the Host headers that are served must be named.",
                "Set MANYOYO_HTTP_HOSTS, e.g. box.example.org:8765.",
            )
        if settings.http_certificate is None and settings.http_tls == "require":
            raise InvalidArgument(
                f"{host} is not loopback: tokens would cross the network unencrypted.",
                "Set MANYOYO_HTTP_CERTIFICATE and MANYOYO_HTTP_KEY; or, behind a proxy that ends TLS, MANYOYO_HTTP_TLS=off.",
            )
    return tokens


def serve(settings: Settings, words: str) -> None:
    """Serve until a signal comes; then the sandboxes end that have no name. Raises InvalidArgument."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    host, port = address_of(words)
    anyio.run(_serve, settings, host, port, tokens_for(settings, host))


async def _serve(settings: Settings, host: str, port: int, tokens: Tokens) -> None:
    witness = HttpWitness(settings)
    server = build_server(settings, open_principals(settings, witness))
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=settings.http_body_bytes,
        max_sessions=SESSIONS,
        session_idle_timeout=SESSION_S,
        transport_security=security(settings, host),
        host=host,
    )
    async with oauth.open_oauth(settings) as others:
        config = uvicorn.Config(
            Door(app, settings, tokens, others, witness),
            host=host,
            port=port,
            http=Protocol,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.http_connections,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_CALLS_S,
            h11_max_incomplete_event_size=_LARGEST_HEADERS,
            ssl_certfile=settings.http_certificate,
            ssl_keyfile=str(settings.http_key) if settings.http_key else None,
        )
        scheme = "https" if settings.http_certificate else "http"
        asked = [
            *(["tokens"] if tokens.path.exists() else []),
            *([f"access tokens of {settings.oauth_issuer}"] if others else []),
        ]
        who = f"{' or '.join(asked)} are asked for" if asked else "without tokens: whoever is on this machine may call"
        shown = f"[{host}]" if ":" in host else host
        print(f"manyoyo-mcp: {scheme}://{shown}:{port}{PATH}, {who}", file=sys.stderr, flush=True)
        await uvicorn.Server(config).serve()
