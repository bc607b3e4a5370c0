"""Podman's own client through the gate, in its own dialect; and what the gate refuses of that."""

import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from manyoyo_mcp.sessions.manager import Manager
from tests.contract.test_gate import Docker
from tests.contract.test_ports import WEB, fetch
from tests.support import BUSYBOX, Box, busybox_context

pytestmark = pytest.mark.anyio
SERVICE = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]


@pytest.fixture(scope="module")
async def box(manager: Manager) -> AsyncIterator[Box]:
    sandbox = await manager.start("podman", memory=1 << 30)
    opened = Box(manager, sandbox)
    built = await opened.build(files=busybox_context(), tags=[BUSYBOX])
    assert built.image_id, built
    yield opened
    await manager.remove(sandbox)


class Podman:
    """The podman that the sandbox image has, in a container with nothing but a gate's socket and a directory of the test's."""

    def __init__(self, socket_path: Path, directory: Path) -> None:
        self.directory = directory
        self._host = docker.from_env()
        self._url = f"unix:///gate/{socket_path.name}"
        self._container = self._host.containers.run(
            outer.reference(Settings()), ["sleep", "1000"], entrypoint=[], detach=True, network_mode="none", init=True,
            labels={"org.manyoyo.test": "podman"},
            volumes={str(socket_path.parent): {"bind": "/gate"}, str(directory): {"bind": str(directory)}},
        )  # fmt: skip

    def close(self) -> None:
        self._container.remove(force=True)
        self._host.close()

    async def __call__(self, *words: str, ok: bool = True, input: str = "") -> subprocess.CompletedProcess[str]:
        def call() -> subprocess.CompletedProcess[str]:
            command = ["docker", "exec", "-i", self._container.id, "podman", "--remote", "--url", self._url, *words]
            return subprocess.run(command, text=True, capture_output=True, timeout=60, input=input)

        done = await anyio.to_thread.run_sync(call)
        assert not ok or done.returncode == 0, done
        return done


@pytest.fixture(scope="module")
async def podman(box: Box, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Podman]:
    opened = Podman(box.manager.endpoints.open(box.sandbox), tmp_path_factory.mktemp("podman"))
    yield opened
    opened.close()


@pytest.fixture
async def service(podman: Podman) -> AsyncIterator[str]:
    name = f"gated-{secrets.token_hex(4)}"
    await podman("run", "-d", "--name", name, BUSYBOX, *SERVICE)
    yield name
    await podman("rm", "-f", "-t", "0", name)


