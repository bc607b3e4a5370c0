"""nested_run, nested_exec."""

import base64
from contextlib import suppress
from functools import partial
from typing import Literal

import anyio
from pydantic import BaseModel, Field

from manyoyo_mcp.engines.base import Ended, ExecSpec, OutputFile, RunSpec
from manyoyo_mcp.errors import InvalidArgument, ManyoyoError, Reason
from manyoyo_mcp.sessions.jobs import Job
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import estimate_tokens, fence, sanitise, shorten
from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import (
    CapArguments,
    Command,
    Env,
    Files,
    Image,
    Name,
    Pids,
    SandboxArgument,
    Secrets,
    Text,
    Variables,
    absolute_path,
    decode_files,
    follow,
    log_uri,
    log_view,
    places_of,
    raise_failure,
    show,
)
from manyoyo_mcp.workers import in_thread

_AT_ONCE = 0.4
"""Seconds after which a service is looked at once more."""
_FRAME_TOKENS = 350
"""What a result's own fields take of its budget."""


class RunInput(CapArguments):
    image: Image = Field(description="Image in the sandbox, or one to pull.")
    command: Command = Field(
        default_factory=list, description='argv list, e.g. ["pytest", "-q"]; default: the image\'s own.'
    )
    entrypoint: Command | None = Field(None, description="Replaces the image's entrypoint.")
    env: Env = Field(default_factory=dict, description='Environment variables: {"NAME": "value"}.')
    secrets: Secrets = Field(
        default_factory=dict,
        description='Secrets by name (sandbox_status lists them): name → file ("": /run/secrets/NAME) or variable.',
    )
    stdin: str | None = Field(None, description="Text for standard input, which is then closed.")
    pids_limit: Pids = Field(None, description="Processes and threads; default 1024.")
    network: Text = Field("default", description='"default" (outgoing; services by their address), or "none".')
    workdir: Text | None = Field(None, description="Working directory.")
    user: Text | None = Field(None, description="User name or uid[:gid].")
    read_only: bool = Field(False, description="Root file system read-only.")
    cap_drop: list[Text] = Field(default_factory=list, description='Capabilities to drop, e.g. ["ALL"].')
    timeout_s: float | None = Field(None, gt=0, le=86400, description="Kill it after so many seconds.")
    detach: bool = Field(False, description="Start a service and return; it runs until nested_stop.")
    name: Name | None = Field(None, description="Container name, for detach.")
    keep_alive: bool = Field(False, description="With detach: the sandbox is not idle while this service runs.")
    docker_socket: bool = Field(False, description="Give it /var/run/docker.sock, of this sandbox.")
    files: Files = Field(
        default_factory=dict, description='Files to put in: path → text or {"base64": …}. Relative: to workdir.'
    )
    outputs: list[Text] = Field(
        default_factory=list, max_length=50, description="Paths to bring out when it has ended."
    )
    pull: Literal["missing", "never", "always"] = "missing"
    wait_s: float | None = Field(None, ge=0, le=3600, description="Seconds until it goes on as a job; default 40.")
    max_tokens: int | None = Field(None, ge=200, le=50000, description="Longest result; default 2000.")


class OutFile(BaseModel):
    path: str
    size: int | None = None
    text: str | None = Field(None, description="Untrusted, fenced.")
    base64: str | None = None
    note: str | None = None


class RunOutput(ToolOutput):
    sandbox_id: str
    state: Literal["finished", "running", "cancelled", "started"]
    reason: Reason | None = Field(None, description="Why it ended so; OK for exit code 0.")
    exit_code: int | None = None
    seconds: float
    explanation: str | None = None
    hint: str | None = None
    evidence: str | None = None
    output: str = Field("", description="stdout and stderr together, untrusted, fenced.")
    output_bytes: int = 0
    omitted_bytes: int = 0
    outputs: list[OutFile] | None = None
    container: str | None = Field(None, description="Container id, for a detached run.")
    address: str | None = Field(None, description="Its IP address in the sandbox, for a detached run.")
    job_id: str | None = None
    log: str | None = Field(None, description="URI of the whole output; read_log pages it.")
    next: str | None = Field(None, description="Which tool goes on from here.")
    sandbox_started: bool | None = Field(None, description="This call started the sandbox.")

    def words(self) -> str:
        lines = []
        if self.sandbox_started:
            lines.append(f"Started sandbox {self.sandbox_id} with the defaults.")
        match self.state:
            case "started":
                lines.append(f"Container {self.container} runs" + (f", at {self.address}." if self.address else "."))
            case "running":
                lines.append(f"Still running after {self.seconds:.0f} s, as job {self.job_id}.")
            case "cancelled":
                lines.append(f"Cancelled after {self.seconds:.1f} s.")
            case _:
                code = "" if self.exit_code is None else f", exit code {self.exit_code}"
                lines.append(f"{self.reason}{code}, {self.seconds:.2f} s.")
        lines += [part for part in (self.explanation, self.hint and f"What to do: {self.hint}") if part]
        if self.output:
            lines.append(self.output)
        if self.omitted_bytes:
            lines.append(f"({self.omitted_bytes:,} of {self.output_bytes:,} bytes left out.)")
        lines += [f"Next: {self.next}"] if self.next else []
        for file in self.outputs or []:
            what = f"{file.size} bytes" if file.note is None else file.note
            lines.append(f"{file.path}: {what}" + (f"\n{file.text}" if file.text is not None else ""))
        return "\n".join(lines)

    def links(self) -> list[tuple[str, str]]:
        return [(self.log, f"log of {self.job_id}")] if self.log and self.job_id else []


