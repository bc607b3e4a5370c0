"""Our side: the tools, called by an MCP client over stdio. Times in milliseconds, seen by the caller.

Whatever the server does after a result (a run's container is removed then) is waited for, untimed, before anything
else is measured: else it would slow down the other side.
"""

import base64
import contextlib
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters

IMAGE = "localhost/manyoyo-bench/busybox:latest"


class Session:
    """One server, and in it one sandbox with the image, for the figures that need one."""

    def __init__(self, client: Client, directory: Path) -> None:
        self._client = client
        self._directory = directory
        self._sandboxes: dict[str, str] = {}

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
            started = await self.call("start_sandbox", engine=engine)
            self._sandboxes[engine] = started["sandbox"]["sandbox_id"]
        return self._sandboxes[engine]

    async def import_image(self, engine: str, rootfs: bytes) -> None:
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

    async def start(self, engine: str) -> float:
        began = time.perf_counter()
        started = await self.call("start_sandbox", engine=engine)
        spent = _ms(began)
        await self.call("cleanup", sandbox_id=started["sandbox"]["sandbox_id"])
        return spent

    async def run(self, engine: str, network: str) -> float:
        sandbox = await self.sandbox(engine)
        began = time.perf_counter()
        ended = await self.call("nested_run", sandbox_id=sandbox, image=IMAGE, command=["echo", "hi"], network=network)
        spent = _ms(began)
        assert ended["exit_code"] == 0 and "hi\n" in ended["output"], ended
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
        assert ended["exit_code"] == 0 and "hi\n" in ended["output"], ended
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

    async def _settle(self, sandbox: str) -> None:
        for _ in range(1000):
            rows = (await self.call("nested_list", sandbox_id=sandbox, what="containers"))["containers"]
            if not any(row["state"] == "exited" or row["command"].endswith("echo hi") for row in rows):
                return
            await anyio.sleep(0.02)
        raise RuntimeError(f"{sandbox} still has {rows}")

    async def bare_engine(self, engine: str) -> "BareEngine":
        return BareEngine(self._directory / "run" / "sandboxes" / await self.sandbox(engine) / "engine.sock")

    def processes(self) -> dict[str, int]:
        """Resident memory, in bytes, of the server and of the reaper that it started."""
        server = next(pid for pid, words in _children(os.getpid()) if "serve" in words)
        reaper = next(pid for pid, words in _children(server) if "manyoyo_mcp.sessions.reaper" in words)
        return {"server": _resident(server), "reaper": _resident(reaper)}


class BareEngine:
    """The nested engine without the server: a run asked for as plainly as can be, over a connection that stays open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self._path))
        return connection

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._connection.request(method, f"/v1.41{path}", json.dumps(body) if body is not None else None, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status < 400, text
        return json.loads(text) if text.strip().startswith(b"{") else None

    def run(self, memory: int, cpus: float, pids: int) -> float:
        """Create, attach, start, wait: until output and exit code are there. Then, untimed, the removal."""
        caps = {"Memory": memory, "MemorySwap": memory, "NanoCpus": round(cpus * 1e9), "PidsLimit": pids}
        body = {"Image": IMAGE, "Cmd": ["echo", "hi"], "HostConfig": {"NetworkMode": "default", **caps}}
        began = time.perf_counter()
        container = self._ask("POST", "/containers/create", body)["Id"]
        with contextlib.closing(self._connect()) as attached:
            attached.putrequest("POST", f"/v1.41/containers/{container}/attach?stream=1&stdout=1&stderr=1")
            attached.putheader("Connection", "Upgrade")
            attached.putheader("Upgrade", "tcp")
            attached.endheaders()
            reader = attached.sock.makefile("rb")
            while reader.readline().strip():  # the answer's headers
                pass
            self._ask("POST", f"/containers/{container}/start")
            output = reader.read()
        code = self._ask("POST", f"/containers/{container}/wait")["StatusCode"]
        spent = _ms(began)
        assert code == 0 and output.endswith(b"hi\n"), (code, output)
        self._ask("DELETE", f"/containers/{container}?force=1&v=1")
        return spent

    def close(self) -> None:
        self._connection.close()


@asynccontextmanager
async def session(directory: Path) -> AsyncIterator[Session]:
    """A server of its own with its state in `directory`; its sandboxes end with it."""
    parameters = StdioServerParameters(
        command=str(Path(sys.executable).with_name("manyoyo-mcp")),
        args=["serve"],
        env={
            **os.environ,
            "MANYOYO_STATE_DIR": str(directory / "state"),
            "MANYOYO_RUNTIME_DIR": str(directory / "run"),
            "MANYOYO_TRANSPORT": "auto",
        },
        cwd=directory,
    )
    async with Client(parameters, read_timeout_seconds=900) as client:
        opened = Session(client, directory)
        try:
            yield opened
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(60):
                await opened.call("cleanup")


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
