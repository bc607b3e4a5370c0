"""What is done in a sandbox: runs, execs and builds as jobs, services, and questions to its engine."""

import shlex
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import anyio.from_thread
from anyio.lowlevel import current_token

from manyoyo_mcp.engines.base import BuildSpec, Built, Ended, ExecSpec, Login, RunSpec, Sink, Step
from manyoyo_mcp.errors import DiskFull, EngineUnreachable, SandboxError
from manyoyo_mcp.hosts.base import LABEL, Host
from manyoyo_mcp.redaction import Redacted, Redactor
from manyoyo_mcp.sessions import room
from manyoyo_mcp.sessions.identity import Identity
from manyoyo_mcp.sessions.jobs import Job, Jobs, Kind
from manyoyo_mcp.sessions.sandbox import KEEPS, Sandbox
from manyoyo_mcp.values import Caps

T = TypeVar("T")


class Work:
    """A session's work in its sandboxes. The containers of its runs are labelled with its server, so that they are known when
    that has died. `gone` is told of a sandbox whose outer container turns out to have been removed; what `redactor` answers with
    keeps secrets out of logs and outputs; `login` has what pulls are sent with."""

    def __init__(
        self,
        host: Host,
        jobs: Jobs,
        identity: Identity,
        gone: Callable[[Sandbox], None],
        redactor: Callable[[], Redactor],
        login: Login,
    ) -> None:
        self._host = host
        self.login = login
        self._redactor = redactor
        self._labels = {LABEL + key: value for key, value in identity.labels().items() if key.startswith("server-")}
        self._jobs = jobs
        self._gone = gone

    def run(self, sandbox: Sandbox, spec: RunSpec) -> Job:
        """A nested run as a job; its result is an `Ended`."""
        title = f"run {spec.image} {shlex.join(spec.command)[:60]}"
        spec = replace(spec, labels=self._labels, login=self.login)

        async def work(job: Job, sink: Sink) -> Ended:
            return self._without_secrets(await sandbox.engine.run(spec, sink))

        return self._job("run", sandbox, title, work)

    def exec(self, sandbox: Sandbox, spec: ExecSpec) -> Job:
        """A command in a nested container as a job; its result is an `Ended`."""
        title = f"exec {spec.container[:20]} {shlex.join(spec.command)[:60]}"
        return self._job("exec", sandbox, title, lambda job, sink: sandbox.engine.exec(spec, sink))

    def build(self, sandbox: Sandbox, spec: BuildSpec) -> Job:
        """A nested build as a job; its result is a `Built`. Steps are reported as progress."""
        spec = replace(spec, labels=self._labels, login=self.login)

        async def work(job: Job, sink: Sink) -> Built:
            token = current_token()

            def on_step(step: Step) -> None:
                words = f"step {step.number}/{step.total}: {step.instruction[:100]}"
                anyio.from_thread.run_sync(job.report, step.number - 1, step.total, words, token=token)

            return await sandbox.engine.build(spec, sink, on_step)

        return self._job("build", sandbox, f"build {' '.join(spec.tags) or spec.build_id}", work)

    def _job(self, kind: Kind, sandbox: Sandbox, title: str, work: Callable[[Job, Sink], Awaitable[Any]]) -> Job:
        async def explained(job: Job) -> Any:
            sink = Redacted(job.log.write, self._redactor)
            try:
                return await room.explain(
                    sandbox, await self.ask(sandbox, lambda: work(job, sink)), stays=kind == "exec"
                )
            finally:
                sink.end()

        return self._jobs.start(kind, sandbox.sandbox_id, title, explained)

    def _without_secrets(self, ended: Ended) -> Ended:
        redactor = self._redactor()
        if not redactor or not ended.outputs:
            return ended
        kept = []
        for file in ended.outputs:
            cleaned = redactor.clean(file.content or b"")
            changed = file.content is not None and cleaned != file.content
            kept.append(replace(file, content=cleaned, note="secrets were taken out of it") if changed else file)
        return replace(ended, outputs=kept)

    async def start_detached(self, sandbox: Sandbox, spec: RunSpec, *, keep_alive: bool = False) -> str:
        """Start a service in the sandbox; its container's id. `keep_alive`: while it runs, idleness ends no sandbox."""
        no_run = dict.fromkeys(self._labels, "")  # else its image could have it taken for one
        spec = replace(spec, labels=no_run | {LABEL + KEEPS: "yes" if keep_alive else ""}, login=self.login)
        container = await self.ask(sandbox, lambda: sandbox.engine.start(spec))
        if keep_alive:
            sandbox.keeps = True
        return container

    async def ask(self, sandbox: Sandbox, question: Callable[[], Awaitable[T]]) -> T:
        """Ask a sandbox's engine; its silence is explained, and so is a full disk."""
        try:
            return await question()
        except EngineUnreachable as error:
            raise await self._explain_silence(sandbox, error) from error
        except DiskFull as error:
            raise await room.explained(sandbox, error) from error

    def caps(self, sandbox: Sandbox, cpus: float | None, memory: int | None, pids: int | None) -> Caps:
        """The caps of a run or build: what is asked for, the sandbox's default for the rest. The policy checks them."""
        default = sandbox.limits.default
        return Caps(cpus or default.cpus, memory or default.memory, pids or default.pids)

    async def _explain_silence(self, sandbox: Sandbox, error: EngineUnreachable) -> SandboxError:
        """Why a sandbox's engine does not answer: its outer container is gone, stopped, or its engine is being restarted."""
        now = await self._host.inspect(sandbox.outer)
        if now is None:
            self._gone(sandbox)
            return EngineUnreachable(
                f"The sandbox {sandbox.sandbox_id} is gone: its outer container was removed.", _next(sandbox)
            )
        if not now.running:
            words = await self._host.last_words(sandbox.outer, 5)
            return EngineUnreachable(
                f"The sandbox {sandbox.sandbox_id} has stopped. Its last words: {words}", _next(sandbox, stopped=True)
            )
        return error


def _next(sandbox: Sandbox, *, stopped: bool = False) -> str:
    """What to do about a sandbox that runs no longer. Nobody with a named one is sent to what would remove its data."""
    if sandbox.name is not None:
        return (
            f"start_sandbox with name={sandbox.name!r} starts it again; unless it was removed, with all that it held."
        )
    return "cleanup removes it; start_sandbox starts a new one." if stopped else "start_sandbox starts a new one."
