"""One session's part of the log: who it is, what it was asked and what came of that."""

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from manyoyo_mcp import __version__
from manyoyo_mcp.audit.chain import now
from manyoyo_mcp.audit.files import PATIENCE, Busy, Files
from manyoyo_mcp.errors import AuditUnavailable
from manyoyo_mcp.workers import in_thread

_log = logging.getLogger(__name__)

_NOT_AGAIN = 30.0
"""Seconds in which nobody else waits, once one has waited in vain."""

Mode = Literal["required", "optional", "off"]


def directory(state_dir: Path) -> Path:
    """Where an owner's log lies."""
    return state_dir / "audit"


class Journal:
    """`before` is for what is about to be done, `after` for what came of it. Records carry the session's own count, so that an end of the log that
    was cut off while the session went on is seen. `facts` of the session stand in its first record, which comes with the first of the others."""

    def __init__(
        self, files: Files | None, mode: Mode, owner: str, session: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        self._files = files if mode != "off" else None
        self.required = mode == "required"
        self._who = {"owner": owner, "session": session}
        self._facts = facts or {}
        self._count = 0
        self._lost = 0
        self._held = -_NOT_AGAIN
        self._mutex = threading.Lock()

    async def before(self, record: Mapping[str, Any]) -> None:
        """Raises AuditUnavailable where it can't be written, and must be."""
        try:
            await self._note(record)
        except AuditUnavailable as error:
            self._lose(error)
            if self.required:
                raise

    async def after(self, record: Mapping[str, Any]) -> None:
        """Where it can't be written, the next record that can says how many are missing."""
        try:
            await self._note(record)
        except AuditUnavailable as error:
            self._lose(error)

    def before_now(self, record: Mapping[str, Any]) -> None:
        """The same from a thread."""
        try:
            self._write(record, self._patience())
        except AuditUnavailable as error:
            self._lose(error)
            if self.required:
                raise

    def after_now(self, record: Mapping[str, Any]) -> None:
        try:
            self._write(record, self._patience())
        except AuditUnavailable as error:
            self._lose(error)

    def close(self, *, told: bool = True) -> None:
        """The session has ended in order, and that is `told`."""
        if self._files is not None:
            if self._count and told:
                self.after_now({"kind": "session", "event": "ended"})
            self._files.close()

    def _patience(self) -> float:
        return PATIENCE if time.monotonic() - self._held > _NOT_AGAIN else 0.1

    async def _note(self, record: Mapping[str, Any]) -> None:
        """Some thirty microseconds, which is less than a thread takes; unless another process writes just now."""
        try:
            self._write(record, 0)
        except Busy:
            await in_thread(self._write, record, self._patience())

    def _write(self, record: Mapping[str, Any], patience: float) -> None:
        if self._files is None:
            return
        if not self._mutex.acquire(timeout=patience) if patience > 0 else not self._mutex.acquire(blocking=False):
            if patience > 0:
                raise self._held_up()
            raise Busy
        try:
            if not self._count:
                self._append({"kind": "session", "event": "begun", "version": __version__, "pid": os.getpid(), **self._facts}, patience)  # fmt: skip
            if self._lost:
                self._append({"kind": "log", "event": "lost", "records": self._lost}, patience)
                self._lost = 0
            self._append(record, patience)
        except Busy:
            if patience > 0:
                raise self._held_up() from None
            raise
        finally:
            self._mutex.release()

    def _append(self, record: Mapping[str, Any], patience: float) -> None:
        assert self._files is not None
        self._files.append({"at": now(), **self._who, "n": self._count + 1, **record}, patience)
        self._count += 1

    def _held_up(self) -> AuditUnavailable:
        assert self._files is not None
        self._held = time.monotonic()
        return AuditUnavailable(
            f"Another process has held the audit log {self._files.path} for {PATIENCE:g} seconds.",
            "Nothing was done. Try again; if it stays so, a server of yours was stopped in the middle of a write: continue or end it.",
            path=str(self._files.path),
        )

    def _lose(self, error: AuditUnavailable) -> None:
        self._lost += 1
        if self._lost == 1:
            _log.warning("%s", error.message)


def new_id() -> str:
    """Joins what was asked to what came of it."""
    return secrets.token_hex(6)


def since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)
