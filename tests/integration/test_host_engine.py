"""Sandboxes on the host's own engine: a run there is a container beside everybody else's, and reaches, sees and outlives nothing that is not its
sandbox's."""

import base64
import contextlib
import gzip
import io
import json
import os
import secrets
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest
from mcp import Client
from mcp_types import ElicitResult

from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.stepwise import Batch
from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.sessions import sweep
from manyoyo_mcp.sessions.manager import open_manager
from manyoyo_mcp.workers import in_thread
from tests.conftest import server_parameters
from tests.integration.test_cli import Terminal
from tests.integration.test_storage import call, refused, run
from tests.support import BUSYBOX, SLACK, Box, file_of, on_host, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240 * SLACK)]
IMAGES = "localhost/manyoyo-test/*,tests.invalid/*"
PRIVATE = "localhost/bystanders/private:1"
THERE = "tests.invalid/busybox:1"
"""Of a registry that nobody has, and there."""
ONBUILD = "localhost/manyoyo-test/onbuild:1"
"""Among what may be run, and by whom it was made it is told to copy in each build."""
NODES = "localhost/manyoyo-test/nodes:1"
"""Among what may be run, with a device in it."""


@dataclass
class Bystander:
    """Somebody else's things on the same engine: a service that runs, its volume, its network, its image."""

    host: docker.DockerClient
    name: str
    container: Any
    volume: Any
    network: Any

    @property
    def address(self) -> str:
        self.container.reload()
        return next(each["IPAddress"] for each in self.container.attrs["NetworkSettings"]["Networks"].values())

    def state(self) -> tuple[Any, ...]:
        self.container.reload()
        there = self.container.attrs
        return (
            there["State"]["Pid"],
            there["State"]["StartedAt"],
            there["Config"],
            file_of(self.container, "/data/kept"),
            self.host.images.get(PRIVATE).id,
        )


_WEAKER = "isolation=allow"
"""Both count as weaker than what is configured: else they are asked for."""


@pytest.fixture(scope="module")
def host() -> Iterator[docker.DockerClient]:
    """The host's engine, with the test's image on it, and somebody else's."""
    with on_host(BUSYBOX, PRIVATE) as client:
        dockerfile = io.BytesIO(f"FROM {BUSYBOX}\nONBUILD COPY --from={PRIVATE} /bin /x\n".encode())
        client.images.build(fileobj=dockerfile, tag=ONBUILD, rm=True)
        client.images.get(BUSYBOX).tag(THERE)
        try:
            yield client
        finally:
            for image in (ONBUILD, THERE):
                client.images.remove(image, force=True)


@pytest.fixture
def bystander(host: docker.DockerClient) -> Iterator[Bystander]:
    name = f"bystander-{secrets.token_hex(4)}"
    volume, network = host.volumes.create(name), host.networks.create(name)
    container = host.containers.run(
        PRIVATE, ["sh", "-c", "echo kept > /data/kept; exec nc -ll -p 7 -e echo reached"], name=name, detach=True, init=False,
        volumes={name: {"bind": "/data", "mode": "rw"}},
    )  # fmt: skip
    wait_for(container, "/data/kept")
    there = Bystander(host, name, container, volume, network)
    before = there.state()
    yield there
    try:
        assert there.state() == before, "a bystander was touched"
        assert host.volumes.get(name) and host.networks.get(name)
    finally:
        container.remove(force=True)
        network.remove()
        volume.remove()


