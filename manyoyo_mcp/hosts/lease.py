"""Leases: a sandbox that nobody renews ends itself, whoever else is dead. Who holds sandboxes keeps renewing them."""

import logging
from collections.abc import Callable, Iterable

import anyio

from manyoyo_mcp.errors import SandboxError
from manyoyo_mcp.hosts.base import Host, Outer

_log = logging.getLogger(__name__)
_TIMES = 4
"""Renewals within a lease: some may be late, or fail."""


async def keep(host: Host, held: Callable[[], Iterable[Outer]], lease: int) -> None:
    """Renew what is held, for ever. `lease` in seconds. One that does not answer keeps the others' from nothing."""
    asked: set[str] = set()

    async def renew(outer: Outer) -> None:
        asked.add(outer.container_id)
        try:
            await _renew(host, outer, lease)
        finally:
            asked.discard(outer.container_id)

    async with anyio.create_task_group() as group:
        while True:
            for outer in list(held()):
                if outer.container_id not in asked:
                    group.start_soon(renew, outer)
            await anyio.sleep(lease / _TIMES)


async def _renew(host: Host, outer: Outer, lease: int) -> None:
    try:
        await host.renew(outer, lease / _TIMES)
    except SandboxError:
        pass  # what is gone needs none; a host that does not answer is asked again
    except Exception:  # the others' leases are kept all the same
        _log.exception("the lease of %s could not be renewed", outer.sandbox_id)
