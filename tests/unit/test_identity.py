"""Whose a sandbox is, where the machine does not say which it is."""

from pathlib import Path

import pytest

from manyoyo_mcp.sessions import identity


@pytest.mark.parametrize("told", [b"", b"\n", b"uninitialized\n"])
def test_machines_without_an_id_are_told_apart_by_their_names(told: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: told)
    owners = set()
    for name in ("one", "two"):
        monkeypatch.setattr("platform.node", lambda name=name: name)
        owners.add(identity.owner())
    assert len(owners) == 2


@pytest.mark.parametrize("pid", ["", "x", "9" * 5000])
def test_a_process_that_is_no_number_is_nobody_to_be_missed(pid: str) -> None:
    assert identity.answers_for({"server-pid": pid, "server-boot": "another"})
