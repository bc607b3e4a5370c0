"""The policy: each rule fires, and what the tools ask for passes."""

from typing import Any

import pytest

from manyoyo_mcp.errors import CapExceeded, PolicyRefused
from manyoyo_mcp.policy.rules import Allowed, Limits, Request, decide
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.values import Caps

LIMITS = Limits(default=Caps(1, 512 << 20, 100), largest=Caps(2, 1 << 30, 200))
BUILD = {"cgroupparent": "/manyoyo-builds/0123456789abcdef", "t": "x:1", "dockerfile": "Dockerfile"}


def create(host_config: dict[str, Any] | None = None, **body: Any) -> Allowed:
    data = {"Image": "x", "Cmd": ["true"], "HostConfig": host_config or {}, **body}
    return decide(Request("POST", "/containers/create", {}, data), LIMITS)


def build(**query: str) -> Allowed:
    return decide(Request("POST", "/build", {**BUILD, **query}), LIMITS)


def test_caps_are_granted_where_none_are_asked_for() -> None:
    host = (create().body or {})["HostConfig"]
    assert host == {"NanoCpus": 10**9, "Memory": 512 << 20, "MemorySwap": 512 << 20, "PidsLimit": 100}


def test_swap_is_never_granted() -> None:
    host = (create({"Memory": 64 << 20, "MemorySwap": -1}).body or {})["HostConfig"]
    assert host["MemorySwap"] == 64 << 20


@pytest.mark.parametrize("caps", [{"Memory": 2 << 30}, {"NanoCpus": 3 * 10**9}, {"PidsLimit": 201}])
def test_caps_above_the_sandboxes_own_are_refused(caps: dict[str, int]) -> None:
    with pytest.raises(CapExceeded) as caught:
        create(caps)
    assert "start_sandbox" in caught.value.hint


def test_what_says_nothing_or_harms_nobody_passes() -> None:
    log = {"Type": "json-file", "Config": {"max-size": "1m"}}
    host = (create({"Binds": None, "LogConfig": log}, MacAddress=None).body or {})["HostConfig"]
    assert host["LogConfig"] == log


@pytest.mark.parametrize("none", [-1, 0])
@pytest.mark.parametrize("cap", ["Memory", "NanoCpus", "PidsLimit"])
def test_unlimited_becomes_the_default(cap: str, none: int) -> None:
    """To an engine, -1 is no cap."""
    assert (create({cap: none}).body or {})["HostConfig"][cap] == LIMITS.default.host_config()[cap]


