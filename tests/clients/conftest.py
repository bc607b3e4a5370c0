"""The installed clients, and a project to use them in."""

from pathlib import Path

import pytest

from tests.clients.harness import CACHE, Footprint
from tests.support import busybox_context


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """These tests drive real clients; without them they fail rather than pass for nothing."""
    if not (CACHE / "stamp").exists():
        pytest.fail(f"The clients are not in {CACHE}: run scripts/clients install.", pytrace=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A developer's project: a Dockerfile and what it adds."""
    directory = tmp_path / "project"
    directory.mkdir()
    for name, content in busybox_context().items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def footprint(tmp_path: Path) -> Footprint:
    """What this test's servers have on the machine."""
    return Footprint(str(tmp_path / "state"))
