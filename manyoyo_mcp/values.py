"""Sizes and caps: what callers write, in Docker's own syntax, as numbers that mean one thing.

Memory is bytes, CPUs are a float of cores, pids a count, everywhere below the tools.
"""

import math
import re
from dataclasses import dataclass
from datetime import datetime

from manyoyo_mcp.errors import InvalidArgument

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)

MIN_MEMORY = 6 << 20
"""The least memory a container may be given, in bytes; Docker's own minimum (`docker run` reference, `--memory`)."""
MAX_MEMORY = 1 << 50


def parse_memory(value: str | int, argument: str = "memory") -> int:
    """Bytes from Docker's notation: `512m`, `1g`, `1.5g`, or a plain count of bytes.

    Raises InvalidArgument for anything else, and for less than 6 MiB.
    """
    allowed = 'Write a number with a unit, as docker does: "512m", "2g" (b, k, m, g, t; powers of 1024).'
    match = _MEMORY.fullmatch(str(value).strip()) if len(str(value)) <= 40 else None
    if match is None:
        raise InvalidArgument(f"{argument}={str(value)[:40]!r} is not a size.", allowed, argument=argument)
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        raise InvalidArgument(
            f"{argument}={str(value)[:40]!r} is {'less than the least possible, 6m' if size < MIN_MEMORY else 'absurd'}.",
            allowed,
            argument=argument,
        )
    return size


def format_bytes(size: int | float) -> str:
    """A size for people and models: `512 MiB`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def docker_size(size: int) -> str:
    """A size in the notation that `parse_memory` reads, for hints: `512m`."""
    for unit in ("g", "m", "k"):
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits that bind: CPUs in cores, memory in bytes (swap included: none is given), processes and threads."""

    cpus: float
    memory: int
    pids: int

    def host_config(self) -> dict[str, int]:
        """The caps as Docker's HostConfig writes them."""
        return {
            "NanoCpus": round(self.cpus * 1e9),
            "Memory": self.memory,
            "MemorySwap": self.memory,
            "PidsLimit": self.pids,
        }

    def describe(self) -> str:
        return f"{self.cpus:g} CPUs, {format_bytes(self.memory)} memory, {self.pids} processes"


def check_cpus(value: float) -> float:
    """Raises InvalidArgument unless `value` is a sensible number of cores."""
    if not math.isfinite(value) or not 0.01 <= value <= 4096:
        raise InvalidArgument(f"cpus={value:g} is not a number of CPUs.", "Write a number from 0.01, e.g. 1.5.")
    return value


def check_pids(value: int) -> int:
    """Raises InvalidArgument unless `value` is a sensible number of processes."""
    if not 1 <= value <= 1 << 22:
        raise InvalidArgument(
            f"pids_limit={value} is not a number of processes.", "Write a whole number from 1, e.g. 512."
        )
    return value


_IMAGE = re.compile(
    r"(?:(?=[^:/]{1,253}(?::[0-9]+)?/)[A-Za-z0-9.-]+(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{12,64}")


def check_image(value: str) -> str:
    """An image reference as the distribution specification writes it (host/name:tag@digest), or an image id.

    Raises InvalidArgument for anything else.
    """
    if len(value) > 500 or not (_IMAGE.fullmatch(value) or _IMAGE_ID.fullmatch(value)):
        raise InvalidArgument(
            f"{value[:60]!r} is not an image reference.",
            "Write name[:tag], lower case, e.g. localhost/app:1 or python:3.13.",
        )
    return value


def unix_time(written: str) -> float:
    """Seconds since 1970 of an engine's time stamp, which may have nine decimals."""
    return datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]*", r"\1", written)).timestamp()
