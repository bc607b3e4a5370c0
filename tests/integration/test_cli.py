"""The command line as people and CI use it: real processes, a real host, sandboxes of both engines."""

import fcntl
import json
import os
import pty
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from anyio.from_thread import start_blocking_portal
from filelock import FileLock
from mcp import Client

from manyoyo_mcp.cli.main import main
from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from manyoyo_mcp.sessions.identity import owner, owner_labels
from manyoyo_mcp.sessions.names import checkpoint_store
from tests.conftest import ROOT, server_parameters
from tests.support import busybox_context, busybox_rootfs

IMAGE = "localhost/cli-test:1"
Done = subprocess.CompletedProcess[str]


def start(*arguments: str | Path, env: dict[str, str] | None = None, **kwargs: Any) -> subprocess.Popen[str]:
    """`manyoyo-mcp arguments…`, with pipes."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
    command = [sys.executable, "-m", "manyoyo_mcp", *map(str, arguments)]
    return subprocess.Popen(command, text=True, env={**os.environ, **(env or {})}, **pipes)


def cli(*arguments: str | Path, stdin: str = "", **kwargs: Any) -> Done:
    """The same, to its end."""
    process = start(*arguments, stdin=subprocess.PIPE, **kwargs)
    try:
        out, err = process.communicate(stdin, timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "Traceback" not in err, err
    return Done(process.args, process.returncode, out, err)


def left_of(pid: int) -> list[str]:
    """What the host has of the sandboxes that process `pid` started."""
    host = docker.from_env()
    try:
        mine = {"label": [f"org.manyoyo.server-pid={pid}", f"org.manyoyo.owner={owner()}"]}
        found = [each.name for each in host.containers.list(all=True, ignore_removed=True, filters=mine)]
        return found + [each.name for each in host.volumes.list(filters=mine)]
    finally:
        host.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Dockerfile."""
    directory = tmp_path_factory.mktemp("project")
    for name, content in busybox_context().items():
        (directory / name).write_bytes(content)
    (directory / "Dockerfile.broken").write_text("FROM scratch\nADD root.tar /\nENV PATH=/bin\nRUN echo no; exit 3\n")
    return directory


@dataclass
class Held:
    """A sandbox that a server holds, with a service `web` in it."""

    sandbox_id: str
    engine: str


@pytest.fixture(scope="module", params=["podman", "docker"])
def held(request: pytest.FixtureRequest, project: Path) -> Iterator[Held]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(server_parameters(project))) as client,
    ):

        def call(tool: str, **arguments: Any) -> dict[str, Any]:
            result = portal.call(client.call_tool, tool, arguments)
            assert not result.is_error and result.structured_content is not None, result.content
            return result.structured_content

        started = call("start_sandbox", engine=request.param, memory="1g")
        assert call("nested_build", context_dir=".", tags=[IMAGE])["reason"] == "OK"
        call("nested_run", image=IMAGE, command=["sh", "-c", "echo serving; exec sleep 1000"], detach=True, name="web")
        yield Held(started["sandbox"]["sandbox_id"], request.param)


on_one_engine = pytest.mark.parametrize("held", ["podman"], indirect=True)
"""For what does not depend on the nested engine."""


# -- one shot


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_run_streams_and_passes_the_exit_code(project: Path, engine: str) -> None:
    script = "echo first; sleep 2; echo last; exit 7"
    with start("run", "--engine", engine, "--build", project, "--", "sh", "-c", script) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        assert first == "first\n", process.stderr.read()
        begun = time.monotonic()
        assert process.stdout.read() == "last\n"
        assert time.monotonic() - begun > 1, "the first line did not come before the last"
        said = process.stderr.read()
    assert process.returncode == 7
    assert f"({engine}) started in" in said and "ENV PATH=/bin" in said and "sandbox removed in" in said
    assert left_of(process.pid) == []


def test_run_killed_by_its_cap(project: Path) -> None:
    done = cli("run", "--quiet", "--memory", "32m", "--build", project, "--", "tail", "/dev/zero")
    assert (done.returncode, done.stdout) == (137, "")
    happened, to_do = done.stderr.splitlines()
    assert "OOM_KILLED" in happened and "32 MiB" in happened and "--memory" in to_do


def test_run_over_its_time(project: Path) -> None:
    done = cli("run", "--quiet", "--timeout", "1", "--build", project, "--", "sh", "-c", "echo began; sleep 60")
    assert (done.returncode, done.stdout) == (124, "began\n")
    assert "TIMEOUT: Killed after --timeout 1." in done.stderr


def test_run_without_a_dockerfile(tmp_path: Path) -> None:
    done = cli("run", "--quiet", "--build", tmp_path, "--", "true")
    assert done.returncode == 2 and "There is no Dockerfile in" in done.stderr
    assert done.stderr.endswith("Name it with --dockerfile ….\n")


