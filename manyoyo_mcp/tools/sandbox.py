"""start_sandbox, sandbox_status, cleanup."""

from typing import Literal

from pydantic import BaseModel, Field

from manyoyo_mcp.config import EngineName
from manyoyo_mcp.errors import EngineUnreachable, InvalidArgument, SandboxError
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import fence, sanitise
from manyoyo_mcp.tools.base import Call, ToolInput, ToolOutput, tool
from manyoyo_mcp.tools.common import Cpus, GrantedCaps, Memory, Pids, SandboxArgument, Text
from manyoyo_mcp.values import format_bytes

PRIVILEGED_NOTE = (
    "privileged. Nested containers are held by the nested engine's namespaces, capabilities and policy; the "
    "outer container itself is privileged and is no wall against code that breaks out of the nested one."
)


class StartInput(ToolInput):
    engine: EngineName | None = Field(
        None, description='"podman" (default, fastest) or "docker" (dockerd; for what needs the whole Docker API).'
    )
    memory: Memory = Field(
        None, description='Memory of the whole sandbox, e.g. "4g"; default: half the host\'s, at most 8g.'
    )
    cpus: Cpus = Field(None, description="CPUs of the whole sandbox; default: half the host's, at most 4.")
    pids_limit: Pids = Field(None, description="Processes and threads in the whole sandbox; default 4096.")
    sandbox_id: Text | None = Field(
        None, description="A live sandbox to grow in place, with the larger caps given here."
    )


class SandboxInfo(BaseModel):
    sandbox_id: str
    engine: str
    caps: GrantedCaps
    nested_default: GrantedCaps = Field(description="Caps of a run or build that asks for none.")
    caps_enforced: Literal["enforced", "unenforced"]
    evidence: str
    isolation: str
    transport: str
    images: list[str] = Field(description="Images that are there already.")

    @classmethod
    async def of(cls, sandbox: Sandbox) -> "SandboxInfo":
        images = await sandbox.engine.images()
        return cls(
            sandbox_id=sandbox.sandbox_id,
            engine=sandbox.engine_name,
            caps=GrantedCaps.of(sandbox.limits.largest),
            nested_default=GrantedCaps.of(sandbox.limits.default),
            caps_enforced="enforced" if sandbox.evidence and sandbox.evidence.enforced else "unenforced",
            evidence=sandbox.evidence.words if sandbox.evidence else "not probed",
            isolation=PRIVILEGED_NOTE,
            transport=sandbox.transport,
            images=[tag for image in images for tag in image.tags][:30],
        )

    def describe(self) -> str:
        caps, nested = self.caps, self.nested_default
        return (
            f"Caps: {caps.cpus:g} CPUs, {format_bytes(caps.memory_bytes)}, {caps.pids_limit} processes "
            f"({self.caps_enforced}); a run or build gets {nested.cpus:g} CPUs, {format_bytes(nested.memory_bytes)}, "
            f"{nested.pids_limit} processes unless it asks.\n"
            f"Images: {', '.join(self.images) or 'none yet'}"
        )


class StartOutput(ToolOutput):
    sandbox: SandboxInfo
    seconds: float
    grown: bool = False

    def words(self) -> str:
        what = "grown" if self.grown else f"started in {self.seconds:.2f} s"
        return f"{self.sandbox.sandbox_id} ({self.sandbox.engine}) {what}.\n{self.sandbox.describe()}\nIsolation: {PRIVILEGED_NOTE}"


@tool(
    "start_sandbox",
    "Start a sandbox",
    """
Start a container host of your own: a sandbox with its own engine and image store, apart from the user's Docker. Build and
run in it as freely as on a throw-away machine. Returns sandbox_id, the caps that bind, and the images that are there.
It lives until cleanup or until this server ends. You need not call this first: the first nested_build or nested_run starts
one with the defaults. Call it to choose engine or caps, for a second sandbox, or with sandbox_id and larger caps to grow a live one.
""",
    StartInput,
    StartOutput,
)
async def start_sandbox(call: Call, arguments: StartInput) -> ToolOutput:
    manager = call.manager
    caps = (arguments.cpus, arguments.memory, arguments.pids_limit)
    if arguments.sandbox_id is not None:
        sandbox = manager.get(arguments.sandbox_id)
        if arguments.engine not in (None, sandbox.engine_name):
            raise InvalidArgument("A live sandbox keeps its engine.", "Leave sandbox_id out to start a new one.")
        if caps == (None, None, None):
            raise InvalidArgument(
                "There is nothing to change.", "Give larger cpus, memory or pids_limit; or sandbox_status."
            )
        await manager.grow(sandbox, *caps)
        return StartOutput(sandbox=await SandboxInfo.of(sandbox), seconds=0, grown=True)
    async with call.progress_sink() as progress:
        sandbox = await manager.start(arguments.engine, *caps, progress=progress)
    return StartOutput(sandbox=await SandboxInfo.of(sandbox), seconds=sandbox.start_seconds)


