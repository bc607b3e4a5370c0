"""Tiers in which root of what is nested is nobody outside: that it is so on whatever kernel this is, and that caps bind all the same."""

import pytest

from manyoyo_mcp.errors import Reason
from manyoyo_mcp.sessions.manager import Manager
from tests.support import BUSYBOX, MIB, Box, busybox_context

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("tier", "engine"), [pytest.param("rootless", "podman", marks=pytest.mark.smoke), ("userns", "docker")]
)
async def test_nobody_outside_and_capped(manager: Manager, tier: str, engine: str) -> None:
    sandbox = await manager.start(engine, memory=512 * MIB, isolation=tier)
    try:
        assert sandbox.evidence is not None and sandbox.evidence.enforced, sandbox.evidence
        box = Box(manager, sandbox)
        assert (await box.build(files=busybox_context(), tags=[BUSYBOX])).reason is Reason.OK
        assert (await box.output("cat", "/proc/self/uid_map")).split() == ["0", "100000", "65536"]
        step = await box.build(f"FROM {BUSYBOX}\nRUN tail /dev/zero\n", caps=box.caps(memory=32 * MIB))
        assert step.reason is Reason.OOM_KILLED, step
    finally:
        await manager.remove(sandbox)
