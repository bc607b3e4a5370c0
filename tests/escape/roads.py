"""The ways by which somebody can ask a nested engine for something. A road more is a `Road` over one more client."""

import io
import json
import re
import secrets
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import docker
from mcp import Client
from mcp.server import MCPServer

from manyoyo_mcp.dialled import Dial, DialledClient, SocketLike
from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.hosts.relay import RelaySocket
from manyoyo_mcp.policy.transport import API_VERSION
from manyoyo_mcp.sessions.manager import Manager
from manyoyo_mcp.tools import TOOLS
from tests import plugins
from tests.support import Box

IMAGE = "localhost/manyoyo-test/escape:latest"
PATIENCE = 60.0
"""Seconds for a container of an attempt to end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request. `code`: a tool's error code, an HTTP status, or gRPC's."""

    ok: bool
    code: str
    text: str
    grpc: bool = False

    def json(self) -> Any:
        return json.loads(self.text)

    def json_part(self) -> Any:
        """A tool's result as data, which is its text's first line."""
        return json.loads(self.text.partition("\n")[0])


class Road:
    """Docker's API over a client, whichever way that goes. `dial` connects to it, where requests need not be Docker's."""

    def __init__(self, name: str, client: docker.APIClient, dial: Dial | None = None) -> None:
        self.name = name
        self._client = client
        self.dial = dial

    def build_query(self) -> dict[str, str]:
        """What a build over this road has to say beside what it asks for."""
        return {}

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        data: bytes | None = None,
    ) -> Answer:
        """`body` is sent as JSON, `data` as a tar."""
        return await anyio.to_thread.run_sync(partial(self._request, method, path, query, body, data))

    async def request_left(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Answer:
        """The same, for what may never be answered: it is left alone by who waits no longer."""
        asked = partial(self._request, method, path, query, body, None)
        return await anyio.to_thread.run_sync(asked, abandon_on_cancel=True)

    def _request(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, data: bytes | None
    ) -> Answer:
        headers = {}
        if body is not None:
            headers, data = {"Content-Type": "application/json"}, json.dumps(body).encode()
        elif data is not None:
            headers = {"Content-Type": "application/x-tar"}
        url = f"{self._client.base_url}/v{API_VERSION}{path}"
        try:
            response = self._client.request(method, url, params=query, data=data, headers=headers, timeout=PATIENCE)
        except ManyoyoError as error:
            return Answer(False, error.instance_code, f"{error.message} {error.hint}")
        return Answer(
            response.status_code < 400, str(response.status_code), response.content.decode(errors="backslashreplace")
        )

    # -- containers

    async def create(self, **config: Any) -> Answer:
        """A container of the attempts' image; `config` as Docker's API has it."""
        return await self.request("POST", "/containers/create", body={"Image": IMAGE, "Cmd": ["true"]} | config)

    async def drop(self, container: str) -> None:
        await self.request("DELETE", f"/containers/{container}", {"force": "1", "v": "1"})

    @asynccontextmanager
    async def service(self, *command: str, **config: Any) -> AsyncIterator[str]:
        """A container that runs for a while."""
        made = await self.create(Cmd=list(command), **config)
        assert made.ok, made
        container = str(made.json()["Id"])
        try:
            started = await self.request("POST", f"/containers/{container}/start")
            assert started.ok, started
            yield container
        finally:
            with anyio.CancelScope(shield=True):
                await self.drop(container)

    async def run(self, script: str, **config: Any) -> tuple[int, str]:
        """A shell script in a container; its exit code and what it wrote. 125 where the engine did not run it."""
        made = await self.create(**({"Cmd": ["sh", "-c", script]} | config))
        if not made.ok:
            return 125, made.text
        container = str(made.json()["Id"])
        try:
            started = await self.request("POST", f"/containers/{container}/start")
            if not started.ok:
                return 125, started.text
            code = await self.ended(container)
            return code, await self.logs(container)
        finally:
            with anyio.CancelScope(shield=True):
                await self.drop(container)

    async def ended(self, container: str) -> int:
        answer = await self.request("POST", f"/containers/{container}/wait")
        assert answer.ok, answer
        return int(answer.json()["StatusCode"])

    async def logs(self, container: str) -> str:
        """What it wrote. A container with a terminal sends its output as it is, others in frames (Docker's "attach" endpoint)."""

        def read() -> bytes:
            return bytes(self._client.logs(container, stdout=True, stderr=True))

        return (await anyio.to_thread.run_sync(read)).decode(errors="replace")

    async def exec(self, container: str, *command: str, **config: Any) -> tuple[int, str]:
        body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True, "Tty": True}
        made = await self.request("POST", f"/containers/{container}/exec", body=body | config)
        if not made.ok:
            return 125, made.text
        exec_id = made.json()["Id"]
        begun = await self.request("POST", f"/exec/{exec_id}/start", body={"Detach": False, "Tty": True})
        if not begun.ok:
            return 125, begun.text
        looked = (await self.request("GET", f"/exec/{exec_id}/json")).json()
        return int(looked["ExitCode"] or 0), begun.text

    # -- images

    async def build(self, dockerfile: str, files: Mapping[str, bytes] | None = None, tag: str = "") -> tuple[bool, str]:
        """Whether an image came of it, and what was written."""
        context = tar({"Dockerfile": dockerfile.encode(), **(files or {})})
        query = self.build_query() | {"nocache": "1"} | ({"t": tag} if tag else {})
        answer = await self.request("POST", "/build", query, data=context)
        failed = not answer.ok or '"error"' in answer.text
        return not failed, _unwrapped(answer.text)


