"""Whose a sandbox is, where the machine does not say which it is."""

import os
from pathlib import Path

import pytest

from manyoyo_mcp.hosts.base import Outer
from manyoyo_mcp.sessions import identity
from manyoyo_mcp.sessions.sweep import _is_over
from manyoyo_mcp.values import Caps


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


ELSEWHERE = {
    "server-pid": "7",
    "server-start": "1",
    "server-boot": identity.boot_id(),
    "server-pid-namespace": "pid:[1]",
}
"""A server in a container of its own, as of the compose file's."""
ENDED = {"server-pid": str(os.getpid()), "server-start": "1", "server-boot": "another"}


@pytest.mark.parametrize(
    ("labels", "running", "age", "over"),
    [
        (ENDED, True, 1, True),
        (ELSEWHERE, True, 10_000, False),
        (ELSEWHERE, False, 10, False),
        (ELSEWHERE, False, 10_000, True),
        (ELSEWHERE | {"name": "web"}, True, 10_000, False),
        (ELSEWHERE | {"name": "web"}, False, 10, True),
        (identity.Identity().labels(), False, 10_000, False),
    ],
    ids=["ended", "elsewhere", "just-stopped", "long-stopped", "named", "named-stopped", "ours"],
)
def test_what_a_sweep_takes(labels: dict[str, str], running: bool, age: float, over: bool) -> None:
    assert _is_over(Outer("c", "sb-1", labels, running, 1e9, Caps(1, 1, 1)), 1e9 + age) is over