@pytest.mark.parametrize(
    "host_config",
    [
        {"Privileged": True},
        {"CapAdd": ["SYS_ADMIN"]},
        {"Binds": ["/:/x"]},
        {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/x"}]},
        {"Devices": [{"PathOnHost": "/dev/sda"}]},
        {"DeviceRequests": [{"Count": -1}]},
        {"DeviceCgroupRules": ["b *:* rwm"]},
        {"SecurityOpt": ["seccomp=unconfined"]},
        {"PidMode": "host"},
        {"IpcMode": "host"},
        {"UTSMode": "host"},
        {"UsernsMode": "host"},
        {"CgroupnsMode": "host"},
        {"CgroupParent": "/"},
        {"Cgroup": "container:x"},
        {"Runtime": "runc"},
        {"Sysctls": {"kernel.core_pattern": "x"}},
        {"Ulimits": [{"Name": "rtprio", "Hard": 1}]},
        {"VolumesFrom": ["x:rw,exec"]},
        {"VolumeDriver": "nfs"},
        {"OomKillDisable": True},
        {"OomScoreAdj": -1000},
        {"CpuRealtimeRuntime": 1},
        {"MaskedPaths": []},
        {"ReadonlyPaths": []},
        {"privileged": True},
        {"NetworkMode": "pasta:--config-net"},
        {"PublishAllPorts": True},
        {"PortBindings": {"80/tcp": [{}]}},
        {"Links": ["a"]},
        {"StorageOpt": {"size": "1T"}},
        {"AFieldOfTomorrow": {"on": True}},
        {"NetworkMode": "host"},
        {"NetworkMode": "container:../x"},
        {"NetworkMode": "ns:/proc/1/ns/net"},
        {"LogConfig": {"Type": "syslog", "Config": {}}},
        {"RestartPolicy": {"Name": "weird"}},
        {"Tmpfs": {"/x": "rw,dev"}},
        {"Tmpfs": {"/x": "suid"}},
        {"Tmpfs": {"/x": "rw,bind"}},
        {"Tmpfs": {"/x": "rbind,rw"}},
        {"Tmpfs": {"relative": ""}},
        {"NetworkMode": "pasta"},
        {"NetworkMode": "slirp4netns"},
        {"LogConfig": {"Type": "k8s-file", "Config": {"path": "/etc/cron.d/x"}}},
        {"LogConfig": {"Type": "json-file", "AFieldOfTomorrow": "x"}},
    ],
)
def test_what_reaches_out_is_refused(host_config: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused) as caught:
        create(host_config)
    assert caught.value.hint


@pytest.mark.parametrize(
    "body", [{"Volumes": {"/proc/x": {}}}, {"NetworkingConfig": {"EndpointsConfig": {"host": {}}}}, {"Tomorrow": "1"}]
)
def test_what_a_container_may_not_be_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused):
        create(None, **body)


def test_a_builds_caps_and_network_are_set() -> None:
    query = build().query
    assert query["memory"] == query["memswap"] == str(512 << 20)
    assert query["cpuquota"] == "100000" and query["cpuperiod"] == "100000"
    assert query["nsoptions"] == '[{"Name": "network"}]'


def test_a_callers_namespace_options_are_overwritten() -> None:
    assert build(nsoptions='[{"Name":"pid","Host":true}]').query["nsoptions"] == '[{"Name": "network"}]'


@pytest.mark.parametrize(
    "query",
    [
        {"volume": "/:/x"},
        {"securityopt": '["seccomp=unconfined"]'},
        {"devices": '["/dev/sda"]'},
        {"addcaps": '["SYS_ADMIN"]'},
        {"secrets": '["id=x,src=/etc/shadow"]'},
        {"isolation": "chroot"},
        {"extrahosts": '["a:1"]'},
        {"remote": "https://example.invalid/x.git"},
        {"networkmode": "host"},
        {"networkmode": "container:x"},
        {"cgroupparent": "/"},
        {"cgroupparent": "/manyoyo-builds/../x"},
        {"cgroupparent": "/manyoyo-builds/0123456789abcdef/../../x"},
        {"cgroupparent": "/manyoyo-builds/0123456789abcdef\n"},
        {"cgroupparent": ""},
        {"dockerfile": "/etc/shadow"},
        {"dockerfile": "../../etc/shadow"},
        {"dockerfile": '["/etc/shadow"]'},
        {"version": "2"},
        {"ulimits": '["nofile=1:1"]'},
        {"shmsize": "99999999999"},
        {"tomorrow": "1"},
    ],
)
def test_what_a_build_may_not_do(query: dict[str, str]) -> None:
    with pytest.raises(PolicyRefused):
        build(**query)


@pytest.mark.parametrize("query", [{"memory": "-1", "memswap": "-1"}, {"cpuquota": "-1"}, {"cpuperiod": "-5"}])
def test_a_builds_unlimited_becomes_the_default(query: dict[str, str]) -> None:
    """Swap with it: an engine takes -1 for no cap."""
    assert build(**query).query == build().query


@pytest.mark.parametrize(
    "query", [{"memory": str(2 << 30)}, {"cpuquota": "500000"}, {"cpuquota": "5000", "cpuperiod": "1000"}]
)
def test_a_builds_caps_above_the_sandboxes_own_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(CapExceeded):
        build(**query)


