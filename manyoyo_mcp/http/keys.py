"""The keys that an authorization server signs with: kept for a while, and looked for anew when a token names one that is not known."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import jwt

from manyoyo_mcp.http.asking import Unavailable

ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""What tokens may be signed with, by the kind of key: nothing that is verified with what also signs, and never none."""
FRESH_S = 300.0
"""Seconds after which the keys are looked for anew: so long one counts yet that the server has withdrawn."""
AGAIN_S = 10.0
"""Seconds between two looks, whatever tokens name: who sends made-up ones has this server ask no more often."""
KEPT_S = 3600.0
"""Seconds for which the last keys count where the server does not answer."""
_MOST = 100
_log = logging.getLogger(__name__)


class Keys:
    """By `look`, which brings the server's JWKS or raises Unavailable."""

    def __init__(self, look: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._look = look
        self._found: list[dict[str, Any]] = []
        self._made: dict[tuple[str | None, str], jwt.PyJWK | None] = {}
        self._at = self._tried = -KEPT_S
        self._looking = anyio.Lock()

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that name, for that algorithm; without a name the only one there is. Raises Unavailable where there are no
        keys to say that from."""
        key = self._known(kid, algorithm)
        if key is None or time.monotonic() - self._at > FRESH_S:
            await self._renew(wait=key is None)
            key = self._known(kid, algorithm)
        if key is None and not self._found:
            raise Unavailable("it has not told its keys")
        return key

    async def _renew(self, wait: bool) -> None:
        """Unless that was tried a moment ago, or, where there is a key, somebody else is at it."""
        if not wait and self._looking.locked():
            return
        async with self._looking:
            if time.monotonic() - self._tried < AGAIN_S:
                return
            try:
                found = (await self._look()).get("keys")
                if not isinstance(found, list):
                    raise Unavailable("its keys are none")
            except Unavailable as error:
                _log.warning("the authorization server's keys can't be had: %s", error)
                if time.monotonic() - self._at > KEPT_S:
                    self._found, self._made = [], {}
            else:
                self._found = [each for each in found[:_MOST] if _signs(each)]
                self._made = {}
                self._at = time.monotonic()
            finally:
                self._tried = time.monotonic()

    def _known(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if (kid, algorithm) not in self._made:
            fitting = [each for each in self._found if _fits(each, kid, algorithm)]
            if not fitting or (kid is None and len(fitting) > 1):
                return None
            try:
                self._made[kid, algorithm] = jwt.PyJWK(fitting[0], algorithm)
            except (jwt.PyJWTError, ValueError, TypeError):
                self._made[kid, algorithm] = None
        return self._made[kid, algorithm]


def _signs(key: Any) -> bool:
    return isinstance(key, dict) and key.get("kty") in ALGORITHMS and key.get("use", "sig") == "sig"


def _fits(key: dict[str, Any], kid: str | None, algorithm: str) -> bool:
    return (
        kid in (None, key.get("kid")) and algorithm in ALGORITHMS[key["kty"]] and key.get("alg", algorithm) == algorithm
    )
