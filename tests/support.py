"""Helpers of the tests: an image to run, a look into a sandbox from outside, a build in one line."""

import contextlib
import io
import os
import secrets
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import anyio
import docker

from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import BuildSpec, Built, Ended, ExecSpec, RunSpec, Step
from manyoyo_mcp.image import outer
from manyoyo_mcp.sessions import context
from manyoyo_mcp.sessions.manager import Manager
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.values import Caps

BUSYBOX = "localhost/manyoyo-test/busybox:latest"
MIB = 1 << 20
SLACK = float(os.environ.get("MANYOYO_TEST_SLACK", "1"))
"""By how much a machine is slower than a real one (scripts/cgroup2 emulates its processors): limits of time stretch by it."""


def file_of(container: Any, path: str) -> bytes:
    """The content of a file of a container of the host's. (An older docker loses the first output of an exec now and then.)"""
    stream, _ = container.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        file = archive.extractfile(Path(path).name)
        assert file is not None
        return file.read()


def wait_for(container: Any, path: str, seconds: float = 20) -> None:
    """Until a container of the host's has written a file."""
    deadline = time.monotonic() + seconds * SLACK
    while True:
        with contextlib.suppress(docker.errors.NotFound):
            if file_of(container, path):
                return
        assert time.monotonic() < deadline, f"{path} is not there"
        time.sleep(0.1)


def exec_in(container: Any, command: Sequence[str], **options: Any) -> Any:
    """What `exec_run` gives, of a container of the host's that has a shell. The command begins a moment late: an older docker loses what is said at once."""
    return container.exec_run(["sh", "-c", 'sleep 0.3; exec "$@"', "sh", *command], **options)


@cache
def busybox_rootfs() -> bytes:
    """A root file system, as a tar: the static busybox that the outer image carries, with a link for each applet."""
    host = docker.from_env()
    container = host.containers.create(outer.reference(Settings()))
    try:
        program = file_of(container, "/usr/lib/manyoyo/probe/bin/busybox")
    finally:
        container.remove(v=True)
        host.close()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "busybox"
        path.write_bytes(program)
        path.chmod(0o755)
        applets = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("bin", "tmp", "etc", "root"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(program), 0o755
        archive.addfile(entry, io.BytesIO(program))
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
        passwd = b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        archive.addfile(entry, io.BytesIO(passwd))
    return buffer.getvalue()


def busybox_context() -> dict[str, bytes]:
    """Build context files that make `BUSYBOX`."""
    return {
        "Dockerfile": b'FROM scratch\nADD root.tar /\nENV PATH=/bin\nCMD ["sh"]\n',
        "root.tar": busybox_rootfs(),
    }


@contextlib.contextmanager
def on_host(*names: str) -> Iterator[docker.DockerClient]:
    """The host's engine, which has the test image under these names meanwhile."""
    client = docker.from_env()
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(busybox_rootfs())
        file.flush()
        for name in names:  # each another image, for its time
            client.api.import_image_from_file(file.name, *name.rsplit(":", 1), changes=["ENV PATH=/bin", 'CMD ["sh"]'])
    try:
        yield client
    finally:
        for name in names:
            client.images.remove(name, force=True)
        client.close()


class Appendable(Protocol):
    """What takes output: a list, or what looks at it as it comes."""

    def append(self, data: bytes, /) -> object: ...


class Stopwatch:
    """A sink that notes when the first output came: what is timed after that is not the start of a container."""

    def __init__(self) -> None:
        self._first: float | None = None

    def append(self, data: bytes) -> None:
        if self._first is None:
            self._first = time.monotonic()

    @property
    def seconds(self) -> float:
        assert self._first is not None, "there was no output"
        return time.monotonic() - self._first


@dataclass
class Box:
    """A live sandbox with shortcuts, for tests of one engine."""

    manager: Manager
    sandbox: Sandbox

    @property
    def engine(self) -> Any:
        return self.sandbox.engine

    def caps(self, memory: int = 256 * MIB, cpus: float = 1, pids: int = 200) -> Caps:
        return Caps(cpus, memory, pids)

    def spec(self, *command: str, **spec: Any) -> RunSpec:
        """A run with the sandbox's default caps and of the test image, where nothing else is said."""
        defaults = {"image": BUSYBOX, "caps": self.sandbox.limits.default}
        return RunSpec(command=list(command), **(defaults | spec))

    async def run(self, *command: str, output: Appendable | None = None, **spec: Any) -> Ended:
        chunks = output if output is not None else []
        return await self.engine.run(self.spec(*command, **spec), chunks.append)

    async def output(self, *command: str, **spec: Any) -> str:
        chunks: list[bytes] = []
        ended = await self.run(*command, output=chunks, **spec)
        assert ended.exit_code == 0, (ended, chunks)
        return b"".join(chunks).decode()

    async def exec(self, container: str, *command: str, output: Appendable | None = None, **spec: Any) -> Ended:
        chunks = output if output is not None else []
        return await self.engine.exec(ExecSpec(container=container, command=list(command), **spec), chunks.append)

    async def service(self, *command: str, **spec: Any) -> str:
        return await self.engine.start(self.spec(*command, **spec))

    async def build(
        self,
        dockerfile: str | None = None,
        files: dict[str, bytes] | None = None,
        *,
        output: Appendable | None = None,
        steps: list[Step] | None = None,
        **spec: Any,
    ) -> Built:
        chunks = output if output is not None else []
        seen = steps if steps is not None else []
        extra = dict(files or {})
        if dockerfile is not None:
            extra["Dockerfile"] = dockerfile.encode()
        ready = context.prepare(self.manager.settings, None, extra, "Dockerfile")
        return await self.engine.build(
            BuildSpec(
                context=ready.stream,
                dockerfile=ready.dockerfile,
                dockerfile_text=ready.dockerfile_text,
                build_id=secrets.token_hex(8),
                **({"caps": self.sandbox.limits.default} | spec),
            ),
            chunks.append,
            seen.append,
        )

    def kill(self, marker: str) -> int:
        """SIGKILL those processes; how many there were."""
        found = self._find(marker)
        for pid, _ in found:
            os.kill(pid, signal.SIGKILL)
        return len(found)

    async def seen(self, marker: str) -> str:
        """Wait until such a process runs; its cgroup."""
        with anyio.fail_after(30):
            while not (found := self.processes(marker)):
                await anyio.sleep(0.02)
        return found[0]

    def processes(self, marker: str) -> list[str]:
        """The cgroups of the processes in the sandbox whose command line contains `marker`, as this machine's kernel has them."""
        return [cgroup for _, cgroup in self._find(marker)]

    def _find(self, marker: str) -> list[tuple[int, str]]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                cgroups = (entry / "cgroup").read_text()
                if self.sandbox.outer.container_id not in cgroups:
                    continue
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in words and not words.startswith(
                ("/usr/bin/conmon", "/usr/bin/containerd-shim", "runc", "crun")
            ):
                lines = cgroups.splitlines()
                cgroup = next((line for line in lines if ":pids:" in line or line.startswith("0::/")), lines[0])
                found.append((int(entry.name), cgroup))
        return found
