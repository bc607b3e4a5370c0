"""However a server ends, nothing of it stays; and an engine that goes away and comes back is survived."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from mcp import Client

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from manyoyo_mcp.sessions.identity import owner
from tests.conftest import ROOT, server_parameters

pytestmark = pytest.mark.anyio


def sandboxes(host: docker.DockerClient, sandbox_id: str) -> list[str]:
    """What the host has of a sandbox: containers and volumes."""
    label = {"label": f"org.manyoyo.sandbox={sandbox_id}"}
    return [each.name for each in host.containers.list(all=True, ignore_removed=True, filters=label)] + [
        each.name for each in host.volumes.list(filters=label)
    ]


def sessions(directory: Path) -> list[Path]:
    """What sessions keep on disk: their logs."""
    return list((directory / ".state" / "sessions").iterdir())


async def gone(sandbox_id: str, seconds: float) -> None:
    host = docker.from_env()
    try:
        with anyio.fail_after(seconds):
            while sandboxes(host, sandbox_id):
                await anyio.sleep(0.2)
    finally:
        host.close()


def server_of(sandbox_id: str) -> int:
    host = docker.from_env()
    (container,) = host.containers.list(ignore_removed=True, filters={"label": f"org.manyoyo.sandbox={sandbox_id}"})
    host.close()
    return int(container.labels["org.manyoyo.server-pid"])


async def start(client: Client, **arguments: Any) -> str:
    result = await client.call_tool("start_sandbox", {"memory": "512m", **arguments})
    assert not result.is_error, result.content
    return str((result.structured_content or {})["sandbox"]["sandbox_id"])


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_client_closes(tmp_path: Path, mode: str) -> None:
    async with Client(server_parameters(tmp_path), mode=mode) as client:
        sandbox_id = await start(client)
    await gone(sandbox_id, 15)


async def test_the_server_is_ended_by_a_signal(tmp_path: Path) -> None:
    """One server for each signal: most of the time is spent waiting."""
    quiet = anyio.Lock()
    async with anyio.create_task_group() as group:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
            group.start_soon(_ended_by, number, tmp_path / number.name, quiet)


async def _ended_by(number: signal.Signals, directory: Path, quiet: anyio.Lock) -> None:
    directory.mkdir()
    runtime = directory / "run"
    with contextlib.suppress(Exception):  # the client sees its server vanish
        parameters = server_parameters(directory, MANYOYO_RUNTIME_DIR=str(runtime))
        async with Client(parameters) as client, quiet:
            sandbox_id = await start(client)
            pid = server_of(sandbox_id)
            os.kill(pid, number)
            begun = time.monotonic()
            with anyio.fail_after(3):
                while Path(f"/proc/{pid}/cmdline").exists() and b"manyoyo" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    await anyio.sleep(0.02)
            took = time.monotonic() - begun
    assert took < 0.5, "clients wait half a second before they kill"
    await gone(sandbox_id, 20)
    with anyio.fail_after(10):
        while list((runtime / "sandboxes").iterdir()) or sessions(directory):
            await anyio.sleep(0.1)


@pytest.mark.parametrize("left", ["everything", "its volume"])
async def test_a_sweep_removes_what_a_lost_reaper_left(tmp_path: Path, left: str) -> None:
    parameters = server_parameters(tmp_path, MANYOYO_RUNTIME_DIR=str(tmp_path / "run"))
    with contextlib.suppress(Exception):
        async with Client(parameters) as client:
            sandbox_id = await start(client)
            pid = server_of(sandbox_id)
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            reapers = [int(child) for child in children if b"reaper" in Path(f"/proc/{child}/cmdline").read_bytes()]
            assert reapers
            for each in (*reapers, pid):
                os.kill(each, signal.SIGKILL)
    host = docker.from_env()
    await anyio.sleep(1)
    assert sandboxes(host, sandbox_id), "nobody is there to remove it"
    if left == "its volume":
        host.containers.get(f"manyoyo-{sandbox_id}").remove(force=True)
        assert sandboxes(host, sandbox_id) == [f"manyoyo-{sandbox_id}"]
    host.close()
    async with Client(parameters):
        await gone(sandbox_id, 15)
        with anyio.fail_after(5):
            while list((tmp_path / "run" / "sandboxes").iterdir()) or len(sessions(tmp_path)) > 1:
                await anyio.sleep(0.1)


async def test_what_an_image_says_of_itself_is_no_sandbox(tmp_path: Path) -> None:
    """Somebody runs an image here whose labels are ours, and name a server that is no more."""
    host = docker.from_env()
    image = next(
        tag for each in host.images.list() for tag in each.tags if tag.startswith("localhost/manyoyo/sandbox:")
    )
    told = {"kind": "sandbox", "owner": owner(), "sandbox": "sb-forged", "cpus": "x", "server-pid": "9" * 5000}
    forged = host.containers.run(
        image, ["sleep", "100"], entrypoint=[], detach=True, init=True,
        labels={f"org.manyoyo.{key}": value for key, value in (told | {"server-boot": "another"}).items()},
    )  # fmt: skip
    try:
        async with Client(server_parameters(tmp_path)) as client:
            await start(client)
            await anyio.sleep(1)  # its sweep
        forged.reload()
        assert forged.status == "running"
    finally:
        forged.remove(force=True)
        host.close()


def running(sandbox_id: str) -> bool:
    host = docker.from_env()
    found = host.containers.list(ignore_removed=True, filters={"label": f"org.manyoyo.sandbox={sandbox_id}"})
    host.close()
    return bool(found)


async def stopped(sandbox_id: str, seconds: float) -> None:
    with anyio.fail_after(seconds):
        while running(sandbox_id):
            await anyio.sleep(0.2)


async def test_a_sandbox_whose_server_and_reaper_are_dead_ends_itself(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        for engine in ("podman", "docker"):
            for transport in ("socket", "relay"):
                group.start_soon(_ends_itself, tmp_path / f"{engine}-{transport}", engine, transport)


async def _ends_itself(directory: Path, engine: str, transport: str) -> None:
    directory.mkdir()
    parameters = server_parameters(directory, MANYOYO_LEASE_S="4", MANYOYO_TRANSPORT=transport)
    with contextlib.suppress(Exception):
        async with Client(parameters) as client:
            sandbox_id = await start(client, engine=engine)
            await anyio.sleep(8)
            assert running(sandbox_id), "its lease is kept while its server lives"
            pid = server_of(sandbox_id)
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            reapers = [int(child) for child in children if b"reaper" in Path(f"/proc/{child}/cmdline").read_bytes()]
            for each in (*reapers, pid):
                os.kill(each, signal.SIGKILL)
    assert running(sandbox_id)
    await stopped(sandbox_id, 20)
    async with Client(parameters):  # what a dead container leaves goes with the sweep
        await gone(sandbox_id, 20)


async def test_a_server_that_was_halted_is_told_of_the_lease(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path, MANYOYO_LEASE_S="3")) as client:
        sandbox_id = await start(client)
        pid = server_of(sandbox_id)
        os.kill(pid, signal.SIGSTOP)
        try:
            await stopped(sandbox_id, 15)
        finally:
            os.kill(pid, signal.SIGCONT)
        result = await client.call_tool("nested_list", {})
        assert result.is_error and "no server has renewed the lease for 3 s" in result.content[0].text, result.content
        assert not (await client.call_tool("cleanup", {})).is_error
        await gone(sandbox_id, 5)
        await start(client)


async def test_one_servers_end_touches_no_other(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path)) as one:
        mine = await start(one)
        async with Client(server_parameters(tmp_path)) as other:
            theirs = await start(other)
            status = await one.call_tool("sandbox_status", {})
            assert (status.structured_content or {})["other_sessions"] >= 1
        await gone(theirs, 15)
        listed = await one.call_tool("nested_list", {"sandbox_id": mine})
        assert not listed.is_error


@pytest.fixture
def own_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Another engine with its own data root, and the outer image in it."""
    directory = tmp_path_factory.mktemp("engine")
    environment = {**os.environ, "MANYOYO_ENGINE_DIR": str(directory)}
    environment.pop("DOCKER_HOST")

    def script(*arguments: str) -> str:
        command = [str(ROOT / "scripts" / "engine"), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    script("up")
    try:
        variables = dict(
            line.removeprefix("export ").split("=", 1)
            for line in script("env").splitlines()
            if line.startswith("export ")
        )
        image = outer.reference(Settings())
        ours, other = docker.from_env(), docker.DockerClient(base_url=variables["DOCKER_HOST"])
        with closing(ours), closing(other):
            other.api.load_image(ours.api.get_image(image))
        yield {**variables, "MANYOYO_ENGINE_DIR": str(directory)}
    finally:
        script("purge")


@pytest.mark.timeout(300)
async def test_the_outer_engine_is_stopped_and_started(own_engine: dict[str, str], tmp_path: Path) -> None:
    def script(action: str) -> None:
        environment = {**os.environ, **own_engine}
        environment.pop("DOCKER_HOST")
        subprocess.run([str(ROOT / "scripts" / "engine"), action], env=environment, check=True, capture_output=True)

    async with Client(server_parameters(tmp_path, **own_engine)) as client:
        sandbox_id = await start(client)
        await anyio.to_thread.run_sync(script, "down")
        begun = time.monotonic()
        for tool in ("nested_list", "sandbox_status", "start_sandbox", "cleanup"):
            result = await client.call_tool(tool, {})
            assert result.is_error, tool
            assert (result.meta or {})["org.manyoyo/error"]["code"] in ("HOST_UNAVAILABLE", "ENGINE_UNREACHABLE")
        assert time.monotonic() - begun < 20
        await anyio.to_thread.run_sync(script, "up")
        result = await client.call_tool("nested_list", {})
        assert result.is_error and (result.meta or {})["org.manyoyo/error"]["code"] == "ENGINE_UNREACHABLE"
        status = await client.call_tool("sandbox_status", {})
        assert (status.structured_content or {})["sandboxes"][0]["state"] == "stopped"
        cleaned = (await client.call_tool("cleanup", {})).structured_content or {}
        assert (cleaned["removed"], cleaned["remaining"]) == ([sandbox_id], 0) and cleaned["freed_bytes"] > 0
        await start(client)
        assert (await client.call_tool("cleanup", {})).structured_content["remaining"] == 0
