"""What people change on the command line stands in the audit log; what needs no host."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manyoyo_mcp.audit.verifying import verify
from manyoyo_mcp.cli.app import app
from manyoyo_mcp.cli.screen import Screen
from manyoyo_mcp.cli.uninstall import Thing, _removed
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.http.tokens import Tokens
from manyoyo_mcp.sessions.approvals import Approvals, Wish
from manyoyo_mcp.sessions.identity import owner


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYOYO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MANYOYO_HTTP_TOKENS", str(tmp_path / "tokens.json"))


def run(*words: str, fails: bool = False) -> str:
    done = CliRunner().invoke(app, words)
    assert (done.exception is not None) == fails, (done.output, done.exception)
    return done.output


def entries(state: Path) -> list[dict[str, Any]]:
    assert verify(state / "audit").broken is None
    return list(json.loads(run("audit", "show", "--json", "--tool", "command")))


def test_tokens_made_and_revoked(tmp_path: Path) -> None:
    token = run("token", "add", "alice", "--scopes", "read,run").strip()
    run("token", "add", "alice", fails=True)
    run("token", "revoke", "alice")
    run("token", "revoke", "alice", fails=True)
    assert token not in (tmp_path / "state" / "audit" / "audit.jsonl").read_text()
    found = entries(tmp_path / "state")
    assert [(each["command"], each["decision"], each.get("code")) for each in found] == [
        ("token add", "allowed", None),
        ("token add", "refused", "NAME_CONFLICT"),
        ("token revoke", "allowed", None),
        ("token revoke", "failed", "TOKEN_NOT_FOUND"),
    ]
    assert found[0]["arguments"] == {"name": "alice", "scopes": ["read", "run"]}
    assert all(each["client"] == "cli" and each["owner"] == owner() for each in found)
    assert "cli token add" in run("audit", "show")


def test_approvals_taken_back(tmp_path: Path) -> None:
    approvals = Approvals(Settings())
    for subject in ("one", "two"):
        approvals.remember(Wish("port", subject, "words", PolicyRefused("no")))
    run("approvals", "forget", "nothing", fails=True)
    run("approvals", "forget", approvals.all()[0].id)
    run("approvals", "forget", "--all")
    found = entries(tmp_path / "state")
    assert [each.get("result", {}).get("forgotten") for each in found] == [None, ["port one"], ["port two"]]
    assert found[0]["code"] == "NOT_FOUND"


def test_what_opens_the_server_is_not_done_off_the_record_and_what_closes_it_is(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    tokens.add("bob", ["read"])
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "audit").write_text("in the way")
    run("token", "add", "alice", fails=True)
    assert [each.name for each in tokens.all()] == ["bob"]
    run("token", "revoke", "bob")
    assert tokens.all() == []


def test_a_log_that_goes_with_all_else_does_not_come_back(tmp_path: Path) -> None:
    log = tmp_path / "state" / "audit"
    gone: list[bool] = []
    things = [Thing("file", "a", "", lambda: gone.append(True))]
    assert _removed(Settings(), things, Screen(quiet=True)) == 0 and gone and not log.exists()  # none was begun
    run("token", "add", "alice")

    def refuse() -> None:
        raise OSError("busy")

    assert _removed(Settings(), [Thing("volume", "b", "", refuse)], Screen(quiet=True)) == 1
    (found,) = [each for each in entries(tmp_path / "state") if each["command"] == "uninstall"]
    assert found["arguments"] == {"things": ["volume b"]} and found["result"] == {"removed": 0, "kept": 1}

    def remove() -> None:
        for each in log.iterdir():
            each.unlink()
        log.rmdir()

    assert _removed(Settings(), [Thing("directory", str(log), "", remove)], Screen(quiet=True)) == 0
    assert not log.exists()
