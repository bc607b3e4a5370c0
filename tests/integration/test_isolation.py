"""The tiers of isolation: each is what was asked for, holds what it says, and stays what it was."""

import base64
import io
import tarfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest
from mcp import Client

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from tests.conftest import server_parameters
from tests.integration.test_storage import build, call, on_both, refused, run, start
from tests.support import BUSYBOX, busybox_rootfs, exec_in

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]
NAME = "hardened-one"
OUTSIDE = """
ls /dev | grep -E '^(vd|sd|nvme|loop|kmsg|mem|fuse)' | sed 's/^/device /'
mknod /run/disk b 254 0; cat /run/disk > /dev/null && echo read a device
echo core > /proc/sys/kernel/core_pattern && echo wrote core_pattern
echo h > /proc/sysrq-trigger && echo wrote sysrq
cat /proc/kcore | head -c 1 | grep -q . && echo read kcore
grep CapBnd /proc/self/status
"""
"""Tried in the outer container itself, as code would that broke out of a nested one. Nothing of it changes anything where it works."""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    secret = {"MANYOYO_SECRETS": "key=env:ISOLATION_TEST_KEY", "ISOLATION_TEST_KEY": "of-the-servers"}
    async with Client(server_parameters(tmp_path, **secret)) as connected:
        yield connected
        await connected.call_tool("cleanup", {"sandbox_id": NAME})


async def outside(sandbox_id: str) -> tuple[dict[str, Any], str]:
    """A sandbox's outer container: how its host has it, and what it can do."""

    def look() -> tuple[dict[str, Any], str]:
        container = docker.from_env().containers.get(f"manyoyo-{sandbox_id}")
        _, output = exec_in(container, ["sh", "-c", f"({OUTSIDE}) 2>/dev/null"])
        return container.attrs["HostConfig"], output.decode()

    return await anyio.to_thread.run_sync(look)


@on_both
async def test_a_hardened_sandbox(client: Client, engine: str) -> None:
    started = (await call(client, "start_sandbox", engine=engine, isolation="hardened", name=NAME, memory="512m"))[
        "sandbox"
    ]
    sandbox = started["sandbox_id"]
    assert started["isolation"].startswith("hardened. ") and started["caps_enforced"] == "enforced"
    host_config, found = await outside(sandbox)
    assert host_config["Privileged"] is False
    bounding = int(found.split("CapBnd:\t")[1], 16)
    for number, name in ((16, "SYS_MODULE"), (17, "SYS_RAWIO"), (22, "SYS_BOOT"), (25, "SYS_TIME")):
        assert not bounding >> number & 1, name
    assert found.strip().startswith("CapBnd"), found
    await build(client, sandbox)
    assert (await build(client, sandbox, f"FROM {BUSYBOX}\nRUN echo built > /x\n", tags=["localhost/x"]))[
        "reason"
    ] == "OK"
    assert (await run(client, sandbox, "cat /x; exit 3", image="localhost/x"))["exit_code"] == 3
    killed = await run(client, sandbox, "tail /dev/zero", memory="64m")
    assert killed["reason"] == "OOM_KILLED", killed
    await run(client, sandbox, "exec sleep 1000", detach=True, name="svc")
    done = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=["echo", "hi"])
    assert "hi" in done["output"]
    error = await refused(client, "start_sandbox", sandbox_id=sandbox, isolation="privileged")
    assert "keeps its isolation" in error["message"]
    fork = (await call(client, "fork_sandbox", sandbox_id=sandbox))["forks"][0]
    assert fork["isolation"].startswith("hardened. ")
    await call(client, "cleanup", sandbox_id=fork["sandbox_id"])
    await call(client, "cleanup", sandbox_id=NAME, keep_data=True)
    again = (await call(client, "start_sandbox", name=NAME))["sandbox"]
    assert again["isolation"].startswith("hardened. "), "never weaker in silence"
    error = await refused(client, "start_sandbox", name=NAME, isolation="privileged")
    assert "runs with isolation hardened" in error["message"]


