"""What may be asked of a container: made, changed, entered. Docker's Engine API, up to v1.45."""

import re
from collections.abc import Mapping
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy import fields, ports
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
from manyoyo_mcp.policy.fields import (
    LOG_DRIVERS,
    NEVER_DEVICES,
    NO_BLOCK_IO,
    NO_PATHS,
    NO_REAL_TIME,
    OWN_NAMESPACE,
    RESTARTS,
)
from manyoyo_mcp.values import Caps

_VOLUME = re.compile(rf"({NAME}):(/[^:]*)(?::([a-zA-Z,]*))?")
_SOCKET = re.compile(rf"({'|'.join(sorted(fields.SOCKETS))}):(/[^:]*)(:(?:r[ow]|z|Z|,)*)?")
_VOLUME_OPTIONS = frozenset({"", "ro", "rw", "nocopy", "z", "Z"})


def _joined(*own: str) -> Check:
    """A namespace of its own (in these words) or another nested container's."""
    return matching(rf"|{'|'.join(own)}|container:{NAME}", f"{', '.join(own)}, container:NAME")


def _bind(place: str, value: Any) -> Any:
    if found := _SOCKET.fullmatch(text(place, value)):
        fields.target(place, found[2])
        return value
    found = _VOLUME.fullmatch(value)
    if not found or not set((found[3] or "").split(",")) <= _VOLUME_OPTIONS:
        raise PolicyRefused(f"{place}: {value[:60]!r} is no named volume.", NO_PATHS)
    fields.target(place, found[2])
    return value


_DRIVER: dict[str, Check] = {
    "Name": one_of("", "local"),
    "Options": off("a volume's driver may mount what it likes", NO_PATHS),
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
    "Target": fields.target,
    "ReadOnly": a(bool),
    "Consistency": one_of("", "default", "consistent", "cached", "delegated"),
    "BindOptions": off("paths are not mounted", NO_PATHS),
    "VolumeOptions": table_of(_VOLUME_MOUNT),
    "TmpfsOptions": table_of({"SizeBytes": a(int), "Mode": a(int)}),
    "ClusterOptions": off("there is no cluster", "Leave it out."),
    "ImageOptions": off("images are not mounted", "Run the image."),
}


_SOCKET_MOUNT: dict[str, Check] = {
    **{name: _MOUNT[name] for name in ("Target", "ReadOnly", "Consistency")},
    "Type": one_of("bind"),
    "Source": one_of(*sorted(fields.SOCKETS)),
    "BindOptions": off("a socket has none", "Leave it out."),
}


def _mount(place: str, value: Any) -> Any:
    if isinstance(value, dict) and value.get("Type") == "bind" and value.get("Source") in fields.SOCKETS:
        return only(place, value, _SOCKET_MOUNT)
    if isinstance(value, dict) and value.get("Type") == "bind":
        raise PolicyRefused(f"{place}: {str(value.get('Source'))[:60]!r} may not be mounted.", NO_PATHS)
    kept = only(place, a(dict)(place, value), _MOUNT)
    if not {"Type", "Target"} <= kept.keys():
        raise PolicyRefused(f"{place} has no type, or no target.", "Say type=volume or type=tmpfs, and target=/path.")
    return kept


def _ulimit(place: str, value: Any) -> Any:
    kept = only(place, a(dict)(place, value), {"Name": one_of(*sorted(fields.ULIMITS)), "Soft": a(int), "Hard": a(int)})
    if "Name" not in kept:
        raise PolicyRefused(f"{place} has no name.", f"Allowed: {', '.join(sorted(fields.ULIMITS))}.")
    return kept