@pytest.fixture
async def client(host: docker.DockerClient, tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(
        server_parameters(tmp_path, MANYOYO_HOST_IMAGES=IMAGES, MANYOYO_ENGINE="docker", MANYOYO_APPROVE=_WEAKER)
    ) as connected:
        yield connected


def theirs(host: docker.DockerClient, sandbox: str) -> list[Any]:
    return host.containers.list(all=True, filters={"label": f"org.manyoyo.within={sandbox}"}, ignore_removed=True)


def image_ids(host: docker.DockerClient) -> set[str]:
    return set(host.api.images(quiet=True, all=True))


async def start(client: Client, **arguments: Any) -> dict[str, Any]:
    given = {"isolation": "common", "memory": "512m", "cpus": 2, "network_policy": "open"} | arguments
    started: dict[str, Any] = (await call(client, "start_sandbox", **given))["sandbox"]
    return started


async def test_a_shell_is_within_too(
    client: Client, host: docker.DockerClient, bystander: Bystander, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYOYO_HOST_IMAGES", IMAGES)
    sandbox = (await start(client, network_policy="none"))["sandbox_id"]
    await run(client, sandbox, "exec sleep 1000", detach=True, name="svc")
    for name in (bystander.name, bystander.container.id):
        terminal = Terminal("shell", sandbox, name, "sh", "-c", "echo inside", columns=400)
        assert terminal.end() != 0 and "CONTAINER_NOT_FOUND" in terminal.text and "inside" not in terminal.text
    terminal = Terminal("shell", sandbox, "svc", "sh", "-c", "sleep 2; stty size; exit 4", lines=31, columns=99)
    assert terminal.end() == 4 and "31 99" in terminal.text
    terminal = Terminal("shell", "--image", PRIVATE, sandbox, columns=400)
    assert terminal.end() != 0 and not [each for each in theirs(host, sandbox) if not each.name.endswith(".svc")]
    terminal = Terminal("shell", "--image", BUSYBOX, sandbox)
    terminal.until(r"[#$] ")
    (made,) = (each for each in theirs(host, sandbox) if not each.name.endswith(".svc"))
    assert made.attrs["HostConfig"]["NetworkMode"] == "none" and made.attrs["HostConfig"]["Memory"] == 256 << 20
    terminal.type("exit\n")
    terminal.end()
    assert [each.name for each in theirs(host, sandbox)] == [f"manyoyo-{sandbox}.svc"]


async def test_a_run_is_a_capped_container_of_the_hosts(client: Client, host: docker.DockerClient) -> None:
    started = await start(client)
    sandbox = started["sandbox_id"]
    assert started["isolation"].startswith("common. ") and "Disk is not capped" in started["isolation"]
    assert started["caps_enforced"] == "enforced" and "killed" in started["evidence"], started
    assert BUSYBOX in started["images"] and started["nested_default"]["memory_bytes"] == 256 << 20
    ran = await run(client, sandbox, "cat in > /tmp/out; cat in; echo err >&2; exit 3",
                    workdir="/job", files={"in": "kept\n"}, outputs=["/tmp/out"])  # fmt: skip
    assert (
        ran["exit_code"] == 3 and ran["reason"] == "EXIT_NONZERO" and "kept" in ran["output"] and "err" in ran["output"]
    )
    assert "kept" in ran["outputs"][0]["text"]
    killed = await run(client, sandbox, "tail /dev/zero", memory="64m")
    assert killed["reason"] == "OOM_KILLED", killed
    timed = await run(client, sandbox, "sleep 100", timeout_s=1)
    assert timed["reason"] == "TIMEOUT", timed
    await run(client, sandbox, "echo began; exec sleep 1000", detach=True, name="svc")
    (made,) = theirs(host, sandbox)
    held = made.attrs["HostConfig"]
    assert made.name == f"manyoyo-{sandbox}.svc" and held["Memory"] == held["MemorySwap"] == 256 << 20
    assert held["PidsLimit"] == 1024 and held["NanoCpus"] == 10**9 and not held["Privileged"]
    assert held["SecurityOpt"] == ["no-new-privileges:true"] and not held["Binds"] and not made.attrs["Mounts"]
    listed = await call(client, "nested_list", sandbox_id=sandbox)
    assert [(each["name"], each["image"]) for each in listed["containers"]] == [("svc", BUSYBOX)], listed
    assert "began" in str(await call(client, "nested_logs", sandbox_id=sandbox, container="svc"))
    done = await call(
        client, "nested_exec", sandbox_id=sandbox, container="svc", command=["sh", "-c", "echo $A"], env={"A": "b c"}
    )
    assert "b c" in done["output"] and done["exit_code"] == 0
    late = await call(
        client,
        "nested_exec",
        sandbox_id=sandbox,
        container=made.id[:12],
        command=["sh", "-c", "sleep 901 & sleep 902"],
        timeout_s=1,
    )
    assert late["reason"] == "TIMEOUT", late
    left = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=["ps"])
    assert "sleep 1000" in left["output"] and "sleep 90" not in left["output"], left
    status = (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]
    assert status["isolation"] == "common" and status["state"] == "running" and status["running"] == 1
    assert 0 < status["memory_used_bytes"] < 64 << 20 and status["processes"] >= 1, status
    stopped = await call(client, "nested_stop", sandbox_id=sandbox, container="svc", action="remove")
    assert stopped and not theirs(host, sandbox)
    await run(client, sandbox, "exec sleep 1000", detach=True)
    await call(client, "cleanup", sandbox_id=sandbox)
    assert not theirs(host, sandbox)
    with pytest.raises(docker.errors.NotFound):
        host.containers.get(f"manyoyo-{sandbox}")


async def test_over_a_relay(host: docker.DockerClient, tmp_path: Path) -> None:
    """As where the engine is no socket of this machine's: through the keeper."""
    parameters = server_parameters(
        tmp_path,
        MANYOYO_HOST_IMAGES=IMAGES,
        MANYOYO_ENGINE="docker",
        MANYOYO_APPROVE=_WEAKER,
        MANYOYO_TRANSPORT="relay",
    )
    async with Client(parameters) as client:
        started = await start(client)
        assert started["transport"] == "relay"
        assert "hi" in (await run(client, started["sandbox_id"], "cat", stdin="hi"))["output"]
        await run(client, started["sandbox_id"], "exec sleep 1000", detach=True)
        await call(client, "cleanup")
        assert not theirs(host, started["sandbox_id"])


async def test_what_others_have_there_is_not_there(
    client: Client, host: docker.DockerClient, bystander: Bystander
) -> None:
    sandbox = (await start(client))["sandbox_id"]
    other = (await start(client))["sandbox_id"]
    await run(client, other, "exec sleep 1000", detach=True, name="others")
    # What somebody runs of an image that has the sandbox's label is theirs all the same; and so is what has such a name.
    claimed = host.containers.run(PRIVATE, ["sleep", "1000"], detach=True, labels={"org.manyoyo.within": sandbox})
    called = host.containers.run(PRIVATE, ["sleep", "1000"], detach=True, name=f"manyoyo-{sandbox}.called")
    try:
        others = [bystander.name, bystander.container.id, bystander.container.id[:12], "others", f"manyoyo-{other}.others",
                  f"manyoyo-{sandbox}", claimed.id, claimed.name, "called", called.name, "no-such"]  # fmt: skip
        for name in others:
            for tool, more in (
                ("nested_exec", {"command": ["true"]}),
                ("nested_logs", {}),
                ("nested_stop", {"action": "remove"}),
                ("nested_stop", {}),
            ):
                error = await refused(client, tool, sandbox_id=sandbox, container=name, **more)
                assert error["code"] == "CONTAINER_NOT_FOUND", (tool, name, error)
        listed = await call(client, "nested_list", sandbox_id=sandbox)
        assert listed["containers"] == [] and PRIVATE not in json.dumps(listed), listed
        for image in (PRIVATE, host.images.get(PRIVATE).id, host.images.get(PRIVATE).short_id.removeprefix("sha256:")):
            error = await refused(client, "nested_run", sandbox_id=sandbox, image=image, command=["true"])
            assert error["code"] in ("POLICY_REFUSED", "IMAGE_NOT_FOUND") and "MANYOYO_HOST_IMAGES" in error["hint"], (
                error
            )
        for network in (bystander.name, f"container:{bystander.name}", "host", "bridge"):
            error = await refused(client, "nested_run", sandbox_id=sandbox, image=BUSYBOX, network=network)
            assert error["code"] == "POLICY_REFUSED", (network, error)
        await call(client, "cleanup", sandbox_id=sandbox)
        for each in (claimed, called):
            each.reload()
            assert each.status == "running", "a bystander was removed"
        assert len(theirs(host, other)) == 1
    finally:
        claimed.remove(force=True)
        called.remove(force=True)


async def test_what_it_reaches(client: Client, bystander: Bystander) -> None:
    sandbox = (await start(client))["sandbox_id"]
    reach = f"nc -w 2 {bystander.address} 7 < /dev/null"
    for command in (reach, "nc -w 2 169.254.169.254 80 < /dev/null"):
        ran = await run(client, sandbox, command)
        assert ran["exit_code"] != 0 and "reached" not in ran["output"], ran
    status = (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]
    assert any(bystander.address in each for each in status["refused"]), status
    service = await run(client, sandbox, "exec nc -ll -p 7 -e echo served", detach=True, name="svc")
    assert service["address"] == "127.0.0.1"
    assert "served" in (await run(client, sandbox, "nc -w 3 127.0.0.1 7 < /dev/null"))["output"]
    none = (await start(client, network_policy="none"))["sandbox_id"]
    assert "eth0" not in (await run(client, none, "ip link"))["output"]
    # No raw packets, with which one speaks for others on the host's bridge.
    assert (await run(client, sandbox, f"ping -c 1 -W 1 {bystander.address}"))["exit_code"] != 0


@pytest.mark.parametrize(
    "lay",
    ["mkfifo /etc/passwd /etc/group", "mkfifo /pipe; ln -s /pipe /etc/passwd; ln -s ../pipe /etc/group"],
    ids=["itself", "by-a-link"],
)
async def test_a_pipe_of_a_containers_does_not_hold_the_hosts_engine(
    host: docker.DockerClient, bystander: Bystander, tmp_path: Path, lay: str
) -> None:
    """dockerd opens a container's /etc/passwd for each exec, and would wait at a pipe for ever."""
    async with boxed(tmp_path, lease_s=24) as box:
        service = await box.service("sh", "-c", f"rm /etc/passwd /etc/group; {lay}; exec sleep 1000")
        await anyio.sleep(1)
        with anyio.fail_after(40 * SLACK), pytest.raises(InvalidArgument, match="user"):
            await box.exec(service, "echo", "there", user="somebody")
        assert (await box.exec(service, "echo", "there")).exit_code == 0
        with anyio.fail_after(20 * SLACK):  # for a moment it waits at pipes of its own, as others' containers start
            while await in_thread(stuck):
                await anyio.sleep(0.1)


def stuck() -> int:
    """The threads of the host's engine, no other's, that wait for the other end of a pipe."""
    waits, socket = 0, os.environ.get("DOCKER_HOST", "").removeprefix("unix://").encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"dockerd" in words and socket in words:
                told = [each.read_text() for each in process.glob("task/[0-9]*/wchan")]
                waits += sum("fifo_open" in each or "wait_for_partner" in each for each in told)
    return waits


async def test_what_takes_an_engine_of_its_own_is_refused(client: Client, host: docker.DockerClient) -> None:
    sandbox = (await start(client))["sandbox_id"]
    context = {"Dockerfile": f"FROM {BUSYBOX}\nRUN true\n"}
    for tool, arguments, code in (
        ("nested_build", {"sandbox_id": sandbox, "files": context}, "BUILD_UNAVAILABLE"),
        ("sandbox_endpoint", {"sandbox_id": sandbox}, "ENDPOINT_UNAVAILABLE"),
        ("nested_run", {"sandbox_id": sandbox, "image": BUSYBOX, "docker_socket": True}, "ENDPOINT_UNAVAILABLE"),
        ("fork_sandbox", {"sandbox_id": sandbox}, "NOTHING_KEPT"),
        ("checkpoint", {"sandbox_id": sandbox, "name": "one"}, "NOTHING_KEPT"),
        ("start_sandbox", {"isolation": "common", "name": "kept"}, "NOTHING_KEPT"),
        ("start_sandbox", {"isolation": "common", "disk": "1g"}, "DISK_CAP_UNAVAILABLE"),
        ("start_sandbox", {"isolation": "common", "engine": "podman"}, "ISOLATION_UNAVAILABLE"),
        (
            "start_sandbox",
            {"isolation": "common", "network_policy": "allowlist", "network_allow": ["example.org"]},
            "NETWORK_POLICY_UNAVAILABLE",
        ),
        ("start_sandbox", {"sandbox_id": sandbox, "network_policy": "none"}, "NETWORK_POLICY_UNAVAILABLE"),
    ):
        error = await refused(client, tool, **arguments)
        assert error["code"] == code and error["hint"], (tool, error)
    assert "isolation" in (await refused(client, "nested_build", sandbox_id=sandbox, files=context))["hint"]
    images = image_ids(host)
    error = await refused(client, "nested_run", sandbox_id=sandbox, image="example.org/app:1", command=["true"])
    assert error["code"] == "POLICY_REFUSED" and "MANYOYO_HOST_IMAGES" in error["hint"], error
    assert image_ids(host) == images


async def test_what_runs_at_a_time_is_no_more_than_the_sandbox(client: Client) -> None:
    sandbox = (await start(client))["sandbox_id"]
    for name in ("one", "two"):
        await run(client, sandbox, "exec sleep 1000", detach=True, name=name)
    error = await refused(client, "nested_run", sandbox_id=sandbox, image=BUSYBOX, command=["true"], memory="6m")
    assert error["code"] == "BUDGET_EXCEEDED" and "memory" in error["message"], error
    await call(client, "start_sandbox", sandbox_id=sandbox, memory="600m", cpus=2)
    error = await refused(client, "nested_run", sandbox_id=sandbox, image=BUSYBOX, command=["true"], memory="6m")
    assert error["code"] == "BUDGET_EXCEEDED" and "cpus" in error["message"], error
    await call(client, "nested_stop", sandbox_id=sandbox, container="one", timeout_s=0)
    assert (await run(client, sandbox, "echo hi"))["exit_code"] == 0
    await run(client, sandbox, "exec sleep 1000", detach=True, name="three")
    error = await refused(client, "nested_stop", sandbox_id=sandbox, container="one", action="start")
    assert error["code"] == "BUDGET_EXCEEDED", error


@contextlib.asynccontextmanager
async def boxed(tmp_path: Path, isolation: str = "common", **settings: Any) -> AsyncIterator[Box]:
    given = Settings(
        state_dir=tmp_path / "state",
        runtime_dir=tmp_path / "run",
        host_images=IMAGES.split(","),
        engine="docker",
        **settings,
    )
    async with open_manager(given, sweep_first=False) as manager:
        yield Box(manager, await manager.start(memory=512 << 20, cpus=2, isolation=isolation, network_policy="open"))


async def gone(host: docker.DockerClient, sandbox: str, seconds: float) -> None:
    with anyio.fail_after(seconds * SLACK):
        while await anyio.to_thread.run_sync(theirs, host, sandbox):
            await anyio.sleep(0.2)


async def test_its_lease_removes_what_runs(host: docker.DockerClient, bystander: Bystander, tmp_path: Path) -> None:
    """Whoever else is dead: nobody renews it any more."""
    async with boxed(tmp_path, lease_s=round(3 * SLACK)) as box:
        sandbox = box.sandbox.sandbox_id
        await box.service("sleep", "1000")
        await box.service("sh", "-c", "trap '' TERM; sleep 1000", network="none")
        await anyio.sleep(4 * SLACK)
        assert len(theirs(host, sandbox)) == 2, "it was renewed"
        box.manager._let_go(box.sandbox.outer)
        await gone(host, sandbox, 20)


async def test_the_lease_removes_what_was_built(
    host: docker.DockerClient, bystander: Bystander, tmp_path: Path
) -> None:
    images = image_ids(host)
    async with boxed(tmp_path, "sock", lease_s=4, sock=True) as box:
        sandbox = box.sandbox.sandbox_id
        built = await box.build(f"FROM {BUSYBOX}\nRUN echo made > /made\n", tags=[f"localhost/{sandbox}/app"])
        assert built.image_id, built
        await box.service("sleep", "1000", image=f"localhost/{sandbox}/app")
        box.manager._let_go(box.sandbox.outer)
        await gone(host, sandbox, 25)
        with anyio.fail_after(10 * SLACK):
            while image_ids(host) != images:
                await anyio.sleep(0.2)
        await sweep.remove_session(box.manager.settings, box.manager.identity.session)


async def test_the_end_of_a_session_removes_what_it_left(
    host: docker.DockerClient, bystander: Bystander, tmp_path: Path
) -> None:
    """As the reaper does, and the next server's sweep: here with a keeper that somebody killed."""
    async with boxed(tmp_path) as box:
        sandbox = box.sandbox.sandbox_id
        await box.service("sleep", "1000")
        host.containers.get(f"manyoyo-{sandbox}").kill()
        await sweep.remove_session(box.manager.settings, box.manager.identity.session)
        assert not theirs(host, sandbox)
        assert not host.volumes.list(filters={"label": f"org.manyoyo.sandbox={sandbox}"})


async def test_doctor_tries_them() -> None:
    def doctor() -> list[dict[str, Any]]:
        argv = [sys.executable, "-m", "manyoyo_mcp", "doctor", "isolation", "common", "sock", "--json", "--quiet"]
        checks: list[dict[str, Any]] = json.loads(
            subprocess.run(argv, capture_output=True, timeout=200 * SLACK).stdout
        )["checks"]
        return checks

    common, sock, *_ = await anyio.to_thread.run_sync(doctor)
    assert common["name"] == "isolation common, docker" and common["state"] == "ok", common
    assert "0 block devices, and 0 containers of others" in common["found"]
    assert (
        sock["name"] == "isolation sock, docker"
        and sock["state"] == "warn"
        and "is off" in sock["found"]
        and "MANYOYO_SOCK" in sock["mend"]
    ), sock


async def test_the_command_line_works_there(host: docker.DockerClient, bystander: Bystander, tmp_path: Path) -> None:
    """`run --build` and `doctor --try`, of the engine that this isolation brings with it."""
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN echo made > /made\n")
    environment = {name: value for name, value in os.environ.items() if name != "MANYOYO_ENGINE"} | {
        "MANYOYO_ISOLATION": "sock", "MANYOYO_SOCK": "true", "MANYOYO_HOST_IMAGES": IMAGES, "MANYOYO_STATE_DIR": str(tmp_path / "state"),
    }  # fmt: skip

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "manyoyo_mcp", *words]
        return subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90 * SLACK)

    images = image_ids(host)
    done = await in_thread(command, "run", "--quiet", "--build", str(tmp_path), "--", "cat", "/made")
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr
    tried = json.loads((await in_thread(command, "doctor", "--try", "--json", "--quiet")).stdout)["checks"]
    (found,) = [each for each in tried if each["name"] == "sandbox docker"]
    assert found["state"] == "ok" and not [each for each in tried if each["name"] == "sandbox podman"], found
    assert image_ids(host) == images


