"""The filter, run as the kernel runs it: which calls are answered, which let through."""

import struct

import pytest

from manyoyo_mcp.image.seccomp import filter_without_syncs

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOW, ANSWER_0 = 0x7FFF0000, 0x00050000


def verdict(architecture: int, number: int) -> int:
    """What the filter returns for a call: classic BPF, as linux/filter.h defines it, of the three instructions it uses."""
    steps = list(struct.iter_unpack("<HBBI", filter_without_syncs()))
    data = struct.pack("<iI", number, architecture)
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
    [(X86_64, {26, 74, 75, 162, 277, 306}), (AARCH64, {81, 82, 83, 84, 227, 267}), (I386, set())],
)
def test_what_waits_for_the_disk_is_answered_at_once(architecture: int, answered: set[int]) -> None:
    assert {number for number in range(512) if verdict(architecture, number) == ANSWER_0} == answered
    assert all(verdict(architecture, number) == ALLOW for number in set(range(512)) - answered)
