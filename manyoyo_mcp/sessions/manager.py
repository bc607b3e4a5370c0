"""The sandboxes of one session: start, find, grow, clean up. Lives as long as the server; every task of it ends with it."""

import contextlib
import logging
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.from_thread
from anyio.abc import TaskGroup

from manyoyo_mcp.config import EngineName, Isolation, NetworkMode, Settings
from manyoyo_mcp.errors import NotSupported, SandboxError
from manyoyo_mcp.hosts import lease
from manyoyo_mcp.hosts.base import Host, Outer
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.hosts.isolation import ON_HOST, check_keeps, engine_of
from manyoyo_mcp.image.outer import Progress, no_progress
from manyoyo_mcp.sessions import endpoints, granting, reach, reaper, sweep
from manyoyo_mcp.sessions.approvals import Approvals
from manyoyo_mcp.sessions.endpoints import Endpoints
from manyoyo_mcp.sessions.handles import Handles, used
from manyoyo_mcp.sessions.identity import Identity, owner, principal_of
from manyoyo_mcp.sessions.jobs import Jobs
from manyoyo_mcp.sessions.keeping import Keeping, checkpoint_of, settled
from manyoyo_mcp.sessions.life import Life
from manyoyo_mcp.sessions.logins import Logins
from manyoyo_mcp.sessions.looks import Looks
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.sessions.starting import Starter, Wanted, check_same
from manyoyo_mcp.sessions.vault import Vault
from manyoyo_mcp.sessions.warm import Warm
from manyoyo_mcp.sessions.witness import job_over, open_journal
from manyoyo_mcp.sessions.work import Work
from manyoyo_mcp.workers import in_thread

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Manager:
    """Joins hosts and engines; the tools ask it for everything. Made by `open_manager`."""

    def __init__(
        self, settings: Settings, host: Host, group: TaskGroup, principal: str = "", *, explicit: bool = False
    ) -> None:
        self.settings = settings
        self.host = host
        self.principal = principal
        self.identity = Identity(owner(principal))
        self.directory = sweep.claim(settings, self.identity)
        self.journal = open_journal(settings, self.identity)
        self.approvals = Approvals(settings)
        self.vault = Vault(settings.secrets, principal)
        logins = Logins([] if principal else settings.registry_logins, self.vault.learn)
        self.jobs = Jobs(group, self.directory / "logs", settings.log_max_bytes, partial(job_over, self.journal))
        self._group = group
        self.looks: Looks[Any] = Looks(group)
        self.handles = Handles(explicit=explicit)
        self.sandboxes = self.handles.all
        self.get = self.handles.get
        self._held: dict[str, Outer] = {}  # those whose lease is kept: from their first moment to their last
        group.start_soon(lease.keep, host, self._held.values, settings.lease_s)
        self._first = anyio.Lock()  # of those who come at once and find no sandbox, one starts it
        self._starting = 0
        self._start_ended = anyio.Event()
        self.keeping = Keeping(settings, host, self.identity.owner)
        self.work = Work(host, self.jobs, self.identity, self._gone, self.vault.current, logins.header)
        self._starter = Starter(settings, host, self.identity, self._spawn, self._hold, self._let_go)
        self.grow = self._starter.grow
        self.endpoints = Endpoints(settings, host, self.identity.session, self._spawn, self.journal)
        self.life = Life(settings, host, self.jobs, self.sandboxes, self._end)
        group.start_soon(self.life.keep)
        self._reaper: subprocess.Popen[bytes] | None = None
        ahead = settings.warm if settings.isolation != "sock" else 0  # those are asked for
        self.warm = Warm(ahead, self._start_ahead, self.alive, self._discard)

    # -- which one

    async def get_or_start(self, sandbox_id: str | None, progress: Progress = no_progress) -> tuple[Sandbox, bool]:
        """The sandbox that is meant, started with the defaults where this session has none; and whether it was."""
        if sandbox_id is None and not self.sandboxes() and not self.handles.explicit:
            async with self._first:
                while self._starting and not self.sandboxes():
                    await self._start_ended.wait()
                if not self.sandboxes():
                    return await self._start(Wanted(), progress), True
        return self.get(sandbox_id), False

    # -- starting and growing

    async def start(
        self,
        engine: EngineName | None = None,
        cpus: float | None = None,
        memory: int | None = None,
        pids: int | None = None,
        progress: Progress = no_progress,
        *,
        disk: int | None = None,
        name: str | None = None,
        from_checkpoint: str | None = None,
        wait_s: float = 0,
        isolation: Isolation | None = None,
        network_policy: NetworkMode | None = None,
        network_allow: Sequence[str] | None = None,
        approved: bool = False,
    ) -> Sandbox:
        """Start a new sandbox, or the one of that name, which may be there and even run already. `approved`: a network policy that goes
        beyond what is configured was.

        Raises InvalidArgument, NotFound (CHECKPOINT_NOT_FOUND), CapExceeded, PolicyRefused, BudgetExceeded, NotSupported
        (DISK_CAP_UNAVAILABLE, ISOLATION_UNAVAILABLE), HostUnavailable, ImageUnavailable, EngineFailed, CapsUnenforced, EgressUnenforced.
        """
        network = await reach.granted(self.settings, self.host, network_policy, network_allow, approved=approved)
        origin = None
        if from_checkpoint is not None:
            origin = await checkpoint_of(self.host, self.identity.owner, from_checkpoint)
        sandbox = await self._counted(
            Wanted(engine, cpus, memory, pids, disk, name, origin, wait_s, isolation, network), progress
        )
        if sandbox.resumed == "running" and (cpus, memory, pids, disk) != (None, None, None, None):
            await self.grow(
                sandbox, cpus, memory, pids, disk
            )  # what was asked for is granted, or refused with the reason
        if network not in (None, sandbox.network):
            await self._starter.networks.set(sandbox, network)
        return sandbox

    async def change_network(
        self,
        sandbox: Sandbox,
        network_policy: NetworkMode | None,
        network_allow: Sequence[str] | None,
        *,
        approved: bool = False,
    ) -> None:
        """Another network policy for a live sandbox. `approved` as with `start`. Raises InvalidArgument, PolicyRefused, EgressUnenforced."""
        network = await reach.granted(self.settings, self.host, network_policy, network_allow, approved=approved)
        if network is not None:
            if sandbox.isolation in ON_HOST:
                raise NotSupported(
                    f"A live sandbox with isolation {sandbox.isolation} keeps its network policy.",
                    "Start another with the one that is wanted.",
                    code="NETWORK_POLICY_UNAVAILABLE",
                )
            await self._starter.networks.set(sandbox, network)

    async def _counted(self, wanted: Wanted, progress: Progress) -> Sandbox:
        self._starting += 1
        try:
            return await self._start(wanted, progress)
        finally:
            self._starting -= 1
            self._start_ended.set()
            self._start_ended = anyio.Event()

    async def _start(self, wanted: Wanted, progress: Progress) -> Sandbox:
        for sandbox in self.sandboxes():
            if wanted.name is not None and sandbox.name == wanted.name and await self.alive(sandbox):
                check_same(wanted, sandbox.engine_name, sandbox.isolation)
                sandbox.resumed = "running"
                return used(sandbox)
        self._ensure_reaper()
        sandbox = await self._from_warm(wanted) or await self._starter.start(wanted, progress)
        self.handles.add(sandbox)
        return sandbox

    async def _start_ahead(self) -> Sandbox:
        self._ensure_reaper()
        return await self._starter.start(Wanted(), no_progress)

    async def _from_warm(self, wanted: Wanted) -> Sandbox | None:
        """One that was made ahead, with the caps that are wanted; None where there is none of that kind."""
        ahead = engine_of(self.settings.isolation, self.settings)
        if wanted.name is not None or wanted.origin is not None or wanted.engine not in (None, ahead):
            return None
        if wanted.isolation not in (None, self.settings.isolation):
            return None
        if self.settings.isolation in ON_HOST and (wanted.network or wanted.disk) is not None:
            return None
        begun = time.monotonic()
        caps = granting.caps(self.settings, await self.host.info(), wanted.cpus, wanted.memory, wanted.pids)
        sandbox = await self.warm.claim()
        if sandbox is None:
            return None
        try:
            if caps != sandbox.limits.largest or wanted.disk not in (None, sandbox.disk):
                await self._starter.recap(sandbox, caps, wanted.disk)
            if wanted.network is not None and wanted.network != sandbox.network:
                await self._starter.networks.set(sandbox, wanted.network)
        except BaseException:
            await self._discard(sandbox)
            raise
        sandbox.begun = sandbox.used = time.monotonic()
        sandbox.started = time.time()
        sandbox.start_seconds = round(time.monotonic() - begun, 3)
        return sandbox

    async def fork(self, sandbox: Sandbox, count: int, progress: Progress = no_progress) -> list[Sandbox]:
        """New sandboxes that begin as this one is now, with its caps. All of them, or none where one can't be had."""
        check_keeps(sandbox.isolation, "A fork")
        forks: list[Sandbox] = []
        store = await self.keeping.store_of(sandbox)
        await settled(sandbox)
        caps = sandbox.limits.largest
        wanted = Wanted(
            None,
            caps.cpus,
            caps.memory,
            caps.pids,
            sandbox.disk,
            None,
            store,
            isolation=sandbox.isolation,
            network=sandbox.network,
        )
        try:
            for number in range(count):
                progress(number, count, f"fork {number + 1} of {count}")
                forks.append(await self._counted(wanted, no_progress))
        except BaseException:
            with anyio.CancelScope(shield=True):
                for fork in forks:
                    with contextlib.suppress(SandboxError):
                        await self.remove(fork)
            raise
        return forks

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

    def _gone(self, sandbox: Sandbox) -> None:
        self.handles.drop(sandbox)
        self._let_go(sandbox.outer)

    def _hold(self, outer: Outer) -> None:
        self._held[outer.sandbox_id] = outer

    def _let_go(self, outer: Outer) -> None:
        self._held.pop(outer.sandbox_id, None)
        self.endpoints.close(outer.sandbox_id)
        self._starter.forget(outer)

    def _ensure_reaper(self) -> None:
        if self._reaper is None or self._reaper.poll() is not None:
            self._reaper = reaper.spawn(self.identity.session, principal_of(self.identity.owner))

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

    async def _end(self, sandbox: Sandbox, why: str) -> None:
        """Its time is over. One with a name is let go: if nobody else holds it, it stops by its lease."""
        self.handles.end(sandbox, why)  # first: who asks meanwhile is told why
        if sandbox.name is not None:
            await self._cancel_jobs(sandbox)  # it runs until its lease ends, and nobody would hear of them
            self._let_go(sandbox.outer)
            await in_thread(sandbox.engine.close)
            return
        try:
            await self.remove(sandbox)
        except Exception:  # the next look tries again
            _log.warning("%s could not be ended", sandbox.sandbox_id)
            self.handles.add(sandbox)

    async def remove(self, sandbox: Sandbox, *, keep_store: bool = False) -> int:
        """End a sandbox: its jobs, its nested containers, and, but for `keep_store`, all that it holds. Idempotent. Bytes
        freed, where known."""
        await self._cancel_jobs(sandbox)
        async with self.keeping.locked(sandbox.sandbox_id) if sandbox.name else contextlib.nullcontext():
            if keep_store:
                await self.host.maintain(sandbox.outer, "stop-all", timeout=30)
            freed = await self.host.remove(sandbox.outer, keep_store=keep_store)
        await in_thread(sandbox.engine.close)
        self.handles.drop(sandbox)
        self._let_go(sandbox.outer)
        return freed

    async def _cancel_jobs(self, sandbox: Sandbox) -> None:
        async with anyio.create_task_group() as group:
            for job in self.jobs.of(sandbox.sandbox_id):
                if job.state == "running":
                    group.start_soon(job.cancel)

    async def _discard(self, sandbox: Sandbox) -> None:
        """Remove one that nobody has yet; where that can't be done its lease ends it."""
        with anyio.CancelScope(shield=True):
            try:
                await self.remove(sandbox)
            except SandboxError:
                self._let_go(sandbox.outer)

    async def remove_all(self) -> dict[str, int]:
        """Remove every sandbox of this session but the named ones; their ids, with the bytes that each freed."""
        return {each.sandbox_id: await self.remove(each) for each in self.sandboxes() if each.name is None}

    async def remove_by_id(self, sandbox_id: str, *, keep_store: bool = False) -> dict[str, int]:
        """Remove one sandbox of this owner, of whichever session, by its id or name; nothing where there is none. The ids
        removed, with the bytes that each freed."""
        sandbox_id = self.keeping.id_of(sandbox_id)
        if sandbox_id in self.handles:
            return {sandbox_id: await self.remove(self.get(sandbox_id), keep_store=keep_store)}
        freed = await self.keeping.remove_sandbox(sandbox_id, keep_store=keep_store)
        return {} if freed is None else {sandbox_id: freed}

    async def remove_others(self) -> dict[str, int]:
        """Remove this owner's sandboxes of other sessions, live ones too, but the named ones; as `remove_all`."""
        return {
            each.sandbox_id: await self.host.remove(each) for each in await self.others() if "name" not in each.labels
        }

    async def others(self) -> list[Outer]:
        """This owner's sandboxes that belong to other sessions."""
        found = await self.host.find({"owner": self.identity.owner, "kind": "sandbox"})
        return [outer for outer in found if outer.labels.get("session") != self.identity.session]

    async def adopt(self, found: Outer) -> Sandbox:
        """Use a sandbox of this owner that another session started; for the command line. It stays that session's: this
        one neither counts it as its own nor removes it."""
        return await self._starter.join(found, time.monotonic())


