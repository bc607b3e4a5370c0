"""How much of the server one principal may have: requests, those that are open at a time, sessions of the older protocol."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.principals import Bucket

SESSIONS = 2000
"""Sessions of the older protocol that are open at a time; each is some memory until it was not used for `SESSION_S` seconds."""
SESSION_S = 1800.0
_REQUESTS_A_CALL = 4
"""Requests allowed for each call: what is no call of a tool counts too."""
_MANY = 1000
"""Principals that are remembered, whatever they have: those above that which have nothing are forgotten."""


class Sessions:
    """A principal's sessions of the older protocol."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: dict[bytes, float] = {}

    def count(self) -> int:
        now = time.monotonic()
        self._used = {each: used for each, used in self._used.items() if now - used <= SESSION_S}
        return len(self._used)

    def full(self) -> bool:
        return self.count() >= self._most

    def use(self, session: bytes) -> None:
        if session not in self._used:
            self.count()
        self._used[session] = time.monotonic()

    def end(self, session: bytes) -> None:
        self._used.pop(session, None)


@dataclass(slots=True)
class Share:
    """What one principal has."""

    requests: Bucket
    most: int
    sessions: Sessions = field(default_factory=lambda: Sessions(SESSIONS // 8))
    open: int = 0

    def wait(self) -> float:
        """0 where one more request is admitted, and counted; else the seconds until it may be."""
        wait = self.requests.take()
        return wait or (1.0 if self.open >= self.most else 0.0)

    def idle(self) -> bool:
        return not self.open and self.requests.full() and not self.sessions.count()


class Shares:
    """Each principal's, made as it comes."""

    def __init__(self, settings: Settings) -> None:
        rate = _REQUESTS_A_CALL * settings.http_rate
        most = max(settings.http_connections // 4, 1)  # for one principal is not to have all connections
        self._make: Callable[[], Share] = lambda: Share(Bucket(rate, max(8.0, 2 * rate)), most)
        self._all: dict[str, Share] = {}
        self._many = _MANY

    def of(self, principal: str) -> Share:
        share = self._all.get(principal)
        if share is None:
            if len(self._all) >= self._many:
                self._all = {name: each for name, each in self._all.items() if not each.idle()}
                self._many = max(_MANY, 2 * len(self._all))
            share = self._all[principal] = self._make()
        return share
