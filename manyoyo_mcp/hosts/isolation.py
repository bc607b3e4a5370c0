"""How strong the wall around a sandbox's outer container is. A tier is what was asked for, or an error: never a weaker one."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from manyoyo_mcp.config import EngineName, Settings
from manyoyo_mcp.errors import InvalidArgument, NotSupported


@dataclass(frozen=True, slots=True)
class Tier:
    """`host_config`: what Docker's API is asked for; `held`: what that holds back; `risk`: what it does not."""

    host_config: dict[str, Any]
    held: str
    risk: str
    engines: frozenset[EngineName] = frozenset[EngineName](("podman", "docker"))
    """The nested engines that it can be had with, and `why_not` with the others."""
    why_not: str = ""
    trial: tuple[str, ...] = ("/bin/true",)
    """What must succeed in such an outer container, for the doctor: less than the start of a sandbox asks for."""
    owns_store: bool = False
    """What a nested engine stores in this tier is of no use in another: its files have other owners."""
    socket_inside: bool = True
    """Nested containers can be given a Docker socket: those who run in them may connect to one of the server's user's."""
    on_host: bool = False
    """There is no nested engine: what is run are containers of the host's own, and the outer container is their keeper (`hosts.beside`)."""

    def words(self, name: str) -> str:
        return f"{name}. {self.held} {self.risk}"


_NESTED = "Nested containers are held by the nested engine's namespaces, capabilities and policy."
_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "KILL", "MKNOD", "NET_ADMIN",
    "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE",
)  # fmt: skip
"""What a nested engine needs: mounts, namespaces, devices of a container's own, networks, a firewall, the kernel's record."""
_MASKED = (
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
)
_READ_ONLY = (
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger", "/proc/sys/dev", "/proc/sys/fs", "/proc/sys/kernel", "/proc/sys/vm",
)  # fmt: skip
"""As Docker has them for any container, but that settings of networks are the engine's to make. Whoever may mount can undo it."""

_HARDENED: dict[str, Any] = {
    "CapDrop": ["ALL"],
    "CapAdd": list(_CAPABILITIES),
    # The engine does what these would forbid: mounts, namespaces.
    "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
    "MaskedPaths": list(_MASKED),
    "ReadonlyPaths": list(_READ_ONLY),
}

