"""Every engine: commands in a container that runs, its output, its life."""

import time
from collections.abc import AsyncIterator

import anyio
import pytest

from manyoyo_mcp.errors import InvalidArgument, NameConflict, NotFound, NotRunning, Reason
from tests.support import MIB, SLACK, Box, Stopwatch

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service(box: Box) -> AsyncIterator[str]:
    container = await box.service("sh", "-c", "echo serving; exec sleep 7400", caps=box.caps(memory=64 * MIB))
    yield container
    await box.engine.remove(container)


async def test_exec(box: Box, service: str) -> None:
    output: list[bytes] = []
    ended = await box.exec(service, "sh", "-c", "cat; pwd; echo $A; id -u; exit 4", stdin=b"in\n", env={"A": "b"},
                           workdir="/tmp", user="1000", output=output)  # fmt: skip
    assert (ended.exit_code, ended.reason) == (4, Reason.EXIT_NONZERO)
    assert b"".join(output) == b"in\n/tmp\nb\n1000\n"


async def test_exec_has_what_the_container_has(box: Box) -> None:
    container = await box.service("sleep", "7405", env={"A": "container", "B": "b"}, workdir="/tmp")
    output: list[bytes] = []
    script = "echo $A $B $PATH; pwd; id -u; echo error >&2; ulimit -n; grep -c . /proc/1/cgroup > /dev/null"
    ended = await box.exec(container, "sh", "-c", script, env={"A": 'exec "quoted" \\ \u00fc'}, output=output)
    assert ended.exit_code == 0, (ended, output)
    lines = b"".join(output).decode().splitlines()
    assert {'exec "quoted" \\ \u00fc b /bin', "/tmp", "0", "error"} <= set(lines)  # which pipe is read first is chance
    inside = await box.exec(container, "cat", "/proc/self/status", output=(status := []))
    outside = await box.exec(container, "cat", "/proc/1/status", output=(first := []))
    assert inside.exit_code == outside.exit_code == 0
    for field in (b"CapEff:", b"CapBnd:", b"NoNewPrivs:", b"Seccomp:"):
        (mine,) = [line for line in b"".join(status).splitlines() if line.startswith(field)]
        assert mine in b"".join(first), mine
    await box.engine.remove(container)


async def test_exec_carries_what_goes_in_and_out(box: Box, service: str) -> None:
    data = bytes(range(256)) * 8192
    output: list[bytes] = []
    ended = await box.exec(service, "cat", stdin=data, output=output)
    assert ended.exit_code == 0 and b"".join(output) == data
    ended = await box.exec(service, "true", stdin=data)
    assert ended.exit_code == 0, "it read nothing of it"


@pytest.mark.parametrize(
    ("user", "ids", "others", "home"),
    [
        ("me", "1000 1001", {"7", "50"}, "/home/me"),
        ("1000", "1000 1001", {"7", "50"}, "/home/me"),
        ("me:staff", "1000 50", set(), "/home/me"),
        ("77:9", "77 9", set(), None),
        ("0:staff", "0 50", set(), "/root"),
    ],
)
async def test_exec_as_somebody(
    box: Box, service: str, user: str, ids: str, others: set[str], home: str | None
) -> None:
    for file, text in (
        ("passwd", "root:x:0:0::/root:\nme:x:1000:1001::/home/me:\n"),
        ("group", "root:x:0:\nstaff:x:50:me\nmine:x:1001:\nother:x:7:me,you\n"),
    ):
        await box.exec(service, "sh", "-c", f"mkdir -p /etc; cat > /etc/{file}", stdin=text.encode())
    script = "id -u; id -g; id -G; echo $HOME; sed -n 's/CapEff:.//p' /proc/self/status"
    for _ in range(5):  # podman itself drops the output of two in five that don't read their stdin
        output: list[bytes] = []
        ended = await box.exec(service, "sh", "-c", script, user=user, stdin=b"unread", output=output)
        assert ended.exit_code == 0, (ended, output)
        uid, gid, groups, found, capabilities = b"".join(output).decode().splitlines()
        assert f"{uid} {gid}" == ids and set(groups.split()) - {gid} == others
        assert found == home or home is None  # where there is none, engines differ
        assert (int(capabilities, 16) == 0) == (uid != "0")


async def test_exec_as_nobody(box: Box, service: str) -> None:
    for user in ("nobody-of-that-name", "root:no-such-group"):
        with pytest.raises(InvalidArgument, match=user.partition(":")[2] or user) as refused:
            await box.exec(service, "true", user=user)
        assert "/etc/passwd" in refused.value.hint


