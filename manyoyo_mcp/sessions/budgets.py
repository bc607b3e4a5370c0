"""What all sandboxes of a host, and all of one owner, may have together; and the queue of those for whom there is no room now.

What is taken is read from the host: the labels of the containers and volumes that there are. What this owner's servers are about
to take lies in files beside, each locked by its process, so that it counts no longer when that has died.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from filelock import FileLock, Timeout

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import BudgetExceeded
from manyoyo_mcp.hosts.base import Claim, Host, HostInfo
from manyoyo_mcp.image.outer import Progress, no_progress
from manyoyo_mcp.sessions.identity import principal_of
from manyoyo_mcp.sessions.names import locked
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import in_thread

_INTERVAL = 0.5
"""Seconds between looks whether there is room now."""
_LEAST_SANDBOX = 128 << 20
"""Memory, in bytes, of a host for each sandbox that it may have, where nobody said how many: an idle one takes a tenth of it."""
_CPUS, _MEMORY, _DISK = 64, 16, 64
"""By how much the caps of all sandboxes together may exceed what the host has, where nobody said: most are idle most of the time."""


_WAIT = (
    'cleanup what is not needed (scope="mine": of other sessions too), ask for less, or have start_sandbox wait in the queue '
    "(wait_s). "
)
_OPERATOR = "The operator can raise it: MANYOYO_HOST_… and MANYOYO_OWNER_SANDBOXES, _CPUS, _MEMORY, _DISK."


@dataclass(frozen=True, slots=True)
class Amount:
    """Sandboxes, CPUs, and bytes of memory and disk."""

    sandboxes: int = 0
    cpus: float = 0.0
    memory: int = 0
    disk: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            self.sandboxes + other.sandboxes,
            self.cpus + other.cpus,
            self.memory + other.memory,
            self.disk + other.disk,
        )

    def over(self, budget: "Amount") -> str | None:
        """What of this exceeds a budget, in words; None where nothing does."""
        if self.sandboxes > budget.sandboxes:
            return f"{self.sandboxes} sandboxes, of {budget.sandboxes}"
        if self.cpus > budget.cpus:
            return f"{self.cpus:g} CPUs, of {budget.cpus:g}"
        if self.memory > budget.memory:
            return f"{format_bytes(self.memory)} of memory, of {format_bytes(budget.memory)}"
        if budget.disk and self.disk > budget.disk:
            return f"{format_bytes(self.disk)} of disk, of {format_bytes(budget.disk)}"
        return None


def budgets(settings: Settings, info: HostInfo, disk: int) -> tuple[Amount, Amount]:
    """The host's and each owner's: as configured, else by the machine's size. `disk`: bytes in its pool, 0 without one."""
    host = Amount(
        settings.host_sandboxes or max(16, info.memory // _LEAST_SANDBOX),
        settings.host_cpus or info.cpus * _CPUS,
        settings.host_memory or info.memory * _MEMORY,
        settings.host_disk or disk * _DISK,
    )
    owner = Amount(
        settings.owner_sandboxes or host.sandboxes,
        settings.owner_cpus or host.cpus,
        settings.owner_memory or host.memory,
        settings.owner_disk or host.disk,
    )
    return host, owner


def forget_dead(settings: Settings) -> None:
    """Remove what processes that died left of their places and reservations: it counts no longer."""
    for path in (*settings.lock_dir.glob("queue*"), settings.lock_dir / "reserved"):
        _Tickets(path).ahead_of(None)


def _queue(owner: str) -> str:
    """Each principal's queue is its own: one that waits for room in its own budget is not to keep others waiting."""
    return f"queue-{hashlib.sha256(owner.encode()).hexdigest()[:16]}" if principal_of(owner) else "queue"


def taken(claims: list[Claim], owner: str | None = None) -> Amount:
    """What these claims come to; of one owner's alone, where one is named."""
    total = Amount()
    for claim in claims:
        if owner in (None, claim.owner):
            total += Amount(int(claim.running), claim.cpus, claim.memory, claim.disk)
    return total


class Budgets:
    """One session's way to room on its host. `disk`: bytes in the host's pool."""

    def __init__(self, settings: Settings, host: Host, owner: str) -> None:
        self._settings = settings
        self._host = host
        self._owner = owner
        self._grown: dict[str, contextlib.ExitStack] = {}

    def count(self, sandbox_id: str, extra: Amount) -> None:
        """A live sandbox takes so much more than its labels say, which can't change: until `forget`, or this process's end."""
        held = contextlib.ExitStack()
        if extra != Amount():
            held.enter_context(self._reserved().take({"sandbox": sandbox_id, **self._asked(extra)}))
        self.forget(sandbox_id)
        self._grown[sandbox_id] = held

    def forget(self, sandbox_id: str) -> None:
        """What `count` was told of a sandbox counts no longer."""
        if (held := self._grown.pop(sandbox_id, None)) is not None:
            held.close()

    def disk_of(self, named: str) -> int | None:
        """The cap, in bytes, that the disk of a named sandbox was given after it was made: its volume's label can't change."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._disks() / named).read_text())
        return None

    def note_disk(self, named: str, disk: int | None) -> None:
        """Remember it, whether the sandbox runs or not; None forgets it."""
        path = self._disks() / named
        if disk is None:
            path.unlink(missing_ok=True)
        elif disk != self.disk_of(named):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_suffix(f".{os.getpid()}")
            new.write_text(str(disk))
            new.replace(path)

    def _disks(self) -> Path:
        return self._settings.state_dir / "disks"

    @contextlib.contextmanager
    def place(self, wait_s: float, progress: Progress) -> Iterator["Place"]:
        """A place in the queue, for as long as it is needed; `wait_s`: seconds."""
        with contextlib.ExitStack() as held:
            yield Place(_Tickets(self._settings.lock_dir / _queue(self._owner)), wait_s, progress, held)

    @contextlib.asynccontextmanager
    async def room(self, sandbox_id: str, need: Amount, disk: int, place: "Place | None") -> AsyncIterator[None]:
        """There is room for `need` within; by its end the sandbox is there, and counts itself. `place` is None for what is
        there already and wants more: it gives way to nobody who waits.

        Raises NoRoomNow; BudgetExceeded where there never will be room.
        """
        host, owner = budgets(self._settings, await self._host.info(), disk)
        for whose, budget in (("This host's", host), ("Your", owner)):
            words = need.over(budget)
            if words is not None:
                raise BudgetExceeded(f"{whose} budget can't hold it: {words}.", "Ask for less. " + _OPERATOR)
        with contextlib.ExitStack() as held:
            async with locked(self._settings.lock_dir, "budget", no_progress):
                ahead = 0 if place is None else await place.ahead()
                words = await self._lacking(sandbox_id, need, host, owner)
                if words is not None or ahead:
                    raise NoRoomNow(words or f"{ahead} others wait for room already.", _WAIT + _OPERATOR)
                held.enter_context(self._reserved().take(self._asked(need)))
            if place is not None:
                place.leave()
            yield

    def _asked(self, amount: Amount) -> dict[str, Any]:
        return {"owner": self._owner, **dataclasses.asdict(amount)}

    def coming(self, sandbox_id: str, need: Amount, owner: str | None = None) -> Amount:
        """What a sandbox needs, with all else that no label of the host's says (yet); of one owner's alone, where one is named."""
        grown: dict[str, Amount] = {}  # by sandbox: several servers may have counted the same one
        for content in self._reserved().live():
            counted = content.pop("sandbox", None)
            if owner not in (None, content.pop("owner", owner)):
                continue
            if counted is None:
                need += Amount(**content)
            elif counted != sandbox_id:
                grown[counted] = Amount(**content)
        return sum(grown.values(), need)

    def _reserved(self) -> "_Tickets":
        return _Tickets(self._settings.lock_dir / "reserved")

    async def _lacking(self, sandbox_id: str, need: Amount, host: Amount, owner: Amount) -> str | None:
        claims = [
            dataclasses.replace(claim, disk=self.disk_of(claim.sandbox_id) or claim.disk)
            for claim in await self._host.claims()
            if claim.sandbox_id != sandbox_id
        ]
        for whose, budget, name in (("This host's", host, None), ("Your", owner, self._owner)):
            coming = await in_thread(self.coming, sandbox_id, need, name)
            words = (taken(claims, name) + coming).over(budget)
            if words is not None:
                return f"{whose} budget has no room now: with it, it would be {words}."
        return None


class NoRoomNow(BudgetExceeded):
    """There may be some later."""


class Place:
    """A place in the queue: that of who came and found no room."""

    def __init__(self, queue: "_Tickets", wait_s: float, progress: Progress, held: contextlib.ExitStack) -> None:
        self._queue = queue
        self._wait_s = wait_s
        self._end = time.monotonic() + wait_s
        self._progress = progress
        self._held = held
        self._ticket: Path | None = None

    async def ahead(self) -> int:
        """How many come first."""
        return await in_thread(self._queue.ahead_of, self._ticket)

    async def wait(self, refused: NoRoomNow) -> None:
        """In the queue, a little while; then it is worth another try. Raises BudgetExceeded where the time is up."""
        if time.monotonic() >= self._end:
            waited = f" There was none within {self._wait_s:g} s." if self._ticket is not None else ""
            raise BudgetExceeded(refused.message + waited, refused.hint)
        self._ticket = self._ticket or self._held.enter_context(self._queue.take({}))
        self._progress(0, None, f"waiting for room: {await self.ahead() + 1}. in the queue; {refused.message}")
        await anyio.sleep(_INTERVAL)

    def leave(self) -> None:
        """There is room; the next may try."""
        self._held.close()
        self._ticket = None


class _Tickets:
    """Files that count as long as the process that made them lives: it holds a lock on each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[Path, FileLock] = {}

    @contextlib.contextmanager
    def take(self, content: dict[str, Any]) -> Iterator[Path]:
        """A ticket of now, with this content, until the end of the context or `drop`."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{time.time_ns():020}-{secrets.token_hex(4)}"
        lock = FileLock(path.with_suffix(".lock"), thread_local=False)
        lock.acquire()
        self._held[path] = lock
        path.write_text(json.dumps(content))
        try:
            yield path
        finally:
            self.drop(path)

    def drop(self, path: Path) -> None:
        """Give a ticket back; once is enough."""
        lock = self._held.pop(path, None)
        if lock is not None:
            path.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def ahead_of(self, mine: Path | None) -> int:
        """How many are older; all of them where there is none of ours."""
        return sum(mine is None or path < mine for path in self._alive())

    def live(self) -> Iterator[dict[str, Any]]:
        for path in self._alive():
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(path.read_text())

    def _alive(self) -> Iterator[Path]:
        """Those whose process lives; what others left is removed."""
        for path in sorted(self._directory.glob("*-????????")):
            if path in self._held:
                yield path
                continue
            lock = FileLock(path.with_suffix(".lock"), thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                yield path
            else:
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
                lock.release()
