"""Where sandboxes pull from: the host's mirror, mirrors of the user's, and registries without TLS; as the engines' configuration."""

import json
from dataclasses import dataclass

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.hosts.base import Host

DOCKER_IO = "docker.io"


@dataclass(frozen=True, slots=True)
class Source:
    """A mirror: of which registry, where (host[:port]), and whether over plain HTTP."""

    registry: str
    address: str
    plain: bool


def sources(settings: Settings) -> list[Source]:
    """The user's mirrors. Raises InvalidArgument for one that is not REGISTRY=URL."""
    found = []
    for each in settings.mirrors:
        registry, equals, url = each.partition("=")
        scheme, separator, address = url.rstrip("/").partition("://")
        if not (registry and equals and separator and address) or scheme not in ("http", "https") or '"' in each:
            raise InvalidArgument(
                f"MANYOYO_MIRRORS: {each[:80]!r} is no mirror.",
                "Write REGISTRY=URL, e.g. docker.io=https://mirror.example.",
            )
        found.append(Source(registry, address, scheme == "http"))
    return found


async def mirrors(settings: Settings, host: Host) -> list[Source]:
    """The user's mirrors, then the host's own."""
    own = await host.mirror()
    return sources(settings) + ([Source(own.registry, own.address, plain=True)] if own is not None else [])


def files(settings: Settings, mirrors: list[Source]) -> dict[str, bytes]:
    """The engines' configuration (path in the outer container → content), none where there is nothing to say."""
    found: dict[str, bytes] = {}
    lines: list[str] = []
    for registry in dict.fromkeys(mirror.registry for mirror in mirrors):
        lines += ["[[registry]]", f'prefix = "{registry}"', f'location = "{registry}"']
        lines += ["insecure = true"] if registry in settings.insecure_registries else []
        for mirror in mirrors:
            if mirror.registry == registry:
                lines += [
                    "[[registry.mirror]]",
                    f'location = "{mirror.address}"',
                    f"insecure = {str(mirror.plain).lower()}",
                ]
    for registry in settings.insecure_registries:
        if registry not in {mirror.registry for mirror in mirrors}:
            lines += ["[[registry]]", f'prefix = "{registry}"', f'location = "{registry}"', "insecure = true"]
    if lines:
        found["/etc/containers/registries.conf.d/manyoyo.conf"] = "\n".join([*lines, ""]).encode()
    daemon: dict[str, list[str]] = {}
    of_docker = [
        f"{'http' if each.plain else 'https'}://{each.address}" for each in mirrors if each.registry == DOCKER_IO
    ]
    if of_docker:  # dockerd knows mirrors of this one alone
        daemon["registry-mirrors"] = of_docker
    if settings.insecure_registries:
        daemon["insecure-registries"] = settings.insecure_registries
    if daemon:
        found["/etc/docker/daemon.json"] = json.dumps(daemon).encode()
    return found
