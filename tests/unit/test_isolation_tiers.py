"""Which tier can be had with which nested engine, and on what was stored in which."""

import docker
import pytest
from pydantic import ValidationError

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument, NotSupported
from manyoyo_mcp.hosts import beside
from manyoyo_mcp.hosts.docker import _refused
from manyoyo_mcp.hosts.isolation import (
    TIERS,
    check,
    check_keeps,
    check_registered,
    engine_of,
    host_config,
    tier,
    weaker,
)


@pytest.mark.parametrize("engine", ["podman", "docker"])
@pytest.mark.parametrize("name", list(TIERS))
def test_a_tier_is_had_with_its_engines_alone(name: str, engine: str) -> None:
    if engine in TIERS[name].engines:
        check(name, engine, None)
        check(name, engine, name)
        return
    with pytest.raises(NotSupported) as refused:
        check(name, engine, None)
    assert refused.value.instance_code == "ISOLATION_UNAVAILABLE" and TIERS[name].why_not in refused.value.message


def test_where_nobody_names_an_engine_it_is_one_that_the_tier_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MANYOYO_ENGINE", raising=False)
    found = {name: engine_of(name, Settings()) for name in (*TIERS, "runtime:kata")}
    assert {name for name, engine in found.items() if engine == "docker"} == {"userns", "common", "sock"}
    monkeypatch.setenv("MANYOYO_ENGINE", "podman")
    assert engine_of("userns", Settings()) == "podman", "what is configured is not changed in silence"
    monkeypatch.setenv("MANYOYO_ENGINE", "docker")
    assert engine_of("hardened", Settings()) == "docker" and engine_of("gvisor", Settings()) == "docker"


def test_settings_know_every_tier() -> None:
    for name in (*TIERS, "runtime:kata"):
        assert Settings(isolation=name).isolation == name
    for name in ("vm", "runtime:", "Privileged", "privileged "):
        with pytest.raises(ValidationError):
            Settings(isolation=name)


@pytest.mark.parametrize(
    ("name", "before"),
    [("userns", "privileged"), ("userns", "hardened"), ("hardened", "userns"), ("privileged", "userns")],
)
def test_a_store_with_other_owners_is_not_started_on(name: str, before: str) -> None:
    with pytest.raises(InvalidArgument):
        check(name, "docker", before)


def test_rootless_gains_no_rights_and_its_store_is_its_own() -> None:
    asked = host_config("rootless", None)
    assert "no-new-privileges" in asked["SecurityOpt"] and "Privileged" not in asked
    assert [each["PathOnHost"] for each in asked["Devices"]] == ["/dev/fuse"]
    assert "no-new-privileges" not in TIERS["hardened"].host_config["SecurityOpt"]
    for before in ("privileged", "hardened", "gvisor"):
        with pytest.raises(InvalidArgument):
            check("rootless", "podman", before)


def test_a_host_without_fuse_can_not_have_it() -> None:
    said = 'error gathering device information while adding custom device "/dev/fuse": no such file or directory'
    refused = _refused(docker.errors.APIError("500", explanation=said))
    assert refused.instance_code == "ISOLATION_UNAVAILABLE" and "modprobe fuse" in refused.hint
    assert _refused(docker.errors.APIError("500", explanation="no room")).instance_code == "HOST_UNAVAILABLE"


def test_tiers_that_store_alike_may_change() -> None:
    check("hardened", "docker", "privileged")
    check("privileged", "podman", "hardened")


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("sysbox-runc", {}),
        ("runsc", {"CapAdd": ["ALL"]}),
        ("io.containerd.runsc.v1", {"CapAdd": ["ALL"]}),
        ("kata", TIERS["hardened"].host_config),
        ("kata-qemu", TIERS["hardened"].host_config),
        ("io.containerd.kata.v2", TIERS["hardened"].host_config),
        ("krun", TIERS["hardened"].host_config),
        ("crun", TIERS["hardened"].host_config),
        ("mykata", TIERS["hardened"].host_config),
    ],
)
def test_what_a_runtime_of_the_hosts_is_asked_with(runtime: str, expected: dict[str, object]) -> None:
    """Never privileged: a runtime that is not known gets what the hardened tier does."""
    found = host_config(f"runtime:{runtime}", "the-usual-one")
    assert found == expected | {"Runtime": runtime} and "Privileged" not in found
    assert "not tried" in tier(f"runtime:{runtime}").words(f"runtime:{runtime}")


