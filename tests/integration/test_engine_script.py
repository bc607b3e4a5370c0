"""scripts/engine: an engine of its own comes up and answers, and goes without a trace; nobody else's is touched. And
scripts/test, which runs on one."""

import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tests.support import busybox_rootfs

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "engine"
ROOT = SCRIPT.parent.parent
SETTINGS = ("DOCKER_HOST", "DOCKER_CONTEXT", "MANYOYO_ENGINE_DIR", "MANYOYO_HOST_RUNTIME")


class Engine:
    """The script's engine with its data in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def script(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        environment = environment or {"MANYOYO_ENGINE_DIR": str(self.directory)}
        done = subprocess.run([SCRIPT, *words], env=plain | environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done

    @property
    def environment(self) -> dict[str, str]:
        return dict(re.findall(r"^export (\w+)=(.*)$", self.script("env").stdout, re.MULTILINE))

    @property
    def run_directory(self) -> Path:
        """Of an engine that is down, too."""
        tag = subprocess.run(["cksum"], input=str(self.directory).encode(), capture_output=True, check=True).stdout
        return Path(f"/run/manyoyo-engine-{int(tag.split()[0])}")

    @property
    def bridge(self) -> str:
        return f"myy{self.run_directory.name.rpartition('-')[2]}"[:15]

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=f"unix://{self.run_directory}/docker.sock")

    def pid(self) -> int:
        return int((self.run_directory / "dockerd.pid").read_text())

    def traces(self, *containers: str) -> list[str]:
        """What there is of it on this machine: processes, interfaces, mounts, rules, directories."""
        needles = [str(self.run_directory), str(self.directory), *containers]
        found = [str(path) for path in (self.run_directory, self.directory) if path.exists()]
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                groups = (entry / "cgroup").read_text()
            except OSError:
                continue
            if any(needle in words or needle in groups for needle in needles) and int(entry.name) != os.getpid():
                found.append(f"process {entry.name}: {words}")
        found += [
            line for line in Path("/proc/mounts").read_text().splitlines() if any(needle in line for needle in needles)
        ]
        found += [line for line in addresses().splitlines() if self.bridge in line]
        found += [line for line in rules() if self.bridge in line]
        return found


def addresses() -> str:
    return subprocess.run(["ip", "-oneline", "addr"], capture_output=True, text=True, check=True).stdout


def rules() -> list[str]:
    return [f"{table} {line}" for table in ("filter", "nat") for line in iptables("-t", table, "-S").splitlines()]


def iptables(*words: str) -> str:
    return subprocess.run(["iptables", "-w", *words], capture_output=True, text=True, check=True).stdout


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "engine")
    engine.script("up")
    try:
        yield engine
    finally:
        engine.script("purge")
        assert engine.traces() == []


def start(client: docker.DockerClient, **options: object) -> docker.models.containers.Container:
    client.api.import_image_from_data(busybox_rootfs(), repository="busybox")
    sleep = ["/bin/busybox", "sleep", "1000"]
    return client.containers.run("busybox", sleep, detach=True, stop_signal="SIGKILL", **options)


def test_it_answers_and_stays_one_engine(engine: Engine) -> None:
    client, pid = engine.client(), engine.pid()
    assert client.ping()
    assert "already up" in engine.script("up").stderr
    assert engine.pid() == pid
    assert client.info()["DockerRootDir"] == str(engine.directory / "data")


def test_data_outlives_down_and_not_purge(engine: Engine) -> None:
    name = start(engine.client()).name
    engine.script("down")
    assert not engine.run_directory.exists()
    engine.script("up")
    assert [each.name for each in engine.client().containers.list(all=True)] == [name]
    engine.script("purge")
    engine.script("up")
    assert engine.client().containers.list(all=True) == []


@pytest.fixture
def outside() -> Iterator[str]:
    """An address beyond this machine: a network of its own, with no way back but to the machine's address in it."""
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        try:
            namespace = Path(f"/proc/{holder.pid}/ns/net")
            wait_for(lambda: namespace.readlink() != Path("/proc/self/ns/net").readlink())
            within = ["nsenter", f"--net={namespace}"]
            for words in (
                [
                    "ip",
                    "link",
                    "add",
                    "myy-outside",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "machine",
                    "netns",
                    str(holder.pid),
                ],
                ["ip", "addr", "add", "198.51.100.1/30", "dev", "myy-outside"],
                ["ip", "link", "set", "myy-outside", "up"],
                [*within, "ip", "addr", "add", "198.51.100.2/30", "dev", "machine"],
                [*within, "ip", "link", "set", "machine", "up"],
            ):
                subprocess.run(words, check=True)
            yield "198.51.100.2"
        finally:
            holder.kill()


