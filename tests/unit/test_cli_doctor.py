"""doctor's judgements, each a pure function of what was found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from manyoyo_mcp.cli.doctor import host, machine
from manyoyo_mcp.cli.doctor.check import Check, State
from manyoyo_mcp.cli.doctor.walls import proof
from manyoyo_mcp.config import Settings, unknown_variables
from manyoyo_mcp.errors import EngineFailed
from manyoyo_mcp.hosts.base import Completed

GIB = 1 << 30
FULL = (1 << 41) - 1
WITHOUT_SYS_RESOURCE = FULL & ~(1 << 24)


def well(check: Check) -> bool:
    """Every check that is not well says how to mend it."""
    assert (check.state is State.OK) == (not check.mend)
    return check.state is State.OK


def test_python() -> None:
    assert well(machine.python((3, 11, 0))) and well(machine.python((3, 14, 2)))
    assert machine.python((3, 10, 9)).state is State.FAIL
    assert well(machine.python())


@pytest.mark.parametrize(
    ("version", "good"),
    [("2.3.0", True), ("2.10.1", True), ("2.3", True), ("2.2.9", False), ("3.0.0", False), ("1.9", False)],
)
def test_mcp_version(version: str, good: bool) -> None:
    assert well(machine.mcp_version(version)) is good


def test_variables_that_no_setting_has() -> None:
    assert well(machine.configuration(Settings(), {"MANYOYO_ENGINE": "docker", "manyoyo_wait_s": "1", "PATH": "/bin"}))
    check = machine.configuration(Settings(), {"MANYOYO_FOO": "1"})
    assert check.state is State.WARN and "MANYOYO_FOO" in check.found and "sandbox_memory" in check.mend
    check = machine.configuration(Settings(), {"MANYOYO_SANDBOX_MEM": "1g"})
    assert "did you mean MANYOYO_SANDBOX_MEMORY?" in check.mend


def test_a_server_names_them_at_its_start(tmp_path: Path) -> None:
    names = {
        "MANYOYO_ISOLATON": "hardened",
        "MANYOYO_STATE_DIR": str(tmp_path / "state"),
        "MANYOYO_RUNTIME_DIR": str(tmp_path / "run"),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "manyoyo_mcp", "serve"],
        input="",
        env={**os.environ, **names},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stderr == "manyoyo-mcp: no setting has the name MANYOYO_ISOLATON: did you mean MANYOYO_ISOLATION?\n", ran


def test_every_variable_is_known() -> None:
    """What scripts, tests and the program read from the environment is no mistake there."""
    root = Path(__file__).parents[2]
    files = [*root.glob("manyoyo_mcp/**/*.py"), *root.glob("scripts/*"), *root.glob("scripts/lib/*"), *root.glob("bench/*.py"),
             *root.glob("tests/conftest.py"), *root.glob("tests/support.py")]  # fmt: skip
    text = "".join(path.read_text() for path in files if path.is_file())
    names = set(re.findall(r"(?:\$\{|environ\.get\(\"|environ\[\"|export )(MANYOYO_[A-Z_]+)", text))
    assert len(names) > 8 and unknown_variables(names) == {}


def test_runtime_directory(tmp_path: Path) -> None:
    assert well(machine.runtime_directory(tmp_path / "not" / "yet"))
    assert well(machine.runtime_directory(Path("/tmp") / ("x" * 200))), "however long it is"


@pytest.mark.parametrize(
    ("environ", "good"),
    [
        ({}, True),
        ({"http_proxy": "http://proxy.example:3128"}, True),
        ({"HTTPS_PROXY": "http://10.0.0.7:3128"}, True),
        ({"http_proxy": "http://localhost:3128"}, False),
        ({"HTTPS_PROXY": "http://127.0.0.1:3128"}, False),
        ({"https_proxy": "127.1.2.3:3128"}, False),
        ({"all_proxy": "socks5://user:secret@[::1]:1080"}, False),
    ],
)
def test_proxy(environ: dict[str, str], good: bool) -> None:
    check = machine.proxy(environ)
    assert well(check) is good
    assert "secret" not in check.found


def test_certificates(tmp_path: Path) -> None:
    bundle = tmp_path / "own.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    assert "bundle of 1" in machine.certificates(Settings(ca_bundle=bundle)).found
    assert "switched off" in machine.certificates(Settings(ca_bundle="off")).found
    assert machine.certificates(Settings(ca_bundle=tmp_path / "none.pem")).state is State.FAIL


def test_secrets(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    assert machine.secrets(Settings(), {}) is None
    declared = Settings(secrets=f"a=env:A,b=file:{tmp_path}/key,c=command:sh -c true")  # type: ignore[arg-type]
    there, absent = machine.secrets(declared, {"A": "1"}), machine.secrets(declared, {})
    assert there is not None and well(there) and "a, b, c" in there.found
    assert absent is not None and absent.state is State.WARN and absent.found == "not to be had: a"


def test_access(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    path.touch()
    check = machine.access(f"unix://{path}")
    assert check is not None and well(check)
    assert machine.access("tcp://10.0.0.1:2376") is None
    assert machine.access(f"unix://{tmp_path}/none") is None


def test_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(docker_host="tcp://a:1")
    assert (
        host.endpoint(settings, {"MANYOYO_DOCKER_HOST": "tcp://a:1", "DOCKER_HOST": "tcp://b:1"})[1]
        == "MANYOYO_DOCKER_HOST"
    )
    assert host.endpoint(Settings(docker_host=None), {"DOCKER_HOST": "tcp://b:1"}) == ("tcp://b:1", "DOCKER_HOST")


def test_capabilities() -> None:
    assert host.lacking(FULL, 40) == []
    assert host.lacking(WITHOUT_SYS_RESOURCE, 40) == ["SYS_RESOURCE"]
    assert host.lacking(FULL, 42) == ["41", "42"], "capabilities newer than our names"
    assert host.unknown_runtime("shim", {"runc": {}}).state is State.FAIL


def test_missing_capabilities_are_a_warning_only_where_the_engine_minds() -> None:
    assert well(host.privileged([], None, "", True))
    for runtime, refusal in (("shim", ""), (None, ""), (None, None)):
        check = host.privileged(["SYS_RESOURCE"], runtime, refusal, True)
        assert well(check) and "SYS_RESOURCE" in check.found
    assert "--try" in host.privileged(["SYS_RESOURCE"], None, None, True).found
    refused = host.privileged(["SYS_RESOURCE"], None, "unable to apply caps", True)
    assert refused.state is State.WARN and "apply caps" in refused.found and "scripts/engine" in refused.mend
    packaged = host.privileged(["SYS_RESOURCE"], None, "unable to apply caps", False)
    assert "scripts/engine" not in packaged.mend and "MANYOYO_HOST_RUNTIME" in packaged.mend


def test_capability_names_are_the_kernels() -> None:
    header = Path("/usr/include/linux/capability.h")
    if header.exists():
        for number, name in enumerate(host.CAPABILITIES):
            assert f"#define CAP_{name}" in header.read_text(), (number, name)
    assert host.CAPABILITIES.index("SYS_ADMIN") == 21 and host.CAPABILITIES.index("SYS_RESOURCE") == 24
    assert len(host.CAPABILITIES) == 41 and host.CAPABILITIES[-1] == "CHECKPOINT_RESTORE"


@pytest.mark.parametrize(("free", "state"), [(100 * GIB, State.OK), (5 * GIB, State.WARN), (GIB, State.FAIL)])
def test_disk(free: int, state: State) -> None:
    check = host.disk_free("/var/lib/docker", free)
    well(check)
    assert check.state is state


def test_a_tier_that_can_not_be_had_is_named() -> None:
    assert (
        host.tiers("privileged", "podman", {}).state is State.OK
        and host.tiers("privileged", "podman", {"hardened": "no"}).state is State.OK
    )
    check = host.tiers("hardened", "docker", dict.fromkeys(("hardened", "gvisor", "userns"), "unable to apply caps"))
    assert (
        check.state is State.FAIL
        and "unable to apply caps" in check.found
        and "MANYOYO_ISOLATION=privileged" in check.mend
    )
    strongest = host.tiers("hardened", "docker", {"hardened": "no"})
    assert "MANYOYO_ISOLATION=userns" in strongest.mend, "the strongest that the engine can have"
    assert "capabilities" in host.tiers("privileged", "podman", dict.fromkeys(host.TIERS, "x")).mend
    for configured, engine, other in (("common", "podman", "docker"), ("gvisor", "docker", "podman")):
        check = host.tiers(configured, engine, {})
        well(check)
        assert check.state is State.FAIL and f"MANYOYO_ENGINE={other}" in check.mend, check


PROVEN = {
    "nested_kernel": "Linux version 4.4.0 #1 SMP", "nested_ids": "0 100000 65536", "exit": "0", "outer_disks": "0",
    "outer_kernel": "Linux version 6.1.0 #1 SMP", "outer_capabilities": "00000000a80425fb",
}  # fmt: skip


@pytest.mark.parametrize(
    ("tier", "otherwise", "is_proven"),
    [
        ("privileged", {"outer_disks": "3"}, True),
        ("hardened", {}, True),
        ("hardened", {"outer_disks": "3"}, False),
        ("hardened", {"outer_capabilities": "000001ffffffffff"}, False),
        ("userns", {}, True),
        ("userns", {"nested_ids": "         0          0 4294967295"}, False),
        ("userns", {"outer_disks": "1"}, False),
        ("rootless", {}, True),
        ("rootless", {"nested_ids": "         0          0 4294967295"}, False),
        ("gvisor", {}, True),
        ("gvisor", {"nested_kernel": "Linux version 6.1.0 #1 SMP"}, False),
        ("gvisor", {"outer_capabilities": "000001ffffffffff"}, False),
    ],
)
def test_a_tier_is_proven_by_what_is_seen_in_it(tier: str, otherwise: dict[str, str], is_proven: bool) -> None:
    output = "".join(f"{key}={value}\n" for key, value in (PROVEN | otherwise).items())
    found, words = proof(tier, Completed(0, output))
    assert found is is_proven and words


@pytest.mark.parametrize("completed", [Completed(1, "exit=0\n"), Completed(0, "exit=126\n"), Completed(124, "")])
def test_a_proof_that_did_not_run_is_none(completed: Completed) -> None:
    with pytest.raises(EngineFailed):
        proof("hardened", completed)
