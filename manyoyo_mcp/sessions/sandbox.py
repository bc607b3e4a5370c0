"""One live sandbox: a host's outer container joined to the engine in it."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from manyoyo_mcp.dialled import Dial
from manyoyo_mcp.engines import ENGINES
from manyoyo_mcp.engines.asking import Spawn
from manyoyo_mcp.engines.base import Engine
from manyoyo_mcp.hosts.base import Host, Outer
from manyoyo_mcp.policy.base import Limits
from manyoyo_mcp.policy.egress import Policy
from manyoyo_mcp.policy.refusals import Report, read_report
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.sessions.probe import Evidence

KEEPS = "keep-alive"
"""The label of a nested container that keeps its sandbox while it runs, with "yes": every session that has the sandbox sees it."""


@dataclass(slots=True)
class Sandbox:
    """What the session knows of a sandbox. `limits` says what its policy grants, `disk` the cap of its disk in bytes, where it
    has one, `dial` connects to its engine, `network` says what it may reach: they change when the sandbox grows, the labels of `outer` do not. `resumed`: how it was found, where it was there
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


def isolation_of(outer: Outer) -> str:
    """The tier of an outer container; those of versions that knew no other have no such label."""
    return outer.labels.get("isolation", "privileged")


async def counters(host: Host, sandbox: Sandbox) -> dict[str, int]:
    """What a sandbox uses, from its cgroups and its store: `memory_used`, `pids_used`, `disk_free`, … in bytes or counts."""
    return _counted((await host.maintain(sandbox.outer, "counters")).output)


async def usage(host: Host, sandbox: Sandbox) -> tuple[dict[str, int], Report]:
    """Its counters, and what was refused in the last hour and, where that is recorded, reached: in one look, for a look takes a process of the host's."""
    counted, _, told = (await host.maintain(sandbox.outer, "status")).output.partition("\n\n")
    return _counted(counted), read_report(told)


def _counted(text: str) -> dict[str, int]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: int(value) for key, value in pairs if value.isdigit()}


def join(host: Host, outer: Outer, transport: str, dial: Dial, limits: Limits, spawn: Spawn, seconds: float) -> Sandbox:
    """A sandbox over a dialer: its engine gets a guarded client and the outer container's maintenance, nothing else."""
    sandbox: Sandbox

    def current() -> Limits:
        return sandbox.limits

    execs = host.execs(outer)
    engine = ENGINES[outer.labels["engine"]](
        client=GuardedClient(dial, current),
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
    )
    return sandbox
