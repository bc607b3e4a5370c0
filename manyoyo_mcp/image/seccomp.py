"""A seccomp filter under which nobody waits for the disk: fsync(2) and its like are answered with success, at once. And nobody
makes a subvolume of btrfs, which any process may, and which a store's quota would not cover.

What ends with its machine loses nothing by the first; what lives on a pool loses no order either, for that writes whole moments to
the disk (docs/decisions/0006-storage.md). Raw BPF, for `under-calls` in the outer image: an array of struct sock_filter
(linux/filter.h) over struct seccomp_data (linux/seccomp.h).
"""

import struct

_CALLS = {
    0xC000003E: (
        (16, 0x40000202),
        (74, 75, 162, 306, 277, 26),
    ),  # x86_64 (asm/unistd_64.h), x32's ioctl (asm/unistd_x32.h)
    0xC00000B7: ((29,), (82, 83, 81, 267, 84, 227)),  # aarch64 (asm-generic/unistd.h)
    0x40000003: ((54,), ()),  # i386 (asm/unistd_32.h)
    0x40000028: ((54,), ()),  # arm (its asm/unistd.h)
}
"""ioctl, and fsync, fdatasync, sync, syncfs, sync_file_range, msync: by AUDIT_ARCH_* (linux/audit.h). 32-bit programs may wait."""
_SUBVOLUMES = (0x5000940E, 0x50009418, 0x50009401, 0x50009417)
"""BTRFS_IOC_SUBVOL_CREATE, _SUBVOL_CREATE_V2, _SNAP_CREATE, _SNAP_CREATE_V2 (linux/btrfs.h)."""
_NUMBER, _ARCHITECTURE, _REQUEST = 0, 4, 24
"""Where in struct seccomp_data they lie: the call, its architecture, the lower half of its second argument."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO_0, _EPERM = 0x7FFF0000, 0x00050000, 0x00050001


def filter_of_calls() -> bytes:
    """The filter. Calls of an architecture that it does not know are let through as they are."""
    program: list[bytes] = [_step(_LOAD, _ARCHITECTURE)]
    for architecture, (ioctls, syncs) in _CALLS.items():
        requests = [_step(_LOAD, _REQUEST)]
        requests += [_step(_EQUAL, each, then=len(_SUBVOLUMES) - index) for index, each in enumerate(_SUBVOLUMES)]
        requests += [_step(_RETURN, _ALLOW), _step(_RETURN, _EPERM)]
        calls = [_step(_LOAD, _NUMBER)]
        for others, each in reversed(list(enumerate(reversed(ioctls)))):
            calls.append(_step(_EQUAL, each, then=others, otherwise=0 if others else len(requests)))
        calls += requests
        calls += [_step(_EQUAL, each, then=len(syncs) - index) for index, each in enumerate(syncs)]
        calls += [_step(_RETURN, _ALLOW), _step(_RETURN, _ERRNO_0)]
        program += [_step(_EQUAL, architecture, otherwise=len(calls)), *calls]
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _step(code: int, operand: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; the jumps count the instructions that are left out."""
    return struct.pack("<HBBI", code, then, otherwise, operand)
