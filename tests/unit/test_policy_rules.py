"""Every rule of the policy holds something back: each field's check is switched off in turn, and what it refused must then pass."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from manyoyo_mcp.errors import CapExceeded, InvalidArgument, PolicyRefused
from manyoyo_mcp.policy import building, buildkit, containers, libpod, libpod_things, rules, things
from manyoyo_mcp.policy.base import Limits, Request, unsent
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.values import Caps

LIMITS = Limits(default=Caps(1, 512 << 20, 100), largest=Caps(2, 1 << 30, 200))
REFUSED = (PolicyRefused, CapExceeded, InvalidArgument)
ODD = {"odd": {"odd": 1}}
"""What no field takes."""

_LIBPOD = ("POST", "/libpod/containers/create")
_SOLVE = ("GRPC", "/moby.buildkit.v1.Control/Solve")
_RETURN = ("GRPC", "/moby.buildkit.v1.frontend.LLBBridge/Return")
TABLES: dict[str, tuple[dict[str, Any], tuple[str, str], tuple[str, ...]]] = {
    "create": (containers._CREATE, ("POST", "/containers/create"), ()),
    "HostConfig": (containers._HOST_CONFIG, ("POST", "/containers/create"), ("HostConfig",)),
    "log": (containers._LOG, ("POST", "/containers/create"), ("HostConfig", "LogConfig")),
    "restart": (containers._RESTART, ("POST", "/containers/create"), ("HostConfig", "RestartPolicy")),
    "mount": (containers._MOUNT, ("POST", "/containers/create"), ("HostConfig", "Mounts", "[]")),
    "volume mount": (containers._VOLUME_MOUNT, ("POST", "/containers/create"), ("HostConfig", "Mounts", "[]", "VolumeOptions")),
    "driver": (containers._DRIVER, ("POST", "/containers/create"),
               ("HostConfig", "Mounts", "[]", "VolumeOptions", "DriverConfig")),
    "endpoint": (containers._ENDPOINT, ("POST", "/containers/create"), ("NetworkingConfig", "EndpointsConfig", "x")),
    "update": (containers._UPDATE, ("POST", "/containers/abc/update"), ()),
    "exec": (containers._EXEC, ("POST", "/containers/abc/exec"), ()),
    "commit": (containers._CONFIG, ("POST", "/commit"), ()),
    "volume": (things.VOLUME, ("POST", "/volumes/create"), ()),
    "network": (things._NETWORK, ("POST", "/networks/create"), ()),
    "subnet": (things._SUBNET, ("POST", "/networks/create"), ("IPAM", "Config", "[]")),
    "connect": (things._CONNECT, ("POST", "/networks/x/connect"), ()),
    "auth": (things._AUTH, ("POST", "/auth"), ()),
    "spec": (libpod._SPEC, _LIBPOD, ()),
    "spec's mount": (libpod._MOUNT, _LIBPOD, ("mounts", "[]")),
    "spec's volume": (libpod._VOLUME, _LIBPOD, ("volumes", "[]")),
    "spec's network": (libpod.NETWORK, _LIBPOD, ("Networks", "x")),
    "spec's log": (libpod._LOG, _LIBPOD, ("log_configuration",)),
    "spec's health": (libpod._HEALTH, _LIBPOD, ("healthconfig",)),
    "spec's rlimit": (libpod._RLIMIT, _LIBPOD, ("r_limits", "[]")),
    "spec's resources": (libpod._RESOURCES, _LIBPOD, ("resource_limits",)),
    "spec's memory": (libpod._MEMORY, _LIBPOD, ("resource_limits", "memory")),
    "spec's cpu": (libpod._CPU, _LIBPOD, ("resource_limits", "cpu")),
    "exec start": (libpod._START, ("POST", "/libpod/exec/abc/start"), ()),
    "libpod volume": (libpod_things._VOLUME, ("POST", "/libpod/volumes/create"), ()),
    "libpod network": (libpod_things._NETWORK, ("POST", "/libpod/networks/create"), ()),
    "libpod subnet": (libpod_things._SUBNET, ("POST", "/libpod/networks/create"), ("subnets", "[]")),
    "libpod connect": (libpod_things._CONNECT, ("POST", "/libpod/networks/x/connect"), ()),
    "solve": (buildkit.SOLVE, _SOLVE, ()),
    "frontend": (buildkit.ATTRS, _SOLVE, ("FrontendAttrs",)),
    "frontend's": (buildkit.PREFIXED, _SOLVE, ("FrontendAttrs",)),
    "cache": (buildkit.CACHE, _SOLVE, ("Cache",)),
    "cache import": (buildkit.IMPORT, _SOLVE, ("Cache", "Imports", "[]", "Attrs")),
    "cache export": (buildkit.EXPORT, _SOLVE, ("Cache", "Exports", "[]", "Attrs")),
    "exporter": (buildkit.EXPORTER, _SOLVE, ("Exporters", "[]")),
    "exporter's": (buildkit.EXPORTER_ATTRS, _SOLVE, ("Exporters", "[]", "Attrs")),
    "gateway": (buildkit.GATEWAY_SOLVE, ("GRPC", "/moby.buildkit.v1.frontend.LLBBridge/Solve"), ()),
    "return": (buildkit.RETURN, _RETURN, ()),
    "result": (buildkit.RESULT, _RETURN, ("result",)),
    "ref": (buildkit.REF, _RETURN, ("result", "ref")),
    "error": (buildkit.ERROR, _RETURN, ("error",)),
    "prune": (buildkit.PRUNE, ("GRPC", "/moby.buildkit.v1.Control/Prune"), ()),
    "filter": (buildkit.FILTER, ("GRPC", "/moby.buildkit.v1.Control/ListWorkers"), ()),
    "status": (buildkit.STATUS, ("GRPC", "/moby.buildkit.v1.Control/Status"), ()),
    "health": (buildkit.HEALTH, ("GRPC", "/grpc.health.v1.Health/Check"), ()),
}  # fmt: skip
"""Where each table of checks is asked, and at which place of a body."""

EVIL: dict[str, dict[str, list[Any]]] = {
    "create": {
        "Image": ["dir:/etc", "docker://x", "containers-storage:[overlay@/a+/b:x=y]z", "oci-archive:/x", "-x", "a//b"],
        "Volumes": [{"/:/x": {}}, {"/x,type=bind": {}}, {"/x=y": {}}, {"/proc": {}}, {"relative": {}}, {"/a/../proc": {}}, {"/": {}}, {"//sys//x": {}}, {"/dev/sda": {}}],
        "ExposedPorts": [{"80/tcp; rm": {}}],
        "Labels": [{"x": "\0"}],
        "Env": [["x" * 100_000], ["*"], ["HTTP_*"], ["=x"]],
        "Hostname": ["x\ny"],
        "Domainname": ["x y"],
        "MacAddress": ["x"],
        "User": ["a b", "a\nb"],
        "StopSignal": ["TERM; x"],
    },
    "HostConfig": {
        "Privileged": [True, 1, "true"],
        "CapAdd": [["SYS_ADMIN"], ["ALL"], ["cap_sys_ptrace"], ["NET_ADMIN"], ["CAP_BPF"], ["chown", "sys_module"]],
        "Binds": [["/:/x"], ["./x:/x"], ["../x:/x"], ["~:/x"], ["v:/x:rshared"], ["v:/x:ro,exec"], ["v:/proc"], ["v"],
                  ["/var/run/docker.sock:/x"], ["v:x"], ["v:/x:U"], ["v:/x:O"], ["v:/x:idmap"]],
        "Mounts": [[{"Type": "bind", "Source": "/", "Target": "/x"}], [{"Type": "image", "Source": "x", "Target": "/x"}],
                   [{"Target": "/x,type=bind,source=/"}], [{"Type": "volume"}], [{"Target": "/x"}]],
        "GroupAdd": [["keep-groups"], ["a b"]],
        "ExtraHosts": [["a\nb:1.2.3.4"], ["a:$(x)"], ["nothing"]],
        "DnsOptions": [["a b"]],
        "DnsSearch": [["a\nb"]],
        "Devices": [[{"PathOnHost": "/dev/sda"}]],
        "DeviceRequests": [[{"Count": -1}]],
        "DeviceCgroupRules": [["b *:* rwm"]],
        "SecurityOpt": [["seccomp=unconfined"], ["apparmor=unconfined"], ["label=disable"], ["systempaths=unconfined"],
                        ["no-new-privileges:false"], ["unmask=ALL"]],
        "PidMode": ["host", "ns:/proc/1/ns/pid"],
        "IpcMode": ["host", "ns:/proc/1/ns/ipc"],
        "UTSMode": ["host"],
        "UsernsMode": ["host", "keep-id", "private"],
        "CgroupnsMode": ["host"],
        "NetworkMode": ["host", "ns:/proc/1/ns/net", "pasta", "slirp4netns", "pasta:--x", "slirp4netns:port_handler=x", "private"],
        "CgroupParent": ["/", "/init", "../x"],
        "Cgroup": ["container:x"],
        "Runtime": ["runc", "/bin/sh"],
        "Sysctls": [{"kernel.core_pattern": "|/x"}, {"net.ipv4.ip_forward": "1"}, {"vm.overcommit_memory": "1"}],
        "Ulimits": [[{"Name": "rtprio", "Soft": 1, "Hard": 1}], [{"Name": "nofile", "Hard": "1"}], [{"Hard": 1}]],
        "VolumesFrom": [["x:rw,exec"], ["/x"]],
        "VolumeDriver": ["nfs"],
        "OomKillDisable": [True],
        "OomScoreAdj": [-1000, 5],
        "CpuRealtimePeriod": [1],
        "CpuRealtimeRuntime": [1],
        "CpusetCpus": ["0;x"],
        "CpusetMems": ["x"],
        "PublishAllPorts": [True],
        "PortBindings": [{"80/tcp": [{"HostPort": "80"}]}],
        "Links": [["a:b"]],
        "StorageOpt": [{"size": "1T"}],
        "Annotations": [{"run.oci.handler": "krun"}, {"io.podman.annotations.seccomp": "x"}],
        "LogConfig": [{"Type": "syslog"}, {"Type": "k8s-file", "Config": {"path": "/etc/x"}}, {"Tomorrow": 1}],
        "RestartPolicy": [{"Name": "weird"}],
        "Tmpfs": [{"/x": "dev"}, {"/x": "rw,suid"}, {"/x": "bind"}, {"/x": "rbind"}, {"x": ""}, {"/proc/x": ""}, {"/x:dev,suid": ""},
                  {"/proc:ro": ""}, {"/x": "size=1g,context=x"}],
        "Dns": [["$(x)"]],
        "Isolation": ["hyperv"],
        "Memory": [2 << 30, True, "1g", 1.5],
        "NanoCpus": [3 * 10**9],
        "CpuQuota": [300_000],
        "PidsLimit": [201],
        "BlkioWeight": [500],
        **{name: [[{"Path": "/dev/sda", "Rate": 1}]] for name in
           ("BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps")},
        "BlkioWeightDevice": [[{"Path": "/dev/sda", "Weight": 1}]],
        **{name: [5] for name in ("KernelMemory", "KernelMemoryTCP", "CpuCount", "CpuPercent", "IOMaximumIOps",
                                  "IOMaximumBandwidth")},
    },
    "log": {"Type": ["journald", "fluentd"], "Config": [{"path": "/x"}, {"tag": "x"}]},
    "restart": {"Name": ["weird"]},
    "mount": {
        "Type": ["bind", "npipe", "cluster", "image", "devpts", "glob"],
        "Source": ["/", "../x", "/var/run/docker.sock"],
        "Target": ["/proc", "/sys/fs/cgroup", "/dev", "/a/../../proc", "x", "/x,subpath=y", "/x,dev", "/x:y", '/x"y'],
        "BindOptions": [{"Propagation": "rshared"}, {"CreateMountpoint": True}],
        "ClusterOptions": [{"x": 1}],
        "ImageOptions": [{"Subpath": "x"}],
        "VolumeOptions": [{"Tomorrow": 1}],
    },
    "volume mount": {"Labels": [{"a": "b,type=bind"}], "Subpath": ["../x", "x"], "DriverConfig": [{"Name": "nfs"}]},
    "driver": {"Name": ["nfs"], "Options": [{"type": "none", "device": "/", "o": "bind"}]},
    "endpoint": {"DriverOpts": [{"x": "y"}], "Links": [["x"]], "IPAMConfig": [{"Tomorrow": "x"}], "Aliases": [["a\n10.0.0.1 b"]],
                 "MacAddress": ["x"]},
    "update": {"Memory": [2 << 30], "RestartPolicy": [{"Name": "weird"}], "BlkioWeight": [1], "CgroupParent": ["/"],
               "Ulimits": [[{"Name": "nofile", "Soft": 1, "Hard": 1}]], "Devices": [[{"PathOnHost": "/dev/sda"}]]},
    "exec": {"Privileged": [True], "Env": [["*"]], "User": ["a b"]},
    "subnet": {name: ["x", "10.0.0.0/99", "1.2.3.4 x"] for name in ("Subnet", "IPRange", "Gateway")},
    "volume": {
        "Name": ["../x", "/x"],
        "Driver": ["nfs"],
        "DriverOpts": [
            {"type": "none", "device": "/", "o": "bind"}, {"type": "nfs", "device": ":/x", "o": "addr=1.2.3.4"},
            {"type": "tmpfs", "device": "tmpfs", "o": "size=1g,bind"}, {"type": "tmpfs", "device": "/dev/sda"},
            {"type": "tmpfs", "device": "tmpfs", "o": "dev"}, {"device": "tmpfs"}, {"type": "tmpfs", "device": "tmpfs", "x": "y"},
        ],
        "ClusterVolumeSpec": [{"x": 1}],
    },
    "network": {
        "Name": ["../x", "a b"],
        "Driver": ["macvlan", "ipvlan", "host", "overlay"],
        "Scope": ["swarm"],
        "Ingress": [True],
        "ConfigOnly": [True],
        "ConfigFrom": [{"Network": "x"}],
        "Options": [{"com.docker.network.bridge.name": "x0"}, {"parent": "eth0"}, {"com.docker.network.bridge.host_binding_ipv4": "0.0.0.0"}],
        "IPAM": [{"Driver": "x"}, {"Options": {"x": "y"}}, {"Driver": "dhcp"}],
    },
    "connect": {"Container": ["../x", ""], "EndpointConfig": [{"DriverOpts": {"x": "y"}}]},
    "spec": {
        "name": ["../x", "-x"],
        "image": ["dir:/etc", "docker://x", "-x"],
        "env": [{"*": "x"}, {"": "x"}, {"a=b": "x"}],
        "env_host": [True],
        "annotations": [{"run.oci.handler": "krun"}],
        "restart_policy": ["weird"],
        "hostname": ["x\ny"],
        "domainname": ["x y"],
        "timezone": ["../../etc/shadow", "/etc/shadow", "a/../b"],
        "umask": ["x", "99"],
        "user": ["a b"],
        "groups": [["keep-groups"]],
        "cap_add": [["SYS_ADMIN"], ["all"]],
        "sysctl": [{"kernel.core_pattern": "x"}],
        "mounts": [[{"destination": "/x", "source": "/", "type": "bind"}], [{"destination": "/x", "source": "/"}]],
        "volumes_from": [["x:rw,exec"], ["/x"]],
        "image_volume_mode": ["bind"],
        **{name: [{"nsmode": "host"}, {"nsmode": "path", "value": "/proc/1/ns/x"}, {"nsmode": "private", "value": "x"},
                  {"nsmode": "pod"}, {"nsmode": "container", "value": "/x"}, {"nsmode": "container"}]
           for name in ("pidns", "ipcns", "utsns", "cgroupns", "netns")},
        "userns": [{"nsmode": "host"}, {"nsmode": "keep-id"}, {"nsmode": "auto"}, {"nsmode": "path", "value": "/x"}],
        "Networks": [{"host": {}}, {"ns": {}}, {"x": {"Tomorrow": 1}}],
        "dns_server": [["$(x)"]],
        "dns_search": [["a\nb"]],
        "dns_option": [["a b"]],
        "hostadd": [["a\nb:1.2.3.4"]],
        "healthLogDestination": ["/etc", "../x"],
        "systemd": ["always"],
        "sdnotifyMode": ["weird"],
        "cgroups_mode": ["disabled", "no-conmon", "split"],
        "seccomp_policy": ["image", "empty"],
        "init_container_type": ["always"],
        "privileged": [True, 1],
        "resource_limits": [{"memory": {"limit": 2 << 30}}, {"cpu": {"quota": 300_000}}, {"pids": {"limit": 201}}],
        **{name: ["/etc/x"] for name in ("rootfs", "conmon_pid_file", "init_path", "base_hosts_file", "cgroup_parent", "oci_runtime",
           "rootfs_propagation", "apparmor_profile", "seccomp_profile_path", "group_entry", "passwd_entry", "namespace", "pod")},
        **{name: [[{"x": "y"}]] for name in ("overlay_volumes", "image_volumes", "artifact_volumes", "secrets", "devices",
           "device_cgroup_rule", "host_device_list", "portmappings")},
        **{name: [["x"]] for name in ("devices_from", "selinux_opts", "unmask", "procfs_opts", "chroot_directories", "host_users",
           "cni_networks")},
        **{name: [{"x": "y"}] for name in ("secret_env", "personality", "intelRdt", "network_options", "unified", "storage_opts",
           "weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")},
        **{name: [True] for name in ("rootfs_overlay", "label_nested", "publish_image_ports")},
        "rootfs_mapping": ["uids=0-1-10"],
        "oom_score_adj": [-500],
    },
    "spec's mount": {"destination": ["/proc", "x", "/x:y"], "type": ["bind", "devpts", "cgroup"], "source": ["/", "/etc"],
                     "options": [["bind"], ["rw,bind"], ["dev"], ["suid"], ["upperdir=/x"]],
                     "uidMappings": [[{"x": 1}]], "gidMappings": [[{"x": 1}]]},
    "spec's volume": {"Name": ["/", "../x"], "Dest": ["/proc", "x"], "Options": [["U"], ["O"], ["upperdir=/x"], ["idmap"], ["dev"]],
                      "SubPath": ["x"]},
    "spec's network": {"aliases": [["a b"]], "interface_name": ["../x"], "static_ips": [["x y"]], "static_mac": ["x"],
                       "options": [{"x": "y"}]},
    "spec's log": {"driver": ["journald", "passthrough"], "path": ["/etc/x"], "options": [{"path": "/x"}, {"tag": "x"}]},
    "spec's rlimit": {"type": ["RLIMIT_RTPRIO", "rtprio"]},
    "spec's resources": {"devices": [[{"allow": True}]], "blockIO": [{"weight": 1}], "hugepageLimits": [[{"x": 1}]],
                         "network": [{"classID": 1}], "rdma": [{"x": {}}], "unified": [{"memory.max": "max"}],
                         "memory": [{"Tomorrow": 1}], "cpu": [{"Tomorrow": 1}], "pids": [{"Tomorrow": 1}]},
    "spec's memory": {"limit": [2 << 30], "kernel": [1], "kernelTCP": [1], "disableOOMKiller": [True]},
    "spec's cpu": {"quota": [300_000], "cpus": ["0;x"], "mems": ["x"], "burst": [1], "realtimeRuntime": [1], "realtimePeriod": [1]},
    "libpod volume": {"Name": ["../x"], "Driver": ["nfs", "image"], "Options": [{"type": "none", "device": "/", "o": "bind"}]},
    "libpod network": {"name": ["../x"], "driver": ["macvlan"], "network_interface": ["x0"], "routes": [[{"destination": "0.0.0.0/0"}]],
                       "network_dns_servers": [["x y"]], "options": [{"parent": "eth0"}], "ipam_options": [{"driver": "dhcp"}]},
    "libpod subnet": {"subnet": ["x"], "gateway": ["1.2.3.4 x"], "lease_range": [{"start_ip": "x"}]},
    "libpod connect": {"container": ["../x"], "options": [{"x": "y"}]},
    "solve": {
        "Ref": ["../x", "a b", ""],
        "Session": ["a b"],
        "Definition": [b"x"],
        "Frontend": ["gateway.v0", "x"],
        "FrontendInputs": [{"context": b"x"}],
        "Entitlements": [["security.insecure"], ["network.host"], ["device"]],
        "ExporterDeprecated": ["image", "oci", "docker", "x"],
        "ExporterAttrsDeprecated": [{"push": "true"}, {"store": "true"}],
        "SourcePolicy": [b"x"],
        "SourcePolicySession": ["x"],
        "EnableSessionExporter": [True],
    },
    "frontend": {
        "context": ["https://example.org/x.git", "git@example.org:x", "http://buildkit-session/../x", "http://169.254.169.254/", "input:x"],
        "force-network-mode": ["host", "container:x"],
        "build-arg:BUILDKIT_SYNTAX": ["example.org/frontend"],
        "cache-from": ["oci-layout:/x", "a,docker://b"],
        "cache-imports": ['[{"Type": "local", "Attrs": {"src": "/"}}]', '[{"Type": "registry", "Attrs": {"ref": "dir:/x"}}]', "{", "{}",
                          '[{"Type": "s3"}]', '[{"Type": "registry", "Attrs": {"x": "y"}}]'],
        "image-resolve-mode": ["x"],
        "requestid": ["x", "frontend.X"],
    },
    "frontend's": {"context:": ["oci-layout://x@sha256:0", "https://example.org/x.git", "docker-image://dir:/etc", "input:x", "target:x", "local:"],
                   "local-sessionid:": ["a b"]},
    "cache": {
        "ExportRefDeprecated": ["example.org/x"], "ExportAttrsDeprecated": [{"ref": "x"}], "ImportRefsDeprecated": [["dir:/x"]],
        "Exports": [[{"Type": "registry", "Attrs": {"ref": "x"}}], [{"Type": "local", "Attrs": {"dest": "/"}}], [{"Type": "gha"}]],
        "Imports": [[{"Type": "local", "Attrs": {"src": "/"}}], [{"Type": "s3"}], [{"Tomorrow": 1}]],
    },
    "cache import": {"ref": ["dir:/x", "docker://x"]},
    "cache export": {"mode": ["x"]},
    "exporter": {"Type": ["image", "oci", "docker", "cacheonly"]},
    "exporter's": {"name": ["dir:/x", "a,docker://b"], "push": ["true"], "push-by-digest": ["true"]},
    "gateway": {
        "Definition": [b"x"], "Frontend": ["gateway.v0"], "FrontendInputs": [{"context": b"x"}], "FrontendOpt": [{"source": "example.org/x"},
        {"cmdline": "x"}, {"cgroup-parent": "/"}, {"ulimit": "nofile=1"}, {"shm-size": "1"}, {"add-hosts": "a=1.2.3.4"}, {"hostname": "x"},
        {"attest:sbom": "generator=x"}, {"gateway-devel": "true"}, {"contextkey": "target"}],
        "CacheImports": [[{"Type": "local"}]], "ImportCacheRefsDeprecated": [["dir:/x"]], "SourcePolicies": [[b"x"]], "ExporterAttr": [b"x"],
    },
    "result": {"attestations": [{"x": b"y"}], "metadata": [{"x": "y"}]},
    "status": {"Ref": ["../x"]},
}  # fmt: skip


def body_of(place: tuple[str, ...], name: str, value: Any) -> dict[str, Any]:
    built: Any = {name: value}
    for index, step in reversed(list(enumerate(place))):
        if step == "[]" and place[index - 1] == "Mounts":
            built = {"Type": "volume", "Source": "v", "Target": "/x"} | built
        if step == "[]" and place[index - 1] == "mounts":
            built = {"type": "tmpfs", "destination": "/x"} | built
        if step == "[]" and place[index - 1] in ("Imports", "Exports") and name != "Type":
            built = {"Type": "registry" if place[index - 1] == "Imports" else "inline"} | built
        built = [built] if step == "[]" else {step: built}
    return dict(built)


def ask(table: str, name: str, value: Any) -> Any:
    _, (method, path), place = TABLES[table]
    return decide(Request(method, path, {}, body_of(place, name, copy.deepcopy(value))), LIMITS)


def cases() -> Iterator[tuple[str, str, Any]]:
    for table, (checks, _, _) in TABLES.items():
        for name, check in checks.items():
            if check is unsent:
                assert name not in str(ask(table, name, ODD))
                continue
            yield table, name, ODD
            for value in EVIL.get(table, {}).get(name, []):
                yield table, name, value


CASES = list(cases())
GRANTED = {"Memory", "NanoCpus", "PidsLimit", "CpuQuota", "CpuPeriod", "MemorySwap", "limit", "quota", "period", "swap"}
"""Caps, which are held against the sandbox's whatever else is judged."""


