"""What a field's value has to be, down to the last thing that is written in it: of the wrong type, too long, or leading out."""

from dataclasses import replace
from typing import Any

import pytest

from manyoyo_mcp.errors import CapExceeded, InvalidArgument, PolicyRefused
from manyoyo_mcp.policy.base import Request, unsent
from manyoyo_mcp.policy.rules import decide
from tests.unit.test_policy_rules import LIMITS, ODD, TABLES, ask

DOCKER, LIBPOD = "/containers/create", "/libpod/containers/create"
SOCKET = "/var/run/docker.sock"
FIELDS = [
    (table, name) for table, (checks, _, _) in TABLES.items() for name, check in checks.items() if check is not unsent
]
OPAQUE = {("error", "details")}
"""Lists whose items are the engine's affair."""


def post(path: str, body: dict[str, Any], **limits: Any) -> dict[str, Any]:
    return decide(Request("POST", path, {}, body), replace(LIMITS, **limits)).body or {}


@pytest.mark.parametrize(("table", "name"), FIELDS)
def test_a_value_of_another_type_is_refused_as_such(table: str, name: str) -> None:
    """By the field's own check, which names it; not by whatever stumbles over it."""
    for odd in (ODD, [ODD], {"x": ODD}):
        if odd == [ODD] and (table, name) in OPAQUE:
            continue
        with pytest.raises(PolicyRefused):
            ask(table, name, odd)


UNSENT = [
    (table, name) for table, (checks, _, _) in TABLES.items() for name, check in checks.items() if check is unsent
]


@pytest.mark.parametrize(("table", "name"), UNSENT)
def test_what_is_of_no_use_to_an_engine_is_not_sent(table: str, name: str) -> None:
    assert "odd" not in str(ask(table, name, ODD))


