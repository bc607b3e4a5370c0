"""One sandbox an engine for the whole suite; every engine passes all of it."""

from collections.abc import AsyncIterator

import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.support import BUSYBOX, Box, busybox_context


@pytest.fixture(scope="session")
async def manager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Manager]:
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"), runtime_dir=tmp_path_factory.mktemp("run"))
    async with open_manager(settings) as opened:
        yield opened


@pytest.fixture(scope="session", params=["podman", "docker"])
async def box(request: pytest.FixtureRequest, manager: Manager) -> AsyncIterator[Box]:
    sandbox = await manager.start(request.param, memory=1 << 30)
    opened = Box(manager, sandbox)
    built = await opened.build(files=busybox_context(), tags=[BUSYBOX])
    assert built.image_id, built
    yield opened
    await manager.remove(sandbox)
