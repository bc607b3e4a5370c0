"""Sandboxes without an engine of their own (`common`, `sock`): what is run are containers of this machine's own engine, beside everybody else's. So the
canaries are the machine's, and a bystander's things on that engine."""

import io
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
import docker

from manyoyo_mcp.config import Isolation
from manyoyo_mcp.policy.fields import CAPABILITIES as ALL
from manyoyo_mcp.sessions.manager import Manager
from tests.escape.canaries import CANARY, Canaries
from tests.escape.roads import IMAGE, Answer, Road, ToolRoad, gate, tar, unguarded
from tests.escape.vectors import ON_HOST, OWN, Out, Outcome, Vector, refused, vector, withheld
from tests.escape.world import MEMORY, PIDS, Neighbour, World, context
from tests.support import Box, busybox_rootfs, file_of, wait_for
from tests.world import World as Internet

CAPABILITIES = sorted(ALL - {"NET_RAW", "MKNOD"})
"""Those that a container may have there."""
_PRIVATE = "localhost/bystanders/private:1"
_LOOK = r"""
echo BEGIN
stat -c '%n %a %u %s %Y' {dir} {dir}/* /usr/sbin/dockerd /usr/bin/docker* /usr/bin/containerd* /usr/sbin/runc /usr/bin/runc /bin/sh /etc/passwd /etc/shadow 2>/dev/null
cat {dir}/secret
ls -A / /etc
hostname
awk '{{ print $5 }}' /proc/1/mountinfo | grep -E 'escape-canary|manyoyo-canary'
"""


class Machine(Canaries):
    """This machine, its engine, and what a bystander has there."""

    look = _LOOK

    def __init__(self, keeper: docker.models.containers.Container, bystander: "Bystander", directory: Path) -> None:
        self._bystander = bystander
        self._engine_socket = os.environ.get("DOCKER_HOST", "").removeprefix("unix://")
        super().__init__(keeper, directory)

    def outer(self, script: str, user: str = "root") -> str:
        assert user == "root"
        done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        return done.stdout.decode(errors="replace")

    def around(self) -> list[str]:
        return self._bystander.state()

    def holds(self, cgroup: str, words: str) -> bool:
        if self._outer.id in cgroup:
            return bool(re.search(r"/entrypoint|catatonit", words))
        return "dockerd" in words and bool(self._engine_socket) and self._engine_socket in words

    def end(self) -> None:
        """Nothing of it stays on the machine; the key goes by itself."""
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(b"escape-canary"):
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(CANARY, ignore_errors=True)


class Bystander:
    """Somebody else's things on the same engine: a service that runs, its volume, its network, its image."""

    def __init__(self, host: docker.DockerClient) -> None:
        self.secret = f"bystander-{secrets.token_hex(8)}"
        self.name = f"escape-bystander-{secrets.token_hex(4)}"
        self._host = host
        host.api.import_image_from_data(busybox_rootfs(), *_PRIVATE.rsplit(":", 1), changes=["ENV PATH=/bin"])
        host.volumes.create(self.name)
        host.networks.create(self.name)
        script = f"echo {self.secret} > /data/kept; exec nc -ll -p 7 -e echo {self.secret}"
        self.container = host.containers.run(
            _PRIVATE, ["sh", "-c", script], name=self.name, detach=True, environment={"SECRET": self.secret},
            volumes={self.name: {"bind": "/data", "mode": "rw"}}, init=False,
        )  # fmt: skip
        wait_for(self.container, "/data/kept")

    def state(self) -> list[str]:
        """In lines."""
        self.container.reload()
        there = self.container.attrs
        return [
            f"bystander {there['Name']} {there['State']['Status']} {there['State']['Pid']} {there['State']['StartedAt']}",
            f"bystander {sorted(there['Config']['Env'])} {there['HostConfig']['Memory']} {sorted(there['NetworkSettings']['Networks'])}",
            f"bystander kept {file_of(self.container, '/data/kept')!r}",
            f"bystander {self._host.volumes.get(self.name).attrs['CreatedAt']} {self._host.networks.get(self.name).id}",
            f"bystander {self._host.images.get(_PRIVATE).id}",
        ]

    def end(self) -> None:
        with suppress(docker.errors.NotFound):
            self.container.remove(force=True, v=True)
        with suppress(docker.errors.NotFound):
            self._host.networks.get(self.name).remove()
        for volume in (self.name, "escape-v"):  # that one is of attempts that were asked straight at the engine
            with suppress(docker.errors.NotFound):
                self._host.volumes.get(volume).remove()
        with suppress(docker.errors.NotFound):
            self._host.images.remove(_PRIVATE)