# -- isolation sock: the same, and builds


def sock_parameters(tmp_path: Path, **more: str) -> Any:
    return server_parameters(
        tmp_path, **{"MANYOYO_HOST_IMAGES": IMAGES, "MANYOYO_ENGINE": "docker", "MANYOYO_APPROVE": _WEAKER} | more
    )


async def test_sock_is_off_unless_the_configuration_names_it(client: Client) -> None:
    error = await refused(client, "start_sandbox", isolation="sock")
    assert error["code"] == "POLICY_REFUSED" and "MANYOYO_SOCK" in error["hint"], error


async def test_sock_takes_a_yes_in_each_session(host: docker.DockerClient, tmp_path: Path) -> None:
    asked: list[str] = []

    def person(action: str) -> Any:
        async def answer(context: Any, params: Any) -> ElicitResult:
            asked.append(params.message)
            return ElicitResult(action=action, content={} if action == "accept" else None)

        return answer

    # Neither a start that names it, nor one by the way.
    for name, isolation in (("named", "privileged"), ("configured", "sock")):
        directory = tmp_path / name
        directory.mkdir()
        parameters = sock_parameters(directory, MANYOYO_SOCK="true", MANYOYO_ISOLATION=isolation)
        start_it = (
            ("start_sandbox", {"isolation": "sock"})
            if name == "named"
            else ("nested_run", {"image": BUSYBOX, "command": ["true"]})
        )
        async with Client(parameters) as client:  # which can't ask
            error = await refused(client, start_it[0], **start_it[1])
            assert error["code"] == "POLICY_REFUSED" and "MANYOYO_APPROVE=sock=allow" in error["hint"], error
        async with Client(parameters, elicitation_callback=person("decline")) as client:
            error = await refused(client, start_it[0], **start_it[1])
            assert error["code"] == "NOT_APPROVED", error
    assert len(asked) == 2 and "OWN container engine" in asked[0]
    for _ in range(2):
        asked.clear()
        async with Client(parameters, elicitation_callback=person("accept")) as client:
            result = await client.call_tool(
                "nested_run", {"image": BUSYBOX, "command": ["echo", "hi"], "memory": "64m"}
            )
            assert not result.is_error, result.content
            assert "ISOLATION SOCK" in str(result.content), "it is to be loud"
            again = await client.call_tool("start_sandbox", {"memory": "512m", "isolation": "sock"})
            assert not again.is_error and len(asked) == 1, "once a session is enough"
            status = await client.call_tool("sandbox_status", {})
            assert "ISOLATION SOCK" in str(status.content)


