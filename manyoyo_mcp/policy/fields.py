"""Checks of single fields that a container has in every dialect: what may stand there is the same."""

import re
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import NAME, Limits, a, matching, off, pairs, text

CAPABILITIES = frozenset(
    {
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
        "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    }
)  # fmt: skip
"""Those that dockerd gives a container unless told otherwise: https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities."""
_SYSCTLS = frozenset(
    {
        "net.core.somaxconn", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range",
        "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_tw_reuse", "net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6",
    }
)  # fmt: skip
"""Of the container's own network namespace (ip-sysctl in the kernel's documentation)."""
ULIMITS = frozenset({"core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "rss", "stack"})
_OUTER_NETWORKS = frozenset({"host", "pasta", "slirp4netns", "ns", "private"})
LOG_DRIVERS = ("", "none", "json-file", "k8s-file", "local")
RESTARTS = ("", "no", "on-failure", "unless-stopped", "always")
TMPFS = re.compile(
    r"(?:(?:rw|ro|exec|noexec|nosuid|nodev|(?:size|mode|uid|gid|nr_inodes|nr_blocks)=[0-9]+[kmgKMG%]?)(?:,(?!$)|$))*"
)
OURS = "org.manyoyo."
"""Labels by which the server tells its own containers: `server-pid` a run's, `keep-alive` a service's that keeps its sandbox,
`secrets` what was given some."""
UNTOLD = {f"{OURS}server-pid": "", f"{OURS}keep-alive": "", f"{OURS}secrets": ""}
"""Said of a container that is not the server's, or its image could say otherwise."""
_KERNELS = re.compile(r"/(?:proc|sys|dev)(?:/(?!shm(?:/|$)).*)?")
NO_PATHS = "Paths would be the outer container's. Use a named volume (-v NAME:/path), docker cp, or COPY in a build."
SOCKETS = frozenset(
    {"/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/var/run/podman/podman.sock"}
)
"""Where an engine's socket is on any host. Mounted into a nested container it is a gate of its sandbox."""
OWN_NAMESPACE = "Leave it out: a nested container has a namespace of its own."


def network(place: str, value: Any) -> Any:
    """A network's name, or another nested container's; nothing that is the outer container's."""
    if not isinstance(value, str) or value in _OUTER_NETWORKS or not re.fullmatch(rf"(container:)?{NAME}|", value):
        raise PolicyRefused(
            f"{place}: network {str(value)[:60]!r} would join a network namespace outside the nested container.",
            'Use "default", "none", a nested network\'s name, or container:NAME.',
        )
    return value


def target(place: str, value: Any) -> Any:
    """Where something is mounted: an absolute path, not over the kernel's own file systems. Podman takes it apart at colons, commas
    and equal signs, as its command line does, and could find a source in it."""
    if re.search(r"[\x00-\x1f\x7f:,\"'=\\]", text(place, value)):
        raise PolicyRefused(f"{place}: {value[:60]!r} is no place to mount at.", "A path without : , = and quotes.")
    path = "/" + "/".join(part for part in value.split("/") if part not in ("", "."))
    if not value.startswith("/") or ".." in value.split("/") or path == "/" or _KERNELS.fullmatch(path):
        raise PolicyRefused(
            f"{place}: {value[:60]!r} is no place to mount at.",
            "An absolute path without '..', not /, /proc, /sys, /dev.",
        )
    return value


def tmpfs(place: str, value: Any) -> Any:
    for where, options in a(dict)(place, value).items():
        if not isinstance(options, str) or not TMPFS.fullmatch(options):
            raise PolicyRefused(
                f"tmpfs {where}:{str(options)[:60]} may not be set.",
                "rw, ro, exec, noexec, nosuid, nodev, size=…, mode=…, uid=…, gid=…",
            )
        target(place, where)
    return value


def capability(place: str, value: Any) -> Any:
    if not isinstance(value, str) or value.upper().removeprefix("CAP_") not in CAPABILITIES:
        raise PolicyRefused(
            f"{place}: the capability {str(value)[:40]!r} is not given.",
            f"Allowed: {', '.join(sorted(CAPABILITIES))}.",
        )
    return value


def sysctls(place: str, value: Any) -> Any:
    for name in pairs(place, value):
        if name not in _SYSCTLS:
            raise PolicyRefused(f"{place}: {name[:60]!r} may not be set.", f"Allowed: {', '.join(sorted(_SYSCTLS))}.")
    return value


NO_PORTS = off(
    "ports are not published",
    "sandbox_endpoint with ports=true asks for an endpoint whose clients may publish; another nested container reaches a service at its address or "
    "name, exec at localhost.",
)
NEVER_DEVICES = off("the host's devices are not given to nested containers", "Leave it out.")
NO_REAL_TIME = off("real time would take CPUs from others", "Leave it out; cpus caps them.")
NO_BLOCK_IO = off("block devices are the host's", "Leave it out.")
host_name = matching(r"[A-Za-z0-9_.-]{1,255}", "a host's name")
mac = matching(r"[0-9a-fA-F:-]{0,20}", "an address")
user = matching(r"[A-Za-z0-9_.$-]{0,100}(:[A-Za-z0-9_.$-]{0,100})?", "a user or USER:GROUP")
group = matching(r"(?!keep-groups$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", "a group")
address = matching(r"[0-9a-fA-F:.]{2,45}", "an address")
resolver_option = matching(r"[A-Za-z0-9_.:-]{1,100}", "a resolver's option")
domain = matching(r"[A-Za-z0-9_.-]{1,255}", "a domain")
extra_host = matching(r"[A-Za-z0-9_.-]{1,255}[:=](\[?[0-9a-fA-F.:]{2,45}\]?|host-gateway)", "NAME:ADDRESS")
volumes_from = matching(rf"{NAME}(:r[ow](,[zZ])?)?", "a container's name")
cpu_set = matching(r"[0-9,-]{0,200}", "numbers of CPUs, as 0-1")


def labels(place: str, value: Any) -> Any:
    """A client's, which have been looked at: none of the server's own, and what those could say is said."""
    if any(name.startswith(OURS) for name in value):
        raise PolicyRefused(f"{place}: what begins with {OURS} is the server's own.", "Leave them out.")
    return value | UNTOLD


def usual_socket(value: Any, own: str, rest: str = "") -> Any:
    """An engine's usual path in place of `own`, before `rest`."""
    if isinstance(value, str) and (value.startswith(own + rest) if rest else value == own):
        return "/var/run/docker.sock" + value.removeprefix(own)
    return value


def given_socket(limits: Limits) -> str:
    """The socket that is mounted in place of an engine's. Raises PolicyRefused where there is none."""
    if not limits.socket:
        raise PolicyRefused(
            "there is no Docker socket that a nested container could have here.",
            "nested_run with docker_socket=true says why, or sandbox_endpoint; a sandbox that is reached through a relay has none.",
        )
    return limits.socket
