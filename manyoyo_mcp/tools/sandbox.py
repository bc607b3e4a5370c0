"""start_sandbox, cleanup."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from manyoyo_mcp.config import EngineName, Isolation, NetworkMode
from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.hosts.isolation import tier, weaker
from manyoyo_mcp.sessions import reach
from manyoyo_mcp.sessions.approvals import Wish
from manyoyo_mcp.sessions.manager import Manager
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.tools.base import Call, ToolInput, ToolOutput, sock_wish, tool
from manyoyo_mcp.tools.common import Cpus, Disk, GrantedCaps, Memory, Pids, Text
from manyoyo_mcp.values import format_bytes


class StartInput(ToolInput):
    engine: EngineName | None = Field(
        None, description='"podman" (default, fastest) or "docker" (dockerd; for what needs the whole Docker API).'
    )
    memory: Memory = Field(
        None, description='Memory of the whole sandbox, e.g. "4g"; default: half the host\'s, at most 8g.'
    )
    cpus: Cpus = Field(None, description="CPUs of the whole sandbox; default: half the host's, at most 4.")
    pids_limit: Pids = Field(None, description="Processes and threads in the whole sandbox; default 4096.")
    disk: Disk = Field(
        None,
        description='Disk of the whole sandbox, e.g. "40g"; default 20g where disks can be capped.',
    )
    name: Text | None = Field(
        None,
        description="Makes it outlive this server: stopped when idle, kept with all that is in it. The same name finds it again.",
    )
    from_checkpoint: Text | None = Field(None, description="Begin with what is in this checkpoint, as a private copy.")
    isolation: Isolation | None = Field(
        None,
        description='Its wall. "hardened": none of the host\'s devices; "userns" (docker), "rootless" (podman): nested root is nobody; "gvisor" (podman): another kernel; "common" (docker): runs by the host\'s engine; "sock" (docker): builds too.',
    )
    network_policy: NetworkMode | None = Field(
        None, description='What it may reach: "open" (the internet), "log" (recorded), "allowlist", "none".'
    )
    network_allow: list[Text] | None = Field(
        None, max_length=200, description='For "allowlist": ["*.example.org:443", "203.0.113.0/24"].'
    )
    wait_s: float = Field(0, ge=0, le=3600, description="Seconds to wait for room in the budget; 0: refuse at once.")
    sandbox_id: Text | None = Field(None, description="A live sandbox to change: larger caps, network_policy.")


class SandboxInfo(BaseModel):
    sandbox_id: str
    engine: str
    caps: GrantedCaps
    nested_default: GrantedCaps = Field(description="Caps of a run or build that asks for none.")
    caps_enforced: Literal["enforced", "unenforced"]
    evidence: str
    isolation: str
    network: str
    transport: str
    images: list[str] = Field(description="Images there already.")
    name: str | None = None
    disk_bytes: int | None = Field(None, description="Cap of its disk, where it has one.")
    containers: list[str] = Field(default_factory=list, description="Containers there already.")

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
            isolation=tier(sandbox.isolation).words(sandbox.isolation),
            network=sandbox.network.words(),
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

    def outcome(self) -> dict[str, Any]:
        box = self.sandbox
        return {
            "sandbox_id": box.sandbox_id, "name": box.name, "engine": box.engine, "network": box.network,
            "isolation": box.isolation.partition(".")[0], "resumed": self.resumed,
        }  # fmt: skip

    def words(self) -> str:
        what = "changed" if self.grown else f"started in {self.seconds:.2f} s"
        if self.resumed == "running":
            what = f"was running, and is yours to use: {self.sandbox.name}"
        elif self.sandbox.name:
            what += f" as {self.sandbox.name}" + (
                ", with all that it held; its containers have stopped" if self.resumed else ""
            )
        return f"{self.sandbox.sandbox_id} ({self.sandbox.engine}) {what}.\n{self.sandbox.describe()}\nIsolation: {self.sandbox.isolation}\nNetwork: {self.sandbox.network}"


@tool(
    "start_sandbox",
    "Start a sandbox",
    """
