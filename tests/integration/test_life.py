"""Sandboxes that nobody uses end, by limits that know work; all of them together stay within a budget, and the others wait in line."""

import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from mcp import Client

from manyoyo_mcp.sessions.identity import answers_for
from tests.conftest import server_parameters
from tests.integration.test_storage import build, call, containers, refused, run, start
from tests.support import MIB

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240), pytest.mark.usefixtures("guest_begun")]
IDLE = 6


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(server_parameters(tmp_path, MANYOYO_IDLE_S=str(IDLE), MANYOYO_LEASE_S="6")) as connected:
        yield connected


async def ended(sandbox: str, seconds: float) -> None:
    with anyio.fail_after(seconds):
        while containers(sandbox):
            await anyio.sleep(0.2)


async def test_what_is_idle_ends_and_what_works_does_not(client: Client) -> None:
    """Many sandboxes at once, for most of the time is spent waiting."""
    quiet, busy = {}, {}
    spin = "while [ ! -e /tmp/stop ]; do for i in $(seq 9000); do :; done; sleep 0.5; done; exec sleep 1000"  # a little is work
    for engine in ("podman", "docker"):
        busy[engine] = await serving(client, spin, engine=engine)
        quiet[engine] = await serving(client, "exec sleep 1000", engine=engine)
    status = {each["sandbox_id"]: each for each in (await call(client, "sandbox_status"))["sandboxes"]}
    assert status[quiet["docker"]]["ends_in_seconds"] <= IDLE and "removed" in status[quiet["docker"]]["will"]
    traffic = await serving(client, "while :; do nc -l -p 80 > /dev/null; done")
    address = (await call(client, "nested_list", sandbox_id=traffic))["containers"][0]["address"]
    send = f"while :; do head -c 9000 /dev/zero | nc {address} 80 -w 1; sleep 1; done"
    await run(client, traffic, send, detach=True, name="source")
    job = await serving(client, "exec sleep 1000")
    begun = await run(client, job, "sleep 1000", wait_s=0)
    kept = await serving(client, "exec sleep 1000", keep_alive=True)
    named = await serving(client, "exec sleep 1000", sandbox_name="quiet-one")
    for each in quiet.values():
        await ended(each, IDLE * 3)
    error = await refused(client, "nested_list", sandbox_id=quiet["podman"])
    assert error["code"] == "SANDBOX_NOT_FOUND" and "MANYOYO_IDLE_S" in error["message"], error
    await anyio.sleep(IDLE * 2)
    for each in (*busy.values(), traffic, job, kept):
        assert containers(each) == ["running"], each
    status = {each["sandbox_id"]: each for each in (await call(client, "sandbox_status"))["sandboxes"]}
    assert begun["job_id"] in status[job]["will"] and "keep_alive" in status[kept]["will"]
    for each in busy.values():
        await call(client, "nested_exec", sandbox_id=each, container="serving", command=["touch", "/tmp/stop"])
    await call(client, "job_cancel", job_id=begun["job_id"])
    await call(client, "nested_stop", sandbox_id=kept, container="serving", action="remove")
    for each in (*busy.values(), job, kept):
        await ended(each, IDLE * 8)
    with anyio.fail_after(30):
        while containers(named) == ["running"]:
            await anyio.sleep(0.2)
    error = await refused(client, "nested_list", sandbox_id="quiet-one")
    assert "start_sandbox" in error["message"], error
    again = await call(client, "start_sandbox", name="quiet-one")
    assert again["resumed"] == "stopped" and "serving" in again["sandbox"]["containers"][0]
    await call(client, "cleanup", sandbox_id="quiet-one")


async def serving(
    client: Client, command: str, *, keep_alive: bool = False, sandbox_name: str | None = None, **arguments: Any
) -> str:
    """A sandbox with a service that runs a command."""
    sandbox = await start(client, **({"name": sandbox_name} if sandbox_name else {}), **arguments)
    await build(client, sandbox)
    await run(client, sandbox, command, detach=True, name="serving", keep_alive=keep_alive)
    return sandbox


