"""What may not be asked of an engine. Each is asked straight at the engine, too: that takes it, so it is the policy that holds."""

from collections.abc import Sequence
from typing import Any

from tests.escape.canaries import CANARY
from tests.escape.roads import Road, tar
from tests.escape.vectors import (
    GATES,
    ON_HOST,
    OWN,
    ROADS,
    Out,
    Outcome,
    Vector,
    add,
    contained,
    declined,
    vector,
)
from tests.escape.world import World

_CIS = "CIS Docker Benchmark 5"


def _create(
    name: str, source: str, host: dict[str, Any] | None = None, *, unasked: Sequence[str] = (), words: str = "",
    code: str = "POLICY_REFUSED", smoke: bool = False, **config: Any,
) -> None:  # fmt: skip
    """A container that may not be made. `unasked`: engines and tiers that would not make it by themselves either."""

    async def attempt(world: World, road: Road) -> Outcome:
        body = config | ({"HostConfig": host} if host is not None else {})
        made = await road.create(**body)
        outcome = declined(world, made, code, words)
        if not {world.engine, world.tier} & set(unasked) and (name, "asked") not in world.kept:
            made = await world.control.create(**body)
            assert made.ok, f"the engine itself does not make it, so this shows nothing: {made}"
            await world.control.drop(made.json()["Id"])
            world.kept[name, "asked"] = True
        return outcome

    add(Vector(name, source, "requests", attempt, smoke=smoke))


# fmt: off
_create("privileged", f"{_CIS}.4", {"Privileged": True}, unasked=["userns"], words="never privileged", smoke=True)
_create("bind-root", f"{_CIS}.5", {"Binds": ["/:/x"]}, smoke=True)
_create("bind-docker-sock", f"{_CIS}.31", {"Binds": ["/run/manyoyo/engine.sock:/var/run/docker.sock"]}, unasked=["rootless"])
_create("bind-relative", "CVE-2015-3631's kin", {"Binds": ["../../etc:/x"]}, unasked=["docker"])
_create("bind-with-propagation", OWN, {"Binds": ["/run:/x:shared"]}, unasked=["docker", "podman"])
_create("mount-a-path", f"{_CIS}.5", {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/x"}]})
_create("mount-option-in-target", "option injection (CVE-2024-9407's kin)", {"Mounts": [{"Type": "volume", "Target": "/x,type=bind,source=/"}]}, unasked=["docker", "podman"])
_create("mount-volume-driver", OWN, {"Mounts": [{"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {
    "Name": "local", "Options": {"type": "none", "o": "bind", "device": "/"}}}}]})
_create("mount-subpath", "CVE-2023-2728's kin (subpath links)", {"Mounts": [{"Type": "volume", "Source": "v", "Target": "/x",
    "VolumeOptions": {"Subpath": "../../.."}}]}, unasked=["docker", "podman"])
