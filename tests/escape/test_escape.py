"""Every vector over every road: refused, or contained, which the canaries tell."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.escape import (  # noqa: F401 - each declares its vectors
    beside,
    bombs,
    buildkit,
    builds,
    copies,
    files,
    given,
    inside,
    leaving,
    nodes,
    others,
    ports,
    requests,
    texts,
)
from tests.escape.vectors import Out, Outcome, Vector
from tests.escape.vectors import pointless as no_use
from tests.escape.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]


async def test_vector(escape_world: World, vector: Vector, road: str, report: Callable[[dict[str, Any]], None]) -> None:
    begun = time.monotonic()
    result = {
        "name": vector.name, "source": vector.source, "theme": vector.theme, "tier": escape_world.tier,
        "engine": escape_world.engine, "road": road, "outcome": "failed", "why": "",
    }  # fmt: skip
    try:
        outcome: Outcome
        if why := beside.pointless(escape_world, escape_world.roads[road], vector):
            outcome = no_use(why)
        else:
            outcome = await vector.attempt(escape_world, escape_world.roads[road])
        if outcome.asked and (changed := await escape_world.changed()):
            raise Out(f"a canary has changed:\n{changed}")
        result |= {"outcome": outcome.kind, "why": outcome.why}
    except BaseException as error:
        kind = "out" if isinstance(error, Out) else "failed"
        result |= {"outcome": kind, "why": f"{type(error).__name__}: {error}"[:500]}
        raise
    finally:
        report(result | {"seconds": round(time.monotonic() - begun, 2)})
