"""A host's engine that is not a socket on this machine: over ssh, and over TCP with TLS; told by variables or by a context."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

import asyncssh
import docker
import pytest
from mcp import Client, StdioServerParameters

from tests.clients.harness import until
from tests.conftest import server_parameters
from tests.integration.test_main_job import busybox_tar, main_job

pytestmark = pytest.mark.anyio


@contextmanager
def serving(server: Callable[[], Awaitable[Any]]) -> Iterator[Any]:
    """A server on an event loop and a thread of its own, closed on leaving."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        running = asyncio.run_coroutine_threadsafe(server(), loop).result(20)
        yield running
        loop.call_soon_threadsafe(running.close)
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _pump(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()


def _port(running: Any) -> int:
    return int(running.sockets[0].getsockname()[1])


# -- over ssh


async def _command(process: "asyncssh.SSHServerProcess[bytes]") -> None:
    """What sshd does with a command: hands it to a shell, and joins the channel to what it reads and writes."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_shell(str(process.command), stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdin is not None

    async def feed() -> None:
        await _pump(process.stdin, child.stdin)
        child.stdin.close()  # type: ignore[union-attr]

    feeding = asyncio.create_task(feed())
    try:
        await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        process.exit(await child.wait())
    finally:
        feeding.cancel()
        with contextlib.suppress(ProcessLookupError):
            child.kill()


@contextmanager
def over_ssh(directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An ssh server whose one user has a key, and a client that knows both: address and variables."""
    ours, theirs = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    key, known, bin_ = directory / "key", directory / "known_hosts", directory / "bin"
    ours.write_private_key(key)
    key.chmod(0o600)
    users = asyncssh.import_authorized_keys(ours.export_public_key().decode())

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1", 0, server_host_keys=[theirs], authorized_client_keys=users, process_factory=_command, encoding=None
        )  # fmt: skip

    with serving(listen) as server:
        known.write_text(f"[127.0.0.1]:{_port(server)} {theirs.export_public_key().decode()}")
        bin_.mkdir()
        program = bin_ / "ssh"
        program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F none -o UserKnownHostsFile={known} -i {key} "$@"\n')
        program.chmod(0o755)
        yield f"ssh://tester@127.0.0.1:{_port(server)}", {"PATH": f"{bin_}:{os.environ['PATH']}"}


# -- over TCP with TLS


