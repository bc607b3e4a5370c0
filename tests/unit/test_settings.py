"""Settings: what the documentation says of them, and how lists are written."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from manyoyo_mcp import config
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.values import parse_memory
from tests.conftest import ROOT

ROWS = {
    cells[1].strip().strip("`"): (cells[2].strip().strip("`"), cells[3].strip())
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines()
    if len(cells := line.split("|")) == 5 and "`MANYOYO_" in cells[1]
}


def test_each_is_documented_and_no_other() -> None:
    assert set(ROWS) == {f"MANYOYO_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_the_documentation_says_what_the_code_says(name: str) -> None:
    field = Settings.model_fields[name]
    default, words = ROWS[f"MANYOYO_{name.upper()}"]
    assert field.description is not None and words.startswith(field.description)
    if field.default_factory is not None or field.default is None:
        assert default == ""
    elif name.endswith(("_bytes", "_disk")):
        assert parse_memory(default) == field.default
    else:
        assert default == str(field.default).lower()


def test_roots_are_written_as_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYOYO_ROOTS", os.pathsep.join(["/srv", "~/src"]))
    assert Settings().roots == [Path("/srv").resolve(), (Path.home() / "src").resolve()]
    monkeypatch.setenv("MANYOYO_ROOTS", '["/srv"]')
    assert Settings().roots == [Path("/srv").resolve()]


def test_another_users_runtime_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns it could put files into sandboxes."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if os.getuid() == 0:
        os.chown(theirs, 1, 1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 1)
    monkeypatch.setattr(config, "DIRS", SimpleNamespace(user_runtime_path=theirs / "manyoyo-mcp"))
    with pytest.raises(InvalidArgument, match="another user"):
        config._runtime_dir()
