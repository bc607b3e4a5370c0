"""start_sandbox, fork_sandbox, checkpoint, sandbox_status, cleanup."""

import time
from typing import Literal

from pydantic import BaseModel, Field

from manyoyo_mcp.config import EngineName
from manyoyo_mcp.errors import EngineUnreachable, InvalidArgument, SandboxError
from manyoyo_mcp.hosts.base import Store
from manyoyo_mcp.sessions.manager import Manager
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
    disk: Memory = Field(
        None,
        description='Disk of the whole sandbox, images and all, e.g. "40g"; default 20g where disks can be capped.',
    )
    name: Text | None = Field(
        None,
        description="Makes it outlive this server: stopped when idle, kept with all that is in it. The same name finds it "
        "again, in this session or a later one.",
    )
    from_checkpoint: Text | None = Field(None, description="Begin with what is in this checkpoint, as a private copy.")
    wait_s: float = Field(
        0, ge=0, le=3600, description="Seconds to wait in the queue where the budget has no room; 0: refuse at once."
    )
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
    name: str | None = None
    disk_bytes: int | None = Field(None, description="Cap of its disk; none where this host can't cap disks.")
    containers: list[str] = Field(default_factory=list, description="Containers that are there already.")

    @classmethod
    async def of(cls, sandbox: Sandbox) -> "SandboxInfo":
        images = await sandbox.engine.images()
        containers = await sandbox.engine.containers() if sandbox.resumed or sandbox.copied else []
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
            name=sandbox.name,
            disk_bytes=sandbox.disk,
            containers=[f"{each.name} ({each.state}, {each.image})" for each in containers][:30],
        )

    def describe(self) -> str:
        caps, nested = self.caps, self.nested_default
        disk = f"disk {format_bytes(self.disk_bytes)}" if self.disk_bytes is not None else "disk uncapped"
        return (
            f"Caps: {caps.cpus:g} CPUs, {format_bytes(caps.memory_bytes)}, {caps.pids_limit} processes, {disk} "
            f"({self.caps_enforced}); a run or build gets {nested.cpus:g} CPUs, {format_bytes(nested.memory_bytes)}, "
            f"{nested.pids_limit} processes unless it asks.\n"
            f"Images: {', '.join(self.images) or 'none yet'}"
            + (f"\nContainers: {', '.join(self.containers)}" if self.containers else "")
        )


class StartOutput(ToolOutput):
    sandbox: SandboxInfo
    seconds: float
    grown: bool = False
    resumed: Literal["running", "stopped"] | None = Field(None, description="How a named sandbox was found.")

    def words(self) -> str:
        what = "grown" if self.grown else f"started in {self.seconds:.2f} s"
        if self.resumed == "running":
            what = f"was running, and is yours to use: {self.sandbox.name}"
        elif self.sandbox.name:
            what += f" as {self.sandbox.name}" + (
                ", with all that it held; its containers have stopped" if self.resumed else ""
            )
        return f"{self.sandbox.sandbox_id} ({self.sandbox.engine}) {what}.\n{self.sandbox.describe()}\nIsolation: {PRIVILEGED_NOTE}"


