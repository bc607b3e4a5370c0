"""Verdicts from evidence, and engine answers as typed errors."""

import pytest

from manyoyo_mcp.engines.failures import from_answer, verdict
from manyoyo_mcp.errors import Reason

NESTED = "/docker/0123/libpod_parent/libpod-abcd"
OOM = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg={},task_memcg="
    + NESTED
    + ",task=x,pid=1,uid=0"
)


def judge(code: int, *, flag: bool = False, record: str = "", output: bytes = b"") -> Reason:
    return verdict(code, oom_flag=flag, record=record, cgroup="abcd", output_end=output, cap="64 MiB").reason


def test_the_cgroup_in_the_kernels_record_decides() -> None:
    assert judge(137, flag=True, record=OOM.format(NESTED)) is Reason.OOM_KILLED
    assert judge(137, flag=True, record=OOM.format("/docker/0123")) is Reason.SANDBOX_OOM
    assert judge(1, record=OOM.format(NESTED)) is Reason.OOM_KILLED


def test_the_engines_flag_alone_is_the_nested_cap() -> None:
    assert judge(137, flag=True) is Reason.OOM_KILLED


def test_the_exit_code_alone_is_no_evidence() -> None:
    assert judge(137) is Reason.EXIT_NONZERO
    assert judge(1, output=b"Killed\nout of memory\n") is Reason.EXIT_NONZERO
    assert judge(1, output=b"fork: Resource temporarily unavailable") is Reason.EXIT_NONZERO


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (
            b"dd: error writing '/dev/shm/big': No space left on device\n1+0 records in\n",
            "64 MiB only: write to another",
        ),
        (b"OSError: [Errno 28] No space left on device: '/dev/shm/big'\n", "64 MiB only: write to another"),
        (b"cat: write error: No space left on device\n", "Make room"),
        (b"dd: error writing '/big': Disk quota exceeded\n", "Make room"),
    ],
)
def test_a_full_disk_is_told_from_full_shared_memory(output: bytes, says: str) -> None:
    told = verdict(1, oom_flag=False, record="", cgroup="abcd", output_end=output, cap="64 MiB")
    assert told.reason is Reason.DISK_FULL and says in told.hint, told
    assert "big" not in told.evidence + told.explanation, "what the command wrote stays in its fence"
    assert ("where it was that" in told.hint) == output.startswith(b"cat"), "nothing else that leaves it open"


def test_who_says_nothing_is_not_quoted() -> None:
    silent = verdict(2, oom_flag=False, record="", cgroup="abcd", output_end=b" \n", cap="64 MiB")
    assert silent.hint == "It wrote nothing that says why."


def test_pids_by_the_kernels_record() -> None:
    record = "cgroup: fork rejected by pids controller in " + NESTED
    assert judge(2, record=record, output=b"can't fork") is Reason.PIDS_LIMIT


def test_full_disk_by_the_systems_words() -> None:
    assert judge(1, output=b"dd: error writing: No space left on device") is Reason.DISK_FULL


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (404, "no such image: nowhere:1: image not known", "IMAGE_NOT_FOUND"),
        (404, "No such image: nowhere:1", "IMAGE_NOT_FOUND"),
        (404, "No such container: image-builder", "CONTAINER_NOT_FOUND"),
        (404, 'no container with name or ID "image" found: no such container', "CONTAINER_NOT_FOUND"),
        (409, 'Conflict. The container name "/x" is already in use by container 0123', "NAME_CONFLICT"),
        (500, 'creating container storage: the container name "x" is already in use by 0123', "NAME_CONFLICT"),
        (409, "Container 0123 is not running", "CONTAINER_NOT_RUNNING"),
        (500, "container 0123 is not running: container state improper", "CONTAINER_NOT_RUNNING"),
        (400, "unable to find user x: no matching entries in passwd file", "INVALID_ARGUMENT"),
        (404, "network nope not found", "NETWORK_NOT_FOUND"),
        (501, "not implemented", "NOT_SUPPORTED"),
        (500, "something broke", "ENGINE_FAILED"),
        (
            500,
            "adding container 0123 exit code 1: unable to open database file: no such file or directory",
            "DISK_FULL",
        ),
        (
            500,
            "preparing container 0123 for attach: container create failed (no logs from conmon): conmon bytes",
            "DISK_FULL",
        ),
        (500, "preparing container 0123: error found in #0 byte of ...||..., bigger context ...||...", "DISK_FULL"),
        (400, "decode: error found in #0 byte of ...||..., bigger context ...||...", "INVALID_ARGUMENT"),
    ],
)
def test_answers(status: int, text: str, code: str) -> None:
    error = from_answer("podman", status, text)
    assert error.instance_code == code and error.hint
