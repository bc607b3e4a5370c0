"""Every engine: the sandbox itself: caps that bind on it, growth, an engine that dies, both transports."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import CapExceeded, EngineUnreachable, InvalidArgument, NotFound, Reason
from manyoyo_mcp.policy.egress import Policy, entries
from manyoyo_mcp.sessions import reach
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.support import BUSYBOX, MIB, Box, busybox_context, exec_in

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["podman", "docker"])
async def small(request: pytest.FixtureRequest, manager: Manager) -> AsyncIterator[Box]:
    """A small sandbox of its own, for what would hurt the shared one."""
    sandbox = await manager.start(request.param, cpus=1, memory=400 * MIB)
    opened = Box(manager, sandbox)
    built = await opened.build(files=busybox_context(), tags=[BUSYBOX])
    assert built.image_id, built
    yield opened
    await manager.remove(sandbox)


@pytest.mark.smoke
async def test_caps_are_proven(box: Box) -> None:
    evidence = box.sandbox.evidence
    assert evidence is not None and evidence.enforced
    assert "killed" in evidence.words


async def test_packets_fit_the_sandboxs_network(box: Box) -> None:
    outer = docker.from_env().containers.get(box.sandbox.outer.container_id)
    own = exec_in(outer, ["cat", "/sys/class/net/eth0/mtu"]).output.decode()
    assert await box.output("cat", "/sys/class/net/eth0/mtu") == own


_APART = """
d="docker --host unix:///run/manyoyo/engine.sock"
address() { $d inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' $1; }
try() { $d exec $1 ping -c 1 -W 1 $2 >/dev/null 2>&1 && echo "$3: yes" || echo "$3: no"; }
for network in one two; do $d network create apart-$network; done >/dev/null
$d network create --internal apart-inner >/dev/null
for pair in a:one b:one c:two d:inner e:inner; do
  $d run -d --name apart-${pair%:*} --network apart-${pair#*:} IMAGE sleep 7407
done >/dev/null
try apart-a apart-b named
try apart-a $(address apart-b) same
try apart-a $(address apart-c) other
try apart-d $(address apart-e) inner
try apart-d $(address apart-a) inner-other
try apart-a GATEWAY out
try apart-d GATEWAY inner-out
$d rm -f apart-a apart-b apart-c apart-d apart-e >/dev/null
$d network rm apart-one apart-two apart-inner >/dev/null
"""


async def test_dockerds_networks_are_apart(box: Box) -> None:
    """Its firewall is the sandbox's own, made in one go; it is to do what dockerd's would."""
    if box.engine.name == "podman":
        return  # its networks are not apart by default, there is nothing to replace
    outer = docker.from_env().containers.get(box.sandbox.outer.container_id)
    (network,) = outer.attrs["NetworkSettings"]["Networks"].values()
    script = _APART.replace("IMAGE", BUSYBOX).replace("GATEWAY", network["Gateway"])
    reached = box.manager.settings, box.manager.host, box.sandbox.outer
    await reach.change(*reached, Policy("open", entries([network["Gateway"]])))  # what is out there is the host here
    said = await anyio.to_thread.run_sync(lambda: exec_in(outer, ["sh", "-c", script]).output.decode())
    await reach.change(*reached, Policy("open"))
    told = dict(line.partition(": ")[::2] for line in said.splitlines())
    assert told == {
        "named": "yes", "same": "yes", "other": "no", "inner": "yes", "inner-other": "no", "out": "yes", "inner-out": "no",
    }, said  # fmt: skip


async def test_sandbox_oom_is_told_apart_and_growing_mends_it(small: Box) -> None:
    command = ("dd", "if=/dev/zero", "of=/dev/null", "bs=500M", "count=1")  # one buffer of that size
    caps = small.caps(memory=400 * MIB)
    ended = await small.run(*command, caps=caps)
    assert ended.reason is Reason.SANDBOX_OOM, ended
    assert "start_sandbox" in ended.hint
    with pytest.raises(CapExceeded) as caught:
        await small.run("true", caps=small.caps(memory=800 * MIB))
    assert "400m" in caught.value.message
    await small.manager.grow(small.sandbox, None, 1200 * MIB, None)
    ended = await small.run(*command, caps=small.caps(memory=800 * MIB))
    assert ended.reason is Reason.OK, ended
    with pytest.raises(InvalidArgument):
        await small.manager.grow(small.sandbox, None, 100 * MIB, None)


async def test_who_comes_while_the_first_one_starts_gets_that(tmp_path: Path) -> None:
    async with open_manager(Settings(state_dir=tmp_path)) as manager:
        async with anyio.create_task_group() as group:
            group.start_soon(manager.start, "podman")
            await anyio.wait_all_tasks_blocked()
            sandbox, started = await manager.get_or_start(None)
        assert (manager.sandboxes(), started) == ([sandbox], False)


async def test_more_than_the_host_has_is_refused(manager: Manager) -> None:
    with pytest.raises(CapExceeded):
        await manager.start("podman", memory=1 << 50)
    with pytest.raises(CapExceeded):
        await manager.start("podman", cpus=4000)


async def test_engine_killed_in_the_middle_of_a_build(small: Box) -> None:
    failures: list[BaseException] = []

    async def build() -> None:
        try:
            built = await small.build(f"FROM {BUSYBOX}\nRUN sleep 7601\n")
            failures.append(AssertionError(f"the build ended by itself: {built}"))
        except EngineUnreachable as error:
            failures.append(error)

    process = "podman --log-level" if small.sandbox.engine_name == "podman" else "dockerd --log-level"
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(build)
            await small.seen("sleep 7601")
            assert small.kill(process) == 1
    assert [type(failure) for failure in failures] == [EngineUnreachable]
    with anyio.fail_after(60):
        while True:
            try:
                assert await small.output("echo", "alive") == "alive\n"
                break
            except EngineUnreachable:
                await anyio.sleep(0.2)


async def test_outer_container_removed_by_hand(manager: Manager) -> None:
    sandbox = await manager.start("podman")
    host = docker.from_env()
    host.containers.get(sandbox.outer.container_id).remove(force=True)
    host.close()
    with pytest.raises(EngineUnreachable) as caught:
        await manager.work.ask(sandbox, sandbox.engine.containers)
    assert "start_sandbox" in caught.value.hint
    with pytest.raises(NotFound):
        manager.get(sandbox.sandbox_id)
    await manager.host.remove(sandbox.outer)


@pytest.fixture(scope="module", params=["podman", "docker"])
async def relayed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Box]:
    settings = Settings(transport="relay", state_dir=tmp_path_factory.mktemp("state"))
    async with open_manager(settings) as opened:
        box = Box(opened, await opened.start(request.param, memory=1 << 30))
        built = await box.build(files=busybox_context(), tags=[BUSYBOX])
        assert built.image_id, built
        yield box


async def test_relay_carries_runs(relayed: Box) -> None:
    assert relayed.sandbox.transport == "relay"
    output: list[bytes] = []
    ended = await relayed.run("sh", "-c", "cat; echo err >&2; exit 3", stdin=b"in\n", output=output)
    assert (ended.exit_code, b"".join(output)) == (3, b"in\nerr\n")
    assert await relayed.output("wc", "-c", stdin=b"y" * (5 * MIB)) == f"{5 * MIB}\n"
    size = 0
    chunks: list[bytes] = []
    await relayed.run("head", "-c", str(20 * MIB), "/dev/zero", output=chunks)
    size = sum(map(len, chunks))
    assert size == 20 * MIB


async def test_relay_carries_exec_and_cancel(relayed: Box) -> None:
    container = await relayed.service("sleep", "7700")
    output: list[bytes] = []
    ended = await relayed.exec(container, "sh", "-c", "cat; exit 4", stdin=b"x", output=output)
    assert (ended.exit_code, b"".join(output)) == (4, b"x")
    ended = await relayed.exec(container, "sleep", "7701", timeout_s=1)
    assert ended.reason is Reason.TIMEOUT
    assert relayed.processes("sleep 7701") == []
    ended = await relayed.run("sh", "-c", "trap '' TERM; sleep 7702", timeout_s=1)
    assert ended.reason is Reason.TIMEOUT
    assert relayed.processes("sleep 7702") == []
    built = await relayed.build(f"FROM {BUSYBOX}\nRUN trap '' TERM; sleep 7703\n", timeout_s=2)
    assert built.reason is Reason.TIMEOUT
    assert relayed.processes("sleep 7703") == []
    await relayed.engine.remove(container)


async def test_relay_guards_too(relayed: Box) -> None:
    with pytest.raises(CapExceeded):
        await relayed.run("true", caps=relayed.caps(memory=2 << 30))
