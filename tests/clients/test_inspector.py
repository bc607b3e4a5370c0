"""The MCP Inspector: its command line (a connection a call) and mcpdo (one that lasts), on both protocol eras."""

import json
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.harness import MODULES, SERVER, TOOLS, Footprint, environment, run, server_environment
from tests.support import BUSYBOX

ERAS = {"legacy": "2025-11-25", "modern": "2026-07-28"}


class Inspector:
    """`mcp-inspector --cli` on one protocol era."""

    def __init__(self, scratch: Path, era: str) -> None:
        self.scratch = scratch
        self.env = environment(scratch, MCP_INSPECTOR_SECRET_STORE="memory")
        variables = [word for pair in server_environment(self.env).items() for word in ("-e", "=".join(pair))]
        inspector = str(MODULES / ".bin" / "mcp-inspector")
        self.command = [inspector, "--cli", *variables, SERVER, "serve", "--protocol-era", era]

    def ask(self, *more: str, exit_code: int = 0) -> tuple[dict[str, Any], str]:
        """The answer, and what was said on stderr."""
        done = run(*self.command, *more, "--format", "json", cwd=self.scratch, env=self.env, check=False)
        assert done.returncode == exit_code, (done.stdout[-3000:], done.stderr[-3000:])
        return json.loads(done.stdout)["result"], done.stderr


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def inspector(tmp_path: Path, era: str) -> Inspector:
    return Inspector(tmp_path, era)


def test_schemas_are_portable(inspector: Inspector) -> None:
    """`--strict` checks each schema for what some client or model provider refuses; it says nothing of ours."""
    answer, said = inspector.ask("--method", "tools/list", "--strict")
    assert {tool["name"] for tool in answer["tools"]} == TOOLS
    assert said.strip() == ""


def test_calls(inspector: Inspector) -> None:
    answer, said = inspector.ask("--method", "tools/call", "--tool-name", "sandbox_status")
    assert answer["structuredContent"]["sandboxes"] == []
    assert said.strip() == "", "the server wrote to stderr"


def test_refusal_is_readable(inspector: Inspector) -> None:
    """A client that holds results against the output schema shows the error, not a mismatch."""
    arguments = ("--tool-name", "sandbox_status", "--tool-args-json", json.dumps({"sandbox_id": "sb-none"}))
    answer, _ = inspector.ask("--method", "tools/call", *arguments, exit_code=5)
    assert answer["isError"] is True
    assert answer["content"][0]["text"].startswith("SANDBOX_NOT_FOUND: ")
    assert answer["_meta"]["org.manyoyo/error"]["code"] == "SANDBOX_NOT_FOUND"


class Mcpdo:
    """`mcpdo`: a daemon of this test's own that holds the connection between commands."""

    def __init__(self, scratch: Path, project: Path, era: str, directory: str) -> None:
        self.scratch = scratch
        self.env = environment(
            scratch,
            MCP_INSPECTOR_SECRET_STORE="memory",
            MCP_INSPECTOR_DAEMON_DIR=directory,
            MCP_INSPECTOR_DAEMON_TOKEN=secrets.token_urlsafe(32),
        )
        entry = {"command": SERVER, "args": ["serve"], "cwd": str(project), "env": server_environment(self.env)}
        config = scratch / "mcp.json"
        config.write_text(json.dumps({"mcpServers": {"manyoyo": entry}}))
        self.ask("--config", str(config), "connect", "manyoyo", "--era", era)

    def ask(self, *words: str) -> dict[str, Any]:
        done = run(MODULES / ".bin" / "mcpdo", "--format", "json", *words, cwd=self.scratch, env=self.env)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured content of a call's result."""
        answer = self.ask("@manyoyo", "tools/call", tool, "--tool-args-json", json.dumps(arguments))
        assert answer["isError"] is False, answer
        content: dict[str, Any] = answer["structuredContent"]
        return content


@pytest.fixture
def mcpdo(tmp_path: Path, project: Path, era: str) -> Iterator[Mcpdo]:
    directory = tempfile.mkdtemp(prefix="mcpdo-")  # short: the path of a socket has little room
    try:
        held = Mcpdo(tmp_path, project, era, directory)
        yield held
        held.ask("daemon", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_build_and_run(mcpdo: Mcpdo, era: str, footprint: Footprint) -> None:
    shown = mcpdo.ask("connections/show", "@manyoyo")
    assert (shown["protocolEra"], shown["protocolVersion"]) == (era, ERAS[era])
    assert shown["serverInfo"]["name"] == "manyoyo-mcp" and shown["serverInfo"]["version"]
    assert len(shown["instructions"].encode()) <= 2048, "some clients cut instructions there"

    built = mcpdo.call("nested_build", context_dir=".", tags=[BUSYBOX])
    footprint.sandboxes.add(built["sandbox_id"])
    assert built["reason"] == "OK" and built["sandbox_started"] is True
    ran = mcpdo.call("nested_run", image=BUSYBOX, command=["sh", "-c", "echo hello; exit 3"])
    assert (ran["reason"], ran["exit_code"]) == ("EXIT_NONZERO", 3)
    assert re.search(r"^hello$", ran["output"], re.MULTILINE)

    log = mcpdo.ask("@manyoyo", "resources/read", f"manyoyo://jobs/{ran['job_id']}/log")
    assert re.search(r"^hello$", log["contents"][0]["text"], re.MULTILINE)

    status = mcpdo.call("sandbox_status")
    assert [(item["sandbox_id"], item["state"]) for item in status["sandboxes"]] == [(built["sandbox_id"], "running")]
    assert mcpdo.call("cleanup")["removed"] == [built["sandbox_id"]]
    mcpdo.ask("disconnect", "manyoyo")
    footprint.gone()
