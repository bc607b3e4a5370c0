"""The sandboxes of one session: start, find, grow, clean up. Lives as long as the server; every task of it ends with it."""

import contextlib
import logging
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.from_thread
from anyio.abc import TaskGroup
from anyio.lowlevel import current_token

from manyoyo_mcp.config import EngineName, Settings
from manyoyo_mcp.engines.base import BuildSpec, Built, ExecSpec, RunSpec, Step
from manyoyo_mcp.errors import (
    CapExceeded,
    CapsUnenforced,
    EngineUnreachable,
    InvalidArgument,
    NotFound,
    SandboxAmbiguous,
    SandboxError,
)
from manyoyo_mcp.hosts import lease
from manyoyo_mcp.hosts.base import Host, HostInfo, Outer, OuterSpec
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.image import bases
from manyoyo_mcp.image import outer as outer_image
from manyoyo_mcp.image.outer import Progress, no_progress
from manyoyo_mcp.policy.rules import Limits
from manyoyo_mcp.sessions import reaper, sweep, trust
from manyoyo_mcp.sessions.identity import Identity
from manyoyo_mcp.sessions.jobs import Job, Jobs, Kind
from manyoyo_mcp.sessions.probe import Evidence, Remembered, judge
from manyoyo_mcp.sessions.sandbox import Sandbox, join, nested_default
from manyoyo_mcp.values import Caps, docker_size
from manyoyo_mcp.workers import in_thread

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Manager:
    """Joins hosts and engines; the tools ask it for everything. Made by `open_manager`."""

    def __init__(self, settings: Settings, host: Host, group: TaskGroup) -> None:
        self.settings = settings
        self.host = host
        self.identity = Identity()
        self.directory = sweep.claim(settings, self.identity)
        self.jobs = Jobs(group, self.directory / "logs", settings.log_max_bytes)
        self._group = group
        self._sandboxes: dict[str, Sandbox] = {}
        self._held: dict[str, Outer] = {}  # those whose lease is kept: from their first moment to their last
        group.start_soon(lease.keep, host, self._held.values, settings.lease_s)
        self._first = anyio.Lock()  # of those who come at once and find no sandbox, one starts it
        self._starting = 0
        self._start_ended = anyio.Event()
        self._probes = Remembered(settings.state_dir / "probes.json")
        self._reaper: subprocess.Popen[bytes] | None = None

    # -- which one

    def sandboxes(self) -> list[Sandbox]:
        return list(self._sandboxes.values())

    def get(self, sandbox_id: str | None) -> Sandbox:
        """The sandbox that is meant: the one named, else this session's only one.

        Raises NotFound (SANDBOX_NOT_FOUND) or SandboxAmbiguous, each listing what there is.
        """
        ids = ", ".join(self._sandboxes) or "none"
        if sandbox_id is not None:
            if sandbox_id not in self._sandboxes:
                raise NotFound(
                    f"There is no sandbox {sandbox_id[:60]!r}.",
                    f"This session's sandboxes: {ids}. start_sandbox starts one.",
                    code="SANDBOX_NOT_FOUND",
                )
            return self._sandboxes[sandbox_id]
        if not self._sandboxes:
            raise NotFound("This session has no sandbox.", "start_sandbox starts one.", code="SANDBOX_NOT_FOUND")
        if len(self._sandboxes) > 1:
            raise SandboxAmbiguous(
                f"This session has {len(self._sandboxes)} sandboxes.", f"Say which with sandbox_id: {ids}."
            )
        return next(iter(self._sandboxes.values()))

    async def get_or_start(self, sandbox_id: str | None, progress: Progress = no_progress) -> tuple[Sandbox, bool]:
        """The sandbox that is meant, started with the defaults where this session has none; and whether it was."""
        if sandbox_id is None and not self._sandboxes:
            async with self._first:
                while self._starting and not self._sandboxes:
                    await self._start_ended.wait()
                if not self._sandboxes:
                    return await self._start(None, None, None, None, progress), True
        return self.get(sandbox_id), False

    # -- starting and growing

    async def start(
        self,
        engine: EngineName | None = None,
        cpus: float | None = None,
        memory: int | None = None,
        pids: int | None = None,
        progress: Progress = no_progress,
    ) -> Sandbox:
        """Start a new sandbox. Raises CapExceeded, HostUnavailable, ImageUnavailable, EngineFailed, CapsUnenforced."""
        self._starting += 1
        try:
            return await self._start(engine, cpus, memory, pids, progress)
        finally:
            self._starting -= 1
            self._start_ended.set()
            self._start_ended = anyio.Event()

    async def _start(
        self, engine: EngineName | None, cpus: float | None, memory: int | None, pids: int | None, progress: Progress
    ) -> Sandbox:
        begun = time.monotonic()
        engine = engine or self.settings.engine
        info = await self.host.info()
        caps = self._sandbox_caps(info, cpus, memory, pids)
        image = await outer_image.ensure(self.host, self.settings, progress)
        storage = await self.host.storage(image)
        disk = self.settings.sandbox_disk if storage.kind == "pool" else None
        progress(0, None, f"starting a {engine} sandbox ({caps.describe()})")
        self._ensure_reaper()
        sandbox_id = f"sb-{secrets.token_hex(8)}"
        created = await self.host.create(
            OuterSpec(
                sandbox_id=sandbox_id,
                image=image,
                engine=engine,
                caps=caps,
                build_pids=min(self.settings.nested_pids, caps.pids),
                lease=self.settings.lease_s,
                disk=disk,
                labels={**self.identity.labels(), "sandbox": sandbox_id, "kind": "sandbox", "engine": engine},
                files=trust.files(self.settings),
                bases_volume=await bases.volume(self.host, self.settings, engine),
            )
        )
        self._held[sandbox_id] = created
        try:
            sandbox = await self._join(created, begun)
            sandbox.evidence = await self._prove(sandbox, info, image, progress)
        except BaseException:
            del self._held[sandbox_id]
            with anyio.CancelScope(shield=True), contextlib.suppress(SandboxError):
                await self.host.remove(created)
            raise
        self._sandboxes[sandbox_id] = sandbox
        return sandbox

    async def _join(self, created: Outer, begun: float) -> Sandbox:
        transport, dial = await self.host.dialer(created)
        limits = Limits(self._nested_default(created.caps), created.caps)
        sandbox = join(self.host, created, transport, dial, limits, self._spawn, 0)
        await sandbox.engine.ping()
        sandbox.start_seconds = round(time.monotonic() - begun, 3)
        return sandbox

    def _nested_default(self, caps: Caps) -> Caps:
        return nested_default(caps, self.settings.nested_cpus, self.settings.nested_memory, self.settings.nested_pids)

    def _sandbox_caps(self, info: HostInfo, cpus: float | None, memory: int | None, pids: int | None) -> Caps:
        most_cpus = self.settings.max_sandbox_cpus or float(info.cpus)
        most_memory = self.settings.max_sandbox_memory or info.memory
        _check("cpus", cpus, most_cpus, "{:g}".format)
        _check("memory", memory, most_memory, lambda size: docker_size(int(size) >> 20 << 20))
        _check("pids_limit", pids, 1 << 22, str)
        return Caps(
            cpus=cpus or min(self.settings.sandbox_cpus or min(info.cpus / 2, 4.0), most_cpus),
            memory=memory or min(self.settings.sandbox_memory or min(info.memory // 2, 8 << 30), most_memory),
            pids=pids or self.settings.sandbox_pids,
        )

    async def grow(self, sandbox: Sandbox, cpus: float | None, memory: int | None, pids: int | None) -> Sandbox:
        """Give a live sandbox larger caps, in place. Raises CapExceeded above the maximum, InvalidArgument below what it has."""
        info = await self.host.info()
        old = sandbox.limits.largest
        new = self._sandbox_caps(info, cpus or old.cpus, memory or old.memory, pids or old.pids)
        if new.cpus < old.cpus or new.memory < old.memory or new.pids < old.pids:
            raise InvalidArgument(
                f"{sandbox.sandbox_id} has {old.describe()}; a live sandbox can grow, not shrink.",
                "Leave the smaller cap out, or start a new sandbox.",
            )
        sandbox.outer = await self.host.grow(sandbox.outer, new)
        sandbox.limits = Limits(self._nested_default(new), new)
        return sandbox

    async def _prove(self, sandbox: Sandbox, info: HostInfo, image: str, progress: Progress) -> Evidence:
        key = Remembered.key(info, image, sandbox.engine_name)
        evidence = self._probes.get(key)
        if evidence is None or not evidence.enforced:  # what did not bind may have been mended since
            progress(0, None, "first sandbox of this kind on this host: proving that caps bind")
            evidence = judge(await self.host.maintain(sandbox.outer, "probe", timeout=120))
            self._probes.put(key, evidence)
        if not evidence.enforced and not self.settings.allow_unenforced_caps:
            raise CapsUnenforced(
                f"Caps do not bind on this host: {evidence.words}.",
                "Mend the host's cgroups, try the other engine, or set MANYOYO_ALLOW_UNENFORCED_CAPS=1 to run without.",
            )
        return evidence

    # -- work

    def run(self, sandbox: Sandbox, spec: RunSpec) -> Job:
        """A nested run as a job; its result is an `Ended`."""
        title = f"run {spec.image} {shlex.join(spec.command)[:60]}"
        return self._job("run", sandbox, title, lambda job: sandbox.engine.run(spec, job.log.write))

    def exec(self, sandbox: Sandbox, spec: ExecSpec) -> Job:
        """A command in a nested container as a job; its result is an `Ended`."""
        title = f"exec {spec.container[:20]} {shlex.join(spec.command)[:60]}"
        return self._job("exec", sandbox, title, lambda job: sandbox.engine.exec(spec, job.log.write))

    def build(self, sandbox: Sandbox, spec: BuildSpec) -> Job:
        """A nested build as a job; its result is a `Built`. Steps are reported as progress."""

        async def work(job: Job) -> Built:
            token = current_token()

            def on_step(step: Step) -> None:
                words = f"step {step.number}/{step.total}: {step.instruction[:100]}"
                anyio.from_thread.run_sync(job.report, step.number - 1, step.total, words, token=token)

            return await sandbox.engine.build(spec, job.log.write, on_step)

        return self._job("build", sandbox, f"build {' '.join(spec.tags) or spec.build_id}", work)

    def _job(self, kind: Kind, sandbox: Sandbox, title: str, work: Callable[[Job], Awaitable[Any]]) -> Job:
        async def explained(job: Job) -> Any:
            try:
                return await work(job)
            except EngineUnreachable as error:
                raise await self.explain_silence(sandbox, error) from error

        return self.jobs.start(kind, sandbox.sandbox_id, title, explained)

    async def start_detached(self, sandbox: Sandbox, spec: RunSpec) -> str:
        """Start a service in the sandbox; its container's id."""
        return await self.ask(sandbox, lambda: sandbox.engine.start(spec))

    async def ask(self, sandbox: Sandbox, question: Callable[[], Awaitable[T]]) -> T:
        """Ask a sandbox's engine; its silence is explained."""
        try:
            return await question()
        except EngineUnreachable as error:
            raise await self.explain_silence(sandbox, error) from error

    def caps(self, sandbox: Sandbox, cpus: float | None, memory: int | None, pids: int | None) -> Caps:
        """The caps of a run or build: what is asked for, the sandbox's default for the rest. The policy checks them."""
        default = sandbox.limits.default
        return Caps(cpus or default.cpus, memory or default.memory, pids or default.pids)

    # -- life

    def _spawn(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        async def guarded() -> None:
            try:
                await work()
            except SandboxError:
                pass
            except Exception:  # work that nobody waits for ends no session
                _log.exception("%s failed", name)

        self._group.start_soon(guarded, name=name)

    def _ensure_reaper(self) -> None:
        if self._reaper is None or self._reaper.poll() is not None:
            self._reaper = reaper.spawn(self.identity.session)

    def _dismiss_reaper(self) -> None:
        """Nothing is left for it to wait for."""
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.wait()
            self._reaper = None

    async def alive(self, sandbox: Sandbox) -> Outer | None:
        """The outer container as it is now; None where it is gone or stopped."""
        now = await self.host.inspect(sandbox.outer)
        return now if now is not None and now.running else None

    async def explain_silence(self, sandbox: Sandbox, error: EngineUnreachable) -> SandboxError:
        """Why a sandbox's engine does not answer: its outer container is gone, stopped, or its engine is being restarted."""
        now = await self.host.inspect(sandbox.outer)
        if now is None:
            self._sandboxes.pop(sandbox.sandbox_id, None)
            self._held.pop(sandbox.sandbox_id, None)
            return EngineUnreachable(
                f"The sandbox {sandbox.sandbox_id} is gone: its outer container was removed.",
                "start_sandbox starts a new one.",
            )
        if not now.running:
            words = await self.host.last_words(sandbox.outer, 5)
            return EngineUnreachable(
                f"The sandbox {sandbox.sandbox_id} has stopped. Its last words: {words}",
                "cleanup removes it; start_sandbox starts a new one.",
            )
        return error

    async def remove(self, sandbox: Sandbox) -> int:
        """End a sandbox: its jobs, its nested containers, its store. Idempotent. Bytes freed, where known."""
        async with anyio.create_task_group() as group:
            for job in self.jobs.of(sandbox.sandbox_id):
                if job.state == "running":
                    group.start_soon(job.cancel)
        freed = await self.host.remove(sandbox.outer)
        await in_thread(sandbox.engine.close)
        self._sandboxes.pop(sandbox.sandbox_id, None)
        self._held.pop(sandbox.sandbox_id, None)
        return freed

    async def remove_all(self) -> list[str]:
        """Remove every sandbox of this session; their ids."""
        removed = []
        for sandbox in self.sandboxes():
            await self.remove(sandbox)
            removed.append(sandbox.sandbox_id)
        return removed

    async def remove_by_id(self, sandbox_id: str) -> list[str]:
        """Remove one sandbox of this owner, of whichever session; nothing where there is none. The ids removed."""
        if sandbox_id in self._sandboxes:
            await self.remove(self._sandboxes[sandbox_id])
            return [sandbox_id]
        found = await self.host.find({"owner": self.identity.owner}, sandbox_id, remains=True)
        for outer in found:
            await self.host.remove(outer)
        return [outer.sandbox_id for outer in found]

    async def remove_others(self) -> list[str]:
        """Remove this owner's sandboxes of other sessions, live ones too; their ids."""
        found = await self.others()
        for outer in found:
            await self.host.remove(outer)
        return [outer.sandbox_id for outer in found]

    async def counters(self, sandbox: Sandbox) -> dict[str, int]:
        """What the sandbox uses, from its cgroups and its store: `memory_used`, `pids_used`, `disk_free`, … in bytes or counts."""
        completed = await self.host.maintain(sandbox.outer, "counters")
        pairs = (line.split("=", 1) for line in completed.output.splitlines() if "=" in line)
        return {key: int(value) for key, value in pairs if value.isdigit()}

    async def others(self) -> list[Outer]:
        """This owner's sandboxes that belong to other sessions."""
        found = await self.host.find({"owner": self.identity.owner, "kind": "sandbox"})
        return [outer for outer in found if outer.labels.get("session") != self.identity.session]

    async def adopt(self, found: Outer) -> Sandbox:
        """Use a sandbox of this owner that another session started; for the command line. It stays that session's: this
        one neither counts it as its own nor removes it."""
        return await self._join(replace(found), time.monotonic())


def _check(name: str, asked: Any, most: float, shown: Callable[[Any], str]) -> None:
    if asked is not None and asked > most:
        raise CapExceeded(
            f"{name}={shown(asked)} is more than a sandbox may have here: the most is {shown(most)}.",
            f"Ask for at most {shown(most)}; beyond the host's own it takes another host, below it the operator can raise it "
            "(MANYOYO_MAX_SANDBOX_CPUS, MANYOYO_MAX_SANDBOX_MEMORY).",
            cap=name,
            maximum=most,
        )


@contextlib.asynccontextmanager
async def open_manager(settings: Settings | None = None, *, sweep_first: bool = True) -> AsyncIterator[Manager]:
    """A manager for one session. On leaving, jobs are cancelled and this session's sandboxes removed.

    What is raised in the body comes out as it is, not in a group.
    """
    settings = settings or Settings()
    raised: Exception | None = None
    async with open_host(settings) as host, anyio.create_task_group() as group:
        manager = Manager(settings, host, group)
        if sweep_first:
            manager._spawn("sweep", partial(sweep.sweep, host, settings))
        try:
            yield manager
        except Exception as error:
            raised = error
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(20):
                for job in manager.jobs.running():
                    await job.cancel()
                with contextlib.suppress(SandboxError):
                    await manager.remove_all()
                    manager._dismiss_reaper()
                shutil.rmtree(manager.directory, ignore_errors=True)
            group.cancel_scope.cancel()
    if raised is not None:
        raise raised
