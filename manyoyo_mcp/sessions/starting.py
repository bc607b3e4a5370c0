"""How a sandbox comes to be: new, by its name, or as a copy of another; its caps granted, proven to bind, and later changed."""

import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import anyio

from manyoyo_mcp.config import EngineName, Isolation, Settings
from manyoyo_mcp.errors import (
    CapsUnenforced,
    EngineFailed,
    EngineUnreachable,
    InvalidArgument,
    NotSupported,
    SandboxError,
)
from manyoyo_mcp.hosts.base import ENDING, Host, HostInfo, Outer, OuterSpec, Storage, Store, store_of
from manyoyo_mcp.hosts.isolation import ON_HOST, check_registered, engine_of
from manyoyo_mcp.hosts.isolation import check as check_isolation
from manyoyo_mcp.image import bases
from manyoyo_mcp.image import outer as outer_image
from manyoyo_mcp.image.outer import Progress
from manyoyo_mcp.policy.base import Limits
from manyoyo_mcp.policy.egress import Policy
from manyoyo_mcp.sessions import granting, names, onhost, reach, registries, trust
from manyoyo_mcp.sessions.budgets import Amount, Budgets, NoRoomNow, Place
from manyoyo_mcp.sessions.identity import Identity
from manyoyo_mcp.sessions.probe import Evidence, Remembered, prove
from manyoyo_mcp.sessions.sandbox import Sandbox, clear, isolation_of, join
from manyoyo_mcp.values import Caps, docker_size, format_bytes
from manyoyo_mcp.workers import together

_STOPPING = 12.0
"""Seconds that what is nested in a sandbox may take to stop before another start of it ends it: a little more than a container
that ignores SIGTERM takes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked of a start; None where the default is meant. `origin`: the store that it begins as a copy of.
    `wait_s`: seconds to wait where the budget has no room."""

    engine: EngineName | None = None
    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None
    disk: int | None = None
    name: str | None = None
    origin: Store | None = None
    wait_s: float = 0
    isolation: Isolation | None = None
    network: Policy | None = None


Hold = Callable[[Outer], None]
"""Told of an outer container as soon as it exists: from then on its lease is to be kept."""