def test_what_is_on_the_host_keeps_nothing() -> None:
    for name in TIERS:
        if TIERS[name].on_host:
            with pytest.raises(NotSupported) as refused:
                check_keeps(name, "A name")
            assert refused.value.instance_code == "NOTHING_KEPT" and "hardened" in refused.value.hint
            assert "Runtime" not in host_config(name, "shim") and "Privileged" not in host_config(name, None)
        else:
            check_keeps(name, "A name")


def test_other_tiers_have_the_runtime_that_is_configured() -> None:
    assert host_config("hardened", "shim")["Runtime"] == "shim" and "Runtime" not in host_config("privileged", None)


def test_a_runtime_that_the_host_does_not_have_is_refused_with_what_it_has() -> None:
    check_registered("runtime:runc", {"runc", "kata"})
    check_registered("hardened", set())
    check_registered("runtime:io.containerd.kata.v2", {"runc"})
    with pytest.raises(NotSupported) as refused:
        check_registered("runtime:sysbox-runc", {"runc", "kata"})
    assert refused.value.instance_code == "ISOLATION_UNAVAILABLE"
    assert "'sysbox-runc'" in refused.value.message and "kata, runc" in refused.value.message


def test_a_store_of_a_runtime_that_moves_owners_is_its_own() -> None:
    check("runtime:kata", "podman", "hardened")
    with pytest.raises(InvalidArgument):
        check("runtime:sysbox-runc", "docker", "hardened")
    with pytest.raises(InvalidArgument):
        check("hardened", "docker", "runtime:sysbox-runc")


@pytest.mark.parametrize(
    ("asked", "configured", "is_weaker"),
    [
        ("privileged", "hardened", True), ("hardened", "privileged", False), ("userns", "gvisor", True), ("gvisor", "gvisor", False),
        ("runtime:kata", "privileged", False), ("runtime:kata", "hardened", True), ("runtime:kata", "runtime:kata", False),
        ("runtime:runc", "runtime:kata", True), ("gvisor", "runtime:kata", True),
        ("common", "privileged", True), ("sock", "common", True), ("common", "sock", False), ("privileged", "common", False),
        ("common", "common", False), ("runtime:kata", "sock", False), ("sock", "runtime:kata", True),
    ],
)  # fmt: skip
def test_how_strong_another_runtime_is_nobody_knows(asked: str, configured: str, is_weaker: bool) -> None:
    assert weaker(asked, configured) is is_weaker


@pytest.mark.parametrize("name", ["runtime:", "runtime:a b", "runtime:/bin/sh", "gvisor ", "", "runtime"])
def test_what_names_no_tier(name: str) -> None:
    with pytest.raises(ValidationError):
        Settings(isolation=name)
    assert Settings(isolation="runtime:io.containerd.kata.v2").isolation == "runtime:io.containerd.kata.v2"


def test_on_which_engines_of_hosts_nothing_is_run() -> None:
    docker = {"Components": [{"Name": "Engine"}, {"Name": "runc"}]}
    for info in ({}, {"DefaultRuntime": "runc"}, {"DefaultRuntime": "runsc"}, {"Runtimes": {"nvidia": {}}}):
        beside.check_told(docker, info)
    for version, info in (
        ({"Components": [{"Name": "Podman Engine"}]}, {}),
        (docker, {"DefaultRuntime": "nvidia"}),
        (docker, {"DefaultRuntime": "nvidia-container-runtime"}),
        (docker, {"DefaultRuntime": "gpu", "Runtimes": {"gpu": {"path": "/usr/bin/nvidia-container-runtime"}}}),
    ):
        with pytest.raises(NotSupported) as caught:
            beside.check_told(version, info)
        assert caught.value.instance_code == "ISOLATION_UNAVAILABLE" and "hardened" in caught.value.hint
