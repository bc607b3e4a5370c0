"""Every engine: nested builds."""

import time

import anyio
import pytest

from manyoyo_mcp.engines.base import Step
from manyoyo_mcp.errors import Reason
from tests.support import BUSYBOX, MIB, SLACK, Box, Stopwatch

pytestmark = pytest.mark.anyio


async def test_success_and_cache(box: Box) -> None:
    dockerfile = f"FROM {BUSYBOX}\nRUN echo once > /once\nCOPY a.txt /a.txt\n"
    steps: list[Step] = []
    first = await box.build(dockerfile, {"a.txt": b"hello"}, tags=["localhost/t/cache:1"], steps=steps)
    assert first.reason is Reason.OK, first
    assert first.size and first.size > MIB
    assert [step.number for step in steps] == [1, 2, 3]
    assert all(step.seconds is not None for step in first.steps)
    second = await box.build(dockerfile, {"a.txt": b"hello"}, tags=["localhost/t/cache:1"])
    assert [step.cached for step in second.steps[1:]] == [True, True]
    assert second.image_id == first.image_id
    fresh = await box.build(dockerfile, {"a.txt": b"hello"}, tags=["localhost/t/cache:1"], no_cache=True)
    assert not any(step.cached for step in fresh.steps)
    assert await box.output("cat", "/once", "/a.txt", image="localhost/t/cache:1") == "once\nhello"


async def test_every_tag_is_given(box: Box) -> None:
    tags = ["localhost/t/one:1", "localhost/t/two:2", "localhost/t/three"]
    built = await box.build(f"FROM {BUSYBOX}\nRUN echo tagged > /tagged\n", tags=tags)
    assert built.reason is Reason.OK, built
    for tag in tags:
        assert await box.output("cat", "/tagged", image=tag, pull="never") == "tagged\n"


async def test_stages_target_and_arguments(box: Box) -> None:
    dockerfile = (
        f"ARG BASE={BUSYBOX}\nFROM ${{BASE}} AS one\nARG WORD=none\nRUN echo $WORD > /word\n"
        f"FROM ${{BASE}} AS two\nCOPY --from=one /word /copied\nFROM two AS three\nRUN echo three > /three\n"
    )
    built = await box.build(dockerfile, tags=["localhost/t/stages:1"], target="two", build_args={"WORD": "w o r d"})
    assert built.reason is Reason.OK, built
    script = "cat /copied; test ! -e /three"
    assert await box.output("sh", "-c", script, image="localhost/t/stages:1") == "w o r d\n"


async def test_failure_names_step_line_and_exit_code(box: Box) -> None:
    output: list[bytes] = []
    built = await box.build(
        f"FROM {BUSYBOX}\n\n# comment\nRUN echo fine \\\n  && true\n\nRUN echo last words; exit 42\n", output=output
    )
    assert (built.reason, built.exit_code) == (Reason.BUILD_FAILED, 42)
    assert built.failed_step is not None
    assert (built.failed_step.number, built.failed_step.line) == (3, 7)
    assert built.failed_step.instruction == "RUN echo last words; exit 42"
    assert b"last words" in b"".join(output)


async def test_what_fails_and_says_nothing_is_run_once_more_where_that_may_have_been_lost(box: Box) -> None:
    for step, more in (("exit 42", box.sandbox.engine_name == "podman"), ("echo said; exit 42", False)):
        output: list[bytes] = []
        result = await box.build(f"FROM {BUSYBOX}\nRUN {step}\n", output=output)
        assert (result.exit_code, len(result.steps)) == (42, 2), result
        assert (b"it is run once more" in b"".join(output)) == more, output


@pytest.mark.smoke
async def test_memory_cap_binds_on_a_run_step(box: Box) -> None:
    built = await box.build(f"FROM {BUSYBOX}\nRUN tail /dev/zero\n", caps=box.caps(memory=32 * MIB))
    assert (built.reason, built.exit_code) == (Reason.OOM_KILLED, 137)
    assert "32 MiB" in built.cause
    assert built.failed_step is not None and built.failed_step.line == 2


async def test_cpu_cap_binds_on_a_run_step(box: Box) -> None:
    output: list[bytes] = []
    # The cgroup of a RUN step is not mounted in it on every engine, so the time tells: two busy loops on half a CPU.
    built = await box.build(
        f"FROM {BUSYBOX}\nRUN (while :; do :; done) & b=$!; timeout 2 sh -c 'while :; do :; done'; kill $b; "
        "cat /proc/self/cgroup; cut -d' ' -f14,15 /proc/$$/stat; times\n",
        caps=box.caps(cpus=0.5),
        output=output,
    )
    assert built.reason is Reason.OK, built
    lines = b"".join(output).decode().splitlines()
    times = next(line for line in reversed(lines) if line.count("m") == 2 and line.endswith("s"))
    used = sum(float(part.split("m")[1].rstrip("s")) for part in times.split())
    assert used < 2 * 0.5 * 1.4, f"two seconds at half a CPU, yet {used} s of CPU time: {lines[-4:]}"


async def test_pids_cap_binds_on_run_steps(box: Box) -> None:
    script = "i=0; while [ $i -lt 1500 ]; do sleep 600 & i=$((i+1)); done; wait"
    built = await box.build(f"FROM {BUSYBOX}\nRUN {script}\n", caps=box.caps(memory=900 * MIB), timeout_s=60 * SLACK)
    assert built.reason is Reason.PIDS_LIMIT, built


async def test_timeout_ends_the_step_inside(box: Box) -> None:
    watch = Stopwatch()
    dockerfile = f"FROM {BUSYBOX}\nRUN trap '' TERM INT; sleep 7501\nRUN sleep 7501\n"
    built = await box.build(dockerfile, timeout_s=2, output=watch)
    assert built.reason is Reason.TIMEOUT
    assert watch.seconds < 2 + 2 * SLACK
    assert box.processes("sleep 7501") == []


async def test_cancellation_ends_the_step_inside(box: Box) -> None:
    dockerfile = f"FROM {BUSYBOX}\nRUN trap '' TERM INT; sleep 7502; sleep 7502\nRUN sleep 7502\n"
    async with anyio.create_task_group() as group:
        group.start_soon(box.build, dockerfile)
        assert "manyoyo-builds" in await box.seen("sleep 7502")
        begun = time.monotonic()
        group.cancel_scope.cancel()
    assert time.monotonic() - begun < 2 * SLACK
    assert box.processes("sleep 7502") == []
    assert (await box.build(f"FROM {BUSYBOX}\nRUN true\n")).reason is Reason.OK


async def test_network_none(box: Box) -> None:
    built = await box.build(
        f"FROM {BUSYBOX}\nRUN ip addr | grep eth0 && exit 1 || true\n", network="none", no_cache=True
    )
    assert built.reason is Reason.OK, built


async def test_nothing_is_left(box: Box) -> None:
    await box.build(f"FROM {BUSYBOX}\nRUN exit 1\n")
    await box.engine.settle()
    assert [row for row in await box.engine.containers() if "sleep 75" in row.command] == []