@pytest.mark.parametrize(
    ("table", "name", "value"), CASES, ids=[f"{table}-{name}-{value!r:.40}" for table, name, value in CASES]
)
def test_what_is_odd_or_evil_is_refused(table: str, name: str, value: Any) -> None:
    with pytest.raises(REFUSED) as caught:
        ask(table, name, value)
    assert caught.value.hint


@pytest.mark.parametrize(("table", "name"), sorted({(table, name) for table, name, _ in CASES}))
def test_each_check_is_what_refuses(table: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES[table][0], name, lambda place, value: value)
    passed = []
    for value in [value for each, field, value in CASES if (each, field) == (table, name)]:
        try:
            passed.append(ask(table, name, value))
        except (*REFUSED, TypeError, AttributeError):
            continue
    assert passed or name in GRANTED, (
        "without its check nothing more passes: another holds it back, or it holds back nothing"
    )


def test_nothing_is_judged_by_nobody() -> None:
    """A field that is not in a table is refused, at every place."""
    for table in TABLES:
        with pytest.raises(PolicyRefused, match="may not set"):
            ask(table, "AFieldOfTomorrow", 1)


def test_every_endpoint_names_its_parameters() -> None:
    paths = {each: _example(each.path.pattern) for each in rules.ENDPOINTS}
    for each, path in paths.items():
        for method in each.methods:
            assert rules.endpoint(method, path) is each, path
            with pytest.raises(PolicyRefused, match="tomorrow"):
                decide(Request(method, path, {"tomorrow": "1"}), LIMITS)
            for name in each.query - each.lists:
                with pytest.raises(REFUSED):
                    decide(Request(method, path, {name: ["1", "2"]}), LIMITS)
            if each.takes not in ("json", "message"):
                with pytest.raises(PolicyRefused):
                    decide(Request(method, path, {}, {"Privileged": True}), LIMITS)


