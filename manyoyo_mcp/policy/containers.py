"""What may be asked of a container: made, changed, entered. Docker's Engine API, up to v1.45."""

import re
from collections.abc import Mapping
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import (
    NAME,
    Allowed,
    Check,
    Limits,
    Request,
    a,
    check_largest,
    environment,
    list_of,
    matching,
    named,
    off,
    one_of,
    only,
    pairs,
    reference,
    table_of,
    text,
    texts,
    unsent,
    words,
)
from manyoyo_mcp.values import Caps

_CAPABILITIES = frozenset(
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
_ULIMITS = frozenset({"core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "rss", "stack"})
_OUTER_NETWORKS = frozenset({"host", "pasta", "slirp4netns", "ns", "private"})
_LOG_DRIVERS = ("", "none", "json-file", "k8s-file", "local")
_RESTARTS = ("", "no", "on-failure", "unless-stopped", "always")
TMPFS = re.compile(
    r"(?:(?:rw|ro|exec|noexec|nosuid|nodev|(?:size|mode|uid|gid|nr_inodes|nr_blocks)=[0-9]+[kmgKMG%]?)(?:,(?!$)|$))*"
)
_OURS = "org.manyoyo."
"""Labels by which the server tells its own containers: `server-pid` a run's, `keep-alive` a service's that keeps its sandbox."""
_UNTOLD = {f"{_OURS}server-pid": "", f"{_OURS}keep-alive": ""}
"""Said of a container that is not the server's, or its image could say otherwise."""
_KERNELS = re.compile(r"/(?:proc|sys|dev)(?:/(?!shm(?:/|$)).*)?")
_VOLUME = re.compile(rf"({NAME}):(/[^:]*)(?::([a-zA-Z,]*))?")
_VOLUME_OPTIONS = frozenset({"", "ro", "rw", "nocopy", "z", "Z"})
_HOST, _MAC = r"[A-Za-z0-9_.-]{1,255}", r"[0-9a-fA-F:-]{0,20}"
_USER = r"[A-Za-z0-9_.$-]{0,100}(:[A-Za-z0-9_.$-]{0,100})?"
_NO_PATHS = "Paths would be the outer container's. Use a named volume (-v NAME:/path), docker cp, or COPY in a build."
_OWN_NAMESPACE = "Leave it out: a nested container has a namespace of its own."


def network(place: str, value: Any) -> Any:
    """A network's name, or another nested container's; nothing that is the outer container's."""
    if not isinstance(value, str) or value in _OUTER_NETWORKS or not re.fullmatch(rf"(container:)?{NAME}|", value):
        raise PolicyRefused(
            f"{place}: network {str(value)[:60]!r} would join a network namespace outside the nested container.",
            'Use "default", "none", a nested network\'s name, or container:NAME.',
        )
    return value


def _joined(*own: str) -> Check:
    """A namespace of its own (in these words) or another nested container's."""
    return matching(rf"|{'|'.join(own)}|container:{NAME}", f"{', '.join(own)}, container:NAME")


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


def _bind(place: str, value: Any) -> Any:
    found = _VOLUME.fullmatch(text(place, value))
    if not found or not set((found[3] or "").split(",")) <= _VOLUME_OPTIONS:
        raise PolicyRefused(f"{place}: {value[:60]!r} is no named volume.", _NO_PATHS)
    target(place, found[2])
    return value


_DRIVER: dict[str, Check] = {
    "Name": one_of("", "local"),
    "Options": off("a volume's driver may mount what it likes", _NO_PATHS),
}
_VOLUME_MOUNT: dict[str, Check] = {
    "NoCopy": a(bool),
    "Labels": off("podman reads options in them", "Create the volume first, with its labels."),
    "DriverConfig": table_of(_DRIVER),
    "Subpath": off("a link in it could lead out", "Mount the whole volume."),
}
_MOUNT: dict[str, Check] = {
    "Type": one_of("volume", "tmpfs"),
    "Source": matching(rf"|{NAME}", "a volume's name"),
    "Target": target,
    "ReadOnly": a(bool),
    "Consistency": one_of("", "default", "consistent", "cached", "delegated"),
    "BindOptions": off("paths are not mounted", _NO_PATHS),
    "VolumeOptions": table_of(_VOLUME_MOUNT),
    "TmpfsOptions": table_of({"SizeBytes": a(int), "Mode": a(int)}),
    "ClusterOptions": off("there is no cluster", "Leave it out."),
    "ImageOptions": off("images are not mounted", "Run the image."),
}


def _mount(place: str, value: Any) -> Any:
    if isinstance(value, dict) and value.get("Type") == "bind":
        raise PolicyRefused(f"{place}: {str(value.get('Source'))[:60]!r} may not be mounted.", _NO_PATHS)
    kept = only(place, a(dict)(place, value), _MOUNT)
    if not {"Type", "Target"} <= kept.keys():
        raise PolicyRefused(f"{place} has no type, or no target.", "Say type=volume or type=tmpfs, and target=/path.")
    return kept


def _tmpfs(place: str, value: Any) -> Any:
    for where, options in a(dict)(place, value).items():
        if not isinstance(options, str) or not TMPFS.fullmatch(options):
            raise PolicyRefused(
                f"tmpfs {where}:{str(options)[:60]} may not be set.",
                "rw, ro, exec, noexec, nosuid, nodev, size=…, mode=…, uid=…, gid=…",
            )
        target(place, where)
    return value


def _ulimit(place: str, value: Any) -> Any:
    kept = only(place, a(dict)(place, value), {"Name": one_of(*sorted(_ULIMITS)), "Soft": a(int), "Hard": a(int)})
    if "Name" not in kept:
        raise PolicyRefused(f"{place} has no name.", f"Allowed: {', '.join(sorted(_ULIMITS))}.")
    return kept


def _capability(place: str, value: Any) -> Any:
    if not isinstance(value, str) or value.upper().removeprefix("CAP_") not in _CAPABILITIES:
        raise PolicyRefused(
            f"{place}: the capability {str(value)[:40]!r} is not given.",
            f"Allowed: {', '.join(sorted(_CAPABILITIES))}.",
        )
    return value


def _sysctls(place: str, value: Any) -> Any:
    for name in pairs(place, value):
        if name not in _SYSCTLS:
            raise PolicyRefused(f"{place}: {name[:60]!r} may not be set.", f"Allowed: {', '.join(sorted(_SYSCTLS))}.")
    return value


_NEVER_DEVICES = off("the host's devices are not given to nested containers", "Leave it out.")
_NO_REAL_TIME = off("real time would take CPUs from others", "Leave it out; cpus caps them.")
_NO_BLOCK_IO = off("block devices are the host's", "Leave it out.")
_WINDOWS = off("it is for Windows", "Leave it out.")
_PORTS = off(
    "ports are not published",
    "Another nested container reaches a service at its address or name, exec at localhost.",
)
_MEMORY: dict[str, Check] = {
    "Memory": a(int),
    "MemorySwap": a(int),
    "MemoryReservation": a(int),
    "MemorySwappiness": unsent,
    "KernelMemory": off("kernels count it with the rest", "Leave it out."),
    "KernelMemoryTCP": off("kernels count it with the rest", "Leave it out."),
    "OomKillDisable": off("what exceeds its cap is killed", "Leave it out."),
    "NanoCpus": a(int),
    "CpuShares": a(int),
    "CpuPeriod": a(int),
    "CpuQuota": a(int),
    "CpusetCpus": matching(r"[0-9,-]{0,200}", "numbers of CPUs, as 0-1"),
    "CpusetMems": matching(r"[0-9,-]{0,200}", "numbers of memory nodes, as 0"),
    "CpuRealtimePeriod": _NO_REAL_TIME,
    "CpuRealtimeRuntime": _NO_REAL_TIME,
    "CpuCount": _WINDOWS,
    "CpuPercent": _WINDOWS,
    "IOMaximumIOps": _WINDOWS,
    "IOMaximumBandwidth": _WINDOWS,
    "PidsLimit": a(int),
    "BlkioWeight": _NO_BLOCK_IO,
    "BlkioWeightDevice": _NO_BLOCK_IO,
    "BlkioDeviceReadBps": _NO_BLOCK_IO,
    "BlkioDeviceWriteBps": _NO_BLOCK_IO,
    "BlkioDeviceReadIOps": _NO_BLOCK_IO,
    "BlkioDeviceWriteIOps": _NO_BLOCK_IO,
}
_RESTART: dict[str, Check] = {"Name": one_of(*_RESTARTS), "MaximumRetryCount": a(int)}
_LOG: dict[str, Check] = {"Type": one_of(*_LOG_DRIVERS), "Config": table_of({"max-size": text, "max-file": text})}
"""No path among a log driver's options: it would be one in the outer container."""
_HOST_CONFIG: dict[str, Check] = _MEMORY | {
    "Annotations": off("OCI runtimes take annotations for orders", "Use labels."),
    "AutoRemove": a(bool),
    "Binds": list_of(_bind),
    "CapAdd": list_of(_capability),
    "CapDrop": texts,
    "Cgroup": off("a nested container has cgroups of its own", "Leave it out."),
    "CgroupParent": off("its cgroup must lie below the sandbox's caps", "Leave it out."),
    "CgroupnsMode": off("it would see the outer container's cgroups", _OWN_NAMESPACE, "private"),
    "ConsoleSize": unsent,
    "ContainerIDFile": unsent,
    "DeviceCgroupRules": _NEVER_DEVICES,
    "DeviceRequests": _NEVER_DEVICES,
    "Devices": _NEVER_DEVICES,
    "Dns": list_of(matching(r"[0-9a-fA-F:.]{2,45}", "an address")),
    "DnsOptions": list_of(matching(r"[A-Za-z0-9_.:-]{1,100}", "a resolver's option")),
    "DnsSearch": list_of(matching(r"[A-Za-z0-9_.-]{1,255}", "a domain")),
    "ExtraHosts": list_of(
        matching(r"[A-Za-z0-9_.-]{1,255}[:=](\[?[0-9a-fA-F.:]{2,45}\]?|host-gateway)", "NAME:ADDRESS")
    ),
    "GroupAdd": list_of(matching(r"(?!keep-groups$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", "a group")),
    "Init": a(bool),
    "IpcMode": _joined("private", "shareable", "none"),
    "Isolation": off("it is for Windows", "Leave it out.", "default"),
    "Links": off("engines have given it up", "Use a network: its containers know each other's names."),
    "LogConfig": table_of(_LOG),
    "Mounts": list_of(_mount),
    "NetworkMode": network,
    "OomScoreAdj": off("it would be spared where others are killed", "Leave it out."),
    "PidMode": _joined("private"),
    "PortBindings": _PORTS,
    "Privileged": off("nested containers are never privileged", "Leave it out; cap_add gives single capabilities."),
    "PublishAllPorts": _PORTS,
    "ReadonlyRootfs": a(bool),
    "RestartPolicy": table_of(_RESTART),
    "Runtime": off("the nested engine's runtime is fixed", "Leave it out."),
    "SecurityOpt": list_of(one_of("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true")),
    "ShmSize": a(int),
    "StorageOpt": off("the disk's cap is the sandbox's", "Leave it out."),
    "Sysctls": _sysctls,
    "Tmpfs": _tmpfs,
    "UTSMode": off("it would set the outer container's name", _OWN_NAMESPACE, "private"),
    "Ulimits": list_of(_ulimit),
    "UsernsMode": off("the outer container's would have its rights", _OWN_NAMESPACE),
    "VolumeDriver": one_of("", "local"),
    "VolumesFrom": list_of(matching(rf"{NAME}(:r[ow](,[zZ])?)?", "a container's name")),
}  # neither MaskedPaths nor ReadonlyPaths: an empty list opens them

_ENDPOINT: dict[str, Check] = {
    "IPAMConfig": table_of({"IPv4Address": text, "IPv6Address": text, "LinkLocalIPs": texts}),
    "Aliases": list_of(matching(_HOST, "a host's name")),
    "MacAddress": matching(_MAC, "an address"),
    "Links": off("engines have given it up", "Networks know their containers' names."),
    "DriverOpts": off("a driver's options may lead out of the sandbox", "Leave it out."),
    **dict.fromkeys(
        ("DNSNames", "EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "GwPriority", "IPAddress",
         "IPPrefixLen", "IPv6Gateway", "NetworkID"),
        unsent,
    ),  # an answer's, which clients send back
}  # fmt: skip


def endpoints(place: str, value: Any) -> Any:
    return {
        network(place, name): only(place, a(dict)(place, settings or {}), _ENDPOINT)
        for name, settings in a(dict)(place, value).items()
    }


def _places(place: str, value: Any) -> Any:
    for where in a(dict)(place, value):
        target(place, where)
    return {where: {} for where in value}


def _ports(place: str, value: Any) -> Any:
    port = matching(r"[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?", "a port, as 80/tcp")
    return {port(place, each): {} for each in a(dict)(place, value)}


_CONFIG: dict[str, Check] = {
    "ArgsEscaped": a(bool),
    "AttachStderr": a(bool),
    "AttachStdin": a(bool),
    "AttachStdout": a(bool),
    "Cmd": words,
    "Domainname": matching(rf"|{_HOST}", "a domain"),
    "Entrypoint": words,
    "Env": environment,
    "ExposedPorts": _ports,
    "Healthcheck": table_of(
        {"Test": texts, **dict.fromkeys(("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"), a(int))}
    ),
    "Hostname": matching(rf"|{_HOST}", "a host's name"),
    "Image": lambda place, value: value if value == "" else reference(place, value),
    "Labels": pairs,
    "MacAddress": matching(_MAC, "an address"),
    "NetworkDisabled": a(bool),
    "OnBuild": texts,
    "OpenStdin": a(bool),
    "Shell": texts,
    "StdinOnce": a(bool),
    "StopSignal": matching(r"[A-Za-z0-9+-]{0,20}", "a signal"),
    "StopTimeout": a(int),
    "Tty": a(bool),
    "User": matching(_USER, "a user or USER:GROUP"),
    "Volumes": _places,
    "WorkingDir": text,
}
_CREATE: dict[str, Check] = _CONFIG | {
    "HostConfig": table_of(_HOST_CONFIG),
    "NetworkingConfig": table_of({"EndpointsConfig": endpoints}),
}


def create(request: Request, limits: Limits) -> Allowed:
    body = only("a nested container", request.body or {}, _CREATE)
    host = body.get("HostConfig") or {}
    body["HostConfig"] = host | _grant(host, limits)
    for name in ("CpuPeriod", "CpuQuota"):
        body["HostConfig"].pop(name, None)
    if not request.ours:
        labels = body.get("Labels") or {}
        if any(name.startswith(_OURS) for name in labels):
            raise PolicyRefused(f"labels that begin with {_OURS} are the server's own.", "Leave them out.")
        body["Labels"] = labels | _UNTOLD
    return Allowed(request.query, body)


def _grant(host: Mapping[str, Any], limits: Limits) -> dict[str, int]:
    """HostConfig's caps: the request's or the default, never above the sandbox's own."""
    memory = host.get("Memory") or 0
    memory = memory if memory > 0 else limits.default.memory  # to an engine, -1 is no cap at all
    cpus = (host.get("NanoCpus") or 0) / 1e9 or max(host.get("CpuQuota") or 0, 0) / max(
        host.get("CpuPeriod") or 100_000, 1
    )
    cpus = cpus if cpus > 0 else limits.default.cpus
    pids = host.get("PidsLimit") or 0
    pids = pids if pids > 0 else limits.default.pids
    check_largest(memory, cpus, pids, limits)
    return Caps(cpus=cpus, memory=memory, pids=pids).host_config()


_UPDATE: dict[str, Check] = _MEMORY | {"RestartPolicy": table_of(_RESTART)}


def update(request: Request, limits: Limits) -> Allowed:
    body = only("an update", request.body or {}, _UPDATE)
    granted = body | _grant(body, limits)
    for name in ("CpuPeriod", "CpuQuota"):
        granted.pop(name, None)
    return Allowed(request.query, granted)


_EXEC: dict[str, Check] = {
    "AttachStderr": a(bool),
    "AttachStdin": a(bool),
    "AttachStdout": a(bool),
    "Cmd": words,
    "ConsoleSize": list_of(a(int)),
    "Container": unsent,  # docker-py's; the path says it
    "DetachKeys": text,
    "Env": environment,
    "Privileged": off("nested containers are never privileged", "Leave it out."),
    "Tty": a(bool),
    "User": matching(_USER, "a user or USER:GROUP"),
    "WorkingDir": text,
    "Detach": a(bool),
}


def execute(request: Request, limits: Limits) -> Allowed:
    """An exec made, and the same started."""
    return Allowed(request.query, only("an exec", request.body or {}, _EXEC))


def commit(request: Request, limits: Limits) -> Allowed:
    named(request, limits)
    return Allowed(request.query, None if request.body is None else only("an image", request.body, _CONFIG))
