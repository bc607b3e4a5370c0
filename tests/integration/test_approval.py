"""What reaches outside is asked of the person, through a real client, in both eras of the protocol; what they say holds, and is on record."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client
from mcp_types import ElicitResult
from typer.testing import CliRunner

from manyoyo_mcp.audit.reading import Wanted, entries
from manyoyo_mcp.audit.verifying import verify
from manyoyo_mcp.cli.app import app
from manyoyo_mcp.tools.base import ERROR_META
from tests.conftest import server_parameters

pytestmark = pytest.mark.anyio
Mode = Literal["auto", "legacy"]
Action = Literal["accept", "decline", "cancel"]
both = pytest.mark.parametrize("mode", ["auto", "legacy"])


class Person:
    """Says the same to every question, and remembers what was asked."""

    def __init__(self, action: Action, content: dict[str, Any] | None = None) -> None:
        self.action = action
        self.content = content
        self.asked: list[str] = []

    async def __call__(self, context: Any, params: Any) -> ElicitResult:
        self.asked.append(params.message)
        assert list(params.requested_schema["properties"]) == ["remember"]
        return ElicitResult(action=self.action, content=self.content)


class Asker:
    def __init__(self, client: Client, directory: Path) -> None:
        self.client = client
        self.directory = directory

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result's data, or the error's."""
        result = await self.client.call_tool(tool, arguments)
        if result.is_error:
            return dict((result.meta or {})[ERROR_META])
        return dict(result.structured_content or {})

    def decisions(self) -> list[tuple[str, str, str]]:
        found = entries(self.directory / ".state" / "audit", Wanted(tool="approval"))
        return [(each["approval"], each["decision"], each["by"]) for each in found]


@asynccontextmanager
async def asker(directory: Path, mode: Mode, person: Person | None, **settings: str) -> AsyncIterator[Asker]:
    environment = {"MANYOYO_NETWORK_POLICY": "none"} | settings
    async with Client(server_parameters(directory, **environment), mode=mode, elicitation_callback=person) as client:
        yield Asker(client, directory)
    assert verify(directory / ".state" / "audit").broken is None


LIST = ["example.org:443", "*.example.net"]


@both
async def test_yes_allows_it_for_this_call(tmp_path: Path, mode: Mode) -> None:
    person = Person("accept", {"remember": False})
    async with asker(tmp_path, mode, person) as call:
        started = await call("start_sandbox", network_policy="allowlist", network_allow=LIST)
        assert "example.org:443, *.example.net" in started["sandbox"]["network"], started
        assert len(person.asked) == 1 and all(each in person.asked[0] for each in LIST)
        sandbox_id = started["sandbox"]["sandbox_id"]
        assert (await call("start_sandbox", sandbox_id=sandbox_id, network_policy="none"))["grown"] and len(
            person.asked
        ) == 1
        changed = await call("start_sandbox", sandbox_id=sandbox_id, network_policy="allowlist", network_allow=LIST)
        assert "example.org:443" in changed["sandbox"]["network"] and len(person.asked) == 2, "asked anew"
        assert call.decisions() == [("network", "allowed", "the person: accept")] * 2
        await call("start_sandbox", sandbox_id=sandbox_id, network_policy="allowlist", network_allow=["10.1.2.3:80"])
        assert "metadata addresses in it: 10.1.2.3:80" in person.asked[2] and "metadata" not in person.asked[1]
        await call("cleanup")


@both
@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_no_refuses_it_and_nothing_is_started(tmp_path: Path, mode: Mode, action: Action) -> None:
    person = Person(action)
    async with asker(tmp_path, mode, person) as call:
        refused = await call("start_sandbox", network_policy="open")
        assert refused["code"] == "NOT_APPROVED" and len(person.asked) == 1, refused
        assert call.decisions() == [("network", "refused", f"the person: {action}")]
        last = entries(tmp_path / ".state" / "audit", Wanted(tool="start_sandbox"))
        assert [each["decision"] for each in last] == (["pending"] if mode == "auto" else []) + ["refused"]
        assert "code" in await call("nested_list"), "there is no sandbox"


@both
async def test_a_client_that_can_not_ask_is_told_the_setting(tmp_path: Path, mode: Mode) -> None:
    async with asker(tmp_path, mode, None) as call:
        refused = await call("start_sandbox", network_policy="open")
        assert refused["code"] == "POLICY_REFUSED" and "MANYOYO_APPROVE=network=allow" in refused["hint"], refused
        assert call.decisions() == [("network", "refused", "the client can't ask")]
        refused = await call("sandbox_endpoint", ports=True)
        assert refused["code"] == "POLICY_REFUSED" and "MANYOYO_APPROVE=port=allow" in refused["hint"], refused


