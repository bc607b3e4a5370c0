"""The servers and reapers of this user that work on the same files; found in /proc, so on Linux alone."""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions import reaper, sweep
from manyoyo_mcp.sessions.identity import process_start

_GRACE = 30.0
"""Seconds in which a server that is asked to end has removed its sandboxes."""


@dataclass(frozen=True, slots=True)
class Process:
    """One of ours that runs: its kind, its number, when it started (in the kernel's words), its command line."""

    kind: str
    pid: int
    started: str
    words: str

    def end(self) -> None:
        """Ask it to end, and wait for that; nothing where it has ended. Raises OSError where it does not."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.started and process_start(self.pid) == self.started:  # it is the one that was meant
                    signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                    if not select.select([descriptor], [], [], _GRACE)[0]:
                        raise TimeoutError(f"it has not ended within {_GRACE:g} s")
            finally:
                os.close(descriptor)


def running(settings: Settings) -> Iterator[Process]:
    """Those whose files are the ones of these settings; a server comes before its reaper."""
    for pid in sweep.servers(settings):
        yield Process("server", pid, process_start(pid), " ".join(_words(pid)))
    sessions = {path.name for path in (settings.state_dir / "sessions").glob("*")}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        words = _words(pid)
        if words[1:3] == ["-m", reaper.__name__] and reaper.session_of(words[3]) in sessions:
            yield Process("reaper", pid, process_start(pid), " ".join(words[:3]))


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