@pytest.mark.parametrize("body", [{"Privileged": True}, {"Tomorrow": [1, 1]}, {"Cmd": [1]}])
def test_what_an_exec_may_not_do(body: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused):
        decide(Request("POST", "/containers/abc/exec", {}, {"Cmd": ["true"], **body}), LIMITS)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/swarm/init"),
        ("POST", "/plugins/pull"),
        ("POST", "/images/abc/push"),
        ("GET", "/volumes/../create"),
        ("POST", "/containers/abc/checkpoints"),
        ("GET", "/containers/../info"),
        ("GET", "/containers/abc%2f..%2fx/json"),
        ("GET", "//info"),
        ("GET", "/images/a/../../info/json"),
        ("GET", "/images/a//b/json"),
        ("GET", "/images/a%2fb/json"),
        ("DELETE", "/_ping"),
        ("POST", "/libpod/play/kube"),
        ("GET", "/containers/abc/attach/ws"),
        ("GET", "/session"),
        ("GET", "/grpc"),
        ("GET", "/nothing/like/this"),
        ("POST", "/build/cancel"),
        ("GET", "/_ping/more"),
        ("GET", "/version\n"),
    ],
)
def test_endpoints_that_are_not_named_are_refused(method: str, path: str) -> None:
    with pytest.raises(PolicyRefused):
        decide(Request(method, path), LIMITS)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/_ping"),
        ("POST", "/containers/abc/start"),
        ("POST", "/containers/abc/attach"),
        ("DELETE", "/containers/abc"),
        ("PUT", "/containers/abc/archive"),
        ("POST", "/exec/abc/start"),
        ("GET", "/images/localhost/a/b:1.2/json"),
        ("GET", "/images/json"),
    ],
)
def test_what_the_tools_ask_for_passes(method: str, path: str) -> None:
    assert decide(Request(method, path), LIMITS)


def test_an_image_is_not_imported_from_a_url() -> None:
    with pytest.raises(PolicyRefused):
        decide(Request("POST", "/images/create", {"fromSrc": "http://example.invalid/x.tar"}), LIMITS)


@pytest.mark.parametrize(
    ("path", "query", "body"),
    [
        ("/containers/create", {"tomorrow": "1"}, {"Image": "x"}),
        ("/containers/abc/update", {}, {"Memory": 64 << 20, "BlkioWeight": 500}),
        ("/images/create", {"fromImage": "x", "changes": "USER root"}, None),
    ],
)
def test_parameters_that_are_not_named_are_refused(path: str, query: dict[str, str], body: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused):
        decide(Request("POST", path, query, body), LIMITS)


def test_an_update_has_the_same_limits() -> None:
    default = LIMITS.default.host_config()
    for asked, names in (
        ({"Memory": -1, "PidsLimit": -1, "CpuQuota": -1}, default.keys()),
        ({"Memory": -1, "MemorySwap": -1}, {"Memory", "MemorySwap"}),
        ({"NanoCpus": -1, "Memory": 0}, {"NanoCpus"}),
        ({"PidsLimit": 0}, {"PidsLimit"}),
        ({"Memory": 0, "NanoCpus": 0, "PidsLimit": None, "MemorySwap": -1, "CpuPeriod": 5}, ()),
    ):
        body = decide(Request("POST", "/containers/abc/update", {}, asked), LIMITS).body
        assert body == {name: default[name] for name in names}, (
            "no more than the default, and nothing that is not named"
        )
    with pytest.raises(CapExceeded):
        decide(Request("POST", "/containers/abc/update", {}, {"Memory": 2 << 30}), LIMITS)


def test_what_can_not_be_read_is_not_sent() -> None:
    client = GuardedClient(lambda: pytest.fail("a connection was made"), lambda: LIMITS)
    with pytest.raises(PolicyRefused, match="can't be judged"):
        client._post(client._url("/containers/create"), data=b'{"Image": "x"}')