OWNERS = """
exec 2> /dev/null  # processes end meanwhile
for mark in $MARKS; do
  for process in /proc/[0-9]*; do
    [ "$(tr '\\0' ' ' < $process/cmdline)" != "sleep $mark " ] || echo $mark $(stat -c %u $process) $(cat $process/uid_map)
  done
done
"""


async def test_root_of_a_nested_container_is_nobody_outside(client: Client) -> None:
    started = (await call(client, "start_sandbox", isolation="userns", name=NAME, memory="512m"))["sandbox"]
    sandbox = started["sandbox_id"]
    assert started["isolation"].startswith("userns. ") and started["caps_enforced"] == "enforced"
    await build(client, sandbox)
    await run(client, sandbox, "exec sleep 1001", detach=True, name="svc", secrets={"key": ""})
    look_and_stay = ["sh", "-c", "stat -c '%a of %u' /run/secrets/key; sleep 1002 & true"]
    done = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=look_and_stay)
    assert "400 of 0" in done["output"], done
    dockerfile = f"FROM {BUSYBOX}\nRUN id -u > /who && cat /proc/self/uid_map >> /who\n"
    assert (await build(client, sandbox, dockerfile, tags=["localhost/who"]))["reason"] == "OK"
    step = " ".join((await run(client, sandbox, "cat /who", image="localhost/who"))["output"].split())
    assert " 0 0 100000 65536 " in step, "a RUN step is not mapped"
    alone = await build(client, sandbox, f"FROM {BUSYBOX}\nRUN echo alone > /who\n", builder="daemonless")
    assert alone["reason"] == "OK", alone

    def look() -> list[list[str]]:
        container = docker.from_env().containers.get(f"manyoyo-{sandbox}")
        _, output = exec_in(container, ["sh", "-c", OWNERS], environment={"MARKS": "1001 1002"})
        return [line.split() for line in output.decode().splitlines()]

    seen = await anyio.to_thread.run_sync(look)
    assert seen == [[mark, "100000", "0", "100000", "65536"] for mark in ("1001", "1002")], seen
    assert (await run(client, sandbox, "tail /dev/zero", memory="64m"))["reason"] == "OOM_KILLED"
    put = await run(client, sandbox, "cat /job/in > /job/out", files={"/job/in": "kept"}, outputs=["/job/out"])
    assert put["exit_code"] == 0 and put["outputs"], put
    fork = (await call(client, "fork_sandbox", sandbox_id=sandbox))["forks"][0]
    assert fork["isolation"].startswith("userns. ")
    assert (await run(client, fork["sandbox_id"], "cat /who", image="localhost/who"))["exit_code"] == 0
    await call(client, "cleanup", sandbox_id=fork["sandbox_id"])
    await call(client, "cleanup", sandbox_id=NAME, keep_data=True)
    error = await refused(client, "start_sandbox", name=NAME, isolation="hardened")
    assert "was stored with isolation userns" in error["message"], error
    again = (await call(client, "start_sandbox", name=NAME))["sandbox"]
    assert again["isolation"].startswith("userns. ")
    error = await refused(client, "nested_stop", sandbox_id=again["sandbox_id"], container="svc", action="start")
    assert error["code"] == "SECRETS_GONE", error
    assert (await run(client, again["sandbox_id"], "cat /who", image="localhost/who"))["exit_code"] == 0


@pytest.mark.parametrize(
    ("tier", "engine", "other"),
    [("userns", "podman", "docker"), ("gvisor", "docker", "podman"), ("rootless", "docker", "podman")],
)
async def test_an_engine_that_can_not_have_a_tier_refuses_it(
    client: Client, tier: str, engine: str, other: str
) -> None:
    error = await refused(client, "start_sandbox", engine=engine, isolation=tier)
    assert error["code"] == "ISOLATION_UNAVAILABLE" and f"engine={other}" in error["hint"], error


ENGINES_OWN = """
cat /proc/self/uid_map
grep Cap /proc/1/status > /dev/null && echo saw a process
cat /run/manyoyo/engine.sock; ls /run/manyoyo && echo saw the sockets
touch /usr/lib/manyoyo/x && echo wrote a program
for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max; do
  (echo max > $file; echo -1 > $file) && echo raised a cap of the sandbox
done
cat /proc/1/environ /proc/1/root/etc/shadow && echo read what is of the outer root
mknod /run/libpod/disk b 254 0 && echo made a device
nft list ruleset | grep -q manyoyo && echo saw the rules of the sandbox
"""
"""Tried as the engine itself, as code would that took it over."""


