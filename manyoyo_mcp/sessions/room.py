"""A full disk, explained: what takes most of it."""

from dataclasses import replace
from typing import TypeVar

from manyoyo_mcp.engines.base import Built, Ended
from manyoyo_mcp.errors import DiskFull, ManyoyoError, Reason
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.values import format_bytes

R = TypeVar("R")
_MOST = 5
"""How many of the largest are named."""


async def largest(sandbox: Sandbox) -> str:
    """What takes most of a sandbox's disk, in words; nothing where its engine can't tell."""
    try:
        found = await sandbox.engine.usage()
    except ManyoyoError:
        return ""
    named = ", ".join(f"{each.kind} {sanitise(each.name)[:80]} {format_bytes(each.size)}" for each in found[:_MOST])
    of = f" of {format_bytes(sandbox.disk)}" if sandbox.disk else ""
    return f"Largest{of} in this sandbox: {named}. " if named else ""


async def explain(sandbox: Sandbox, result: R) -> R:
    """A result that says which the largest are, where the disk was full."""
    if isinstance(result, Ended) and result.reason is Reason.DISK_FULL:
        return replace(result, hint=await largest(sandbox) + result.hint)
    if isinstance(result, Built) and result.reason is Reason.DISK_FULL:
        return replace(result, mend=await largest(sandbox) + result.mend)
    return result


async def explained(sandbox: Sandbox, error: DiskFull) -> DiskFull:
    """The same error, with the largest in its hint."""
    return DiskFull(error.message, await largest(sandbox) + error.hint)