async def test_run(podman: Podman) -> None:
    done = await podman("run", "--rm", "-i", BUSYBOX, "sh", "-c", "cat; echo err >&2; exit 3", ok=False, input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\n", "err\n")
    assert "Podman Engine" in (await podman("version")).stdout and (await podman("info")).stdout


async def test_caps_are_the_sandboxes(podman: Podman, box: Box) -> None:
    made = (await podman("create", BUSYBOX, "true")).stdout.strip()
    host = json.loads((await podman("inspect", made)).stdout)[0]["HostConfig"]
    default = box.sandbox.limits.default
    assert (host["Memory"], host["PidsLimit"], host["Privileged"]) == (default.memory, default.pids, False)
    assert host["CpuQuota"] == round(default.cpus * host["CpuPeriod"])
    await podman("rm", made)
    refused = await podman("run", "--rm", "--memory", "64g", BUSYBOX, "true", ok=False)
    assert refused.returncode == 125 and "more than the sandbox itself has" in refused.stderr


async def test_what_a_service_is_asked(podman: Podman, service: str) -> None:
    assert (await podman("exec", "-i", service, "cat", input="through")).stdout == "through"
    assert (await podman("exec", service, "sh", "-c", "exit 7", ok=False)).returncode == 7
    assert service in (await podman("ps", "--format", "{{.Names}}")).stdout
    assert "sleep 1000" in (await podman("top", service)).stdout
    assert json.loads((await podman("stats", "--no-stream", "--format", "json", service)).stdout)[0]["name"] == service
    (podman.directory / "given").write_text("there and back")
    await podman("cp", str(podman.directory / "given"), f"{service}:/tmp/given")
    await podman("cp", f"{service}:/tmp/given", str(podman.directory / "back"))
    assert (podman.directory / "back").read_text() == "there and back"
    for words in (("pause",), ("unpause",), ("update", "--memory", "32m"), ("stop", "-t", "5")):
        await podman(*words, service)
    assert (await podman("wait", service)).stdout == "0\n"
    assert (await podman("inspect", "--format", "{{.HostConfig.Memory}}", service)).stdout.strip() == str(32 << 20)


async def test_an_update_changes_what_it_names(podman: Podman, box: Box) -> None:
    name = f"gated-{secrets.token_hex(4)}"
    await podman(
        "run", "-d", "--name", name, "--memory", "96m", "--cpus", "0.5", "--pids-limit", "50", BUSYBOX, "sleep", "1000"
    )

    async def caps() -> str:
        host = json.loads((await podman("inspect", "--format", "{{json .HostConfig}}", name)).stdout)
        return f"{host['Memory'] >> 20}m {host['CpuQuota'] / host['CpuPeriod']} {host['PidsLimit']}"

    assert await caps() == "96m 0.5 50"
    for change, expected in (
        (("--memory", "64m"), "64m 0.5 50"),
        (("--cpus", "0.25"), "64m 0.25 50"),
        (("--pids-limit", "40"), "64m 0.25 40"),
        (("--pids-limit", "-1"), f"64m 0.25 {box.sandbox.limits.default.pids}"),
    ):
        await podman("update", *change, name)
        assert await caps() == expected, change
    await podman("rm", "-f", "-t", "0", name)


async def test_execs_leave_no_processes(podman: Podman, box: Box, service: str) -> None:
    for _ in range(3):
        await podman("exec", service, "true")
    outer_container = box.sandbox.outer.container_id

    def monitors() -> int:
        """Podman's processes beside containers and execs: one each."""
        host = docker.from_env()
        try:
            return sum(
                "conmon" in each[-1]
                for each in host.containers.get(outer_container).top(ps_args="-o pid,comm")["Processes"]
            )
        finally:
            host.close()

    running = len((await podman("ps", "-q")).stdout.split())
    with anyio.fail_after(60):
        while await anyio.to_thread.run_sync(monitors) > running:
            await anyio.sleep(1)


async def test_logs_and_events(podman: Podman) -> None:
    name = f"gated-{secrets.token_hex(4)}"
    await podman("run", "-d", "--name", name, BUSYBOX, "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done")
    assert (await podman("logs", "-f", name)).stdout == "1\n2\n3\n"
    assert name in (await podman("events", "--stream=false", "--since", "1m")).stdout
    await podman("rm", name)


async def test_build(podman: Podman) -> None:
    tag = f"localhost/gated-{secrets.token_hex(4)}"
    project = podman.directory / "project"
    project.mkdir()
    (project / "Containerfile").write_text(f"FROM {BUSYBOX}\nARG WHO\nCOPY . /all\nRUN echo hello $WHO > /hello\n")
    await podman("build", "-t", f"{tag}:1", "--build-arg", "WHO=you", str(project))
    assert (await podman("run", "--rm", f"{tag}:1", "cat", "/hello")).stdout == "hello you\n"
    await podman("tag", f"{tag}:1", f"{tag}:2")
    assert f"{tag}:2" in (await podman("image", "inspect", f"{tag}:1")).stdout
    assert "hello" in (await podman("history", "--no-trunc", f"{tag}:1")).stdout
    await podman("save", "-o", str(podman.directory / "image.tar"), f"{tag}:1")
    (project / "Containerfile").write_text(f"FROM {BUSYBOX}\nRUN exit 9\n")
    failed = await podman("build", str(project), ok=False)
    assert failed.returncode != 0 and "9" in failed.stderr
    (project / "Containerfile").write_text(f"FROM {BUSYBOX}\nRUN ip link show eth0\n")
    assert (await podman("build", "--network", "none", str(project), ok=False)).returncode != 0
    await podman("rmi", f"{tag}:1", f"{tag}:2")


async def test_an_archive_is_not_loaded(podman: Podman) -> None:
    """A Dockerfile could name such an archive, of the outer container's."""
    archive = str(podman.directory / "image.tar")
    await podman("save", "-o", archive, BUSYBOX)
    done = await podman("load", "-i", archive, ok=False)
    assert done.returncode != 0 and "rejected by policy" in done.stderr, done


async def test_networks_and_volumes(podman: Podman) -> None:
    name = f"gated-{secrets.token_hex(4)}"
    await podman("network", "create", name)
    await podman("volume", "create", name)
    try:
        await podman("run", "-d", "--name", name, "--network", name, "--network-alias", "web", "-v", f"{name}:/data", BUSYBOX,
                     "sh", "-c", "echo kept > /data/x; httpd -f -p 80 -h /data")  # fmt: skip
        got = await podman("run", "--rm", "--network", name, "--tmpfs", "/t", "-u", "1000:1000", "-w", "/tmp", BUSYBOX,
                           "sh", "-c", "wget -qO- http://web/x; id -u; pwd; df /t | tail -1")  # fmt: skip
        assert got.stdout.startswith("kept\n1000\n/tmp\ntmpfs")
    finally:
        await podman("rm", "-f", "-t", "0", name)
        await podman("network", "rm", name)
        await podman("volume", "rm", name)


REFUSED = [
    ("--privileged",), ("-v", "/:/x"), ("-v", "/run/manyoyo:/x"), ("--mount", "type=bind,source=/etc,target=/x"),
    ("--mount", f"type=image,source={BUSYBOX},target=/x"), ("--pid", "host"), ("--network", "host"), ("--ipc", "host"),
    ("--uts", "host"), ("--userns", "keep-id"), ("--cgroupns", "host"), ("--cgroup-parent", "/init"),
    ("--cgroups", "disabled"), ("--cap-add", "SYS_ADMIN"), ("--device", "/dev/kmsg"),
    ("--security-opt", "seccomp=unconfined"), ("--security-opt", "unmask=ALL"), ("--security-opt", "label=disable"),
    ("--sysctl", "kernel.msgmax=1"), ("--annotation", "run.oci.handler=krun"),
    ("--log-opt", "path=/etc/x"), ("-p", "8080:80"), ("--systemd", "always"), ("--pod", "new:x"),
    ("--device-cgroup-rule", "b *:* rwm"), ("--oom-score-adj", "-5"), ("--network", "ns:/proc/1/ns/net"),
    ("--rootfs",),
]  # fmt: skip


WHY = ("may not", "is not given", "would join", "not among the engine calls", "no image's name")


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
async def test_what_reaches_out_is_refused(podman: Podman, words: tuple[str, ...]) -> None:
    done = await podman("create", *words, "/" if words == ("--rootfs",) else BUSYBOX, "true", ok=False)
    assert done.returncode == 125, done
    assert any(why in done.stderr for why in WHY), done


@pytest.mark.parametrize(
    "words",
    [
        ("volume", "create", "-o", "type=none", "-o", "device=/", "-o", "o=bind", "x"),
        ("network", "create", "-d", "macvlan", "-o", "parent=eth0", "x"),
        ("network", "create", "--interface-name", "x0", "x"),
        ("network", "create", "--route", "1.1.1.0/24,10.0.0.1", "--subnet", "10.0.0.0/24", "x"),
        ("push", BUSYBOX),
        ("pod", "create", "x"),
        ("pull", "dir:/etc"),
    ],
    ids=" ".join,
)
async def test_other_calls_are_refused(podman: Podman, words: tuple[str, ...]) -> None:
    done = await podman(*words, ok=False)
    assert done.returncode != 0 and done.stderr, done
    assert any(why in done.stderr for why in WHY), done


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v3.4.0/libpod/info HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /v9.0.0/libpod/_ping HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /libpod/_ping HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /v5.0.0/libpod/images/a%2F..%2F..%2Fb/json HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"GET /v5.0.0/libpod/containers/x/top?ps_args=-o&ps_args=pid HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/build?CgroupParent=/init HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/build?dockerfile=%5B%22/etc/shadow%22%5D HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/build?dockerfile=%5B%22a%22,%22b%22%5D HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/build?volume=/:/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/images/import?url=http://x/y HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/images/pull?reference=x&authfile=/etc/shadow HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"GET /v5.0.0/libpod/secrets/json HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/containers/x/checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"GET /v5.0.0/libpod/images/x/mount HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"POST /v5.0.0/libpod/play/kube HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
    ],
)  # fmt: skip
async def test_requests_that_lead_out(podman: Podman, box: Box, tmp_path: Path, request_: bytes, status: bytes) -> None:
    cli = Docker(box.manager.endpoints.open(box.sandbox), tmp_path)
    answer: Any = await anyio.to_thread.run_sync(cli.raw, request_)
    assert answer.split(b" ", 2)[1] == status, answer[:500]


async def test_published_ports(podman: Podman, box: Box) -> None:
    box.manager.endpoints.open(box.sandbox, ports=True)
    name = f"web-{secrets.token_hex(4)}"
    await podman("run", "-d", "--name", name, "-p", "8080", BUSYBOX, *WEB)
    address = (await podman("port", name, "8080")).stdout.strip()
    assert address.startswith("127.0.0.1:") and f"{address} to {name}:8080" in box.manager.endpoints.published(
        box.sandbox
    )
    assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://{address}/passwd")
    port = address.partition(":")[2]
    taken = await podman("run", "-d", "--name", f"{name}-2", "-p", f"{port}:80", BUSYBOX, "true", ok=False)
    assert taken.returncode != 0 and f"Port {port} " in taken.stderr and name in taken.stderr, taken
    await podman("rm", f"{name}-2")
    refused = await podman("run", "--rm", "-p", f"192.0.2.1:{port}:80", BUSYBOX, "true", ok=False)
    assert "loopback, and nothing beyond" in refused.stderr, refused
    await podman("rm", "-f", "-t", "0", name)
    with anyio.fail_after(10):
        while box.manager.endpoints.published(box.sandbox):
            await anyio.sleep(0.05)