def names_at(address: str) -> list[str]:
    """Of the containers that a Docker client sees there."""
    client = docker.DockerClient(address)
    try:
        return [each.name for each in client.containers.list()]
    finally:
        client.close()


async def test_the_engine_itself_is_nobody_outside(client: Client) -> None:
    started = (await call(client, "start_sandbox", engine="podman", isolation="rootless", name=NAME, memory="512m"))[
        "sandbox"
    ]
    sandbox = started["sandbox_id"]
    assert started["isolation"].startswith("rootless. ") and started["caps_enforced"] == "enforced"
    host_config, _ = await outside(sandbox)
    assert host_config["Privileged"] is False and "no-new-privileges" in host_config["SecurityOpt"]
    await build(client, sandbox)
    await run(
        client, sandbox, "nc -ll -p 7 -e echo served & exec sleep 1001", detach=True, name="svc", secrets={"key": ""}
    )
    look_and_stay = ["sh", "-c", "stat -c '%a of %u' /run/secrets/key; sleep 1002 & true"]
    done = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=look_and_stay)
    assert "400 of 0" in done["output"], done
    # A directory that a layer replaces does not show what was in it before.
    dockerfile = (
        f"FROM {BUSYBOX}\nRUN mkdir /d && echo old > /d/old && cat /proc/self/uid_map > /who\n"
        "RUN rm -rf /d && mkdir /d && echo new > /d/new\n"
    )
    assert (await build(client, sandbox, dockerfile, tags=["localhost/who"]))["reason"] == "OK"
    step = " ".join((await run(client, sandbox, "cat /who; ls /d", image="localhost/who"))["output"].split())
    assert " 0 100000 65536 new " in step, step

    def look() -> tuple[list[list[str]], str, set[str]]:
        container = docker.from_env().containers.get(f"manyoyo-{sandbox}")
        _, output = exec_in(container, ["sh", "-c", OWNERS], environment={"MARKS": "1001 1002"})
        _, own = exec_in(container, ["/usr/lib/manyoyo/enter", "sh", "-c", f"({ENGINES_OWN}) 2>/dev/null"])
        # Where the outer root does things by name, what is in there makes nothing.
        for where in ("/run/manyoyo-secrets", "/var/lib/manyoyo/alone", "/run/manyoyo"):
            code, said = exec_in(container, ["/usr/lib/manyoyo/enter", "sh", "-c", f"ln -s /etc {where}/x"])
            assert code != 0 and b"ermission denied" in said, (where, said)
        _, groups = exec_in(container, ["/usr/lib/manyoyo/enter", "sh", "-c", "grep Groups: /proc/self/status"])
        assert groups.split() in ([b"Groups:"], [b"Groups:", b"0"]), groups
        owners = "stat -c %u $(grep -lxE 'podman|conmon' /proc/[0-9]*/comm) 2>/dev/null"
        _, engines = exec_in(container, ["sh", "-c", owners])
        return [line.split() for line in output.decode().splitlines()], own.decode(), set(engines.decode().split())

    seen, own, engines = await anyio.to_thread.run_sync(look)
    assert seen == [[mark, "100000", "0", "100000", "65536"] for mark in ("1001", "1002")], seen
    assert own.split() == ["0", "100000", "65536", "saw", "a", "process"], own
    assert engines == {"100000"}, engines
    # Caps, of runs and steps; networks, between containers and not to where the policy closes them.
    assert (await run(client, sandbox, "tail /dev/zero", memory="64m"))["reason"] == "OOM_KILLED"
    step_killed = await build(client, sandbox, f"FROM {BUSYBOX}\nRUN tail /dev/zero\n", memory="64m")
    assert step_killed["reason"] == "OOM_KILLED", step_killed
    listed = (await call(client, "nested_list", sandbox_id=sandbox))["containers"]
    address = next(each["address"] for each in listed if each["name"] == "svc")
    assert "served" in (await run(client, sandbox, f"nc -w 3 {address} 7"))["output"]
    closed = await run(client, sandbox, "nc -w 3 169.254.169.254 80")
    assert closed["exit_code"] != 0, closed
    status = (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]
    assert "169.254.169.254" in str(status), status
    late = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", timeout_s=1, command=["sleep", "901"])
    assert late["reason"] == "TIMEOUT", late
    put = await run(client, sandbox, "cat /job/in > /job/out", files={"/job/in": "kept"}, outputs=["/job/out"])
    assert put["exit_code"] == 0 and put["outputs"], put
    address = (await call(client, "sandbox_endpoint", sandbox_id=sandbox))["docker_host"]
    assert "svc" in await anyio.to_thread.run_sync(names_at, address)
    error = await refused(client, "nested_run", sandbox_id=sandbox, image=BUSYBOX, command=["true"], docker_socket=True)
    assert error["code"] == "NOT_SUPPORTED" and "rootless" in error["message"], error
    alone = await build(
        client, sandbox, f"FROM {BUSYBOX}\nRUN echo alone > /who\n", tags=["localhost/alone"], builder="daemonless"
    )
    assert alone["reason"] == "OK", alone
    fork = (await call(client, "fork_sandbox", sandbox_id=sandbox))["forks"][0]
    assert fork["isolation"].startswith("rootless. ")
    assert (await run(client, fork["sandbox_id"], "cat /who", image="localhost/alone"))["exit_code"] == 0
    await call(client, "cleanup", sandbox_id=fork["sandbox_id"])
    await call(client, "cleanup", sandbox_id=NAME, keep_data=True)
    error = await refused(client, "start_sandbox", name=NAME, isolation="hardened")
    assert "was stored with isolation rootless" in error["message"], error
    again = (await call(client, "start_sandbox", name=NAME))["sandbox"]
    assert (await run(client, again["sandbox_id"], "cat /who", image="localhost/who"))["exit_code"] == 0


