"""One look for all who ask at once, and none that is older than the asking."""

import anyio
import pytest

from manyoyo_mcp.errors import NotFound
from manyoyo_mcp.sessions.looks import Looks

pytestmark = pytest.mark.anyio


async def test_those_who_ask_during_a_look_share_the_next() -> None:
    begun: list[float] = []
    asked: list[tuple[float, int]] = []

    async def look() -> int:
        begun.append(anyio.current_time())
        await anyio.sleep(0.05)
        return len(begun)

    async with anyio.create_task_group() as group:
        looks: Looks[int] = Looks(group)

        async def ask(after: float) -> None:
            await anyio.sleep(after)
            now = anyio.current_time()
            asked.append((now, await looks.ask("it", look)))

        async with anyio.create_task_group() as callers:
            for number in range(20):
                callers.start_soon(ask, 0.0 if number < 10 else 0.02)
    assert len(begun) == 2
    assert all(begun[which - 1] >= when for when, which in asked)
    assert not looks._coming and not looks._locks


async def test_a_caller_who_goes_away_takes_nobody_with_it_and_errors_are_everybodys() -> None:
    async def look() -> int:
        await anyio.sleep(0.05)
        raise NotFound("it is gone")

    async with anyio.create_task_group() as group:
        looks: Looks[int] = Looks(group)

        async def ask() -> None:
            with pytest.raises(NotFound):
                await looks.ask("it", look)

        async with anyio.create_task_group() as callers:
            with anyio.move_on_after(0.01):
                await looks.ask("it", look)
            callers.start_soon(ask)
            callers.start_soon(ask)
