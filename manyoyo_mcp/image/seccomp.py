"""A seccomp filter under which nobody waits for the disk: fsync(2) and its like are answered with success, at once.

What ends with its machine loses nothing by it; what lives on a pool loses no order either, for that writes whole moments to the
disk (docs/decisions/0006-storage.md). Raw BPF as setpriv(1)'s --seccomp-filter takes it: an array of struct sock_filter
(linux/filter.h) over struct seccomp_data (linux/seccomp.h).
"""

import struct

_CALLS = {
    0xC000003E: (74, 75, 162, 306, 277, 26),  # x86_64 (asm/unistd_64.h)
    0xC00000B7: (82, 83, 81, 267, 84, 227),  # aarch64 (asm-generic/unistd.h)
}
"""fsync, fdatasync, sync, syncfs, sync_file_range, msync: by AUDIT_ARCH_* (linux/audit.h)."""
_NUMBER, _ARCHITECTURE = 0, 4
"""Where in struct seccomp_data they lie."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO_0 = 0x7FFF0000, 0x00050000


def filter_without_syncs() -> bytes:
    """The filter. Calls of another architecture, as those of 32-bit programs, are let through as they are."""
    program: list[bytes] = [_step(_LOAD, _ARCHITECTURE)]
    for architecture, numbers in _CALLS.items():
        program.append(_step(_EQUAL, architecture, otherwise=len(numbers) + 3))
        program.append(_step(_LOAD, _NUMBER))
        program += [_step(_EQUAL, number, then=len(numbers) - index) for index, number in enumerate(numbers)]
        program += [_step(_RETURN, _ALLOW), _step(_RETURN, _ERRNO_0)]
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _step(code: int, operand: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; the jumps count the instructions that are left out."""
    return struct.pack("<HBBI", code, then, otherwise, operand)
