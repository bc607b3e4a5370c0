"""Where the installed clients are, the environment they run in, and what a server leaves on the machine."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import docker

from manyoyo_mcp.hosts.base import LABEL

ROOT = Path(__file__).resolve().parents[2]
_USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE = Path(os.environ.get("MANYOYO_CACHE") or _USER_CACHE / "manyoyo-mcp") / "clients"
"""Where `scripts/clients install` puts them."""
BIN = CACHE / "bin"
MODULES = CACHE / "node_modules"
SERVER = str(Path(sys.executable).with_name("manyoyo-mcp"))
"""The server of the environment that runs the tests."""

TOOLS = {path.stem for path in (ROOT / "tool_schemas").glob("*.json")}

# What a client may see of the caller's environment: where the engine is, how package managers reach their registries,
# whose CA to trust. Nothing that sets up a client of the developer's own.
_PASSED = re.compile(
    r"(DOCKER_|MANYOYO_|PIP_|UV_|SSL_CERT_)\w+|npm_config_\w+|\w*_PROXY"
    r"|NODE_EXTRA_CA_CERTS|REQUESTS_CA_BUNDLE|LANG|LC_ALL|TZ",
    re.IGNORECASE,
)


@cache
def _package_index() -> dict[str, str]:
    """uv's name for the index that pip is set up with, where it is; uv does not read pip's files."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {"UV_DEFAULT_INDEX": index} if index else {}


def environment(scratch: Path, **more: str) -> dict[str, str]:
    """A developer's environment whose home, caches and state are in `scratch`."""
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    return {
        **{name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)},
        **_package_index(),
        "PATH": f"{BIN}:{Path(SERVER).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "DOCKER_CONFIG": os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker")),
        "MANYOYO_STATE_DIR": str(scratch / "state"),
        "NODE_USE_SYSTEM_CA": "1",
        "UV_SYSTEM_CERTS": "1",
        "UV_CACHE_DIR": str(CACHE / "uv"),
        "UV_PYTHON": sys.executable,
        "UV_NO_PROGRESS": "1",
        **more,
    }


def server_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What the server needs of it; for clients that hand a server nothing but what its entry names."""
    return {name: value for name, value in env.items() if name.startswith(("DOCKER_", "MANYOYO_"))}


def run(
    *argv: str | Path, cwd: Path, env: Mapping[str, str], timeout: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a client to its end, without a standard input. Fails the test where it fails (`check`) or takes too long."""
    command = [str(word) for word in argv]
    done = subprocess.run(
        command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert not check or done.returncode == 0, f"{command}: exit code {done.returncode}\n{said}"
    return done


@contextmanager
def background(*argv: str | Path, cwd: Path, env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A client that runs on, its output in `log`; ended on leaving, with its children."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(what: str, condition: Callable[[], object], within: float) -> None:
    """Wait for `condition()`; fails the test after `within` seconds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:g} s: {what}"
        time.sleep(0.1)


@dataclass
class Footprint:
    """What the servers of one test have on this machine: processes, known by their state directory, and sandboxes."""

    marker: str
    sandboxes: set[str] = field(default_factory=set)

    def processes(self) -> dict[int, str]:
        """Command lines of the servers and reapers that run, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if f"MANYOYO_STATE_DIR={self.marker}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "manyoyo" in command:
                found[int(entry.name)] = command
        return found

    def note(self) -> set[str]:
        """The sandboxes there are now; kept, so that `left` knows whom to look for when their server is gone."""
        host = docker.from_env()
        try:
            for pid in self.processes():
                for container in host.containers.list(
                    all=True, filters={"label": f"{LABEL}server-pid={pid}"}, ignore_removed=True
                ):
                    if f"{LABEL}sandbox" in container.labels:
                        self.sandboxes.add(container.labels[f"{LABEL}sandbox"])
        finally:
            host.close()
        return self.sandboxes

    def left(self) -> list[str]:
        """Whatever is still there."""
        left = [f"process {pid}: {command}" for pid, command in self.processes().items()]
        host = docker.from_env()
        try:
            for sandbox in self.sandboxes:
                rows = host.containers.list(
                    all=True, filters={"label": f"{LABEL}sandbox={sandbox}"}, ignore_removed=True
                )
                left += [f"container {row.name}" for row in rows]
                volumes = host.volumes.list(filters={"label": f"{LABEL}sandbox={sandbox}"})
                left += [f"volume {volume.name}" for volume in volumes]
        finally:
            host.close()
        return left

    def gone(self, within: float = 10) -> None:
        """Wait until nothing is left; fails the test after `within` seconds."""
        assert self.sandboxes, "no sandbox was noted, so none could be left"
        end = time.monotonic() + within
        while left := self.left():
            assert time.monotonic() < end, f"left after {within:g} s: {left}"
            time.sleep(0.2)