@contextmanager
def _image(host: docker.DockerClient) -> Iterator[None]:
    """The attempts' image on the machine's engine, as an operator has one there."""
    host.images.build(fileobj=io.BytesIO(tar(context())), custom_context=True, tag=IMAGE, rm=True)
    try:
        yield
    finally:
        host.images.remove(IMAGE, force=True)


@asynccontextmanager
async def world(
    manager: Manager,
    tier: Isolation,
    engine: Any,
    neighbour: Neighbour,
    directory: Path,
    home: Path,
    internet: Callable[[], Internet],
) -> AsyncIterator[World]:
    """As `world.world`."""
    host = docker.from_env(timeout=120)
    with _image(host):
        bystander = await anyio.to_thread.run_sync(Bystander, host)
        sandbox = await manager.start(engine, memory=MEMORY, pids=PIDS, isolation=tier)
        machine: Machine | None = None
        try:
            box = Box(manager, sandbox)
            keeper = host.containers.get(sandbox.outer.container_id)
            machine = await anyio.to_thread.run_sync(partial(Machine, keeper, bystander, directory))
            roads: list[Road] = [ToolRoad(box)]
            if tier == "sock":
                roads.append(gate(manager.endpoints.open(sandbox)))
            by_name = {road.name: road for road in roads}
            opened = World(tier, box, machine, neighbour, by_name, unguarded(sandbox.dial), directory, home, internet)
            opened.kept["bystander"] = bystander
            yield opened
        finally:
            with anyio.CancelScope(shield=True):
                await manager.remove(sandbox)
                if machine is not None:
                    machine.end()
                await anyio.to_thread.run_sync(bystander.end)
    host.close()


_BUILDS = "nothing is built there"
_NO_VOLUMES = "there are no volumes"
_POINTLESS = {
    "passwd-is-a-device": "its images are those that the operator named",
    "given": "runs there are given no secrets",
    "leaving": "its policy is open or none, and stays; what that closes has tests of its own",
    "mount-race": _NO_VOLUMES,
    "forge-a-sandbox": _NO_VOLUMES,
    "disk-bomb": "its disk is not capped",
    "inode-bomb": "its disk is not capped",
    "archive-bomb": _BUILDS,
}


def pointless(world: World, road: Road, vector: Vector) -> str | None:
    """Why an attempt makes no sense with an engine that is the machine's own; None where it does."""
    if world.tier not in ON_HOST:
        return None
    if vector.theme in ("builds", "files", "buildkit") and not world.builds(road):
        return _BUILDS
    if vector.theme == "ports" and vector.name != "publish-port":
        return "nothing is published there"
    return _POINTLESS.get(vector.name, _POINTLESS.get(vector.theme))


