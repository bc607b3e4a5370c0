"""What may be asked of a container in podman's own dialect: its specification (SpecGenerator), up to podman 5.4. What it may have
is what Docker's dialect gives (`containers`)."""

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
    list_of,
    matching,
    off,
    one_of,
    only,
    pairs,
    reference,
    table_of,
    text,
    texts,
    unsent,
)
from manyoyo_mcp.policy.fields import NEVER_DEVICES, NO_BLOCK_IO, NO_PATHS, NO_REAL_TIME, OWN_NAMESPACE
from manyoyo_mcp.values import Caps

_LEAVE = "Leave it out."
_NO_SECRETS = off(
    "podman's secrets are not offered",
    "A variable or a volume is kept on the sandbox's disk; nested_run and nested_exec give those that are declared (docs/secrets.md).",
)
_MOUNT_OPTIONS = (
    "rw",
    "ro",
    "exec",
    "noexec",
    "nosuid",
    "nodev",
    "rprivate",
    "private",
    "tmpcopyup",
    "notmpcopyup",
    "noatime",
)
_VOLUME_OPTIONS = (
    "rw",
    "ro",
    "exec",
    "noexec",
    "nosuid",
    "nodev",
    "rprivate",
    "private",
    "nocopy",
    "copy",
    "z",
    "Z",
    "rbind",
    "bind",
)
_NO_PODS = off("pods are not offered", "Use a network, or network container:NAME.")
_NO_PATH = off("it would be a path of the outer container's", _LEAVE)


def _namespace(*own: str) -> Check:
    """One of its own, in these words, or another nested container's."""
    judge = table_of({"nsmode": one_of("", "default", *own, "container"), "value": text})

    def check(place: str, value: Any) -> Any:
        kept = judge(place, value)
        if kept.get("nsmode") == "container":
            matching(NAME, "a container's name")(f"{place}'s value", kept.get("value"))
        elif kept.pop("value", ""):
            raise PolicyRefused(f"{place} may have no value.", OWN_NAMESPACE)
        return kept

    return check


def _variables(place: str, value: Any) -> Any:
    for name in pairs(place, value):
        if not name or set("=*") & set(name):
            raise PolicyRefused(f"{place}: {name[:60]!r} is no variable.", "Write NAME: value.")
    return value


_MOUNT: dict[str, Check] = {
    "destination": fields.target,
    "type": one_of("tmpfs"),
    "source": one_of("", "tmpfs"),
    "options": list_of(matching(rf"{'|'.join(_MOUNT_OPTIONS)}|{fields.TMPFS.pattern}", "options of a tmpfs")),
    "uidMappings": off("ids are not mapped", _LEAVE),
    "gidMappings": off("ids are not mapped", _LEAVE),
}


_SOCKET_MOUNT: dict[str, Check] = {
    "destination": fields.target,
    "type": one_of("bind"),
    "source": one_of(*sorted(fields.SOCKETS)),
    "options": list_of(one_of("rw", "ro", "bind", "rbind", "private", "rprivate", "nosuid", "nodev", "noexec")),
}