class Starter:
    """Starts sandboxes for one session. `spawn` runs what their engines leave for later."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        identity: Identity,
        spawn: Callable[[str, Callable[[], Awaitable[object]]], None],
        hold: Hold,
        let_go: Hold,
    ) -> None:
        self._settings = settings
        self._host = host
        self._identity = identity
        self._spawn = spawn
        self._hold = hold
        self._let_go = let_go
        self._budgets = Budgets(settings, host, identity.owner)
        self.networks = reach.Networks(settings, host)
        self._probes = Remembered(settings.state_dir / "probes.json")

    async def start(self, wanted: Wanted, progress: Progress) -> Sandbox:
        """Raises CapExceeded, NotSupported, HostUnavailable, ImageUnavailable, EngineFailed, CapsUnenforced."""
        with self._budgets.place(wanted.wait_s, progress) as place:
            while True:
                try:
                    return await self._try(wanted, place, progress)
                except NoRoomNow as refused:
                    await place.wait(refused)

    async def _try(self, wanted: Wanted, place: Place, progress: Progress) -> Sandbox:
        """Raises NoRoomNow. Who waits for room holds no lock on a name meanwhile."""
        if wanted.name is None:
            return await self._new(wanted, f"sb-{secrets.token_hex(8)}", {}, place, progress)
        sandbox_id = names.sandbox_id(self._identity.owner, names.check_name(wanted.name))
        async with names.locked(self._settings.lock_dir, sandbox_id, progress):
            for there in await self._host.stores({"owner": self._identity.owner, "sandbox": sandbox_id}):
                return await self._again(wanted, there, place, progress)
            return await self._new(wanted, sandbox_id, {"name": wanted.name}, place, progress)

    async def _again(self, wanted: Wanted, there: Store, place: Place, progress: Progress) -> Sandbox:
        """A named sandbox that there is: joined where it runs, else started on its store."""
        begun = time.monotonic()
        had = there.labels
        check_same(wanted, had["engine"])
        sandbox_id = had["sandbox"]
        for found in await self._host.find({"owner": self._identity.owner}, sandbox_id):
            if found.running and not await self._ends(found, progress):
                check_same(wanted, had["engine"], isolation_of(found))
                sandbox = await self._joined(found, begun, progress)
                if sandbox is not None:
                    return sandbox
            progress(0, None, "its last end is being tidied up")
            await self._host.remove(found, keep_store=True)
        disk = self._budgets.disk_of(sandbox_id) or int(had.get("disk", 0))
        network = wanted.network or await self.networks.kept(sandbox_id, had)
        wanted = replace(_as(wanted, had), disk=wanted.disk or disk or None, network=network)
        sandbox = await self._new(wanted, sandbox_id, {"name": wanted.name or ""}, place, progress, there)
        sandbox.resumed = "stopped"
        return sandbox

    async def _ends(self, found: Outer, progress: Progress) -> bool:
        """Whether it is ending; returned once it has ended, or has taken too long to. Raises EngineUnreachable where it can't be
        asked, which is no reason to end it."""
        try:
            await self._host.renew(found)
            return False
        except EngineUnreachable as error:
            if error.instance_code != ENDING:
                raise
            progress(0, None, "it is being stopped: waiting for its end")
        with anyio.move_on_after(_STOPPING):
            while (now := await self._host.inspect(found)) is not None and now.running:  # noqa: ASYNC110 - nothing tells
                await anyio.sleep(0.1)
        return True

    async def _joined(self, found: Outer, begun: float, progress: Progress) -> Sandbox | None:
        """One that runs; None where its engine is stuck. What else is wrong is no reason to end it: others may be at work in it."""
        self._hold(found)
        try:
            try:
                sandbox = await self.join(found, begun)
                await self.networks.narrow(sandbox)
            except (EngineFailed, EngineUnreachable):
                self._let_go(found)
                return None
            await clear(sandbox, every=False)
            image = outer_image.reference(self._settings)
            sandbox.evidence = await self._prove(sandbox, await self._host.info(), image, progress)
        except BaseException:
            self._let_go(found)
            raise
        sandbox.disk = self._budgets.disk_of(sandbox.sandbox_id) or sandbox.disk
        sandbox.resumed = "running"
        sandbox.started = found.created
        self._count(sandbox)
        return sandbox

    async def _new(
        self,
        wanted: Wanted,
        sandbox_id: str,
        labels: dict[str, str],
        place: Place,
        progress: Progress,
        there: Store | None = None,
    ) -> Sandbox:
        begun = time.monotonic()
        if wanted.origin is not None:
            had = wanted.origin.labels
            if wanted.engine not in (None, had["engine"]):
                raise InvalidArgument(
                    f"What it begins with was made by the engine {had['engine']}.", "Leave engine out."
                )
            network = wanted.network or await self.networks.kept("", had)
            wanted = replace(_as(wanted, had), network=network)
        isolation = wanted.isolation or self._settings.isolation
        engine = wanted.engine or engine_of(isolation, self._settings)
        source = wanted.origin or there
        check_isolation(isolation, engine, source.labels.get("isolation", "privileged") if source is not None else None)
        network = wanted.network or reach.configured(self._settings)
        on_host = isolation in ON_HOST
        if on_host:
            keeps = "A name" if wanted.name else "What another sandbox holds" if wanted.origin else ""
            onhost.check(self._settings, isolation, network, keeps, wanted.disk)
        info = await self._host.info()
        check_registered(isolation, info.runtimes)
        caps = granting.caps(self._settings, info, wanted.cpus, wanted.memory, wanted.pids)
        image, mirrors, bases_volume = await together(  # a start waits for each of these questions
            partial(outer_image.ensure, self._host, self._settings, progress),
            partial(registries.mirrors, self._settings, self._host),
            partial(bases.volume, self._host),
        )
        storage = await self._host.storage(image)
        disk = None if on_host else await self._disk(wanted, storage, there)
        spec = OuterSpec(
            sandbox_id=sandbox_id,
            image=image,
            engine=engine,
            caps=caps,
            build_pids=min(self._settings.nested_pids, caps.pids),
            lease=self._settings.lease_s,
            labels={
                **self._identity.labels(),
                **labels,
                "sandbox": sandbox_id,
                "kind": "sandbox",
                "engine": engine,
                "cpus": f"{caps.cpus:g}",
                "memory": str(caps.memory),
                "pids": str(caps.pids),
                "isolation": isolation,
                "network": network.label,
                **({"disk": str(disk)} if disk else {}),
            },
            files=trust.files(self._settings)
            | registries.files(self._settings, mirrors)
            | await reach.files(self._settings, self._host, network, engine, mirrors, shared=on_host),
            bases_volume=None if on_host else bases_volume,
            disk=disk,
            origin=wanted.origin.name if wanted.origin is not None else None,
            keep="name" in labels,
            isolation=isolation,
        )
        need = Amount(1, caps.cpus, caps.memory, disk or 0)
        async with self._budgets.room(sandbox_id, need, storage.size, place):
            progress(0, None, f"starting a {engine} sandbox ({caps.describe()})")
            if "name" in labels:
                await self._keep_disk(sandbox_id, disk, there)
                self.networks.note(sandbox_id, network if there is not None else None)
            created = await self._host.create(spec)
        self._hold(created)
        try:
            sandbox = await self.join(created, begun)
            sandbox.network = network
            sandbox.copied = wanted.origin is not None
            if there is not None or sandbox.copied:
                await clear(sandbox, every=True)
            sandbox.evidence = await self._prove(sandbox, info, image, progress)
        except BaseException:
            self._let_go(created)
            with anyio.CancelScope(shield=True), contextlib.suppress(SandboxError):
                await self._host.remove(created, keep_store=there is not None)
            raise
        return sandbox

    async def _disk(self, wanted: Wanted, storage: Storage, there: Store | None) -> int | None:
        """The cap of its disk. None where disks can't be capped and none was asked for."""
        if storage.kind != "pool" and self._settings.storage == "pool":
            raise NotSupported(
                f"This host can have no pool: {storage.words}.",
                "MANYOYO_STORAGE=auto does without: disks are then uncapped, and copies take their time.",
                code="POOL_UNAVAILABLE",
            )
        if there is not None and not there.pooled:
            if wanted.disk is not None:
                raise NotSupported(
                    f"What {wanted.name} holds lies in a plain volume, whose size can't be capped.",
                    "Leave disk out; or checkpoint it and start another from that, where the host has a pool.",
                    code="DISK_CAP_UNAVAILABLE",
                )
            return None
        if storage.kind != "pool":
            return wanted.disk
        granting.check("disk", wanted.disk, storage.size, docker_size)
        had = int(wanted.origin.labels.get("disk", 0)) if wanted.origin is not None else 0
        disk = wanted.disk or min(had or self._settings.sandbox_disk, storage.size)
        return disk

    async def _keep_disk(self, sandbox_id: str, disk: int | None, there: Store | None) -> None:
        """Give the disk of a named sandbox this cap, where it has another."""
        if there is None:
            self._budgets.note_disk(sandbox_id, None)
        elif disk is not None and disk != (self._budgets.disk_of(sandbox_id) or int(there.labels.get("disk", 0))):
            (now,) = await self._host.sized([there])
            held = now.size or 0
            if disk < held + held // 4:
                raise InvalidArgument(
                    f"The sandbox holds {format_bytes(held)} already: a disk of {format_bytes(disk)} leaves it no room.",
                    f"Ask for {docker_size((held * 3 // 2 >> 20) + 1 << 20)} or more, or leave disk out.",
                )
            await self._host.cap_store(there.name, disk)
            self._budgets.note_disk(sandbox_id, disk)

    async def join(self, created: Outer, begun: float) -> Sandbox:
        """A sandbox of an outer container that runs. `begun`: since when, by time.monotonic, it is being waited for."""
        transport, dial = await self._host.dialer(created)
        isolation = isolation_of(created)
        limits = Limits(
            granting.nested_default(self._settings, created.caps, isolation),
            created.caps,
            by_quota=created.labels["engine"] == "podman",
        )
        sandbox = join(
            self._host, created, transport, dial, limits, self._spawn, 0, onhost.part(self._settings, created)
        )
        await sandbox.engine.ping()
        sandbox.start_seconds = round(time.monotonic() - begun, 3)
        return sandbox

    async def grow(
        self, sandbox: Sandbox, cpus: float | None, memory: int | None, pids: int | None, disk: int | None = None
    ) -> None:
        """Give a live sandbox larger caps, in place. Raises CapExceeded above the maximum, InvalidArgument below what it has."""
        old = sandbox.limits.largest
        new = granting.caps(
            self._settings, await self._host.info(), cpus or old.cpus, memory or old.memory, pids or old.pids
        )
        shrunk = new.cpus < old.cpus or new.memory < old.memory or new.pids < old.pids
        if shrunk or (disk is not None and disk < (sandbox.disk or 0)):
            raise InvalidArgument(
                f"{sandbox.sandbox_id} has {old.describe()}; a live sandbox can grow, not shrink.",
                "Leave the smaller cap out, or start a new sandbox.",
            )
        await self.recap(sandbox, new, disk)

    async def recap(self, sandbox: Sandbox, caps: Caps, disk: int | None) -> None:
        """Other caps for a live sandbox. Raises BudgetExceeded, NotSupported, CapExceeded."""
        storage = await self._host.storage(outer_image.reference(self._settings))
        if storage.kind == "pool":
            granting.check("disk", disk, storage.size, docker_size)
        need = Amount(1, caps.cpus, caps.memory, disk or sandbox.disk or 0)
        async with self._budgets.room(sandbox.sandbox_id, need, storage.size, None):
            if disk is not None:
                await self._host.cap_store(store_of(sandbox.sandbox_id), disk)
                sandbox.disk = disk
                if sandbox.name:
                    self._budgets.note_disk(sandbox.sandbox_id, disk)
            sandbox.outer = await self._host.grow(sandbox.outer, caps)
            sandbox.limits = replace(
                sandbox.limits,
                default=granting.nested_default(self._settings, caps, sandbox.isolation),
                largest=caps,
            )
            self._count(sandbox)

    def _count(self, sandbox: Sandbox) -> None:
        """What it has beyond what its container's labels say counts too."""
        told, caps = sandbox.outer.labels, sandbox.limits.largest
        disk = 0 if sandbox.name else (sandbox.disk or 0) - int(told.get("disk", 0))  # else it is noted
        extra = Amount(0, caps.cpus - float(told["cpus"]), caps.memory - int(told["memory"]), disk)
        self._budgets.count(sandbox.sandbox_id, extra)

    def forget(self, outer: Outer) -> None:
        """This session keeps it no longer."""
        self._budgets.forget(outer.sandbox_id)

    async def _prove(self, sandbox: Sandbox, info: HostInfo, image: str, progress: Progress) -> Evidence:
        key = Remembered.key(info, image, f"{sandbox.engine_name} {sandbox.isolation}")
        evidence = self._probes.get(key)
        if evidence is None or not evidence.enforced:  # what did not bind may have been mended since
            progress(0, None, "first sandbox of this kind on this host: proving that caps bind")
            evidence = await prove(self._host, sandbox.outer, sandbox.engine, image)
            self._probes.put(key, evidence)
        if not evidence.enforced and not self._settings.allow_unenforced_caps:
            raise CapsUnenforced(
                f"Caps do not bind on this host: {evidence.words}.",
                "Mend the host's cgroups, try the other engine, or set MANYOYO_ALLOW_UNENFORCED_CAPS=1 to run without.",
            )
        return evidence