@pytest.fixture
async def sock(host: docker.DockerClient, tmp_path: Path) -> AsyncIterator[Client]:
    parameters = sock_parameters(
        tmp_path, MANYOYO_SOCK="true", MANYOYO_ISOLATION="sock", MANYOYO_APPROVE="sock=allow,isolation=allow"
    )
    async with Client(parameters) as connected:
        yield connected


async def test_what_sock_builds_is_the_sandboxs(sock: Client, host: docker.DockerClient, bystander: Bystander) -> None:
    images = image_ids(host)
    started = await start(sock, isolation="sock")
    sandbox = started["sandbox_id"]
    assert "THIS IS THE HOST'S OWN ENGINE" in started["isolation"] and started["caps_enforced"] == "enforced"

    async def build(dockerfile: str, **more: Any) -> dict[str, Any]:
        return await call(
            sock,
            "nested_build",
            sandbox_id=sandbox,
            files={"Dockerfile": dockerfile, "data": "of the context\n"},
            **more,
        )

    name = f"localhost/{sandbox}/app"
    dockerfile = (
        f"FROM {BUSYBOX} AS one\nRUN echo 'a  b' \\\n  > /made\n"
        "FROM one\nCOPY --from=one /made /copied\nCOPY data /data\nRUN ip link > /links; cat /made\n"
    )
    built = await build(dockerfile, tags=[name, f"{name}:two"], memory="128m", network="none")
    assert built["reason"] == "OK" and "a  b" in json.dumps(built) + str(
        await call(sock, "read_log", job_id=built["job_id"])
    ), built
    ran = await run(sock, sandbox, "cat /copied /data /links", image=name)
    assert "a  b\nof the context" in ran["output"] and "eth0" not in ran["output"], ran
    assert name + ":latest" in json.dumps(await call(sock, "nested_list", sandbox_id=sandbox))
    failed = await build(f"FROM {BUSYBOX}\nADD data /\n\nRUN true\nRUN exit 7\n")
    assert failed["reason"] == "BUILD_FAILED" and failed["exit_code"] == 7, failed
    assert failed["failed_step"]["line"] == 5 and "LABEL" not in json.dumps(failed["failed_step"]), failed
    shell = await build("FROM scratch\nCOPY data /\nRUN true\n")
    assert shell["cause_code"] == "NO_SHELL" and shell["failed_step"]["line"] == 3, shell
    broken = await build(f"FROM {BUSYBOX}\nRUN true\n\nENV A\n")
    assert broken["reason"] == "BUILD_FAILED" and broken["failed_step"]["line"] == 4, json.dumps(broken)
    target = await build(f"FROM {BUSYBOX}\n", target="none")
    assert target["cause_code"] == "TARGET_NOT_FOUND", target
    error = await refused(
        sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {BUSYBOX}\n"}, pull=True
    )
    assert error["code"] == "POLICY_REFUSED" and "already" in error["message"], error
    # A step is what a run is.
    may = "grep -E '^(CapBnd|NoNewPrivs)' /proc/self/status; ip -o link; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true"
    step = await build(f"FROM {BUSYBOX}\nRUN {may}\n", memory="128m")
    log = (await call(sock, "read_log", job_id=step["job_id"]))["output"]
    for line in (await run(sock, sandbox, may, memory="128m"))["output"].splitlines()[1:-1]:
        assert line in log, (line, log)
    assert "eth0" in log
    killed = await build(f"FROM {BUSYBOX}\nRUN tail /dev/zero\n", memory="64m")
    assert killed["reason"] == "OOM_KILLED", killed
    bomb = await build(
        f"FROM {BUSYBOX}\nRUN i=0; while [ $i -lt 1500 ]; do sleep 300 & i=$((i+1)); done; echo all\n",
        memory="256m",
        cpus=2,
    )
    assert bomb["reason"] == "PIDS_LIMIT", bomb
    late = await build(f"FROM {BUSYBOX}\nRUN sleep 987\n", timeout_s=3)
    assert late["reason"] == "TIMEOUT", late
    # Somebody stands on it: that is theirs.
    theirs_ = host.containers.run(name, ["sleep", "1000"], detach=True)
    host.images.get(name).tag("localhost/bystanders/took", "it")
    try:
        await call(sock, "cleanup", sandbox_id=sandbox)
        theirs_.reload()
        assert theirs_.status == "running"
        left = {each.id: each.tags for each in host.images.list(all=True) if each.id not in images}
        assert not [tag for tags in left.values() for tag in tags if sandbox in tag], left
        assert host.images.get("localhost/bystanders/took:it")
    finally:
        theirs_.remove(force=True)
        host.images.remove("localhost/bystanders/took:it", force=True)
    assert image_ids(host) == images, "layers are left"