async def test_where_ids_can_not_be_mapped_there_is_no_sandbox(tmp_path: Path) -> None:
    host = docker.from_env()
    name = "localhost/manyoyo-test/no-namespaces:latest"
    without = f"FROM {outer.reference(Settings())}\nRUN rm /usr/bin/unshare\n"
    host.images.build(fileobj=BytesIO(without.encode()), tag=name)
    try:
        async with Client(server_parameters(tmp_path, MANYOYO_OUTER_IMAGE=name)) as client:
            error = await refused(client, "start_sandbox", engine="podman", isolation="rootless", memory="512m")
            assert error["code"] == "ISOLATION_UNAVAILABLE" and "unshare" in error["message"], error
            assert not (await call(client, "sandbox_status"))["sandboxes"]
    finally:
        host.images.remove(name, force=True)


async def test_the_default_is_told(client: Client) -> None:
    sandbox = await start(client)
    status = (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]
    assert status["isolation"] == "privileged"
    error = await refused(client, "start_sandbox", isolation="stronger")
    assert "hardened" in error["message"] + error["hint"], error


async def test_warm_ones_are_of_the_configured_tier_alone(tmp_path: Path) -> None:
    settings = {"MANYOYO_ISOLATION": "hardened", "MANYOYO_APPROVE": "isolation=allow", "MANYOYO_WARM": "1"}
    async with Client(server_parameters(tmp_path, **settings)) as client:
        first = await call(client, "start_sandbox")
        assert first["sandbox"]["isolation"].startswith("hardened. ")
        other = await call(client, "start_sandbox", isolation="privileged")
        assert other["sandbox"]["isolation"].startswith("privileged. ")


def said(result: dict[str, Any]) -> str:
    """The output without its fence."""
    return "\n".join(result["output"].splitlines()[1:-1])


