"""Docker's own command line with buildx through the gate: a sandbox's BuildKit, its caps, and what is refused of it."""

import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from manyoyo_mcp.audit.reading import Wanted, entries
from manyoyo_mcp.policy.connection import Ways
from manyoyo_mcp.policy.gate import Gate
from manyoyo_mcp.policy.witness import Witness
from manyoyo_mcp.sessions.manager import Manager
from tests import plugins
from tests.support import BUSYBOX, Box, busybox_context

pytestmark = pytest.mark.anyio
Docker = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]
TAG = "localhost/by-buildkit:1"
DOCKERFILE = f"""# syntax=docker/dockerfile:1
FROM {BUSYBOX} AS first
RUN --mount=type=secret,id=token cp /run/secrets/token /tmp/token && wc -c < /tmp/token > /size && rm /tmp/token
COPY <<END /script
echo from a heredoc
END
FROM {BUSYBOX}
ARG NAME
COPY --from=first /size /script /
RUN --mount=type=cache,target=/cache echo "$NAME" > /name; seq 20000
RUN cat /proc/self/cgroup > /cgroup; grep . /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max \\
  /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max > /caps 2>/dev/null; \\
  ! mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x 2>/dev/null; ls /sys/class/net > /networks
"""


@pytest.fixture(scope="module")
async def box(manager: Manager) -> AsyncIterator[Box]:
    sandbox = await manager.start("docker", memory=1 << 30)
    opened = Box(manager, sandbox)
    built = await opened.build(files=busybox_context(), tags=[BUSYBOX])
    assert built.image_id, built
    yield opened
    await manager.remove(sandbox)


def at(host: str, home: Path) -> Docker:
    environment = plugins.environment(host, home)

    async def call(*words: str, ok: bool = True, **options: str) -> subprocess.CompletedProcess[str]:
        def done() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["docker", *words], env=environment | options, text=True, capture_output=True, timeout=90, cwd=home
            )

        finished = await anyio.to_thread.run_sync(done)
        assert not ok or finished.returncode == 0, finished
        return finished

    return call


@pytest.fixture
async def docker(box: Box, tmp_path: Path) -> Docker:
    return at(f"unix://{box.manager.endpoints.open(box.sandbox)}", tmp_path)


async def test_a_build_with_all_that_buildkit_is_for(docker: Docker, box: Box, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "token").write_text("seventeen letters")
    (tmp_path / ".dockerignore").write_text("token\n")
    built = await docker(
        "buildx", "build", "-t", TAG, "--load", "--build-arg", "NAME=named", "--secret", "id=token,src=token", "--label", "a=b", "."
    )  # fmt: skip
    assert "20000" in built.stderr, "what a step says comes through, however much that is"
    read = await docker("run", "--rm", TAG, "cat", "/size", "/name", "/cgroup", "/networks", "/script")
    assert read.stdout.startswith("17\nnamed\n") and "echo from a heredoc" in read.stdout and "eth0" in read.stdout, (
        read
    )
    caps = (await docker("run", "--rm", TAG, "cat", "/caps")).stdout
    default = box.sandbox.limits.default
    assert (
        f":{default.memory}\n" in caps and f":{round(default.cpus * 100_000)}" in caps and f":{default.pids}\n" in caps
    ), caps
    again = await docker("buildx", "build", "--build-arg", "NAME=named", "--secret", "id=token,src=token", ".")
    assert again.stderr.count("CACHED") >= 4, again
    asked = entries(box.manager.settings.state_dir / "audit", Wanted(tool="gate"))
    solved = [
        each for each in asked if each["path"].endswith("Control/Solve") and each.get("query") == {"name": f"{TAG}"}
    ]
    assert solved and solved[0]["decision"] == "narrowed" and solved[0]["status"] == 0, asked


async def test_files_come_back_to_their_client(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BUSYBOX} AS made\nRUN echo made > /file\nFROM scratch\nCOPY --from=made /file /\n"
    )
    await docker("buildx", "build", "-o", "type=local,dest=out", ".")
    assert (tmp_path / "out" / "file").read_text() == "made\n"


REFUSED: list["Case"] = [
    (("--network", "host"), "true", "network 'host' may not be used by a build"),
    (("--allow", "network.host"), "true", "may not be allowed network.host"),
    (("--allow", "security.insecure"), "true", "may not be allowed security.insecure"),
    (("--cgroup-parent", "/x"), "true", "may not set cgroup-parent"),
    (("--ulimit", "nofile=1"), "true", "may not set ulimit"),
    (("--build-arg", "BUILDKIT_SYNTAX=example.invalid/x"), "true", "may not be set"),
    (("--build-context", "x=https://example.invalid/x.git"), "true", "may not be"),
    ((), "--network=host true", "network.host is not allowed"),
]