def _mount(place: str, value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "bind" and value.get("source") in fields.SOCKETS:
        return only(place, value, _SOCKET_MOUNT)
    if isinstance(value, dict) and value.get("type") in ("bind", None):
        raise PolicyRefused(f"{place}: {str(value.get('source'))[:60]!r} may not be mounted.", NO_PATHS)
    return only(place, a(dict)(place, value), _MOUNT)


_VOLUME: dict[str, Check] = {
    "Name": matching(rf"|{NAME}", "a volume's name"),
    "Dest": fields.target,
    "Options": list_of(one_of(*_VOLUME_OPTIONS)),
    "IsAnonymous": a(bool),
    "SubPath": off("a link in it could lead out", "Mount the whole volume."),
}
NETWORK: dict[str, Check] = {
    "aliases": list_of(fields.host_name),
    "interface_name": matching(r"[a-z0-9]{0,15}", "letters and digits"),
    "static_ips": list_of(fields.address),
    "static_mac": fields.mac,
    "options": off("a driver's options may lead out of the sandbox", _LEAVE),
}


def networks(place: str, value: Any) -> Any:
    return {
        fields.network(place, name): only(place, a(dict)(place, settings or {}), NETWORK)
        for name, settings in a(dict)(place, value).items()
    }


_LOG: dict[str, Check] = {
    "driver": one_of(*fields.LOG_DRIVERS),
    "path": _NO_PATH,
    "size": a(int),
    "options": table_of({"max-size": text, "tag": off("it is of no use to these drivers", _LEAVE)}),
}
_HEALTH: dict[str, Check] = {
    "Test": texts,
    **dict.fromkeys(("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries", "Successes"), a(int)),
}
_RLIMIT: dict[str, Check] = {
    "type": matching(rf"(?i:RLIMIT_)?(?i:{'|'.join(sorted(fields.ULIMITS))})", ", ".join(sorted(fields.ULIMITS))),
    "soft": a(int),
    "hard": a(int),
}
_MEMORY: dict[str, Check] = {
    "limit": a(int),
    "swap": a(int),
    "reservation": a(int),
    "swappiness": unsent,
    "kernel": off("kernels count it with the rest", _LEAVE),
    "kernelTCP": off("kernels count it with the rest", _LEAVE),
    "disableOOMKiller": off("what exceeds its cap is killed", _LEAVE),
    "useHierarchy": unsent,
    "checkBeforeUpdate": unsent,
}
_CPU: dict[str, Check] = {
    "shares": a(int),
    "quota": a(int),
    "period": a(int),
    "cpus": fields.cpu_set,
    "mems": fields.cpu_set,
    "burst": off("a cap is kept at every moment", _LEAVE),
    "idle": unsent,
    "realtimeRuntime": NO_REAL_TIME,
    "realtimePeriod": NO_REAL_TIME,
}
_RESOURCES: dict[str, Check] = {
    "memory": table_of(_MEMORY),
    "cpu": table_of(_CPU),
    "pids": table_of({"limit": a(int)}),
    "devices": NEVER_DEVICES,
    "blockIO": NO_BLOCK_IO,
    "hugepageLimits": off("huge pages are the host's", _LEAVE),
    "network": off("its traffic is nobody's to class", _LEAVE),
    "rdma": NEVER_DEVICES,
    "unified": off("its cgroup's settings are the sandbox's", "Use memory, cpus and pids_limit."),
}
_SPEC: dict[str, Check] = {
    "name": matching(rf"|{NAME}", "a container's name"),
    "image": reference,
    "raw_image_name": unsent,
    "entrypoint": texts,
    "command": texts,
    "env": _variables,
    "env_host": off("the engine's own variables are not handed on", "Write NAME=value."),
    "httpproxy": unsent,  # the sandbox hands its own on
    "unsetenv": texts,
    "unsetenvall": a(bool),
    "labels": pairs,
    "annotations": off("OCI runtimes take annotations for orders", "Use labels."),
    "terminal": a(bool),
    "stdin": a(bool),
    "stop_signal": a(int, str),
    "stop_timeout": a(int),
    "timeout": a(int),
    "restart_policy": one_of(*fields.RESTARTS),
    "restart_tries": a(int),
    "remove": a(bool),
    "removeImage": a(bool),
    "containerCreateCommand": unsent,
    "hostname": matching(r"|[A-Za-z0-9_.-]{1,255}", "a host's name"),
    "domainname": matching(r"|[A-Za-z0-9_.-]{1,255}", "a domain"),
    "timezone": matching(r"|[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}", "a time zone, as Europe/Paris"),
    "umask": matching(r"[0-7]{0,4}", "an octal number"),
    "work_dir": text,
    "create_working_dir": a(bool),
    "user": fields.user,
    "groups": list_of(fields.group),
    "cap_add": list_of(fields.capability),
    "cap_drop": texts,
    "no_new_privileges": a(bool),
    "read_only_filesystem": a(bool),
    "read_write_tmpfs": a(bool),
    "init": a(bool),
    "volatile": a(bool),
    "shm_size": a(int),
    "sysctl": fields.sysctls,
    "r_limits": list_of(table_of(_RLIMIT)),
    "resource_limits": table_of(_RESOURCES),
    "cpu_period": unsent,  # said once more, of resource_limits
    "cpu_quota": unsent,
    "mounts": list_of(_mount),
    "volumes": list_of(table_of(_VOLUME)),
    "volumes_from": list_of(fields.volumes_from),
    "image_volume_mode": one_of("", "anonymous", "ignore", "tmpfs"),
    "pidns": _namespace("private"),
    "ipcns": _namespace("private", "shareable", "none"),
    "utsns": _namespace("private"),
    "cgroupns": _namespace("private"),
    "userns": table_of({"nsmode": one_of("", "default"), "value": off("ids are not mapped", OWN_NAMESPACE)}),
    "netns": _namespace("bridge", "private", "none"),
    "Networks": networks,
    "expose": pairs,
    "dns_server": list_of(fields.address),
    "dns_search": list_of(fields.domain),
    "dns_option": list_of(fields.resolver_option),
    "use_image_resolve_conf": a(bool),
    "use_image_hosts": a(bool),
    "use_image_hostname": a(bool),
    "hostadd": list_of(fields.extra_host),
    "log_configuration": table_of(_LOG),
    "healthconfig": table_of(_HEALTH),
    "startupHealthConfig": table_of(_HEALTH),
    "health_check_on_failure_action": a(int),
    "healthLogDestination": one_of("", "local", "events_logger"),
    "healthMaxLogCount": a(int),
    "healthMaxLogSize": a(int),
    "image_os": text,
    "image_arch": text,
    "image_variant": text,
    # What a client says always, or what has but one meaning here:
    "systemd": one_of("", "true", "false"),
    "sdnotifyMode": one_of("", "container", "ignore", "conmon"),
    "cgroups_mode": one_of("", "enabled"),
    "seccomp_policy": one_of("", "default"),
    "init_container_type": one_of(""),
    # What leads out:
    "privileged": off("nested containers are never privileged", "Leave it out; cap_add gives single capabilities."),
    "rootfs": _NO_PATH,
    "rootfs_overlay": _NO_PATH,
    "rootfs_mapping": _NO_PATH,
    "rootfs_propagation": off("mounts reach nobody else", _LEAVE),
    "overlay_volumes": off("paths are not mounted", NO_PATHS),
    "image_volumes": off("images are not mounted", "Run the image."),
    "artifact_volumes": off("artifacts are not mounted", _LEAVE),
    "secrets": _NO_SECRETS,
    "secret_env": _NO_SECRETS,
    "devices": NEVER_DEVICES,
    "device_cgroup_rule": NEVER_DEVICES,
    "devices_from": NEVER_DEVICES,
    "host_device_list": NEVER_DEVICES,
    "selinux_opts": off("security profiles are the sandbox's", _LEAVE),
    "apparmor_profile": off("security profiles are the sandbox's", _LEAVE),
    "seccomp_profile_path": off("security profiles are the sandbox's", _LEAVE),
    "label_nested": off("security profiles are the sandbox's", _LEAVE),
    "mask": texts,
    "unmask": off("what is masked leads out", _LEAVE),
    "procfs_opts": off("the kernel's file systems are the sandbox's", _LEAVE),
    "idmappings": unsent,  # of a namespace that it doesn't get
    "cgroup_parent": off("its cgroup must lie below the sandbox's caps", _LEAVE),
    "oci_runtime": off("the nested engine's runtime is fixed", _LEAVE),
    "oom_score_adj": off("it would be spared where others are killed", _LEAVE),
    "personality": off("it is the kernel's", _LEAVE),
    "intelRdt": off("caches are the host's", _LEAVE),
    "pod": _NO_PODS,
    "portmappings": fields.NO_PORTS,  # where they may be, `ports` has taken them out before
    "publish_image_ports": fields.NO_PORTS,
    "network_options": off("a driver's options may lead out of the sandbox", _LEAVE),
    "cni_networks": off("podman has given it up", "Use Networks."),
    **dict.fromkeys(
        ("weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice"),
        NO_BLOCK_IO,
    ),
    "unified": off("its cgroup's settings are the sandbox's", "Use memory, cpus and pids_limit."),
    "conmon_pid_file": _NO_PATH,
    "init_path": _NO_PATH,
    "base_hosts_file": _NO_PATH,
    "chroot_directories": _NO_PATH,
    "group_entry": off("the image says it", _LEAVE),
    "passwd_entry": off("the image says it", _LEAVE),
    "host_users": off("they are the outer container's", _LEAVE),
    "manage_password": unsent,
    "dependencyContainers": texts,
    "namespace": off("podman has given it up", _LEAVE),
    "storage_opts": off("the disk's cap is the sandbox's", _LEAVE),
}  # fmt: skip


def create(request: Request, limits: Limits) -> Allowed:
    published, given = ports.libpod_taken(request.body or {}, limits)
    if limits.own and isinstance(mounts := given.get("mounts"), list):
        given["mounts"] = [
            {**each, "source": fields.usual_socket(each.get("source"), limits.own)} if isinstance(each, dict) else each
            for each in mounts
        ]
    spec = only("a nested container", given, _SPEC)
    spec["resource_limits"] = _grant(spec.get("resource_limits") or {}, limits)
    # Systemd's mode makes the container's own cgroups writable; a notification's socket would be the outer container's.
    spec |= {"systemd": "false", "sdnotifyMode": "ignore"}
    if any(each.get("source") in fields.SOCKETS for each in spec.get("mounts") or []):
        spec["mounts"] = [
            each | {"source": fields.given_socket(limits)} if each.get("source") in fields.SOCKETS else each
            for each in spec["mounts"]
        ]
    if (spec.get("netns") or {}).get("nsmode") == "private":
        spec["netns"] = {"nsmode": "bridge"}
    if not request.ours:
        spec["labels"] = fields.labels("a nested container's labels", spec.get("labels") or {})
    return Allowed(request.query, ports.libpod_written(spec, published, limits))


def _grant(resources: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The caps: the request's or the default, never above the sandbox's own."""
    memory, cpu, pids = ({**(resources.get(each) or {})} for each in ("memory", "cpu", "pids"))
    size = max(memory.get("limit") or 0, 0) or limits.default.memory  # -1 is no cap at all
    period = max(cpu.get("period") or 0, 0) or 100_000
    cpus = max(cpu.get("quota") or 0, 0) / period or limits.default.cpus
    number = max(pids.get("limit") or 0, 0) or limits.default.pids
    check_largest(size, cpus, number, limits)
    caps = Caps(cpus=cpus, memory=size, pids=number)
    return dict(resources) | {
        "memory": memory | {"limit": caps.memory, "swap": caps.memory},
        "cpu": cpu | {"period": period, "quota": round(caps.cpus * period)},
        "pids": {"limit": caps.pids},
    }


def update(request: Request, limits: Limits) -> Allowed:
    """What is not named stays as it is."""
    body = only("an update", request.body or {}, _RESOURCES)
    granted = _grant(body, limits)
    for kind, naming, caps in (
        ("memory", "limit", ("limit", "swap")),
        ("cpu", "quota", ("quota", "period")),
        ("pids", "limit", ("limit",)),
    ):
        if not (body.get(kind) or {}).get(naming):
            granted[kind] = {name: value for name, value in granted[kind].items() if name not in caps}
    return Allowed(request.query, {kind: value for kind, value in granted.items() if value})


_START: dict[str, Check] = {
    "Detach": a(bool),
    "Tty": a(bool),
    "detach": a(bool),
    "tty": a(bool),
    "h": a(int),
    "w": a(int),
    "height": a(int),
    "width": a(int),
}


def start_exec(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("an exec", request.body or {}, _START))


def remove_exec(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("an exec", request.body or {}, {"Force": a(bool)}))
