"""Leases: a sandbox that nobody renews ends itself, whoever else is dead. Who holds sandboxes keeps renewing them."""

from collections.abc import Callable, Iterable

import anyio

from manyoyo_mcp.errors import SandboxError
from manyoyo_mcp.hosts.base import Host, Outer

_TIMES = 4
"""Renewals within a lease: some may be late, or fail."""


async def keep(host: Host, held: Callable[[], Iterable[Outer]], lease: int) -> None:
    """Renew what is held, for ever. `lease` in seconds."""
    while True:
        async with anyio.create_task_group() as group:
            for outer in list(held()):
                group.start_soon(_renew, host, outer)
        await anyio.sleep(lease / _TIMES)


async def _renew(host: Host, outer: Outer) -> None:
    try:
        await host.renew(outer)
    except SandboxError:
        return  # what is gone needs none; a host that does not answer is asked again