Start a container host of your own: a sandbox with its own engine and image store, apart from the user's Docker. Build and
run in it freely. Returns sandbox_id, the caps that bind, and the images that are there.
It lives until cleanup or until this server ends; with a name it is kept. You need not call this first: nested_build and nested_run start one
with the defaults. Call it to choose engine or caps, for a second sandbox, or with sandbox_id to change a live one.
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
        if arguments.isolation not in (None, sandbox.isolation):
            raise InvalidArgument("A live sandbox keeps its isolation.", "Leave sandbox_id out to start a new one.")
        wanted = (*caps, arguments.disk)
        if (*wanted, arguments.network_policy, arguments.network_allow) == (None,) * 6:
            raise InvalidArgument(
                "There is nothing to change.",
                "Give larger cpus, memory, pids_limit or disk, or another network_policy; or sandbox_status.",
            )
        approved = await _approved(call, arguments)
        await manager.change_network(sandbox, arguments.network_policy, arguments.network_allow, approved=approved)
        if wanted != (None,) * 4:
            await manager.grow(sandbox, *wanted)
        return StartOutput(sandbox=await SandboxInfo.of(sandbox), seconds=0, grown=True)
    approved = await _approved(call, arguments)
    async with call.progress_sink() as progress:
        sandbox = await manager.start(
            arguments.engine,
            *caps,
            progress=progress,
            disk=arguments.disk,
            name=arguments.name,
            from_checkpoint=arguments.from_checkpoint,
            wait_s=arguments.wait_s,
            isolation=arguments.isolation,
            network_policy=arguments.network_policy,
            network_allow=arguments.network_allow,
            approved=approved,
        )
    return StartOutput(sandbox=await SandboxInfo.of(sandbox), seconds=sandbox.start_seconds, resumed=sandbox.resumed)


_MOST_TO_ASK = 30
"""Entries of a list that a person can be asked about."""


async def _approved(call: Call, arguments: StartInput) -> bool:
    """What reaches further than is configured is approved, or this raises; whether a network policy does."""
    settings, wishes = call.manager.settings, []
    network = await reach.beyond(settings, call.manager.host, arguments.network_policy, arguments.network_allow)
    if network is not None:
        policy, refusal = network
        if len(policy.allow) > _MOST_TO_ASK:
            raise refusal
        words = f"A sandbox's network policy {policy.in_full()} Configured is {reach.configured(settings).in_full()}"
        if closed := ", ".join(str(each) for each in policy.allow if each.closed):
            words += f" Private, link-local or metadata addresses in it: {closed}."
        wishes.append(Wish("network", policy.label, words, refusal))
    asked = arguments.isolation
    if asked is not None and arguments.sandbox_id is None and weaker(asked, settings.isolation):
        refused = PolicyRefused(
            f"isolation={asked!r} is a weaker wall than configured, which is {settings.isolation!r}.",
            "Leave isolation out, or ask the user.",
        )
        words = f"A sandbox with a weaker wall ({tier(asked).words(asked)}) Configured is {settings.isolation}."
        wishes.append(Wish("isolation", asked, words, refused))
    if arguments.sandbox_id is None and (asked or settings.isolation) == "sock":
        wishes.append(sock_wish(call.manager))
    await call.approve(*wishes)
    return network is not None


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
    freed_bytes: int | None = Field(
        None, description="Disk freed, where it can be told; what forks or checkpoints share with it stays."
    )
    stopped: bool = Field(False, description="Stopped, with what it holds kept.")
    note: str | None = None

    def words(self) -> str:
        note = f"\n{self.note}" if self.note else ""
        if not self.removed:
            return self.note or "Nothing to remove."
        if self.stopped:
            return f"Stopped {self.removed[0]}; what it holds is kept.{note}"
        freed = (
            f" ({format_bytes(self.freed_bytes)} of disk freed, but for what forks or checkpoints share with it)"
            if self.freed_bytes
            else ""
        )
        return f"Removed with all containers, images and volumes: {', '.join(self.removed)}{freed}.{note}"


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
        freed = await manager.keeping.remove_checkpoint(arguments.checkpoint)
        return CleanupOutput(
            removed=[arguments.checkpoint], remaining=len(manager.sandboxes()), freed_bytes=freed or None
        )
    if arguments.sandbox_id is not None:
        return await _clean_one(manager, arguments.sandbox_id, keep_data=arguments.keep_data)
    if manager.handles.explicit and arguments.scope != "mine":
        raise InvalidArgument(
            "sandbox_id is missing: over HTTP it is always to be given.",
            'scope="mine" removes all that you have, of your other clients too.',
            code="SANDBOX_ID_REQUIRED",
        )
    removed = await manager.remove_all()
    if arguments.scope == "mine":
        removed |= await manager.remove_others()
    named = [sandbox.name for sandbox in manager.sandboxes() if sandbox.name]
    note = f"Kept, for it has a name: {', '.join(named)}. sandbox_id removes it." if named else None
    return _cleaned(manager, removed, note)


async def _clean_one(manager: Manager, sandbox_id: str, *, keep_data: bool) -> CleanupOutput:
    if keep_data and not await manager.keeping.is_named(sandbox_id):
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


TOOLS = [start_sandbox, cleanup]