@tool(
    "nested_run",
    "Run a container",
    """
Run a command in a new container inside the sandbox, under CPU, memory and process caps, and return exit code, output and why it ended
(OOM_KILLED, TIMEOUT, PIDS_LIMIT … told apart by evidence). The container is removed afterwards; bring results out with outputs. A
run longer than wait_s goes on as a job: its job_id is returned, job_status waits for it. detach=true starts a service.
For a command in a container that runs already use nested_exec; to make an image, nested_build.
""",
    RunInput,
    RunOutput,
    open_world=True,
    always_load=True,
)
async def nested_run(call: Call, arguments: RunInput) -> ToolOutput:
    manager = call.manager
    workdir = arguments.workdir
    spec_files = {absolute_path(path, "files", workdir): data for path, data in decode_files(arguments.files).items()}
    outputs = [absolute_path(path, "outputs", workdir) for path in arguments.outputs]
    if arguments.detach and (outputs or arguments.stdin is not None or arguments.timeout_s):
        raise InvalidArgument(
            "A detached run has no outputs, stdin or timeout_s.",
            "Leave them out; later use nested_exec and nested_stop.",
        )
    if arguments.name and not arguments.detach:
        raise InvalidArgument(
            "Only a detached run keeps its container, so only it has a name.", "Set detach=true, or leave name out."
        )
    manager.vault.check(arguments.secrets)
    sandbox, started = await call.sandbox(arguments.sandbox_id)
    if arguments.docker_socket:
        manager.endpoints.open_inside(sandbox)
    spec = RunSpec(
        image=arguments.image,
        command=arguments.command,
        caps=manager.work.caps(sandbox, arguments.cpus, arguments.memory, arguments.pids_limit),
        entrypoint=arguments.entrypoint,
        env=arguments.env,
        stdin=arguments.stdin.encode() if arguments.stdin is not None else None,
        network=arguments.network,
        workdir=workdir,
        user=arguments.user,
        read_only=arguments.read_only,
        cap_drop=arguments.cap_drop,
        name=arguments.name,
        files=spec_files,
        outputs=outputs,
        timeout_s=arguments.timeout_s,
        pull=arguments.pull,
        docker_socket=arguments.docker_socket,
        secrets=places_of(arguments.secrets),
        values=partial(manager.vault.values, arguments.secrets),
    )
    if arguments.detach:
        return await _detached(call, sandbox, spec, arguments, started)
    job = manager.work.run(sandbox, spec)
    return await _finish(call, job, arguments.wait_s, arguments.max_tokens, started)


async def _detached(call: Call, sandbox: Sandbox, spec: RunSpec, arguments: RunInput, started: bool) -> RunOutput:
    """A service as it is a moment after its start: most that can't work end at once."""
    manager, engine = call.manager, sandbox.engine
    container = await manager.work.start_detached(sandbox, spec, keep_alive=arguments.keep_alive)
    result = RunOutput(
        sandbox_id=sandbox.sandbox_id, state="started", seconds=0, container=container[:12], sandbox_started=started or None,
        next="nested_logs shows its output, nested_exec runs a command in it, nested_stop ends it.",
    )  # fmt: skip
    try:
        await anyio.sleep(_AT_ONCE)
        with suppress(ManyoyoError):  # it was started, whatever can't be told of it now
            ended = await manager.work.ask(sandbox, lambda: engine.ended(container))
            if ended is None:
                rows = await manager.work.ask(sandbox, engine.containers)
                result.address = next((row.address for row in rows if row.container_id == container), "") or None
                if result.address:
                    result.next = f"{result.next} Other runs reach it by its address; names do not resolve."
                return result
            raw = manager.vault.redactor.clean(
                await manager.work.ask(sandbox, lambda: engine.logs(container, None, None))
            )
            _tell(result, ended)
            result.state, result.seconds, result.output_bytes = "finished", ended.seconds, len(raw)
            tokens = (arguments.max_tokens or manager.settings.result_tokens) - _FRAME_TOKENS
            result.output, result.omitted_bytes = await in_thread(show, raw, container[:12], tokens)
            result.next = (
                "The service ended at once; its container is kept: nested_stop starts it again or removes it (action), "
                "nested_logs shows all that it wrote."
            )
    except BaseException:  # whoever asked is told nothing any more, not even its name
        with anyio.CancelScope(shield=True), anyio.move_on_after(5), suppress(ManyoyoError):
            await engine.remove(container)
        raise
    return result