async def test_settings_decide_without_asking(tmp_path: Path) -> None:
    person = Person("accept", {})
    async with asker(tmp_path, "auto", person, MANYOYO_APPROVE="network=deny, endpoint=deny") as call:
        refused = await call("start_sandbox", network_policy="open")
        assert refused["code"] == "POLICY_REFUSED" and "network=deny" in refused["hint"]
        assert (await call("sandbox_endpoint"))["code"] == "POLICY_REFUSED"
    async with asker(tmp_path, "auto", person, MANYOYO_APPROVE="network=allow") as call:
        started = await call("start_sandbox", network_policy="allowlist", network_allow=LIST)
        assert "example.org:443" in started["sandbox"]["network"]
        assert "ports=true" in (await call("sandbox_endpoint"))["note"], "allowed where nothing is said"
        assert person.asked == []
        for _ in range(2):
            assert "127.0.0.1" in (await call("sandbox_endpoint", ports=True))["note"]
        assert "127.0.0.1" in (await call("sandbox_endpoint"))["note"] and len(person.asked) == 1, "once an endpoint"
        assert "on 127.0.0.1 alone" in person.asked[0]
        assert [each for each in call.decisions() if each[0] == "port"] == [("port", "allowed", "the person: accept")]
        await call("cleanup")


async def test_always_is_remembered_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYOYO_STATE_DIR", str(tmp_path / ".state"))
    person = Person("accept", {"remember": True})
    async with asker(tmp_path, "auto", person, MANYOYO_APPROVE="endpoint=ask") as call:
        await call("start_sandbox", network_policy="allowlist", network_allow=LIST)
        assert "docker_host" in await call("sandbox_endpoint")
        await call("cleanup")
    assert len(person.asked) == 2
    kept = json.loads(CliRunner().invoke(app, ["approvals", "list", "--json"]).stdout)
    assert [each["kind"] for each in kept] == ["network", "endpoint"] and kept[0]["project"] == str(tmp_path)
    assert "example.org:443" in CliRunner().invoke(app, ["approvals", "list"]).stdout
    nobody = Person("decline")
    async with asker(tmp_path, "auto", nobody) as call:
        less = await call("start_sandbox", network_policy="allowlist", network_allow=LIST[:1])
        assert "example.org:443" in less["sandbox"]["network"] and nobody.asked == []
        assert call.decisions()[-1] == ("network", "allowed", f"remembered as {kept[0]['id']}")
        more = await call("start_sandbox", network_policy="allowlist", network_allow=[*LIST, "other.test"])
        assert more["code"] == "NOT_APPROVED" and len(nobody.asked) == 1
        await call("cleanup")
    done = CliRunner().invoke(app, ["approvals", "forget", kept[0]["id"]])
    assert done.exit_code == 0 and "Forgotten: network" in done.stdout
    async with asker(tmp_path, "auto", nobody) as call:
        again = await call("start_sandbox", network_policy="allowlist", network_allow=LIST[:1])
        assert again["code"] == "NOT_APPROVED" and len(nobody.asked) == 2


@both
async def test_two_things_are_one_question_and_a_weaker_wall_is_one(tmp_path: Path, mode: Mode) -> None:
    person = Person("decline")
    async with asker(tmp_path, mode, person, MANYOYO_ISOLATION="hardened") as call:
        refused = await call("start_sandbox", network_policy="open", isolation="privileged")
        assert refused["code"] == "NOT_APPROVED" and len(person.asked) == 1
        assert "weaker wall" in person.asked[0] and "network policy open" in person.asked[0]
        assert [each[0] for each in call.decisions()] == ["network", "isolation"]
        many = [f"host{number}.test" for number in range(31)]
        refused = await call("start_sandbox", network_policy="allowlist", network_allow=many)
        assert refused["code"] == "POLICY_REFUSED" and len(person.asked) == 1, "nobody reads that"
        asked = Person("accept", None)
    async with asker(tmp_path, mode, asked, MANYOYO_ISOLATION="hardened") as call:
        started = await call("start_sandbox", isolation="privileged")
        assert started["sandbox"]["isolation"].startswith("privileged") and len(asked.asked) == 1
        await call("cleanup")
    async with asker(tmp_path, mode, None, MANYOYO_ISOLATION="hardened") as call:
        refused = await call("start_sandbox", isolation="privileged")
        assert refused["code"] == "POLICY_REFUSED" and "MANYOYO_APPROVE=isolation=allow" in refused["hint"], refused
