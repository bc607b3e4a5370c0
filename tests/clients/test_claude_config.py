"""examples/claude_config, as a developer installs it: in Claude Code, with the server that `uvx manyoyo-mcp` starts."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from manyoyo_mcp.tools import TOOLS
from tests.clients.claude import CLAUDE, PREFIX, call, data, settings
from tests.clients.harness import BIN, ROOT, Footprint, environment, run
from tests.clients.scripted_model import ScriptedModel, ToolResult, ToolUse, Turn
from tests.support import BUSYBOX

EXAMPLE = ROOT / "examples" / "claude_config"
NAMES = {tool.name for tool in TOOLS}


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((EXAMPLE / name).read_text())
    return content


def allowed(name: str) -> set[str]:
    """The tools of ours that a settings file allows without a question."""
    rules = load(name)["permissions"]["allow"]
    return {rule.removeprefix(PREFIX) for rule in rules} if "mcp__manyoyo" not in rules else NAMES


def test_permissions_match_the_tools() -> None:
    hints = {tool.name: tool.annotations for tool in TOOLS}
    assert allowed("settings.json") <= NAMES, "a rule names a tool that does not exist"
    assert allowed("settings.json") >= {name for name, hint in hints.items() if hint and hint.read_only_hint}
    assert not allowed("settings.json") & {name for name, hint in hints.items() if hint is None or hint.open_world_hint}
    assert allowed("settings.unattended.json") == NAMES


def test_words_name_tools_that_exist() -> None:
    for name in ("CLAUDE.md", "README.md"):
        words = set(re.findall(r"\b(?:nested|sandbox|start|job|read)_[a-z]+\b", (EXAMPLE / name).read_text()))
        words -= {"sandbox_id", "job_id"}
        assert words and words <= NAMES, words - NAMES


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as a wheel, where uvx looks for packages: what it starts is what a release would hold."""
    scratch = tmp_path_factory.mktemp("wheel")
    wheels = scratch / "wheels"
    run(BIN / "uv", "build", "--quiet", "--wheel", "--out-dir", wheels, ROOT, cwd=scratch, env=environment(scratch))
    return wheels


@pytest.fixture
def variables(tmp_path: Path, wheels: Path, project: Path) -> dict[str, str]:
    """The environment of a developer who installed the example in `project`, trusts it and has approved its server."""
    (project / ".claude").mkdir()
    shutil.copy(EXAMPLE / ".mcp.json", project)
    shutil.copy(EXAMPLE / "CLAUDE.md", project)
    shutil.copy(EXAMPLE / "settings.json", project / ".claude" / "settings.json")
    home = Path(settings(tmp_path)["HOME"])
    (home / ".claude").mkdir()
    (home / ".claude" / "settings.json").write_text(json.dumps({"enabledMcpjsonServers": ["manyoyo"]}))
    (home / ".claude.json").write_text(json.dumps({"projects": {str(project): {"hasTrustDialogAccepted": True}}}))
    return {"UV_FIND_LINKS": str(wheels)}


def test_connects_once_approved(tmp_path: Path, project: Path, variables: dict[str, str]) -> None:
    env = settings(tmp_path, None, **variables)
    listed = run(CLAUDE, "mcp", "list", cwd=project, env=env).stdout
    assert re.search(r"^manyoyo: uvx manyoyo-mcp - ✔ Connected$", listed, re.MULTILINE), listed
    (Path(env["HOME"]) / ".claude" / "settings.json").unlink()
    assert "⏸ Pending approval" in run(CLAUDE, "mcp", "list", cwd=project, env=env).stdout


def play(scratch: Path, project: Path, script: list[Turn], variables: dict[str, str], *more: str) -> list[ToolResult]:
    """The results of `script`, played in `project`; nothing on the command line names a server or its tools."""
    with ScriptedModel(script) as model:
        run(CLAUDE, "-p", "go", *more, cwd=project, env=settings(scratch, model, **variables))
        first = json.dumps(model.requests[0], ensure_ascii=False)
        assert "Build images and run containers with the `manyoyo` tools" in first, "CLAUDE.md does not reach the model"
        return model.results


def test_settings_ask_before_code_runs(tmp_path: Path, project: Path, variables: dict[str, str]) -> None:
    """Without a person to ask, what is not allowed is refused; docker in the shell even where the shell is allowed."""
    script: list[Turn] = [
        call("sandbox_status"),
        call("nested_build", tags=[BUSYBOX]),
        call("nested_run", image=BUSYBOX),
        ToolUse("Bash", {"command": "docker ps", "description": "List containers"}),
        "Done.",
    ]
    status, *refused = play(tmp_path, project, script, variables, "--allowedTools", "Bash")
    assert data(status)["sandboxes"] == []
    assert len(refused) == 3
    for result in refused:
        assert result.is_error and "permission" in result.text.lower(), result.raw


def test_unattended_settings_do_the_job(
    tmp_path: Path, project: Path, variables: dict[str, str], footprint: Footprint
) -> None:
    shutil.copy(EXAMPLE / "settings.unattended.json", project / ".claude" / "settings.json")
    script: list[Turn] = [
        call("nested_build", context_dir=".", tags=[BUSYBOX]),
        call("nested_run", image=BUSYBOX, command=["cat", "/etc/passwd"]),
        ToolUse("Bash", {"command": "docker ps", "description": "List containers"}),
        call("cleanup"),
        "Done.",
    ]
    built, ran, shell, cleaned = play(tmp_path, project, script, variables, "--allowedTools", "Bash")
    footprint.sandboxes.add(data(built)["sandbox_id"])
    assert data(ran)["reason"] == "OK" and "guest:x:1000" in data(ran)["output"]
    assert shell.is_error and "permission" in shell.text.lower()
    assert data(cleaned)["removed"] == [data(built)["sandbox_id"]]
    footprint.gone()
