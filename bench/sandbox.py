"""Our side: the tools, called by an MCP client over stdio. Times in milliseconds, seen by the caller.

Whatever the server does after a result (a run's container is removed then) is waited for, untimed, before anything
else is measured: else it would slow down the other side.
"""

import base64
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters

from bench import stopwatch as watch

ROOT = Path(__file__).resolve().parent.parent
BIG = "bench-big"
IMAGE = "localhost/manyoyo-bench/busybox:latest"


class Session:
    """One server, and in it one sandbox with the image, for the figures that need one."""

    def __init__(self, client: Client, directory: Path) -> None:
        self._client = client
        self._directory = directory
        self._sandboxes: dict[str, str] = {}
        self.rootfs = b""

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """A tool's structured result. Raises RuntimeError with the tool's words where it failed."""
        result = await self._client.call_tool(tool, arguments)
        if result.is_error or result.structured_content is None:
            raise RuntimeError(f"{tool}: {result.content}")
        return dict(result.structured_content)

    async def refused(self, tool: str, **arguments: Any) -> float:
        """A call that no engine hears of: its arguments are wrong."""
        began = time.perf_counter()
        result = await self._client.call_tool(tool, arguments)
        spent = _ms(began)
        assert result.is_error
        return spent

    async def sandbox(self, engine: str) -> str:
        """The sandbox with this engine and the image in it; started when first asked for."""
        if engine not in self._sandboxes:
            started = await self.call("start_sandbox", engine=engine, cpus=os.cpu_count())  # as a plain container has
            self._sandboxes[engine] = started["sandbox"]["sandbox_id"]
        return self._sandboxes[engine]

    async def import_image(self, engine: str, rootfs: bytes) -> None:
        self.rootfs = rootfs
        built = await self.call(
            "nested_build",
            sandbox_id=await self.sandbox(engine),
            files={
                "Dockerfile": "FROM scratch\nADD root.tar /\n",
                "root.tar": {"base64": base64.b64encode(rootfs).decode()},
            },
            tags=[IMAGE],
        )
        assert built["reason"] == "OK", built

    async def start(self, engine: str, **wanted: Any) -> float:
        began = time.perf_counter()
        started = await self.call("start_sandbox", engine=engine, **wanted)
        spent = _ms(began)
        await self.call("cleanup", sandbox_id=started["sandbox"]["sandbox_id"])
        return spent

    async def start_named(self, engine: str) -> float:
        """A named sandbox that is stopped, with what it holds, started again."""
        name = f"bench-{engine}"
        if name not in self._sandboxes:
            started = await self.call("start_sandbox", engine=engine, name=name)
            self._sandboxes[name] = started["sandbox"]["sandbox_id"]
        await self.call("cleanup", sandbox_id=name, keep_data=True)
        began = time.perf_counter()
        started = await self.call("start_sandbox", name=name)
        assert started["resumed"] == "stopped", started
        return _ms(began)

    async def remove_named(self, engine: str) -> None:
        if self._sandboxes.pop(f"bench-{engine}", None):
            await self.call("cleanup", sandbox_id=f"bench-{engine}")

    async def fork(self, engine: str, sandbox: str | None = None) -> float:
        """A fork of `sandbox`, else of the one that has the image."""
        sandbox = sandbox or await self.sandbox(engine)
        began = time.perf_counter()
        forked = await self.call("fork_sandbox", sandbox_id=sandbox)
        spent = _ms(began)
        await self.call("cleanup", sandbox_id=forked["forks"][0]["sandbox_id"])
        return spent

    async def timed(self, engine: str, command: str, image: str = IMAGE, network: str = "none") -> float:
        """What a command that times itself says, in milliseconds, in a nested run."""
        sandbox = await self.sandbox(engine)
        ended = await self.call(
            "nested_run", sandbox_id=sandbox, image=image, command=["sh", "-c", command], memory="2g", network=network
        )
        assert ended["exit_code"] == 0, ended
        await self._settle(sandbox)
        return watch.told(ended["output"])

    async def run_and_removal(self, engine: str, network: str) -> float:
        """Until nothing is left of the run."""
        sandbox = await self.sandbox(engine)
        began = time.perf_counter()
        await self.call("nested_run", sandbox_id=sandbox, image=IMAGE, command=["echo", "hi"], network=network)
        await self._settle(sandbox, 0.002)
        return _ms(began)

    async def cached(self, engine: str, dockerfile: str) -> float:
        sandbox = await self.sandbox(engine)
        began = time.perf_counter()
        built = await self.call(
            "nested_build", sandbox_id=sandbox, files={"Dockerfile": dockerfile.format(image=IMAGE)}
        )
        spent = _ms(began)
        assert built["reason"] == "OK", built
        return spent

    async def run(self, engine: str, network: str) -> float:
        sandbox = await self.sandbox(engine)
        began = time.perf_counter()
        ended = await self.call("nested_run", sandbox_id=sandbox, image=IMAGE, command=["echo", "hi"], network=network)
        spent = _ms(began)
        assert ended.get("exit_code") == 0 and "hi\n" in ended["output"], ended
        await self._settle(sandbox)
        return spent

    async def runs_in_a_row(self, engine: str, network: str, count: int) -> float:
        """What one of several runs takes, each begun when the one before has its result; removals included."""
        sandbox = await self.sandbox(engine)
        began = time.perf_counter()
        for _ in range(count):
            await self.call("nested_run", sandbox_id=sandbox, image=IMAGE, command=["echo", "hi"], network=network)
        await self._settle(sandbox)
        return _ms(began) / count

    @asynccontextmanager
    async def service(self, engine: str) -> AsyncIterator[str]:
        """A nested container that stays, for execs."""
        sandbox = await self.sandbox(engine)
        wanted = {"image": IMAGE, "command": ["sleep", "10000"], "detach": True}
        started = await self.call("nested_run", sandbox_id=sandbox, **wanted)
        try:
            yield started["container"]
        finally:
            await self.call("nested_stop", sandbox_id=sandbox, container=started["container"], action="remove")

    async def exec(self, engine: str, container: str) -> float:
        sandbox = await self.sandbox(engine)
        began = time.perf_counter()
        ended = await self.call("nested_exec", sandbox_id=sandbox, container=container, command=["echo", "hi"])
        spent = _ms(began)
        assert ended.get("exit_code") == 0 and "hi\n" in ended["output"], ended
        return spent

    async def build(self, engine: str, dockerfile: str, network: str) -> float:
        sandbox = await self.sandbox(engine)
        began = time.perf_counter()
        built = await self.call(
            "nested_build",
            sandbox_id=sandbox,
            files={"Dockerfile": dockerfile.format(image=IMAGE)},
            no_cache=True,
            network=network,
        )
        spent = _ms(began)
        assert built["reason"] == "OK", built
        return spent

    async def _settle(self, sandbox: str, pause: float = 0.02) -> None:
        for _ in range(1000):
            rows = (await self.call("nested_list", sandbox_id=sandbox, what="containers"))["containers"]
            if not any(row["state"] == "exited" or row["command"].endswith("echo hi") for row in rows):
                return
            await anyio.sleep(pause)
        raise RuntimeError(f"{sandbox} still has {rows}")

    async def own_part(self, engine: str) -> tuple[float, float]:
        """A run as the server sees it, and of that what it spent waiting for its engine; needs a stopwatch."""
        began = time.perf_counter()
        spent = await self.run(engine, "default")
        await anyio.sleep(0.01)  # it notes that the answer went out once it did
        whole, waiting = watch.call(self._directory / "notes", began, began + spent / 1000)
        return whole * 1000, waiting * 1000

    @asynccontextmanager
    async def bare(self, engine: str) -> AsyncIterator[Callable[[], Awaitable[tuple[float, float]]]]:
        """`own_part` of a run in the same engine by `bench.bare`, a server of the packages `mcp` and `docker` alone."""
        socket = self._directory / "run" / "sandboxes" / await self.sandbox(engine) / "engine.sock"
        notes = self._directory / "bare-notes"
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-m", "bench.bare", str(socket)],
            env={**os.environ, watch.NOTES: str(notes)},
            cwd=ROOT,
        )
        async with Client(parameters, read_timeout_seconds=900) as client:

            async def part() -> tuple[float, float]:
                began = time.perf_counter()
                result = await client.call_tool("run", {"image": IMAGE, "command": ["echo", "hi"]})
                ended = time.perf_counter()
                assert (result.structured_content or {}).get("output") == "hi\n", result
                await anyio.sleep(0.01)
                whole, waiting = watch.call(notes, began, ended)
                await client.call_tool("remove", {})
                return whole * 1000, waiting * 1000

            yield part

    async def big(self, engine: str) -> str:
        """A sandbox with an image of 1 GB, and a checkpoint of it, BIG."""
        name = f"big-{engine}"
        if name not in self._sandboxes:
            started = await self.call("start_sandbox", engine=engine)
            sandbox = self._sandboxes[name] = started["sandbox"]["sandbox_id"]
            layers = "".join(f"RUN dd if=/dev/urandom of=/data{n} bs=1M count=256 2>/dev/null\n" for n in range(4))
            files = {
                "Dockerfile": f"FROM scratch\nADD root.tar /\n{layers}",
                "root.tar": {"base64": base64.b64encode(self.rootfs).decode()},
            }
            await self.call("nested_build", sandbox_id=sandbox, files=files, tags=[IMAGE])
            await self.call("checkpoint", sandbox_id=sandbox, name=BIG, replace=True)
        return self._sandboxes[name]

    async def close(self) -> None:
        """Remove every sandbox, and the checkpoint."""
        if any(name.startswith("big-") for name in self._sandboxes):
            await self.call("cleanup", checkpoint=BIG)
        await self.call("cleanup")

    async def disk_used(self, sandbox: str) -> int:
        """Bytes of a sandbox's store that are its own."""
        status = await self.call("sandbox_status", sandbox_id=sandbox)
        return int(status["sandboxes"][0]["disk_used_bytes"])

    def engine_socket(self, sandbox: str) -> Path:
        return self._directory / "run" / "sandboxes" / sandbox / "engine.sock"

    def processes(self) -> dict[str, int]:
        """Resident memory, in bytes, of the server and of the reaper that it started."""
        server = next(pid for pid, words in _children(os.getpid()) if "serve" in words)
        reaper = next(pid for pid, words in _children(server) if "manyoyo_mcp.sessions.reaper" in words)
        return {"server": _resident(server), "reaper": _resident(reaper)}


@asynccontextmanager
async def session(directory: Path, *options: str, stopwatch: bool = False, **settings: str) -> AsyncIterator[Session]:
    """A server of its own with its state in `directory`, with these options and settings; its sandboxes end with it."""
    parameters = StdioServerParameters(
        command=sys.executable if stopwatch else str(Path(sys.executable).with_name("manyoyo-mcp")),
        args=["-m", "bench.stopwatch", "serve", *options] if stopwatch else ["serve", *options],
        env={
            **os.environ,
            "MANYOYO_STATE_DIR": str(directory / "state"),
            "MANYOYO_RUNTIME_DIR": str(directory / "run"),
            **{f"MANYOYO_{name.upper()}": value for name, value in settings.items()},
            watch.NOTES: str(directory / "notes"),
        },
        cwd=ROOT,
    )
    async with Client(parameters, read_timeout_seconds=900) as client:
        opened = Session(client, directory)
        try:
            yield opened
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(60):
                await opened.close()


def _children(pid: int) -> list[tuple[int, list[str]]]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            found.append((int(child), words))
    return found


def _resident(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
