"""Every engine: nested runs."""

import time
from functools import partial
from typing import Any

import anyio
import pytest

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.errors import InvalidArgument, NotFound, Reason
from tests.support import MIB, SLACK, Box, Stopwatch

pytestmark = pytest.mark.anyio


async def test_exit_code_and_both_streams(box: Box) -> None:
    output: list[bytes] = []
    ended = await box.run("sh", "-c", "echo out; echo err >&2; exit 3", output=output)
    assert (ended.exit_code, ended.reason) == (3, Reason.EXIT_NONZERO)
    assert sorted(b"".join(output).split()) == [b"err", b"out"]


async def test_stdin_is_given_and_closed(box: Box) -> None:
    assert await box.output("wc", "-c", stdin=b"x" * 300_000) == "300000\n"


async def test_env_workdir_user(box: Box) -> None:
    script = 'echo "$WHO"; pwd; id -u'
    assert await box.output("sh", "-c", script, env={"WHO": "me & $you"}, workdir="/tmp", user="1000") == (
        "me & $you\n/tmp\n1000\n"
    )


async def test_read_only_and_dropped_capabilities(box: Box) -> None:
    assert "Read-only" in await box.output("sh", "-c", "touch /x 2>&1 || true", read_only=True)
    status = await box.output("grep", "CapEff", "/proc/self/status", cap_drop=["ALL"])
    assert int(status.split()[1], 16) == 0


async def test_files_in_and_outputs_out(box: Box) -> None:
    ended = await box.run(
        "sh", "-c", "sh /job/run.sh", workdir="/job",
        files={"/job/run.sh": b"#!/bin/sh\ncat data > out.txt; printf '\\000\\001' > /tmp/raw\n", "/job/data": b"42"},
        outputs=["out.txt", "/tmp/raw", "/tmp/none", "/tmp"],
    )  # fmt: skip
    assert [(file.path, file.content) for file in ended.outputs] == [
        ("/job/out.txt", b"42"),
        ("/tmp/raw", b"\0\1"),
        ("/tmp/none", None),
        ("/tmp", None),
    ]


async def test_outputs_are_whole_however_soon_they_are_read(box: Box) -> None:
    """Podman takes a container's file system down after it has told of the end: what is read meanwhile is empty or missing."""
    for _ in range(12):
        ended = await box.run("sh", "-c", "echo made > /tmp/made", outputs=["/tmp/made"], network="none")
        assert [file.content for file in ended.outputs] == [b"made\n"]


async def test_stdin_that_is_not_read(box: Box) -> None:
    """The connection that carries it ends in a reset then; the output is whole."""
    for _ in range(15):
        assert await box.output("echo", "hi", stdin=b"x" * 100_000, network="none") == "hi\n"


