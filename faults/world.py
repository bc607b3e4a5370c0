"""The machine as the faults find it: an engine of its own, and what is on it that should or should not be."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import docker
from mcp import StdioServerParameters

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer

ROOT = Path(__file__).resolve().parent.parent
LEASE = 3
"""Seconds of the sandboxes' leases."""
LABEL = "org.manyoyo."


class World:
    """One lane: its engine, its directories, its environment. `bystanders` are containers on another engine."""

    def __init__(self, directory: Path, bystanders: str | None = None, lease: int = LEASE) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.engine_dir = directory / "engine"
        self.runtime = directory / "run"
        self._lease = lease
        self._bystanders = docker.DockerClient(base_url=bystanders) if bystanders else None
        self._before = self._others()
        self.environment: dict[str, str] = {}

    def up(self) -> None:
        """Bring the engine up, again where it was killed."""
        environment = {**os.environ, "MANYOYO_ENGINE_DIR": str(self.engine_dir)}
        environment.pop("DOCKER_HOST", None)
        script = [str(ROOT / "scripts" / "engine")]
        subprocess.run([*script, "up"], env=environment, check=True, capture_output=True)
        lines = subprocess.run([*script, "env"], env=environment, check=True, capture_output=True, text=True).stdout
        for line in lines.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.environment[name] = value
        self.environment |= {
            "MANYOYO_ENGINE_DIR": str(self.engine_dir),
            "MANYOYO_LEASE_S": str(self._lease),
            "MANYOYO_RUNTIME_DIR": str(self.runtime),
            "MANYOYO_STATE_DIR": str(self.directory / "state"),
        }

    def lay_image(self) -> None:
        """The outer image, from the engine where bystanders are."""
        name = outer.reference(Settings())
        with contextlib.closing(self.host()) as host:
            if not any(name in image.tags for image in host.images.list()):
                assert self._bystanders is not None
                host.api.load_image(self._bystanders.api.get_image(name))

    def purge(self) -> None:
        environment = {**os.environ, "MANYOYO_ENGINE_DIR": str(self.engine_dir)}
        environment.pop("DOCKER_HOST", None)
        subprocess.run([str(ROOT / "scripts" / "engine"), "purge"], env=environment, check=True, capture_output=True)

    def host(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.environment["DOCKER_HOST"])

    def server(self) -> StdioServerParameters:
        """A server as a client starts it."""
        return StdioServerParameters(
            command=sys.executable,
            args=["-m", "manyoyo_mcp", "serve"],
            env={**os.environ, **self.environment},
            cwd=self.directory,
        )

    def gc(self) -> None:
        """The sweep that every server's start begins with."""
        command = [sys.executable, "-m", "manyoyo_mcp", "gc", "--quiet"]
        subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, timeout=120)

    # -- who is there

    def engine(self) -> int:
        """The host's dockerd."""
        return int((next(Path("/run").glob(f"manyoyo-engine-{self._tag()}")) / "dockerd.pid").read_text())

    def _tag(self) -> str:
        return self.environment["DOCKER_HOST"].split("manyoyo-engine-")[1].split("/")[0]

    def servers(self) -> list[int]:
        return self._processes("serve")

    def reapers(self) -> list[int]:
        return self._processes("manyoyo_mcp.sessions.reaper")

    def _processes(self, word: str) -> list[int]:
        mark = f"MANYOYO_RUNTIME_DIR={self.runtime}\0".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if word in words and "manyoyo_mcp" in " ".join(words) and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def inside(self, names: tuple[str, ...], sandbox: str | None) -> list[int]:
        """Processes of these names in the outer containers, in that of `sandbox` where one is given."""
        found = []
        with contextlib.closing(self.host()) as host:
            label = f"{LABEL}sandbox={sandbox}" if sandbox else f"{LABEL}kind=sandbox"
            for container in host.containers.list(filters={"label": label}, ignore_removed=True):
                tops: list[int] = [int(container.attrs["State"]["Pid"])]
                while tops:
                    pid = tops.pop()
                    with contextlib.suppress(OSError):
                        tops += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                        if any(Path(word).name in names for word in words[:2]):
                            found.append(pid)
        return found

    # -- what is left

    def left(self, kept: set[str]) -> list[str]:
        """What there is of ours beside the pool, base images and the stores `kept`."""
        with contextlib.closing(self.host()) as host:
            found = [
                f"container {each.name} ({each.status})"
                for each in host.containers.list(all=True, ignore_removed=True)
                if each.labels.get(f"{LABEL}kind", "image") not in ("pool", "image")
            ]
            found += [
                f"volume {each.name}"
                for each in host.volumes.list()
                if _label(each, "kind") not in ("pool", "bases", "") and each.name not in kept
            ]
            found += [f"network {each.name}" for each in host.networks.list() if _label(each, "kind")]
            keeper = [each for each in host.containers.list(ignore_removed=True) if each.name == "manyoyo-pool"]
            if keeper:
                listed = keeper[0].exec_run(["ls", "/run/manyoyo-pool.new"]).output.decode().split()
                found += [f"store {name}" for name in listed if name not in kept]
        found += [f"server {pid}" for pid in self.servers()] + [f"reaper {pid}" for pid in self.reapers()]
        shared = self.runtime / "sandboxes"
        names = {name.removeprefix("manyoyo-") for name in kept}
        found += [
            f"directory {each}" for each in (shared.iterdir() if shared.is_dir() else ()) if each.name not in names
        ]
        for place in ("queue", "reserved"):
            found += [f"file {each}" for each in (self.runtime / "locks" / place).glob("*") if each.suffix != ".lock"]
        return found

    def kept(self) -> set[str]:
        """The stores that have a name."""
        with contextlib.closing(self.host()) as host:
            return {each.name for each in host.volumes.list() if _label(each, "name") or _label(each, "checkpoint")}

    def hurt(self) -> list[str]:
        """Bystanders that are not as they were."""
        now = self._others()
        return [f"{name}: {state} -> {now.get(name)}" for name, state in self._before.items() if now.get(name) != state]

    def _others(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self._bystanders is None:
            return found
        for each in self._bystanders.containers.list(all=True, filters={"label": f"{LABEL}faults=bystander"}):
            found[each.name] = f"{each.attrs['State']['Pid']} {each.attrs['State']['StartedAt']}"
        for volume in self._bystanders.volumes.list(filters={"label": f"{LABEL}faults=bystander"}):
            found[f"volume {volume.name}"] = volume.attrs["CreatedAt"]
        return found


def _label(thing: object, name: str) -> str:
    labels = (getattr(thing, "attrs", {}) or {}).get("Labels") or {}
    return str(labels.get(LABEL + name, ""))


def kill(pids: list[int]) -> int:
    """SIGKILL; how many there were."""
    killed = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def until(condition: object, seconds: float, pause: float = 0.2) -> bool:
    """Whether `condition()` came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(pause)
    return False
