"""The caps that are granted: a sandbox's, of what its host has; a nested run's or build's, of what its sandbox has."""

from collections.abc import Callable
from typing import Any

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import CapExceeded
from manyoyo_mcp.hosts.base import HostInfo
from manyoyo_mcp.hosts.isolation import ON_HOST
from manyoyo_mcp.values import Caps, docker_size


def caps(settings: Settings, info: HostInfo, cpus: float | None, memory: int | None, pids: int | None) -> Caps:
    """The caps of a sandbox: as asked, else the default. Raises CapExceeded."""
    most_cpus = settings.max_sandbox_cpus or float(info.cpus)
    most_memory = settings.max_sandbox_memory or info.memory
    check("cpus", cpus, most_cpus, "{:g}".format)
    check("memory", memory, most_memory, lambda size: docker_size(int(size) >> 20 << 20))
    check("pids_limit", pids, 1 << 22, str)
    return Caps(
        cpus=cpus or min(settings.sandbox_cpus or min(info.cpus / 2, 4.0), most_cpus),
        memory=memory or min(settings.sandbox_memory or min(info.memory // 2, 8 << 30), most_memory),
        pids=pids or settings.sandbox_pids,
    )


def nested_default(settings: Settings, sandbox: Caps, isolation: str) -> Caps:
    """The caps of a run or build that asks for none: the sandbox's CPUs, half its memory, unless configured. Half its CPUs, too, where what runs
    at a time may not have more together."""
    cpus = sandbox.cpus / 2 if isolation in ON_HOST else sandbox.cpus
    return Caps(
        cpus=min(settings.nested_cpus or cpus, sandbox.cpus),
        memory=min(settings.nested_memory or sandbox.memory // 2, sandbox.memory),
        pids=min(settings.nested_pids, sandbox.pids),
    )


def check(name: str, asked: Any, most: float, shown: Callable[[Any], str]) -> None:
    """Raises CapExceeded for more than a sandbox may have here; `shown` writes a value as one asks for it."""
    if asked is not None and asked > most:
        raise CapExceeded(
            f"{name}={shown(asked)} is more than a sandbox may have here: the most is {shown(most)}.",
            f"Ask for at most {shown(most)}; beyond the host's own it takes another host, below it the operator can raise it "
            "(MANYOYO_MAX_SANDBOX_CPUS, MANYOYO_MAX_SANDBOX_MEMORY, MANYOYO_POOL_SIZE).",
            cap=name,
            maximum=most,
        )