class _Slow:
    """A sink that takes its time."""

    def __init__(self) -> None:
        self.data = bytearray()

    def append(self, data: bytes) -> None:
        time.sleep(0.01)
        self.data += data


async def test_exec_waits_for_whoever_reads(box: Box, service: str) -> None:
    """What feeds its stdin ends long before its output is read."""
    data = bytes(range(256)) * 16384
    slow = _Slow()
    ended = await box.exec(service, "cat", stdin=data, output=slow)
    assert ended.exit_code == 0 and slow.data == data


async def test_exec_ends_with_its_process(box: Box, service: str) -> None:
    watch = Stopwatch()
    ended = await box.exec(service, "sh", "-c", "echo begun; sleep 7406 >/dev/null 2>&1 &", output=watch)
    assert ended.exit_code == 0 and watch.seconds < 5 * SLACK
    assert box.kill("sleep 7406") == 1


async def test_exec_goes_on_without_its_service(box: Box, service: str) -> None:
    """Podman's has one of its own in the sandbox; what kills it costs no exec."""
    for _ in range(2):
        ended = await box.exec(service, "sh", "-c", "exit 3")
        assert ended.exit_code == 3
        has_one = box.engine.name == "podman" and box.sandbox.isolation != "rootless"
        assert box.kill("/usr/lib/manyoyo/execs") == (1 if has_one else 0)
        with anyio.fail_after(10):
            while box.processes("/usr/lib/manyoyo/execs"):
                await anyio.sleep(0.01)


async def test_exec_shares_the_containers_memory_cap(box: Box, service: str) -> None:
    ended = await box.exec(service, "tail", "/dev/zero")
    assert (ended.exit_code, ended.reason) == (137, Reason.OOM_KILLED)
    ended = await box.exec(service, "sh", "-c", "tail /dev/zero; echo killed? $?")
    assert ended.reason is Reason.OK and "one of its processes" in ended.explanation, ended
    ended = await box.exec(service, "echo", "nobody was killed")
    assert ended.reason is Reason.OK and not ended.explanation, "an earlier exec's loss is no later one's"


async def test_one_execs_evidence_is_not_the_next_ones(box: Box, service: str) -> None:
    killed = await box.exec(service, "tail", "/dev/zero")
    assert killed.reason is Reason.OOM_KILLED
    failed = await box.exec(service, "sh", "-c", "echo out of memory; exit 1")
    assert (failed.reason, failed.exit_code) == (Reason.EXIT_NONZERO, 1), failed


async def test_exec_of_nothing(box: Box, service: str) -> None:
    ended = await box.exec(service, "no-such-program")
    assert ended.reason is Reason.COMMAND_NOT_FOUND


async def test_exec_timeout_ends_everything_it_started(box: Box, service: str) -> None:
    watch = Stopwatch()
    script = "trap '' TERM; echo begun; setsid sleep 7401 & (sleep 7401 &); sleep 7401"
    ended = await box.exec(service, "sh", "-c", script, timeout_s=1, output=watch)
    assert ended.reason is Reason.TIMEOUT
    assert watch.seconds < 1 + 2 * SLACK
    assert box.processes("sleep 7401") == []
    assert box.processes("sleep 7400"), "the service itself goes on"


@pytest.mark.parametrize(
    "command",
    [
        ["env", "-i", "/bin/sleep", "7403"],
        ["env", "-i", "/bin/sh", "-c", "sleep 7403; true"],
        ["env", "-i", "/bin/sh", "-c", "while :; do /bin/sleep 7403 & /bin/sleep 0.01; done"],
    ],
)
async def test_exec_without_its_environment_ends_too(box: Box, service: str, command: list[str]) -> None:
    ended = await box.exec(service, *command, timeout_s=1)
    assert ended.reason is Reason.TIMEOUT and box.processes("sleep 7403") == []


