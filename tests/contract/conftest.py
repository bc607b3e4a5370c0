"""One sandbox an engine for the whole suite; every engine passes all of it."""

from collections.abc import AsyncIterator

import pytest

from manyoyo_mcp.sessions.manager import Manager
from tests.support import BUSYBOX, Box, busybox_context


@pytest.fixture(scope="session", params=["podman", "docker"])
async def box(request: pytest.FixtureRequest, manager: Manager) -> AsyncIterator[Box]:
    sandbox = await manager.start(request.param, memory=1 << 30)
    opened = Box(manager, sandbox)
    built = await opened.build(files=busybox_context(), tags=[BUSYBOX])
    assert built.image_id, built
    yield opened
    await manager.remove(sandbox)
