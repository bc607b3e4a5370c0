"""sandbox_status."""

import time
from functools import partial
from typing import Literal

from pydantic import BaseModel, Field

from manyoyo_mcp.errors import EngineUnreachable, SandboxError
from manyoyo_mcp.hosts.base import Store
from manyoyo_mcp.policy.refusals import Met
from manyoyo_mcp.sessions.manager import Manager
from manyoyo_mcp.sessions.sandbox import Sandbox, usage
from manyoyo_mcp.text import fence, sanitise
from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import GrantedCaps, SandboxArgument
from manyoyo_mcp.values import format_bytes


def _shown(met: list[Met], most: int = 20) -> list[str]:
    return [f"{sanitise(each.what)} ({each.count} times, {each.age:.0f} s ago)" for each in met[:most]]


class StatusItem(BaseModel):
    sandbox_id: str
    engine: str
    state: Literal["running", "stopped", "gone", "engine_down"]
    caps: GrantedCaps
    caps_enforced: str
    evidence: str
    isolation: str
    network: str
    transport: str
    age_seconds: float
    memory_used_bytes: int | None = None
    processes: int | None = None
    name: str | None = None
    disk_used_bytes: int | None = Field(None, description="Without what is shared with others.")
    disk_cap_bytes: int | None = None
    disk_free_bytes: int | None = None
    will: str | None = Field(None, description="What will happen to it, and when, if it goes on as now.")
    ends_in_seconds: float | None = None
    containers: int | None = None
    running: int | None = None
    images: int | None = None
    jobs: list[str] = Field(default_factory=list, description="Jobs that run now.")
    refused: list[str] = Field(default_factory=list, description="By the network policy.")
    reached: list[str] = Field(default_factory=list)
    ports: list[str] = Field(default_factory=list, description="Of this machine.")
    engine_log: str | None = None

    def describe(self) -> str:
        called = f", called {self.name}: kept with all that it holds when this server ends" if self.name else ""
        lines = [
            f"{self.sandbox_id} ({self.engine}): {self.state}, {self.age_seconds:.0f} s old, isolation {self.isolation}{called}"
        ]
        used = f"{format_bytes(self.memory_used_bytes)} of " if self.memory_used_bytes is not None else ""
        lines.append(
            f"  memory {used}{format_bytes(self.caps.memory_bytes)}, {self.caps.cpus:g} CPUs, "
            f"processes {self.processes if self.processes is not None else '?'} of {self.caps.pids_limit}; "
            f"caps {self.caps_enforced} ({self.evidence})"
        )
        if self.containers is not None:
            free = f", {format_bytes(self.disk_free_bytes)} disk free" if self.disk_free_bytes is not None else ""
            if self.disk_cap_bytes is None:
                free += ", disk: uncapped"
            else:
                free += f", disk {format_bytes(self.disk_used_bytes or 0)} of {format_bytes(self.disk_cap_bytes)}"
            lines.append(f"  {self.running} of {self.containers} containers running, {self.images} images{free}")
        lines.append(f"  network: {self.network}")
        for what, met in (("refused", self.refused), ("reached", self.reached)):
            if met:
                lines.append(f"  {what}: " + ", ".join(met))
        if self.ports:
            lines.append(f"  ports: {', '.join(self.ports)}")
        if self.will:
            lines.append(f"  {self.will}")
        if self.jobs:
            lines.append(f"  jobs: {', '.join(self.jobs)}")
        if self.engine_log:
            lines.append(fence(self.engine_log, "engine log"))
        return "\n".join(lines)


class Kept(BaseModel):  # what outlives servers
    name: str
    kind: Literal["sandbox", "checkpoint"]
    engine: str
    age_seconds: float
    own_bytes: int | None = Field(None, description="Disk that removing it would free.")

    def describe(self) -> str:
        size = f", {format_bytes(self.own_bytes)} of its own" if self.own_bytes is not None else ""
        use = "start_sandbox with name=" if self.kind == "sandbox" else "start_sandbox with from_checkpoint="
        return f"Kept {self.kind} {self.name} ({self.engine}{size}): {use}{self.name!r}."

    @classmethod
    def of(cls, store: Store) -> "Kept":
        kind: Literal["sandbox", "checkpoint"] = "checkpoint" if "checkpoint" in store.labels else "sandbox"
        return cls(
            name=store.labels.get("checkpoint") or store.labels["name"],
            kind=kind,
            engine=store.labels.get("engine", ""),
            age_seconds=round(time.time() - store.created, 1),
            own_bytes=store.size,
        )