async def test_a_service_that_keeps_its_sandbox_does_so_for_whoever_has_it(tmp_path: Path) -> None:
    parameters = server_parameters(tmp_path, MANYOYO_IDLE_S=str(IDLE), MANYOYO_LEASE_S="6")
    async with Client(parameters) as joining:
        async with Client(parameters) as first:
            named = await start(first, name="kept-on")
            assert (await call(joining, "start_sandbox", name="kept-on"))["resumed"] == "running"
            await serving(first, "exec sleep 1000", keep_alive=True, sandbox_name="kept-on")
        await anyio.sleep(IDLE * 3)
        assert containers(named) == ["running"]
        status = (await call(joining, "sandbox_status", sandbox_id=named))["sandboxes"][0]
        assert "keep_alive" in status["will"], status
        await call(joining, "nested_stop", sandbox_id=named, container="serving", action="stop")
        with anyio.fail_after(60):
            while containers(named) == ["running"]:
                await anyio.sleep(0.2)
        await call(joining, "cleanup", sandbox_id="kept-on")


async def test_a_greatest_age(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path, MANYOYO_MAX_AGE_S="10", MANYOYO_LEASE_S="6")) as client:
        sandbox = await start(client)
        await build(client, sandbox)
        await run(client, sandbox, "sleep 1000", wait_s=0)
        named = await start(client, name="aged")
        await build(client, named)
        job = (await run(client, named, "sleep 1000", wait_s=0))["job_id"]
        await ended(sandbox, 40)
        assert "MANYOYO_MAX_AGE_S" in (await refused(client, "nested_list", sandbox_id=sandbox))["message"]
        with anyio.fail_after(40):
            while containers(named) == ["running"]:
                await anyio.sleep(0.2)
        assert (await call(client, "job_status", job_id=job))["jobs"][0]["state"] == "cancelled"
        await call(client, "cleanup", sandbox_id="aged")


async def test_over_budget_it_is_refused_or_waits_in_line(tmp_path: Path) -> None:
    shared = {"MANYOYO_OWNER_SANDBOXES": "2", "MANYOYO_RUNTIME_DIR": str(tmp_path / "run")}
    others = await _running()
    shared["MANYOYO_OWNER_SANDBOXES"] = str(others + 2)
    parameters = server_parameters(tmp_path, **shared)
    async with Client(parameters) as one, Client(parameters) as two, Client(parameters) as three:
        first, _second = await start(one), await start(two)
        error = await refused(two, "start_sandbox")
        assert error["code"] == "BUDGET_EXCEEDED" and "wait_s" in error["hint"], error
        begun = time.monotonic()
        assert (await refused(three, "start_sandbox", wait_s=2))["code"] == "BUDGET_EXCEEDED"
        assert time.monotonic() - begun >= 2
        order: list[str] = []
        words: list[str] = []

        async def heard(_done: float, _total: float | None, message: str | None) -> None:
            words.append(message or "")

        async def wait(client: Client, name: str, callback: Any = None) -> None:
            result = await client.call_tool(
                "start_sandbox", {"memory": "512m", "wait_s": 60}, progress_callback=callback
            )
            assert not result.is_error, result.content
            order.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(wait, three, "three")
            await anyio.sleep(1.5)
            group.start_soon(wait, two, "two", heard)
            await anyio.sleep(1.5)
            assert order == []
            await call(one, "cleanup", sandbox_id=first)
            with anyio.fail_after(30):
                while not order:
                    await anyio.sleep(0.1)
            await anyio.sleep(1)
            assert order == ["three"], "who came first is served first"
            await call(three, "cleanup")
        assert order == ["three", "two"]
        assert any("2. in the queue" in each for each in words), words


