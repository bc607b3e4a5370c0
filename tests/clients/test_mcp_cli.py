"""The SDK's own command line, `mcp run` and `mcp dev`, and `uvx` as the README tells people to use it."""

import importlib.metadata
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from mcp import Client, StdioServerParameters

from tests.clients.harness import BIN, MODULES, ROOT, TOOLS, Footprint, background, environment, until

MCP = str(Path(sys.executable).with_name("mcp"))
DEV_SERVER = "manyoyo_mcp/dev_server.py"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project as a person has it who has just cloned it: uv makes its environment and its lock file there."""
    copy = tmp_path / "checkout"
    for name in ("manyoyo_mcp", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_mcp_run(tmp_path: Path, footprint: Footprint, mode: Literal["auto", "legacy"]) -> None:
    arguments = ["run", str(ROOT / DEV_SERVER)]
    parameters = StdioServerParameters(command=MCP, args=arguments, env=environment(tmp_path), cwd=tmp_path)
    async with Client(parameters, mode=mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        started = await client.call_tool("start_sandbox", {})
        assert started.structured_content is not None, started.content
        footprint.sandboxes.add(started.structured_content["sandbox"]["sandbox_id"])
    footprint.gone()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def servers(footprint: Footprint) -> list[str]:
    """The processes of the server that the Inspector started, without its own and those of `mcp dev`."""
    commands = footprint.processes().values()
    return [command for command in commands if "inspector" not in command and "mcp dev" not in command]


class InspectorWeb:
    """The Inspector's web server, spoken to as its page does."""

    def __init__(self, port: int, token: str) -> None:
        headers = {"x-mcp-remote-auth": f"Bearer {token}", "origin": f"http://127.0.0.1:{port}"}
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120, trust_env=False)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    def ask(self, entry: dict[str, Any], *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """Have it start the server of `entry` and send `requests`; the answers to those that have an id."""
        session = self.post("/api/mcp/connect", config=entry)["sessionId"]
        try:
            with self.http.stream("GET", "/api/mcp/events", params={"sessionId": session}) as events:
                messages = self._messages(events)
                answers = []
                for request in requests:
                    sent = self.post("/api/mcp/send", sessionId=session, message={"jsonrpc": "2.0", **request})
                    assert sent["ok"], sent
                    if "id" in request:
                        answers.append(next(message for message in messages if message.get("id") == request["id"]))
                return answers
        finally:
            self.post("/api/mcp/disconnect", sessionId=session)

    @staticmethod
    def _messages(events: httpx2.Response) -> Iterator[dict[str, Any]]:
        for line in events.iter_lines():
            if line.startswith("data:") and line.removeprefix("data:").strip():
                event = json.loads(line.removeprefix("data:"))
                if event.get("type") == "message":
                    yield event["data"]


def test_mcp_dev(tmp_path: Path, checkout: Path, footprint: Footprint) -> None:
    """`mcp dev FILE` brings the Inspector up, and with the command it was given the Inspector starts the server."""
    (checkout / "node_modules").symlink_to(MODULES)  # npx takes the installed Inspector and asks no registry
    port = free_port()
    env = environment(
        tmp_path,
        npm_config_offline="true",
        CLIENT_PORT=str(port),
        MCP_SANDBOX_PORT=str(free_port()),
        MCP_AUTO_OPEN_ENABLED="false",
        MCP_INSPECTOR_SECRET_STORE="memory",
    )
    log = tmp_path / "dev.log"
    with background(MCP, "dev", DEV_SERVER, cwd=checkout, env=env, log=log):
        until(f"the Inspector is up; see {log}", lambda: "is up and running" in log.read_text(), 60)
        token = re.search(r"MCP_INSPECTOR_API_TOKEN=(\w+)", log.read_text())
        assert token is not None
        inspector = InspectorWeb(port, token[1])
        page = inspector.http.get("/")
        assert page.status_code == 200 and "<html" in page.text

        [entry] = inspector.http.get("/api/servers").json()["mcpServers"].values()
        requirement = f"mcp=={importlib.metadata.version('mcp')}"
        assert [entry["command"], *entry["args"]] == ["uv", "run", "--with", requirement, "mcp", "run", DEV_SERVER]
        identity = {"name": "manyoyo-test", "version": "1"}
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": identity}
        initialized, listed = inspector.ask(
            {**entry, "env": env},
            {"id": 1, "method": "initialize", "params": hello},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/list"},
        )
        assert initialized["result"]["serverInfo"]["name"] == "manyoyo-mcp"
        assert {tool["name"] for tool in listed["result"]["tools"]} == TOOLS
        until("the server ends with its connection", lambda: not servers(footprint), 10)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.anyio
async def test_uv_can_leave_a_checkout_alone(tmp_path: Path, checkout: Path) -> None:
    """What `mcp dev` runs, with UV_NO_PROJECT: uv takes the active environment and writes no lock file."""
    env = environment(tmp_path, VIRTUAL_ENV=sys.prefix, UV_NO_PROJECT="1")
    command = ["run", "--with", "mcp", "mcp", "run", DEV_SERVER]
    before = names_in(checkout)
    async with Client(StdioServerParameters(command=str(BIN / "uv"), args=command, env=env, cwd=checkout)) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
    assert names_in(checkout) == before