_WINDOWS = off("it is for Windows", "Leave it out.")
_PORTS = fields.NO_PORTS  # where they may be, `ports` has taken them out before
_RESOURCES: dict[str, Check] = {
    "CgroupParent": off("its cgroup must lie below the sandbox's caps", "Leave it out."),
    "DeviceCgroupRules": NEVER_DEVICES,
    "DeviceRequests": NEVER_DEVICES,
    "Devices": NEVER_DEVICES,
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
    "CpusetCpus": fields.cpu_set,
    "CpusetMems": matching(r"[0-9,-]{0,200}", "numbers of memory nodes, as 0"),
    "CpuRealtimePeriod": NO_REAL_TIME,
    "CpuRealtimeRuntime": NO_REAL_TIME,
    "CpuCount": _WINDOWS,
    "CpuPercent": _WINDOWS,
    "IOMaximumIOps": _WINDOWS,
    "IOMaximumBandwidth": _WINDOWS,
    "PidsLimit": a(int),
    "BlkioWeight": NO_BLOCK_IO,
    "BlkioWeightDevice": NO_BLOCK_IO,
    "BlkioDeviceReadBps": NO_BLOCK_IO,
    "BlkioDeviceWriteBps": NO_BLOCK_IO,
    "BlkioDeviceReadIOps": NO_BLOCK_IO,
    "BlkioDeviceWriteIOps": NO_BLOCK_IO,
}
_RESTART: dict[str, Check] = {"Name": one_of(*RESTARTS), "MaximumRetryCount": a(int)}
_LOG: dict[str, Check] = {"Type": one_of(*LOG_DRIVERS), "Config": table_of({"max-size": text, "max-file": text})}
"""No path among a log driver's options: it would be one in the outer container."""
_HOST_CONFIG: dict[str, Check] = _RESOURCES | {
    "Annotations": off("OCI runtimes take annotations for orders", "Use labels."),
    "AutoRemove": a(bool),
    "Binds": list_of(_bind),
    "CapAdd": list_of(fields.capability),
    "CapDrop": texts,
    "Cgroup": off("a nested container has cgroups of its own", "Leave it out."),
    "CgroupnsMode": off("it would see the outer container's cgroups", OWN_NAMESPACE, "private"),
    "ConsoleSize": unsent,
    "ContainerIDFile": unsent,
    "Dns": list_of(fields.address),
    "DnsOptions": list_of(fields.resolver_option),
    "DnsSearch": list_of(fields.domain),
    "ExtraHosts": list_of(fields.extra_host),
    "GroupAdd": list_of(fields.group),
    "Init": a(bool),
    "IpcMode": _joined("private", "shareable", "none"),
    "Isolation": off("it is for Windows", "Leave it out.", "default"),
    "Links": off("engines have given it up", "Use a network: its containers know each other's names."),
    "LogConfig": table_of(_LOG),
    "Mounts": list_of(_mount),
    "NetworkMode": fields.network,
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
    "Sysctls": fields.sysctls,
    "Tmpfs": fields.tmpfs,
    "UTSMode": off("it would set the outer container's name", OWN_NAMESPACE, "private"),
    "Ulimits": list_of(_ulimit),
    "UsernsMode": off("the outer container's would have its rights", OWN_NAMESPACE),
    "VolumeDriver": one_of("", "local"),
    "VolumesFrom": list_of(fields.volumes_from),
}  # neither MaskedPaths nor ReadonlyPaths: an empty list opens them

_ENDPOINT: dict[str, Check] = {
    "IPAMConfig": table_of({"IPv4Address": text, "IPv6Address": text, "LinkLocalIPs": texts}),
    "Aliases": list_of(fields.host_name),
    "MacAddress": fields.mac,
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
        fields.network(place, name): only(place, a(dict)(place, settings or {}), _ENDPOINT)
        for name, settings in a(dict)(place, value).items()
    }


def _places(place: str, value: Any) -> Any:
    for where in a(dict)(place, value):
        fields.target(place, where)
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
    "Domainname": matching(r"|[A-Za-z0-9_.-]{1,255}", "a domain"),
    "Entrypoint": words,
    "Env": environment,
    "ExposedPorts": _ports,
    "Healthcheck": table_of(
        {"Test": texts, **dict.fromkeys(("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"), a(int))}
    ),
    "Hostname": matching(r"|[A-Za-z0-9_.-]{1,255}", "a host's name"),
    "Image": lambda place, value: value if value == "" else reference(place, value),
    "Labels": pairs,
    "MacAddress": fields.mac,
    "NetworkDisabled": a(bool),
    "OnBuild": texts,
    "OpenStdin": a(bool),
    "Shell": texts,
    "StdinOnce": a(bool),
    "StopSignal": matching(r"[A-Za-z0-9+-]{0,20}", "a signal"),
    "StopTimeout": a(int),
    "Tty": a(bool),
    "User": fields.user,
    "Volumes": _places,
    "WorkingDir": text,
}
_CREATE: dict[str, Check] = _CONFIG | {
    "HostConfig": table_of(_HOST_CONFIG),
    "NetworkingConfig": table_of({"EndpointsConfig": endpoints}),
}


