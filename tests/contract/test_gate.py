"""Every engine: Docker's own client through the gate, and what the gate refuses whoever speaks to it."""

import contextlib
import io
import json
import os
import pty
import secrets
import select
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.manager import open_manager
from tests.support import BUSYBOX, Box, busybox_context, exec_in

pytestmark = pytest.mark.anyio
TIMEOUT = 60
SERVICE = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]
"""Ends when it is told to: podman waits ten seconds for what does not."""


class Docker:
    """The docker command line of this machine, with a sandbox's gate as its host."""

    def __init__(self, socket_path: Path, home: Path) -> None:
        self.path = socket_path
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(home), "DOCKER_CONFIG": str(home / ".docker"),
            "DOCKER_HOST": f"unix://{socket_path}", "DOCKER_BUILDKIT": "0", "TERM": "dumb",
        }  # fmt: skip

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(["docker", *words], env=self.environment, text=True, **options)

    async def __call__(self, *words: str, ok: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        def call() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["docker", *words], env=self.environment, text=True, capture_output=True, timeout=TIMEOUT, **options
            )

        done = await anyio.to_thread.run_sync(call)
        assert not ok or done.returncode == 0, done
        return done

    def raw(self, request: bytes, wait: float = 5) -> bytes:
        """What is answered to these very bytes."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(wait)
            sock.connect(str(self.path))
            answer = b""
            with contextlib.suppress(OSError):
                sock.sendall(request)
                while piece := sock.recv(1 << 16):
                    answer += piece
            return answer

    def tar(self, files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


@pytest.fixture
async def cli(box: Box, tmp_path: Path) -> Docker:
    return Docker(box.manager.endpoints.open(box.sandbox), tmp_path)


@pytest.fixture
async def service(cli: Docker) -> Any:
    name = f"gated-{secrets.token_hex(4)}"
    await cli("run", "-d", "--name", name, BUSYBOX, *SERVICE)
    yield name
    await cli("rm", "-f", name)


async def test_run(cli: Docker, box: Box) -> None:
    done = await cli("run", "--rm", "-i", BUSYBOX, "sh", "-c", "cat; echo err >&2; exit 3", ok=False, input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\n", "err\n")
    listed = await cli("ps", "-a", "--format", "{{.Names}} {{.Image}}")
    assert "gated" not in listed.stdout
    info = json.loads((await cli("version", "--format", "{{json .Server}}")).stdout)
    assert info["ApiVersion"]


async def test_caps_are_the_sandboxes(cli: Docker, box: Box) -> None:
    made = (await cli("create", BUSYBOX, "true")).stdout.strip()
    host = json.loads((await cli("inspect", "--format", "{{json .HostConfig}}", made)).stdout)
    default = box.sandbox.limits.default
    assert (host["Memory"], host["PidsLimit"]) == (default.memory, default.pids)
    await cli("rm", made)
    refused = await cli("run", "--rm", "--memory", "64g", BUSYBOX, "true", ok=False)
    assert refused.returncode == 125 and "more than the sandbox itself has" in refused.stderr


async def test_an_update_changes_what_it_names(cli: Docker, box: Box) -> None:
    name = f"gated-{secrets.token_hex(4)}"
    await cli("run", "-d", "--name", name, "--memory", "96m", "--cpus", "0.5", "--pids-limit", "50", BUSYBOX, *SERVICE)

    async def caps() -> list[str]:
        """As the kernel has them (cgroup v1 or v2), for whoever asks from within."""
        files = ("memory/memory.limit_in_bytes memory.max", "cpu/cpu.cfs_quota_us cpu.max", "pids/pids.max pids.max")
        asked = "; ".join(f"cat {each} 2>/dev/null" for each in files)
        memory, quota, *_, pids = (
            await cli("exec", "-w", "/sys/fs/cgroup", name, "sh", "-c", f"{asked}; true")
        ).stdout.split()
        return [memory, quota, pids]

    try:
        assert await caps() == [str(96 << 20), "50000", "50"]
        for change, expected in (
            (("--memory", "64m"), [str(64 << 20), "50000", "50"]),
            (("--cpus", "0.25"), [str(64 << 20), "25000", "50"]),
            (("--pids-limit", "40"), [str(64 << 20), "25000", "40"]),
            (("--restart", "no"), [str(64 << 20), "25000", "40"]),
            (("--pids-limit", "-1"), [str(64 << 20), "25000", str(box.sandbox.limits.default.pids)]),
        ):
            await cli("update", *change, name)
            assert await caps() == expected, change
    finally:
        await cli("rm", "-f", name)


async def test_exec_with_a_terminal(cli: Docker, service: str) -> None:
    ours, theirs = pty.openpty()
    process = cli.popen(
        "exec", "-it", service, "sh", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.write(ours, b"tty && echo $((6 * 7)); exit 7\n")

    def read() -> bytes:
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the other side has closed
            while select.select([ours], [], [], TIMEOUT)[0] and (piece := os.read(ours, 4096)):
                seen += piece
        return seen

    seen = await anyio.to_thread.run_sync(read)
    os.close(ours)
    assert process.wait(TIMEOUT) == 7 and b"/dev/" in seen and b"\n42" in seen, seen


async def test_logs_are_followed_to_the_end(cli: Docker) -> None:
    name = f"gated-{secrets.token_hex(4)}"
    await cli("run", "-d", "--name", name, BUSYBOX, "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done")
    assert (await cli("logs", "-f", name)).stdout == "1\n2\n3\n"
    assert (await cli("wait", name)).stdout == "0\n"
    await cli("rm", name)


async def test_cp_events_and_stats(cli: Docker, service: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("there and back")
    since = str(int(time.time()) - 1)
    await cli("cp", str(tmp_path / "given"), f"{service}:/tmp/given")
    await cli("cp", f"{service}:/tmp/given", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "there and back"
    stats = json.loads((await cli("stats", "--no-stream", "--format", "{{json .}}", service)).stdout)
    assert (
        stats["Name"] in (service, service[1:]) and "iB" in stats["MemUsage"]
    )  # podman leaves the slash out that is cut off
    events = cli.popen("events", "--since", since, "--filter", f"container={service}", stdout=subprocess.PIPE)
    try:
        await cli("pause", service)
        await cli("unpause", service)
        assert events.stdout is not None
        for line in events.stdout:  # the test's own time ends it
            if " unpause " in line:
                break
    finally:
        events.kill()
        events.wait()


async def test_build(cli: Docker, tmp_path: Path) -> None:
    tag = f"localhost/gated-{secrets.token_hex(4)}:1"
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "sub" / "Dockerfile").write_text(
        f"FROM {BUSYBOX}\nARG WHO\nCOPY . /all\nRUN ls -A /all && echo hello $WHO > /hello\n"
    )
    (project / "left-out").write_text("x")
    (project / ".dockerignore").write_text("left-out\n")
    words = (
        "build",
        "-q",
        "-t",
        tag,
        "-t",
        f"{tag}a",
        "-f",
        str(project / "sub" / "Dockerfile"),
        "--build-arg",
        "WHO=you",
    )
    built = await cli(*words, str(project))
    image = built.stdout.strip().removeprefix("sha256:")[:12]
    assert (
        await cli("run", "--rm", tag, "sh", "-c", "cat /hello; ls -A /all")
    ).stdout == "hello you\n.dockerignore\nsub\n"
    assert image in (await cli("images", "-q", f"{tag}a")).stdout
    again = await cli("build", *words[2:], str(project))
    assert "Using cache" in again.stdout or "cached" in again.stdout.lower(), again
    given = await cli("build", "-q", "-", input=f"FROM {tag}\nRUN grep you /hello\n")
    assert given.stdout.strip()
    failed = await cli("build", "-", ok=False, input=f"FROM {tag}\nRUN exit 9\n")
    assert failed.returncode != 0 and "9" in failed.stderr
    await cli("rmi", "-f", tag, f"{tag}a", given.stdout.strip())


async def test_networks_and_volumes(cli: Docker) -> None:
    name = f"gated-{secrets.token_hex(4)}"
    await cli("network", "create", name)
    await cli("volume", "create", name)
    try:
        await cli("run", "--rm", "-v", f"{name}:/data", BUSYBOX, "sh", "-c", "echo kept > /data/x")
        read = await cli(
            "run",
            "--rm",
            "--mount",
            f"type=volume,source={name},target=/d,readonly",
            "--network",
            name,
            BUSYBOX,
            "cat",
            "/d/x",
        )
        assert read.stdout == "kept\n"
        assert name in (await cli("volume", "ls", "-q")).stdout and name in (await cli("network", "ls")).stdout
        tmpfs = await cli(
            "run",
            "--rm",
            "--tmpfs",
            "/t",
            "--user",
            "1000:1000",
            "--workdir",
            "/tmp",
            BUSYBOX,
            "sh",
            "-c",
            "id -u; pwd; df /t | tail -1",
        )
        assert tmpfs.stdout.startswith("1000\n/tmp\ntmpfs")
    finally:
        await cli("network", "rm", name)
        await cli("volume", "rm", name)


async def test_an_image_committed_saved_and_loaded(cli: Docker, box: Box, service: str, tmp_path: Path) -> None:
    tag = f"localhost/gated-{secrets.token_hex(4)}:1"
    await cli("exec", service, "sh", "-c", "echo changed > /changed")
    await cli("commit", service, tag)
    await cli("save", "-o", str(tmp_path / "image.tar"), tag)
    await cli("rmi", tag)
    loaded = await cli("load", "-i", str(tmp_path / "image.tar"), ok=box.sandbox.engine_name == "docker")
    if box.sandbox.engine_name == "podman":  # a Dockerfile could name such an archive, of the outer container's
        assert "rejected by policy" in loaded.stderr, loaded
        return
    assert "Loaded image" in loaded.stdout
    assert (await cli("run", "--rm", tag, "cat", "/changed")).stdout == "changed\n"
    await cli("rmi", tag)


async def test_docker_py(cli: Docker, box: Box) -> None:
    def use() -> tuple[bytes, int]:
        client = docker.DockerClient(base_url=f"unix://{cli.path}", timeout=TIMEOUT)
        try:
            output = client.containers.run(
                BUSYBOX, ["sh", "-c", "echo hi; sleep 0.2"], remove=True, mem_limit="64m", nano_cpus=500_000_000
            )
            service = client.containers.run(BUSYBOX, SERVICE, detach=True)
            try:
                code, _ = service.exec_run(["sh", "-c", "exit 5"])
            finally:
                service.remove(force=True)
            return output, code
        finally:
            client.close()

    assert await anyio.to_thread.run_sync(use) == (b"hi\n", 5)


REFUSED = [
    ("run", "--privileged"),
    ("run", "-v", "/:/x"),
    ("run", "-v", "/run/manyoyo/engine.sock:/x"),
    ("run", "--mount", "type=bind,source=/etc,target=/x"),
    ("run", "--pid", "host"),
    ("run", "--network", "host"),
    ("run", "--ipc", "host"),
    ("run", "--uts", "host"),
    ("run", "--userns", "host"),
    ("run", "--cgroupns", "host"),
    ("run", "--cgroup-parent", "/init"),
    ("run", "--cap-add", "SYS_ADMIN"),
    ("run", "--device", "/dev/kmsg"),
    ("run", "--gpus", "all"),
    ("run", "--security-opt", "seccomp=unconfined"),
    ("run", "--security-opt", "apparmor=unconfined"),
    ("run", "--sysctl", "kernel.msgmax=1"),
    ("run", "--runtime", "runc"),
    ("run", "--oom-score-adj", "-5"),
    ("run", "-p", "8080:80"),
    ("run", "--log-driver", "syslog"),
    ("run", "--volume-driver", "nfs"),
    ("run", "--storage-opt", "size=1g"),
]  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
async def test_what_reaches_out_is_refused(cli: Docker, words: tuple[str, ...]) -> None:
    done = await cli(*words, "--rm", BUSYBOX, "true", ok=False)
    assert done.returncode == 125 and "Error response from daemon" in done.stderr, done
    assert (
        "may not" in done.stderr
        or "no named volume" in done.stderr
        or "is not given" in done.stderr
        or "would join" in done.stderr
    ), done


@pytest.mark.parametrize(
    "words",
    [
        ("volume", "create", "-o", "type=none", "-o", "device=/", "-o", "o=bind", "x"),
        ("network", "create", "-d", "macvlan", "-o", "parent=eth0", "x"),
        ("network", "create", "-o", "com.docker.network.bridge.name=x0", "x"),
        ("push", BUSYBOX),
        ("plugin", "install", "x"),
        ("swarm", "init"),
    ],
    ids=" ".join,
)
async def test_other_calls_are_refused(cli: Docker, words: tuple[str, ...]) -> None:
    done = await cli(*words, ok=False)
    assert done.returncode != 0 and ("may not" in done.stderr or "not among the engine calls" in done.stderr), done


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /v1.41/containers/json HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
        (b"GET http://x/v1.41/info HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"GET /v1.41/../info HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"GET /v1.41/%69nfo HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"GET /v1.41/v1.41/info HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"GET /v1.41/libpod/info HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /v1.99/info HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /v1.41/containers/json?all=1&all=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"403"),
        (b"POST /v1.41/images/create?fromImage=%ff HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"400"),
        (b"POST /v1.41/images/create?fromImage=dir%3A%2Fetc HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"403"),
        (b"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n[1]", b"400"),
        (b"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{\"\xff", b"400"),
        (b"POST /v1.41/containers/x/start HTTP/1.1\r\nHost: x\r\nContent-Length: 19\r\n\r\n{\"Privileged\": true}"[:-1], b"400"),
        (b"POST /v1.41/containers/x/start HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{\"Privileged\": true}", b"403"),
        (b"GET /v1.41/info HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (600 << 10) + b"\r\n\r\n", b"400"),
        (b"GET /v1.41/info HTTP/1.1\r\nHost: x\r\n\r\nGET /v1.41/swarm HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
    ],
)  # fmt: skip
async def test_requests_that_are_none(cli: Docker, request_: bytes, status: bytes) -> None:
    answer = await anyio.to_thread.run_sync(cli.raw, request_)
    assert answer.split(b" ", 2)[1] == status, answer[:500]
    assert answer.count(b"HTTP/1.1 ") == 1, "one connection, one request"


@pytest.mark.parametrize("upgrade", ["Connection: Upgrade\r\nUpgrade: tcp\r\n", ""])
@pytest.mark.parametrize("path", ["/containers/nope/attach?stream=1&stdin=1", "/exec/nope/start"])
async def test_a_stream_that_does_not_come_about_is_no_way_to_another_request(
    cli: Docker, path: str, upgrade: str
) -> None:
    """An engine that refuses to make the connection a stream reads on: for a request that nobody has judged."""
    name = f"smuggled-{secrets.token_hex(4)}"
    body = json.dumps({"Image": BUSYBOX, "HostConfig": {"Privileged": True, "Binds": ["/:/x"]}}).encode()
    exec_body = b"{}" if path.startswith("/exec") else b""
    first = f"POST /v1.41{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{upgrade}Content-Length: {len(exec_body)}\r\n\r\n"
    second = f"POST /v1.41/containers/create?name={name} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = await anyio.to_thread.run_sync(cli.raw, first.encode() + exec_body + second.encode() + body)
    assert b" 404 " in answer and answer.count(b"HTTP/1.1 ") == 1, answer
    assert name not in (await cli("ps", "-a", "--format", "{{.Names}}")).stdout


async def test_links_in_a_context_lead_nowhere(cli: Docker, box: Box) -> None:
    """Podman unpacks a context in the outer container's own file system."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("d")
        link.type, link.linkname = tarfile.SYMTYPE, "/run"
        archive.addfile(link)
        for name, content in (("d/pwned", b"x"), ("Dockerfile", f"FROM {BUSYBOX}\n".encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    context = buffer.getvalue()
    head = f"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Length: {len(context)}\r\n\r\n"
    answer = await anyio.to_thread.run_sync(cli.raw, head.encode() + context)
    assert b" 400 " in answer and b"below a link" in answer, answer
    assert (await box.manager.host.maintain(box.sandbox.outer, "counters")).exit_code == 0
    there = exec_in(docker.from_env().containers.get(box.sandbox.outer.container_id), ["ls", "/run"])[1]
    assert b"pwned" not in there


@pytest.mark.parametrize(
    "body",
    [
        {"Volumes": {"/:/x": {}}},
        {"HostConfig": {"Mounts": [{"Target": "/x,type=bind,source=/"}]}},
        {"HostConfig": {"Mounts": [{"Type": "volume", "Target": "/x,subpath=.."}]}},
        {"HostConfig": {"Tmpfs": {"/x:dev": ""}}},
        {"Env": ["*"]},
        {"Labels": {"org.manyoyo.keep-alive": "yes"}},
        {"hostconfig": {"privileged": True}},
    ],
    ids=repr,
)
async def test_texts_that_an_engine_reads_more_into(cli: Docker, body: dict[str, Any]) -> None:
    raw = json.dumps({"Image": BUSYBOX} | body).encode()
    head = f"POST /v1.41/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    answer = await anyio.to_thread.run_sync(cli.raw, head.encode() + raw)
    assert b" 403 " in answer, answer


async def test_a_form_is_no_way_to_parameters(cli: Docker) -> None:
    """Go's servers take parameters from a form in the body too."""
    form = b"dockerfile=..%2F..%2Fetc%2Fshadow&networkmode=host"
    context = cli.tar({"Dockerfile": f"FROM {BUSYBOX}\nRUN ip addr\n".encode()})
    head = "POST /v1.41/{} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n"
    answer = await anyio.to_thread.run_sync(cli.raw, head.format("build", len(form)).encode() + form)
    assert b" 400 " in answer and b"can't be read" in answer, answer
    answer = await anyio.to_thread.run_sync(cli.raw, head.format("build?q=1", len(context)).encode() + context, 60)
    assert b" 200 " in answer, answer


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"Dockerfile": b"ARG A=containers\xff\nFROM ${A}storage:x\n"}, "UTF-8"),
        ({"Other": b"FROM scratch\n"}, "There is no Dockerfile"),
        ({"Dockerfile": b"FROM scratch\n", "./Dockerfile": b"\xff"}, "UTF-8"),
        ({"../Dockerfile": b"FROM scratch\n"}, "leads out"),
        ({"Dockerfile": b"x" * (600 << 10)}, "larger than"),
    ],
)
async def test_contexts_that_are_none(cli: Docker, files: dict[str, bytes], why: str) -> None:
    context = cli.tar(files)
    head = f"POST /v1.41/build HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: {len(context)}\r\n\r\n"
    answer = await anyio.to_thread.run_sync(cli.raw, head.encode() + context)
    assert b" 400 " in answer and why.encode() in answer, answer


