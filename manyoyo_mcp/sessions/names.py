"""What an owner gives names to: sandboxes that outlive their server, and checkpoints. Locks on them die with their holder."""

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
from filelock import FileLock, Timeout

from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.hosts.base import Store
from manyoyo_mcp.image.outer import Progress
from manyoyo_mcp.workers import in_thread

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_INTERVAL = 0.05
"""Seconds between tries to take a lock that another process has."""


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and not name.startswith("sb-")


def check_name(name: str) -> str:
    """Raises InvalidArgument for what is no name."""
    if not is_name(name):
        raise InvalidArgument(
            f"{name[:70]!r} is not a name.",
            "Lower-case letters, digits, _ . -, at most 63, first a letter or digit; not sb-, which ids begin with.",
        )
    return name


def sandbox_id(owner: str, name: str) -> str:
    """The id of the sandbox that an owner calls so: always the same, and no other owner's."""
    return f"sb-{_digest(owner, name)}"


def checkpoint_store(owner: str, name: str) -> str:
    """The store of the checkpoint that an owner calls so."""
    return f"manyoyo-cp-{_digest(owner, name)}"


def _digest(owner: str, name: str) -> str:
    return hashlib.sha256(f"{owner}\0{name}".encode()).hexdigest()[:16]


def is_named(store: Store) -> bool:
    return store.labels.get("kind") == "sandbox" and "name" in store.labels


def is_checkpoint(store: Store) -> bool:
    return store.labels.get("kind") == "checkpoint"


@contextlib.asynccontextmanager
async def locked(directory: Path, what: str, progress: Progress) -> AsyncIterator[None]:
    """Nobody else of this owner starts, stops, copies or removes `what` meanwhile. The kernel lets go of it where its holder
    dies."""
    await in_thread(directory.mkdir, mode=0o700, parents=True, exist_ok=True)
    lock: Any = FileLock(directory / f"{what}.lock", thread_local=False)
    while True:
        try:
            await in_thread(lock.acquire, blocking=False)
            break
        except Timeout:
            progress(0, None, "waiting for another session that starts, stops or copies it")
            await anyio.sleep(_INTERVAL)
    try:
        yield
    finally:
        lock.release()
