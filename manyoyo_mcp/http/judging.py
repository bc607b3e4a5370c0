"""What an access token says, judged here by the keys of who made it, or by asking that authorization server (RFC 6750, 7662, 8707, 9068)."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import httpx2
import jwt
from mcp.server.auth.provider import AccessToken

from manyoyo_mcp.http import asking
from manyoyo_mcp.http.keys import ALGORITHMS, Keys

LONGEST = 8 << 10
"""Characters of a token."""
SKEW_S = 30
"""Seconds by which the two clocks may differ."""
REMEMBERED_S = 10.0
"""Seconds for which the authorization server's word on a token counts: so long one works yet that it has revoked."""
_REMEMBERED = 1000
_LONGEST_NAME = 1000
_TYPES = ("", "jwt", "at+jwt", "application/at+jwt")
_ALLOWED = frozenset(name for names in ALGORITHMS.values() for name in names)


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


@dataclass(slots=True)
class _Question:
    """One that is being asked."""

    over: anyio.Event = field(default_factory=anyio.Event)
    failed: asking.Unavailable | None = None


class Asked:
    """Tokens of any kind: the authorization server is asked about each, and its word counts for some seconds."""

    def __init__(self, http: httpx2.AsyncClient, url: str, who: tuple[str, str], issuer: str, audience: str) -> None:
        self._http = http
        self._url = url
        self._who = who
        self._issuer = issuer
        self._audience = audience
        self._known: OrderedDict[bytes, tuple[float, AccessToken | None]] = OrderedDict()
        self._asking: dict[bytes, _Question] = {}

    async def verify_token(self, token: str) -> AccessToken | None:
        name = hashlib.sha256(token.encode()).digest()
        while True:
            until, found = self._known.get(name, (0.0, None))
            if until > time.monotonic():
                return found if found is not None and not _over(found.expires_at) else None
            if (other := self._asking.get(name)) is not None:  # one who comes with it asks for all
                await other.over.wait()
                if other.failed is not None:
                    raise other.failed
            else:
                await self._ask(name, token)

    async def _ask(self, name: bytes, token: str) -> None:
        question = self._asking[name] = _Question()
        try:
            form = {"token": token, "token_type_hint": "access_token"}
            found = self._judged(await asking.ask(self._http, self._url, form, self._who))
        except asking.Unavailable as error:
            question.failed = error
            raise
        finally:
            del self._asking[name]
            question.over.set()
        self._known.pop(name, None)
        self._known[name] = (time.monotonic() + REMEMBERED_S, found)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _judged(self, claims: Mapping[str, Any]) -> AccessToken | None:
        audience, begins = claims.get("aud"), claims.get("nbf", 0)
        if claims.get("active") is not True or claims.get("iss", self._issuer) != self._issuer:
            return None
        if self._audience not in (audience if isinstance(audience, list) else [audience]):
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
