"""Access tokens of an authorization server that the operator named (RFC 6750, 7662, 8707, 9068, 9728): whose they are, what they allow."""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import quote

import httpx2
import jwt
from mcp.client.auth.utils import build_oauth_authorization_server_metadata_discovery_urls
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from pydantic import AnyHttpUrl, TypeAdapter
from starlette.routing import Route

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.http import asking
from manyoyo_mcp.http.keys import ALGORITHMS, Keys
from manyoyo_mcp.sessions.principals import SCOPES, Caller, Scope

LONGEST = 8 << 10
"""Characters of a token."""
SKEW_S = 30
"""Seconds by which the two clocks may differ."""
REMEMBERED_S = 10.0
"""Seconds for which the authorization server's word on a token counts: so long one works yet that it has revoked."""
_REMEMBERED = 1000
_LONGEST_NAME = 1000
_NEEDED: tuple[Scope, ...] = ("read", "run", "build")
"""What a client is told to ask for that has no token; admin it is told of when it needs that."""
_TYPES = ("", "jwt", "at+jwt", "application/at+jwt")
_ALLOWED = frozenset(name for names in ALGORITHMS.values() for name in names)
_url: TypeAdapter[AnyHttpUrl] = TypeAdapter(AnyHttpUrl, config={"url_preserve_empty_path": True})


class Verifier(Protocol):
    """As the SDK has it."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """What a token says; None where it is worth nothing here. Raises Unavailable."""


class Signed:
    """Tokens that are JWTs, verified here."""

    def __init__(self, keys: Keys, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    async def verify_token(self, token: str) -> AccessToken | None:
        try:
            header = jwt.get_unverified_header(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if algorithm not in _ALLOWED or "crit" in header or str(header.get("typ", "")).lower() not in _TYPES:
                return None
            key = await self._keys.find(kid, algorithm)  # whatever else the header says of keys (jku, x5u, jwk)
            if key is None:
                return None
            claims = jwt.decode(
                token, key, algorithms=[algorithm], issuer=self._issuer, audience=self._audience, leeway=SKEW_S,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return _told(claims, self._issuer, self._audience)


class Asked:
    """Tokens of any kind: the authorization server is asked about each, and its word counts for some seconds."""

    def __init__(self, http: httpx2.AsyncClient, url: str, who: tuple[str, str], issuer: str, audience: str) -> None:
        self._http = http
        self._url = url
        self._who = who
        self._issuer = issuer
        self._audience = audience
        self._known: OrderedDict[bytes, tuple[float, AccessToken | None]] = OrderedDict()

    async def verify_token(self, token: str) -> AccessToken | None:
        name = hashlib.sha256(token.encode()).digest()
        until, found = self._known.get(name, (0.0, None))
        if until <= time.monotonic():
            claims = await asking.ask(
                self._http, self._url, {"token": token, "token_type_hint": "access_token"}, self._who
            )
            found = self._judged(claims)
            self._known[name] = (time.monotonic() + REMEMBERED_S, found)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found if found is not None and not _over(found.expires_at) else None

    def _judged(self, claims: Mapping[str, Any]) -> AccessToken | None:
        audience, begins = claims.get("aud"), claims.get("nbf", 0)
        if claims.get("active") is not True or claims.get("iss", self._issuer) != self._issuer:
            return None
        if self._audience not in ([audience] if isinstance(audience, str) else audience or ()):
            return None
        if not isinstance(begins, int | float) or begins > time.time() + SKEW_S:
            return None
        if str(claims.get("token_type", "bearer")).lower() not in ("bearer", "access_token"):
            return None
        return _told(claims, self._issuer, self._audience)


def _told(claims: Mapping[str, Any], issuer: str, audience: str) -> AccessToken | None:
    """What a token says whose issuer and audience were looked at."""
    subject, expires = claims.get("sub"), claims.get("exp")
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_NAME:
        return None
    if claims.get("cnf") is not None:  # it is bound to a key of the client's, of which a bearer gives no proof
        return None
    scopes = claims.get("scope", claims.get("scp", ""))
    named = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else []
    client = claims.get("client_id", claims.get("azp"))
    try:
        until = int(expires) if expires is not None else None
    except (ValueError, TypeError, OverflowError):
        return None
    if _over(until):
        return None
    return AccessToken(
        token="",
        client_id=client if isinstance(client, str) else "",
        scopes=[each for each in named if isinstance(each, str)],
        expires_at=until,
        resource=audience,
        subject=subject,
        claims={"iss": issuer},
    )


def _over(until: int | None) -> bool:
    return until is not None and until <= time.time() - SKEW_S


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
    issuer, resource = settings.oauth_issuer or "", settings.oauth_resource or ""
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
        if told.get("issuer") == issuer and isinstance(told.get("jwks_uri"), str):
            return await asking.ask(http, told["jwks_uri"])
        why = asking.Unavailable("its metadata are another issuer's, or name no keys")
    raise why or asking.Unavailable("it has no metadata")