async def test_what_is_nested_has_a_kernel_of_its_own(client: Client) -> None:
    started = (await call(client, "start_sandbox", isolation="gvisor", name=NAME, memory="1g", network_policy="open"))[
        "sandbox"
    ]
    sandbox = started["sandbox_id"]
    assert started["isolation"].startswith("gvisor. ") and started["caps_enforced"] == "enforced"
    host_config, _ = await outside(sandbox)
    assert host_config["Privileged"] is False
    theirs = Path("/proc/version").read_text()
    await build(client, sandbox)
    # Run, exec, RUN step, and what a client at the gate makes, from within too.
    ran = await run(client, sandbox, "cat /proc/version /job/in > /job/out; cat /job/out; exit 3",
                    files={"/job/in": "kept"}, outputs=["/job/out"])  # fmt: skip
    kernel, kept = said(ran).splitlines()
    assert ran["exit_code"] == 3 and kept == "kept" and f"{kernel}\nkept" in ran["outputs"][0]["text"], ran
    assert kernel.startswith("Linux version 4.4.0") and kernel != theirs.strip()
    await run(client, sandbox, "nc -ll -p 7 -e echo served & exec sleep 1000", detach=True, name="svc")
    done = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=["cat", "/proc/version"])
    assert done["exit_code"] == 0 and said(done) == kernel, done
    dockerfile = f"FROM {BUSYBOX}\nRUN cat /proc/version > /tmp/seen\nRUN false || echo more >> /tmp/seen\n"
    assert (await build(client, sandbox, dockerfile, tags=["localhost/seen"]))["reason"] == "OK"
    assert said(await run(client, sandbox, "cat /tmp/seen", image="localhost/seen")) == f"{kernel}\nmore"
    plain = {"Dockerfile": f"FROM {BUSYBOX}\n"}
    error = await refused(client, "nested_build", sandbox_id=sandbox, files=plain, builder="daemonless")
    assert error["code"] == "BUILDER_UNAVAILABLE" and "Leave builder out" in error["hint"], error
    failed = await build(client, sandbox, f"FROM {BUSYBOX}\nRUN exit 7\n")
    assert failed["reason"] == "BUILD_FAILED" and failed["exit_code"] == 7, failed
    endpoint = await call(client, "sandbox_endpoint", sandbox_id=sandbox)

    def through_the_gate() -> str:
        gate = docker.DockerClient(base_url=endpoint["docker_host"])
        with pytest.raises(docker.errors.APIError, match="runtime is fixed"):
            gate.containers.run(BUSYBOX, ["true"], runtime="crun")
        made = gate.containers.run(BUSYBOX, ["cat", "/proc/version"], detach=True)
        made.wait()
        return str(made.logs().decode().strip())

    assert await anyio.to_thread.run_sync(through_the_gate) == kernel
    # Caps, and what is killed.
    assert (await run(client, sandbox, "tail /dev/zero", memory="64m"))["reason"] == "OOM_KILLED"
    late = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", timeout_s=1,
                      command=["sh", "-c", "sleep 900 & sleep 901"])  # fmt: skip
    assert late["reason"] == "TIMEOUT", late
    left = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=["ps"])
    assert "sleep 1000" in left["output"] and "sleep 90" not in left["output"], left
    none = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=["no-such-program"])
    assert none["reason"] == "COMMAND_NOT_FOUND", none
    # Networks: one container reaches another, by the kernel's sockets.
    listed = (await call(client, "nested_list", sandbox_id=sandbox))["containers"]
    address = next(each["address"] for each in listed if each["name"] == "svc")
    assert "served" in (await run(client, sandbox, f"nc -w 3 {address} 7"))["output"]
    assert (await run(client, sandbox, f"nc -w 1 {address} 7", network="none"))["exit_code"] != 0
    await call(client, "cleanup", sandbox_id=NAME, keep_data=True)
    again = (await call(client, "start_sandbox", name=NAME))["sandbox"]
    assert again["isolation"].startswith("gvisor. "), "never weaker in silence"
    await call(client, "nested_stop", sandbox_id=NAME, container="svc", action="start")
    done = await call(
        client, "nested_exec", sandbox_id=again["sandbox_id"], container="svc", command=["cat", "/proc/version"]
    )
    assert said(done) == kernel, done


