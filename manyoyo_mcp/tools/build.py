"""nested_build."""

import secrets
from functools import partial
from typing import Literal

from pydantic import BaseModel, Field

from manyoyo_mcp.engines.base import BuildSpec, Built, Step
from manyoyo_mcp.errors import NotSupported, Reason
from manyoyo_mcp.sessions import context
from manyoyo_mcp.sessions.jobs import Job
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import (
    CapArguments,
    Env,
    Files,
    Image,
    Text,
    decode_files,
    follow,
    log_uri,
    log_view,
    raise_failure,
)
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import in_thread

_SHOWN_STEPS = 25


class BuildInput(CapArguments):
    context_dir: Text | None = Field(
        None,
        description='Directory on the user\'s machine; default: the project (".") unless files are given. Honours .dockerignore.',
    )
    files: Files = Field(
        default_factory=dict,
        description='Context files: path → text or {"base64": …}; laid over context_dir where both are given.',
    )
    dockerfile: Text = Field("Dockerfile", description="Path of the Dockerfile in the context.")
    tags: list[Image] = Field(default_factory=list, max_length=10, description='Names, e.g. ["localhost/app:1"].')
    target: Text | None = Field(None, description="Stage to stop at.")
    build_args: Env = Field(default_factory=dict, description="Values for ARG.")
    secrets: list[Text] = Field(default_factory=list, description="Secrets for RUN --mount=type=secret,id=NAME.")
    no_cache: bool = Field(False, description="Run every step again.")
    pull: bool = Field(False, description="Fetch newer base images.")
    network: Literal["default", "none"] = Field("default", description="Network of RUN steps.")
    platform: Text | None = Field(None, description='e.g. "linux/arm64"; where the host can run it.')
    builder: Literal["engine", "daemonless"] = Field(
        "engine", description="daemonless: buildah in an unprivileged nested container; no cache, no secrets."
    )
    timeout_s: float | None = Field(None, gt=0, le=86400, description="Stop it after so many seconds.")
    wait_s: float | None = Field(None, ge=0, le=3600, description="Seconds until it goes on as a job; default 40.")
    max_tokens: int | None = Field(None, ge=200, le=50000, description="Longest result; default 2000.")


class StepOut(BaseModel):
    step: str
    instruction: str
    seconds: float | None = None
    cached: bool = False
    line: int | None = None

    @classmethod
    def of(cls, step: Step) -> "StepOut":
        stage = f"stage {step.stage} " if step.stage is not None else ""
        return cls(
            step=f"{stage}{step.number}/{step.total}",
            instruction=sanitise(step.instruction)[:120],
            seconds=step.seconds,
            cached=step.cached,
            line=step.line,
        )

    def describe(self) -> str:
        how = "cached" if self.cached else f"{self.seconds:.1f} s" if self.seconds is not None else "running"
        return f"  {self.step} {self.instruction[:90]} ({how})"


class BuildOutput(ToolOutput):
    sandbox_id: str
    state: Literal["finished", "running", "cancelled"]
    reason: Reason | None = None
    seconds: float
    image_id: str | None = None
    tags: list[str] | None = None
    size_bytes: int | None = None
    steps: list[StepOut] = Field(default_factory=list)
    cache_hits: int = 0
    failed_step: StepOut | None = None
    exit_code: int | None = None
    error: str | None = Field(None, description="The engine's message.")
    cause_code: str | None = Field(None, description="A known cause's stable code.")
    cause: str | None = Field(None, description="Why it failed, where that is known.")
    mend: str | None = Field(None, description="What to do about it.")
    evidence: str | None = None
    output: str = Field("", description="The build's log, untrusted, fenced.")
    omitted_bytes: int = 0
    job_id: str
    log: str
    next: str | None = Field(None, description="Which tool goes on from here.")
    sandbox_started: bool | None = Field(None, description="This call started the sandbox.")

    def words(self) -> str:
        lines = [f"Started sandbox {self.sandbox_id} with the defaults."] if self.sandbox_started else []
        match self.state:
            case "running":
                lines.append(f"Still building after {self.seconds:.0f} s, as job {self.job_id}.")
            case "cancelled":
                lines.append(f"Cancelled after {self.seconds:.1f} s.")
            case _ if self.reason is Reason.OK:
                lines.append(
                    f"Built {', '.join(self.tags or []) or self.image_id} in {self.seconds:.1f} s: {self.image_id}, "
                    f"{format_bytes(self.size_bytes or 0)}, {self.cache_hits} of {len(self.steps)} steps from the cache."
                )
            case _:
                lines.append(f"{self.reason} after {self.seconds:.1f} s.")
                if self.failed_step is not None:
                    where = f" (line {self.failed_step.line})" if self.failed_step.line else ""
                    code = f", exit code {self.exit_code}" if self.exit_code is not None else ""
                    lines.append(f"Step {self.failed_step.step}{where}: {self.failed_step.instruction}{code}")
                if self.error:
                    lines.append(f"Error: {self.error[:400]}")
                lines += [f"Cause: {self.cause}"] if self.cause else []
                lines += [f"What to do: {self.mend}"] if self.mend else []
        if self.reason is Reason.OK:
            lines += [step.describe() for step in self.steps[-_SHOWN_STEPS:]]
        elif self.output:
            lines.append(self.output)
        if self.omitted_bytes:
            lines.append(f"({self.omitted_bytes:,} bytes left out.)")
        lines += [f"Next: {self.next}"] if self.next else []
        return "\n".join(lines)

    def links(self) -> list[tuple[str, str]]:
        return [(self.log, f"log of {self.job_id}")]