def _example(pattern: str) -> str:
    path = re.sub(r"\(\?:([a-z_]+)[^)]*\)", r"\1", pattern).replace("\\.", ".")
    path = re.sub(r"\[A-Za-z0-9\]\[[^\]]*\]\*", "abc", path)
    return path.split("|")[0]


def test_a_builds_parameters_of_clients_say_nothing() -> None:
    query = {"cgroupparent": "/manyoyo-builds/0123456789abcdef", **dict.fromkeys(building._CLIENTS, "0")}
    passed = decide(Request("POST", "/build", query), LIMITS).query
    assert not set(building._CLIENTS) & set(passed)
    for name in building._CLIENTS:
        with pytest.raises(PolicyRefused, match=name):
            decide(Request("POST", "/build", query | {name: "evil"}), LIMITS)


def test_labels_that_are_the_servers_own_are_no_clients() -> None:
    """Nor an image's: what a client says nothing of is said for it."""
    own = {"org.manyoyo.keep-alive": "yes"}
    request = Request("POST", "/containers/create", {}, {"Image": "x", "Labels": own})
    with pytest.raises(PolicyRefused, match="server's own"):
        decide(request, LIMITS)
    assert (decide(replace(request, ours=True), LIMITS).body or {})["Labels"] == own
    told = (decide(replace(request, body={"Image": "x", "Labels": {"a": "b"}}), LIMITS).body or {})["Labels"]
    assert told == {"a": "b", "org.manyoyo.keep-alive": "", "org.manyoyo.secrets": "", "org.manyoyo.server-pid": ""}