class ExecInput(SandboxArgument):
    container: Name = Field(description="Name or id of a nested container that runs.")
    command: Command = Field(min_length=1, description='argv list, e.g. ["cat", "/etc/hosts"].')
    env: Env = Field(default_factory=dict, description='Environment variables: {"NAME": "value"}.')
    secrets: Variables = Field(default_factory=dict, description="Secrets: name → variable.")
    stdin: str | None = Field(None, description="Text for standard input, which is then closed.")
    workdir: Text | None = Field(None, description="Working directory.")
    user: Text | None = Field(None, description="User name or uid[:gid].")
    timeout_s: float | None = Field(None, gt=0, le=86400, description="Kill it after so many seconds.")
    wait_s: float | None = Field(None, ge=0, le=3600, description="Seconds until it goes on as a job; default 40.")
    max_tokens: int | None = Field(None, ge=200, le=50000, description="Longest result; default 2000.")


@tool(
    "nested_exec",
    "Run a command in a running container",
    """
Run a command in a nested container that is running (a service started with nested_run detach=true): look at its files, query it,
try a fix. It shares that container's caps. Returns exit code, output and why it ended. For a fresh container use nested_run.
""",
    ExecInput,
    RunOutput,
    open_world=True,
)
async def nested_exec(call: Call, arguments: ExecInput) -> ToolOutput:
    vault = call.manager.vault
    vault.check(arguments.secrets)
    sandbox = call.manager.get(arguments.sandbox_id)
    spec = ExecSpec(
        container=arguments.container,
        command=arguments.command,
        env=arguments.env,
        stdin=arguments.stdin.encode() if arguments.stdin is not None else None,
        workdir=arguments.workdir,
        user=arguments.user,
        timeout_s=arguments.timeout_s,
        secrets=places_of(arguments.secrets),
        values=partial(vault.values, arguments.secrets),
    )
    job = call.manager.work.exec(sandbox, spec)
    return await _finish(call, job, arguments.wait_s, arguments.max_tokens, False)


async def _finish(call: Call, job: Job, wait_s: float | None, max_tokens: int | None, started: bool) -> RunOutput:
    settings = call.manager.settings
    await follow(call, job, settings.wait_s if wait_s is None else wait_s)
    result = describe(job, max_tokens or settings.result_tokens)
    result.sandbox_started = started or None
    return result


def describe(job: Job, max_tokens: int) -> RunOutput:
    """A run or exec as it stands: ended, cancelled, or still running. Raises what it raised."""
    raise_failure(job)
    ended = job.result if isinstance(job.result, Ended) else None
    budget = max_tokens - _FRAME_TOKENS
    files = [] if ended is None else [_out_file(file, budget // 2) for file in ended.outputs]
    budget -= sum(estimate_tokens((file.text or "") + (file.base64 or "")) for file in files)
    began = (
        ended is None or ended.reason is not Reason.COMMAND_NOT_FOUND or job.kind == "exec"
    )  # else nothing was written
    output, omitted = log_view(job, max(budget, 100)) if began else ("", 0)
    result = RunOutput(
        sandbox_id=job.sandbox_id,
        state="running" if job.state == "running" else "cancelled" if job.state == "cancelled" else "finished",
        seconds=ended.seconds if ended else job.seconds,
        output=output,
        output_bytes=job.log.size,
        omitted_bytes=omitted,
        job_id=job.job_id,
        log=log_uri(job.job_id),
        outputs=files or None,
        next=_next(job, omitted),
    )
    if job.state == "cancelled":
        result.reason = Reason.CANCELLED
    if ended is not None:
        _tell(result, ended)
    return result


def _tell(result: RunOutput, ended: Ended) -> None:
    """How it ended, as a part of a result."""
    result.reason = ended.reason
    result.exit_code = ended.exit_code
    result.explanation = sanitise(ended.explanation) or None if ended.reason is not Reason.EXIT_NONZERO else None
    result.hint = ended.hint or None
    result.evidence = ended.evidence or None


def _next(job: Job, omitted: int) -> str | None:
    if job.state == "running":
        return f"It goes on as job {job.job_id}: job_status waits for it, job_cancel ends it."
    return f"read_log with job_id={job.job_id} shows the bytes left out (offset, or grep)." if omitted else None


def _out_file(file: OutputFile, tokens: int) -> OutFile:
    if file.content is None:
        return OutFile(path=file.path, note=file.note)
    size = len(file.content)
    try:
        text = file.content.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" not in text:
        short, omitted = shorten(sanitise(text), tokens)
        return OutFile(
            path=file.path,
            size=size,
            text=fence(short, file.path),
            note="; ".join(each for each in (f"{omitted} bytes left out" if omitted else "", file.note) if each)
            or None,
        )
    encoded = base64.b64encode(file.content).decode()
    if estimate_tokens(encoded) > tokens:
        return OutFile(path=file.path, size=size, note="binary, too large for the result: raise max_tokens")
    return OutFile(path=file.path, size=size, base64=encoded, note=file.note or None)


TOOLS = [nested_run, nested_exec]
