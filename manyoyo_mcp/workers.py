"""Worker threads for docker-py, which is synchronous."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")

MAX_THREADS = 64
"""For calls that have an end of their own."""
MAX_WAITING = 256
"""For what waits as long as something inside runs, and is not to keep the others, leases among them, from being asked: more
than there can be jobs. An idle thread costs some 30 kB."""

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("manyoyo_workers")
_waiting: RunVar[anyio.CapacityLimiter] = RunVar("manyoyo_waiting_workers")


async def in_thread(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call that has an end of its own (a request with a timeout). A cancellation waits for that end."""
    return await anyio.to_thread.run_sync(partial(fn, *args, **kwargs), limiter=_get(_limiter, MAX_THREADS))


async def wait_in_thread(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call that waits for something inside a sandbox. A cancellation is raised at once: the caller then ends
    what the thread waits for, and with it the thread."""
    return await anyio.to_thread.run_sync(
        partial(fn, *args, **kwargs), limiter=_get(_waiting, MAX_WAITING), abandon_on_cancel=True
    )


def allow_more_waiting() -> None:
    """Another session in this process may have as many jobs as the first."""
    _get(_waiting, 0).total_tokens += MAX_WAITING


@overload
async def together(
    first: Callable[[], Awaitable[T]], second: Callable[[], Awaitable[U]], third: Callable[[], Awaitable[V]], /
) -> tuple[T, U, V]: ...
@overload
async def together(first: Callable[[], Awaitable[T]], second: Callable[[], Awaitable[U]], /) -> tuple[T, U]: ...
async def together(*works: Callable[[], Awaitable[Any]]) -> tuple[Any, ...]:
    """Do several things at once; returns what each of them did. What one raises comes out as it is, after the others have been
    cancelled."""
    raised: list[Exception] = []
    results: list[Any] = [None] * len(works)

    async def guarded(at: int, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            results[at] = await work()
        except Exception as error:
            raised.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for at, work in enumerate(works):
            group.start_soon(guarded, at, work)
    if raised:
        raise raised[0]
    return tuple(results)


def _get(variable: RunVar[anyio.CapacityLimiter], most: int) -> anyio.CapacityLimiter:
    try:
        return variable.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(most)
        variable.set(limiter)
        return limiter
