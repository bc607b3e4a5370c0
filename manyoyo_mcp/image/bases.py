"""Base images assembled from packages, for hosts that reach no registry; shared, read-only, by every sandbox."""

from manyoyo_mcp.config import Settings
from manyoyo_mcp.hosts.base import Host

VOLUME = "manyoyo-bases"
"""The volume that holds one store an engine: `podman/`, an additional image store, and `docker/`, a data root."""


async def volume(host: Host, settings: Settings, engine: str) -> str | None:
    """The volume to mount into a new sandbox; None where no base image was made on this host."""
    return VOLUME if await host.volume_exists(VOLUME) else None