def test_its_containers_reach_beyond_the_machine(engine: Engine, outside: str) -> None:
    """From the default network and from another one; all addresses lie in one /16, which no engine beside it uses."""
    client = engine.client()
    client.networks.create("further")
    for network in ("bridge", "further"):
        container = start(client, network=network)
        assert container.exec_run(["/bin/busybox", "ping", "-c", "1", "-W", "5", outside]).exit_code == 0
    subnets = [each.attrs["IPAM"]["Config"][0]["Subnet"] for each in client.networks.list(names=["bridge", "further"])]
    assert len(subnets) == 2
    assert len({subnet.split(".")[1] for subnet in subnets}) == 1


def test_its_bridge_keeps_its_address(engine: Engine) -> None:
    """Else every container loses its gateway for half a minute when another one starts."""
    address = Path(f"/sys/class/net/{engine.bridge}/address")
    before = address.read_text()
    client = engine.client()
    for _ in range(4):
        start(client)
    assert address.read_text() == before
    assert Path(f"/sys/class/net/{engine.bridge}/addr_assign_type").read_text().strip() == "3"  # set, not taken


def test_a_privileged_container_runs_where_capabilities_are_missing(engine: Engine) -> None:
    runtime = engine.environment.get("MANYOYO_HOST_RUNTIME")
    container = start(engine.client(), privileged=True, **({"runtime": runtime} if runtime else {}))
    assert container.exec_run(["/bin/busybox", "mount", "-t", "tmpfs", "none", "/tmp"], privileged=True).exit_code == 0


def client_answers(engine: Engine) -> bool:
    try:
        return bool(engine.client().ping())
    except docker.errors.DockerException:
        return False


def test_a_killed_dockerd_is_followed_by_a_new_one_and_leaves_nothing(engine: Engine) -> None:
    container = start(engine.client())
    network = engine.client().networks.create("further")
    os.kill(engine.pid(), signal.SIGKILL)
    wait_for(lambda: not client_answers(engine))
    engine.script("up")
    container = engine.client().containers.get(container.id)
    assert container.status == "exited"
    container.start()
    container.reload()
    inside = container.attrs["State"]["Pid"]
    os.kill(engine.pid(), signal.SIGKILL)
    time.sleep(0.5)
    assert Path(f"/proc/{inside}").exists(), "the container did not outlive dockerd, so this proves nothing"
    engine.script("purge")
    assert engine.traces(container.id) == []
    assert f"br-{network.id[:12]}" not in addresses()


def test_an_engine_that_answers_is_used(engine: Engine, tmp_path: Path) -> None:
    host = engine.environment["DOCKER_HOST"]
    made = Engine(Path("/var/lib/manyoyo-engine")).run_directory  # which it would make, were there none
    before = made.exists()
    assert f"one answers at {host}" in engine.script("up", DOCKER_HOST=host).stderr
    assert engine.script("env", DOCKER_HOST=host).stdout == ""
    assert made.exists() == before


def test_a_bystander_is_untouched(tmp_path: Path) -> None:
    """Another engine's container runs on, and the rules by which its ports are published stay."""
    host = docker.from_env()
    bystander = host.containers.run(
        host.images.list()[0].id, ["sleep", "1000"], entrypoint=[], detach=True, init=False, ports={"80/tcp": None}
    )
    engine = Engine(tmp_path / "engine")
    chain_is_ours = "nat -N DOCKER" not in rules()
    if chain_is_ours:  # what a dockerd that writes rules has, and a second one empties
        iptables("-t", "nat", "-N", "DOCKER")
    rule = ["-p", "tcp", "-d", "192.0.2.99", "--dport", "9", "-j", "RETURN"]
    iptables("-t", "nat", "-A", "DOCKER", *rule)
    try:
        bystander.reload()
        before = bystander.attrs["State"]["Pid"], bystander.attrs["State"]["StartedAt"]
        engine.script("up")
        start(engine.client())
        engine.script("purge")
        bystander.reload()
        assert bystander.status == "running"
        assert (bystander.attrs["State"]["Pid"], bystander.attrs["State"]["StartedAt"]) == before
        iptables("-t", "nat", "-C", "DOCKER", *rule)
        assert engine.traces() == []
    finally:
        iptables("-t", "nat", "-D", "DOCKER", *rule)
        if chain_is_ours:
            iptables("-t", "nat", "-X", "DOCKER")
        bystander.remove(force=True, v=True)
        engine.script("purge")