async def test_an_exec_of_podmans_own_is_killed_in_gvisor(tmp_path: Path) -> None:
    """Over a relay it is podman that runs an exec: what of it is gVisor's own no kernel of ours shows."""
    async with Client(server_parameters(tmp_path, MANYOYO_ISOLATION="gvisor", MANYOYO_TRANSPORT="relay")) as client:
        sandbox = (await call(client, "start_sandbox", memory="1g"))["sandbox"]["sandbox_id"]
        await build(client, sandbox)
        await run(client, sandbox, "exec sleep 1000", detach=True, name="svc")
        script = ["sh", "-c", "sleep 900 & sleep 901"]
        late = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", timeout_s=1, command=script)
        assert late["reason"] == "TIMEOUT" and late["seconds"] < 20, late
        begun = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", wait_s=0, command=script)
        await anyio.sleep(2)
        assert (await call(client, "job_cancel", job_id=begun["job_id"]))["state"] == "cancelled"
        left = await call(client, "nested_exec", sandbox_id=sandbox, container="svc", command=["ps"])
        assert "sleep 1000" in left["output"] and "sleep 90" not in left["output"], left


async def test_a_runtime_of_the_hosts(client: Client) -> None:
    """One that every Docker has; and one that none has."""
    sandbox = (await call(client, "start_sandbox", isolation="runtime:runc", memory="512m"))["sandbox"]
    assert sandbox["isolation"].startswith("runtime:runc. ") and "not tried" in sandbox["isolation"]
    host_config, _ = await outside(sandbox["sandbox_id"])
    assert host_config["Runtime"] == "runc" and host_config["Privileged"] is False
    await build(client, sandbox["sandbox_id"])
    assert (await run(client, sandbox["sandbox_id"], "echo hi"))["output"].splitlines()[1] == "hi"
    error = await refused(client, "start_sandbox", isolation="runtime:no-such")
    assert error["code"] == "ISOLATION_UNAVAILABLE" and "runc" in error["message"], error


async def test_secrets_reach_what_is_in_gvisor(tmp_path: Path) -> None:
    value = "cAnArY-of-gvisor-77ab"
    settings = {"MANYOYO_SECRETS": "key=env:THE_KEY", "THE_KEY": value, "MANYOYO_ISOLATION": "gvisor"}
    async with Client(server_parameters(tmp_path, **settings)) as client:
        sandbox = (await call(client, "start_sandbox", memory="512m"))["sandbox"]["sandbox_id"]
        await build(client, sandbox)
        turned = await run(client, sandbox, 'rev /run/secrets/key; echo; echo "$KEY"', secrets={"key": ""})
        assert said(turned).splitlines()[0] == value[::-1], turned
        shown = await run(client, sandbox, 'echo "$KEY" | rev; echo "$KEY"', secrets={"key": "KEY"})
        assert said(shown).splitlines() == [value[::-1], "[secret key]"], shown
        step = f"FROM {BUSYBOX}\nRUN --mount=type=secret,id=key rev /run/secrets/key > /seen\n"
        assert (await build(client, sandbox, step, tags=["localhost/seen"], secrets=["key"]))["reason"] == "OK"
        assert said(await run(client, sandbox, "cat /seen", image="localhost/seen")) == value[::-1]


IN_PLACE_OF_PASSWD = {"device": (tarfile.CHRTYPE, 10, 237), "pipe": (tarfile.FIFOTYPE, 0, 0)}
"""A node of a device that every kernel with loop devices has: opening it does nothing, reading it is an error."""


def rootfs_with(what: str) -> bytes:
    """The test image's, with something else for /etc/passwd and /etc/group."""
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(busybox_rootfs())) as had,
        tarfile.open(fileobj=buffer, mode="w") as archive,
    ):
        for entry in had:
            if entry.name != "etc/passwd":
                archive.addfile(entry, had.extractfile(entry) if entry.isfile() else None)
        for name in ("etc/passwd", "etc/group"):
            entry = tarfile.TarInfo(name)
            entry.mode = 0o666
            entry.type, entry.devmajor, entry.devminor = IN_PLACE_OF_PASSWD[what]
            archive.addfile(entry)
    return buffer.getvalue()