def test_a_variable_without_a_value_is_not_sent() -> None:
    """Podman would give it the one that the engine has."""
    body = decide(
        Request("POST", "/containers/create", {}, {"Image": "x", "Env": ["HTTP_PROXY", "A=", "B=1=2"]}), LIMITS
    ).body
    assert (body or {})["Env"] == ["A=", "B=1=2"]


@pytest.mark.parametrize(
    "name",
    [
        '["evil"]', ' ["evil"]', './["evil"]', '\t["x"]', "x.in", "x.in/", "x.in/.", "./a/../../x", "../x", "/x", "a/../../x",
        ' ["http:\\/\\/x\\/D"]', "http://x/D", "a:b", "", "-", "x\ny",
    ],
)  # fmt: skip
def test_names_of_dockerfiles(name: str) -> None:
    query = {"cgroupparent": "/manyoyo-builds/0123456789abcdef", "dockerfile": name}
    if name in ("", "-"):
        assert decide(Request("POST", "/build", query), LIMITS).query["dockerfile"] == (name or "Dockerfile")
        return
    with pytest.raises(PolicyRefused):
        decide(Request("POST", "/build", query), LIMITS)


@pytest.mark.parametrize(
    "name", ["Dockerfile", "./docker/Dockerfile.dev", "my file", ".hidden/D", "Dockerfile.ünicode"]
)
def test_names_of_dockerfiles_that_are_some(name: str) -> None:
    query = {"cgroupparent": "/manyoyo-builds/0123456789abcdef", "dockerfile": name}
    assert decide(Request("POST", "/build", query), LIMITS).query["dockerfile"] == name.removeprefix("./")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/build", {"t": "dir:/x", "cgroupparent": "/manyoyo-builds/0123456789abcdef"}),
        ("/build", {"t": ["a", "docker://b"], "cgroupparent": "/manyoyo-builds/0123456789abcdef"}),
        ("/images/create", {"fromImage": "dir", "tag": "/etc"}),
        ("/images/create", {"fromImage": "docker://x"}),
        ("/images/x/tag", {"repo": "dir:/x"}),
        ("/images/x/tag", {"repo": "x", "tag": "a/b"}),
        ("/commit", {"container": "x", "repo": "oci:/x"}),
    ],
)
def test_names_of_images(path: str, query: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused):
        decide(Request("POST", path, query), LIMITS)


