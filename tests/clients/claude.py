"""Claude Code for a test: how it is set up, what a script has it call, what its model receives."""

import json
from pathlib import Path
from typing import Any

from tests.clients.harness import MODULES, environment
from tests.clients.scripted_model import ScriptedModel, ToolResult, ToolUse

CLAUDE = MODULES / ".bin" / "claude"
PREFIX = "mcp__manyoyo__"
"""What Claude Code puts before the names of the server's tools."""


def call(tool: str, **arguments: Any) -> ToolUse:
    return ToolUse(PREFIX + tool, arguments)


def data(result: ToolResult) -> dict[str, Any]:
    """The structured content of a result: Claude Code gives it to the model as JSON, after any resource links."""
    assert not result.is_error, result.text
    content: dict[str, Any] = json.loads(result.text.splitlines()[-1])
    return content


def settings(scratch: Path, model: ScriptedModel | None = None, /, **more: str) -> dict[str, str]:
    """Claude Code's environment: nothing of the developer's, no traffic but to the scripted model."""
    return environment(
        scratch,
        DISABLE_AUTOUPDATER="1",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        ENABLE_TOOL_SEARCH="false",  # or the tools are kept from the model until it searches for them
        ANTHROPIC_BASE_URL=model.url if model else "http://127.0.0.1:9",
        ANTHROPIC_API_KEY="none",
        **more,
    )
