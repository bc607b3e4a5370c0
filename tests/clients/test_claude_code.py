"""Claude Code itself, offline: a scripted model chooses the calls, Claude Code makes them over its own MCP client."""

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.clients.claude import CLAUDE, PREFIX, call, data, settings
from tests.clients.harness import SERVER, Footprint, background, run, until
from tests.clients.scripted_model import ScriptedModel, ToolResult, Turn
from tests.support import BUSYBOX

SERVERS = {"mcpServers": {"manyoyo": {"type": "stdio", "command": SERVER, "args": ["serve"]}}}
ERAS = {"auto": "2026-07-28", "legacy": "2025-11-25"}
"""What Claude Code can be told of the protocol, and what it then speaks with the server."""


def print_mode(scratch: Path) -> list[str | Path]:
    """The command line of a run without a person, `claude -p`, with all of the server's tools allowed."""
    config = scratch / "mcp.json"
    config.write_text(json.dumps(SERVERS))
    debug = ["--debug-file", str(scratch / "debug.log"), "--output-format", "stream-json", "--verbose"]
    servers = ["--mcp-config", str(config), "--strict-mcp-config", "--allowedTools", "mcp__manyoyo"]
    return [CLAUDE, "-p", "go", *servers, *debug]


@dataclass
class Played:
    """A script, played to its end."""

    results: list[ToolResult]
    model: ScriptedModel
    started: dict[str, Any]
    log: str


def play(scratch: Path, project: Path, script: list[Turn], **variables: str) -> Played:
    """Have Claude Code play `script` in `project`, all of the server's tools allowed."""
    with ScriptedModel(script) as model:
        done = run(*print_mode(scratch), cwd=project, env=settings(scratch, model, **variables))
        messages = [json.loads(line) for line in done.stdout.splitlines()]
        started = next(message for message in messages if message.get("subtype") == "init")
        assert len(model.results) == len(script) - 1, (model.results, done.stdout[-3000:])
        return Played(model.results, model, started, (scratch / "debug.log").read_text())


def test_add_and_list(tmp_path: Path, project: Path) -> None:
    env = settings(tmp_path)
    run(CLAUDE, "mcp", "add", "--scope", "local", "manyoyo", "--", SERVER, cwd=project, env=env)
    listed = run(CLAUDE, "mcp", "list", cwd=project, env=env).stdout
    assert re.search(r"^manyoyo: .*✔ Connected$", listed, re.MULTILINE), listed
    assert "✔ Connected" in run(CLAUDE, "mcp", "get", "manyoyo", cwd=project, env=env).stdout


@pytest.mark.parametrize("negotiation", ERAS)
def test_main_job(tmp_path: Path, project: Path, footprint: Footprint, negotiation: str) -> None:
    script: list[Turn] = [
        call("start_sandbox"),
        call("nested_build", context_dir=".", tags=[BUSYBOX]),
        call("nested_run", image=BUSYBOX, command=["echo", "hello from inside"]),
        call("nested_run", image=BUSYBOX, command=["tail", "/dev/zero"], memory="32m"),
        call("cleanup"),
        "Done.",
    ]
    played = play(tmp_path, project, script, MCP_PROTOCOL_NEGOTIATION=negotiation)
    started, built, ran, killed, cleaned = map(data, played.results)

    sandbox = started["sandbox"]["sandbox_id"]
    footprint.sandboxes.add(sandbox)
    assert started["sandbox"]["caps_enforced"] == "enforced"
    assert (built["reason"], built["tags"], built["sandbox_id"]) == ("OK", [BUSYBOX], sandbox)
    assert (ran["reason"], ran["exit_code"]) == ("OK", 0)
    assert re.fullmatch(r"<untrusted-(\w+) from='run-\w+'>\nhello from inside\n</untrusted-\1>", ran["output"])
    assert (killed["reason"], killed["exit_code"]) == ("OOM_KILLED", 137)
    assert "memory" in killed["hint"]
    assert cleaned["removed"] == [sandbox]

    assert f'"negotiatedProtocolVersion":"{ERAS[negotiation]}"' in played.log
    assert {"name": "manyoyo", "status": "connected"}.items() <= played.started["mcp_servers"][0].items()
    footprint.gone()


