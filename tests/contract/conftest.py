"""One sandbox an engine for the whole suite; every engine passes all of it."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.hosts.isolation import ON_HOST, tier
from manyoyo_mcp.sessions.manager import Manager
from tests.support import BUSYBOX, Box, busybox_context, on_host

_TIER = Settings().isolation


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
