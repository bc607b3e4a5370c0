"""What the tests share: clients over real transports, and a last look for anything left behind.

Nothing here stands in for anything: every sandbox is a real one, every client talks over a real transport.
"""

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from mcp import Client, StdioServerParameters
from xdist.scheduler import LoadScopeScheduling

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.guest import Guest

ROOT = Path(__file__).resolve().parent.parent


_UNITS: dict[str, tuple[str, ...]] = {
    "guest": (
        "test_life.py",
        "test_storage.py",
        "test_engine_script.py",
        "test_lifecycle.py",
        "test_isolation.py",
        "test_cgroup2.py",
    ),
    "bases": (
        "test_bad_input.py",
        "test_registry.py",
        "test_nested_socket.py",
        "test_base_images.py",
        "test_build_causes.py",
        "test_example_apps.py",
        "test_testcontainers.py",
    ),
}
"""Files that stay together, in this order: the guest boots, and the base images are made, while the first of them run."""
_FIRST = (
    "guest",
    "bases",
    "test_http.py",
    "test_own_loopback.py",
    "test_secrets.py",
    "test_egress.py",
    "test_cli.py",
    "contract, podman",
    "contract, docker",
    "test_host_engine.py",
    "test_endpoints.py",
    "test_claude_code.py",
    "test_approval.py",
    "test_podman_remote.py",
    "test_inspector.py",
)
"""First what takes longest, for those who share the work are to end at about the same time; and what mostly waits, while the guest and the bases keep the processors
busy."""


def _unit(nodeid: str) -> str:
    """What of the suite belongs together, because it shares what is costly to make."""
    *_, directory, file = nodeid.partition("::")[0].split("/")
    if directory == "contract":  # a sandbox of each engine
        given = nodeid.partition("[")[2].removesuffix("]")
        return f"contract, {'docker' if given.startswith('docker') or given.endswith('-docker') else 'podman'}"
    if directory == "unit":  # whose files need nothing of each other
        return f"unit, {file}"
    if directory in ("integration", "clients"):
        return next((unit for unit, files in _UNITS.items() if file in files), file)
    return directory


def _place(nodeid: str) -> tuple[int, int]:
    unit, file = _unit(nodeid), nodeid.partition("::")[0].rpartition("/")[2]
    files = _UNITS.get(unit, ())
    return _FIRST.index(unit) if unit in _FIRST else len(_FIRST), files.index(file) if file in files else 0


class _Lanes(LoadScopeScheduling):
    """A unit goes whole to the worker that is free first."""

    def _split_scope(self, nodeid: str) -> str:
        return _unit(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Lanes:
    return _Lanes(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.nodeid))


def pytest_configure(config: pytest.Config) -> None:
    """Each worker has an engine to itself: the first the one that all of them are started with."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    engines = os.environ.get("MANYOYO_TEST_BESIDE", "").split()
    if 0 < number <= len(engines):
        os.environ["DOCKER_HOST"] = engines[number - 1]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def server_parameters(directory: Path, **environment: str) -> StdioServerParameters:
    """How a client starts a server of its own, with `directory` as the project."""
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "manyoyo_mcp", "serve"],
        env={**os.environ, "MANYOYO_STATE_DIR": str(directory / ".state"), **environment},
        cwd=directory,
    )


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client over stdio to a server of its own, started in an empty project directory."""
    async with Client(server_parameters(tmp_path)) as connected:
        yield connected


@pytest.fixture(scope="session")
async def manager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Manager]:
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"), runtime_dir=tmp_path_factory.mktemp("run"))
    async with open_manager(settings) as opened:
        yield opened


def _ours(host: docker.DockerClient) -> set[str]:
    """Everything on the host's engine that carries our labels or names, but images, the volume of base images and the pool."""
    found = {
        f"container {each.name}"
        for each in host.containers.list(all=True, ignore_removed=True)
        if _labelled(each.labels)
    }
    found |= {f"volume {each.name}" for each in host.volumes.list() if _labelled(each.attrs.get("Labels") or {})}
    found |= {f"network {each.name}" for each in host.networks.list() if _labelled(each.attrs.get("Labels") or {})}
    return found


def _labelled(labels: dict[str, str]) -> bool:
    return labels.get("org.manyoyo.kind", "image") not in (
        "image",
        "bases",
        "pool",
    )  # containers inherit their image's label