_HOST = "HostConfig"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DOCKER, {"Cmd": "x\0"}),
        (DOCKER, {"Cmd": ["x\0"]}),
        (DOCKER, {"Labels": {"\0": "x"}}),
        (DOCKER, {"Volumes": ["/x"]}),
        (DOCKER, {"ExposedPorts": ["80/tcp"]}),
        (DOCKER, {"Healthcheck": {"Test": "x"}}),
        (DOCKER, {"Healthcheck": {"Interval": "1s"}}),
        (DOCKER, {"Healthcheck": {"Timeout": "1s"}}),
        (DOCKER, {"Healthcheck": {"StartPeriod": True}}),
        (DOCKER, {"Healthcheck": {"StartInterval": 1.5}}),
        (DOCKER, {"Healthcheck": {"Retries": "x"}}),
        (DOCKER, {"Healthcheck": {"Tomorrow": 1}}),
        (DOCKER, {_HOST: {"LogConfig": {"Config": {"max-size": 5}}}}),
        (DOCKER, {_HOST: {"LogConfig": {"Config": {"max-file": ["3"]}}}}),
        (DOCKER, {_HOST: {"Ulimits": [{"Name": "nofile", "Soft": "1"}]}}),
        (DOCKER, {_HOST: {"Ulimits": [{"Name": "nofile", "Hard": "1"}]}}),
        (DOCKER, {_HOST: {"Ulimits": [{"Name": "nofile", "Tomorrow": 1}]}}),
        (DOCKER, {_HOST: {"Ulimits": [{"Name": "rtprio"}]}}),
        (DOCKER, {_HOST: {"Ulimits": ["nofile=1"]}}),
        (DOCKER, {_HOST: {"Ulimits": [{"Soft": 1, "Hard": 1}]}}),
        (DOCKER, {_HOST: {"Mounts": [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": "1g"}}]}}),
        (DOCKER, {_HOST: {"Mounts": [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"Mode": "0777"}}]}}),
        (DOCKER, {_HOST: {"Mounts": [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"Options": [["dev"]]}}]}}),
        (DOCKER, {_HOST: {"Mounts": ["type=bind,source=/,target=/x"]}}),
        (DOCKER, {_HOST: {"Tmpfs": {"/x": 5}}}),
        (DOCKER, {_HOST: {"Tmpfs": ["/x"]}}),
        (DOCKER, {_HOST: {"CapAdd": [5]}}),
        (DOCKER, {_HOST: {"Sysctls": {"net.core.somaxconn": 5}}}),
        (DOCKER, {_HOST: {"NetworkMode": 5}}),
        (DOCKER, {_HOST: {"NetworkMode": "a b"}}),
        (DOCKER, {"NetworkingConfig": {"Tomorrow": 1}}),
        (DOCKER, {"NetworkingConfig": {"EndpointsConfig": ["x"]}}),
        (DOCKER, {"NetworkingConfig": {"EndpointsConfig": {"x": ["y"]}}}),
        *((DOCKER, {"NetworkingConfig": {"EndpointsConfig": {"x": {"IPAMConfig": {name: 5}}}}})
          for name in ("IPv4Address", "IPv6Address", "LinkLocalIPs")),
        ("/networks/create", {"Name": "x", "IPAM": {"Driver": 5}}),
        ("/networks/create", {"Name": "x", "IPAM": {"Config": {"Subnet": "10.1.0.0/16"}}}),
        ("/networks/create", {"Name": "x", "IPAM": {"Config": ["10.1.0.0/16"]}}),
        ("/networks/create", {"Name": "x", "IPAM": {"Config": [{"Subnet": 5}]}}),
        ("/networks/create", {"Name": "x", "Options": {"mtu": 5}}),
        ("/volumes/create", {"DriverOpts": {"type": "none", "device": "none"}}),
        (LIBPOD, {"healthconfig": {"Test": "x"}}),
        (LIBPOD, {"log_configuration": {"options": {"max-size": 5}}}),
        (LIBPOD, {"log_configuration": {"options": {"Tomorrow": "x"}}}),
        (LIBPOD, {"resource_limits": {"pids": {"limit": "x"}}}),
        (LIBPOD, {"resource_limits": {"pids": {"Tomorrow": 1}}}),
        (LIBPOD, {"netns": {"nsmode": "container", "value": 5}}),
        (LIBPOD, {"netns": {"nsmode": 5}}),
        (LIBPOD, {"netns": {"nsmode": "", "value": 5}}),
        (LIBPOD, {"netns": {"tomorrow": 1}}),
        (LIBPOD, {"userns": {"nsmode": "", "value": "x"}}),
        ("/libpod/containers/x/update", {"Tomorrow": 1}),
        ("/libpod/containers/x/update", {"devices": [{"allow": True}]}),
        (LIBPOD, {"mounts": ["type=bind"]}),
        (LIBPOD, {"Networks": {"x": ["y"]}}),
        (LIBPOD, {"Networks": ["x"]}),
        (LIBPOD, {"env": {"A": 5}}),
        ("/libpod/networks/create", {"subnets": [{"lease_range": {"end_ip": "x"}}]}),
        ("/libpod/networks/create", {"subnets": [{"lease_range": {"Tomorrow": "x"}}]}),
        ("/libpod/networks/create", {"subnets": ["10.1.0.0/16"]}),
        ("/libpod/networks/create", {"ipam_options": {"driver": 5}}),
        ("/libpod/networks/create", {"ipam_options": {"Tomorrow": "x"}}),
        ("/libpod/networks/x/disconnect", {"Container": "../x"}),
        ("/libpod/networks/x/disconnect", {"Force": "yes"}),
        ("/libpod/networks/x/disconnect", {"Tomorrow": 1}),
        ("/libpod/exec/x/remove", {"Force": "yes"}),
        ("/libpod/exec/x/remove", {"Tomorrow": 1}),
    ],
)  # fmt: skip
def test_what_lies_deep_is_looked_at_too(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused) as caught:
        post(path, body)
    assert caught.value.hint