class StatusOutput(ToolOutput):
    sandboxes: list[StatusItem]
    other_sessions: int = Field(0, description="Sandboxes of this user that other sessions hold, without named ones.")
    kept: list[Kept] = Field(
        default_factory=list, description="Named sandboxes that are not open here, and checkpoints."
    )
    secrets: list[str] = Field(default_factory=list)

    def words(self) -> str:
        secrets = [f"Secrets that can be named: {', '.join(self.secrets)}."] if self.secrets else []
        return "\n".join([self._sandboxes(), *(each.describe() for each in self.kept), *secrets])

    def _sandboxes(self) -> str:
        if not self.sandboxes:
            text = "This session has no sandbox. start_sandbox, nested_build or nested_run starts one."
        else:
            text = "\n".join(item.describe() for item in self.sandboxes)
        return text + (
            f"\nOther sessions of this user: {self.other_sessions} sandboxes." if self.other_sessions else ""
        )


@tool(
    "sandbox_status",
    "Sandbox status",
    """
What this session's sandboxes are and have: state, caps and whether they bind, memory, processes and disk in use, jobs, ports; the
engine's last words where it does not answer. For the containers and images inside use nested_list, for one job job_status.
""",
    SandboxArgument,
    StatusOutput,
    read_only=True,
    idempotent=True,
)
async def sandbox_status(call: Call, arguments: SandboxArgument) -> ToolOutput:
    manager = call.manager
    one = manager.get(arguments.sandbox_id) if arguments.sandbox_id else None
    output: StatusOutput = await manager.looks.ask(one.sandbox_id if one else "all", partial(_look, manager, one))
    return output


async def _look(manager: Manager, one: Sandbox | None) -> StatusOutput:
    items = [await _status(manager, sandbox) for sandbox in ([one] if one else manager.sandboxes())]
    kept = [Kept.of(each) for each in await manager.keeping.stores({each.sandbox_id for each in manager.sandboxes()})]
    return StatusOutput(
        sandboxes=items,
        other_sessions=sum("name" not in each.labels for each in await manager.others()),
        kept=kept,
        secrets=manager.vault.names,
    )


async def _status(manager: Manager, sandbox: Sandbox) -> StatusItem:
    now = await manager.host.inspect(sandbox.outer)
    item = StatusItem(
        sandbox_id=sandbox.sandbox_id,
        engine=sandbox.engine_name,
        state="gone" if now is None else "running" if now.running else "stopped",
        caps=GrantedCaps.of(sandbox.limits.largest),
        caps_enforced="enforced" if sandbox.evidence and sandbox.evidence.enforced else "unenforced",
        evidence=sandbox.evidence.words if sandbox.evidence else "not probed",
        isolation=sandbox.isolation,
        network=sandbox.network.words(),
        transport=sandbox.transport,
        name=sandbox.name,
        age_seconds=sandbox.age,
        ports=[sanitise(each) for each in manager.endpoints.published(sandbox)],
        jobs=[job.job_id for job in manager.jobs.of(sandbox.sandbox_id) if job.state == "running"],
    )
    if item.state == "running":
        outlook = await manager.life.outlook(sandbox)
        item.will, item.ends_in_seconds = outlook.words, outlook.ends_in
        used, told = await usage(manager.host, sandbox)
        item.refused, item.reached = _shown(told.refused), _shown(told.reached)
        item.memory_used_bytes = used.get("memory_used")
        item.processes = used.get("pids_used")
        item.disk_used_bytes, item.disk_cap_bytes = used.get("disk_used"), used.get("disk_cap", sandbox.disk)
        left = (item.disk_cap_bytes or 1 << 62) - (item.disk_used_bytes or 0)
        item.disk_free_bytes = min(used.get("disk_free", 0), max(left, 0))
        try:
            containers = await sandbox.engine.containers()
            item.containers = len(containers)
            item.running = sum(container.state == "running" for container in containers)
            item.images = len(await sandbox.engine.images())
        except SandboxError as error:
            item.state = "engine_down" if isinstance(error, EngineUnreachable) else "running"
    if item.state != "running" and now is not None:
        item.engine_log = sanitise(await manager.host.last_words(sandbox.outer))[-1500:]
    return item


TOOLS = [sandbox_status]
