"""The base images take a minute, and are begun before they are asked for."""

import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def bases_begun(request: pytest.FixtureRequest) -> None:
    """In a run of the whole suite they are made meanwhile; who needs them waits for that, and makes what is missing."""
    modules = {item.path.name for item in request.session.items}
    if {"test_cgroup2.py", "test_base_images.py"} <= modules:
        request.getfixturevalue("bases_ahead")


@pytest.fixture(scope="session")
def bases_ahead() -> Iterator[None]:
    making = subprocess.Popen(
        [sys.executable, "-m", "manyoyo_mcp", "image", "base", "debian", "python", "node", "busybox"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield
    making.terminate()
    making.wait()
