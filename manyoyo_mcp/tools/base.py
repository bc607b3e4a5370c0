"""What a tool is here: an input model, an output model that can say itself in words, and a handler between them."""

import difflib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, ContentBlock, ResourceLink, TextContent, ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyoyo_mcp.errors import InvalidArgument, ManyoyoError, NotSupported, PolicyRefused
from manyoyo_mcp.hosts.isolation import tier
from manyoyo_mcp.redaction import Redactor
from manyoyo_mcp.sessions.approvals import Wish
from manyoyo_mcp.sessions.manager import Manager
from manyoyo_mcp.sessions.onhost import check_offered
from manyoyo_mcp.sessions.principals import USER, Caller, Principals, Scope
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.tools import approving
from manyoyo_mcp.tools.recording import Recorded

_NO_PORTS = (
    "It publishes none: another nested run reaches a service at its address (nested_list), nested_exec at localhost. For programs of "
    "the user's own: sandbox_endpoint with ports=true, then docker run -p."
)
_NOT_OFFERED = {
    "privileged": "Nested containers are never privileged.",
    "devices": "The host's devices are not given to nested containers.",
    "device": "The host's devices are not given to nested containers.",
    "gpus": "GPUs are not given to nested containers.",
    "cap_add": "Capabilities can be dropped (cap_drop), not added.",
    "security_opt": "The nested engine's own seccomp and capability defaults stay in force.",
    "volumes": "Use files (in) and outputs (out).",
    "mounts": "Use files (in) and outputs (out).",
    "binds": "Use files (in) and outputs (out).",
    "ports": _NO_PORTS,
    "publish": _NO_PORTS,
    "pid": "Namespaces can't be shared with the sandbox.",
    "ipc": "Namespaces can't be shared with the sandbox.",
    "runtime": 'The nested engine\'s runtime is fixed; start_sandbox has isolation="runtime:NAME" for the outer container.',
    "gpu": "GPUs are not given to nested containers.",
}
"""Docker arguments that callers try, with the reason why they are not offered."""


_MAY_BE_JSON = "[{tfn"
"""What a text begins with that some clients send in place of a list, an object, true, false or null."""


class ToolInput(ArgModelBase):
    """Arguments of a tool; unknown ones are refused by name."""

    model_config = ConfigDict(extra="forbid")


_ON_RECORD = ("sandbox_id", "state", "reason", "exit_code", "cause_code", "job_id", "image_id", "container", "removed")


class ToolOutput(BaseModel):
    """A result: data for programs, and `words` for a model to read. `links` are resources it can be read further in."""

    def words(self) -> str:
        raise NotImplementedError

    def links(self) -> list[tuple[str, str]]:
        """Pairs of URI and name."""
        return []

    def outcome(self) -> dict[str, Any]:
        """What of it goes on record: how it ended, and the names of what it made or ended."""
        return {name: value for name in _ON_RECORD if (value := getattr(self, name, None)) is not None}

    def data(self) -> dict[str, Any]:
        """The result for programs. Some clients show their model this and no words, so what is empty is left out."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


In = TypeVar("In", bound=ToolInput)


LOUD = "ISOLATION SOCK: what is run and built here is run and built by the host's own engine, beside what is not yours."
"""Said with every result of a session that has such a sandbox."""


def sock_wish(manager: Manager) -> Wish:
    """A sandbox on the host's own engine. Raises PolicyRefused where that is off."""
    check_offered(manager.settings, "sock")
    refused = PolicyRefused("Isolation sock takes the user's yes in each session.", "Take another isolation.")
    return Wish("sock", "sock", f"Containers and builds on THIS MACHINE'S OWN container engine, for as long as this session lasts. ({tier('sock').words('sock')})",
                refused)  # fmt: skip


