"""`manyoyo-mcp audit`: what it prints, its exit codes, and that what it quotes can do nothing to a terminal."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manyoyo_mcp.audit.files import CURRENT, Files
from manyoyo_mcp.audit.journal import Journal
from manyoyo_mcp.cli.app import app


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANYOYO_STATE_DIR", str(tmp_path))
    one = Journal(Files(tmp_path / "audit", 1 << 20, 3), "required", "0@here", "abcdef0123456789")
    asked = {"kind": "call", "phase": "asked", "call": "1", "tool": "nested_run"}
    one.before_now(asked | {"arguments": {"command": ["\x1b[31mred\x07\u202e", "{}[bold]"], "image": "img"}})
    one.after_now(
        asked | {"phase": "ended", "decision": "allowed", "result": {"reason": "OK", "exit_code": 0}, "seconds": 0.2}
    )
    one.after_now({"kind": "gate", "phase": "ended", "road": "nested", "method": "POST", "path": "/containers/create", "decision": "refused",
                   "code": "POLICY_REFUSED", "reason": "no"})  # fmt: skip
    one.close()
    return tmp_path / "audit"


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["audit", *words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def test_show_prints_what_was_asked_and_what_came_of_it(log: Path) -> None:
    text = run("show")
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "nested_run" in text and "reason=OK exit_code=0" in text and "[bold]" in text
    assert "gate (nested)" in text and "POST /containers/create" in text and "session ended" in text
    assert "nested_run" not in run("show", "--refused") and "POLICY_REFUSED" in run("show", "--refused")
    assert "nested_run" in run("show", "--session", "abc", "--tool", "nested_run", "--since", "1h", "--limit", "1")
    found = json.loads(run("show", "--json", "--tool", "nested_run"))
    assert [each["result"]["exit_code"] for each in found] == [0]
    assert json.loads(run("show", "--json", "--since", "2999-01-01")) == []
    run("show", "--since", "yesterday", code=2)


def test_verify_says_where_it_breaks_and_ends_with_1(log: Path, tmp_path: Path) -> None:
    text = run("verify")
    assert "6 records in 1 file" in text and "sound" in text
    last = json.loads(run("verify", "--json"))["last"]
    assert last in text
    run("verify", "--contains", last)
    run("verify", "--contains", "0" * 64, code=1)
    copy = tmp_path / "copy"
    shutil.copytree(log, copy)
    (copy / "lock").unlink()
    run("verify", "--directory", str(copy))
    path = log / CURRENT
    path.write_bytes(path.read_bytes().replace(b'"exit_code":0', b'"exit_code":1'))
    told = json.loads(run("verify", "--json", code=1))
    assert not told["sound"] and (told["broken"]["how"], told["broken"]["line"]) == ("edited", 4)
    done = CliRunner().invoke(app, ["audit", "verify"])
    assert done.exit_code == 1 and "edited at audit.jsonl, line 4" in done.output
    shutil.rmtree(log)
    run("verify", code=1)
    assert json.loads(run("show", "--json")) == []