@contextlib.asynccontextmanager
async def open_manager(
    settings: Settings | None = None, *, sweep_first: bool = True, principal: str = "", explicit: bool = False
) -> AsyncIterator[Manager]:
    """A manager for one session, of this user's or of one principal's. On leaving, jobs are cancelled and this session's sandboxes removed.

    What is raised in the body comes out as it is, not in a group.
    """
    settings = settings or Settings()
    raised: Exception | None = None
    async with open_host(settings) as host, anyio.create_task_group() as group:
        manager = Manager(settings, host, group, principal, explicit=explicit)
        if sweep_first:
            manager._spawn("sweep", partial(sweep.sweep, host, settings))
        if settings.warm:
            group.start_soon(manager.warm.keep)
        try:
            yield manager
        except Exception as error:
            raised = error
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(20):
                for job in manager.jobs.running():
                    await job.cancel()
                with contextlib.suppress(SandboxError):
                    await manager.warm.empty()
                    await manager.remove_all()
                    if not manager._held:  # else a named one, of whose container the reaper removes what is left
                        manager._dismiss_reaper()
                manager.endpoints.close_all()
                await in_thread(manager.journal.close)
                shutil.rmtree(manager.directory, ignore_errors=True)
                endpoints.forget(settings, manager.identity.session)
            group.cancel_scope.cancel()
    if raised is not None:
        raise raised
