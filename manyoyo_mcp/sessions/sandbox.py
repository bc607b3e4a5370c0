"""One live sandbox: a host's outer container joined to the engine in it."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from manyoyo_mcp.dialled import Dial
from manyoyo_mcp.engines import ENGINES, HostEngine
from manyoyo_mcp.engines.asking import Spawn
from manyoyo_mcp.engines.base import Engine
from manyoyo_mcp.errors import SandboxError
from manyoyo_mcp.hosts.base import Host, Outer, ours
from manyoyo_mcp.policy.base import Limits, Within
from manyoyo_mcp.policy.bounded import BoundedClient
from manyoyo_mcp.policy.egress import Policy
from manyoyo_mcp.policy.refusals import Report, read_report
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.sessions.identity import answers_for
from manyoyo_mcp.sessions.probe import Evidence

KEEPS = "keep-alive"
"""The label of a nested container that keeps its sandbox while it runs, with "yes": every session that has the sandbox sees it."""


@dataclass(slots=True)
class Sandbox:
    """What the session knows of a sandbox. `limits` says what its policy grants, `disk` the cap of its disk in bytes, where it
    has one, `dial` connects to its engine, `within` is its part of that where it is the host's own, `network` says what it may reach: they change when the sandbox grows, the labels of `outer` do not. `resumed`: how it was found, where it was there
    before. `copied`: began as a copy of another.
    `begun` and `used`, by time.monotonic: since when it is here, when it was last of use; `keeps`: a service of this session's was
    started to keep it."""

    sandbox_id: str
    outer: Outer
    engine: Engine
    transport: str
    limits: Limits
    start_seconds: float
    disk: int | None
    dial: Dial
    network: Policy
    within: Within | None = None
    evidence: Evidence | None = None
    resumed: Literal["running", "stopped"] | None = None
    copied: bool = False
    started: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    keeps: bool = False

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return round(time.time() - self.started, 1)

    @property
    def name(self) -> str | None:
        """What its owner calls it, where it outlives its server."""
        return self.outer.labels.get("name")

    @property
    def isolation(self) -> str:
        """Its tier (`hosts.isolation`)."""
        return isolation_of(self.outer)

    @property
    def engine_name(self) -> str:
        return self.engine.name

    def client(self) -> GuardedClient:
        """One more client of its engine, which reaches no more than the tools'."""
        return _client(self.dial, lambda: self.limits, self.within)


def _client(dial: Dial, limits: Callable[[], Limits], within: Within | None) -> GuardedClient:
    return GuardedClient(dial, limits) if within is None else BoundedClient(dial, limits, within)


def isolation_of(outer: Outer) -> str:
    """The tier of an outer container; those of versions that knew no other have no such label."""
    return outer.labels.get("isolation", "privileged")


async def counters(host: Host, sandbox: Sandbox) -> dict[str, int]:
    """What a sandbox uses, from its cgroups and its store: `memory_used`, `pids_used`, `disk_free`, … in bytes or counts."""
    return _counted((await host.maintain(sandbox.outer, "counters")).output)


async def usage(host: Host, sandbox: Sandbox) -> tuple[dict[str, int], Report]:
    """Its counters, and what was refused in the last hour and, where that is recorded, reached: in one look, for a look takes a process of the host's."""
    counted, _, told = (await host.maintain(sandbox.outer, "status")).output.partition("\n\n")
    return _counted(counted) | await sandbox.engine.used(), read_report(told)


def _counted(text: str) -> dict[str, int]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: int(value) for key, value in pairs if value.isdigit()}


async def clear(sandbox: Sandbox, *, every: bool) -> None:
    """Remove the containers of runs whose server is no more, or of `every` run that was: their results have nobody to go to."""
    with contextlib.suppress(SandboxError):  # as on a full disk; they are in nobody's way
        for row in await sandbox.engine.containers():
            labels = ours(row.labels)
            # A container of a build has its image's labels, whatever they say.
            if labels.get("server-pid", "").isdecimal() and (every or not answers_for(labels)):
                await sandbox.engine.remove(row.container_id)


def join(
    host: Host,
    outer: Outer,
    transport: str,
    dial: Dial,
    limits: Limits,
    spawn: Spawn,
    seconds: float,
    within: Within | None = None,
) -> Sandbox:
    """A sandbox over a dialer: its engine gets a guarded client and the outer container's maintenance, nothing else. `within`: its part of the
    host's engine, where it has none of its own."""
    sandbox: Sandbox

    def current() -> Limits:
        return sandbox.limits

    execs = host.execs(outer)
    engine = (ENGINES[outer.labels["engine"]] if within is None else HostEngine)(
        client=_client(dial, current, within),
        maintain=partial(host.maintain, outer),
        spawn=spawn,
        execs=GuardedClient(execs, current) if execs else None,
    )
    sandbox = Sandbox(
        outer.sandbox_id,
        outer,
        engine,
        transport,
        limits,
        seconds,
        int(outer.labels.get("disk", 0)) or None,
        dial,
        Policy.of_label(outer.labels.get("network", "")),
        within,
    )
    return sandbox
