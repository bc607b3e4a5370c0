"""OAuth's resource server (RFC 9728): what it publishes, and who calls by the tokens of the authorization server that the operator named."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx2
from mcp.client.auth.utils import build_oauth_authorization_server_metadata_discovery_urls
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from pydantic import AnyHttpUrl, TypeAdapter
from starlette.routing import Route

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.http import asking
from manyoyo_mcp.http.judging import LONGEST, Asked, Signed, Verifier
from manyoyo_mcp.http.keys import Keys
from manyoyo_mcp.sessions.principals import SCOPES, Caller, Scope

_NEEDED: tuple[Scope, ...] = ("read", "run", "build")
"""What a client is told to ask for that has no token; admin it is told of when it needs that."""
_url: TypeAdapter[AnyHttpUrl] = TypeAdapter(AnyHttpUrl, config={"url_preserve_empty_path": True})


def principal(issuer: str, subject: str) -> str:
    """An owner's name for whoever an issuer calls so. No principal with a token of ours has a capital letter."""
    return "OAuth-" + hashlib.sha256(json.dumps([issuer, subject]).encode()).hexdigest()[:32]


class OAuth:
    """What `serve --http` publishes of itself, and the callers by the tokens of the authorization server. Made by `open_oauth`."""

    def __init__(self, resource: str, issuer: str, verifier: Verifier, prefix: str) -> None:
        self._issuer = issuer
        self._verifier = verifier
        self._prefix = prefix
        self._metadata = str(build_resource_metadata_url(_url.validate_python(resource)))
        self.routes = _routes(resource, issuer, [prefix + each for each in SCOPES])

    async def caller(self, token: str) -> Caller | None:
        """Raises Unavailable."""
        if len(token) > LONGEST or not token.isascii():
            return None
        found = await self._verifier.verify_token(token)
        if found is None or found.subject is None:
            return None
        scopes = {each.removeprefix(self._prefix) for each in found.scopes if each.startswith(self._prefix)}
        return Caller(
            principal(self._issuer, found.subject), frozenset(scopes & set(SCOPES)), self._issuer, found.subject
        )

    def challenge(self, given: bool) -> str:
        """Why a request is answered with 401, and where its client learns how to come by a token."""
        error = ['error="invalid_token"', 'error_description="This token is not good here."'] if given else []
        return self._header(error, _NEEDED)

    def lacking(self, scope: Scope) -> str:
        """Why one is answered with 403. What the token has already is the client's to know and to ask for again."""
        words = f'error_description="The scope {self._prefix}{scope} is needed."'
        return self._header(['error="insufficient_scope"', words], [scope])

    def _header(self, first: list[str], scopes: tuple[Scope, ...] | list[Scope]) -> str:
        needed = " ".join(self._prefix + each for each in scopes)
        return "Bearer " + ", ".join([*first, f'scope="{needed}"', f'resource_metadata="{self._metadata}"'])


def _routes(resource: str, issuer: str, scopes: list[str]) -> dict[str, Route]:
    """The metadata, by path: that of the resource with the well-known part put in, as RFC 9728 has it, and for who asks at the root."""
    (route,) = create_protected_resource_routes(
        _url.validate_python(resource), [_url.validate_python(issuer)], scopes, resource_name="manyoyo-mcp"
    )
    root = "/.well-known/oauth-protected-resource"
    return dict.fromkeys((route.path, f"{root}/mcp", root), route)


def check(settings: Settings) -> bool:
    """Whether tokens of an authorization server are taken. Raises InvalidArgument where that can't be as it is set."""
    given = {name: value for name, value in settings if name.startswith("oauth_") and value}
    if not given:
        return False
    if not settings.oauth_issuer or not settings.oauth_resource:
        raise InvalidArgument(
            "OAuth needs the authorization server's issuer and this server's own URL.",
            "Set MANYOYO_OAUTH_ISSUER and MANYOYO_OAUTH_RESOURCE, or none of MANYOYO_OAUTH_….",
        )
    for name in ("oauth_issuer", "oauth_resource", "oauth_jwks", "oauth_introspection"):
        url = given.get(name)
        if url is not None and (not asking.is_safe(url) or (name in ("oauth_issuer", "oauth_resource") and "?" in url)):
            raise InvalidArgument(
                f"MANYOYO_{name.upper()} is no https:// URL (http:// on loopback alone).",
                "Without user, query and fragment; as the authorization server and the clients write it.",
            )
    asked = (settings.oauth_introspection, settings.oauth_client, settings.oauth_client_secret)
    if any(asked) and (not all(asked) or settings.oauth_jwks):
        raise InvalidArgument(
            "To ask the authorization server about tokens needs its address and who asks, and no keys.",
            "Set MANYOYO_OAUTH_INTROSPECTION, MANYOYO_OAUTH_CLIENT and MANYOYO_OAUTH_CLIENT_SECRET, without MANYOYO_OAUTH_JWKS.",
        )
    if any(not 33 <= ord(each) < 127 or each in '"\\' for each in settings.oauth_scope_prefix):
        raise InvalidArgument("MANYOYO_OAUTH_SCOPE_PREFIX can't begin a scope.", "For example manyoyo: with its colon.")
    return True


@asynccontextmanager
async def open_oauth(settings: Settings) -> AsyncIterator[OAuth | None]:
    """None where the settings name no authorization server. Raises InvalidArgument."""
    if not check(settings):
        yield None
        return
    issuer = settings.oauth_issuer or ""
    resource = str(_url.validate_python(settings.oauth_resource))  # as it is published, and clients ask for it
    audience = settings.oauth_audience or resource
    async with asking.client() as http:
        verifier: Verifier
        if settings.oauth_introspection and settings.oauth_client:
            who = (quote(settings.oauth_client, safe=""), quote(_secret(settings), safe=""))  # as RFC 6749 has it
            verifier = Asked(http, settings.oauth_introspection, who, issuer, audience)
        else:
            verifier = Signed(Keys(lambda: _look(http, issuer, settings.oauth_jwks)), issuer, audience)
        yield OAuth(resource, issuer, verifier, settings.oauth_scope_prefix)


def _secret(settings: Settings) -> str:
    assert settings.oauth_client_secret is not None
    try:
        return settings.oauth_client_secret.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"MANYOYO_OAUTH_CLIENT_SECRET: {settings.oauth_client_secret} can't be read: {type(error).__name__}.",
            "It is a file that holds the secret, and nothing else.",
        ) from None


async def _look(http: httpx2.AsyncClient, issuer: str, jwks: str | None) -> dict[str, Any]:
    """The issuer's keys; where they are is told by its metadata (RFC 8414), which must say that they are this issuer's. Raises Unavailable."""
    if jwks is not None:
        return await asking.ask(http, jwks)
    why: asking.Unavailable | None = None
    for url in build_oauth_authorization_server_metadata_discovery_urls(issuer, issuer):
        try:
            told = await asking.ask(http, url)
        except asking.Unavailable as error:
            why = error
            continue
        where = told.get("jwks_uri")
        if (
            told.get("issuer") == issuer
            and isinstance(where, str)
            and (where.startswith("https:") or issuer.startswith("http:"))
        ):
            return await asking.ask(http, where)
        why = asking.Unavailable("its metadata are another issuer's, or name no keys")
    raise why or asking.Unavailable("it has no metadata")