def create(request: Request, limits: Limits) -> Allowed:
    published, given = ports.docker_taken(_own_named(request.body or {}, limits), limits)
    body = only("a nested container", given, _CREATE)
    host = body.get("HostConfig") or {}
    body["HostConfig"] = host | _grant(host, limits) | _sockets(host, limits)
    for name in ("CpuPeriod", "CpuQuota"):
        body["HostConfig"].pop(name, None)
    if not request.ours:
        body["Labels"] = fields.labels("a nested container's Labels", body.get("Labels") or {})
    return Allowed(request.query, ports.docker_written(body, published, limits))


def _own_named(body: Mapping[str, Any], limits: Limits) -> Mapping[str, Any]:
    """With an engine's usual path for the socket that the client speaks to: programs mount what they speak to themselves (Testcontainers)."""
    host = body.get("HostConfig")
    if not limits.own or not isinstance(host, dict):
        return body
    binds, mounts = host.get("Binds"), host.get("Mounts")
    if isinstance(binds, list):
        usual = [fields.usual_socket(each, limits.own, ":") for each in binds]
        host = {**host, "Binds": usual}
    if isinstance(mounts, list):
        usual = [
            {**each, "Source": fields.usual_socket(each.get("Source"), limits.own)} if isinstance(each, dict) else each
            for each in mounts
        ]
        host = {**host, "Mounts": usual}
    return {**body, "HostConfig": host}


def _sockets(host: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """HostConfig's binds and mounts, with the gate's socket in place of an engine's. Raises PolicyRefused where there is none."""
    given: dict[str, Any] = {}
    binds, mounts = host.get("Binds") or [], host.get("Mounts") or []
    if any(_SOCKET.fullmatch(each) for each in binds):
        given["Binds"] = [_SOCKET.sub(rf"{fields.given_socket(limits)}:\2\3", each) for each in binds]
    if any(each.get("Source") in fields.SOCKETS for each in mounts):
        given["Mounts"] = [
            each | {"Source": fields.given_socket(limits)} if each.get("Source") in fields.SOCKETS else each
            for each in mounts
        ]
    return given


def _grant(host: Mapping[str, Any], limits: Limits) -> dict[str, int]:
    """HostConfig's caps: the request's or the default, never above the sandbox's own."""
    memory = host.get("Memory") or 0
    memory = memory if memory > 0 else limits.default.memory  # to an engine, -1 is no cap at all
    period = max(host.get("CpuPeriod") or 100_000, 1)
    cpus = (host.get("NanoCpus") or 0) / 1e9 or (host.get("CpuQuota") or 0) / period
    cpus = cpus if cpus > 0 else limits.default.cpus
    pids = host.get("PidsLimit") or 0
    pids = pids if pids > 0 else limits.default.pids
    check_largest(memory, cpus, pids, limits)
    return Caps(cpus=cpus, memory=memory, pids=pids).host_config()


_UPDATE: dict[str, Check] = _RESOURCES | {
    "RestartPolicy": table_of(_RESTART),
    "Ulimits": off("engines set them when they make a container", "Make another with --ulimit."),
}


def update(request: Request, limits: Limits) -> Allowed:
    """What is not named, or is 0 in Docker's way of saying so, stays as it is."""
    body = only("an update", request.body or {}, _UPDATE)
    granted = _grant(body, limits)
    if not body.get("Memory"):
        del granted["Memory"], granted["MemorySwap"]
    nano = granted.pop("NanoCpus")
    if body.get("NanoCpus") or body.get("CpuQuota"):
        granted |= {"CpuPeriod": 100_000, "CpuQuota": nano // 10_000} if limits.by_quota else {"NanoCpus": nano}
    if body.get("PidsLimit") is None:
        del granted["PidsLimit"]
    dropped = ("CpuPeriod", "CpuQuota", "NanoCpus", "Memory", "MemorySwap", "PidsLimit")
    return Allowed(request.query, {name: value for name, value in body.items() if name not in dropped} | granted)


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
    "User": fields.user,
    "WorkingDir": text,
    "Detach": a(bool),
}


def execute(request: Request, limits: Limits) -> Allowed:
    """An exec made, and the same started."""
    return Allowed(request.query, only("an exec", request.body or {}, _EXEC))


def commit(request: Request, limits: Limits) -> Allowed:
    named(request, limits)
    return Allowed(request.query, None if request.body is None else only("an image", request.body, _CONFIG))