def _processes() -> set[str]:
    """Command lines of servers and reapers of this environment that run."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "manyoyo_mcp" in words and sys.prefix in words and "pytest" not in words:
                found.add(f"process {entry.parent.name}: {words[:120]}")
    return found


def _files() -> set[str]:
    roots = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    found = {f"directory {path}" for root in roots for path in root.glob("manyoyo-*")}
    return found | {
        f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines() if "manyoyo-image" in line
    }


_PATIENCE = 150.0
"""Seconds after which what is left is left for good: leases have run out (120 s), removals that nobody waited for are done."""
_SOON = 20.0
"""Seconds after which who left it is worth a word."""


class _Seen:
    """After which test each container was there first. `host` while it is looked at."""

    def __init__(self) -> None:
        self.host: docker.DockerClient | None = None
        self.since: dict[str, str] = {}

    def look(self, test: str) -> None:
        if self.host is not None:
            for row in self.host.api.containers(all=True, filters={"label": "org.manyoyo.kind"}):
                self.since.setdefault(row["Names"][0].removeprefix("/"), test)


_seen = _Seen()


@pytest.fixture(autouse=True)
def seen(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if not request.node.nodeid.startswith("tests/unit/"):
        _seen.look(request.node.nodeid)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """The suite ends as it began: a bystander is untouched, and nothing of ours is left that was not there before."""
    if os.environ.get("MANYOYO_TEST_ALONE") != "1":
        yield  # `scripts/test` sets it: the suite is alone on an engine of its own
        return
    host = docker.from_env()
    before = _ours(host)
    bystander = _bystander(host)
    state = (bystander.attrs["State"]["Pid"], bystander.attrs["State"]["StartedAt"]) if bystander else None
    _seen.host = host
    yield
    _seen.host = None
    began = time.monotonic()
    left = slow = _ours(host) - before
    while left and time.monotonic() - began < _PATIENCE:
        time.sleep(0.5)
        if left := _ours(host) - before:
            slow = left
    told = [
        f"{each}, there since {_seen.since.get(each.partition(' ')[2], 'nobody knows which test')}"
        for each in sorted(slow)
    ]
    if (took := time.monotonic() - began) > _SOON:
        warnings.warn(f"it took {took:.0f} s until nothing was left: {told}", stacklevel=1)
    try:
        if bystander is not None:
            bystander.reload()
            assert (bystander.attrs["State"]["Pid"], bystander.attrs["State"]["StartedAt"]) == state, (
                "a bystander was touched"
            )
            assert host.volumes.get("bystander-of-the-tests")
        assert not left, f"left behind: {told}"
    finally:
        if bystander is not None:
            bystander.remove(force=True)
            host.volumes.get("bystander-of-the-tests").remove()
        host.close()


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory, nothing_left_behind: None) -> Iterator[Guest]:
    started = Guest(tmp_path_factory.mktemp("guest"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def guest_begun(request: pytest.FixtureRequest) -> None:
    """Where the guest is to be asked, it runs meanwhile."""
    if any(item.path.name == "test_cgroup2.py" for item in request.session.items):
        request.getfixturevalue("guest")


def _after_a_while(look: Callable[[], set[str]]) -> set[str]:
    """What is there still when reapers, and removals that nobody waited for, have had their time."""
    deadline = time.monotonic() + _PATIENCE
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


_BEFORE = pytest.StashKey[set[str]]()
_LEFT = pytest.StashKey[set[str]]()


def _looks_at_machine(config: pytest.Config) -> bool:
    """Whoever is told of the whole run, all lanes of it."""
    return os.environ.get("MANYOYO_TEST_ALONE") == "1" and not hasattr(config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    if _looks_at_machine(session.config):
        session.config.stash[_BEFORE] = _processes() | _files()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nor is a process or file of ours left on the machine."""
    config = session.config
    if _looks_at_machine(config):
        config.stash[_LEFT] = _after_a_while(lambda: (_processes() | _files()) - config.stash[_BEFORE])
        if config.stash[_LEFT] and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(_LEFT, set()):
        terminalreporter.section("left behind: the run has failed", red=True)
        terminalreporter.write_line("\n".join(sorted(left)))


def _bystander(host: docker.DockerClient) -> docker.models.containers.Container | None:
    """Somebody else's container and volume on the same engine."""
    images = [tag for image in host.images.list() for tag in image.tags if tag.startswith("localhost/manyoyo/sandbox:")]
    if not images:
        return None
    with contextlib.suppress(docker.errors.NotFound):
        host.containers.get("bystander-of-the-tests").remove(force=True)
    volume = host.volumes.create("bystander-of-the-tests")
    container = host.containers.run(
        images[0], ["sleep", "86400"], entrypoint=[], name="bystander-of-the-tests", detach=True, init=True,
        volumes={volume.name: {"bind": "/data", "mode": "rw"}},
    )  # fmt: skip
    container.reload()
    return container