def test_run_of_nothing(project: Path) -> None:
    done = cli("run", "--quiet", "--build", project, "--", "no-such-program")
    assert (done.returncode, done.stdout) == (127, "") and "COMMAND_NOT_FOUND" in done.stderr


def test_run_with_files_environment_and_stdin(project: Path, tmp_path: Path) -> None:
    config, report = tmp_path / "config.txt", tmp_path / "reports"
    config.write_text("from outside")
    done = cli(
        "run", "--json", "--build", project, "--stdin", "--env", "NAME=a value", "--env", "FROM_HERE", "--network", "none",
        "--file", f"{config}:/etc/config.txt", "--output", f"/tmp/report:{report}/", "--output", "/tmp/none",
        "--", "sh", "-c", 'cat; echo "$NAME, $FROM_HERE"; cat /etc/config.txt; echo brought out > /tmp/report',
        stdin="from stdin\n", env={"FROM_HERE": "inherited"},
    )  # fmt: skip
    assert done.returncode == 0
    assert "from stdin\na value, inherited\nfrom outside" in done.stderr, "with --json the output goes to stderr"
    assert (report / "report").read_text() == "brought out\n"
    assert "/tmp/none was not brought out: missing" in done.stderr
    result = json.loads(done.stdout)
    assert result["exit_code"] == 0 and result["build"]["reason"] == "OK" and result["run"]["reason"] == "OK"
    assert [(each["path"], each["size"]) for each in result["run"]["outputs"]] == [
        ("/tmp/report", 12),
        ("/tmp/none", 0),
    ]


def test_run_whose_build_fails(project: Path) -> None:
    done = cli("run", "--quiet", "--dockerfile", "Dockerfile.broken", "--build", project, "--", "echo", "never")
    assert (done.returncode, done.stdout) == (125, "")
    assert "BUILD_FAILED: the build failed in step 4/4 (line 4): RUN echo no; exit 3" in done.stderr


def test_run_with_more_than_a_sandbox_has_by_default(project: Path) -> None:
    """The sandbox grows; the command's own cap is still what it is killed by."""
    small = {"MANYOYO_SANDBOX_MEMORY": "256m"}
    done = cli("run", "-q", "--memory", "300m", "--build", project, "--", "tail", "/dev/zero", env=small)
    assert done.returncode == 137 and "OOM_KILLED" in done.stderr and "300 MiB" in done.stderr
    done = cli("run", "-q", "--memory", "300m", "--build", project, env=small | {"MANYOYO_MAX_SANDBOX_MEMORY": "256m"})
    assert done.returncode == 2 and "CAP_EXCEEDED" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_cleans_up(project: Path, number: int, code: int) -> None:
    with start("run", "-q", "--build", project, "--", "sh", "-c", "echo began; sleep 1000") as process:
        assert process.stdout is not None and process.stdout.readline() == "began\n"
        process.send_signal(number)
        begun = time.monotonic()
        assert process.wait(30) == code and time.monotonic() - begun < 10
    assert left_of(process.pid) == []


def test_a_run_whose_reader_goes(project: Path) -> None:
    with start("run", "-q", "--build", project, "--", "sh", "-c", "while :; do echo y; done") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "y\n"
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == ""
    assert left_of(process.pid) == []