@tool(
    "start_sandbox",
    "Start a sandbox",
    """
Start a container host of your own: a sandbox with its own engine and image store, apart from the user's Docker. Build and
run in it as freely as on a throw-away machine. Returns sandbox_id, the caps that bind, and the images that are there.
It lives until cleanup or until this server ends; with a name it is kept. You need not call this first: the first nested_build or nested_run starts
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
        if arguments.name is not None or arguments.from_checkpoint is not None:
            raise InvalidArgument(
                "A live sandbox gets no other name and no other content.", "Leave sandbox_id out to start a new one."
            )
        if (*caps, arguments.disk) == (None, None, None, None):
            raise InvalidArgument(
                "There is nothing to change.", "Give larger cpus, memory, pids_limit or disk; or sandbox_status."
            )
        await manager.grow(sandbox, *caps, arguments.disk)
        return StartOutput(sandbox=await SandboxInfo.of(sandbox), seconds=0, grown=True)
    async with call.progress_sink() as progress:
        sandbox = await manager.start(
            arguments.engine,
            *caps,
            progress=progress,
            disk=arguments.disk,
            name=arguments.name,
            from_checkpoint=arguments.from_checkpoint,
            wait_s=arguments.wait_s,
        )
    return StartOutput(sandbox=await SandboxInfo.of(sandbox), seconds=sandbox.start_seconds, resumed=sandbox.resumed)


class ForkInput(SandboxArgument):
    count: int = Field(1, ge=1, le=20, description="How many.")


class ForkOutput(ToolOutput):
    forks: list[SandboxInfo]
    seconds: float

    def words(self) -> str:
        ids = ", ".join(fork.sandbox_id for fork in self.forks)
        return (
            f"{len(self.forks)} forks in {self.seconds:.2f} s: {ids}. Each has the same images, volumes and containers (stopped), and "
            f"goes its own way from here; name one with sandbox_id in what you call.\n{self.forks[0].describe()}"
        )


@tool(
    "fork_sandbox",
    "Fork a sandbox",
    """
Start new sandboxes that begin as this one is now: its images, build cache, volumes, and containers with their files; running
processes are not copied. Each is private: try a risky change in several ways at once, keep the one that works, cleanup the rest.
""",
    ForkInput,
    ForkOutput,
)
async def fork_sandbox(call: Call, arguments: ForkInput) -> ToolOutput:
    sandbox = call.manager.get(arguments.sandbox_id)
    begun = time.monotonic()
    async with call.progress_sink() as progress:
        forks = await call.manager.fork(sandbox, arguments.count, progress)
    seconds = round(time.monotonic() - begun, 3)
    return ForkOutput(forks=[await SandboxInfo.of(fork) for fork in forks], seconds=seconds)


class CheckpointInput(SandboxArgument):
    name: Text = Field(description="What to call it: lower-case letters, digits, _ . -")
    replace: bool = Field(False, description="Take the place of one of that name.")


class CheckpointOutput(ToolOutput):
    name: str
    sandbox_id: str
    how: Literal["snapshot", "copy"]
    copied_bytes: int = 0
    seconds: float

    def words(self) -> str:
        copied = (
            f"{format_bytes(self.copied_bytes)} copied, file by file while it ran: what was being written may be torn"
        )
        how = "blocks shared, nothing copied" if self.how == "snapshot" else copied
        return (
            f"{self.sandbox_id} is kept as checkpoint {self.name} ({how}, {self.seconds:.2f} s): images, build cache, volumes, "
            f"networks, containers with their files; no running processes. start_sandbox with from_checkpoint={self.name!r} begins "
            "with it. It is kept until cleanup with checkpoint names it."
        )


@tool(
    "checkpoint",
    "Keep a sandbox's state",
    """
Keep all that a sandbox holds now, under a name, for start_sandbox's from_checkpoint in this session or a later one: a point to go back
to, or a warm build cache to begin with. The sandbox goes on undisturbed. Running processes are not kept.
""",
    CheckpointInput,
    CheckpointOutput,
)
async def checkpoint(call: Call, arguments: CheckpointInput) -> ToolOutput:
    sandbox = call.manager.get(arguments.sandbox_id)
    begun = time.monotonic()
    async with call.progress_sink() as progress:
        copied = await call.manager.checkpoint(sandbox, arguments.name, replace=arguments.replace, progress=progress)
    return CheckpointOutput(
        name=arguments.name,
        sandbox_id=sandbox.sandbox_id,
        how="snapshot" if copied.how == "snapshot" else "copy",
        copied_bytes=copied.copied,
        seconds=round(time.monotonic() - begun, 3),
    )


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
    engine_log: str | None = Field(None, description="The engine's last words, where it does not answer.")

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
        if self.will:
            lines.append(f"  {self.will}")
        if self.jobs:
            lines.append(f"  jobs: {', '.join(self.jobs)}")
        if self.engine_log:
            lines.append(fence(self.engine_log, "engine log"))
        return "\n".join(lines)


class Kept(BaseModel):
    """What outlives servers."""

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
    other_sessions: int = Field(0, description="Sandboxes of this user that other sessions hold.")
    kept: list[Kept] = Field(
        default_factory=list, description="Named sandboxes that are not open here, and checkpoints."
    )

    def words(self) -> str:
        return "\n".join([self._sandboxes(), *(each.describe() for each in self.kept)])

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
    open_here = {sandbox.sandbox_id for sandbox in manager.sandboxes()}
    kept = [Kept.of(store) for store in await manager.kept() if store.labels.get("sandbox") not in open_here]
    return StatusOutput(sandboxes=items, other_sessions=len(await manager.others()), kept=kept)


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
        name=sandbox.name,
        age_seconds=sandbox.age,
        jobs=[job.job_id for job in manager.jobs.of(sandbox.sandbox_id) if job.state == "running"],
    )
    if item.state == "running":
        outlook = await manager.life.outlook(sandbox)
        item.will, item.ends_in_seconds = outlook.words, outlook.ends_in
        counters = await manager.counters(sandbox)
        item.memory_used_bytes = counters.get("memory_used")
        item.processes = counters.get("pids_used")
        item.disk_used_bytes, item.disk_cap_bytes = counters.get("disk_used"), sandbox.disk
        left = (item.disk_cap_bytes or 1 << 62) - (item.disk_used_bytes or 0)
        item.disk_free_bytes = min(counters.get("disk_free", 0), max(left, 0))
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
    sandbox_id: Text | None = Field(None, description="Remove this one; a named sandbox also by its name.")
    checkpoint: Text | None = Field(None, description="Remove this checkpoint.")
    scope: Literal["session", "mine"] = Field(
        "session",
        description='"session": all of this session. "mine": also those of this user\'s other sessions, live ones too. '
        "Neither touches what has a name.",
    )
    keep_data: bool = Field(False, description="Stop a named sandbox now, and keep what it holds; with sandbox_id.")


class CleanupOutput(ToolOutput):
    removed: list[str]
    remaining: int = Field(description="Sandboxes that this session still has.")
    freed_bytes: int | None = Field(None, description="Disk freed, where it can be told.")
    stopped: bool = Field(False, description="Stopped, with what it holds kept.")
    note: str | None = None

    def words(self) -> str:
        note = f"\n{self.note}" if self.note else ""
        if not self.removed:
            return self.note or "Nothing to remove."
        if self.stopped:
            return f"Stopped {self.removed[0]}; what it holds is kept.{note}"
        freed = f" ({format_bytes(self.freed_bytes)} of disk freed)" if self.freed_bytes else ""
        return f"Removed {len(self.removed)}: {', '.join(self.removed)}, each with its containers, images and volumes{freed}.{note}"


@tool(
    "cleanup",
    "Remove sandboxes",
    """
Remove sandboxes with everything in them: containers, images, build cache. Without arguments: this session's, but those that have a name.
Bring results out first (outputs of nested_run). Idempotent: what is gone already is no error. To remove one nested container use nested_stop.
""",
    CleanupInput,
    CleanupOutput,
    destructive=True,
    idempotent=True,
)
async def cleanup(call: Call, arguments: CleanupInput) -> ToolOutput:
    manager = call.manager
    if arguments.sandbox_id is not None and arguments.checkpoint is not None:
        raise InvalidArgument("sandbox_id and checkpoint exclude each other.", "Call cleanup for each.")
    if arguments.keep_data and arguments.sandbox_id is None:
        raise InvalidArgument("keep_data is for one named sandbox.", "Say which with sandbox_id.")
    if arguments.checkpoint is not None:
        freed = await manager.remove_checkpoint(arguments.checkpoint)
        return CleanupOutput(
            removed=[arguments.checkpoint], remaining=len(manager.sandboxes()), freed_bytes=freed or None
        )
    if arguments.sandbox_id is not None:
        return await _clean_one(manager, arguments.sandbox_id, keep_data=arguments.keep_data)
    removed = await manager.remove_all()
    if arguments.scope == "mine":
        removed |= await manager.remove_others()
    named = [sandbox.name for sandbox in manager.sandboxes() if sandbox.name]
    note = f"Kept, for it has a name: {', '.join(named)}. sandbox_id removes it." if named else None
    return _cleaned(manager, removed, note)


async def _clean_one(manager: Manager, sandbox_id: str, *, keep_data: bool) -> CleanupOutput:
    if keep_data and not await manager.is_named(sandbox_id):
        raise InvalidArgument(
            f"{sandbox_id[:60]!r} is no named sandbox: what it holds goes with it.",
            "checkpoint keeps what a sandbox holds; start_sandbox with a name starts one that is kept.",
        )
    removed = await manager.remove_by_id(sandbox_id, keep_store=keep_data)
    left = ", ".join(sandbox.sandbox_id for sandbox in manager.sandboxes()) or "none"
    note = f"There is no sandbox {sandbox_id[:60]!r} (any more). This session has: {left}."
    if keep_data:
        note = f"{sandbox_id} is stopped already; what it holds is kept."
    return _cleaned(manager, removed, None if removed else note, stopped=keep_data and bool(removed))


def _cleaned(manager: Manager, removed: dict[str, int], note: str | None, *, stopped: bool = False) -> CleanupOutput:
    return CleanupOutput(
        removed=list(removed),
        remaining=len(manager.sandboxes()),
        freed_bytes=sum(removed.values()) or None,
        stopped=stopped,
        note=note,
    )


TOOLS = [start_sandbox, fork_sandbox, checkpoint, sandbox_status, cleanup]
