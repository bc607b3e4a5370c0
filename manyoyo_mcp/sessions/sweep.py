"""What servers that ended left on a host: found by labels, removed."""

from dataclasses import dataclass

import anyio

from manyoyo_mcp.config import Settings
from manyoyo_mcp.hosts.base import Host, Outer
from manyoyo_mcp.hosts.docker import DockerHost
from manyoyo_mcp.sessions.identity import answers_for, owner

_LATE_COMER = 3.0
"""Seconds after which a host's engine has made the container that was asked of it a moment before the server's end."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What was (or, on a dry run, would be) removed."""

    sandboxes: list[Outer]


async def remove_session(settings: Settings, session: str) -> None:
    """Remove every sandbox of one session of this owner."""
    host = DockerHost(settings)
    try:
        for pause in (0, _LATE_COMER):
            await anyio.sleep(pause)
            for outer in await host.find({"owner": owner(), "session": session}, remains=True):
                await host.remove(outer)
    finally:
        await host.close()


async def orphans(host: Host) -> list[Outer]:
    """This owner's sandboxes whose server runs no longer."""
    return [outer for outer in await host.find({"owner": owner()}, remains=True) if not answers_for(outer.labels)]


async def sweep(host: Host, *, dry_run: bool = False) -> Swept:
    """Remove the orphans."""
    found = await orphans(host)
    if not dry_run:
        for outer in found:
            await host.remove(outer)
        await host.tidy()
    return Swept(found)
