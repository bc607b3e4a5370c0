"""Sandboxes made ahead: each new, with nobody's work in it, used once. They cost a start nothing but the wait that is saved."""

import logging
from collections.abc import Awaitable, Callable

import anyio

from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.sessions.sandbox import Sandbox

_log = logging.getLogger(__name__)
_PATIENCE = 20.0
"""Seconds after which a sandbox that could not be made ahead, as where the budget has no room, is tried again."""


class Warm:
    """So many sandboxes of the default engine and caps, kept ready for one session. `remove` is not cancelled, and does not
    fail."""

    def __init__(
        self,
        count: int,
        start: Callable[[], Awaitable[Sandbox]],
        alive: Callable[[Sandbox], Awaitable[object]],
        remove: Callable[[Sandbox], Awaitable[object]],
    ) -> None:
        self._count = count
        self._start = start
        self._alive = alive
        self._remove = remove
        self._ready: list[Sandbox] = []
        self._claimed = anyio.Event()
        self._keeping = anyio.CancelScope()
        self._kept = anyio.Event()
        if count == 0:
            self._kept.set()

    @property
    def ready(self) -> int:
        """How many can be had at once."""
        return len(self._ready)

    async def keep(self) -> None:
        """Until `empty`: make what is missing."""
        try:
            with self._keeping:
                await self._keep()
        finally:
            self._kept.set()

    async def _keep(self) -> None:
        while True:
            while len(self._ready) < self._count:
                try:
                    self._ready.append(await self._start())
                except ManyoyoError as error:
                    _log.info("no sandbox could be made ahead: %s", error)
                    await anyio.sleep(_PATIENCE)
                except Exception:  # what nobody asked for ends no session
                    _log.exception("no sandbox could be made ahead")
                    await anyio.sleep(_PATIENCE)
            await self._claimed.wait()
            self._claimed = anyio.Event()

    async def claim(self) -> Sandbox | None:
        """One of them, which is then no longer warm; None where none is ready."""
        while self._ready:
            sandbox = self._ready.pop(0)
            self._claimed.set()
            try:
                if await self._alive(sandbox):
                    return sandbox
            except BaseException:
                await self._remove(sandbox)
                raise
            await self._remove(sandbox)
        return None

    async def empty(self) -> None:
        """Make no more, and remove them all."""
        self._keeping.cancel()
        await self._kept.wait()
        while self._ready:
            await self._remove(self._ready.pop())