# -- wrong use, and a host that is not there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--", "true"), "--build DIR or --image IMAGE"),
        (("run", "--image", "a", "--build", "."), "--build DIR or --image IMAGE"),
        (("run", "--image", "a", "--memory", "lots"), "is not a size"),
        (("run", "--image", "a", "--cpus", "nan"), "is not a number of CPUs"),
        (("run", "--image", "Upper Case"), "not an image reference"),
        (("run", "--image", "a", "--file", "none"), "is not SRC:DST"),
        (("run", "--build", "/no/such/directory"), "is not a directory"),
        (("run", "--build", "/"), "far more than a project"),
        (("run", "--image", "a", "--memry", "1g", "--", "true"), "No such option: --memry"),
        (("run", "--image", "a", "-v", "/a:/b", "true"), "Volumes are not offered"),
        (("run", "--publish", "80:80", "--image", "a"), "Published ports are not offered"),
        (("exec", "sb-1", "web"), "Missing argument"),
        (("exec", "sb-1", "web", "--"), "the command is missing"),
        (("exec", "sb-1", "web", "--user", "postgres", "id"), "'--user' comes too late"),
        (("exec", "sb-1", "--user", "postgres", "web", "id"), "'--user' comes too late"),
        (("exec", "--usr", "postgres", "sb-1", "web", "id"), "No such option: --usr"),
        (("shell", "sb-1", "--image", "a", "true"), "'--image' comes too late"),
        (("ps", "--frob"), "No such option"),
        (("frob",), "No such command"),
    ],
)
def test_wrong_use(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, for there are many and each would take a second to begin."""
    monkeypatch.setattr(sys, "argv", ["manyoyo-mcp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert words in " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split())
    assert "starting a" not in err, "no sandbox is started for what can't be meant"


@pytest.mark.parametrize(
    "arguments",
    [("ps",), ("gc",), ("logs", "sb-1"), ("exec", "sb-1", "a", "b"), ("run", "--image", "a"), ("rm", "sb-1")],
)
def test_no_host(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, env={"DOCKER_HOST": "unix:///no/such/socket"})
    assert (done.returncode, done.stdout) == (125, "")
    said = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert "HOST_UNAVAILABLE" in said[0] and "DOCKER_HOST" in said[1] and len(said) == 2


@pytest.mark.parametrize("arguments", [(), ("serve",), ("ps",)])
def test_a_wrong_setting(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, env={"MANYOYO_ENGINE": "chroot"})
    assert (done.returncode, done.stdout) == (2, "") and "The setting engine is wrong" in done.stderr
    done = cli(*arguments, env={"MANYOYO_NESTED_MEMORY": "lots"})
    assert (done.returncode, done.stdout) == (2, "") and "The setting nested_memory is wrong" in done.stderr


# -- serve


@pytest.mark.parametrize("arguments", [(), ("serve",)])
def test_serve_writes_messages_and_nothing_else_to_stdout(arguments: tuple[str, ...], tmp_path: Path) -> None:
    requests = [
        {"method": "initialize", "id": 1, "params": {"protocolVersion": "2025-11-25", "capabilities": {},
         "clientInfo": {"name": "test", "version": "1"}}},
        {"method": "notifications/initialized"},
        {"method": "no/such/method", "id": 2},
        {"method": "tools/call", "id": 3, "params": {"name": "nested_logs", "arguments": {"container": "none"}}},
    ]  # fmt: skip
    with start(*arguments, stdin=subprocess.PIPE, cwd=tmp_path, env={"MANYOYO_STATE_DIR": str(tmp_path)}) as process:
        assert process.stdin is not None and process.stdout is not None
        lines = []
        for request in requests:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **request}) + "\n")
            process.stdin.flush()
            if "id" in request:
                lines.append(process.stdout.readline())
        process.stdin.close()
        lines += process.stdout.readlines()
        assert process.wait(20) == 0
    assert sorted(json.loads(line)["id"] for line in lines) == [1, 2, 3]


# -- a sandbox that a server holds


@on_one_engine
def test_ps(held: Held) -> None:
    (row,) = [row for row in json.loads(cli("ps", "--json").stdout) if row["sandbox_id"] == held.sandbox_id]
    assert row["engine"] == held.engine and row["state"] == "running" and row["session"] == "alive"
    assert row["caps"]["memory_bytes"] == 1 << 30 and 0 < row["age_seconds"] < 600
    table = cli("ps").stdout
    (line,) = [line for line in table.splitlines() if held.sandbox_id in line]
    assert "1 GiB" in line and f"alive (pid {row['server_pid']})" in line


def test_ps_of_one(held: Held) -> None:
    (row,) = json.loads(cli("ps", held.sandbox_id, "--json").stdout)
    assert (row["name"], row["state"]) == ("web", "running") and row["image"].endswith(IMAGE)
    assert "web" in cli("ps", held.sandbox_id).stdout


def test_logs(held: Held) -> None:
    assert cli("logs", held.sandbox_id, "web").stdout == "serving\n"
    done = cli("logs", held.sandbox_id, "none")
    assert (done.returncode, done.stdout) == (125, "") and "CONTAINER_NOT_FOUND" in done.stderr
    assert cli("logs", held.sandbox_id, "--tail", "5").returncode == 0


def test_exec(held: Held) -> None:
    done = cli("exec", held.sandbox_id, "web", "sh", "-c", "echo out; echo err >&2; exit 9")
    assert done.returncode == 9 and sorted(done.stdout.splitlines()) == ["err", "out"] and done.stderr == ""
    beginning = held.sandbox_id.removeprefix("sb-")[:10]
    done = cli("exec", "-i", "-e", "A=b", "-w", "/tmp", beginning, "web", "sh", "-c", "cat; echo $A; pwd", stdin="in\n")
    assert (done.returncode, done.stdout) == (0, "in\nb\n/tmp\n")
    done = cli("exec", "-u", "guest", held.sandbox_id, "web", "--", "sh", "-c", "id -un; echo -- $0", "-x")
    assert (done.returncode, done.stdout) == (0, "guest\n-- -x\n")
    done = cli("exec", "--timeout", "1", held.sandbox_id, "web", "sleep", "60")
    assert done.returncode == 124 and "TIMEOUT" in done.stderr


@on_one_engine
def test_other_sandboxes_are_not_there(held: Held) -> None:
    done = cli("exec", "sb-0000000000000000", "web", "true")
    assert (done.returncode, done.stdout) == (125, "") and "SANDBOX_NOT_FOUND" in done.stderr and "ps" in done.stderr


@on_one_engine
def test_looking_in_leaves_it_as_it_is(held: Held) -> None:
    for arguments in (
        ("ps", held.sandbox_id),
        ("logs", held.sandbox_id, "web"),
        ("exec", held.sandbox_id, "web", "true"),
    ):
        assert cli(*arguments).returncode == 0
    done = cli("exec", held.sandbox_id, "web", "cat", "/proc/1/comm")
    assert (done.returncode, done.stdout) == (0, "sleep\n")


@on_one_engine
def test_gc_leaves_what_a_server_holds(held: Held) -> None:
    listed = json.loads(cli("gc", "--dry-run", "--json").stdout)
    assert held.sandbox_id not in [each["sandbox_id"] for each in listed["sandboxes"]]
    assert cli("gc").returncode == 0
    assert cli("exec", held.sandbox_id, "web", "true").returncode == 0


# -- shell


class Terminal:
    """`manyoyo-mcp arguments…` at a terminal of so many lines and columns."""

    def __init__(self, *arguments: str, lines: int = 30, columns: int = 90) -> None:
        ours, theirs = pty.openpty()
        self._fd = ours
        self.text = ""
        self.resize(lines, columns)
        self.process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, pattern: str, seconds: float = 20) -> str:
        """Read on until `pattern` matches; what it matched."""
        end = time.monotonic() + seconds
        while (match := re.search(pattern, self.text)) is None:
            ready, _, _ = select.select([self._fd], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise AssertionError(f"{pattern!r} did not come: {self.text!r}")
            try:
                self.text += os.read(self._fd, 4096).decode(errors="replace")
            except OSError as error:  # the other side is closed
                raise AssertionError(f"{pattern!r} did not come before the end: {self.text!r}") from error
        self.text = self.text[match.end() :]
        return match[0]

    def end(self) -> int:
        """Read to the end; the exit code."""
        while True:
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            self.text += data.decode(errors="replace")
        os.close(self._fd)
        return self.process.wait(20)


def test_shell_in_a_container(held: Held) -> None:
    terminal = Terminal("shell", held.sandbox_id, "web", lines=33, columns=101)
    terminal.until(r"[#$] ")
    terminal.type("sleep 1; stty size; tty; cat /proc/1/comm\n")
    terminal.until(r"33 101\s+/dev/pts/\d+\s+sleep")
    terminal.resize(40, 77)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    time.sleep(0.5)
    terminal.type("stty size\n")
    terminal.until(r"40 77")
    terminal.type("sleep 1000\n")
    time.sleep(0.3)
    terminal.type("\x03")  # ends what runs inside, not this
    terminal.type("echo still $((40 + 2)); exit 5\n")
    terminal.until(r"still 42")
    assert terminal.end() == 5


def test_shell_in_a_throw_away_container(held: Held) -> None:
    terminal = Terminal("shell", "--image", IMAGE, held.sandbox_id)
    terminal.until(r"[#$] ")
    terminal.type("hostname\n")
    name = terminal.until(r"[0-9a-f]{12}")
    rows = json.loads(cli("ps", held.sandbox_id, "--json").stdout)
    assert name in [row["id"][:12] for row in rows], "the shell is in a nested container"
    terminal.type("exit\n")
    assert terminal.end() == 0
    assert [row["name"] for row in json.loads(cli("ps", held.sandbox_id, "--json").stdout)] == ["web"]


def test_a_command_in_a_throw_away_container(held: Held) -> None:
    """It runs once, to its end, whatever it is; what it wrote and its exit code come out."""
    for words in (
        ("sh", "-c", "sleep 1; tty; echo ran $((40 + 2)); exit 4"),
        ("--", "sh", "-c", "echo ran 42; exit 4"),
    ):
        terminal = Terminal("shell", "--image", IMAGE, held.sandbox_id, *words)
        assert terminal.end() == 4
        assert terminal.text.count("ran 42") == 1, terminal.text
    terminal = Terminal("shell", "--image", IMAGE, held.sandbox_id, "no-such-program", columns=400)
    assert terminal.end() in (125, 126, 127) and "'no-such-program' could not be started" in terminal.text
    terminal = Terminal("shell", held.sandbox_id, "web", "--", "ls", "/")
    assert terminal.end() == 0 and "etc" in terminal.text
    assert [row["name"] for row in json.loads(cli("ps", held.sandbox_id, "--json").stdout)] == ["web"]


def test_shell_that_is_ended_from_outside(held: Held) -> None:
    terminal = Terminal("shell", held.sandbox_id, "web", "sh", "-c", "echo marked; exec sleep 4321")
    terminal.until("marked")
    terminal.process.terminate()
    assert terminal.end() == 143
    running = cli("exec", held.sandbox_id, "web", "sh", "-c", "ps | grep '[s]leep 4321'")
    assert (running.returncode, running.stdout) == (1, ""), "what ran inside has ended too"


@on_one_engine
@pytest.mark.parametrize(
    ("arguments", "words"), [((), "Neither a container nor an image"), (("none",), "CONTAINER_NOT_FOUND")]
)
def test_shell_leads_nowhere_else(held: Held, arguments: tuple[str, ...], words: str) -> None:
    terminal = Terminal("shell", held.sandbox_id, *arguments, columns=400)
    assert terminal.end() in (2, 125) and words in terminal.text


def test_shell_needs_a_terminal() -> None:
    done = cli("shell", "sb-1", "web")
    assert done.returncode == 2 and "needs a terminal" in done.stderr


# -- gc, doctor, uninstall


@pytest.fixture
def orphan(request: pytest.FixtureRequest) -> Iterator[str]:
    """A container with the labels of a sandbox whose server ended before this machine was booted: the user's, or a principal's."""
    sandbox_id = f"sb-{secrets.token_hex(8)}"
    whose = owner_labels(owner(getattr(request, "param", "")))
    labels = {"kind": "sandbox", "sandbox": sandbox_id, **whose, "engine": "podman", "session": "0" * 16,
              "server-pid": str(os.getpid()), "server-start": "1", "server-boot": "another"}  # fmt: skip
    host = docker.from_env()
    image = host.api.import_image_from_data(busybox_rootfs(), repository="localhost/cli-test-orphan", tag=sandbox_id)
    image_id = json.loads(image.strip().splitlines()[-1])["status"]
    host.containers.create(
        image_id, ["/bin/sleep", "1"], name=f"manyoyo-{sandbox_id}",
        labels={f"org.manyoyo.{key}": value for key, value in labels.items()},
        volumes={f"manyoyo-{sandbox_id}": {"bind": "/var/lib/manyoyo"}},
    )  # fmt: skip
    yield sandbox_id
    for each in host.containers.list(all=True, filters={"name": f"manyoyo-{sandbox_id}"}):
        each.remove(force=True)
    for volume in host.volumes.list(filters={"name": f"manyoyo-{sandbox_id}"}):
        volume.remove()
    host.images.remove(f"localhost/cli-test-orphan:{sandbox_id}")
    host.close()


def test_what_is_removed_is_on_record(orphan: str, tmp_path: Path) -> None:
    env = {"MANYOYO_STATE_DIR": str(tmp_path)}
    assert cli("rm", "sb-0000000000000000", env=env).returncode == 125
    assert cli("rm", orphan[:12], env=env).returncode == 0
    assert cli("gc", "--dry-run", env=env).returncode == 0  # which only looks
    assert cli("gc", env=env).returncode == 0
    found = json.loads(cli("audit", "show", "--json", "--tool", "command", env=env).stdout)
    assert [(each["command"], each["decision"], each["client"]) for each in found] == [
        ("rm", "failed", "cli"),
        ("rm", "allowed", "cli"),
        ("gc", "allowed", "cli"),
    ]
    assert found[0]["code"] == "SANDBOX_NOT_FOUND"
    assert found[1]["arguments"] == {"names": [orphan[:12]]} and found[1]["result"] == {"removed": [orphan]}
    assert orphan not in found[2]["result"]["removed"]
    assert cli("audit", "verify", env=env).returncode == 0


def test_rm(orphan: str) -> None:
    done = cli("rm", orphan, "sb-0000000000000000")
    assert (done.returncode, done.stdout) == (125, "") and "SANDBOX_NOT_FOUND" in done.stderr
    done = cli("rm", orphan[:12], orphan)
    assert done.returncode == 0 and done.stdout.startswith(f"removed {orphan} ("), done.stderr
    assert cli("rm", orphan).returncode == 125


def test_rm_of_a_name_that_two_have() -> None:
    host = docker.from_env()
    name = f"both-{secrets.token_hex(4)}"
    common = {"owner": owner(), "engine": "podman", "cpus": "1", "memory": str(1 << 29), "pids": "100"}
    told = {
        "sandbox": common | {"kind": "sandbox", "name": name, "sandbox": f"sb-{name}"},
        "checkpoint": common | {"kind": "checkpoint", "checkpoint": name, "from": "x"},
    }
    made = {
        kind: host.volumes.create(
            f"manyoyo-{kind}-{name}", labels={f"org.manyoyo.{key}": value for key, value in labels.items()}
        )
        for kind, labels in told.items()
    }
    try:
        done = cli("rm", name)
        assert done.returncode == 2 and f"checkpoint:{name}" in done.stderr, done.stderr
        done = cli("rm", f"checkpoint:{name}")
        assert (done.returncode, done.stdout) == (0, f"removed the checkpoint {name}\n"), done.stderr
        done = cli("rm", f"checkpoint:{name}")  # which is gone: the sandbox is not meant
        assert done.returncode == 125 and f"checkpoint:{name}" in done.stderr, done.stderr
        left = {each.name for each in host.volumes.list(filters={"name": name})}
        assert left == {made["sandbox"].name}
    finally:
        for each in host.volumes.list(filters={"name": name}):
            each.remove()
        host.close()


def test_rm_waits_for_who_starts_or_copies_it() -> None:
    host = docker.from_env()
    name = f"busy-{secrets.token_hex(4)}"
    labels = {"owner": owner(), "engine": "podman", "kind": "sandbox", "name": name, "sandbox": f"sb-{name}"}
    volume = host.volumes.create(f"manyoyo-sb-{name}", labels={f"org.manyoyo.{key}": labels[key] for key in labels})
    locks = Settings().lock_dir
    locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(locks / f"sb-{name}.lock"):
        process = start("rm", name)
        assert process.stderr is not None and "waiting for another session" in process.stderr.readline()
        assert host.volumes.list(filters={"name": volume.name})
        started = host.containers.create(  # by who had the lock
            outer.reference(Settings()),
            name=f"manyoyo-sb-{name}",
            volumes=[f"{volume.name}:/x"],
            labels=volume.attrs["Labels"],
        )
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, f"removed the sandbox {name}\n")
    assert not host.volumes.list(filters={"name": volume.name})
    assert not host.containers.list(all=True, filters={"id": started.id})
    host.close()


def test_rm_waits_for_who_replaces_a_checkpoint() -> None:
    host = docker.from_env()
    name = f"busy-{secrets.token_hex(4)}"
    labels = {"owner": owner(), "engine": "podman", "kind": "checkpoint", "checkpoint": name}
    store = checkpoint_store(owner(), name)
    old, new = (f"{store}-{index}" for index in range(2))
    made = {f"org.manyoyo.{key}": labels[key] for key in labels}
    host.volumes.create(old, labels=made)
    locks = Settings().lock_dir
    locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(locks / f"{store}.lock"):
        process = start("rm", name)
        assert process.stderr is not None and "waiting for another session" in process.stderr.readline()
        host.volumes.create(new, labels=made)
        host.volumes.get(old).remove()
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, f"removed the checkpoint {name}\n")
    assert not host.volumes.list(filters={"name": store})
    host.close()


def test_rm_of_what_a_server_holds(project: Path) -> None:
    with start("run", "-q", "--build", project, "--", "sh", "-c", "echo began; sleep 1000") as process:
        assert process.stdout is not None and process.stdout.readline() == "began\n"
        (name,) = {each.removeprefix("manyoyo-") for each in left_of(process.pid)}
        done = cli("rm", "--quiet", name)
        assert "the server that held it runs on" in done.stdout
        assert process.wait(30) == 125
    assert left_of(process.pid) == []


@pytest.mark.parametrize("orphan", ["", "alice"], ids=["user", "principal"], indirect=True)
def test_gc(orphan: str) -> None:
    listed = json.loads(cli("gc", "--dry-run", "--json").stdout)
    (row,) = [each for each in listed["sandboxes"] if each["sandbox_id"] == orphan]
    assert listed["dry_run"] is True and row["session"] == "orphan" and row["state"] == "stopped"
    assert f"would remove {orphan}" in cli("gc", "--dry-run").stdout
    assert f"removed {orphan}" in cli("gc").stdout
    host = docker.from_env()
    assert host.containers.list(all=True, filters={"name": f"manyoyo-{orphan}"}) == []
    host.close()


def test_doctor(tmp_path: Path) -> None:
    done = cli("doctor", "--json", "--quiet")
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["ok"] is True, result
    checks = {each["name"]: each for each in result["checks"]}
    assert {"python", "mcp", "host engine", "api version", "access", "cgroups", "capabilities", "isolation", "network", "sandbox image", "base images",
            "disk", "overlay", "runtime directory", "orphans", "registry", "certificates", "proxy"} <= set(checks)  # fmt: skip
    assert all(each["state"] in ("ok", "warn") and each["found"] for each in result["checks"])
    assert all(bool(each["mend"]) == (each["state"] == "warn") for each in result["checks"])
    assert checks["network"]["found"].startswith("the rules can be made; open.")
    assert "privileged is not refused, hardened is not refused" in checks["isolation"]["found"]
    shown = cli("doctor", env={"http_proxy": "http://localhost:1"}).stdout
    assert "warn  proxy: " in shown and "→ " in shown


def test_doctor_asks_the_engine_about_capabilities() -> None:
    """Without a runtime of its own: a warning if and only if the engine does not start a privileged container."""
    host = docker.from_env()
    refused = False
    try:
        host.containers.run(outer.reference(Settings()), [], entrypoint=["/bin/true"], privileged=True, remove=True)
    except docker.errors.APIError:
        refused = True
        for each in host.containers.list(all=True, filters={"status": "created"}):
            if each.attrs["Config"]["Entrypoint"] == ["/bin/true"]:
                each.remove()
    before = len(host.containers.list(all=True))
    environment = {name: value for name, value in os.environ.items() if name != "MANYOYO_HOST_RUNTIME"}
    command = [sys.executable, "-m", "manyoyo_mcp", "doctor", "--json", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    (check,) = [each for each in json.loads(done.stdout)["checks"] if each["name"] == "capabilities"]
    assert check["state"] == ("warn" if refused else "ok"), check
    assert len(host.containers.list(all=True)) == before
    host.close()


def test_doctor_tries_both_engines() -> None:
    result = json.loads(cli("doctor", "--try", "--json", "--quiet").stdout)
    tried = {each["name"]: each for each in result["checks"] if each["name"].startswith("sandbox ")}
    for engine in ("podman", "docker"):
        check = tried[f"sandbox {engine}"]
        assert check["state"] == "ok" and "killed (exit 137" in check["found"] and "removed in" in check["found"]


def test_doctor_tries_a_tier() -> None:
    """By what is seen in a sandbox of it; and says why it can't be had, which is a failure where it is the one that is meant."""
    done = cli("doctor", "isolation", "gvisor", "runtime:no-such", "--json", "--quiet")
    had, none, *_ = json.loads(done.stdout)["checks"]
    assert done.returncode == 0 and had["name"] == "isolation gvisor, podman" and had["state"] == "ok", had
    assert "a nested run sees Linux version 4.4.0" in had["found"]
    assert none["state"] == "warn" and "has no OCI runtime 'no-such'. It has: " in none["found"] and none["mend"]
    meant = cli(
        "doctor", "isolation", "runtime:no-such", "--json", "--quiet", env={"MANYOYO_ISOLATION": "runtime:no-such"}
    )
    assert meant.returncode == 1 and json.loads(meant.stdout)["checks"][0]["state"] == "fail"
    assert cli("doctor", "isolation", "strong").returncode == 2


def test_doctor_names_what_is_wrong() -> None:
    for env, name in (
        ({"DOCKER_HOST": "unix:///no/such/socket"}, "host engine"),
        ({"MANYOYO_HOST_RUNTIME": "no-such-runtime"}, "capabilities"),
        ({"MANYOYO_MAX_SANDBOX_CPUS": "-1"}, "configuration"),
        ({"MANYOYO_CA_BUNDLE": "/no/such/file"}, "certificates"),
    ):
        done = cli("doctor", "--json", "--quiet", env=env)
        failed = [each for each in json.loads(done.stdout)["checks"] if each["state"] == "fail"]
        assert done.returncode == 1 and [each["name"] for each in failed] == [name] and failed[0]["mend"]


@on_one_engine
def test_uninstall_lists_and_asks(held: Held) -> None:
    listed = cli("uninstall", "--dry-run", "--json")
    found = {(each["kind"], each["name"]): each["note"] for each in json.loads(listed.stdout)}
    assert "a server holds it" in found["sandbox", f"manyoyo-{held.sandbox_id}"]
    assert ("volume", f"manyoyo-{held.sandbox_id}") in found
    assert any(kind == "image" and name.startswith("localhost/manyoyo/sandbox:") for kind, name in found)
    done = cli("uninstall")
    assert done.returncode == 2 and held.sandbox_id in done.stdout and "--yes" in done.stderr
    terminal = Terminal("uninstall", columns=300)
    terminal.until(r"Remove these \d+\? .*\[y/N\]")
    terminal.type("n\n")
    assert terminal.end() == 1
    assert cli("exec", held.sandbox_id, "web", "true").returncode == 0


def test_uninstall_without_a_host(tmp_path: Path) -> None:
    """Processes and files go all the same; that nobody could look for containers is said."""
    state = tmp_path / "state"
    env = {
        "DOCKER_HOST": "unix:///no/such/socket",
        "MANYOYO_STATE_DIR": str(state),
        "MANYOYO_RUNTIME_DIR": str(tmp_path),
    }
    session = "0" * 16
    (state / "sessions" / session / "logs").mkdir(parents=True)
    ended = json.dumps([1 << 22, "1", session])
    orphan = [sys.executable, "-m", "manyoyo_mcp.sessions.reaper", ended]
    with (
        start("serve", stdin=subprocess.PIPE, env=env) as server,
        subprocess.Popen(orphan, env=os.environ | env) as reaper,
    ):
        try:
            deadline = time.monotonic() + 20
            while not list(state.glob("sessions/*/server.json")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            listed = cli("uninstall", "--dry-run", "--json", env=env)
            found = {(each["kind"], each["name"]) for each in json.loads(listed.stdout)}
            assert found == {
                ("server", f"process {server.pid}"),
                ("reaper", f"process {reaper.pid}"),
                ("directory", str(state / "sessions")),
            }
            assert listed.returncode == 1 and "could not be looked at" in listed.stderr
            done = cli("uninstall", "--yes", env=env)
            assert done.returncode == 1 and "Removed 3 of 3" in done.stderr, done.stderr
            for words in ("claude mcp remove manyoyo", "scripts/engine purge", "pip uninstall manyoyo-mcp"):
                assert words in done.stderr
            assert reaper.wait(5) == -signal.SIGTERM and server.wait(5) is not None
            assert not state.exists()
        finally:
            server.kill()
            reaper.kill()


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Another engine of this test's own, empty: the environment that points at it."""
    script = str(ROOT / "scripts" / "engine")
    env = {key: value for key, value in os.environ.items() if key not in ("DOCKER_HOST", "DOCKER_CONTEXT")}
    env["MANYOYO_ENGINE_DIR"] = str(tmp_path / "engine")
    try:
        subprocess.run([script, "up"], env=env, check=True)
        exports = subprocess.run([script, "env"], env=env, check=True, capture_output=True, text=True).stdout
        yield dict(line.removeprefix("export ").split("=", 1) for line in exports.splitlines())
    finally:
        subprocess.run([script, "purge"], env=env, check=True)


def test_uninstall_removes_ours_alone(own_engine: dict[str, str], tmp_path: Path) -> None:
    host = docker.DockerClient(base_url=own_engine["DOCKER_HOST"])
    for name in ("localhost/manyoyo/sandbox", "localhost/other"):
        host.api.import_image_from_data(busybox_rootfs(), repository=name, tag="1")
    for name, image, whose in (
        ("ours", "localhost/manyoyo/sandbox:1", owner()),
        ("principals", "localhost/manyoyo/sandbox:1", owner("alice")),
        ("anothers-principals", "localhost/other:1", "4242@elsewhere/alice"),
        ("anothers", "localhost/other:1", "4242@elsewhere"),
        ("nobodys", "localhost/other:1", None),
    ):
        labels = {"kind": "sandbox", **owner_labels(whose)} if whose else {}
        labels = {f"org.manyoyo.{key}": value for key, value in labels.items()}
        host.volumes.create(f"data-{name}", labels=labels)
        host.containers.run(
            image,
            ["/bin/sleep", "1000"],
            name=name,
            labels=labels,
            network_mode="none",
            stop_signal="SIGKILL",
            detach=True,
        )
    host.volumes.create("manyoyo-bases")
    state = tmp_path / "state"
    (state / "sessions" / "x").mkdir(parents=True)
    (state / "notes.txt").write_text("not ours")
    env = {**own_engine, "MANYOYO_STATE_DIR": str(state), "MANYOYO_RUNTIME_DIR": str(tmp_path / "run")}
    done = cli("uninstall", "--yes", env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(each.name for each in host.containers.list(all=True)) == [
        "anothers",
        "anothers-principals",
        "nobodys",
    ]
    assert sorted(each.name for each in host.volumes.list()) == [
        "data-anothers",
        "data-anothers-principals",
        "data-nobodys",
    ]
    assert [tag for each in host.images.list() for tag in each.tags] == ["localhost/other:1"]
    assert [path.name for path in state.iterdir()] == ["notes.txt"]
    again = cli("uninstall", "--yes", env=env)
    assert again.returncode == 0 and "Nothing of ours" in again.stderr
    sockets = tmp_path / "run" / "sandboxes"
    for name in ("dead", "theirs"):
        (sockets / name).mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as anothers:
        directory = os.open(sockets / "theirs", os.O_PATH)
        anothers.bind(f"/proc/self/fd/{directory}/engine.sock")  # a path of its own may be too long
        os.close(directory)
        anothers.listen()
        kept = cli("uninstall", "--yes", env=env)
        assert kept.returncode == 1 and "another engine listen there: theirs" in kept.stderr, kept.stderr
        assert [path.name for path in sockets.iterdir()] == ["theirs"]
    assert cli("uninstall", "--yes", env=env).returncode == 0 and not sockets.exists()
    host.close()


@pytest.mark.parametrize("arguments", [("ps", "--json"), ("--help",)])
def test_a_reader_that_goes(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = cli(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_version_and_help() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", cli("--version").stdout)
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", cli("shell", "--help").stdout).split())
    assert "root in it is root on the host" in shown, "why there is no shell in the outer container"


def test_stdout_that_is_closed() -> None:
    words = [sys.executable, "-m", "manyoyo_mcp", "ps", "--json"]
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], stderr=subprocess.PIPE, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
