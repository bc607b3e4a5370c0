"""A full disk, explained: what takes most of it."""

from dataclasses import replace
from typing import TypeVar

from manyoyo_mcp.engines.base import Built, Ended
from manyoyo_mcp.engines.failures import SHARED_MEMORY_FULL
from manyoyo_mcp.errors import DiskFull, ManyoyoError, Reason
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.values import format_bytes

R = TypeVar("R")
_OWN = "The rest was this command's own, and goes with it. "
_MOST = 5
"""How many of the largest are named."""


async def explain(sandbox: Sandbox, result: R, *, stays: bool) -> R:
    """A result that says which the largest are, where the disk was full. `stays`: so does what the command wrote."""
    if isinstance(result, Ended) and result.reason is Reason.DISK_FULL and result.hint != SHARED_MEMORY_FULL:
        return replace(result, hint=await _largest(sandbox, None if stays else result.container) + result.hint)
    if isinstance(result, Built) and result.reason is Reason.DISK_FULL:
        return replace(result, mend=await _largest(sandbox, "") + result.mend)
    return result


async def _largest(sandbox: Sandbox, gone: str | None) -> str:
    """`gone`: the container that goes, with what it wrote; empty for what has none."""
    try:
        found = await sandbox.engine.usage(gone or "")
    except ManyoyoError:
        return ""
    named = ", ".join(f"{each.kind} {sanitise(each.name)[:80]} {format_bytes(each.size)}" for each in found[:_MOST])
    of = f" of {format_bytes(sandbox.disk)}" if sandbox.disk else ""
    own = _OWN if gone is not None and sum(each.size for each in found) < (sandbox.disk or 0) / 2 else ""
    return f"Largest{of} in this sandbox: {named or 'nothing'}. {own}"


async def explained(sandbox: Sandbox, error: DiskFull) -> DiskFull:
    """The same error, with the largest in its hint."""
    return DiskFull(error.message, await _largest(sandbox, None) + error.hint)
