"""What sandboxes hold: kept by name, kept as checkpoints, forked, and never more than its cap."""

import base64
import contextlib
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from mcp import Client

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import NotFound
from manyoyo_mcp.hosts.base import store_of
from manyoyo_mcp.sessions.manager import open_manager
from tests.conftest import server_parameters
from tests.support import BUSYBOX, MIB, busybox_context, exec_in

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
on_both = pytest.mark.parametrize("engine", ["podman", "docker"])


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content or {}


async def refused(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    error: dict[str, Any] = (result.meta or {})["org.manyoyo/error"]
    return error


async def start(client: Client, **arguments: Any) -> str:
    started = await call(client, "start_sandbox", **({"memory": "512m"} | arguments))
    return str(started["sandbox"]["sandbox_id"])


async def build(client: Client, sandbox_id: str, dockerfile: str | None = None, **arguments: Any) -> dict[str, Any]:
    """Build the test image; or `dockerfile`, which may stand on it."""
    if dockerfile is not None:
        return await call(client, "nested_build", sandbox_id=sandbox_id, files={"Dockerfile": dockerfile}, **arguments)
    context = busybox_context()
    files = {
        "Dockerfile": context["Dockerfile"].decode(),
        "root.tar": {"base64": base64.b64encode(context["root.tar"]).decode()},
    }
    built = await call(client, "nested_build", sandbox_id=sandbox_id, files=files, tags=[BUSYBOX])
    assert built["reason"] == "OK", built
    return built


async def run(client: Client, sandbox_id: str, command: str, **arguments: Any) -> dict[str, Any]:
    arguments = {"image": BUSYBOX, "command": ["sh", "-c", command], "sandbox_id": sandbox_id} | arguments
    return await call(client, "nested_run", **arguments)


async def service(client: Client, sandbox_id: str) -> None:
    """A container called svc that has written a file."""
    labelled = f"FROM {BUSYBOX}\nLABEL org.manyoyo.server-pid=4194304\n"  # which tells nothing of whose it is
    assert (await build(client, sandbox_id, labelled, tags=["localhost/labelled"]))["reason"] == "OK"
    await run(
        client, sandbox_id, "echo written > /kept; exec sleep 1000", image="localhost/labelled", detach=True, name="svc"
    )
    await anyio.sleep(0.5)


async def kept_file(client: Client, sandbox_id: str) -> str:
    await call(client, "nested_stop", sandbox_id=sandbox_id, container="svc", action="start")
    read = await call(client, "nested_exec", sandbox_id=sandbox_id, container="svc", command=["cat", "/kept"])
    return str(read["output"])


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(server_parameters(tmp_path, MANYOYO_LEASE_S="8"), read_timeout_seconds=120) as connected:
        yield connected
        for each in (await call(connected, "sandbox_status")).get("kept", []):
            argument = "checkpoint" if each["kind"] == "checkpoint" else "sandbox_id"
            await call(connected, "cleanup", **{argument: each["name"]})


@on_both
async def test_a_risky_change_is_tried_five_ways_and_the_one_that_works_is_kept(client: Client, engine: str) -> None:
    first = await start(client, engine=engine, memory="400m")
    await build(client, first)
    await service(client, first)
    made = await call(client, "checkpoint", sandbox_id=first, name=f"before-{engine}")
    assert made["how"] == "snapshot", made
    forked = await call(client, "fork_sandbox", sandbox_id=first, count=5)
    forks = [each["sandbox_id"] for each in forked["forks"]]
    assert len(set(forks)) == 5
    assert all("svc" in each["containers"][0] for each in forked["forks"])
    for way, fork in enumerate(forks):
        tried = await build(
            client, fork, f"FROM {BUSYBOX}\nRUN test {way} = 3 && echo {way} > /way\n", tags=["localhost/way"]
        )
        assert (tried["reason"] == "OK") == (way == 3), tried
    shown = await run(client, forks[3], "cat /way", image="localhost/way")
    assert "3" in shown["output"]
    for other in (first, forks[0]):
        assert (await refused(client, "nested_run", sandbox_id=other, image="localhost/way", command=["true"]))["code"]
    assert "written" in await kept_file(client, forks[2])
    await call(client, "checkpoint", sandbox_id=forks[3], name=f"works-{engine}")
    for fork in forks:
        await call(client, "cleanup", sandbox_id=fork)
    again = await start(client, from_checkpoint=f"works-{engine}", memory="400m")
    assert "3" in (await run(client, again, "cat /way", image="localhost/way"))["output"]
    before = await start(client, from_checkpoint=f"before-{engine}", memory="400m")
    assert "written" in await kept_file(client, before)


async def test_checkpoints_have_names(client: Client) -> None:
    sandbox = await start(client, memory="400m")
    await build(client, sandbox)
    assert (await run(client, sandbox, "exit 2"))["exit_code"] == 2
    await call(client, "checkpoint", sandbox_id=sandbox, name="one")
    assert (await refused(client, "checkpoint", sandbox_id=sandbox, name="one"))["code"] == "NAME_CONFLICT"
    await call(client, "checkpoint", sandbox_id=sandbox, name="one", replace=True)
    assert (await refused(client, "checkpoint", sandbox_id=sandbox, name="No/Name"))["code"] == "INVALID_ARGUMENT"
    missing = await refused(client, "start_sandbox", from_checkpoint="two")
    assert missing["code"] == "CHECKPOINT_NOT_FOUND" and "one" in missing["hint"]
    other = await refused(client, "start_sandbox", from_checkpoint="one", engine="docker")
    assert other["code"] == "INVALID_ARGUMENT"
    begun = (await call(client, "start_sandbox", from_checkpoint="one"))["sandbox"]
    assert begun["caps"]["memory_bytes"] == 400 * MIB, "the caps of what it was made of"
    assert not begun.get("containers"), "no run that was being removed is in a copy"
    await start(client, name="taken")
    for arguments in ({"from_checkpoint": "one"}, {"engine": "docker"}):
        error = await refused(client, "start_sandbox", name="taken", **arguments)
        assert error["code"] == "INVALID_ARGUMENT" and "taken" in error["message"], error
    assert (await call(client, "cleanup", checkpoint="one"))["removed"] == ["one"]
    assert (await refused(client, "cleanup", checkpoint="one"))["code"] == "CHECKPOINT_NOT_FOUND"


DISK = 192
FILL = f"head -c {DISK * 2}m /dev/zero | cat > %s/fill"


@on_both
async def test_the_cap_of_a_disk_holds_wherever_it_is_filled(client: Client, engine: str) -> None:
    sandbox = await start(client, engine=engine, disk=f"{DISK}m")
    await build(client, sandbox)

    async def full(result: dict[str, Any], hint: str = "hint") -> None:
        assert result["reason"] == "DISK_FULL", result
        assert "Largest" in result[hint] and "disk" in result[hint], result
        used = (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]
        assert used["disk_cap_bytes"] == DISK * MIB
        assert used["disk_used_bytes"] <= DISK * MIB

    await full(await run(client, sandbox, FILL % "/tmp"))
    await full(await build(client, sandbox, f"FROM {BUSYBOX}\nRUN {FILL % '/tmp'}\n"), "mend")
    volume = f"FROM {BUSYBOX}\nVOLUME /data\n"
    assert (await build(client, sandbox, volume, tags=["localhost/with-volume"]))["reason"] == "OK"
    await full(await run(client, sandbox, FILL % "/data", image="localhost/with-volume"))
    # A container that stays and has filled it: what comes then says so, and can be done again once that is gone.
    await run(client, sandbox, f"{FILL % '/tmp'}; exec sleep 1000", detach=True, name="hog")
    for _ in range(50):
        logs = await call(client, "nested_logs", sandbox_id=sandbox, container="hog")
        if "cat:" in logs["output"]:
            break
        await anyio.sleep(0.2)
    code = await client.call_tool(
        "nested_exec", {"sandbox_id": sandbox, "container": "hog", "command": ["sh", "-c", "exit 7"]}
    )
    assert code.is_error or (code.structured_content or {})["exit_code"] == 7, str(code.content)
    told = await client.call_tool(
        "nested_run", {"image": BUSYBOX, "command": ["sh", "-c", FILL % "/tmp"], "sandbox_id": sandbox}
    )
    assert "DISK_FULL" in told.content[0].text and "hog" in told.content[0].text, told.content
    await call(client, "nested_stop", sandbox_id=sandbox, container="hog", action="remove")
    assert (await run(client, sandbox, "echo works"))["reason"] == "OK"
    await call(client, "start_sandbox", sandbox_id=sandbox, disk=f"{DISK * 3}m")
    assert (await run(client, sandbox, FILL % "/tmp"))["reason"] == "OK"
    shrunk = await refused(client, "start_sandbox", sandbox_id=sandbox, disk=f"{DISK}m")
    assert shrunk["code"] == "INVALID_ARGUMENT"


_TO_THE_LAST_BLOCK = """
cd /var/lib/manyoyo; head -c 128m /dev/zero > full; btrfs filesystem sync .
used=$(btrfs qgroup show --raw -r -f . | awk '$1 ~ /^0/ { print $2 }')
btrfs qgroup limit $used . || exit 1
! btrfs qgroup limit $used . 2>/dev/null || exit 2
echo $used
"""


@on_both
async def test_a_store_without_a_free_block_can_still_be_cleared(client: Client, engine: str) -> None:
    sandbox = await start(client, engine=engine, disk=f"{DISK}m")
    await build(client, sandbox)
    await run(client, sandbox, "exec sleep 1000", detach=True, name="hog")
    outer = docker.from_env().containers.get(f"manyoyo-{sandbox}")

    def say(script: str) -> str:
        code, output = exec_in(outer, ["sh", "-c", script])
        assert code == 0, output
        return str(output.decode().splitlines()[-1])

    limit = await anyio.to_thread.run_sync(say, _TO_THE_LAST_BLOCK)
    await call(client, "nested_stop", sandbox_id=sandbox, container="hog", action="remove")
    assert not (await call(client, "nested_list", sandbox_id=sandbox))["containers"]
    now = "btrfs qgroup show --raw -r -f /var/lib/manyoyo | awk '$1 ~ /^0/ { print $4 }'"
    with anyio.fail_after(10):  # what was lent is given back
        while await anyio.to_thread.run_sync(say, now) != limit:
            await anyio.sleep(0.1)
    await anyio.to_thread.run_sync(say, "/usr/lib/manyoyo/ctl settle-disk; echo lent")
    await call(client, "start_sandbox", sandbox_id=sandbox, disk=f"{DISK * 2}m")
    grown = await anyio.to_thread.run_sync(say, now)
    assert int(grown) > int(limit) + MIB
    await anyio.to_thread.run_sync(say, "/usr/lib/manyoyo/ctl settle-disk; echo lent")
    await anyio.sleep(2.5)
    assert await anyio.to_thread.run_sync(say, now) == grown, "what was lent before it grew is no cap any more"
    assert (await run(client, sandbox, "echo works"))["reason"] == "OK"


@on_both
async def test_logs_and_memory_disks_have_an_end(client: Client, engine: str) -> None:
    sandbox = await start(client, engine=engine, disk=f"{DISK}m")
    await build(client, sandbox)
    shm = await run(client, sandbox, FILL % "/dev/shm")
    assert shm["reason"] == "DISK_FULL" and "/dev/shm" in shm["hint"], shm
    await run(
        client,
        sandbox,
        f"yes {'long' * 250} | head -c 100m; echo; echo done; sleep 1000",
        detach=True,
        name="loud",
    )
    for _ in range(100):
        logs = await call(client, "nested_logs", sandbox_id=sandbox, container="loud", tail=1)
        if "done" in logs["output"]:
            break
        await anyio.sleep(0.3)
    assert "done" in logs["output"]
    await anyio.sleep(6)  # the file system counts with its next commit
    used = (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]
    assert used["disk_used_bytes"] < 64 * MIB, "a log keeps its last 16 MiB"


def server_and_reaper(sandbox_id: str) -> list[int]:
    host = docker.from_env()
    (container,) = host.containers.list(ignore_removed=True, filters={"label": f"org.manyoyo.sandbox={sandbox_id}"})
    host.close()
    pid = int(container.labels["org.manyoyo.server-pid"])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children if b"reaper" in Path(f"/proc/{child}/cmdline").read_bytes())]


