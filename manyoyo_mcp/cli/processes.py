"""The servers and reapers of this user that work on the same files; found in /proc, so on Linux alone."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions import sweep
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
        deadline = time.monotonic() + _GRACE
        if process_start(self.pid) == self.started:
            os.kill(self.pid, signal.SIGTERM)
        while process_start(self.pid) == self.started and not _is_zombie(self.pid):
            if time.monotonic() > deadline:
                raise TimeoutError(f"it has not ended within {_GRACE:g} s")
            time.sleep(0.05)


def running(settings: Settings) -> Iterator[Process]:
    """Those whose files are the ones of these settings; a server comes before its reaper."""
    for pid in sweep.servers(settings):
        yield Process("server", pid, process_start(pid), " ".join(_words(pid)))
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        words = _words(pid)
        if words[1:3] == ["-m", "manyoyo_mcp.sessions.reaper"] and _same_files(pid):
            yield Process("reaper", pid, process_start(pid), " ".join(words[:3]))


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _same_files(pid: int) -> bool:
    """Whether it is this user's and was told of the same state directory as this process, or of none as this one."""
    name = "MANYOYO_STATE_DIR"
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        mine = Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    except OSError:
        return False
    told = next((os.fsdecode(pair.split(b"=", 1)[1]) for pair in pairs if pair.startswith(f"{name}=".encode())), None)
    return mine and told == os.environ.get(name)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (OSError, IndexError):
        return False