_SOCKET = "/var/run/docker.sock"


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/containers/create", {"Image": "x", "HostConfig": {"Binds": [f"{_SOCKET}:/x:ro", "v:/y"]}}, "HostConfig.Binds.0"),
        ("/containers/create", {"Image": "x", "HostConfig": {"Mounts": [{"Type": "bind", "Source": _SOCKET, "Target": "/x"}]}},
         "HostConfig.Mounts.0.Source"),
        ("/libpod/containers/create", {"image": "x", "mounts": [{"type": "bind", "source": _SOCKET, "destination": "/x"}]},
         "mounts.0.source"),
    ],
)  # fmt: skip
def test_an_engines_socket_is_the_gates(path: str, body: dict[str, Any], place: str) -> None:
    with pytest.raises(PolicyRefused, match="no Docker socket"):
        decide(Request("POST", path, {}, body), LIMITS)
    found: Any = decide(Request("POST", path, {}, body), replace(LIMITS, socket="/run/manyoyo/gate.sock")).body
    for step in place.split("."):
        found = found[int(step)] if step.isdigit() else found[step]
    assert found.removesuffix(":/x:ro") == "/run/manyoyo/gate.sock"


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "/libpod/containers/x/top", {"ps_args": "aux"}),
        ("GET", "/libpod/containers/x/top", {"ps_args": ["pid,user", "-o"]}),
        ("GET", "/libpod/containers/x/top", {"ps_args": "hpid"}),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '{"a": "../b"}'}),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '{"a": ".."}'}),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '["a"]'}),
        ("POST", "/libpod/build", {"cgroupparent": "/manyoyo-builds/0123456789abcdef", "seccomp": "unconfined"}),
        ("POST", "/libpod/build", {"cgroupparent": "/manyoyo-builds/0123456789abcdef", "isolation": "chroot"}),
        ("POST", "/libpod/build", {"cgroupparent": "/manyoyo-builds/0123456789abcdef", "output": "dir:/x"}),
        ("POST", "/libpod/containers/x/start", {"detachKeys": "a", "detachkeys": "b"}),
    ],
)
def test_parameters_of_podmans_own(method: str, path: str, query: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused):
        decide(Request(method, path, query), LIMITS)


def test_parameters_of_podmans_own_that_pass() -> None:
    assert decide(Request("GET", "/libpod/containers/x/top", {"ps_args": "pid,user"}), LIMITS)
    assert decide(Request("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '{"a": "b"}'}), LIMITS)
    query = decide(Request("POST", "/libpod/containers/x/start", {"detachKeys": "a", "detachkeys": "a"}), LIMITS).query
    assert query == {"detachkeys": "a"}