def containers(sandbox_id: str) -> list[str]:
    host = docker.from_env()
    found = host.containers.list(all=True, ignore_removed=True, filters={"label": f"org.manyoyo.sandbox={sandbox_id}"})
    host.close()
    return [each.status for each in found]


@on_both
async def test_a_named_sandbox_outlives_its_server(tmp_path: Path, engine: str) -> None:
    async with anyio.create_task_group() as group:
        for number, also_killed in enumerate(("the server", "its reaper too", "the sandbox too")):
            group.start_soon(_outlives, tmp_path / str(number), engine, also_killed)


async def _outlives(directory: Path, engine: str, also_killed: str) -> None:
    directory.mkdir()
    parameters = server_parameters(directory, MANYOYO_LEASE_S="4")
    name = f"lasting-{engine}-{directory.name}"
    with contextlib.suppress(Exception):
        async with Client(parameters) as one:
            sandbox = await start(one, name=name, engine=engine)
            await build(one, sandbox)
            await service(one, sandbox)
            await run(one, sandbox, "sleep 1000", wait_s=0)
            pids = server_and_reaper(sandbox)
            for pid in pids if also_killed == "its reaper too" else pids[:1]:
                os.kill(pid, signal.SIGKILL)
    if also_killed == "the sandbox too":
        host = docker.from_env()
        host.containers.get(f"manyoyo-{sandbox}").kill()
        host.close()
    with anyio.fail_after(40):
        while containers(sandbox) not in (["exited"], []):
            await anyio.sleep(0.2)
    async with Client(parameters) as other:
        begun = time.monotonic()
        again = await call(other, "start_sandbox", name=name)
        assert time.monotonic() - begun < 5
        assert again["sandbox"]["sandbox_id"] == sandbox and again["resumed"] == "stopped"
        assert BUSYBOX in again["sandbox"]["images"]
        assert ["svc" in each for each in again["sandbox"]["containers"]] == [True], "runs of the dead are gone"
        assert "written" in await kept_file(other, sandbox)
        cleaned = await other.call_tool("cleanup", {})
        assert f"Kept, for it has a name: {name}" in cleaned.content[0].text
        assert (await call(other, "cleanup", sandbox_id=name))["removed"] == [sandbox]