async def test_every_connection_of_a_run_is_closed(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman has two for one with stdin; also of a run that is given up."""
    opened: list[Attached] = []
    attach = box.engine._attach

    def noted(*args: Any, **options: Any) -> Attached:
        opened.append(attach(*args, **options))
        return opened[-1]

    monkeypatch.setattr(box.engine, "_attach", noted)
    assert await box.output("cat", stdin=b"in") == "in"
    async with anyio.create_task_group() as group:
        group.start_soon(partial(box.run, "sleep", "100", stdin=b"in"))
        while len(opened) < 2:
            await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    connections = [each for one in opened for each in (one, one._stdin) if each is not None]
    assert len(opened) == 2 and len(connections) == (4 if box.sandbox.engine_name == "podman" else 2)
    with anyio.fail_after(10 * SLACK):  # by the thread that reads it, in its time
        while not all(each._sock.fileno() == -1 for each in connections):
            await anyio.sleep(0.01)


async def test_stdin_and_output_flow_at_once(box: Box) -> None:
    data = bytes(range(256)) * 16384
    output: list[bytes] = []
    ended = await box.run("cat", stdin=data, output=output, network="none")
    assert ended.exit_code == 0 and b"".join(output) == data


async def test_networks(box: Box) -> None:
    assert "eth0" in await box.output("ip", "addr")
    assert "eth0" not in await box.output("ip", "addr", network="none")


@pytest.mark.smoke
async def test_memory_cap_binds_and_is_named(box: Box) -> None:
    ended = await box.run("tail", "/dev/zero", caps=box.caps(memory=32 * MIB))
    assert (ended.exit_code, ended.reason) == (137, Reason.OOM_KILLED)
    assert "32 MiB" in ended.explanation
    assert ended.evidence


async def test_a_command_that_goes_on_without_a_killed_child_ended_well_and_says_so(box: Box) -> None:
    script = "tail /dev/zero; echo killed? $?"
    ended = await box.run("sh", "-c", script, caps=box.caps(memory=32 * MIB))
    assert (ended.exit_code, ended.reason) == (0, Reason.OK)
    assert "one of its processes" in ended.explanation and "32 MiB" in ended.explanation and ended.evidence, ended
    ended = await box.run("echo", "nobody was killed")
    assert ended.reason is Reason.OK and not ended.explanation


async def test_a_killed_child_is_named_too(box: Box) -> None:
    ended = await box.run("sh", "-c", "tail /dev/zero; exit 9", caps=box.caps(memory=32 * MIB))
    assert (ended.exit_code, ended.reason) == (9, Reason.OOM_KILLED)


async def test_sigkill_alone_is_not_called_oom(box: Box) -> None:
    ended = await box.run("sh", "-c", "sh -c 'kill -9 $$'; exit 137")
    assert (ended.exit_code, ended.reason) == (137, Reason.EXIT_NONZERO)


@pytest.mark.smoke("podman")
async def test_pids_cap_binds_and_is_named(box: Box) -> None:
    ended = await box.run(
        "sh", "-c", "i=0; while [ $i -lt 60 ]; do sleep 3 & i=$((i+1)); done; wait", caps=box.caps(pids=20)
    )
    assert ended.reason is Reason.PIDS_LIMIT


@pytest.mark.smoke("podman")
async def test_cpu_cap_binds(box: Box) -> None:
    quota = await box.output(
        "sh", "-c", "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null; true",
        caps=box.caps(cpus=0.5),
    )  # fmt: skip
    assert quota.split()[0] == "50000"


async def test_full_file_system_is_named(box: Box) -> None:
    ended = await box.run("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=100")
    assert ended.reason is Reason.DISK_FULL


async def test_timeout_ends_the_process_inside(box: Box) -> None:
    watch = Stopwatch()
    ended = await box.run("sh", "-c", "trap '' TERM INT; echo begun; sleep 7301", timeout_s=1, output=watch)
    assert ended.reason is Reason.TIMEOUT
    assert watch.seconds < 1 + 2 * SLACK
    assert box.processes("sleep 7301") == []


async def test_cancellation_ends_the_process_inside(box: Box) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(box.run, "sh", "-c", "trap '' TERM INT; sleep 7302; sleep 7302")
        assert box.sandbox.outer.container_id in await box.seen("sleep 7302")
        begun = time.monotonic()
        group.cancel_scope.cancel()
    assert time.monotonic() - begun < 2 * SLACK
    assert box.processes("sleep 7302") == []


async def test_command_that_is_not_there(box: Box) -> None:
    ended = await box.run("no-such-program", "x")
    assert (ended.exit_code, ended.reason) == (127, Reason.COMMAND_NOT_FOUND)
    assert "no-such-program" in ended.explanation


async def test_file_that_is_no_program(box: Box) -> None:
    ended = await box.run("/etc/passwd")
    assert (ended.exit_code, ended.reason) == (126, Reason.COMMAND_NOT_FOUND)


async def test_image_that_is_not_there(box: Box) -> None:
    with pytest.raises(NotFound) as caught:
        await box.run("true", image="localhost/nowhere/nothing:1")
    assert caught.value.instance_code == "IMAGE_NOT_FOUND"
    assert "localhost/nowhere/nothing:1" in caught.value.message


async def test_unknown_user(box: Box) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await box.run("true", user="nobody-here")
    assert "nobody-here" in caught.value.message


async def test_much_output_and_invalid_utf8(box: Box) -> None:
    size = 0

    def count(data: bytes) -> None:
        nonlocal size
        size += len(data)

    ended = await box.engine.run(box.spec("head", "-c", str(100 * MIB), "/dev/urandom"), count)
    assert ended.exit_code == 0
    assert size == 100 * MIB


async def test_nothing_is_left(box: Box) -> None:
    await box.run("true")
    await box.engine.settle()
    assert [row.name for row in await box.engine.containers() if row.state != "running"] == []
