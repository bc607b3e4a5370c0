"""What a person has said is always allowed: what it covers, and the file in which it stands."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from manyoyo_mcp.cli.app import app
from manyoyo_mcp.config import ApprovalKind, Settings
from manyoyo_mcp.errors import NotFound, PolicyRefused
from manyoyo_mcp.sessions.approvals import Approval, Approvals, Wish


def wish(subject: str, kind: ApprovalKind = "network") -> Wish:
    return Wish(kind, subject, "words", PolicyRefused("no"))


@pytest.mark.parametrize(
    ("had", "wanted", "covered"),
    [
        ("open", "open", True),
        ("open", "log", True),
        ("open", "allowlist example.org", True),
        ("open", "allowlist 10.0.0.1", False),
        ("log", "open", False),
        ("allowlist example.org", "allowlist example.org:443", True),
        ("allowlist example.org:443", "allowlist example.org", False),
        ("allowlist *.example.org", "allowlist a.example.org example.net", False),
        ("allowlist 10.0.0.0/24", "allowlist 10.0.0.7", True),
        ("rubbish", "open", False),
    ],
)
def test_a_policy_covers_itself_and_less(had: str, wanted: str, covered: bool) -> None:
    assert Approval("network", had, "/p").covers(wish(wanted), "/p") is covered
    assert not Approval("network", had, "/p").covers(wish(wanted), "/q"), "another project"
    assert not Approval("isolation", had, "/p").covers(wish(wanted), "/p")


def test_what_is_remembered_is_read_again_and_forgotten(tmp_path: Path) -> None:
    one = Approvals(Settings(state_dir=tmp_path, roots=[tmp_path]))
    assert one.all() == [] and one.covering(wish("open")) is None
    kept = one.remember(wish("open"))
    one.remember(wish("privileged", "isolation"))
    again = Approvals(Settings(state_dir=tmp_path, roots=[tmp_path]))
    assert again.covering(wish("log")) == kept
    assert Approvals(Settings(state_dir=tmp_path, roots=[tmp_path / "other"])).covering(wish("open")) is None
    assert one.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(NotFound):
        one.forget("nothing")
    assert one.forget(kept.id) == [kept] and one.covering(wish("log")) is None
    assert len(one.forget(None)) == 1 and one.all() == []


def test_a_file_that_is_no_list_of_them_allows_nothing(tmp_path: Path) -> None:
    one = Approvals(Settings(state_dir=tmp_path))
    for rubbish in ("", "{}", "[1]", '[{"kind": "network"}]', '{"a": "b"}'):
        one.path.write_text(rubbish)
        assert one.all() == []


def test_the_setting_names_kinds_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [Settings().approval(each) for each in ("endpoint", "isolation", "network")] == ["allow", "ask", "ask"]
    monkeypatch.setenv("MANYOYO_APPROVE", "network=deny, endpoint = ask")
    assert [Settings().approval(each) for each in ("endpoint", "isolation", "network")] == ["ask", "ask", "deny"]
    for wrong in ("network", "network=perhaps", "other=ask"):
        monkeypatch.setenv("MANYOYO_APPROVE", wrong)
        with pytest.raises(ValidationError):
            Settings()


def test_forget_wants_one_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYOYO_STATE_DIR", str(tmp_path))
    assert CliRunner().invoke(app, ["approvals", "forget"]).exit_code == 2
    assert CliRunner().invoke(app, ["approvals", "forget", "--all"]).exit_code == 0
    assert "always" in CliRunner().invoke(app, ["approvals", "list"]).output