@vector("reach-a-bystander", OWN, roads=("tool", "gate"), tiers=ON_HOST)
async def reach_a_bystander(world: World, road: Road) -> Outcome:
    """Everything that Docker's API can do to somebody's container, volume, network and image, by their names and ids."""
    bystander: Bystander = world.kept["bystander"]
    container = bystander.container
    outcome: Outcome | None = None
    for name in (bystander.name, container.id, container.id[:12], f"../{bystander.name}"):
        for method, path, body in (
            ("GET", "/containers/{}/json", None), ("GET", "/containers/{}/logs?stdout=1", None), ("GET", "/containers/{}/top", None),
            ("GET", "/containers/{}/archive?path=/data/kept", None), ("GET", "/containers/{}/export", None), ("GET", "/containers/{}/changes", None),
            ("GET", "/containers/{}/stats?stream=0", None), ("POST", "/containers/{}/exec", {"Cmd": ["cat", "/data/kept"], "AttachStdout": True}),
            ("POST", "/containers/{}/stop", None), ("POST", "/containers/{}/kill", None), ("POST", "/containers/{}/restart", None),
            ("POST", "/containers/{}/pause", None), ("POST", "/containers/{}/rename?name=x", None), ("POST", "/containers/{}/update", {"Memory": 8 << 20}),
            ("POST", "/containers/{}/attach?stream=1&stdin=1", None), ("POST", "/containers/{}/wait", None), ("POST", "/commit?container={}", {}),
            ("DELETE", "/containers/{}?force=1&v=1", None), ("DELETE", "/volumes/{}?force=1", None), ("GET", "/volumes/{}", None),
            ("DELETE", "/networks/{}", None), ("GET", "/networks/{}", None), ("POST", "/networks/{}/disconnect", {"Container": bystander.name, "Force": True}),
        ):  # fmt: skip
            if not name.startswith("..") or "{}/" in path:
                outcome = withheld(await _asked(road, method, path.format(name), body))
    for host in (
        {"VolumesFrom": [bystander.name]},
        {"Binds": [f"{bystander.name}:/x"]},
        {"Mounts": [{"Type": "volume", "Source": bystander.name, "Target": "/x"}]},
        {"NetworkMode": bystander.name},
        {"NetworkMode": f"container:{bystander.name}"},
        {"PidMode": f"container:{bystander.name}"},
        {"IpcMode": f"container:{bystander.name}"},
    ):
        withheld(await road.create(HostConfig=host))
    image = world.kept["bystander"]._host.images.get(_PRIVATE).id
    for name in (_PRIVATE, image, image.removeprefix("sha256:")[:12]):
        withheld(await road.create(Image=name))
    for method, path in (
        ("GET", "/images/{}/json"), ("GET", "/images/{}/get"), ("GET", "/images/{}/history"), ("DELETE", "/images/{}?force=1"),
        ("POST", "/images/{}/tag?repo=localhost/manyoyo-test/taken&tag=1"), ("POST", "/images/{}/push"),
    ):  # fmt: skip
        for name in (_PRIVATE, image):
            withheld(await _asked(road, method, path.format(name)))
    for method, path in (
        ("POST", "/containers/prune"), ("POST", "/images/prune"), ("POST", "/volumes/prune"), ("POST", "/networks/prune"), ("POST", "/build/prune"),
        ("GET", "/system/df"), ("GET", "/events?until=1"), ("GET", "/volumes"), ("GET", "/networks"), ("GET", "/swarm"), ("GET", "/plugins"),
    ):  # fmt: skip
        withheld(await _asked(road, method, path))
    for path in ("/containers/json?all=1", "/images/json?all=1"):
        listed = await _asked(road, "GET", path)
        assert listed.ok, listed
        if bystander.name in listed.text or "bystanders" in listed.text:
            raise Out(listed.text[:500])
    _, said = await road.run(
        f"nc -w 2 {_address(bystander)} 7 < /dev/null; nc -w 2 {bystander.name} 7 < /dev/null; echo TRIED"
    )
    if bystander.secret in said:
        raise Out(said[:300])
    assert outcome is not None
    return Outcome(outcome.kind, "POLICY_REFUSED, or as if there were none")


async def _asked(road: Road, method: str, path: str, body: Any = None) -> Answer:
    path, _, query = path.partition("?")
    return await road.request(method, path, dict(parse_qsl(query)), body)


def _address(bystander: Bystander) -> str:
    return next(str(each["IPAddress"]) for each in bystander.container.attrs["NetworkSettings"]["Networks"].values())


@vector("reach-a-sandbox-beside", OWN, roads=("gate",), tiers=("sock",))
async def reach_a_sandbox_beside(world: World, road: Road) -> Outcome:
    """Its keeper, and that of nobody's: by the names that they have."""
    keeper = world.box.sandbox.outer.container_id
    for name in (keeper, f"manyoyo-{world.box.sandbox.sandbox_id}", world.neighbour.box.sandbox.outer.container_id):
        for path in ("/containers/{}/json", "/containers/{}/logs", "/containers/{}/stop", "/containers/{}/exec"):
            method = "GET" if path.endswith(("json", "logs")) else "POST"
            withheld(await road.request(method, path.format(name), None, {"Cmd": ["id"]} if "exec" in path else None))
    return refused(
        await road.create(Labels={"org.manyoyo.within": world.box.sandbox.sandbox_id}), words="the server's own"
    )
