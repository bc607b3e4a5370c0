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
        pass  # what is gone needs none; a host that does not answer is asked again
    except Exception:  # the others' leases are kept all the same
        _log.exception("the lease of %s could not be renewed", outer.sandbox_id)