async def built_with(client: Client, sandbox: str, what: str) -> str:
    """An image of that; its name."""
    root, tag = base64.b64encode(rootfs_with(what)).decode(), f"localhost/with-a-{what}:1"
    files = {"Dockerfile": "FROM scratch\nADD root.tar /\nENV PATH=/bin\n", "root.tar": {"base64": root}}
    built = await call(client, "nested_build", sandbox_id=sandbox, files=files, tags=[tag])
    assert built["reason"] == "OK", built
    return tag


@on_both
async def test_a_device_node_of_an_image_is_not_opened(client: Client, engine: str) -> None:
    """Both engines read an image's users as root of the outer container."""
    sandbox = await start(client, engine=engine)
    image = await built_with(client, sandbox, "device")
    ran = await call(client, "nested_run", sandbox_id=sandbox, image=image, command=["stat", "-c", "%F", "/etc/passwd"])
    assert ran["exit_code"] == 0 and "character special file" in ran["output"], ran


@pytest.mark.parametrize(
    "tier",
    [{"engine": "podman"}, {"engine": "docker"}, {"isolation": "rootless"}],
    ids=["podman", "docker", "rootless"],
)
async def test_a_pipe_of_an_image_ends_by_itself(client: Client, tier: dict[str, str]) -> None:
    """An engine that waits for its other end holds the container's lock, and podman's listing with it; podman would also write to it."""
    sandbox = await start(client, **tier)
    image = await built_with(client, sandbox, "pipe")
    given = {"image": image, "command": ["stat", "-c", "%F", "/etc/passwd"]}
    with anyio.fail_after(100):
        ran = await call(client, "nested_run", sandbox_id=sandbox, **given)
        assert ran["exit_code"] == 0 and "fifo" in ran["output"], ran
        result = await client.call_tool("nested_run", {"sandbox_id": sandbox, "user": "4242", **given})
        told = result.content[0].text
        assert ("broken pipe" in told) if result.is_error else ("fifo" in told), told  # who reads it is gone at once
        while (await call(client, "nested_list", sandbox_id=sandbox))["containers"]:
            await anyio.sleep(0.1)


async def test_dockerd_may_open_few_devices(client: Client) -> None:
    """Nor may what it starts, until that is in a cgroup of its own."""
    sandbox = await start(client, engine="docker")
    script = """
        open() { cat /root/control 2>&1 || true; }
        mknod /root/control c 10 237; echo "before: $(open)"
        for dir in /sys/fs/cgroup/devices/manyoyo-engine /sys/fs/cgroup/manyoyo-engine; do [ ! -d $dir ] || engine=$dir; done
        for pid in $(cat $engine/cgroup.procs); do echo "in it: $(cat /proc/$pid/comm)"; done
        echo 0 > $engine/cgroup.procs; echo "after: $(open)"
        cat /dev/null && head -c 1 /dev/zero | wc -c && mknod /root/another c 10 237 && echo made a node
        mknod /root/null c 1 3 && echo x > /root/null && echo wrote; mknod /root/disk b 7 0; cat /root/disk 2>&1
    """

    def look() -> str:
        outer = docker.from_env().containers.get(f"manyoyo-{sandbox}")
        return str(exec_in(outer, ["sh", "-c", script]).output.decode())

    said = await anyio.to_thread.run_sync(look)
    assert (
        "before: cat: read error: Invalid argument" in said or "before: cat: /root/control: Invalid argument" in said
    ), said
    assert "after: cat: /root/control: Operation not permitted" in said, said
    assert "in it: dockerd" in said and "in it: containerd" in said, said
    assert "made a node" in said and "wrote" in said and "/root/disk: Operation not permitted" in said, said


@on_both
async def test_a_device_node_in_the_store_is_none(client: Client, engine: str) -> None:
    """What an image or a build's context has for a file the engine opens as root of the outer container."""
    sandbox = await start(client, engine=engine)

    def opened() -> tuple[int, str]:
        outer = docker.from_env().containers.get(f"manyoyo-{sandbox}")
        done = exec_in(outer, ["sh", "-c", "cd /var/lib/manyoyo/tmp && mknod null c 1 3 && cat null"])
        return done.exit_code, done.output.decode()

    code, words = await anyio.to_thread.run_sync(opened)
    assert code != 0 and "Permission denied" in words, words
