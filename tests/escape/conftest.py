"""One sandbox a tier and engine. `scripts/escape` asks for all of it; the suite as a whole for a few vectors in one tier."""

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.escape import beside, given
from tests.escape import world as worlds
from tests.escape.vectors import BUILDS, ON_HOST, TIERS, VECTORS
from tests.escape.world import Neighbour, World, world
from tests.world import World as Internet

ASKED = [tier for tier in os.environ.get("MANYOYO_ESCAPE", "").split(",") if tier]
"""Tiers of which everything is tried."""
REPORT = os.environ.get("MANYOYO_ESCAPE_REPORT")
_SMOKE = ("hardened", "podman")


# A bomb takes what the nested road itself needs, which is an exec in that sandbox.
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "escape_world" not in metafunc.fixturenames:
        return
    from tests.escape import test_escape  # noqa: F401 - the vectors are there

    worlds = [(tier, engine) for tier in ASKED for engine in TIERS[tier]] or [_SMOKE]
    tries = [
        (vector, road)
        for vector in sorted(VECTORS.values(), key=lambda each: each.last)
        for road in BUILDS
        if road in vector.roads and (ASKED or vector.smoke) and not (vector.last and road == "nested")
    ]
    metafunc.parametrize(("vector", "road"), [pytest.param(*each, id=f"{each[0].name}-{each[1]}") for each in tries])
    metafunc.parametrize("escape_world", worlds, ids="-".join, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What can't be tried with an engine is no test."""

    def goes(item: pytest.Item) -> bool:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if not {"escape_world", "vector", "road"} <= given.keys():
            return True
        return bool(given["vector"].goes(*given["escape_world"], given["road"]))

    items[:] = [item for item in items if goes(item)]


@pytest.fixture(scope="session")
async def neighbour(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Neighbour]:
    async with worlds.neighbour(tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("run")) as opened:
        yield opened


@pytest.fixture(scope="session")
async def escape_manager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Manager]:
    """A session whose tools may read one directory of this machine."""
    settings = Settings(
        state_dir=tmp_path_factory.mktemp("state"),
        runtime_dir=tmp_path_factory.mktemp("run"),
        roots=[tmp_path_factory.mktemp("roots")],
        context_max_bytes=128 << 20,
        secrets=given.DECLARED,
        host_images=["localhost/manyoyo/*", "localhost/manyoyo-test/*"],
        sock=True,
    )
    async with open_manager(settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def internet() -> Iterator[Callable[[], Internet]]:
    made = cache(Internet)
    yield made
    if made.cache_info().currsize:
        made().end()


@pytest.fixture(scope="session")
async def escape_world(
    request: pytest.FixtureRequest,
    escape_manager: Manager,
    neighbour: Neighbour,
    internet: Callable[[], Internet],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[World]:
    tier, engine = request.param
    directory, home = tmp_path_factory.mktemp("host"), tmp_path_factory.mktemp("home")
    open_world = beside.world if tier in ON_HOST else world
    async with open_world(escape_manager, tier, engine, neighbour, directory, home, internet) as opened:
        yield opened
        assert not (changed := await opened.changed()), f"at the end of all attempts: {changed}"


@pytest.fixture
def report() -> Callable[[dict[str, Any]], None]:
    """Keeps what came of an attempt, a line each."""

    def write(result: dict[str, Any]) -> None:
        if REPORT:
            with Path(REPORT).open("a") as file:
                file.write(json.dumps(result) + "\n")

    return write