def test_what_lies_deep_and_says_nothing_evil_goes_on() -> None:
    host = {
        "LogConfig": {"Type": "local", "Config": {"max-size": "1m", "max-file": "3"}},
        "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
        "Mounts": [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o700}}],
        "ConsoleSize": [24, 80],
    }
    networks = {"EndpointsConfig": {"x": {"IPAMConfig": {"IPv4Address": "10.1.0.2"}, "EndpointID": "of an answer"}}}
    sent = post(DOCKER, {"Cmd": "true", "HostConfig": host, "NetworkingConfig": networks})
    assert {name: sent["HostConfig"].get(name) for name in host} == host | {"ConsoleSize": None}
    assert sent["NetworkingConfig"]["EndpointsConfig"]["x"] == {"IPAMConfig": {"IPv4Address": "10.1.0.2"}}


_DOCKER_SOCKET = {"Type": "bind", "Source": SOCKET, "Target": "/x"}
_LIBPOD_SOCKET = {"type": "bind", "source": SOCKET, "destination": "/x"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *((DOCKER, {_HOST: {"Mounts": [_DOCKER_SOCKET | odd]}}) for odd in (
            {"Target": "/proc/x"}, {"Target": "x"}, {"ReadOnly": "no"}, {"Consistency": "odd"}, {"BindOptions": {"Propagation": "shared"}},
            {"VolumeOptions": {"Subpath": "x"}})),
        *((DOCKER, {_HOST: {"Binds": [odd]}}) for odd in (f"{SOCKET}:/proc/x", f"{SOCKET}:/", f"{SOCKET}:/x:rshared", f"{SOCKET}:x")),
        *((LIBPOD, {"mounts": [_LIBPOD_SOCKET | odd]}) for odd in (
            {"destination": "/proc/x"}, {"options": ["rshared"]}, {"options": "ro"}, {"options": ["dev"]}, {"SubPath": "x"}, {"uidMappings": [1]})),
    ],
)  # fmt: skip
def test_a_socket_is_mounted_as_such_and_nothing_else(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused) as caught:
        post(path, body, socket="/run/manyoyo/gate.sock")
    assert "no Docker socket" not in caught.value.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DOCKER, {_HOST: {"Mounts": [{"Type": "bind", "Source": "/srv", "Target": "/x"}]}}),
        (DOCKER, {_HOST: {"Binds": ["/srv:/x"]}}),
        (LIBPOD, {"mounts": [{"type": "bind", "source": "/srv", "destination": "/x"}]}),
        (LIBPOD, {"mounts": [{"source": "/srv", "destination": "/x"}]}),
    ],
)
def test_who_mounts_a_path_hears_what_to_use_instead(path: str, body: dict[str, Any]) -> None:
    """Most clients' first mistake."""
    with pytest.raises(PolicyRefused, match="/srv") as caught:
        post(path, body)
    assert "named volume" in caught.value.hint


def test_a_socket_beside_other_mounts() -> None:
    """Each stays what it is."""
    gate = {"socket": "/run/manyoyo/gate.sock"}
    volume = {"Type": "volume", "Source": "v", "Target": "/v"}
    host = {"Mounts": [_DOCKER_SOCKET, volume], "Binds": [f"{SOCKET}:/a", "v:/b"]}
    sent = post(DOCKER, {"HostConfig": host}, **gate)["HostConfig"]
    assert sent["Mounts"] == [_DOCKER_SOCKET | {"Source": "/run/manyoyo/gate.sock"}, volume]
    assert sent["Binds"] == ["/run/manyoyo/gate.sock:/a", "v:/b"]
    tmpfs = {"type": "tmpfs", "destination": "/t"}
    mounts = post(LIBPOD, {"mounts": [_LIBPOD_SOCKET | {"options": ["ro"]}, tmpfs]}, **gate)["mounts"]
    assert mounts == [_LIBPOD_SOCKET | {"source": "/run/manyoyo/gate.sock", "options": ["ro"]}, tmpfs]


