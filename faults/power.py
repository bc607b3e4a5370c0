"""`scripts/faults power`: in a guest, whose clock can be set and which can lose its power: the clock jumps, then the power
goes, in the middle of work. Run once before that and once after; what is found is printed, exit code 1 where it is wrong."""

import contextlib
import os
import sys
import time
from pathlib import Path

import anyio
from mcp import Client

from faults.run import IMAGE, _build, _call
from faults.world import LABEL, World

HOME = Path("/payload")
"""A disk that the guest keeps, with an engine that has the sandbox image."""
LEASE = 30
"""Seconds; the guest's processors are emulated."""
_COMMITTED = 12
"""Seconds after which the pool has written what was written to it: two of its commits."""
_DAY = 86400


class Wrong(Exception):
    """What should not be."""


def main() -> None:
    """Before, or after, as what lies in HOME says."""
    world = World(HOME, lease=LEASE)
    first = not (world.directory / "state").exists()
    world.up()
    os.environ["DOCKER_HOST"] = world.environment["DOCKER_HOST"]
    os.sync()  # the engine and its image have been there for long
    try:
        anyio.run(_before if first else _after, world)
    except Wrong as error:
        print(f"WRONG: {error}", flush=True)
        sys.exit(1)


async def _before(world: World) -> None:
    async with Client(world.server(), read_timeout_seconds=600) as client:
        for engine in ("podman", "docker"):
            started = await _call(client, "start_sandbox", name=f"kept-{engine}", engine=engine, memory="512m")
            sandbox = started["sandbox"]["sandbox_id"]
            await _build(client, sandbox)
            command = ["sh", "-c", f"echo {engine} > /treasure; sleep 1000000"]
            await _call(
                client, "nested_run", sandbox_id=sandbox, image=IMAGE, command=command, detach=True, name="treasure"
            )
            await _call(client, "checkpoint", sandbox_id=sandbox, name=f"point-{engine}")
        nameless = (await _call(client, "start_sandbox", memory="512m"))["sandbox"]["sandbox_id"]
        there = _containers(world)
        for jump in (_DAY, -2 * _DAY, _DAY):
            time.clock_settime(time.CLOCK_REALTIME, time.time() + jump)
            end = time.monotonic() + 2 * LEASE
            while time.monotonic() < end:
                world.gc()  # another server's sweep
                await anyio.sleep(5)
                for sandbox in ("kept-podman", "kept-docker", nameless):
                    await _call(client, "nested_list", sandbox_id=sandbox)
            if _containers(world) != there:
                raise Wrong(f"the clock jumped by {jump} s: {there} -> {_containers(world)}")
            print(f"the clock jumped by {jump:+} s: all {len(there)} sandboxes are there, once each", flush=True)
        await anyio.sleep(_COMMITTED)
        async with anyio.create_task_group() as group:  # and something is always being written
            for sandbox in ("kept-podman", "kept-docker", nameless):
                files = {"Dockerfile": f"FROM {IMAGE}\nRUN dd if=/dev/urandom of=/new bs=1M count=20\nRUN sleep 60\n"}
                group.start_soon(client.call_tool, "nested_build", {"sandbox_id": sandbox, "files": files})
            await anyio.sleep(8)
            print("the power goes", flush=True)
            await anyio.sleep(1)
            await anyio.to_thread.run_sync(Path("/proc/sysrq-trigger").write_text, "b")
            await anyio.sleep(60)
            raise Wrong("the power did not go")


async def _after(world: World) -> None:
    async with Client(world.server(), read_timeout_seconds=600) as client:
        for engine in ("podman", "docker"):
            for wanted in ({"name": f"kept-{engine}"}, {"from_checkpoint": f"point-{engine}"}):
                began = time.monotonic()
                started = await _call(client, "start_sandbox", **wanted, memory="512m")
                seconds = time.monotonic() - began
                sandbox = started["sandbox"]["sandbox_id"]
                await _call(client, "nested_stop", sandbox_id=sandbox, container="treasure", action="start")
                exec_ = {"container": "treasure", "command": ["cat", "/treasure"]}
                told = await _call(client, "nested_exec", sandbox_id=sandbox, **exec_)
                if engine not in told["output"]:
                    raise Wrong(f"{wanted} has lost its treasure: {told}")
                built = await _call(
                    client, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {IMAGE}\nRUN true\n"}
                )
                if built["reason"] != "OK":
                    raise Wrong(f"{wanted} builds no longer: {built}")
                print(
                    f"after the power: {wanted} is there in {seconds:.1f} s, with its treasure, and builds", flush=True
                )
                await _call(client, "cleanup", sandbox_id=sandbox)
            await _call(client, "cleanup", checkpoint=f"point-{engine}")
    deadline = time.monotonic() + 4 * LEASE
    while left := world.left(set()):
        if time.monotonic() > deadline:
            raise Wrong(f"left behind: {left}")
        world.gc()
        await anyio.sleep(2)
    print("nothing is left", flush=True)


def _containers(world: World) -> list[str]:
    with contextlib.closing(world.host()) as host:
        filters = {"label": f"{LABEL}kind=sandbox"}
        return sorted(each.name for each in host.containers.list(filters=filters, ignore_removed=True))


if __name__ == "__main__":
    main()