class ToolRoad(Road):
    """A server's own way: its tools, and the guarded client below them."""

    def __init__(self, box: Box) -> None:
        super().__init__("tool", box.engine._client)
        self._box = box
        self._server = server(box.manager)

    def build_query(self) -> dict[str, str]:
        return {"cgroupparent": f"/manyoyo-builds/{secrets.token_hex(8)}"}

    async def call(self, tool: str, **arguments: Any) -> Answer:
        """An MCP tool, called by a client, of this sandbox where none is named."""
        return await self.call_plain(tool, **({"sandbox_id": self._box.sandbox.sandbox_id} | arguments))

    async def call_plain(self, tool: str, **arguments: Any) -> Answer:
        async with Client(self._server) as client:
            result = await client.call_tool(tool, arguments)
        if result.is_error:
            error = (result.meta or {})["org.manyoyo/error"]
            return Answer(False, error["code"], f"{error['message']} {error['hint']}")
        words = "\n".join(getattr(each, "text", "") for each in result.content)
        return Answer(True, "OK", json.dumps(result.structured_content) + "\n" + words)

    async def run(self, script: str, **config: Any) -> tuple[int, str]:
        if config:
            return await super().run(script, **config)
        chunks: list[bytes] = []
        ended = await self._box.run("sh", "-c", script, image=IMAGE, output=chunks, timeout_s=PATIENCE)
        return int(ended.exit_code or 0), b"".join(chunks).decode(errors="replace")

    async def exec(self, container: str, *command: str, **config: Any) -> tuple[int, str]:
        if config:
            return await super().exec(container, *command, **config)
        chunks: list[bytes] = []
        ended = await self._box.exec(container, *command, output=chunks, timeout_s=PATIENCE)
        return int(ended.exit_code or 0), b"".join(chunks).decode(errors="replace") + ended.explanation

    async def build(self, dockerfile: str, files: Mapping[str, bytes] | None = None, tag: str = "") -> tuple[bool, str]:
        chunks: list[bytes] = []
        built = await self._box.build(
            dockerfile, dict(files or {}), output=chunks, no_cache=True, tags=[tag] if tag else []
        )
        return built.image_id is not None, b"".join(chunks).decode(errors="replace") + built.error


def gate(path: Path) -> Road:
    """A sandbox's gate, as a client on this machine sees it."""

    def dial() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return connection

    return Road("gate", DialledClient(dial, API_VERSION), dial)


