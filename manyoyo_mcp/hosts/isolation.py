"""How strong the wall around a sandbox's outer container is. A tier is what was asked for, or an error: never a weaker one."""

from dataclasses import dataclass
from typing import Any

from manyoyo_mcp.errors import InvalidArgument, NotSupported


@dataclass(frozen=True, slots=True)
class Tier:
    """`host_config`: what Docker's API is asked for; `held`: what that holds back; `risk`: what it does not."""

    host_config: dict[str, Any]
    held: str
    risk: str
    engines: frozenset[str] = frozenset({"podman", "docker"})
    """The nested engines that it can be had with, and `why_not` with the others."""
    why_not: str = ""
    trial: tuple[str, ...] = ("/bin/true",)
    """What must succeed in such an outer container, for the doctor: less than the start of a sandbox asks for."""
    owns_store: bool = False
    """What a nested engine stores in this tier is of no use in another: its files have other owners."""

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
        why_not="only dockerd is set up to map the ids of runs, execs and RUN steps alike",
        trial=("/usr/bin/unshare", "--user", "/bin/true"),
        owns_store=True,
    ),
}
ORDER = tuple(TIERS)
"""From the weakest wall to the strongest."""


def check(name: str, engine: str, before: str | None) -> None:
    """Raise NotSupported where the nested engine can't have this tier, or InvalidArgument where the store to start on was made in
    another (`before`) whose files have other owners."""
    tier = TIERS[name]
    if engine not in tier.engines:
        others = ", ".join(other for other in TIERS if engine in TIERS[other].engines)
        raise NotSupported(
            f"isolation {name} can't be had with engine {engine}: {tier.why_not}.",
            f"Start with engine={min(tier.engines)}, or with another isolation ({others}).",
            code="ISOLATION_UNAVAILABLE",
        )
    if before is not None and before != name and (tier.owns_store or TIERS[before].owns_store):
        raise InvalidArgument(
            f"What it begins with was stored with isolation {before}, and {name} could not read it.",
            f"Leave isolation out (it stays {before}), or start a new sandbox.",
        )