def check_same(wanted: Wanted, engine: str, isolation: str | None = None) -> None:
    """Raise InvalidArgument where a named sandbox that there is, with this engine, can't be what is wanted; nor with this tier, where
    it runs."""
    if wanted.origin is not None:
        raise InvalidArgument(
            f"The sandbox {wanted.name!r} exists already, with content of its own.",
            "Leave from_checkpoint out, choose another name, or cleanup that one first.",
        )
    if wanted.engine not in (None, engine):
        raise InvalidArgument(
            f"The sandbox {wanted.name!r} has the engine {engine}, and keeps it.",
            "Leave engine out, or choose another name.",
        )
    if isolation is not None and wanted.isolation not in (None, isolation):
        raise InvalidArgument(
            f"The sandbox {wanted.name!r} runs with isolation {isolation}.",
            "Leave isolation out, or stop it first: cleanup with its name and keep_data=true.",
        )


def _as(wanted: Wanted, had: dict[str, str]) -> Wanted:
    """The same, with the engine, caps and isolation of a store's sandbox where none are asked for."""
    return replace(
        wanted,
        engine=cast(EngineName, had["engine"]),
        cpus=wanted.cpus or float(had["cpus"]),
        memory=wanted.memory or int(had["memory"]),
        pids=wanted.pids or int(had["pids"]),
        isolation=wanted.isolation or had.get("isolation"),
    )
