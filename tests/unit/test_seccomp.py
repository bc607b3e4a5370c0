"""The filter, run as the kernel runs it: which calls are answered, which let through."""

import struct

import pytest

from manyoyo_mcp.image.seccomp import filter_of_calls

X86_64, AARCH64, I386, ARM = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028
ALLOW, ANSWER_0, NOT_PERMITTED = 0x7FFF0000, 0x00050000, 0x00050001


def verdict(architecture: int, number: int, request: int = 0) -> int:
    """What the filter returns for a call: classic BPF, as linux/filter.h defines it, of the three instructions it uses."""
    steps = list(struct.iter_unpack("<HBBI", filter_of_calls()))
    data = struct.pack("<iIQQQ", number, architecture, 0, 0, request)
    at = accumulator = 0
    while True:
        code, then, otherwise, operand = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x15:
            at += then if accumulator == operand else otherwise
        else:
            assert code == 0x06
            return int(operand)


@pytest.mark.parametrize(
    ("architecture", "answered"),
    [(X86_64, {26, 74, 75, 162, 277, 306}), (AARCH64, {81, 82, 83, 84, 227, 267}), (I386, set()), (ARM, set())],
)
def test_what_waits_for_the_disk_is_answered_at_once(architecture: int, answered: set[int]) -> None:
    assert {number for number in range(512) if verdict(architecture, number) == ANSWER_0} == answered
    assert all(verdict(architecture, number) == ALLOW for number in set(range(512)) - answered)


@pytest.mark.parametrize(
    ("architecture", "ioctl"), [(X86_64, 16), (X86_64, 0x40000202), (AARCH64, 29), (I386, 54), (ARM, 54)]
)
@pytest.mark.parametrize("request_", [0x5000940E, 0x50009418, 0x50009401, 0x50009417])
def test_nobody_makes_a_subvolume(architecture: int, ioctl: int, request_: int) -> None:
    assert verdict(architecture, ioctl, request_) == NOT_PERMITTED
    assert verdict(architecture, ioctl, request_ | 0xFFFF << 32) == NOT_PERMITTED, (
        "the kernel reads the lower half alone"
    )
    assert verdict(architecture, ioctl, 0x5401) == ALLOW and verdict(architecture, ioctl + 1, request_) == ALLOW