class StatusItem(BaseModel):
    sandbox_id: str
    engine: str
    state: Literal["running", "stopped", "gone", "engine_down"]
    caps: GrantedCaps
    caps_enforced: str
    evidence: str
    isolation: str
    transport: str
    age_seconds: float
    memory_used_bytes: int | None = None
    processes: int | None = None
    disk_free_bytes: int | None = None
    containers: int | None = None
    running: int | None = None
    images: int | None = None
    jobs: list[str] = Field(default_factory=list, description="Jobs that run now.")
    engine_log: str | None = Field(None, description="The engine's last words, where it does not answer.")

    def describe(self) -> str:
        lines = [
            f"{self.sandbox_id} ({self.engine}): {self.state}, {self.age_seconds:.0f} s old, isolation {self.isolation}"
        ]
        used = f"{format_bytes(self.memory_used_bytes)} of " if self.memory_used_bytes is not None else ""
        lines.append(
            f"  memory {used}{format_bytes(self.caps.memory_bytes)}, {self.caps.cpus:g} CPUs, "
            f"processes {self.processes if self.processes is not None else '?'} of {self.caps.pids_limit}; "
            f"caps {self.caps_enforced} ({self.evidence})"
        )
        if self.containers is not None:
            free = f", {format_bytes(self.disk_free_bytes)} disk free" if self.disk_free_bytes is not None else ""
            lines.append(f"  {self.running} of {self.containers} containers running, {self.images} images{free}")
        if self.jobs:
            lines.append(f"  jobs: {', '.join(self.jobs)}")
        if self.engine_log:
            lines.append(fence(self.engine_log, "engine log"))
        return "\n".join(lines)


class StatusOutput(ToolOutput):
    sandboxes: list[StatusItem]
    other_sessions: int = Field(0, description="Sandboxes of this user that other sessions hold.")

    def words(self) -> str:
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
What this session's sandboxes are and have: state, caps and whether they bind, memory, processes and disk in use, running jobs; and the
engine's last words where it does not answer. For the containers and images inside use nested_list, for one job job_status.
""",
    SandboxArgument,
    StatusOutput,
    read_only=True,
    idempotent=True,
)
async def sandbox_status(call: Call, arguments: SandboxArgument) -> ToolOutput:
    manager = call.manager
    wanted = [manager.get(arguments.sandbox_id)] if arguments.sandbox_id else manager.sandboxes()
    items = [await _status(call, sandbox) for sandbox in wanted]
    return StatusOutput(sandboxes=items, other_sessions=len(await manager.others()))


async def _status(call: Call, sandbox: Sandbox) -> StatusItem:
    manager = call.manager
    now = await manager.host.inspect(sandbox.outer)
    item = StatusItem(
        sandbox_id=sandbox.sandbox_id,
        engine=sandbox.engine_name,
        state="gone" if now is None else "running" if now.running else "stopped",
        caps=GrantedCaps.of(sandbox.limits.largest),
        caps_enforced="enforced" if sandbox.evidence and sandbox.evidence.enforced else "unenforced",
        evidence=sandbox.evidence.words if sandbox.evidence else "not probed",
        isolation="privileged",
        transport=sandbox.transport,
        age_seconds=sandbox.age,
        jobs=[job.job_id for job in manager.jobs.of(sandbox.sandbox_id) if job.state == "running"],
    )
    if item.state == "running":
        counters = await manager.counters(sandbox)
        item.memory_used_bytes = counters.get("memory_used")
        item.processes = counters.get("pids_used")
        item.disk_free_bytes = counters.get("disk_free")
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


class CleanupInput(ToolInput):
    sandbox_id: Text | None = Field(None, description="Remove this one.")
    scope: Literal["session", "mine"] = Field(
        "session",
        description='"session": all of this session. "mine": also those of this user\'s other sessions, live ones too.',
    )


class CleanupOutput(ToolOutput):
    removed: list[str]
    remaining: int = Field(description="Sandboxes that this session still has.")
    note: str | None = None

    def words(self) -> str:
        if not self.removed:
            return self.note or "Nothing to remove."
        return f"Removed {len(self.removed)}: {', '.join(self.removed)}, each with its containers, images and volumes."


@tool(
    "cleanup",
    "Remove sandboxes",
    """
Remove sandboxes with everything in them: containers, images, build cache. Without arguments: this session's. Bring results out first
(outputs of nested_run). Idempotent: what is gone already is no error. To remove one nested container use nested_stop.
""",
    CleanupInput,
    CleanupOutput,
    destructive=True,
    idempotent=True,
)
async def cleanup(call: Call, arguments: CleanupInput) -> ToolOutput:
    manager = call.manager
    if arguments.sandbox_id is not None:
        removed = await manager.remove_by_id(arguments.sandbox_id)
        left = [sandbox.sandbox_id for sandbox in manager.sandboxes()]
        note = f"There is no sandbox {arguments.sandbox_id[:60]!r} (any more). This session has: {', '.join(left) or 'none'}."
        return CleanupOutput(removed=removed, remaining=len(left), note=None if removed else note)
    removed = await manager.remove_all()
    if arguments.scope == "mine":
        removed += await manager.remove_others()
    return CleanupOutput(removed=removed, remaining=len(manager.sandboxes()))


TOOLS = [start_sandbox, sandbox_status, cleanup]