@dataclass(slots=True)
class Call:
    """One call: the session's manager, and a way to report progress to the client."""

    manager: Manager
    context: Context[Any, Any]
    call_id: str = ""
    _reported: float = -1.0

    async def progress(self, done: float, total: float | None, words: str) -> None:
        """Tell the client, where it asked to be told. The number only ever rises, as the protocol demands."""
        self._reported = max(done, self._reported + 0.001)
        await self.context.report_progress(self._reported, total, self.manager.vault.redactor.text(words))

    async def approve(self, *wishes: Wish) -> None:
        """Returns where all of it is allowed, after asking the person if need be; before anything is done. Raises PolicyRefused, NotApproved."""
        await approving.approve(self.manager, self.context, self.call_id, *wishes)

    async def sandbox(self, sandbox_id: str | None) -> tuple[Sandbox, bool]:
        """The sandbox that is meant, started with the defaults where this session has none; and whether it was."""
        if self.manager.sandboxes() or self.manager.handles.explicit:
            return self.manager.get(sandbox_id), False
        if self.manager.settings.isolation == "sock":
            await self.approve(sock_wish(self.manager))
        async with self.progress_sink() as progress:
            return await self.manager.get_or_start(sandbox_id, progress)

    @asynccontextmanager
    async def progress_sink(self) -> AsyncIterator[Callable[[float, float | None, str], None]]:
        """A function that reports progress from code that can't await."""
        send, receive = anyio.create_memory_object_stream[tuple[float, float | None, str]](1000)

        def sink(done: float, total: float | None, words: str) -> None:
            with suppress(anyio.WouldBlock):
                send.send_nowait((done, total, words))

        async def forward() -> None:
            async for done, total, words in receive:
                await self.progress(done, total, words)

        raised: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(forward)
            with send:
                try:
                    yield sink
                except Exception as error:  # to come out as it is, not in a group
                    raised = error
        if raised is not None:
            raise raised


@asynccontextmanager
async def admitted(context: Context[Any, Any]) -> AsyncIterator[tuple[Manager, Caller]]:
    """The caller's manager, for one call, and who that is. Raises RateLimited."""
    held = context.request_context.lifespan_context
    if isinstance(held, Principals):
        async with held.admitted(context.request_context.request) as found:
            yield found
    else:
        yield held, USER


class ManyoyoTool(Tool):
    """A tool whose arguments, results and errors are ours from end to end. `scope`: what a caller's token must have for it."""

    scope: Scope = Field("run", exclude=True)

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        record: Recorded | None = None
        current: Callable[[], Redactor] = Redactor
        sandboxes: Callable[[], list[Sandbox]] = list
        try:
            async with admitted(context) as (manager, caller):
                current, sandboxes = manager.vault.current, manager.sandboxes
                record = Recorded(self, context, manager, arguments)
                caller.need(self.scope)
                parsed = self._parse(arguments)
                await record.asked(parsed)
                output: ToolOutput = await self.fn(Call(manager, context, record.call_id), parsed)
                await record.ended(output.outcome())
        except ManyoyoError as error:
            if record is not None:
                await record.failed(error)
            return _refusal(error, current(), _loud(sandboxes()))
        except approving.Pending as pending:
            if record is not None:
                await record.waits()
            return pending.question
        except BaseException as error:
            if record is not None:
                await record.broken(error)
            raise
        redactor = current()
        content: list[ContentBlock] = [TextContent(type="text", text=redactor.text(output.words()))]
        content += _loud(sandboxes())
        content += [ResourceLink(type="resource_link", uri=uri, name=name) for uri, name in output.links()]
        return CallToolResult(content=content, structured_content=redactor.anything(output.data()))

    def _parse(self, arguments: dict[str, Any]) -> ToolInput:
        for name in arguments:
            if name in _NOT_OFFERED and name not in self.fn_metadata.arg_model.model_fields:
                raise NotSupported(f"{self.name} has no argument {name!r}.", _NOT_OFFERED[name], argument=name)
        try:
            model = self.fn_metadata.arg_model
            if any(isinstance(value, str) and value.lstrip()[:1] in _MAY_BE_JSON for value in arguments.values()):
                arguments = self.fn_metadata.pre_parse_json(arguments)
            return model.model_validate(arguments)  # type: ignore[return-value]
        except ValidationError as error:
            raise _invalid(self.name, self.fn_metadata.arg_model, error) from error


ERROR_META = "org.manyoyo/error"
"""Where a refused call's result carries its error as data (`code`, `message`, `hint`, `details`)."""


def _loud(sandboxes: list[Sandbox]) -> list[ContentBlock]:
    return [TextContent(type="text", text=LOUD)] if any(each.isolation == "sock" for each in sandboxes) else []


def _refusal(error: ManyoyoError, redactor: Redactor, more: list[ContentBlock]) -> CallToolResult:
    """The error in words, and as data in `_meta`: clients hold structured content against the tool's output schema even where a
    call failed, and would show that mismatch instead of the error."""
    text = sanitise(f"{error.instance_code}: {error.message}" + (f"\nWhat to do: {error.hint}" if error.hint else ""))
    return CallToolResult(
        content=[TextContent(type="text", text=redactor.text(text)), *more],
        _meta={ERROR_META: redactor.anything(error.as_dict())},
        is_error=True,
    )


