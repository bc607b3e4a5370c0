"""How long a sandbox lives that nobody uses. Idle counts from its last call, or the last minute in which something in it worked.

A running job holds it, and so does a service that was started to keep it. What is quiet does not. Time is monotonic: a machine
that sleeps makes nothing older.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import Container
from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.hosts.base import Host, ours
from manyoyo_mcp.sessions.jobs import Jobs
from manyoyo_mcp.sessions.sandbox import KEEPS, Sandbox

_log = logging.getLogger(__name__)
_LONGEST_INTERVAL = 60.0
"""Seconds between looks at what works in a sandbox, at most."""
_CPU_S = 0.1
"""CPU seconds a minute that are work; less is a timer or two."""
_NETWORK = 10 << 10
"""Bytes a minute over its bridges that are work; less is keeping alive."""


@dataclass(slots=True)
class _Seen:
    """What was seen of a sandbox last."""

    cpu: float = 0.0
    network: int = 0
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What will happen to a sandbox, and in how many seconds; `held` says what keeps it, where something does."""

    ends_in: float | None
    words: str
    held: str | None = None


class Life:
    """Ends the sandboxes of one session when their time is over. `end(sandbox, why)` does it."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        jobs: Jobs,
        sandboxes: Callable[[], list[Sandbox]],
        end: Callable[[Sandbox, str], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._host = host
        self._jobs = jobs
        self._sandboxes = sandboxes
        self._end = end
        self._seen: dict[str, _Seen] = {}

    async def keep(self) -> None:
        """For ever: look, and end what is to end."""
        while True:
            await anyio.sleep(self._interval)
            there = self._sandboxes()
            self._seen = {
                each.sandbox_id: self._seen[each.sandbox_id] for each in there if each.sandbox_id in self._seen
            }
            for sandbox in there:
                try:
                    why = await self._over(sandbox)
                    if why is not None:
                        await self._end(sandbox, why)
                except Exception:  # one that can't be looked at ends no session
                    _log.exception("%s could not be looked at", sandbox.sandbox_id)

    @property
    def _interval(self) -> float:
        shortest = min(self._settings.idle_s, self._settings.max_age_s or self._settings.idle_s)
        return min(_LONGEST_INTERVAL, max(shortest / 4, 0.5))

    async def _over(self, sandbox: Sandbox) -> str | None:
        now = time.monotonic()
        if self._settings.max_age_s is not None and now - sandbox.begun > self._settings.max_age_s:
            return f"it was {self._settings.max_age_s} s old, the most that a sandbox may be (MANYOYO_MAX_AGE_S)"
        if await self._works(sandbox):
            sandbox.used = now
        if now - sandbox.used < self._settings.idle_s:
            return None
        return f"nobody and nothing in it used it for {self._settings.idle_s} s (MANYOYO_IDLE_S)"

    async def _works(self, sandbox: Sandbox) -> bool:
        if await self.holder(sandbox) is not None:
            return True
        try:
            cpu, network = await _worked(self._host, sandbox)
        except ManyoyoError:
            return False
        last = self._seen.get(sandbox.sandbox_id)
        now = time.monotonic()
        self._seen[sandbox.sandbox_id] = _Seen(cpu, network, now)
        if last is None:
            return False
        minutes = max(now - last.at, 1.0) / 60
        return cpu - last.cpu > _CPU_S * minutes or network - last.network > _NETWORK * minutes

    async def holder(self, sandbox: Sandbox) -> str | None:
        """What keeps a sandbox however quiet it is: a running job, or a service started with keep_alive."""
        for job in self._jobs.of(sandbox.sandbox_id):
            if job.state == "running":
                return f"the running job {job.job_id}"
        if sandbox.keeps or sandbox.name:  # one by name may have such services of other sessions
            try:
                there = await sandbox.engine.containers()
            except ManyoyoError:
                return None
            for each in there:
                if each.state == "running" and _keeps(each):
                    return f"the service {each.container_id[:12]} (keep_alive)"
        return None

    async def outlook(self, sandbox: Sandbox) -> Outlook:
        """What will happen to a sandbox that goes on as now."""
        now = time.monotonic()
        fate = (
            "it is let go, and stops; what it holds is kept" if sandbox.name else "it is removed with all that it holds"
        )
        held = await self.holder(sandbox)
        idle = None if held else max(0.0, self._settings.idle_s - (now - sandbox.used))
        age = self._settings.max_age_s
        old = None if age is None else max(0.0, age - (now - sandbox.begun))
        left = min((each for each in (idle, old) if each is not None), default=None)
        if left is None:
            return Outlook(None, f"kept by {held}", held)
        reason = "its greatest age" if left == old else "idleness, unless it is used or works"
        return Outlook(
            round(left, 1), f"in {left:.0f} s {fate}: {reason}" + (f"; kept by {held} until then" if held else ""), held
        )


def _keeps(container: Container) -> bool:
    """Whether it is a service that was started to keep its sandbox. Runs and builds have their images' labels, whatever they say;
    a service has all of these of its own."""
    labels = ours(container.labels)
    return labels.get(KEEPS) == "yes" and labels.get("server-pid") == ""


async def _worked(host: Host, sandbox: Sandbox) -> tuple[float, int]:
    """CPU seconds that what is nested has used, and bytes over its bridges, since the sandbox began."""
    done = await host.maintain(sandbox.outer, "activity")
    facts = dict(line.split("=", 1) for line in done.output.splitlines() if "=" in line) | await sandbox.engine.used()
    return int(facts.get("cpu_us", 0)) / 1e6, int(facts.get("network", 0))
