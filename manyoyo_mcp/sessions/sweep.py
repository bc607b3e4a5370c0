"""What servers that ended left on a host: found by labels, removed."""

from dataclasses import dataclass

from manyoyo_mcp.config import Settings
from manyoyo_mcp.hosts.base import Host, Outer
from manyoyo_mcp.hosts.docker import DockerHost
from manyoyo_mcp.sessions.identity import answers_for, owner


@dataclass(frozen=True, slots=True)
class Swept:
    """What was (or, on a dry run, would be) removed."""

    sandboxes: list[Outer]


async def remove_session(settings: Settings, session: str) -> None:
    """Remove every sandbox of one session of this owner."""
    host = DockerHost(settings)
    try:
        for outer in await host.find({"owner": owner(), "session": session}):
            await host.remove(outer)
    finally:
        await host.close()


async def orphans(host: Host) -> list[Outer]:
    """This owner's sandboxes whose server runs no longer."""
    return [outer for outer in await host.find({"owner": owner()}) if not answers_for(outer.labels)]


async def sweep(host: Host, *, dry_run: bool = False) -> Swept:
    """Remove the orphans."""
    found = await orphans(host)
    if not dry_run:
        for outer in found:
            await host.remove(outer)
    return Swept(found)
