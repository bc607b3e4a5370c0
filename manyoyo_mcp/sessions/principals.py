"""Who may do what in a server that several call: a manager for each principal, who sees nothing of the others'."""

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import anyio
from anyio.abc import TaskGroup, TaskStatus

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import RateLimited, ScopeMissing
from manyoyo_mcp.sessions import sweep
from manyoyo_mcp.sessions.context import NO_ROOTS
from manyoyo_mcp.sessions.manager import Manager, open_manager
from manyoyo_mcp.sessions.witness import HttpWitness
from manyoyo_mcp.workers import allow_more_waiting

Scope = Literal["read", "run", "build", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
CALLER = "manyoyo.caller"
"""Where a request's (ASGI) scope has its `Caller`."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a principal by name, "" for the server's own user; and what its token allows. `admin` allows everything. `issuer` and
    `subject`: of whom an authorization server says so, and which."""

    principal: str
    scopes: frozenset[str]
    issuer: str = ""
    subject: str = ""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def need(self, scope: Scope) -> None:
        """Raises ScopeMissing."""
        if not self.may(scope):
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

    def full(self) -> bool:
        """Whether it is as if nothing had ever been taken."""
        return self._left + (time.monotonic() - self._since) * self.rate >= self.burst


@dataclass(slots=True)
class _Place:
    """One principal's: its manager once it has called, and what it may ask for."""

    calls: Bucket
    going: int = 0
    used: float = field(default_factory=time.monotonic)
    manager: Manager | None = None
    opening: anyio.Lock = field(default_factory=anyio.Lock)
    over: anyio.Event = field(default_factory=anyio.Event)

    def holds(self) -> bool:
        """Whether something would be lost with it, but for the logs of jobs that have ended."""
        manager = self.manager
        return bool(self.going or (manager is not None and (manager.sandboxes() or manager.jobs.running())))


class Principals:
    """The managers of one server. Made by `open_principals`."""

    def __init__(self, settings: Settings, group: TaskGroup, witness: HttpWitness) -> None:
        self._settings = settings
        self._group = group
        self._witness = witness
        self._places: dict[str, _Place] = {}

    @contextlib.asynccontextmanager
    async def admitted(self, request: Any) -> AsyncIterator[tuple[Manager, Caller]]:
        """The manager of the principal whose request this is, for one call, and who calls. Raises RateLimited."""
        caller: Caller = request.scope[CALLER]
        try:
            place = self._place(caller.principal)
            wait = place.calls.take()
            if wait:
                raise _limited(f"More than {self._settings.http_rate:g} calls a second.", wait)
            if place.going >= self._settings.http_calls:
                raise _limited(f"{place.going} calls of yours go on already.", 1.0)
        except RateLimited as error:
            await self._witness.refused(caller.principal, error.code, error.message)
            raise
        place.going += 1
        try:
            yield await self._manager(caller, place), caller
        finally:
            place.going -= 1
            place.used = time.monotonic()

    def _place(self, principal: str) -> _Place:
        """A principal's. Where all are taken the one that was used the longest ago, and in which nothing is, goes. Raises RateLimited."""
        place = self._places.get(principal)
        if place is None:
            if len(self._places) >= self._settings.http_principals:
                free = [(each.used, name) for name, each in self._places.items() if not each.holds()]
                if not free:
                    raise _limited("As many users as this server serves at a time have something going on.", 10.0)
                self._places.pop(min(free)[1]).over.set()
            rate = self._settings.http_rate
            place = self._places[principal] = _Place(Bucket(rate, max(1.0, 2 * rate)))
        return place

    async def _manager(self, caller: Caller, place: _Place) -> Manager:
        if place.manager is None:
            async with place.opening:
                if place.manager is None:
                    await self._witness.came(caller.principal, caller.issuer, caller.subject)
                    place.manager = await self._group.start(self._keep, caller.principal, place)
        assert place.manager is not None
        return place.manager

    async def _keep(self, principal: str, place: _Place, *, task_status: TaskStatus[Manager]) -> None:
        settings = self._settings
        if principal and not settings.roots:  # the operator can name some
            settings = settings.model_copy(update={"roots": NO_ROOTS})
        if self._places.keys() != {principal}:
            allow_more_waiting()
        opened = False
        try:
            async with open_manager(settings, sweep_first=False, principal=principal, explicit=True) as manager:
                opened = True
                task_status.started(manager)
                await place.over.wait()
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
async def open_principals(settings: Settings, witness: HttpWitness) -> AsyncIterator[Principals]:
    """Managers for whoever calls, each made with a principal's first call. On leaving, all of them end as one would."""
    raised: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_sweep, settings)
        try:
            yield Principals(settings, group, witness)
        except Exception as error:
            raised = error
        finally:
            group.cancel_scope.cancel()
    witness.close()  # here: once uvicorn has ended, the signal that ended it is raised again
    if raised is not None:
        raise raised


async def _sweep(settings: Settings) -> None:
    """What earlier servers left, of all principals: they may never call again."""
    try:
        await sweep.sweep_host(settings)
    except Exception as error:  # the host may not answer yet: the next server's sweep does it
        _log.warning("no sweep: %s", error)