def test_purge_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    directory.mkdir()
    (directory / "somebody's").write_text("file")
    engine = Engine(directory)
    engine.script("up")
    engine.script("purge")
    assert [each.name for each in directory.iterdir()] == ["somebody's"]


def test_purge_takes_the_data_of_the_tests_too_unless_tests_run() -> None:
    """In namespaces of its own, where the usual directories are empty and no engine of this machine is seen."""
    steps = f"""
        for each in /run /var/lib /sys/fs/cgroup; do mount -t tmpfs none $each; done
        mkdir -p /var/lib/manyoyo-engine/data /var/lib/manyoyo-test-engine/data
        flock /var/lib/manyoyo-test-engine {SCRIPT} purge; ls /var/lib
        {SCRIPT} purge; ls -A /var/lib; echo end"""
    plain = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "MANYOYO_TEST_ENGINE_DIR")}
    own = ["unshare", "--mount", "--pid", "--fork", "--net", "--mount-proc", "sh", "-ec", steps]
    done = subprocess.run(own, env=plain, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "manyoyo-test-engine\nend\n"), done.stderr
    assert "the tests' engine stays" in done.stderr and "the tests' engine too" in done.stderr


def test_status(engine: Engine) -> None:
    assert "up (" in engine.script("status").stderr
    engine.script("down")
    assert "down" in engine.script("status", code=1).stderr
    assert "up" in (told := engine.script("env", code=1)).stderr and not told.stdout


def suite(*words: str, engine: Path, **environment: str) -> subprocess.Popen[str]:
    """`scripts/test words…`, its engine in the directory `engine`."""
    plain = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "MANYOYO_TEST_ALONE")}
    return subprocess.Popen(
        [ROOT / "scripts" / "test", *words],
        env=plain | {"MANYOYO_TEST_ENGINE_DIR": str(engine)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("script", ["test", "demo", "engine", "lint", "clients", "fresh", "cgroup2", "bench"])
def test_help_does_nothing_else(script: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / script, "--help"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stderr) == (0, "") and f"  scripts/{script}" in done.stdout


def test_unit_tests_need_no_engine(tmp_path: Path) -> None:
    with suite("-q", "tests/unit/test_text.py", engine=tmp_path / "engine", DOCKER_HOST="unix:///none") as process:
        out, err = process.communicate()
    assert process.returncode == 0 and "passed" in out, err
    assert not (tmp_path / "engine").exists()


def test_a_second_run_of_the_suite_waits(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suite("--contract", engine=tmp_path) as process:
        assert process.stderr is not None
        assert "another run is under way" in process.stderr.readline()
        assert process.poll() is None
        process.terminate()
    os.close(descriptor)
    assert not (tmp_path / "data").exists(), "no engine was started"


def test_the_suite_ends_no_engine_but_its_own(engine: Engine, tmp_path: Path) -> None:
    start(engine.client())
    tars = tmp_path / "tars"
    tars.mkdir()
    (tars / "image.tar").write_bytes(b"".join(engine.client().images.get("busybox").save()))
    collect = ("--collect-only", "-q", "tests/contract")
    with suite(*collect, engine=engine.directory, MANYOYO_IMAGE_TARS=str(tars)) as process:
        _, err = process.communicate()
    assert process.returncode == 0 and "is up already, and stays up" in err
    assert client_answers(engine)
    engine.script("down")
    with suite(*collect, engine=engine.directory, MANYOYO_IMAGE_TARS=str(tars)) as process:
        out, err = process.communicate()
    assert process.returncode == 0 and str(engine.directory) in err and "scripts/engine purge" in err
    assert "collected" in out.splitlines()[-1]
    engine.script("status", code=1)


def test_an_unknown_word_shows_the_usage(tmp_path: Path) -> None:
    assert "scripts/engine up" in Engine(tmp_path).script("sideways", code=2).stderr
