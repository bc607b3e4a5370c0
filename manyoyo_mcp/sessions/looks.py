"""Looks at the same thing by many at once: one answers all who asked before it began, so none gets an older answer than its own
look would have given."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from manyoyo_mcp.errors import SandboxError

T = TypeVar("T")


@dataclass(slots=True)
class _Look(Generic[T]):
    work: Callable[[], Awaitable[T]]
    done: anyio.Event = field(default_factory=anyio.Event)
    results: list[T] = field(default_factory=list)
    error: Exception | None = None


class Looks(Generic[T]):
    """They run in `group`: whoever asked first may go away."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._coming: dict[str, _Look[T]] = {}
        self._locks: dict[str, anyio.Lock] = {}

    async def ask(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """What `work()` returns or raises, be it called for this caller or for one who asked `what` at the same time."""
        look = self._coming.get(what)
        if look is None:
            look = self._coming[what] = _Look(work)
            self._group.start_soon(self._run, what, look)
        await look.done.wait()
        if look.error is not None:
            raise look.error
        if not look.results:
            raise SandboxError("This session is ending.", "Ask the next one.")
        return look.results[0]

    async def _run(self, what: str, look: _Look[T]) -> None:
        try:
            async with self._locks.setdefault(what, anyio.Lock()):
                del self._coming[what]  # who comes from here on is to see what is there from here on
                look.results.append(await look.work())
        except Exception as error:
            look.error = error
        finally:
            look.done.set()
            if what not in self._coming and (lock := self._locks.get(what)) is not None and not lock.locked():
                del self._locks[what]