@tool(
    "nested_build",
    "Build an image",
    """
Build an image inside the sandbox from a Dockerfile; memory and CPU caps bind on each RUN step. On failure returns the step, its line in
the Dockerfile, the exit code, the last lines and, where it is a known one, the cause and what to do. On success image id, size, seconds a step and
cache hits. A build longer than wait_s goes on as a job: job_status waits for it. Then use nested_run with the tag.
Where no registry is reachable, build FROM one of the base images that start_sandbox lists.
""",
    BuildInput,
    BuildOutput,
    open_world=True,
    scope="build",
    always_load=True,
)
async def nested_build(call: Call, arguments: BuildInput) -> ToolOutput:
    manager = call.manager
    settings = manager.settings
    directory = arguments.context_dir if arguments.context_dir is not None or arguments.files else "."
    files = decode_files(arguments.files)
    ready = await in_thread(context.prepare, settings, directory, files, arguments.dockerfile)
    manager.vault.check(arguments.secrets)
    sandbox, started = await call.sandbox(arguments.sandbox_id)
    daemonless = arguments.builder == "daemonless"
    if daemonless:
        _check_daemonless(arguments, sandbox.isolation)
    if arguments.secrets and not sandbox.engine.build_secrets:
        raise NotSupported(
            f"The builder of engine {sandbox.engine_name} knows no secrets.",
            'Build in a sandbox with engine="podman" (start_sandbox), or do what needs the secret in a nested_run with secrets.',
            code="BUILD_SECRETS_UNAVAILABLE",
        )
    spec = BuildSpec(
        context=ready.stream,
        dockerfile=ready.dockerfile,
        dockerfile_text=ready.dockerfile_text,
        build_id=secrets.token_hex(8),
        tags=arguments.tags,
        target=arguments.target,
        build_args=arguments.build_args,
        no_cache=arguments.no_cache,
        pull=arguments.pull,
        network=arguments.network,
        platform=arguments.platform,
        caps=manager.work.caps(sandbox, arguments.cpus, arguments.memory, None),
        timeout_s=arguments.timeout_s,
        secrets=list(dict.fromkeys(arguments.secrets)),
        values=partial(manager.vault.values, arguments.secrets),
        daemonless=daemonless,
    )
    job = manager.work.build(sandbox, spec)
    await follow(call, job, settings.wait_s if arguments.wait_s is None else arguments.wait_s)
    result = describe(job, arguments.max_tokens or settings.result_tokens)
    result.sandbox_started = started or None
    return result


def _check_daemonless(arguments: BuildInput, isolation: str) -> None:
    """Raise NotSupported for what can't be had without the engine's builder."""
    if arguments.secrets:
        raise NotSupported(
            "A daemonless build knows no secrets.",
            'Leave builder out in a sandbox with engine="podman", or do what needs the secret in a nested_run with secrets.',
            code="BUILD_SECRETS_UNAVAILABLE",
        )
    if isolation == "gvisor":
        raise NotSupported(
            "A daemonless build can't be had with isolation gvisor: buildah can't keep its layers there.",
            "Leave builder out: in this isolation every step runs in gVisor.",
            code="BUILDER_UNAVAILABLE",
        )


def describe(job: Job, max_tokens: int) -> BuildOutput:
    """A build as it stands. Raises what it raised."""
    raise_failure(job)
    built = job.result if isinstance(job.result, Built) else None
    ok = built is not None and built.reason is Reason.OK
    output, omitted = ("", 0) if ok else log_view(job, max(max_tokens - 700, 100))
    result = BuildOutput(
        sandbox_id=job.sandbox_id,
        state="running" if job.state == "running" else "cancelled" if job.state == "cancelled" else "finished",
        seconds=built.seconds if built else job.seconds,
        output=output,
        omitted_bytes=omitted,
        job_id=job.job_id,
        log=log_uri(job.job_id),
        next=_next(job, omitted, ok),
    )
    if job.state == "cancelled":
        result.reason = Reason.CANCELLED
    if built is not None:
        result.reason = built.reason
        result.image_id = built.image_id
        result.tags = built.tags or None
        result.size_bytes = built.size
        result.steps = [StepOut.of(step) for step in built.steps][-_SHOWN_STEPS:] if ok else []
        result.cache_hits = sum(step.cached for step in built.steps)
        result.failed_step = StepOut.of(built.failed_step) if built.failed_step else None
        result.exit_code = built.exit_code
        result.error = built.error.strip()[:600] or None
        result.cause_code, result.cause = built.cause_code or None, built.cause or None
        result.mend = built.mend or None
        result.evidence = built.evidence or None
    return result


def _next(job: Job, omitted: int, ok: bool) -> str | None:
    if job.state == "running":
        return f"It goes on as job {job.job_id}: job_status waits for it, job_cancel ends it."
    if ok:
        return "nested_run runs it."
    return f"read_log with job_id={job.job_id} shows the bytes left out (offset, or grep)." if omitted else None


TOOLS = [nested_build]
