"""nested_list, nested_logs, nested_stop."""

import time
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel, Field

from manyoyo_mcp.engines.base import Container
from manyoyo_mcp.errors import ManyoyoError, Reason
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import Name, SandboxArgument, show
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import in_thread

_SHOWN = 50


class ListInput(SandboxArgument):
    what: Literal["all", "containers", "images"] = "all"


class ContainerRow(BaseModel):
    id: str
    name: str
    image: str
    state: str
    status: str
    command: str
    address: str | None = Field(None, description="IP address in the sandbox: other containers reach it there.")
    reason: Reason | None = Field(None, description="Why it ended, where it failed.")
    explanation: str | None = None


class ImageRow(BaseModel):
    id: str
    tags: list[str]
    size_bytes: int


class ListOutput(ToolOutput):
    sandbox_id: str
    containers: list[ContainerRow] | None = None
    images: list[ImageRow] | None = None
    omitted: int = 0

    def words(self) -> str:
        lines = []
        if self.containers is not None:
            lines.append(f"{len(self.containers)} containers in {self.sandbox_id}:")
            lines += [
                f"  {row.id} {row.name} {row.state} ({row.status}{f', {row.reason}' if row.reason else ''}) "
                f"{f'{row.address} ' if row.address else ''}{row.image} $ {row.command}"
                for row in self.containers
            ]
        if self.images is not None:
            lines.append(f"{len(self.images)} images:")
            lines += [
                f"  {row.id} {' '.join(row.tags) or '(no name)'} {format_bytes(row.size_bytes)}" for row in self.images
            ]
        return "\n".join(lines) + (f"\n{self.omitted} more left out." if self.omitted else "")


@tool(
    "nested_list",
    "List containers and images",
    """
The containers (running and stopped) and images inside a sandbox, with state and size. For the sandbox's own state and caps use sandbox_status.
""",
    ListInput,
    ListOutput,
    read_only=True,
    idempotent=True,
)
async def nested_list(call: Call, arguments: ListInput) -> ToolOutput:
    sandbox = call.manager.get(arguments.sandbox_id)
    result = ListOutput(sandbox_id=sandbox.sandbox_id)
    if arguments.what != "images":
        containers = await call.manager.work.ask(sandbox, sandbox.engine.containers)
        result.containers = [await _row(call, sandbox, row) for row in containers[:_SHOWN]]
        result.omitted += max(0, len(containers) - _SHOWN)
    if arguments.what != "containers":
        images = await call.manager.work.ask(sandbox, sandbox.engine.images)
        result.images = [
            ImageRow(
                id=row.image_id.removeprefix("sha256:")[:12],
                tags=[sanitise(tag) for tag in row.tags[:5]],
                size_bytes=row.size,
            )
            for row in images[:_SHOWN]
        ]
        result.omitted += max(0, len(images) - _SHOWN)
    return result


async def _row(call: Call, sandbox: Sandbox, container: Container) -> ContainerRow:
    row = ContainerRow(
        id=container.container_id[:12],
        name=sanitise(container.name),
        image=sanitise(container.image)[:100],
        state=container.state,
        status=sanitise(container.status),
        command=sanitise(container.command)[:80],
        address=container.address or None,
    )
    if container.state == "exited" and not container.status.startswith("Exited (0)"):
        with suppress(ManyoyoError):  # gone meanwhile, or not to be read: the list is more than that
            ended = await call.manager.work.ask(sandbox, lambda: sandbox.engine.ended(container.container_id))
            if ended is not None and ended.exit_code != 0:
                row.reason, row.explanation = ended.reason, sanitise(ended.explanation)
    return row


class LogsInput(SandboxArgument):
    container: Name = Field(description="Name or id of a nested container.")
    tail: int | None = Field(None, ge=1, le=1_000_000, description="Only so many lines from the end.")
    since_s: float | None = Field(None, gt=0, description="Only the last so many seconds.")
    max_tokens: int | None = Field(None, ge=200, le=50000, description="Longest result; default 2000.")


class LogsOutput(ToolOutput):
    container: str
    output: str = Field(description="stdout and stderr together, untrusted, fenced.")
    omitted_bytes: int = 0
    reason: Reason | None = Field(None, description="Why it ended, where it has.")
    exit_code: int | None = None
    explanation: str | None = None
    hint: str | None = None

    def words(self) -> str:
        lines = [self.output or f"{self.container} has written nothing."]
        if self.omitted_bytes:
            lines.append(f"({self.omitted_bytes:,} bytes left out; use tail or max_tokens.)")
        if self.reason is not None:
            lines.append(
                f"It runs no longer: {self.reason}, exit code {self.exit_code}. {self.explanation or ''}".rstrip()
            )
        lines += [f"What to do: {self.hint}"] if self.hint else []
        return "\n".join(lines)


@tool(
    "nested_logs",
    "Read a container's output",
    """
What a nested container has written to stdout and stderr: a detached service that runs or has stopped. For the output of a foreground
nested_run, a nested_exec or a nested_build use read_log with its job_id.
""",
    LogsInput,
    LogsOutput,
    read_only=True,
    idempotent=True,
)
async def nested_logs(call: Call, arguments: LogsInput) -> ToolOutput:
    manager = call.manager
    sandbox = manager.get(arguments.sandbox_id)
    since = time.time() - arguments.since_s if arguments.since_s else None
    raw = await manager.work.ask(sandbox, lambda: sandbox.engine.logs(arguments.container, arguments.tail, since))
    raw = manager.vault.redactor.clean(raw)
    tokens = (arguments.max_tokens or manager.settings.result_tokens) - 150
    output, omitted = await in_thread(show, raw, arguments.container, tokens)
    result = LogsOutput(container=arguments.container, output=output, omitted_bytes=omitted)
    with suppress(ManyoyoError):
        ended = await manager.work.ask(sandbox, lambda: sandbox.engine.ended(arguments.container))
        if ended is not None:
            result.reason, result.exit_code, result.hint = ended.reason, ended.exit_code, ended.hint or None
            result.explanation = sanitise(ended.explanation) or None
    return result


class StopInput(SandboxArgument):
    container: Name = Field(description="Name or id of a nested container.")
    action: Literal["stop", "start", "restart", "remove"] = Field("stop", description="remove also stops, at once.")
    timeout_s: float = Field(10, ge=0, le=600, description="Seconds between SIGTERM and SIGKILL.")


class StopOutput(ToolOutput):
    container: str
    action: str
    state: str = Field(description="State afterwards.")

    def words(self) -> str:
        return f"{self.container}: {self.state}."


@tool(
    "nested_stop",
    "Stop, start, restart or remove a container",
    """
Stop (default), start, restart or remove one nested container. To end a build, run or exec that goes on as a job use job_cancel; to remove the
whole sandbox, cleanup.
""",
    StopInput,
    StopOutput,
    destructive=True,
    idempotent=True,
)
async def nested_stop(call: Call, arguments: StopInput) -> ToolOutput:
    manager = call.manager
    sandbox = manager.get(arguments.sandbox_id)
    state = await manager.work.ask(
        sandbox, lambda: sandbox.engine.act(arguments.action, arguments.container, arguments.timeout_s)
    )
    return StopOutput(container=arguments.container, action=arguments.action, state=state)


TOOLS = [nested_list, nested_logs, nested_stop]