async def test_a_budget_that_can_never_hold_it_says_so_at_once(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path, MANYOYO_HOST_MEMORY="256m")) as client:
        error = await refused(client, "start_sandbox", memory="512m", wait_s=60)
        assert error["code"] == "BUDGET_EXCEEDED" and "can't hold" in error["message"], error
    async with Client(server_parameters(tmp_path, MANYOYO_OWNER_DISK="1g")) as client:
        error = await refused(client, "start_sandbox", disk="2g", wait_s=60)
        assert error["code"] == "BUDGET_EXCEEDED" and "disk" in error["message"], error


async def test_what_a_sandbox_grew_by_counts_until_it_ends(tmp_path: Path) -> None:
    host = docker.from_env()
    live = host.containers.list(ignore_removed=True, filters={"label": "org.manyoyo.kind=sandbox"})
    host.close()
    others = sum(int(each.labels["org.manyoyo.memory"]) for each in live)
    budget = {"MANYOYO_OWNER_MEMORY": f"{(others >> 20) + 1100}m", "MANYOYO_RUNTIME_DIR": str(tmp_path / "run")}
    async with Client(server_parameters(tmp_path, **budget)) as client:
        grown = await start(client, memory="256m")
        await call(client, "start_sandbox", sandbox_id=grown, memory="700m")
        error = await refused(client, "start_sandbox", memory="512m")
        assert error["code"] == "BUDGET_EXCEEDED" and "memory" in error["message"], error
        error = await refused(client, "start_sandbox", sandbox_id=grown, memory="1200m")
        assert error["code"] == "BUDGET_EXCEEDED", error
        await call(client, "start_sandbox", sandbox_id=grown, memory="1000m")
        await call(client, "cleanup", sandbox_id=grown)
        await start(client, memory="512m")


async def test_what_is_kept_counts_too(tmp_path: Path) -> None:
    host = docker.from_env()
    volumes = host.volumes.list(filters={"label": "org.manyoyo.kind"})
    host.close()
    labels = [each.attrs["Labels"] for each in volumes]
    others = sum(int(each.get("org.manyoyo.used", each.get("org.manyoyo.disk", 0))) for each in labels)
    budget = {"MANYOYO_OWNER_DISK": f"{(others >> 20) + 700}m", "MANYOYO_RUNTIME_DIR": str(tmp_path / "run")}
    async with Client(server_parameters(tmp_path, **budget)) as client:
        grown = await start(client, name="grown", disk="200m", memory="256m")
        await call(client, "start_sandbox", sandbox_id=grown, disk="500m")
        for then in ("while it runs", "stopped", "again"):
            error = await refused(client, "start_sandbox", disk="300m")
            assert error["code"] == "BUDGET_EXCEEDED" and "disk" in error["message"], (then, error)
            if then == "while it runs":
                await call(client, "cleanup", sandbox_id=grown, keep_data=True)
            elif then == "stopped":
                again = await call(client, "start_sandbox", name="grown")
                assert again["resumed"] == "stopped" and again["sandbox"]["disk_bytes"] == 500 * MIB
        await build(client, grown)
        small = await start(client, disk="199m")
        await call(client, "cleanup", sandbox_id=small)
        await call(client, "checkpoint", sandbox_id=grown, name="counted")
        error = await refused(client, "start_sandbox", disk="199m")
        assert error["code"] == "BUDGET_EXCEEDED", error
        await call(client, "cleanup", checkpoint="counted")
        await call(client, "cleanup", sandbox_id="grown")
        await start(client, name="grown", disk="650m")
        await call(client, "cleanup", sandbox_id="grown")


