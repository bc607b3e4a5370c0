"""Every engine: builds without the engine's builder, in a nested container that holds the context alone."""

import anyio
import pytest

from manyoyo_mcp.errors import Reason
from tests.support import BUSYBOX, MIB, SLACK, Box

pytestmark = pytest.mark.anyio
_LOOK = (
    "RUN grep -h '^Cap\\(Eff\\|Bnd\\)' /proc/self/status > /seen; cat /proc/self/uid_map >> /seen; "
    "ls /from /context /made /var/lib/manyoyo /run/manyoyo /dev/vda >> /seen 2>/dev/null; mount -t proc proc /mnt && echo mounted >> /seen; true\n"
)


async def test_an_image_is_built_and_named(box: Box) -> None:
    dockerfile = (
        f"ARG BASE={BUSYBOX}\nFROM $BASE AS one\nARG WORD=none\nRUN echo $WORD > /word && mkdir /old && echo x > /old/x\n"
        f"FROM {BUSYBOX}\nCOPY --from=one /word /old /copied/\nCOPY sub/a.txt /a.txt\nENV KEPT=yes\n"
        "RUN rm -rf /copied/x && chown 1234 /a.txt\nUSER 1234\n"
    )
    output: list[bytes] = []
    tags = ["localhost/t/alone:1", "localhost/t/alone:2"]
    built = await box.build(
        dockerfile, {"sub/a.txt": b"hello"}, tags=tags, build_args={"WORD": "w o r d"}, daemonless=True, output=output
    )
    assert built.reason is Reason.OK, (built, output)
    assert built.size and built.size > MIB and built.steps[0].line == 2 and built.steps[-1].line == 10, built
    script = "cat /copied/word /a.txt; echo $KEPT; id -u; ls /copied; stat -c %u /a.txt"
    shown = await box.output("sh", "-c", script, image=tags[1], pull="never")
    assert shown.startswith("w o r d\nhelloyes\n1234\nword\n1234\n"), shown
    raw = await box.engine._ask(lambda client: client.inspect_image(tags[0]))  # type: ignore[attr-defined]
    assert [each.partition("=")[0] for each in raw["Config"]["Env"]] == ["PATH", "KEPT"], raw["Config"]["Env"]


async def test_its_steps_have_no_right_outside(box: Box) -> None:
    built = await box.build(f"FROM {BUSYBOX}\n{_LOOK}", tags=["localhost/t/looked:1"], daemonless=True)
    assert built.reason is Reason.OK, built
    seen = await box.output("cat", "/seen", image="localhost/t/looked:1")
    bounding = int(seen.split("CapBnd:\t")[1].split()[0], 16)
    assert not bounding >> 21 & 1 and not bounding >> 12 & 1, "CAP_SYS_ADMIN, CAP_NET_ADMIN"
    assert seen.split()[-3:] == ["0", "0", "65536"], seen


async def test_what_fails_says_where(box: Box) -> None:
    output: list[bytes] = []
    built = await box.build(f"FROM {BUSYBOX}\n\nRUN echo last words; exit 42\n", daemonless=True, output=output)
    assert (built.reason, built.exit_code) == (Reason.BUILD_FAILED, 42), (built, output)
    assert built.failed_step is not None and built.failed_step.line == 3 and b"last words" in b"".join(output)
    missing = await box.build("FROM localhost/no-such-image\n", daemonless=True)
    assert (missing.reason, missing.cause_code) == (Reason.BUILD_FAILED, "IMAGE_NOT_FOUND"), missing
    wrong = await box.build(f"FROM {BUSYBOX}\nCOPY absent /\n", daemonless=True)
    assert wrong.reason is Reason.BUILD_FAILED and wrong.failed_step is not None and wrong.failed_step.line == 2, wrong


async def test_its_caps_bind(box: Box) -> None:
    caps = box.caps(memory=128 * MIB)
    built = await box.build(f"FROM {BUSYBOX}\nRUN tail /dev/zero\n", caps=caps, daemonless=True)
    assert built.reason is Reason.OOM_KILLED and "128 MiB" in built.cause, built


async def test_a_timeout_ends_it_and_leaves_nothing(box: Box) -> None:
    built = await box.build(f"FROM {BUSYBOX}\nRUN sleep 7171\n", timeout_s=6 * SLACK, daemonless=True)
    assert built.reason is Reason.TIMEOUT and not box.processes("sleep 7171"), built
    await anyio.sleep(1)
    assert not [each for each in await box.engine.containers() if "manyoyo-builder" in each.image]