async def test_exec_cancelled(box: Box, service: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(box.exec, service, "sh", "-c", "trap '' TERM; sleep 7402; sleep 7402")
        assert service in await box.seen("sleep 7402")
        begun = time.monotonic()
        group.cancel_scope.cancel()
    assert time.monotonic() - begun < 2 * SLACK
    assert box.processes("sleep 7402") == []


async def test_logs(box: Box) -> None:
    container = await box.service("sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 0.3; echo err >&2")
    try:
        with anyio.fail_after(10):
            while b"err" not in await box.engine.logs(container, None, None):
                await anyio.sleep(0.05)
        assert (await box.engine.logs(container, None, None)).split(b"\n")[0] == b"line 1"
        assert len((await box.engine.logs(container, 2, None)).splitlines()) == 2
        for long_ago in (0.5, -1e300, float("-inf")):
            assert len((await box.engine.logs(container, 2, long_ago)).splitlines()) == 2
    finally:
        await box.engine.remove(container)


async def test_stop_start_restart_remove(box: Box) -> None:
    container = await box.service("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done", name="life")
    try:
        assert await box.engine.act("stop", "life", 5) in ("exited", "stopped")
        with pytest.raises(NotRunning):
            await box.exec("life", "true")
        assert await box.engine.act("start", "life", 5) == "running"
        assert await box.engine.act("restart", "life", 5) == "running"
        with pytest.raises(NameConflict):
            await box.service("true", name="life")
        assert await box.engine.act("remove", "life", 5) == "removed"
        assert "life" not in [row.name for row in await box.engine.containers()]
        with pytest.raises(NotFound) as caught:
            await box.engine.act("remove", "life", 5)
        assert caught.value.instance_code == "CONTAINER_NOT_FOUND"
    finally:
        await box.engine.remove(container)


async def test_stop_of_a_process_that_ignores_sigterm(box: Box) -> None:
    container = await box.service("sh", "-c", "trap '' TERM; while :; do sleep 7403; done")
    begun = time.monotonic()
    await box.engine.act("remove", container, 10)
    assert time.monotonic() - begun < 5
    assert box.processes("sleep 7403") == []


async def test_container_removed_while_its_logs_are_read(box: Box) -> None:
    container = await box.service("sh", "-c", "while :; do echo line; done")
    await anyio.sleep(0.5)
    async with anyio.create_task_group() as group:

        async def read() -> None:
            for _ in range(5):
                try:
                    await box.engine.logs(container, 1000, None)
                except NotFound as error:
                    assert error.instance_code == "CONTAINER_NOT_FOUND"

        group.start_soon(read)
        await anyio.sleep(0.2)
        await box.engine.remove(container)


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 0, Reason.OK),
        ("exit 3", 3, Reason.EXIT_NONZERO),
        ("tail /dev/zero", 137, Reason.OOM_KILLED),
        ("exec tail /dev/zero", 137, Reason.OOM_KILLED),
    ],
)
async def test_how_a_service_ended_is_told(box: Box, script: str, code: int, reason: Reason) -> None:
    container = await box.service("sh", "-c", f"{script}", caps=box.caps(memory=32 * MIB))
    try:
        with anyio.fail_after(20 * SLACK):
            while (ended := await box.engine.ended(container)) is None:
                await anyio.sleep(0.05)
        assert (ended.exit_code, ended.reason) == (code, reason), ended
        if reason is Reason.OOM_KILLED:
            assert "32 MiB" in ended.explanation and "start it anew" in ended.hint
    finally:
        await box.engine.remove(container)


async def test_a_service_that_runs_or_was_stopped_was_not_killed_by_a_cap(box: Box, service: str) -> None:
    assert await box.engine.ended(service) is None
    await box.exec(
        service, "sh", "-c", "until grep -q sleep /proc/1/cmdline; do sleep 0.05; done"
    )  # runc becomes it in its time
    await box.engine.act("stop", service, 0)
    ended = await box.engine.ended(service)
    assert ended is not None and (ended.exit_code, ended.reason) == (137, Reason.EXIT_NONZERO), ended
    await box.engine.act("start", service, 1)
    assert await box.engine.ended(service) is None
    with pytest.raises(NotFound):
        await box.engine.ended("no-such-one")


async def test_what_was_evidence_before_is_none_about_a_services_end(box: Box, service: str) -> None:
    killed = await box.exec(service, "tail", "/dev/zero")
    assert killed.reason is Reason.OOM_KILLED
    await box.engine.act("stop", service, 0)
    ended = await box.engine.ended(service)
    assert ended is not None and (ended.exit_code, ended.reason) == (137, Reason.EXIT_NONZERO), ended


async def test_a_service_that_was_started_again_ended_for_its_own_reason(box: Box) -> None:
    script = "[ -e /again ] && { echo thread failed; exit 1; }; touch /again; echo No space left on device >&2; exec tail /dev/zero"
    container = await box.service("sh", "-c", script, caps=box.caps(memory=32 * MIB))
    try:
        for code, reason in ((137, Reason.OOM_KILLED), (1, Reason.EXIT_NONZERO)):
            with anyio.fail_after(20 * SLACK):
                while (ended := await box.engine.ended(container)) is None:
                    await anyio.sleep(0.05)
            assert (ended.exit_code, ended.reason) == (code, reason), ended
            await anyio.sleep(1.1)  # logs are told apart by the second
            await box.engine.act("start", container, 1)
    finally:
        await box.engine.remove(container)