_AS_THE_HOST_BUILDS = (
    f"""FROM {BUSYBOX} AS base
ENV A="a  b" \\
    B=2
WORKDIR /work
RUN echo "$A|$B|$PWD" > out; id -u >> out
USER 1000:1000
RUN id -u > /tmp/who
EXPOSE 80
STOPSIGNAL SIGINT
LABEL one="1  1" two=2
VOLUME /kept
HEALTHCHECK --interval=9s CMD true
ENTRYPOINT ["sh", "-c"]
CMD ["cat /tmp/who"]
RUN true
""",
    f"""ARG WHAT=default
FROM {BUSYBOX} AS one
ARG WHAT
ARG GIVEN
ARG MORE="$WHAT and $GIVEN"
RUN echo "$WHAT|$GIVEN|$MORE|${{NEVER-unset}}" > /out
FROM scratch
COPY --from=one / /
COPY data /data
ADD data /added
SHELL ["/bin/sh", "-ec"]
RUN false || echo "on" >> /out; [ -z "$WHAT" ]
RUN ["sh", "-c", "echo $0 >> /out", "exec form"]
RUN echo 'a\\nb' # comment
""",
    f"FROM {BUSYBOX} AS one\nCMD first\nRUN true\nFROM one AS two\nRUN echo two > /out\nENTRYPOINT two\nFROM two\nRUN exit 7\n",
    f"FROM {BUSYBOX}\nCMD kept\nRUN true\nENTRYPOINT with\n",
    f"""FROM {BUSYBOX}
MAINTAINER somebody
CMD kept "$HOME"
ENV P=/a
ARG Q=$P/q
ENV P=/b
SHELL ["/bin/busybox", "sh", "-c"]
RUN echo "$Q $P" > /out
ARG Q=\'two "words"\'
RUN [ -z "$ARGUMENT" ]; echo "$Q" >> /out; cat >> /out
WORKDIR /all
COPY . .
RUN find . | sort > /found
RUN mkdir -p /etc; echo me:x:77:7::/: > /etc/passwd; echo us:x:88: > /etc/group
COPY --chown=me:us data /mine
ENV R=1
COPY --chown=me:5 data /mine2
COPY --chown=1:2 data /mine3
""",
)


