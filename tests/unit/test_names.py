"""Names, and the locks on what has one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.sessions import names

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["web", "a", "0", "x.y_z-1", "a" * 63])
def test_names(name: str) -> None:
    assert names.check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "a b", "a" * 64, "sb-0123", "ä", "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidArgument):
        names.check_name(name)


def test_ids_are_an_owners_own() -> None:
    assert names.sandbox_id("a", "x") == names.sandbox_id("a", "x")
    assert len({names.sandbox_id(owner, name) for owner in "ab" for name in "xy"}) == 4
    assert names.sandbox_id("a", "bc") != names.sandbox_id("ab", "c")


async def test_a_lock_is_waited_for_and_dies_with_its_holder(tmp_path: Path) -> None:
    program = (
        "import anyio, sys; from pathlib import Path; from manyoyo_mcp.sessions.names import locked\n"
        "async def hold():\n"
        "    async with locked(Path(sys.argv[1]), 'it', lambda *_: None): print('held', flush=True); await anyio.sleep(100)\n"
        "anyio.run(hold)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    said: list[str] = []
    async with anyio.create_task_group() as group:

        async def end() -> None:
            await anyio.sleep(0.3)
            assert said and "waiting" in said[0]
            os.kill(holder.pid, signal.SIGKILL)

        group.start_soon(end)
        with anyio.fail_after(5):
            async with names.locked(tmp_path, "it", lambda _done, _total, words: said.append(words)):
                pass
    holder.wait()
    holder.stdout.close()