_SOLVE = "/moby.buildkit.v1.Control/Solve"
_RETURN = "/moby.buildkit.v1.frontend.LLBBridge/Return"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (_SOLVE, {"Cache": {"Exports": [{"Type": "inline", "Attrs": "x"}]}}),
        (_SOLVE, {"Cache": {"Exports": ["inline"]}}),
        (_SOLVE, {"Cache": {"Exports": [{"Type": "inline", "Tomorrow": "x"}]}}),
        (_SOLVE, {"Cache": {"Exports": [{"Attrs": {"mode": "max"}}]}}),
        (_SOLVE, {"Cache": {"Imports": [{"Type": "registry", "Attrs": {"x": "y"}}]}}),
        (_SOLVE, {"FrontendAttrs": {"cache-imports": 5}}),
        (_SOLVE, {"FrontendAttrs": {"cache-imports": "5"}}),
        (_SOLVE, {"FrontendAttrs": {"cache-imports": "[" * 5000}}),
        (_SOLVE, {"FrontendAttrs": {"cache-from": 5}}),
        (_SOLVE, {"FrontendAttrs": {"context:x": 5}}),
        (_SOLVE, {"FrontendAttrs": {"force-network-mode": 5}}),
        (_SOLVE, {"FrontendAttrs": ["x"]}),
        (_SOLVE, {"Entitlements": [5]}),
        (_SOLVE, {"Exporters": ["moby"]}),
        (_RETURN, {"result": {"refsDeprecated": {"refs": {"x": 5}}}}),
        (_RETURN, {"result": {"refsDeprecated": {"refs": ["x"]}}}),
        (_RETURN, {"result": {"refsDeprecated": {"Tomorrow": {}}}}),
        (_RETURN, {"result": {"refs": {"refs": {"x": {"id": 5}}}}}),
        (_RETURN, {"result": {"refs": {"refs": {"x": {"Tomorrow": 5}}}}}),
        (_RETURN, {"result": {"refs": {"refs": {"x": "y"}}}}),
        (_RETURN, {"result": {"refs": {"refs": ["x"]}}}),
        (_RETURN, {"result": {"refs": {"Tomorrow": {}}}}),
        (_RETURN, {"result": {"refs": ["x"]}}),
        (_RETURN, {"result": {"metadata": ["x"]}}),
    ],
)
def test_what_lies_deep_in_a_message_is_looked_at_too(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused):
        decide(Request("GRPC", path, {}, body), LIMITS)


def test_references_to_results_go_on_without_definitions() -> None:
    refs = {"x": {"id": "1", "def": b"never"}, "y": {"id": "2"}}
    body = decide(Request("GRPC", _RETURN, {}, {"result": {"refs": {"refs": refs}}}), LIMITS).body
    assert body == {"result": {"refs": {"refs": {"x": {"id": "1"}, "y": {"id": "2"}}}}}


# -- caps


def caps_of(body: dict[str, Any]) -> dict[str, Any]:
    return post(LIBPOD, {"image": "x", "resource_limits": body})["resource_limits"]


DEFAULT = {
    "memory": {"limit": 512 << 20, "swap": 512 << 20},
    "cpu": {"period": 100_000, "quota": 100_000},
    "pids": {"limit": 100},
}


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"memory": {"limit": -1, "swap": -1}}, {"cpu": {"quota": -1}}, {"cpu": {"period": -1}}, {"pids": {"limit": -1}},
        {"memory": {"limit": 0}, "cpu": {"quota": 0}, "pids": {"limit": 0}}, {"memory": {"swap": 8 << 30}},
    ],
)  # fmt: skip
def test_podmans_unlimited_becomes_the_default(asked: dict[str, Any]) -> None:
    assert caps_of(asked) == DEFAULT


def test_podmans_caps_are_the_requests_within_the_sandboxes_own() -> None:
    asked = {
        "memory": {"limit": 64 << 20, "swap": -1, "reservation": 1 << 20},
        "cpu": {"quota": 25_000, "period": 50_000},
        "pids": {"limit": 9},
    }
    assert caps_of(asked) == {
        "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 1 << 20},
        "cpu": {"quota": 25_000, "period": 50_000},
        "pids": {"limit": 9},
    }
    for much in ({"memory": {"limit": 2 << 30}}, {"cpu": {"quota": 5, "period": 1}}, {"pids": {"limit": 201}}):
        with pytest.raises(CapExceeded):
            caps_of(much)


