"""The reaper's patience; that it removes what a server left is shown in test_lifecycle."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from manyoyo_mcp.sessions import reaper


def test_it_ends_where_no_engine_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as server:
        pass
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    monkeypatch.setenv("MANYOYO_STATE_DIR", str(tmp_path))
    assert reaper.PATIENCE <= 120
    monkeypatch.setattr(reaper, "PATIENCE", 2.5)
    begun = time.monotonic()
    reaper.main(json.dumps([server.pid, "1", "0" * 16]))
    assert 0.9 < time.monotonic() - begun < 10, "it tried again, then gave up"