async def test_a_client_that_goes_ends_its_build(cli: Docker, box: Box, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN sleep 98765\nRUN sleep 98766\n")
    process = cli.popen("build", str(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await box.seen("sleep 98765")
    process.kill()
    process.wait()
    with anyio.fail_after(20):
        while box.processes("sleep 9876"):
            await anyio.sleep(0.05)
    await anyio.sleep(1)
    assert not box.processes("sleep 9876")


@contextlib.contextmanager
def attached(cli: Docker, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = cli.popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_client_that_goes_lets_its_connections_go(cli: Docker, box: Box, service: str) -> None:
    gate = box.manager.endpoints._gates[cli.path]
    before = len(gate._connections)
    with (
        attached(cli, "exec", "-i", service, "cat") as quiet,
        attached(cli, "logs", "-f", service),
        attached(cli, "events"),
    ):
        assert quiet.stdin is not None and quiet.stdout is not None
        quiet.stdin.write("hi\n")
        quiet.stdin.flush()
        assert await anyio.to_thread.run_sync(quiet.stdout.readline) == "hi\n"
        assert len(gate._connections) > before
    with anyio.fail_after(10):
        while len(gate._connections) > before:
            await anyio.sleep(0.05)


async def test_it_is_its_owners_and_ends_with_the_sandbox(box: Box, cli: Docker) -> None:
    assert cli.path.stat().st_mode & 0o777 == 0o600 and cli.path.parent.stat().st_mode & 0o777 == 0o700
    other = await box.manager.start(box.sandbox.engine_name)
    path = box.manager.endpoints.open(other)
    its = Docker(path, cli.path.parent)
    follower = its.popen("events", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await box.manager.remove(other)
    assert not path.exists()
    assert follower.wait(20) != -9


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_over_a_relay(engine: Any, tmp_path: Path) -> None:
    """Where host and sandbox share no file system, every connection is an exec in the outer container."""
    async with open_manager(Settings(transport="relay", state_dir=tmp_path)) as manager:
        sandbox = await manager.start(engine, memory=512 << 20)
        box = Box(manager, sandbox)
        assert sandbox.transport == "relay" and (await box.build(files=busybox_context(), tags=[BUSYBOX])).image_id
        cli = Docker(manager.endpoints.open(sandbox), tmp_path)
        done = await cli("run", "--rm", "-i", BUSYBOX, "sh", "-c", "cat; exit 3", ok=False, input="in\n")
        assert (done.returncode, done.stdout) == (3, "in\n"), done
        given = await cli("build", "-q", "-", input=f"FROM {BUSYBOX}\nRUN echo built\n")
        assert given.stdout.strip()
        refused = await cli("run", "--rm", "--privileged", BUSYBOX, "true", ok=False)
        assert "never privileged" in refused.stderr
        manager.endpoints.open(sandbox, ports=True)
        web = "trap 'exit 0' TERM; httpd -f -p 8080 -h /etc & sleep 0.5; echo ready; wait"
        await cli("run", "-d", "--name", "web", "-p", "8080", BUSYBOX, "sh", "-c", web)
        with anyio.fail_after(TIMEOUT):
            while "ready" not in (await cli("logs", "web")).stdout:
                await anyio.sleep(0.1)
        address = (await cli("port", "web", "8080")).stdout.strip()
        with await anyio.to_thread.run_sync(urllib.request.urlopen, f"http://{address}/passwd") as answer:
            assert b"root:" in answer.read()