_create("mount-image", OWN, {"Mounts": [{"Type": "image", "Source": "localhost/manyoyo-test/escape:latest", "Target": "/x"}]}, unasked=["docker", "podman"])
_create("volume-over-proc", "CVE-2015-3631, CVE-2019-16884", {"Binds": ["escape-v:/proc"]}, unasked=["docker", "podman"])
_create("volume-over-dev", OWN, {"Binds": ["escape-v:/dev"]})
_create("tmpfs-over-sys", OWN, {"Tmpfs": {"/sys": "rw"}})
_create("pid-host", f"{_CIS}.15", {"PidMode": "host"}, unasked=["userns"], smoke=True)
_create("network-host", f"{_CIS}.9, CVE-2020-15257", {"NetworkMode": "host"}, unasked=["userns"])
_create("network-by-path", OWN, {"NetworkMode": "ns:/proc/1/ns/net"}, unasked=["docker", "rootless"])
_create("ipc-host", f"{_CIS}.16", {"IpcMode": "host"})
_create("uts-host", f"{_CIS}.20", {"UTSMode": "host"})
_create("userns-host", f"{_CIS}.30", {"UsernsMode": "host"})
_create("userns-keep-id", OWN, {"UsernsMode": "keep-id"}, unasked=["docker", "podman"])
_create("cgroupns-host", OWN, {"CgroupnsMode": "host"})
_create("cgroup-parent", f"{_CIS}.24", {"CgroupParent": "/init"})
_create("cap-sys-admin", f"{_CIS}.3", {"CapAdd": ["SYS_ADMIN"]}, smoke=True)
_create("cap-all", f"{_CIS}.3", {"CapAdd": ["ALL"]})
_create("cap-dac-read-search", "CVE-2014-3519 (shocker.c)", {"CapAdd": ["CAP_DAC_READ_SEARCH"]})
_create("cap-net-admin", "CVE-2020-14386's need", {"CapAdd": ["NET_ADMIN"]})
_create("device", f"{_CIS}.17", {"Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm"}]})
_create("device-cgroup-rule", OWN, {"DeviceCgroupRules": ["b *:* rwm"]})
_create("device-request", "CVE-2024-0132's road (GPU hooks)", {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["x/y=all"]}]}, unasked=["docker", "podman"])
_create("seccomp-unconfined", f"{_CIS}.21", {"SecurityOpt": ["seccomp=unconfined"]})
_create("apparmor-unconfined", f"{_CIS}.1", {"SecurityOpt": ["apparmor=unconfined"]}, unasked=["docker", "podman"])
_create("unmask-all", _CIS, {"SecurityOpt": ["systempaths=unconfined"]}, unasked=["docker"])
_create("masked-paths-empty", "CVE-2023-28642's aim", {"MaskedPaths": [], "ReadonlyPaths": []})
_create("runtime", "CVE-2024-21626's need: a runtime of one's own", {"Runtime": "/bin/sh"}, unasked=["docker", "podman"])
_create("sysctl-kernel", "core_pattern by sysctl", {"Sysctls": {"kernel.msgmax": "8192"}})
_create("log-driver", OWN, {"LogConfig": {"Type": "syslog", "Config": {"syslog-address": "unix:///run/manyoyo/engine.sock"}}}, unasked=["docker", "podman"])
_create("log-path", "podman's log option `path`", {"LogConfig": {"Type": "k8s-file", "Config": {"path": f"{CANARY}/empty"}}}, unasked=["docker"])
_create("annotations", "CVE-2022-0811's kin (OCI hooks by annotation)", {"Annotations": {"run.oci.hooks.stderr": "/run/x"}})
_create("storage-opt", OWN, {"StorageOpt": {"size": "100g"}}, unasked=["docker", "podman"])
_create("oom-score", OWN, {"OomScoreAdj": -900})
_create("oom-kill-disabled", OWN, {"OomKillDisable": True, "Memory": 64 << 20})
_create("blkio-device", OWN, {"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1}]}, unasked=["docker", "podman"])
_create("more-memory-than-the-sandbox", OWN, {"Memory": 64 << 30}, code="CAP_EXCEEDED", words="more than the sandbox itself has")
_create("more-pids-than-the-sandbox", OWN, {"PidsLimit": 1 << 20}, code="CAP_EXCEEDED")
_create("unknown-field", OWN, {"Newfangled": True})
_create("key-in-another-case", "Go's JSON ignores case", unasked=["userns"], hostconfig={"privileged": True})
_create("volumes-with-source", "podman joins Volumes to its command line", unasked=["docker", "podman"], Volumes={"/:/x": {}})
_create("environment-of-the-engine", "podman's --env '*'", unasked=["docker"], Env=["*"])
_create("image-by-transport", "podman's transports", unasked=["docker", "podman"], Image="dir:/etc")


# fmt: on


def _ask(
    name: str, source: str, method: str, path: str, query: dict[str, Any] | None = None, body: Any = None, *,
    data: bytes | None = None, code: str = "POLICY_REFUSED", words: str = "", smoke: bool = False, roads: Sequence[str] = ROADS,
) -> None:  # fmt: skip
    """Any other request that is refused."""

    async def attempt(world: World, road: Road) -> Outcome:
        given = query
        if path == "/build" and given is not None and "cgroupparent" not in given:
            given = road.build_query() | given
        if world.tier not in ON_HOST or "/x/" not in path:
            return declined(world, await road.request(method, path, given, body, data), code, words)
        async with road.service("sleep", "100") as container:  # who has none is told so first
            answer = await road.request(method, path.replace("/x/", f"/{container}/"), given, body, data)
            assert answer.code != "404" and not answer.code.endswith("_NOT_FOUND"), answer
            return declined(world, answer, code, words)

    add(Vector(name, source, "requests", attempt, roads, smoke=smoke))


_ask(
    "volume-of-a-path",
    "local volume driver as a bind",
    "POST",
    "/volumes/create",
    body={"Name": "escape-v2", "DriverOpts": {"type": "none", "o": "bind", "device": "/"}},
)
_ask("volume-of-a-disk", OWN, "POST", "/volumes/create", body={"DriverOpts": {"type": "ext4", "device": "/dev/vda"}})
_ask(
    "volume-of-a-server",
    OWN,
    "POST",
    "/volumes/create",
    body={"DriverOpts": {"type": "nfs", "o": "addr=10.0.0.1", "device": ":/"}},
)
_ask("volume-driver", "CVE-2019-5736's cousin: volume plugins", "POST", "/volumes/create", body={"Driver": "sshfs"})
_ask(
    "network-macvlan",
    OWN,
    "POST",
    "/networks/create",
    body={"Name": "x", "Driver": "macvlan", "Options": {"parent": "eth0"}},
)
_ask(
    "network-bridge-name",
    OWN,
    "POST",
    "/networks/create",
    body={"Name": "x", "Options": {"com.docker.network.bridge.name": "eth0"}},
)
_ask("network-address-manager", OWN, "POST", "/networks/create", body={"Name": "x", "IPAM": {"Driver": "dhcp"}})
_ask(
    "import-from-a-url",
    "CVE-2014-9356's kin, SSRF",
    "POST",
    "/images/create",
    {"fromSrc": "http://169.254.169.254/latest"},
    words="not from a URL",
)
_ask("pull-by-transport", "podman's transports", "POST", "/images/create", {"fromImage": "oci-archive:/etc/passwd"})
_ask("push", OWN, "POST", "/images/localhost/manyoyo-test/escape/push", {"tag": "latest"})
_ask("plugin", OWN, "POST", "/plugins/pull", {"remote": "x"}, [])
_ask("swarm", OWN, "POST", "/swarm/init", body={"ListenAddr": "0.0.0.0"})
_ask("libpod-api", OWN, "POST", "/libpod/play/kube", code="INVALID_ARGUMENT", roads=GATES)  # at a version of Docker's
_ask("path-with-dots", OWN, "GET", "/containers/../libpod/info")
_ask("path-encoded", "CVE-2014-9358's kin", "GET", "/containers/%2e%2e/json")
_ask("update-devices", OWN, "POST", "/containers/x/update", body={"Devices": [{"PathOnHost": "/dev/mem"}]})
_ask("update-beyond-the-sandbox", OWN, "POST", "/containers/x/update", body={"Memory": 1 << 40}, code="CAP_EXCEEDED")
_ask(
    "exec-privileged",
    OWN,
    "POST",
    "/containers/x/exec",
    body={"Cmd": ["id"], "Privileged": True},
    words="never privileged",
)
_ask(
    "join-the-outer-network",
    OWN,
    "POST",
    "/networks/host/connect",
    body={"Container": "x", "EndpointConfig": {"Links": ["y"]}},
)
_CONTEXT = tar({"Dockerfile": b"FROM scratch\n"})
for _name, _query, _source in (
    ("build-network-host", {"networkmode": "host"}, "CVE-2024-23653's kin (entitlements)"),
    ("build-cgroup", {"cgroupparent": "/"}, OWN),
    ("build-remote", {"remote": "http://169.254.169.254/"}, OWN),
    ("build-dockerfile-outside", {"dockerfile": "../../../etc/shadow"}, OWN),
    ("build-dockerfile-list", {"dockerfile": '["/etc/shadow"]'}, "podman takes a JSON list"),
    ("build-preprocessed", {"dockerfile": "Dockerfile.in"}, "podman's cpp reads #include files"),
    ("build-output", {"outputs": "type=local,dest=/"}, OWN),
    ("build-volume", {"volume": "/:/x"}, OWN),
    ("build-capabilities", {"addcaps": '["SYS_ADMIN"]'}, "CVE-2024-23653's kin (entitlements)"),
    ("build-devices", {"devices": '["/dev/mem"]'}, OWN),
    ("build-seccomp", {"seccomp": "unconfined"}, OWN),
    ("build-security-options", {"securityopt": '["seccomp=unconfined"]'}, OWN),
    ("build-secret-file", {"secrets": '["id=x,src=/etc/shadow"]'}, OWN),
    ("build-isolation", {"isolation": "chroot"}, "CVE-2021-3602"),
    ("build-beyond-the-sandbox", {"memory": str(1 << 40)}, OWN),
):  # fmt: skip
    _ask(
        _name,
        _source,
        "POST",
        "/build",
        _query,
        data=_CONTEXT,
        code="CAP_EXCEEDED" if "beyond" in _name else "POLICY_REFUSED",
    )


@vector("sysctl-with-a-plus", "CVE-2022-0811 (cr8escape)")
async def sysctl_with_a_plus(world: World, road: Road) -> Outcome:
    """An allowed name, whose value was once taken for several settings."""
    value = "1024+kernel.core_pattern=" + (await world.outer("cat /proc/sys/kernel/core_pattern")).strip()
    code, text = await road.run(
        "cat /proc/sys/kernel/core_pattern", HostConfig={"Sysctls": {"net.core.somaxconn": value}}
    )
    assert code != 0, f"such a container runs: {text}"
    return contained(f"it does not start: exit code {code}")


@vector("repeated-keys", "CVE-2019-14271's time: Go merges repeated keys", roads=GATES)
async def repeated_keys(world: World, road: Road) -> Outcome:
    raw = b'{"Image": "localhost/manyoyo-test/escape:latest", "HostConfig": {"Privileged": true}, "HostConfig": {"Memory": 67108864}}'
    answer = await road.request("POST", "/containers/create", data=raw)
    assert answer.ok, answer
    container = answer.json()["Id"]
    looked = (await road.request("GET", f"/containers/{container}/json")).json()
    await road.drop(container)
    if looked["HostConfig"]["Privileged"]:
        raise Out("the first key counted")
    return contained("the request is written anew")