async def test_who_waits_or_dies_waiting_holds_nobody_up(tmp_path: Path) -> None:
    others = await _running()
    shared = {"MANYOYO_OWNER_SANDBOXES": str(others + 1), "MANYOYO_RUNTIME_DIR": str(tmp_path / "run")}
    parameters = server_parameters(tmp_path, **shared)
    async with Client(parameters) as one:
        first = await start(one)
        waiting = await anyio.open_process(
            [parameters.command, "-c", _WAITS], env={**os.environ, **(parameters.env or {})}, cwd=tmp_path
        )
        await anyio.sleep(6)
        with anyio.fail_after(10):  # nor does who waits keep the name to itself
            assert (await refused(one, "start_sandbox", name="in-line"))["code"] == "BUDGET_EXCEEDED"
        await call(one, "start_sandbox", sandbox_id=first, memory="700m")  # what is there gives way to nobody
        await call(one, "checkpoint", sandbox_id=first, name="beside-the-queue")
        await call(one, "cleanup", checkpoint="beside-the-queue")
        waiting.kill()
        await waiting.wait()
        await call(one, "cleanup", sandbox_id=first)
        await start(one, wait_s=5)


async def test_one_made_ahead_is_there_at_once_and_used_once(tmp_path: Path) -> None:
    before = await _running()
    async with Client(server_parameters(tmp_path, MANYOYO_WARM="1")) as client:
        ready = await _warm(before + 1)
        taken = await call(client, "start_sandbox", memory="300m", cpus=0.5, disk="1g")
        assert taken["sandbox"]["sandbox_id"] in ready, "it was there before"
        assert taken["sandbox"]["caps"]["memory_bytes"] == 300 << 20 and taken["sandbox"]["disk_bytes"] == 1 << 30
        first = taken["sandbox"]["sandbox_id"]
        await build(client, first)
        limit = await run(client, first, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; :")
        assert limit["reason"] == "OK"
        ready = await _warm(before + 2)
        assert await start(client) in ready - {first}
        others = await start(client, engine="docker")
        assert containers(others) == ["running"]
    await ended(first, 20)


@pytest.mark.parametrize("claimed", [False, True])
async def test_those_made_ahead_die_with_their_server(tmp_path: Path, claimed: bool) -> None:
    before = await _running()
    with contextlib.suppress(Exception):
        async with Client(server_parameters(tmp_path, MANYOYO_WARM="2", MANYOYO_LEASE_S="4")) as client:
            await _warm(before + 2)
            if claimed:
                await start(client)
            for session in (tmp_path / ".state" / "sessions").iterdir():
                os.kill(int(json.loads((session / "server.json").read_text())["server-pid"]), signal.SIGKILL)
    with anyio.fail_after(30):
        while await _running() > before:
            await anyio.sleep(0.2)


async def _warm(count: int) -> set[str]:
    """So many sandboxes that run, some of them made ahead; their ids."""
    with anyio.fail_after(20):
        while len(found := await _ids()) < count:
            await anyio.sleep(0.05)
    await anyio.sleep(2.5)  # its caps are proven, its engine listens; on a busy machine that takes a second
    return set(found)


_WAITS = """
import anyio
from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.manager import open_manager
async def main():
    async with open_manager(Settings()) as manager:
        await manager.start(name="in-line", wait_s=100)
anyio.run(main)
"""


async def _running() -> int:
    """How many sandboxes run, those of other tests too; once those of servers that have ended are gone, and no other ends either."""
    there, since = await _ids(), time.monotonic()
    with anyio.fail_after(90):
        while time.monotonic() - since < 4:
            await anyio.sleep(0.5)
            now = await _ids()
            if now != there or not all(now.values()):
                there, since = now, time.monotonic()
    return len(there)


async def _ids() -> dict[str, bool]:
    """Those that run, and of each whether its server does."""
    host = docker.from_env()
    found = host.containers.list(ignore_removed=True, filters={"label": "org.manyoyo.kind=sandbox"})
    host.close()
    labels = [{name.removeprefix("org.manyoyo."): value for name, value in each.labels.items()} for each in found]
    return {each["sandbox"]: answers_for(each) for each in labels}