Case = tuple[tuple[str, ...], str, str]


async def all_refused(docker: Docker, directory: Path, cases: Sequence[Case]) -> None:
    async def tried(number: int, words: tuple[str, ...], step: str, why: str) -> None:
        context = directory / str(number)
        context.mkdir()
        (context / "Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN {step}\n")
        done = await docker("buildx", "build", *words, str(context), ok=False)
        assert done.returncode != 0 and why in done.stderr, done

    async with anyio.create_task_group() as group:  # buildx lets three seconds pass after a refusal
        for number, each in enumerate(cases):
            group.start_soon(tried, number, *each)


async def test_what_reaches_out_is_refused(docker: Docker, tmp_path: Path) -> None:
    await all_refused(docker, tmp_path, REFUSED)


async def test_what_the_gate_let_pass_would_be_refused_behind_it(box: Box, tmp_path: Path) -> None:
    """By the daemon's configuration, and by what runs a step."""
    engine = at(f"unix://{box.sandbox.outer.socket_dir}/engine.sock", tmp_path)
    cases = (
        (("--network", "host"), "true", "network.host is not allowed"),
        (("--allow", "security.insecure"), "true", "security.insecure is not allowed"),
        ((), "true", "must run in a cgroup whose name says its caps"),
    )
    await all_refused(engine, tmp_path, cases)


async def test_a_step_that_takes_all_memory_ends_at_its_cap(docker: Docker, box: Box, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN tail /dev/zero\n")
    done = await docker("buildx", "build", ".", ok=False)
    assert done.returncode != 0 and "137" in done.stderr, done
    record = await box.manager.host.maintain(box.sandbox.outer, "kernel-record", "manyoyo-builds")
    assert "oom-kill:" in record.output and f"/manyoyo-builds/{box.sandbox.limits.default.memory}-" in record.output, (
        record
    )
    assert (await docker("run", "--rm", BUSYBOX, "echo", "well")).stdout == "well\n"


class Refused(Witness):
    def __init__(self) -> None:
        self.codes: set[str] = set()

    def refused(self, method: str, path: str, code: str, reason: str) -> None:
        self.codes.add(f"{path} {code}")


async def test_what_a_client_sends_is_bounded(box: Box, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nCOPY big /\n")
    (tmp_path / "big").write_bytes(os.urandom(400_000))
    noted, sandbox = Refused(), box.sandbox
    gate = Gate(
        tmp_path / "gate.sock",
        Ways(sandbox.dial, lambda: sandbox.limits, 100_000, lambda: None, lambda build: None, noted),
    )
    gate.open()
    try:
        done = await at(f"unix://{gate.path}", tmp_path)("buildx", "build", ".", ok=False)
        assert done.returncode != 0 and "/session CONTEXT_REFUSED" in noted.codes, done
    finally:
        gate.close()


def started(docker_host: str, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["docker", "buildx", "build", "."], env=plugins.environment(docker_host, home), cwd=home,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


async def test_a_client_that_goes_ends_its_build(box: Box, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN sleep 98764\nRUN sleep 98763\n")
    path = box.manager.endpoints.open(box.sandbox)
    process = started(f"unix://{path}", tmp_path)
    await box.seen("sleep 98764")
    os.killpg(process.pid, signal.SIGKILL)  # its plugin too; the kill of some Debians takes a group's number for -1
    process.wait()
    with anyio.fail_after(20):
        while box.processes("sleep 9876") or box.manager.endpoints._gates[path]._connections:
            await anyio.sleep(0.05)
    assert not [
        each.name for each in threading.enumerate() if each.name in ("gate calls", "gate answers", "gate engine")
    ]


async def test_where_the_engine_has_none_its_client_is_told(manager: Manager, tmp_path: Path) -> None:
    sandbox = await manager.start("podman", memory=512 << 20)
    box = Box(manager, sandbox)
    await box.build(files=busybox_context(), tags=[BUSYBOX])
    docker = at(f"unix://{manager.endpoints.open(sandbox)}", tmp_path)
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nRUN true\n")
    done = await docker("buildx", "build", ".", ok=False)
    assert done.returncode != 0 and "DOCKER_BUILDKIT=0" in done.stderr and "has no BuildKit" in done.stderr, done
    assert (await docker("build", ".", DOCKER_BUILDKIT="0")).returncode == 0
    await manager.remove(sandbox)