async def test_one_that_is_being_stopped_is_not_handed_out(tmp_path: Path) -> None:
    parameters = server_parameters(tmp_path, MANYOYO_LEASE_S="4", MANYOYO_RUNTIME_DIR=str(tmp_path / "run"))
    async with Client(parameters) as one:
        sandbox = await start(one, name="ending")
        await build(one, sandbox)
        await call(one, "nested_run", sandbox_id=sandbox, image=BUSYBOX, detach=True, name="deaf",
                   command=["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])  # fmt: skip
    with anyio.fail_after(20):
        while not (tmp_path / "run" / "sandboxes" / sandbox / "ending").exists():
            await anyio.sleep(0.05)
    assert containers(sandbox) == ["running"], "it waits for what is nested in it"
    async with Client(parameters) as two:
        again = await call(two, "start_sandbox", name="ending")
        assert again["sandbox"]["sandbox_id"] == sandbox and again["resumed"] == "stopped"
        assert (await run(two, sandbox, "echo here"))["reason"] == "OK"
        await call(two, "cleanup", sandbox_id="ending")


async def test_what_a_stopped_one_leaves_of_its_container_goes(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path, MANYOYO_LEASE_S="4")) as one:
        sandbox = await start(one, name="leaves")
    with anyio.fail_after(30):
        while containers(sandbox):
            await anyio.sleep(0.2)
    async with Client(server_parameters(tmp_path)) as two:
        (kept,) = (await call(two, "sandbox_status"))["kept"]
        assert kept["name"] == "leaves"
        assert (await call(two, "cleanup", sandbox_id="leaves"))["removed"] == [sandbox]
        assert not (await call(two, "sandbox_status")).get("kept")


def servers(directory: Path) -> set[int]:
    """The servers of a project that have their session."""
    found = (directory / ".state" / "sessions").glob("*/server.json")
    return {int(json.loads(each.read_text())["server-pid"]) for each in found}


async def test_two_servers_of_an_owner_share_a_named_sandbox(tmp_path: Path) -> None:
    parameters = server_parameters(tmp_path, MANYOYO_LEASE_S="6")
    async with Client(parameters) as one, Client(parameters) as two:
        ids: list[str] = []

        async def begin(client: Client) -> None:
            ids.append(await start(client, name="shared"))

        async with anyio.create_task_group() as group:
            group.start_soon(begin, one)
            group.start_soon(begin, two)
        assert ids[0] == ids[1] and containers(ids[0]) == ["running"]
        await build(one, ids[0])
        async with anyio.create_task_group() as group:
            for client in (one, two):
                group.start_soon(run, client, ids[0], "sleep 1")
        before = servers(tmp_path)
        with contextlib.suppress(Exception):
            async with Client(parameters) as three:
                assert await start(three, name="shared") == ids[0]
                await run(three, ids[0], "sleep 1000", wait_s=0)
                await run(one, ids[0], "sleep 1001", wait_s=0)
                (third,) = servers(tmp_path) - before
                os.kill(third, signal.SIGKILL)
        async with Client(parameters) as four:
            await start(four, name="shared")
            rows = (await call(four, "nested_list", sandbox_id=ids[0]))["containers"]
            assert ["1001" in row["command"] for row in rows] == [True], rows
        await anyio.sleep(8)
        assert (await run(two, ids[0], "echo here"))["reason"] == "OK", "one window's end touches no other's work"
        grown = await call(two, "start_sandbox", name="shared", memory="768m")
        assert grown["sandbox"]["caps"]["memory_bytes"] == 768 * MIB, "what is asked for of one that runs is granted"
        smaller = await refused(two, "start_sandbox", name="shared", memory="256m")
        assert smaller["code"] == "INVALID_ARGUMENT", smaller
        await call(one, "cleanup", sandbox_id="shared", keep_data=True)
        stopped = await refused(two, "nested_list", sandbox_id="shared")
        assert "start_sandbox with name='shared'" in stopped["hint"] and "cleanup" not in stopped["hint"], stopped
        again = await one.call_tool("cleanup", {"sandbox_id": "shared", "keep_data": True})
        assert "stopped already" in again.content[0].text, again.content
        await start(one, name="shared")
        await start(two, name="shared")
        await call(one, "cleanup", sandbox_id="shared")
        error = await refused(two, "nested_list", sandbox_id=ids[0])
        assert error["code"] in ("ENGINE_UNREACHABLE", "SANDBOX_NOT_FOUND"), error


async def test_one_that_is_reached_by_the_relay_is_joined(tmp_path: Path) -> None:
    """By a server that reaches its own over their sockets."""
    async with (
        Client(server_parameters(tmp_path, MANYOYO_TRANSPORT="relay")) as one,
        Client(server_parameters(tmp_path)) as two,
    ):
        await start(two)
        sandbox = await start(one, name="by-relay")
        await build(one, sandbox)
        joined = await call(two, "start_sandbox", name="by-relay")
        assert joined["resumed"] == "running" and joined["sandbox"]["transport"] == "relay", joined
        assert (await run(two, sandbox, "exit 3"))["exit_code"] == 3
        assert (await run(one, sandbox, "exit 4"))["exit_code"] == 4
        await call(one, "cleanup", sandbox_id="by-relay")


async def test_another_owner_sees_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(state_dir=tmp_path / "state", runtime_dir=tmp_path / "run")
    async with open_manager(settings) as mine:
        sandbox = await mine.start("podman", memory=512 * MIB, name="secret")
        await mine.keeping.checkpoint(sandbox, "secret-too", replace=False)
        with monkeypatch.context() as other_user:
            other_user.setattr(os, "getuid", lambda: 4242)
            async with open_manager(settings) as theirs:
                assert theirs.identity.owner != mine.identity.owner
                assert await theirs.keeping.stores() == [] and await theirs.others() == []
                assert await theirs.remove_by_id(sandbox.sandbox_id) == {} == await theirs.remove_by_id("secret")
                with pytest.raises(NotFound) as none:
                    await theirs.keeping.remove_checkpoint("secret-too")
                assert "secret-too" not in none.value.hint
                with pytest.raises(NotFound):
                    await theirs.start(from_checkpoint="secret-too")
        assert await mine.alive(sandbox)
        await mine.remove(sandbox)
        await mine.keeping.remove_checkpoint("secret-too")


async def test_without_a_pool_disks_are_uncapped_and_copies_take_their_time(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path, MANYOYO_STORAGE="plain")) as client:
        error = await refused(client, "start_sandbox", disk="1g")
        assert error["code"] == "DISK_CAP_UNAVAILABLE", error
        sandbox = await start(client, name="plain")
        status = await client.call_tool("sandbox_status", {})
        assert "disk: uncapped" in status.content[0].text
        await build(client, sandbox)
        await service(client, sandbox)
        made = await call(client, "checkpoint", sandbox_id=sandbox, name="copied")
        assert made["how"] == "copy" and made["copied_bytes"] > MIB
        again = await start(client, from_checkpoint="copied")
        assert "written" in await kept_file(client, again)
        interrupt_copy("copied")
        error = await refused(client, "start_sandbox", from_checkpoint="copied")
        assert error["code"] == "CHECKPOINT_TORN" and "cleanup" in error["hint"], error
        await call(client, "cleanup", checkpoint="copied")
        await call(client, "cleanup", sandbox_id="plain")


