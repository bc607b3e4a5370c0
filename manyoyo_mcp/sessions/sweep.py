"""What servers that ended left on a host: found by labels, removed."""

import contextlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import anyio

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import SandboxError
from manyoyo_mcp.hosts.base import Host, Outer
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.image.outer import no_progress
from manyoyo_mcp.sessions import budgets, endpoints, names
from manyoyo_mcp.sessions.identity import Identity, answers_for, can_be_seen, owner, pid_namespace
from manyoyo_mcp.workers import in_thread

_OWNER = "server.json"
_LATE_COMER = 3.0
"""Seconds after which a host's engine has made the container that was asked of it a moment before the server's end."""


_LONG_S = 600.0
"""Seconds after which a sandbox that has stopped is nobody's, where it can't be told from here whether its server runs."""
_LEASES = 3
"""Leases after which a named sandbox that still runs is another server's, and so is what it will leave."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What was (or, on a dry run, would be) removed, and why the last of the others could not be."""

    sandboxes: list[Outer]
    failed: SandboxError | None = None


async def remove_session(settings: Settings, session: str, principal: str = "") -> None:
    """Remove every sandbox of one session of this user, or of one principal of its server. Those with a name go on until their lease ends: then only what is
    left of their container."""
    async with open_host(settings) as host:
        for pause in (0, _LATE_COMER):
            await anyio.sleep(pause)
            for outer in await host.find({"owner": owner(principal), "session": session}, remains=True):
                if "name" not in outer.labels:
                    await host.remove(outer)
        shutil.rmtree(directory(settings, session), ignore_errors=True)
        endpoints.forget(settings, session)
        end = time.monotonic() + _LEASES * settings.lease_s
        while await _retire(host, settings, owner(principal)) and time.monotonic() < end:  # noqa: ASYNC110 - other processes have no events
            await anyio.sleep(min(settings.lease_s / 4, 5))


async def _retire(host: Host, settings: Settings, whose: str) -> bool:
    """Remove the containers of an owner's named sandboxes that have stopped, not what they hold; whether any still runs."""
    running = False
    for outer in await host.find({"owner": whose, "kind": "sandbox"}):
        if "name" in outer.labels:
            if outer.running:
                running = True
            else:
                await retire(host, settings, outer)
    return running


async def retire(host: Host, settings: Settings, outer: Outer) -> None:
    """Remove the container of a named sandbox that has stopped, unless it is being started anew."""
    async with names.locked(settings.lock_dir, outer.sandbox_id, no_progress):
        now = await host.inspect(outer)
        if now is not None and not now.running:
            await host.remove(now, keep_store=True)


def directory(settings: Settings, session: str) -> Path:
    """Where a session keeps its logs, as long as it lasts."""
    return settings.state_dir / "sessions" / session


def claim(settings: Settings, identity: Identity) -> Path:
    """A session's directory, made, with what tells a sweep whose it is."""
    path = directory(settings, identity.session)
    path.mkdir(mode=0o700, parents=True)
    (path / _OWNER).write_text(json.dumps(identity.labels()))
    return path


def servers(settings: Settings) -> list[int]:
    """The processes that keep their session in this state directory and run, where that can be told."""
    found: list[int] = []
    if not pid_namespace():
        return found
    for path in (settings.state_dir / "sessions").glob(f"*/{_OWNER}"):
        with contextlib.suppress(OSError, ValueError):
            labels = json.loads(path.read_text())
            if labels.get("server-pid-namespace") == pid_namespace() and answers_for(labels):
                found.append(int(labels["server-pid"]))
    return found


def _forget_sessions(settings: Settings) -> None:
    """Remove the directories of sessions whose server runs no longer."""
    for path in (settings.state_dir / "sessions").glob("*"):
        with contextlib.suppress(OSError, ValueError):
            if not answers_for(json.loads((path / _OWNER).read_text())):
                shutil.rmtree(path, ignore_errors=True)


async def orphans(host: Host) -> list[Outer]:
    """Sandboxes of this user, or of a principal of its servers, whose server runs no longer; of those with a name, the ones that
    have stopped."""
    found = await host.find({"owner": owner()}, remains=True) + await host.find({"user": owner()}, remains=True)
    return [outer for outer in found if _is_over(outer, time.time())]


def _is_over(outer: Outer, now: float) -> bool:
    if "name" in outer.labels:
        return not outer.running
    if can_be_seen(outer.labels):
        return not answers_for(outer.labels)
    return (
        not outer.running and now - outer.created > _LONG_S
    )  # its lease has ended it, and nobody has come to clear up


async def sweep(host: Host, settings: Settings, *, dry_run: bool = False) -> Swept:
    """Remove the orphans. One that can't be removed keeps none of the others."""
    found = await orphans(host)
    if dry_run:
        return Swept(found)
    failed: SandboxError | None = None
    removed = []
    for outer in found:
        try:
            if "name" in outer.labels:
                await retire(host, settings, outer)
            else:
                await host.remove(outer)
            removed.append(outer)
        except SandboxError as error:
            failed = error
    await host.tidy()
    await in_thread(_forget_sessions, settings)
    await in_thread(budgets.forget_dead, settings)
    await in_thread(endpoints.forget_dead, settings)
    return Swept(removed, failed)


async def sweep_host(settings: Settings) -> Swept:
    """A sweep of the host that the settings name."""
    async with open_host(settings) as host:
        return await sweep(host, settings)