def _invalid(tool: str, model: type[BaseModel], error: ValidationError) -> InvalidArgument:
    """Pydantic's errors as one of ours: which argument, what is wrong with it, what is allowed; no input echoed."""
    lines, hints, first = [], [], None
    for each in error.errors(include_url=False, include_input=False)[:5]:
        place = ".".join(str(part) for part in each["loc"] if not str(part).startswith(("function-", "constrained-")))
        argument = str(each["loc"][0]) if each["loc"] else ""
        first = first or argument
        if each["type"] == "extra_forbidden":
            lines.append(f"{tool} has no argument {argument[:60]!r}")
            meant = _meant(argument, model)
            hints.append((f"Did you mean {meant}? " if meant else "") + f"It takes: {', '.join(model.model_fields)}.")
        else:
            lines.append(f"{place}: {each['msg'].removeprefix('Value error, ').rstrip('.')}")
            field = model.model_fields.get(argument)
            if field is not None and field.description:
                hints.append(f"{argument}: {field.description}")
    if first == "command":
        hints.insert(
            0, 'Write command as a list of words: ["echo", "hi"]; for shell syntax: ["sh", "-c", "echo hi | wc"].'
        )
    return InvalidArgument("; ".join(lines) + ".", " ".join(dict.fromkeys(hints)), argument=first or "")


_OTHER_NAMES = {
    "cmd": "command", "args": "command", "timeout": "timeout_s", "tag": "tags", "path": "context_dir", "context": "context_dir",
    "environment": "env", "mem": "memory", "mem_limit": "memory", "cpu": "cpus", "cwd": "workdir", "working_dir": "workdir",
    "container_id": "container", "container_name": "name", "id": "sandbox_id", "buildargs": "build_args", "wait": "wait_s",
}  # fmt: skip
"""What callers call our arguments: words of docker's command line, of compose and of docker's SDKs."""


def _meant(argument: str, model: type[BaseModel]) -> str | None:
    names = [_OTHER_NAMES.get(argument, ""), *difflib.get_close_matches(argument, model.model_fields, 1)]
    return next((name for name in names if name in model.model_fields), None)


def tool(
    name: str,
    title: str,
    description: str,
    input_model: type[In],
    output_model: type[ToolOutput],
    *,
    read_only: bool = False,
    destructive: bool = False,
    idempotent: bool = False,
    open_world: bool = False,
    always_load: bool = False,
    scope: Scope | None = None,
) -> Callable[[Callable[[Call, In], Awaitable[ToolOutput]]], ManyoyoTool]:
    """Make a handler a tool. Four of the hints are MCP's annotations; `always_load` asks Claude Code to tell its model of
    the tool at once, where it would otherwise have to search for it. `scope`: read where it only reads, else run."""

    def make(handler: Callable[[Call, In], Awaitable[ToolOutput]]) -> ManyoyoTool:
        return ManyoyoTool(
            fn=handler,
            name=name,
            title=title,
            description=description.strip(),
            parameters=compact(input_model.model_json_schema()),
            fn_metadata=FuncMetadata(
                arg_model=input_model,
                output_model=output_model,
                output_schema=compact(output_model.model_json_schema(mode="serialization")),
            ),
            is_async=True,
            scope=scope or ("read" if read_only else "run"),
            context_kwarg="context",
            annotations=ToolAnnotations(
                read_only_hint=read_only,
                destructive_hint=destructive,
                idempotent_hint=idempotent,
                open_world_hint=open_world,
            ),
            meta={"anthropic/alwaysLoad": True} if always_load else None,
        )

    return make


def compact(schema: Any) -> Any:
    """A JSON schema without what a model does not need: generated titles, docstrings of ours, null alternatives (absent says the same), null
    defaults."""
    if isinstance(schema, list):
        return [compact(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "description" and "properties" in schema:  # what a class says of itself, to us
            continue
        if key == "$defs":
            undescribed = {name: {k: v for k, v in each.items() if k != "description"} for name, each in value.items()}
            result[key] = {name: compact(each) for name, each in undescribed.items()}
            continue
        if key == "default" and value in (None, [], {}):
            continue
        if key == "properties":
            result[key] = {name: compact(each) for name, each in value.items()}
            continue
        result[key] = compact(value)
    options = result.get("anyOf")
    if isinstance(options, list):
        real = [option for option in options if option != {"type": "null"}]
        if len(real) == 1:
            del result["anyOf"]
            result = {**real[0], **result}
        else:
            result["anyOf"] = real
    return result
