"""Whose a sandbox is: the owner, this session, and the process that answers for it; all as labels."""

import contextlib
import getpass
import hashlib
import os
import re
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path

_PID = re.compile(r"[0-9]{1,10}")


def _machine() -> str:
    """A name for this machine that is the same after a reboot and says nothing about it."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            told = Path(path).read_bytes()
            if told.strip() not in (b"", b"uninitialized"):  # as in images: machine-id(5)
                return hashlib.sha256(b"manyoyo" + told).hexdigest()[:12]
    import platform

    return hashlib.sha256(b"manyoyo" + platform.node().encode()).hexdigest()[:12]


def boot_id() -> str:
    """This boot of this machine, where the kernel tells (Linux); otherwise the empty string."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """When `pid` started, in clock ticks since boot (proc(5), stat field 22), or "" where it does not run or can't be asked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def pid_namespace() -> str:
    """What the kernel calls the namespace that process ids are counted in here (Linux); otherwise the empty string."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def owner(principal: str = "") -> str:
    """The operating-system user on this machine: whose sandboxes may be seen and removed. Each principal of a server that has
    several is an owner of its own."""
    uid = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return f"{uid}@{_machine()}" + (f"/{principal}" if principal else "")


def principal_of(whose: str) -> str:
    """The principal that an owner is; "" where it is the user itself."""
    return whose.partition("/")[2]


def owner_labels(whose: str) -> dict[str, str]:
    """What tells an owner's things: a principal's also name the user whose server it calls, who clears up after it."""
    return {"owner": whose} | ({"user": whose.partition("/")[0]} if principal_of(whose) else {})


@dataclass(frozen=True, slots=True)
class Identity:
    """This process as the one that answers for a session's sandboxes."""

    owner: str = field(default_factory=owner)
    session: str = field(default_factory=lambda: secrets.token_hex(8))
    pid: int = field(default_factory=os.getpid)
    boot: str = field(default_factory=boot_id)

    def labels(self) -> dict[str, str]:
        return {
            **owner_labels(self.owner),
            "session": self.session,
            "server-pid": str(self.pid),
            "server-start": process_start(self.pid),
            "server-boot": self.boot,
            "server-pid-namespace": pid_namespace(),
        }


def can_be_seen(labels: dict[str, str]) -> bool:
    """Whether it can be told from here if the server process that these labels name still runs: not on another system than Linux, nor
    of one in another container."""
    if sys.platform != "linux" or not _PID.fullmatch(labels.get("server-pid", "")):
        return False
    here = pid_namespace()
    return labels.get("server-boot") != boot_id() or labels.get("server-pid-namespace", here) == here


def answers_for(labels: dict[str, str]) -> bool:
    """Whether the server process that these labels name still runs. Where that can't be told, yes."""
    if not can_be_seen(labels):
        return True
    if labels.get("server-boot") != boot_id():
        return False
    start = process_start(int(labels["server-pid"]))
    return start != "" and start == labels.get("server-start")