def test_what_the_model_is_told(tmp_path: Path, project: Path, footprint: Footprint) -> None:
    """Instructions, tools, refusals and long output, as they arrive at the model."""
    script: list[Turn] = [
        call("sandbox_status", sandbox_id="sb-none"),
        call("nested_run", image=BUSYBOX, command="echo hi"),
        call("nested_run", image=BUSYBOX, privileged=True),
        call("nested_build"),
        call("nested_run", image=BUSYBOX, command=["true"]),
        lambda results: call(
            "nested_run", image=data(results[3])["image_id"].removeprefix("sha256:"), command=["seq", "20000"]
        ),
        call("cleanup"),
        "Done.",
    ]
    played = play(tmp_path, project, script)
    unknown, one_string, privileged, built, missing, long, cleaned = played.results
    footprint.sandboxes.add(data(built)["sandbox_id"])

    assert unknown.is_error and unknown.text.startswith("SANDBOX_NOT_FOUND: ") and "start_sandbox" in unknown.text
    assert one_string.is_error and '["sh", "-c",' in one_string.text
    assert privileged.is_error and privileged.text.startswith("NOT_SUPPORTED: ")
    assert data(built)["sandbox_started"] is True
    assert data(missing)["reason"] == "IMAGE_NOT_FOUND" if not missing.is_error else "IMAGE_NOT_FOUND" in missing.text
    seen = data(long)
    assert seen["omitted_bytes"] > 90_000 and "20000" in seen["output"]
    assert len(json.dumps(long.raw)) < 10_000
    assert data(cleaned)["remaining"] == 0

    first = json.dumps(played.model.requests[0])
    assert "A container host of your own" in first, "the server's instructions do not reach the model"
    assert {name.removeprefix(PREFIX) for name in played.model.tools if name.startswith(PREFIX)} >= {
        *("start_sandbox", "sandbox_status", "nested_build", "nested_run", "nested_exec", "nested_logs"),
        *("nested_list", "nested_stop", "job_status", "job_cancel", "read_log", "cleanup"),
    }
    footprint.gone()


@pytest.mark.parametrize("ending", ["the script ends", "SIGINT", "SIGKILL", "SIGKILL while it starts"])
def test_nothing_is_left_when_the_client_ends(tmp_path: Path, project: Path, footprint: Footprint, ending: str) -> None:
    """Claude Code ends a server with SIGINT and, half a second later, worse. Whatever it does, the sandbox goes."""
    script: list[Turn] = [call("nested_build", tags=[BUSYBOX]), "Done."]
    if ending != "the script ends":
        script.insert(1, call("nested_run", image=BUSYBOX, command=["sleep", "300"]))
    with ScriptedModel(script) as model:
        env = settings(tmp_path, model)
        with background(*print_mode(tmp_path), cwd=project, env=env, log=tmp_path / "claude.out") as claude:
            if ending == "SIGKILL while it starts":
                until("a sandbox is being started", footprint.note, 60)
            else:
                until("the image is built", lambda: len(model.results) == 1, 60)
                footprint.sandboxes.add(data(model.results[0])["sandbox_id"])
            if ending == "the script ends":
                claude.wait(30)
            else:
                if ending in ("SIGINT", "SIGKILL"):
                    until("the run is under way", lambda: sleeps(footprint), 30)
                os.kill(claude.pid, signal.Signals[ending.split()[0]])
                claude.wait(10)
            footprint.gone(within=10)


def sleeps(footprint: Footprint) -> bool:
    """Whether a nested `sleep 300` runs in one of the noted sandboxes."""
    host = docker.from_env()
    try:
        outers = [host.containers.get(f"manyoyo-{sandbox}") for sandbox in footprint.sandboxes]
        tops = [outer.top(ps_args="-eo pid,args") for outer in outers]
    finally:
        host.close()
    return any(row[-1] == "sleep 300" for top in tops for row in top["Processes"])