_FUSE: dict[str, Any] = {
    "Devices": [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"}]
}
"""Podman's layers are laid over one another through it, where podman has no rights: the kernel's own way would lose what it marks."""
_KEEPERS = ("DAC_OVERRIDE", "KILL", "NET_ADMIN", "SETGID", "SETUID", "SYSLOG", "SYS_PTRACE")
"""What a keeper needs, which is no engine (`hosts.beside`)."""

TIERS = {
    "privileged": Tier(
        {"Privileged": True},
        _NESTED,
        "The outer container itself is privileged and is no wall against code that breaks out of the nested one: it sees the "
        "host's devices.",
    ),
    "hardened": Tier(
        _HARDENED,
        f"{_NESTED} The outer container sees no device of the host's, and can load no kernel module, set no clock and start "
        "nothing anew.",
        "It shares the host's kernel and has CAP_SYS_ADMIN: code that breaks out of a nested container may mount, and so change "
        "settings of the kernel that are the host's too.",
    ),
    "userns": Tier(
        _HARDENED,
        "Root in a nested container, run, exec or RUN step, is an id that nobody has outside it, and holds no capability there. The "
        "outer container is a hardened one: it sees no device of the host's.",
        "It shares the host's kernel. All nested containers have the same ids: root of one is root's equal in another. Code that "
        "takes over the nested engine itself has CAP_SYS_ADMIN of the outer container.",
        engines=frozenset({"docker"}),
        why_not="only dockerd is set up to map the ids of runs, execs and RUN steps alike; of podman the isolation rootless maps all",
        trial=("/usr/bin/unshare", "--user", "/bin/true"),
        owns_store=True,
    ),
    "rootless": Tier(
        _HARDENED | _FUSE | {"SecurityOpt": [*_HARDENED["SecurityOpt"], "no-new-privileges"]},
        "The nested engine and all that it runs are in a user namespace: root there is an id that nobody has outside, and holds no "
        "capability there. No process gains rights by a program that it starts. The outer container is a hardened one: it sees no "
        "device of the host's but /dev/fuse.",
        "It shares the host's kernel. All nested containers have the same ids, which are the engine's too: root of one is root's equal "
        "in another. Programs with the setuid bit (sudo, su) gain nothing.",
        engines=frozenset({"podman"}),
        why_not="only podman is set up to run as nobody",
        trial=("/usr/bin/unshare", "--user", "/bin/true"),
        owns_store=True,
        socket_inside=False,
    ),
    "gvisor": Tier(
        _HARDENED,
        "Code in a nested run, exec or RUN step faces gVisor, a kernel of its own in a process, and not the host's. The outer "
        "container is a hardened one: it sees no device of the host's.",
        "gVisor itself runs on the host's kernel, with few of its calls; the sockets of what is nested are the host's kernel's. A "
        "memory cap that is hit ends the whole nested container.",
        engines=frozenset({"podman"}),
        why_not="only podman is set up to have gVisor for runs, execs and RUN steps alike",
        trial=("/usr/bin/runsc", "--version"),
    ),
    "common": Tier(
        # It holds the network and its rules, knows whose processes are whose, and reads the kernel's record of what was killed.
        {"CapDrop": ["ALL"], "CapAdd": list(_KEEPERS), "PidMode": "host"},
        "There is no engine of its own: a run is a plain container of the host's engine, with the sandbox's label, in which nothing is "
        "privileged or mounted. The tools see, enter and remove what has that label, and run the images that the operator named.",
        "Code in a run faces the host's kernel as root in an ordinary container; the host's engine itself takes it in, and reads and writes its "
        "files. Disk is not capped: what a run writes lies on the host's.",
        engines=frozenset({"docker"}),
        why_not="the host's engine is asked in Docker's way",
        on_host=True,
    ),
    "sock": Tier(
        {"CapDrop": ["ALL"], "CapAdd": list(_KEEPERS), "PidMode": "host"},
        "There is no engine of its own: runs and builds are the host's own engine's, within the sandbox's label. A run is what it is in isolation common, and "
        "so is each RUN step of a build. The tools see, enter and remove what has that label.",
        "THIS IS THE HOST'S OWN ENGINE. Code in a run or step faces the host's kernel as root in an ordinary container; the engine reads the contexts, "
        "Dockerfiles and images that it is given as root of the host, beside everybody else's. Disk is not capped.",
        engines=frozenset({"docker"}),
        why_not="the host's engine is asked in Docker's way",
        on_host=True,
    ),
}
_ORDER = tuple(name for name, each in TIERS.items() if not each.on_host)
"""From the weakest wall to the strongest, of those that are walls of a sandbox's own."""
ON_HOST = frozenset(TIERS) - frozenset(_ORDER)

RUNTIME = "runtime:"
"""Begins the name of a tier that is an OCI runtime of the host's."""
_UNTRIED = "This runtime was not tried by those who made this; the cap probe and the contract suite tell."
_RUNTIMES: tuple[tuple[str, dict[str, Any], str, bool], ...] = (
    # sysbox gives an unprivileged container what an engine in it needs, its own user namespace first.
    ("sysbox", {}, "The outer container has a user namespace of its own: root in it is nobody on the host.", True),
    # A virtual machine, in whose kernel the engine needs what it needs in the host's.
    ("kata|krun|crun-vm|io.containerd.kata|io.containerd.krun", _HARDENED,
     "The outer container is a virtual machine with a kernel of its own.", False),
    # gVisor's capabilities are its own kernel's.
    ("runsc|gvisor|io.containerd.runsc", {"CapAdd": ["ALL"]},
     "The outer container faces gVisor and not the host's kernel.", False),
    ("", _HARDENED, f"The outer container is a hardened one. {_NESTED}", False),
)  # fmt: skip
"""How the names of runtimes begin, what Docker's API is asked for beside such a one, what it holds, and whether it moves the owners of
a store's files."""


def tier(name: str) -> Tier:
    """What there is by the name of a tier, or by `runtime:NAME`."""
    if not name.startswith(RUNTIME):
        return TIERS[name]
    runtime = name.removeprefix(RUNTIME)
    _, flags, held, owns_store = next(each for each in _RUNTIMES if re.match(each[0], runtime))
    return Tier(flags | {"Runtime": runtime}, held, _UNTRIED, owns_store=owns_store)


def engine_of(name: str, settings: Settings) -> EngineName:
    """The nested engine where nobody names one: the configured one; where none is, and the tier can't have the default, one that it can have."""
    possible = tier(name).engines
    return settings.engine if settings.engine in possible or "engine" in settings.model_fields_set else min(possible)


def host_config(name: str, host_runtime: str | None) -> dict[str, Any]:
    """What Docker's API is asked for, for an outer container of a tier; `host_runtime`: the one for tiers that are none themselves."""
    return ({"Runtime": host_runtime} if host_runtime and name not in ON_HOST else {}) | tier(name).host_config


def weaker(name: str, configured: str) -> bool:
    """Whether a tier may be a weaker wall than the one that is configured. How strong another runtime's is, nobody here can know: it is
    not weaker than the weakest."""
    if name == configured:
        return False
    if name in ON_HOST or configured in ON_HOST:
        return name == "sock" or (name in ON_HOST and configured not in ON_HOST)
    if name in _ORDER and configured in _ORDER:
        return _ORDER.index(name) < _ORDER.index(configured)
    return configured != _ORDER[0]


def check_registered(name: str, runtimes: Collection[str]) -> None:
    """Raise NotSupported where a tier is a runtime that the host's engine, which has `runtimes`, does not have. A shim of containerd's is not
    listed there, from Docker 23.0 on: the engine itself says no to one that is missing."""
    runtime = name.removeprefix(RUNTIME)
    if name.startswith(RUNTIME) and runtime not in runtimes and not runtime.startswith("io.containerd."):
        raise NotSupported(
            f"isolation {name} can't be had: the host's engine has no OCI runtime {runtime!r}. It has: "
            f"{', '.join(sorted(runtimes)) or 'none that it tells of'}.",
            f"Register it there (dockerd --add-runtime {runtime}=PATH), name one that it has, or take another isolation "
            f"({', '.join(TIERS)}).",
            code="ISOLATION_UNAVAILABLE",
        )


def check(name: str, engine: str, before: str | None) -> None:
    """Raise NotSupported where the nested engine can't have this tier, or InvalidArgument where the store to start on was made in
    another (`before`) whose files have other owners."""
    asked = tier(name)
    if engine not in asked.engines:
        others = ", ".join(other for other in TIERS if engine in TIERS[other].engines)
        raise NotSupported(
            f"isolation {name} can't be had with engine {engine}: {asked.why_not}.",
            f"Start with engine={min(asked.engines)}, or with another isolation ({others}).",
            code="ISOLATION_UNAVAILABLE",
        )
    if before is not None and before != name and (asked.owns_store or tier(before).owns_store):
        raise InvalidArgument(
            f"What it begins with was stored with isolation {before}, and {name} could not read it.",
            f"Leave isolation out (it stays {before}), or start a new sandbox.",
        )


def check_keeps(name: str, what: str) -> None:
    """Raise NotSupported where a sandbox of this tier has nothing of its own that `what` could keep."""
    if name in ON_HOST:
        raise NotSupported(
            f"{what} can't be had with isolation {name}: such a sandbox has no store of its own.",
            f"Take another isolation ({', '.join(_ORDER)}), or do without.",
            code="NOTHING_KEPT",
        )
