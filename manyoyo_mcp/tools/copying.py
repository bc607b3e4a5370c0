"""fork_sandbox, checkpoint."""

import time
from typing import Any, Literal

from pydantic import Field

from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import SandboxArgument, Text
from manyoyo_mcp.tools.sandbox import SandboxInfo
from manyoyo_mcp.values import format_bytes


class ForkInput(SandboxArgument):
    count: int = Field(1, ge=1, le=20, description="How many.")


class ForkOutput(ToolOutput):
    forks: list[SandboxInfo]
    seconds: float

    def outcome(self) -> dict[str, Any]:
        return {"forks": [fork.sandbox_id for fork in self.forks]}

    def words(self) -> str:
        ids = ", ".join(fork.sandbox_id for fork in self.forks)
        return (
            f"{len(self.forks)} fork{'' if len(self.forks) == 1 else 's'} in {self.seconds:.2f} s: {ids}. Each has the same images, volumes and containers (stopped), and "
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
        copied = await call.manager.keeping.checkpoint(
            sandbox, arguments.name, replace=arguments.replace, progress=progress
        )
    return CheckpointOutput(
        name=arguments.name,
        sandbox_id=sandbox.sandbox_id,
        how="snapshot" if copied.how == "snapshot" else "copy",
        copied_bytes=copied.copied,
        seconds=round(time.monotonic() - begun, 3),
    )


TOOLS = [fork_sandbox, checkpoint]