def interrupt_copy(checkpoint: str) -> None:
    """Leave a checkpoint's volume as a host leaves it that went down while it was copied."""
    host = docker.from_env()
    (volume,) = host.volumes.list(filters={"label": f"org.manyoyo.checkpoint={checkpoint}"})
    image = next(tag for each in host.images.list() for tag in each.tags if "manyoyo/sandbox:" in tag)
    host.containers.run(
        image,
        ["/at/.manyoyo-whole"],
        entrypoint=["rm"],
        volumes={volume.name: {"bind": "/at", "mode": "rw"}},
        remove=True,
    )
    host.close()


async def test_a_copy_is_as_old_as_its_making(tmp_path: Path) -> None:
    """Not as what it is of: a sweep takes what is no volume yet for a leftover once it is older than a lease."""
    async with open_manager(Settings(state_dir=tmp_path / "state", runtime_dir=tmp_path / "run")) as manager:
        origin = await manager.start(memory=300 * MIB)
        await anyio.sleep(4)
        (fork,) = await manager.fork(origin, 1)
        ages = dict(await manager.host._pool.stores())
        assert ages[store_of(fork.sandbox_id)] + 3 <= ages[store_of(origin.sandbox_id)]


async def test_a_volume_that_was_half_made_goes_with_its_store(tmp_path: Path) -> None:
    """As where dockerd is killed between its directory and what is written of it."""
    settings = Settings(state_dir=tmp_path / "state", runtime_dir=tmp_path / "run", lease_s=2)
    half, whole = (store_of(f"sb-{secrets.token_hex(8)}") for _ in range(2))
    host = docker.from_env()
    async with open_manager(settings) as manager:
        sandbox = await manager.start(memory=300 * MIB)
        for name in (half, whole):
            await manager.host._pool.create(name, 0)
        host.api.create_volume(half)
        host.api.create_volume(whole, labels={"somebodys": "own"})
        await anyio.sleep(3)
        await manager.host._sweep_pool()
        kept = dict(await manager.host._pool.stores())
        assert half not in kept and whole in kept and store_of(sandbox.sandbox_id) in kept
        names = {each.name for each in host.volumes.list()}
        assert half not in names and whole in names
        host.volumes.get(whole).remove()
        await manager.host._pool.remove(whole)
    host.close()


async def test_a_server_keeps_one_line_to_the_pools_keeper(client: Client) -> None:
    host = docker.from_env()

    def lines() -> set[str]:
        rows = host.containers.get("manyoyo-pool").top(ps_args="-eo pid,args")["Processes"]
        return {pid for pid, words in rows if words.endswith("/pool serve")}

    before: set[str] = set()
    with contextlib.suppress(docker.errors.NotFound):
        before = lines()
    await start(client)
    first = lines() - before
    await start(client)
    assert len(first) == 1 and first <= lines()
    host.close()


async def test_the_pools_keeper_is_killed(client: Client) -> None:
    first = await start(client)
    host = docker.from_env()
    host.containers.get("manyoyo-pool").remove(force=True)
    second = await start(client)
    await build(client, second)
    assert (await run(client, second, "echo works"))["reason"] == "OK"
    host.containers.get("manyoyo-pool").kill()
    host.close()
    assert (await call(client, "cleanup", sandbox_id=first))["removed"] == [first]
    third = await start(client)
    assert third not in (first, second)
