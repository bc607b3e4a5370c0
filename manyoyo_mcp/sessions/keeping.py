"""What outlives servers: checkpoints, and what named sandboxes hold."""

import contextlib
import secrets
from collections.abc import Collection

import anyio

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import EngineUnreachable, NameConflict, NotFound
from manyoyo_mcp.hosts.base import Copied, Host, Store
from manyoyo_mcp.hosts.isolation import check_keeps
from manyoyo_mcp.image import outer as outer_image
from manyoyo_mcp.image.outer import Progress, no_progress
from manyoyo_mcp.sessions import names
from manyoyo_mcp.sessions.budgets import Amount, Budgets
from manyoyo_mcp.sessions.identity import owner_labels
from manyoyo_mcp.sessions.sandbox import Sandbox, counters

_SETTLE = 10.0
"""Seconds that a copy waits for what is being removed."""


class Keeping:
    """What one owner keeps on a host."""

    def __init__(self, settings: Settings, host: Host, owner: str) -> None:
        self._settings = settings
        self._host = host
        self._owner = owner
        self._budgets = Budgets(settings, host, owner)

    def id_of(self, sandbox: str) -> str:
        """A sandbox's id, where it may have been its name."""
        if sandbox.startswith("sb-") or not names.is_name(sandbox):
            return sandbox
        return names.sandbox_id(self._owner, sandbox)

    async def is_named(self, sandbox: str) -> bool:
        """Whether a sandbox, by its id or name, outlives its server."""
        stores = await self._host.stores({"owner": self._owner, "sandbox": self.id_of(sandbox)})
        return any(names.is_named(store) for store in stores)

    async def checkpoint(
        self, sandbox: Sandbox, name: str, *, replace: bool, progress: Progress = no_progress
    ) -> Copied:
        """Keep all that a sandbox holds, as it is now, under a name of this owner's.

        Raises NameConflict where there is one of that name, unless it is to be replaced; BudgetExceeded.
        """
        names.check_name(name)
        check_keeps(sandbox.isolation, "A checkpoint")
        lock = names.checkpoint_store(self._owner, name)
        target = f"{lock}-{secrets.token_hex(4)}"
        store = await self.store_of(sandbox)
        await settled(sandbox)
        image = await outer_image.ensure(self._host, self._settings, progress)
        storage = await self._host.storage(image)
        used = (await counters(self._host, sandbox)).get("disk_used", sandbox.disk or 0)
        kept = {"engine", "cpus", "memory", "pids", "isolation"}
        labels = {
            **{key: value for key, value in sandbox.outer.labels.items() if key in kept},
            **({"disk": str(sandbox.disk)} if sandbox.disk else {}),
            "network": sandbox.network.label,
            "used": str(used),
            **owner_labels(self._owner),
            "kind": "checkpoint",
            "checkpoint": name,
            "from": sandbox.name or sandbox.sandbox_id,
        }
        locks = self._settings.lock_dir
        async with (
            names.locked(locks, lock, progress),
            names.locked(locks, sandbox.sandbox_id, progress),
        ):
            before = await self._host.stores({"owner": self._owner, "checkpoint": name})
            if before and not replace:
                raise NameConflict(
                    f"There is a checkpoint {name!r} already.", "Choose another name, or say replace=true."
                )
            progress(0, None, f"copying what {sandbox.sandbox_id} holds")
            counted = before[0].name if before else target  # what is replaced counts once
            async with self._budgets.room(counted, Amount(disk=used), storage.size, None):
                copied = await self._host.copy_store(store.name, target, labels, None, image)
            for old in before:  # only now: what there was is kept where the copy fails
                await self._host.remove_store(old.name)
            return copied

    async def remove_checkpoint(self, name: str, progress: Progress = no_progress) -> int:
        """Remove a checkpoint of this owner's; the bytes that were its own. Raises NotFound."""
        await checkpoint_of(self._host, self._owner, name)
        lock = names.checkpoint_store(self._owner, name)
        async with names.locked(self._settings.lock_dir, lock, progress):
            found = await self._host.stores({"owner": self._owner, "checkpoint": name})
            return sum([await self._host.remove_store(store.name) for store in found])

    async def remove_sandbox(
        self, sandbox_id: str, *, keep_store: bool = False, progress: Progress = no_progress
    ) -> int | None:
        """Remove one sandbox of this owner's, of whichever session: as it is once nobody starts, stops or copies it any more.
        The bytes freed, where known; None where there is none."""
        mine = {"owner": self._owner}
        freed: list[int] = []
        named = await self.is_named(sandbox_id)
        async with self.locked(sandbox_id, progress) if named else contextlib.nullcontext():
            for outer in await self._host.find(mine, sandbox_id, remains=True):
                if keep_store and outer.running:
                    await self._host.maintain(outer, "stop-all", timeout=30)
                freed.append(await self._host.remove(outer, keep_store=keep_store))
            if not keep_store:
                for store in await self._host.stores(mine | {"sandbox": sandbox_id}):  # of one that is stopped
                    freed.append(await self._host.remove_store(store.name))
        return sum(freed) if freed else None

    def locked(self, sandbox_id: str, progress: Progress = no_progress) -> contextlib.AbstractAsyncContextManager[None]:
        """Within it nobody else of this owner starts, stops, copies or removes the named sandbox of that id."""
        return names.locked(self._settings.lock_dir, sandbox_id, progress)

    async def stores(self, but: Collection[str] = ()) -> list[Store]:
        """What this owner has that outlives servers, with sizes: named sandboxes, running or not, and checkpoints; `but` for some by id."""
        found = await self._host.stores({"owner": self._owner})
        return await self._host.sized(
            each
            for each in found
            if (names.is_named(each) or names.is_checkpoint(each)) and each.labels.get("sandbox") not in but
        )

    async def store_of(self, sandbox: Sandbox) -> Store:
        """Raises EngineUnreachable where it is gone."""
        for store in await self._host.stores({"owner": self._owner, "sandbox": sandbox.sandbox_id}):
            return store
        raise EngineUnreachable(f"What {sandbox.sandbox_id} held is gone.", "start_sandbox starts a new one.")


async def settled(sandbox: Sandbox) -> None:
    """Until the containers of runs that ended are removed: no copy is to have them. A little while at most."""
    with anyio.move_on_after(_SETTLE):
        await sandbox.engine.settle()


async def checkpoint_of(host: Host, owner: str, name: str) -> Store:
    """The owner's checkpoint of that name. Raises NotFound (CHECKPOINT_NOT_FOUND) with those that there are."""
    found = await host.stores({"owner": owner, "kind": "checkpoint"})
    for store in sorted(
        found, key=lambda each: each.created
    ):  # where a replacement was interrupted, the one that is whole
        if store.labels.get("checkpoint") == name:
            return store
    known = ", ".join(sorted(store.labels.get("checkpoint", "") for store in found)) or "none"
    raise NotFound(
        f"There is no checkpoint {name[:60]!r}.",
        f"There are: {known}. checkpoint makes one.",
        code="CHECKPOINT_NOT_FOUND",
    )
