"""How strong the wall around a sandbox's outer container is. A tier is what was asked for, or an error: never a weaker one."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tier:
    """`host_config`: what Docker's API is asked for; `held`: what that holds back; `risk`: what it does not."""

    host_config: dict[str, Any]
    held: str
    risk: str

    def words(self, name: str) -> str:
        return f"{name}. {self.held} {self.risk}"


ORDER = ("privileged", "hardened")
"""From the weakest wall to the strongest."""
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

TIERS = {
    "privileged": Tier(
        {"Privileged": True},
        _NESTED,
        "The outer container itself is privileged and is no wall against code that breaks out of the nested one: it sees the "
        "host's devices.",
    ),
    "hardened": Tier(
        {
            "CapDrop": ["ALL"],
            "CapAdd": list(_CAPABILITIES),
            # The engine does what these would forbid: mounts, namespaces.
            "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
            "MaskedPaths": list(_MASKED),
            "ReadonlyPaths": list(_READ_ONLY),
        },
        f"{_NESTED} The outer container sees no device of the host's, and can load no kernel module, set no clock and start "
        "nothing anew.",
        "It shares the host's kernel and has CAP_SYS_ADMIN: code that breaks out of a nested container may mount, and so change "
        "settings of the kernel that are the host's too.",
    ),
}