def _certificates(directory: Path) -> None:
    """ca.pem, and with it a server's and a client's certificate, as docker wants them named."""
    directory.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    new = ["-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl("req", "-x509", *new, "-subj", "/CN=tests", "-keyout", "ca-key.pem", "-out", "ca.pem")
    for name, extension in (("server-", "subjectAltName=IP:127.0.0.1"), ("", "extendedKeyUsage=clientAuth")):
        (directory / "ext").write_text(extension)
        openssl("req", *new, "-subj", f"/CN={name}test", "-keyout", f"{name}key.pem", "-out", "request")
        openssl("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2",
                "-extfile", "ext", "-out", f"{name}cert.pem")  # fmt: skip


@contextmanager
def over_tls(directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """TLS in front of the engine's socket, for whoever has a certificate of our CA: address and variables."""
    certificates = directory / "certificates"
    _certificates(certificates)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    engine = os.environ["DOCKER_HOST"].removeprefix("unix://")
    files = {"cert": "server-cert.pem", "key": "server-key.pem", "cafile": "ca.pem"}
    listen = f"OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,verify=1"
    listen += "".join(f",{option}={certificates / name}" for option, name in files.items())
    # -t: how long one direction may outlive the other, as it does with what reads its stdin to the end
    front = subprocess.Popen(["socat", "-t", "600", listen, f"UNIX-CONNECT:{engine}"], process_group=0)
    try:
        until("socat listens", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 10)
        yield f"tcp://127.0.0.1:{port}", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
    finally:
        os.killpg(front.pid, signal.SIGTERM)
        front.wait()


# -- the job over both

Road = Literal["ssh", "tls"]
ROADS = {"ssh": over_ssh, "tls": over_tls}


def _context(directory: Path, address: str, certificates: str | None) -> dict[str, str]:
    """Docker's own configuration, in which a context of that address is the current one."""
    name = hashlib.sha256(b"far").hexdigest()
    meta, tls = directory / "contexts" / "meta" / name, directory / "contexts" / "tls" / name / "docker"
    meta.mkdir(parents=True)
    endpoint = {"docker": {"Host": address, "SkipTLSVerify": False}}
    (meta / "meta.json").write_text(json.dumps({"Name": "far", "Metadata": {}, "Endpoints": endpoint}))
    (directory / "config.json").write_text(json.dumps({"currentContext": "far"}))
    if certificates is not None:
        tls.mkdir(parents=True)
        for file in ("ca.pem", "cert.pem", "key.pem"):
            (tls / file).write_bytes((Path(certificates) / file).read_bytes())
    return {"DOCKER_CONFIG": str(directory)}


def _parameters(directory: Path, variables: dict[str, str]) -> StdioServerParameters:
    parameters = server_parameters(directory, **variables)
    assert parameters.env is not None
    if "DOCKER_HOST" not in variables:
        del parameters.env["DOCKER_HOST"]
    return parameters


@asynccontextmanager
async def far_client(directory: Path, road: Road, by: str) -> AsyncIterator[Client]:
    with ROADS[road](directory) as (address, variables):
        if by == "context":
            variables |= _context(directory / "docker", address, variables.pop("DOCKER_CERT_PATH", None))
            variables.pop("DOCKER_TLS_VERIFY", None)
        else:
            variables["DOCKER_HOST"] = address
        async with Client(_parameters(directory, variables)) as client:
            yield client
        until("ssh has ended with its server", lambda: not _running(str(directory)), 10)


def _running(marker: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if words.startswith("/usr/bin/ssh ") and marker in words:
                found.append(words)
    return found


@pytest.mark.parametrize(
    ("engine", "road", "by"),  # every pair of two
    [
        ("podman", "ssh", "variables"),
        ("podman", "tls", "context"),
        ("docker", "ssh", "context"),
        ("docker", "tls", "variables"),
    ],
)
async def test_main_job(tmp_path: Path, engine: str, road: Road, by: str) -> None:
    async with far_client(tmp_path, road, by) as client:
        await main_job(client, engine)


@pytest.mark.parametrize("road", ["ssh", "tls"])
@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_streams(tmp_path: Path, engine: str, road: Road) -> None:
    """Much output, stdin with its end, files in and out, an end that is forced: all through the relay."""
    async with far_client(tmp_path, road, "variables") as client:

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error and result.structured_content is not None, result.content
            return dict(result.structured_content)

        started = await call("start_sandbox", engine=engine)
        assert started["sandbox"]["transport"] == "relay"
        files = {"Dockerfile": "FROM scratch\nADD bb.tar /\nENV PATH=/bin\n", "bb.tar": {"base64": busybox_tar()}}
        await call("nested_build", files=files, tags=["localhost/bb:1"])
        busybox = ["busybox", "sh", "-c"]
        much = await call(
            "nested_run", image="localhost/bb:1", command=["busybox", "head", "-c", "8000000", "/dev/zero"]
        )
        assert much["reason"] == "OK" and much["output_bytes"] == 8_000_000, much
        count = await call("nested_run", image="localhost/bb:1", command=[*busybox, "busybox cat /in; busybox wc -c > /out"],
                           stdin="x" * 300_000, files={"/in": "laid in"}, outputs=["/out"])  # fmt: skip
        assert "laid in" in count.get("output", "") and "\n300000\n" in count["outputs"][0]["text"], count
        echoed = await call("nested_run", image="localhost/bb:1", command=["busybox", "cat"], stdin="y" * 2_000_000)
        assert echoed["reason"] == "OK" and echoed["output_bytes"] == 2_000_000, echoed
        ended = await call("nested_run", image="localhost/bb:1", command=["busybox", "sleep", "7999"], timeout_s=1)
        assert ended["reason"] == "TIMEOUT"


# -- a connection that is lost without a word


class Swallowing:
    """A way over TCP to the engine's socket, in which execs in one container get no answer: their requests are swallowed."""

    def __init__(self) -> None:
        self.container: str | None = None

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._join, "127.0.0.1", 0)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = os.environ["DOCKER_HOST"].removeprefix("unix://")
        answers, requests = await asyncio.open_unix_connection(engine)
        back = asyncio.create_task(self._answer(answers, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.container is not None and f"/containers/{self.container}/exec".encode() in data:
                    await asyncio.Event().wait()  # until the test ends
                requests.write(data)
                await requests.drain()
            requests.write_eof()
        await back
        requests.close()

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _pump(answers, writer)
        writer.close()


async def test_a_sandbox_that_answers_no_more_takes_no_other_with_it(tmp_path: Path) -> None:
    """Each keeps its lease or loses it by itself."""
    way = Swallowing()
    with serving(way.listen) as server:
        variables = {"DOCKER_HOST": f"tcp://127.0.0.1:{_port(server)}", "MANYOYO_LEASE_S": "4"}
        async with Client(_parameters(tmp_path, variables)) as client:
            lost, kept = [
                (await client.call_tool("start_sandbox", {"memory": "512m"})).structured_content for _ in "12"
            ]
            assert lost is not None and kept is not None
            with contextlib.closing(docker.from_env()) as host:
                ours = {
                    each["sandbox"]["sandbox_id"]: f"manyoyo-{each['sandbox']['sandbox_id']}" for each in (lost, kept)
                }
                gone, there = (host.containers.get(name) for name in ours.values())
                way.container = gone.id
                await asyncio.to_thread(gone.wait, timeout=30)
                await asyncio.sleep(6)  # more than a lease without the other's renewals
                there.reload()
                assert there.status == "running"


async def test_ssh_says_why_not(tmp_path: Path) -> None:
    with over_ssh(tmp_path) as (address, variables):
        (tmp_path / "key").unlink()
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "key")
        (tmp_path / "key").chmod(0o600)
        said = await _refusal(tmp_path, variables | {"DOCKER_HOST": address})
    assert "HOST_UNAVAILABLE" in said and "Permission denied (publickey" in said, said


async def test_there_is_no_ssh(tmp_path: Path) -> None:
    said = await _refusal(tmp_path, {"DOCKER_HOST": "ssh://nobody.invalid", "PATH": str(tmp_path)})
    assert "HOST_UNAVAILABLE" in said and "ssh can't be run" in said, said


async def test_an_ssh_address_that_is_none(tmp_path: Path) -> None:
    said = await _refusal(tmp_path, {"DOCKER_HOST": "ssh://-oProxyCommand=true/"})
    assert "HOST_UNAVAILABLE" in said and "is not ssh://" in said, said


async def test_tls_with_a_strangers_certificate(tmp_path: Path) -> None:
    with over_tls(tmp_path) as (address, variables):
        _certificates(tmp_path / "others")
        (tmp_path / "others" / "ca.pem").write_bytes((tmp_path / "certificates" / "ca.pem").read_bytes())
        variables["DOCKER_CERT_PATH"] = str(tmp_path / "others")
        said = await _refusal(tmp_path, variables | {"DOCKER_HOST": address})
    assert "HOST_UNAVAILABLE" in said, said


async def _refusal(directory: Path, variables: dict[str, str]) -> str:
    async with Client(_parameters(directory, variables)) as client:
        result = await client.call_tool("start_sandbox", {})
    assert result.is_error and result.content[0].type == "text"
    return result.content[0].text