async def test_what_sock_builds_is_what_the_host_would_build(
    sock: Client, host: docker.DockerClient, bystander: Bystander, tmp_path: Path
) -> None:
    """The same Dockerfiles by the host's own builder, which runs RUN steps itself."""
    sandbox = (await start(sock, isolation="sock"))["sandbox_id"]
    name = f"localhost/{sandbox}/same"
    project = tmp_path / "project"
    project.mkdir()
    (project / "data").write_text("of the context\n")
    for dockerfile in _AS_THE_HOST_BUILDS:
        target = "two" if "AS two" in dockerfile else None
        given = {"GIVEN": "it's"} if "GIVEN" in dockerfile else {}
        (project / "Dockerfile").write_text(dockerfile)
        files = {"Dockerfile": dockerfile, "data": "of the context\n"}
        more = {"target": target} if target else {}
        built = await call(sock, "nested_build", sandbox_id=sandbox, files=files, tags=[name], build_args=given, **more)
        assert built["reason"] == "OK", json.dumps(built)
        await gone(host, sandbox, 20)
        before = image_ids(host)
        same = partial(host.images.build, path=str(project), tag="localhost/manyoyo-test/same", rm=True, nocache=True)
        theirs_ = (await in_thread(partial(same, target=target, buildargs=given)))[0]
        try:
            ours = host.images.get(name)
            for key in (
                "Cmd",
                "Entrypoint",
                "Env",
                "ExposedPorts",
                "Healthcheck",
                "Shell",
                "StopSignal",
                "User",
                "Volumes",
                "WorkingDir",
            ):
                assert (ours.attrs["Config"].get(key) or None) == (theirs_.attrs["Config"].get(key) or None), (
                    key,
                    dockerfile,
                )
            labels = ours.attrs["Config"]["Labels"]
            assert {name for name, value in labels.items() if name.startswith("org.manyoyo.") and value} == {
                "org.manyoyo.of"
            }
            assert {
                name: value for name, value in labels.items() if not name.startswith("org.manyoyo.")
            } == theirs_.labels
            assert ours.attrs["Author"] == theirs_.attrs["Author"]
            assert "two words" not in json.dumps(ours.history()), "what an ARG was is not in an image's history"
            assert await in_thread(files_of, host, ours) == await in_thread(files_of, host, theirs_)
        finally:
            for image in sorted(image_ids(host) - before):  # of its stages too
                with contextlib.suppress(docker.errors.APIError):
                    host.images.remove(image, force=True)
            assert image_ids(host) == before


def files_of(host: docker.DockerClient, image: Any) -> dict[str, tuple[Any, ...]]:
    """What an image holds, but for when it was made."""
    made = host.containers.create(image.id, ["true"], entrypoint=[""])
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(made.export()))) as archive:
            found: dict[str, tuple[Any, ...]] = {}
            for each in archive:
                content = archive.extractfile(each) if each.isreg() else None
                found[each.name] = (each.type, each.mode, each.uid, each.gid, each.linkname, content and content.read())
            return found
    finally:
        made.remove(v=True)


