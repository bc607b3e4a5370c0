"""Who may do what in a server that several call: a manager for each principal, who sees nothing of the others'."""

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import anyio
from anyio.abc import TaskGroup, TaskStatus

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import RateLimited, ScopeMissing
from manyoyo_mcp.sessions import sweep
from manyoyo_mcp.sessions.manager import Manager, open_manager
from manyoyo_mcp.workers import allow_more_waiting

Scope = Literal["read", "run", "build", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
CALLER = "manyoyo.caller"
"""Where a request's (ASGI) scope has its `Caller`."""
_NO_ROOTS = [Path("/dev/null")]
"""No directory of this machine is a build context for principals, unless the operator names some."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a principal by name, "" for the server's own user; and what its token allows. `admin` allows everything."""

    principal: str
    scopes: frozenset[str]

    def need(self, scope: Scope) -> None:
        """Raises ScopeMissing."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise ScopeMissing(
                f"This token does not have the scope {scope!r}, which that needs.",
                f"It has: {', '.join(sorted(self.scopes)) or 'none'}. The operator of the server can give another token.",
                scope=scope,
            )


USER = Caller("", frozenset(SCOPES))
"""Whoever reaches a server that asks for no tokens."""


@dataclass(slots=True)
class Bucket:
    """`rate` a second, and up to `burst` at once where nothing was asked for a while."""

    rate: float
    burst: float
    _left: float = field(init=False)
    _since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._left = self.burst

    def take(self, now: float | None = None) -> float:
        """0 where one more is allowed, and counted; else the seconds until it would be."""
        now = time.monotonic() if now is None else now
        self._left = min(self.burst, self._left + (now - self._since) * self.rate)
        self._since = now
        if self._left < 1:
            return (1 - self._left) / self.rate
        self._left -= 1
        return 0.0


@dataclass(slots=True)
class _Place:
    """One principal's: its manager once it has called, and what it may ask for."""

    calls: Bucket
    going: int = 0
    manager: Manager | None = None
    opening: anyio.Lock = field(default_factory=anyio.Lock)


class Principals:
    """The managers of one server. Made by `open_principals`."""

    def __init__(self, settings: Settings, group: TaskGroup) -> None:
        self._settings = settings
        self._group = group
        self._places: dict[str, _Place] = {}

    @contextlib.asynccontextmanager
    async def admitted(self, request: Any) -> AsyncIterator[tuple[Manager, Caller]]:
        """The manager of the principal whose request this is, for one call, and who calls. Raises RateLimited."""
        caller: Caller = request.scope[CALLER]
        place = self._places.get(caller.principal)
        if place is None:
            rate = self._settings.http_rate
            place = self._places[caller.principal] = _Place(Bucket(rate, max(1.0, 2 * rate)))
        wait = place.calls.take()
        if wait:
            raise _limited(f"More than {self._settings.http_rate:g} calls a second.", wait)
        if place.going >= self._settings.http_calls:
            raise _limited(f"{place.going} calls of yours go on already.", 1.0)
        place.going += 1
        try:
            yield await self._manager(caller.principal, place), caller
        finally:
            place.going -= 1

    async def _manager(self, principal: str, place: _Place) -> Manager:
        if place.manager is None:
            async with place.opening:
                if place.manager is None:
                    place.manager = await self._group.start(self._keep, principal, place)
        assert place.manager is not None
        return place.manager

    async def _keep(self, principal: str, place: _Place, *, task_status: TaskStatus[Manager]) -> None:
        settings = self._settings
        if principal and not settings.roots:
            settings = settings.model_copy(update={"roots": _NO_ROOTS})
        if self._places.keys() != {principal}:
            allow_more_waiting()
        opened = False
        try:
            async with open_manager(settings, sweep_first=False, principal=principal, explicit=True) as manager:
                opened = True
                task_status.started(manager)
                await anyio.sleep_forever()
        except Exception:
            if not opened:
                raise  # to whoever wanted it
            _log.exception("the session of %s ended", principal or "the user")  # the others' go on
        finally:
            place.manager = None


def _limited(message: str, wait: float) -> RateLimited:
    seconds = math.ceil(wait * 1000) / 1000
    return RateLimited(message, f"Call again in {seconds:g} s.", retry_after_s=seconds)


@contextlib.asynccontextmanager
async def open_principals(settings: Settings) -> AsyncIterator[Principals]:
    """Managers for whoever calls, each made with a principal's first call. On leaving, all of them end as one would."""
    raised: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_sweep, settings)
        try:
            yield Principals(settings, group)
        except Exception as error:
            raised = error
        finally:
            group.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def _sweep(settings: Settings) -> None:
    """What earlier servers left, of all principals: they may never call again."""
    try:
        await sweep.sweep_host(settings)
    except Exception as error:  # the host may not answer yet: the next server's sweep does it
        _log.warning("no sweep: %s", error)
