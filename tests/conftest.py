"""What the tests share: an engine that answers, sandboxes of each engine, clients over real transports.

Nothing here stands in for anything: every sandbox is a real one, every client talks over a real transport.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client over stdio to a server of its own, started in an empty project directory."""
    parameters = StdioServerParameters(
        command=str(ROOT / ".venv" / "bin" / "manyoyo-mcp"),
        args=["serve"],
        env={**os.environ, "MANYOYO_STATE_DIR": str(tmp_path / "state")},
        cwd=tmp_path,
    )
    async with Client(parameters) as connected:
        yield connected
