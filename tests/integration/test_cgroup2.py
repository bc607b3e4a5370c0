"""The smoke of the contract suite on a cgroup v2 machine: in qemu, on plain runc, with a kernel of its own."""

import pytest

from tests.guest import Guest


@pytest.mark.timeout(1900)
def test_smoke_on_cgroup_v2(guest: Guest) -> None:
    code, said = guest.end()
    assert code == 0, said[-8000:]
    assert " passed" in said and "skipped" not in said