_JOIN = """
my $s; socket($s, 1, 1, 0) && connect($s, pack("S Z*", 1, "/var/run/docker.sock")) or die "no socket: $!\\n";
my %to = (fileno($s) => 1, 0 => fileno($s));
open(my $in, "<&=", 0); open(my $out, ">&=", 1);
my %file = (fileno($s) => $s, 0 => $in);
while (%to) {
    my $ready = "";
    vec($ready, $_, 1) = 1 for keys %to;
    select($ready, undef, undef, undef);
    for my $from (grep { vec($ready, $_, 1) } keys %to) {
        my $count = sysread $file{$from}, my $data, 65536;
        if (!$count) { exit if $from; delete $to{0}; shutdown $s, 1; next }
        my $to = $from ? $out : $s;
        for (my $at = 0; $at < length $data;) { $at += syswrite($to, $data, length($data) - $at, $at) // exit }
    }
}
"""
"""Joins a program's own input and output to the Docker socket that its container was given."""


def nested(control: Road) -> Road:
    """The socket that a nested container has, as a program in it sees it: every connection is one that an exec makes there. Attempts
    may end that container, or all there are; then another is made."""
    client = control._client
    container = ""

    def dial() -> SocketLike:
        nonlocal container
        try:
            running = bool(container) and client.inspect_container(container)["State"]["Running"]
        except docker.errors.NotFound:
            running = False
        if not running:
            body = {
                "Image": IMAGE,
                "Cmd": ["sleep", "100000"],
                "HostConfig": {"Binds": ["/run/manyoyo/gate.sock:/var/run/docker.sock"], "NetworkMode": "none"},
            }
            container = str(client.create_container_from_config(body)["Id"])
            client.start(container)
        exec_id = client.exec_create(container, ["perl", "-e", _JOIN], stdin=True)["Id"]
        stream = client.exec_start(exec_id, socket=True)
        return RelaySocket(getattr(stream, "_sock", stream), stream._response)

    return Road("nested", DialledClient(dial, API_VERSION), dial)


def unguarded(dial: Dial) -> Road:
    """Straight to the engine, which nobody has but the tests: shows what an attempt would do if nothing held it."""
    return Road("unguarded", DialledClient(dial, API_VERSION), dial)


_WRITTEN = re.compile(r"^#[0-9]+ [0-9.]+ ", re.MULTILINE)
"""What buildx puts before each line of a step's output."""


class BuildKitRoad(Road):
    """Docker's own client with buildx, at a gate; builds alone are its own, the rest is as at the gate. `home`: a directory of its own."""

    def __init__(self, path: Path, home: Path) -> None:
        super().__init__("buildkit", gate(path)._client)
        self._environment = plugins.environment(f"unix://{path}", home)
        self._home = home

    async def build(self, dockerfile: str, files: Mapping[str, bytes] | None = None, tag: str = "") -> tuple[bool, str]:
        return await anyio.to_thread.run_sync(
            partial(self._build, {"Dockerfile": dockerfile.encode(), **(files or {})}, tag)
        )

    def _build(self, files: Mapping[str, bytes], tag: str) -> tuple[bool, str]:
        with tempfile.TemporaryDirectory(dir=self._home) as context:
            for name, content in files.items():
                (Path(context) / name).write_bytes(content)
            return self.build_in(Path(context), *(["--tag", tag] if tag else []))

    def build_in(self, context: Path, *words: str) -> tuple[bool, str]:
        done = subprocess.run(
            ["docker", "buildx", "build", "--no-cache", *words, str(context)],
            env=self._environment, cwd=self._home, capture_output=True, text=True, errors="replace", timeout=100,
        )  # fmt: skip
        return done.returncode == 0, _WRITTEN.sub("", done.stderr + done.stdout)


def server(manager: Manager) -> MCPServer[Manager]:
    """A server with all tools, over a manager that is there already."""

    @asynccontextmanager
    async def lifespan(_: MCPServer[Manager]) -> AsyncIterator[Manager]:
        yield manager

    return MCPServer(name="manyoyo-mcp", tools=list(TOOLS), lifespan=lifespan, log_level="WARNING")


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: Any) -> tarfile.TarInfo:
    """A member of an archive, whatever it is."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, 0o755, int(time.time())
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(files: Mapping[str, bytes], *before: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive: `before` as it is, then `files`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        members = [*before, *((entry(name), content) for name, content in files.items())]
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            if info.type == tarfile.REGTYPE:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _unwrapped(answer: str) -> str:
    """The text in a build's stream of JSON objects."""
    pieces = []
    for line in answer.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            pieces.append(line)
            continue
        pieces.append(str(event.get("stream") or event.get("error") or event.get("message") or ""))
    return "".join(pieces)
