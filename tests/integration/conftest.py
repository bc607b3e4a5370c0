"""What takes minutes, and begins before it is asked for: the cgroup v2 guest, emulated on one processor, and the base images."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from tests.conftest import ROOT


class Guest:
    """`scripts/cgroup2 --smoke` under way."""

    def __init__(self, directory: Path) -> None:
        tar = directory / "sandbox.tar"
        host = docker.from_env()
        with tar.open("wb") as file:
            for chunk in host.api.get_image(outer.reference(Settings())):
                file.write(chunk)
        host.close()
        self._log = directory / "guest.log"
        command = [ROOT / "scripts" / "cgroup2", "--image", tar, "--timeout", "1500", "--smoke"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def end(self) -> tuple[int, str]:
        """Its exit code, once it has one, and what it said."""
        return self._process.wait(), self._log.read_text(errors="replace")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    started = Guest(tmp_path_factory.mktemp("guest"))
    yield started
    started.stop()


def _functions(request: pytest.FixtureRequest) -> list[pytest.Function]:
    return [item for item in request.session.items if isinstance(item, pytest.Function)]


@pytest.fixture(scope="session")
def guest_begun(request: pytest.FixtureRequest) -> None:
    """The guest runs, where it is to run at all."""
    if any("guest" in item.fixturenames for item in _functions(request)):
        request.getfixturevalue("guest")


@pytest.fixture(scope="session")
def beside_the_guest(request: pytest.FixtureRequest, guest_begun: None) -> None:
    """For tests that are long and promise no times: the guest runs beside them, and what makes the base images."""
    items = _functions(request)
    if any("guest" in item.fixturenames for item in items) and any(
        "ensure_bases" in vars(item.module) for item in items
    ):
        request.getfixturevalue("bases_ahead")


@pytest.fixture(scope="session")
def bases_ahead() -> Iterator[None]:
    """The base images are made meanwhile; who needs them waits for that, and makes what is missing."""
    making = subprocess.Popen(
        [sys.executable, "-m", "manyoyo_mcp", "image", "base", "debian", "python", "node", "busybox"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield
    making.terminate()
    making.wait()