def test_podmans_update_changes_what_it_names() -> None:
    def updated(**asked: Any) -> dict[str, Any]:
        return post("/libpod/containers/x/update", asked)

    assert updated() == {}
    assert updated(memory={"limit": 64 << 20}) == {"memory": {"limit": 64 << 20, "swap": 64 << 20}}
    assert updated(memory={"limit": 64 << 20, "swap": -1}) == {"memory": {"limit": 64 << 20, "swap": 64 << 20}}
    assert updated(memory={"swap": -1}) == {}, "swap alone is none of its affair"
    assert updated(cpu={"quota": 50_000}) == {"cpu": {"quota": 50_000, "period": 100_000}}
    assert updated(cpu={"shares": 5}) == {"cpu": {"shares": 5}}
    assert updated(pids={"limit": 9}) == {"pids": {"limit": 9}}
    with pytest.raises(CapExceeded):
        updated(memory={"limit": 2 << 30})


def test_dockers_cpus_are_said_in_one_way() -> None:
    """Engines refuse NanoCpus beside a quota."""
    host = post(DOCKER, {"HostConfig": {"CpuQuota": 50_000, "CpuPeriod": 100_000}})["HostConfig"]
    assert host["NanoCpus"] == 500_000_000 and not {"CpuQuota", "CpuPeriod"} & host.keys()
    for unlimited in ({"CpuQuota": -1}, {"CpuQuota": -500_000, "CpuPeriod": -1}, {"CpuQuota": 0}, {"CpuPeriod": 5}):
        assert post(DOCKER, {"HostConfig": unlimited})["HostConfig"]["NanoCpus"] == 10**9
    with pytest.raises(CapExceeded):
        post(DOCKER, {"HostConfig": {"CpuQuota": 50_000, "CpuPeriod": -5}})


def test_an_update_of_dockers_says_cpus_as_its_engine_takes_them() -> None:
    path = "/containers/x/update"
    assert post(path, {"NanoCpus": 5 * 10**8}) == {"NanoCpus": 5 * 10**8}
    assert post(path, {"NanoCpus": 5 * 10**8}, by_quota=True) == {"CpuPeriod": 100_000, "CpuQuota": 50_000}
    assert post(path, {"CpuShares": 5, "Memory": 64 << 20}) == {
        "CpuShares": 5,
        "Memory": 64 << 20,
        "MemorySwap": 64 << 20,
    }


# -- what podman is told in any case


def test_systemd_and_notifications_are_never_podmans_own_choice() -> None:
    spec = post(LIBPOD, {"image": "x", "systemd": "true", "sdnotifyMode": "container", "netns": {"nsmode": "private"}})
    assert spec["systemd"] == "false" and spec["sdnotifyMode"] == "ignore" and spec["netns"] == {"nsmode": "bridge"}
    assert spec["labels"] == {"org.manyoyo.keep-alive": "", "org.manyoyo.secrets": "", "org.manyoyo.server-pid": ""}
    with pytest.raises(PolicyRefused, match="server's own"):
        post(LIBPOD, {"image": "x", "labels": {"org.manyoyo.secrets": "x"}})


def test_what_is_of_use_to_the_client_alone_is_not_sent() -> None:
    spec = {"image": "x", "idmappings": {"HostUIDMapping": True}, "containerCreateCommand": ["podman"], "httpproxy": True, "raw_image_name": "y",
            "manage_password": True, "cpu_period": 1, "cpu_quota": 10**9}  # fmt: skip
    assert not (spec.keys() - {"image"}) & post(LIBPOD, spec).keys()


def test_what_is_no_number_is_the_clients_fault() -> None:
    build = {"cgroupparent": "/manyoyo-builds/0123456789abcdef"}
    for odd in ({"memory": "x"}, {"cpuquota": "1.5"}, {"memory": "9" * 5000}):
        with pytest.raises(InvalidArgument):
            decide(Request("POST", "/build", build | odd), LIMITS)
