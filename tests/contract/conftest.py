"""One sandbox an engine for the whole suite; every engine passes all of it."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.hosts.isolation import ON_HOST, tier
from manyoyo_mcp.sessions.manager import Manager
from tests.support import BUSYBOX, Box, busybox_context, on_host

_TIER = Settings().isolation


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A smoke that names engines is one with these alone: on an emulated machine each takes half a minute."""
    for item in items:
        mark = item.get_closest_marker("smoke")
        engine = item.callspec.params.get("box") if hasattr(item, "callspec") else None
        if mark is not None and mark.args and engine not in mark.args:
            item.own_markers = [each for each in item.own_markers if each.name != "smoke"]


@pytest.fixture(scope="session", params=[each for each in ("podman", "docker") if each in tier(_TIER).engines])
async def box(request: pytest.FixtureRequest, manager: Manager) -> AsyncIterator[Box]:
    with on_host(BUSYBOX) if _TIER in ON_HOST else contextlib.nullcontext():
        sandbox = await manager.start(request.param, memory=1 << 30)
        opened = Box(manager, sandbox)
        if _TIER not in ON_HOST:
            built = await opened.build(files=busybox_context(), tags=[BUSYBOX])
            assert built.image_id, built
        yield opened
        await manager.remove(sandbox)
