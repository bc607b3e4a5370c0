"""A sandbox to be broken out of, with canaries in and around it, and another beside it."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import docker

from manyoyo_mcp.config import Isolation, Settings
from manyoyo_mcp.image import outer
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.escape.canaries import SYSCALLS, Canaries
from tests.escape.roads import IMAGE, BuildKitRoad, Road, ToolRoad, gate, nested, unguarded
from tests.escape.vectors import ON_HOST
from tests.support import BUSYBOX, Box, busybox_context, file_of
from tests.world import World as Internet

MEMORY, PIDS, DISK = 768 << 20, 512, 1 << 30
"""Of a sandbox: small, so that bombs are."""


@dataclass(slots=True)
class World:
    """`roads` by their names; `control` leads straight to the engine. `home`: a directory for clients' own files. `internet`: a small
    one, made when it is first asked for. `kept` is what attempts of one batch share."""

    tier: str
    box: Box
    canaries: Canaries
    neighbour: "Neighbour"
    roads: dict[str, Road]
    control: Road
    directory: Path
    home: Path
    internet: Callable[[], Internet]
    kept: dict[Any, Any] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        return self.box.sandbox.engine_name

    @property
    def tool(self) -> ToolRoad:
        road = self.roads["tool"]
        assert isinstance(road, ToolRoad)
        return road

    def builds(self, road: Road) -> bool:
        """Whether Dockerfiles are built over it."""
        return self.tier not in ON_HOST or (self.tier == "sock" and road.name == "tool")

    def tag(self, name: str) -> str:
        """A name for an image of an attempt: in `sock` one of the sandbox's own, others may not be given."""
        whose = self.box.sandbox.sandbox_id if self.tier == "sock" else "manyoyo-test"
        return f"localhost/{whose}/{name}:{secrets.token_hex(4)}"

    async def outer(self, script: str) -> str:
        """What a script says that is run where somebody would be who got out: in the outer container; on this machine, where there is none."""
        return await anyio.to_thread.run_sync(self.canaries.outer, script)

    async def keeps(self, script: str) -> str:
        """The same, always in the outer container, which has the lease."""
        return await anyio.to_thread.run_sync(self.canaries.outer_container, script)

    async def changed(self) -> str:
        return await anyio.to_thread.run_sync(self.canaries.changed)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another user's sandbox, with a service in it that tells `secret`. `outer`: its outer container's address."""

    box: Box
    service: str
    address: str
    outer: str
    secret: str


def outer_address(box: Box) -> str:
    host = docker.from_env()
    try:
        networks = host.containers.get(box.sandbox.outer.container_id).attrs["NetworkSettings"]["Networks"]
    finally:
        host.close()
    return str(next(iter(networks.values()))["IPAddress"])


@asynccontextmanager
async def neighbour(state: Path, run: Path) -> AsyncIterator[Neighbour]:
    """Another user's sandbox, with a service in it. `state`, `run`: directories of that user's server."""
    secret = "neighbours-secret-8d1f"
    async with open_manager(Settings(state_dir=state, runtime_dir=run)) as manager:
        object.__setattr__(manager.identity, "owner", "another@machine")
        box = Box(manager, await manager.start("podman", memory=512 << 20))
        assert (await box.build(files=busybox_context(), tags=[BUSYBOX])).image_id
        script = f"mkdir /tmp/w && echo {secret} > /tmp/w/secret && exec httpd -f -p 8765 -h /tmp/w"
        service = await box.service("sh", "-c", script)
        address = next(row.address for row in await box.engine.containers() if row.container_id == service)
        yield Neighbour(box, service, address, outer_address(box), secret)


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
    host = docker.from_env()
    sandbox = await manager.start(
        engine, memory=MEMORY, pids=PIDS, isolation=tier, disk=DISK if neighbour.box.sandbox.disk else None
    )
    try:
        box = Box(manager, sandbox)
        built = await box.build(files=context(), tags=[IMAGE])
        assert built.image_id, built
        container = host.containers.get(sandbox.outer.container_id)
        canaries = await anyio.to_thread.run_sync(partial(Canaries, container, directory))
        control = unguarded(sandbox.dial)
        path = manager.endpoints.open(sandbox)
        roads: list[Road] = [ToolRoad(box), gate(path)]
        if tier != "rootless":  # nobody in there may connect
            roads.append(nested(control))
        if engine == "docker":
            roads.append(await anyio.to_thread.run_sync(BuildKitRoad, path, home))
        by_name = {road.name: road for road in roads}
        yield World(tier, box, canaries, neighbour, by_name, control, directory, home, internet)
    finally:
        with anyio.CancelScope(shield=True):
            await manager.remove(sandbox)
        host.close()


@cache
def context() -> dict[str, bytes]:
    """Of an image with busybox, and perl, which can make any call of the kernel's."""
    return {
        "Dockerfile": b'FROM scratch\nADD root.tar perl.tar /\nCOPY syscall.pl inside.sh /\nENV PATH=/usr/bin:/bin\nCMD ["sh"]\n',
        "root.tar": busybox_context()["root.tar"],
        "perl.tar": _perl(),
        "syscall.pl": SYSCALLS.encode(),
        "inside.sh": inside_script().encode(),
    }


def inside_script() -> str:
    from tests.escape.inside import SCRIPT

    return SCRIPT


def _perl() -> bytes:
    """The outer image's perl with its libraries, as a tar."""
    host = docker.from_env()
    script = "tar -C / -chf /tmp/perl.tar usr/bin/perl $(ldd /usr/bin/perl | grep -o '/[^ ]*' | sed 's,^/,,')"
    container = host.containers.create(
        outer.reference(Settings()), ["-c", script], entrypoint=["sh"], network_mode="none"
    )
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs()
        return file_of(container, "/tmp/perl.tar")
    finally:
        container.remove(v=True)
        host.close()