def node(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.devmajor, info.devminor = tarfile.BLKTYPE, 7, 0
    return info.tobuf()


def laid_image(host: docker.DockerClient, name: str, archive: bytes) -> None:
    """An image of the operator's, which has this."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as out:
        for file, content in (("x.tar", archive), ("Dockerfile", f"FROM {BUSYBOX}\nADD x.tar /\n".encode())):
            info = tarfile.TarInfo(file)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    context.seek(0)
    host.images.build(fileobj=context, custom_context=True, tag=name, rm=True)


async def test_nobody_makes_devices_for_the_hosts_engine(
    sock: Client, host: docker.DockerClient, request: pytest.FixtureRequest
) -> None:
    """It would open one that is a container's list of users, as root of the host."""
    sandbox = (await start(sock, isolation="sock"))["sandbox_id"]
    archive = node("node") + bytes(2 * tarfile.BLOCKSIZE)
    link = tarfile.TarInfo("to-a-node")
    link.type, link.linkname = tarfile.SYMTYPE, "d/node"
    request.addfinalizer(partial(host.images.remove, NODES, force=True))
    await in_thread(laid_image, host, NODES, node("d/node") + link.tobuf() + bytes(2 * tarfile.BLOCKSIZE))
    made = await call(
        sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {BUSYBOX}\nRUN mknod /node b 7 0\n"}
    )
    assert made["reason"] == "BUILD_FAILED" and "not permitted" in json.dumps(made), made
    # Nor has it others made of those that an image has, nor opens a pipe.
    for dockerfile in (
        f"FROM {BUSYBOX}\nCOPY --from={NODES} /d/ /etc/d/\n",
        f"FROM {BUSYBOX}\nCOPY --from={NODES} /to-a-node /etc/d\n",
        f"FROM {BUSYBOX}\nARG D=d\nCOPY --from={NODES} /$D /etc/d\n",
        f"FROM {BUSYBOX} AS one\nRUN mkfifo /pipe\nFROM {BUSYBOX}\nCOPY --from=one /pipe /\n",
        f"FROM {BUSYBOX} AS one\nRUN mkfifo /pipe\nFROM {BUSYBOX}\nCOPY --from=0 /pip[e] /\n",
        f"FROM {BUSYBOX} AS one\nRUN rm -f /.dockerenv; mkfifo /.dockerenv\nFROM {BUSYBOX}\nCOPY --from=one /.dockerenv /x\n",
        f"FROM {BUSYBOX} AS one\nRUN mkfifo '/p\u00a0q'\nFROM {BUSYBOX}\nCOPY --from=one /p\u00a0q /x\n",
        f"FROM {BUSYBOX} AS one\nRUN mkdir /a; mkfifo /a/p; ln -s a /b\nFROM {BUSYBOX}\nCOPY --from=one /b/./p /x\n",
        f"FROM {BUSYBOX} AS one\nRUN mkdir /a; mkfifo /a/p; ln -s a /b; ln /b /c; [ -L /c ]\nFROM {BUSYBOX}\nCOPY --from=one /c/p /x\n",
    ):
        error = await refused(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": dockerfile})
        assert error["code"] == "POLICY_REFUSED" and "device or a pipe" in error["message"], (dockerfile, error)
    holes = f"FROM {BUSYBOX}\nRUN truncate -s 5G /big; truncate -s 5G /more\n"
    error = await refused(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": holes})
    assert error["code"] == "POLICY_REFUSED" and "holes" in error["message"], error
    users = f"FROM {BUSYBOX} AS one\nRUN yes a | head -c 200000 > /big\nFROM {BUSYBOX}\nCOPY --from=one /big /etc/passwd\nCOPY --chown=a:1 --from=one /big /x\n"
    error = await refused(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": users})
    assert error["code"] == "POLICY_REFUSED" and "/etc/passwd is larger" in error["message"], error
    large = await call(
        sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {BUSYBOX}\nRUN truncate -s 9G /big\n"}
    )
    assert large["reason"] == "BUILD_FAILED", "what a sum of sizes could overflow with"
    fine = f"FROM {BUSYBOX}\nCOPY --from={NODES} /bin /lost /bin2/\n"
    assert (await call(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": fine}))[
        "reason"
    ] == "BUILD_FAILED"
    packed = {"Dockerfile": f"FROM {BUSYBOX}\nADD x.tar /\n", "x.tar": {"base64": base64.b64encode(archive).decode()}}
    error = await refused(sock, "nested_build", sandbox_id=sandbox, files=packed)
    assert error["code"] == "POLICY_REFUSED" and "COPY it" in error["hint"], error
    endpoint = (await call(sock, "sandbox_endpoint", sandbox_id=sandbox))["docker_host"]

    def lay(given: bytes) -> subprocess.CompletedProcess[bytes]:
        argv = ["docker", "--host", endpoint, "cp", "-", "svc:/tmp"]
        return subprocess.run(argv, input=given, capture_output=True, timeout=60 * SLACK)

    await run(sock, sandbox, "exec sleep 1000", detach=True, name="svc")
    laid = await in_thread(lay, archive)
    assert laid.returncode != 0 and b"a device" in laid.stderr, laid
    file = tarfile.TarInfo("file")
    file.size = 5
    laid = await in_thread(lay, gzip.compress(file.tobuf() + b"hello".ljust(512, b"\0") + bytes(1024)))
    assert laid.returncode == 0, laid
    said = await call(
        sock, "nested_exec", sandbox_id=sandbox, container="svc", command=["sh", "-c", "ls /tmp; cat /tmp/file"]
    )
    assert "\nfile\nhello" in said["output"] and "node" not in said["output"], said


async def test_what_sock_does_not_build(sock: Client, host: docker.DockerClient, bystander: Bystander) -> None:
    sandbox = (await start(sock, isolation="sock"))["sandbox_id"]
    before = {each.id: each.tags for each in host.images.list(all=True)}
    private = host.images.get(PRIVATE).id.removeprefix("sha256:")
    files = {"Dockerfile": f"FROM {BUSYBOX}\n"}
    error = await refused(sock, "nested_build", sandbox_id=sandbox, files=files, builder="daemonless")
    assert error["code"] == "BUILDER_UNAVAILABLE", error  # and not by the host's own in its place
    for dockerfile in (
        f"FROM {PRIVATE}\nRUN true\n",
        f"FROM {private}\n",
        f"ARG X={PRIVATE}\nFROM $X\n",
        f"FROM {BUSYBOX}\nCOPY --from={PRIVATE} /bin /x\n",
        f"FROM {BUSYBOX}\nCOPY --chown=0 --from={private[:12]} /bin /x\n",
        f"FROM {BUSYBOX}\nADD http://{bystander.address}:7/ /x\n",
        f"FROM {BUSYBOX}\nARG X=http\nADD $X://{bystander.address}/ /x\n",
        f"FROM {BUSYBOX}\nONBUILD COPY --from={PRIVATE} /bin /x\n",
        f'FROM {BUSYBOX}\nCOPY --"from"={PRIVATE} /bin /x\n',
        f"FROM {BUSYBOX}\nCOPY --fr\\om={PRIVATE} /bin /x\n",
        f'FROM {BUSYBOX}\nCOPY --chown="${{X:+a b}}0" --from={PRIVATE} /bin /x\n',
        f"FROM {BUSYBOX}\nRUN --mount=from={PRIVATE},target=/x true\n",
        f'FROM {BUSYBOX}\nADD http:"//"{bystander.address}:7/ /x\n',
        f'FROM {BUSYBOX}\nLABEL org.manyoyo.grants="-1000000000000 -1000000000000 -100000"\nRUN true\n',
        f"FROM {BUSYBOX}\nLABEL org.many\\oyo.of=x\n",
        f"FROM {ONBUILD}\n",
    ):
        error = await refused(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": dockerfile})
        assert error["code"] == "POLICY_REFUSED", (dockerfile, error)
    missing = await refused(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {BUSYBOX}-none\n"})
    assert missing["code"] == "IMAGE_NOT_FOUND", missing  # and nobody on the host's loopback was asked for it
    error = await refused(sock, "nested_run", sandbox_id=sandbox, image=THERE, command=["true"], pull="always")
    assert error["code"] == "POLICY_REFUSED" and "already" in error["message"], error
    # A build counts among what runs.
    await run(sock, sandbox, "exec sleep 1000", detach=True, name="one")
    error = await refused(
        sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {BUSYBOX}\n"}, memory="300m"
    )
    assert error["code"] == "BUDGET_EXCEEDED", error
    await call(sock, "nested_stop", sandbox_id=sandbox, container="one", timeout_s=0, action="remove")
    for tag in (PRIVATE, BUSYBOX, "localhost/app:1", "localhost/sb-0000000000000000/x"):
        error = await refused(
            sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {BUSYBOX}\n"}, tags=[tag]
        )
        assert error["code"] == "POLICY_REFUSED" and f"localhost/{sandbox}/" in error["hint"], (tag, error)
    error = await refused(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": f"FROM {BUSYBOX}\n"},
                          tags=[f"localhost/{sandbox}/x", PRIVATE])  # fmt: skip
    assert error["code"] == "POLICY_REFUSED", error
    assert {each.id: each.tags for each in host.images.list(all=True)} == before


async def test_what_the_engine_reads_is_what_was_judged(
    host: docker.DockerClient, bystander: Bystander, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should it read a Dockerfile otherwise: the build ends at that step, and what it made has no name that could be run."""
    before = {tag for each in host.images.list() for tag in each.tags}
    async with boxed(tmp_path, "sock", sock=True) as box:
        for read in (
            f"FROM {PRIVATE}\nENV A=b\n",
            f"FROM {BUSYBOX}\nRUN true\n",
            f"FROM {BUSYBOX}\nENV A=b\nENV B=c\n",
        ):
            monkeypatch.setattr(Batch, "text", read)
            with pytest.raises(PolicyRefused, match="reads"):
                await box.build(f"FROM {BUSYBOX}\n")
    assert {tag for each in host.images.list() for tag in each.tags} == before


async def test_an_image_asks_no_more_of_the_engine_than_a_client(sock: Client, host: docker.DockerClient) -> None:
    """runc covers the kernel's files by what is /dev/null in the container, which dockerd does not make where an image has a volume there."""
    sandbox = (await start(sock, isolation="sock"))["sandbox_id"]
    link = f"FROM {BUSYBOX}\nRUN mkdir /d && ln -s /proc/keys /d/null\nFROM {BUSYBOX}\nCOPY --from=0 /d/ /dev/\n"
    for line, said in (("VOLUME /dev", "no place to mount"), ("VOLUME $PWD/dev/", "no place to mount"), ("HEALTHCHECK --interval=1ms CMD true", "too often")):  # fmt: skip
        name = f"localhost/{sandbox}/odd"
        files = {"Dockerfile": f"{link}{line}\n"}
        built = await call(sock, "nested_build", sandbox_id=sandbox, files=files, tags=[name])
        assert built["reason"] == "OK", built
        error = await refused(sock, "nested_run", sandbox_id=sandbox, image=name, command=["cat", "/proc/keys"])
        assert error["code"] == "POLICY_REFUSED" and said in error["message"], error
    long = f"FROM {BUSYBOX}\nENV A={'x' * 60_000}\nENV B={'$A' * 30_000}\nENV C={'$B' * 30_000}\n"
    error = await refused(sock, "nested_build", sandbox_id=sandbox, files={"Dockerfile": long})
    assert error["code"] == "POLICY_REFUSED" and "too long" in error["message"], error


async def test_a_client_of_the_users_own_is_held_to_the_sandbox(
    sock: Client, host: docker.DockerClient, bystander: Bystander
) -> None:
    sandbox = (await start(sock, isolation="sock"))["sandbox_id"]
    error = await refused(sock, "sandbox_endpoint", sandbox_id=sandbox, ports=True)
    assert error["code"] in ("ENDPOINT_UNAVAILABLE", "POLICY_REFUSED"), error
    endpoint = (await call(sock, "sandbox_endpoint", sandbox_id=sandbox))["docker_host"]

    def cli(*argv: str, stdin: str | None = None) -> tuple[int, str]:
        done = subprocess.run(
            ["docker", "--host", endpoint, *argv], input=stdin, capture_output=True, text=True, timeout=60 * SLACK
        )
        return done.returncode, done.stdout + done.stderr

    def use() -> None:
        assert cli("run", "--rm", BUSYBOX, "echo", "hi") == (0, "hi\n")
        assert cli("run", "--rm", "-i", "--memory", "32m", "--network", "none", BUSYBOX, "cat", stdin="given") == (
            0,
            "given",
        )
        code, said = cli("run", "-d", "--name", "svc", BUSYBOX, "sh", "-c", "echo began; exec sleep 1000")
        assert code == 0, said
        (made,) = theirs(host, sandbox)
        assert made.name == f"manyoyo-{sandbox}.svc" and made.attrs["HostConfig"]["Memory"] == 256 << 20
        assert cli("ps", "--format", "{{.Names}} {{.Image}}") == (0, f"svc {BUSYBOX}\n")
        assert cli("exec", "svc", "echo", "in") == (0, "in\n") and cli("logs", "svc") == (0, "began\n")
        assert cli("cp", "svc:/etc/passwd", "-")[0] == 0
        code, said = cli("images", "--format", "{{.Repository}}:{{.Tag}}")
        assert code == 0 and BUSYBOX in said and PRIVATE not in said
        assert bystander.name not in cli("info")[1] + cli("ps", "-a")[1]
        for name in (bystander.name, bystander.container.id, bystander.container.id[:12], f"manyoyo-{sandbox}"):
            for argv in (("rm", "-f", name), ("stop", name), ("kill", name), ("exec", name, "true"), ("logs", name), ("inspect", "--type", "container", name),
                         ("cp", f"{name}:/data/kept", "-"), ("pause", name), ("top", name), ("attach", name), ("wait", name)):  # fmt: skip
                code, said = cli(*argv)
                assert "No such container" in said, (argv, said)
        for argv in (
            ("run", PRIVATE, "true"), ("run", "-v", "/:/host", BUSYBOX, "true"), ("run", "-v", f"{bystander.name}:/data", BUSYBOX, "true"), ("run", "--privileged", BUSYBOX),
            ("run", "--network", bystander.name, BUSYBOX), ("run", "--network", f"container:{bystander.name}", BUSYBOX), ("run", "--pid", "host", BUSYBOX),
            ("run", "--volumes-from", bystander.name, BUSYBOX), ("run", "-p", "8080:80", BUSYBOX), ("run", "--restart", "always", BUSYBOX),
            ("run", "--label", f"org.manyoyo.within={sandbox}", BUSYBOX), ("run", "--memory", "4g", BUSYBOX, "true"),
            ("volume", "ls"), ("volume", "rm", bystander.name), ("network", "rm", bystander.name), ("network", "ls"), ("network", "connect", bystander.name, "svc"),
            ("rmi", "-f", PRIVATE), ("tag", BUSYBOX, PRIVATE), ("rmi", BUSYBOX), ("save", PRIVATE), ("history", PRIVATE), ("image", "inspect", PRIVATE),
            ("system", "prune", "-af", "--volumes"), ("container", "prune", "-f"), ("image", "prune", "-af"), ("volume", "prune", "-f"), ("network", "prune", "-f"),
            ("update", "--memory", "400m", "svc"), ("commit", "svc", PRIVATE), ("rename", "svc", bystander.name),
        ):  # fmt: skip
            code, said = cli(*argv)
            assert code != 0, (argv, said)
        theirs_ = host.api.exec_create(bystander.container.id, ["touch", "/data/entered"])[
            "Id"
        ]  # whose id somebody has learnt
        with contextlib.closing(docker.APIClient(endpoint, version="1.41")) as client:
            for ask in (client.exec_inspect, client.exec_start):
                with pytest.raises(docker.errors.APIError, match="No such exec"):
                    ask(theirs_)
        assert not host.api.exec_inspect(theirs_)["Running"] and host.api.exec_inspect(theirs_)["ExitCode"] is None
        assert cli("run", "--rm", BUSYBOX, "true") == (0, ""), "there is room for one more"
        code, said = cli("run", "-d", "--memory", "300m", BUSYBOX, "sleep", "1")
        assert code != 0 and "no room" in said, said
        project = "com.docker.compose.project=theirs"  # whose compose would take it for a service of its own
        assert cli("run", "--name", "named", "--label", project, BUSYBOX, "true") == (0, "")
        assert not host.containers.list(all=True, filters={"label": project})
        assert cli("ps", "-a", "--filter", f"label={project}", "--format", "{{.Names}}") == (0, "named\n")
        assert "theirs" in cli("inspect", "-f", '{{index .Config.Labels "com.docker.compose.project"}}', "named")[1]
        assert cli("rm", "-f", "svc", "named")[0] == 0
        assert cli("run", "-d", "--name", "big", "--memory", "300m", BUSYBOX, "sleep", "1000")[0] == 0
        assert cli("restart", "-t", "0", "big") == (0, "big\n"), "its own room is not taken from it"
        assert cli("rm", "-f", "big")[0] == 0
        assert "already" in cli("pull", THERE)[1] and "loopback" in cli("pull", BUSYBOX)[1]
        leave = [each.name for each in theirs(host, sandbox) if each.status == "running"]
        assert not leave

    await anyio.to_thread.run_sync(use)
    files = {"Dockerfile": f"FROM {BUSYBOX}\nRUN sleep 765\n"}
    job = await call(sock, "nested_build", sandbox_id=sandbox, files=files, memory="400m", wait_s=2)
    code, said = await anyio.to_thread.run_sync(cli, "run", "-d", BUSYBOX, "sleep", "1")
    assert code != 0 and "no room" in said, "a build of the tools' counts for the user's clients too"
    await call(sock, "job_cancel", job_id=job["job_id"])
    await call(sock, "cleanup", sandbox_id=sandbox)
    assert not theirs(host, sandbox)
