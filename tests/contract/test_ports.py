"""Every engine: what the user's own client publishes is reachable on this machine's loopback, and nowhere else, while its container runs."""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest

from manyoyo_mcp.audit.reading import Wanted, entries
from manyoyo_mcp.policy.ports import LOOPBACK
from manyoyo_mcp.sessions.forwarding import listening
from tests.contract.test_gate import SERVICE, Docker
from tests.support import BUSYBOX, Box

pytestmark = pytest.mark.anyio
WEB = ["sh", "-c", "trap 'exit 0' TERM; httpd -f -p 8080 -h /etc & wait"]
"""Ends when it is told to, as in `test_gate`."""


@pytest.fixture(scope="module")
async def cli(box: Box, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Docker]:
    """With an endpoint that publishes; that of other tests does not."""
    yield Docker(box.manager.endpoints.open(box.sandbox, ports=True), tmp_path_factory.mktemp("home"))
    box.manager.endpoints._ports.pop(box.sandbox.sandbox_id).close()


@pytest.fixture
async def name(cli: Docker, box: Box) -> AsyncIterator[str]:
    chosen = f"web-{secrets.token_hex(4)}"
    yield chosen
    await cli("rm", "-f", chosen, ok=False)
    await soon(lambda: not shown(box))


def fetch(url: str) -> bytes:
    """Once it answers, for a service takes a moment until it listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return bytes(answer.read())
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.1)


def free_port() -> int:
    with listening(0) as sock:
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((LOOPBACK, port)) == 0


def answer(port: int) -> bytes:
    with socket.create_connection((LOOPBACK, port), timeout=20) as sock:
        return sock.recv(1)


async def soon(what: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not await anyio.to_thread.run_sync(what):
            await anyio.sleep(0.05)


def shown(box: Box) -> list[str]:
    return box.manager.endpoints.published(box.sandbox)


async def test_a_port_lives_as_long_as_its_container(cli: Docker, box: Box, name: str) -> None:
    port = free_port()
    await cli("run", "-d", "--name", name, "-p", f"{port}:8080", BUSYBOX, *WEB)
    assert (await cli("port", name)).stdout == f"8080/tcp -> {LOOPBACK}:{port}\n"
    assert shown(box) == [f"{LOOPBACK}:{port} to {name}:8080"]
    assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://localhost:{port}/passwd")
    again = await cli("run", "-d", "--name", f"{name}-2", "-p", f"{port}:80", BUSYBOX, *SERVICE, ok=False)
    assert again.returncode == 125 and f"Port {port} " in again.stderr and name in again.stderr, again
    await cli("rm", f"{name}-2")
    await cli("kill", name)
    await soon(lambda: not listens(port) and not shown(box))
    await cli("start", name)
    assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://127.0.0.1:{port}/passwd")
    await cli("rm", "-f", name)
    await soon(lambda: not listens(port))


async def test_ports_that_nobody_named(cli: Docker, box: Box, name: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {BUSYBOX}\nEXPOSE 8080 8081/tcp 53/udp\nCMD {json.dumps(WEB)}\n")
    await cli("build", "-q", "-t", "localhost/exposes", str(tmp_path))
    await cli("run", "-d", "--name", name, "-P", "-p", "8080", "localhost/exposes")
    found = dict(line.split(f"/tcp -> {LOOPBACK}:") for line in (await cli("port", name)).stdout.splitlines())
    assert set(found) == {"8080", "8081"}, "TCP alone"
    assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://127.0.0.1:{found['8080']}/passwd")
    with pytest.raises(ConnectionResetError):  # nobody listens there
        await anyio.to_thread.run_sync(answer, int(found["8081"]))
    assert len(shown(box)) == 2


async def test_a_port_that_is_taken_here(cli: Docker, box: Box, name: str) -> None:
    with listening(0) as taken:
        port = taken.getsockname()[1]
        done = await cli("run", "-d", "--name", name, "-p", f"{port}:8080", BUSYBOX, *WEB, ok=False)
        assert done.returncode == 125 and f"Port {port} of this machine's loopback" in done.stderr, done
        assert refused(box) == ("PORT_IN_USE", f"/containers/{await made(cli, name)}/start")
        assert "true" not in (await cli("inspect", "--format", "{{.State.Running}}", name)).stdout
        span = await cli("create", "-p", f"{port}-{port + 5}:8080", BUSYBOX, *WEB)
        chosen = (await cli("inspect", "--format", "{{json .HostConfig.PortBindings}}", span.stdout.strip())).stdout
        assert f'"{port}"' not in chosen and f'"{LOOPBACK}"' in chosen, "another of those that were named"
        await cli("rm", span.stdout.strip())
    assert shown(box) == []
    await cli("start", name)
    assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://127.0.0.1:{port}/passwd")


@pytest.mark.parametrize("words", ["192.0.2.1:8080:80", "8080:80/udp"])
async def test_what_reaches_further_is_refused(cli: Docker, words: str) -> None:
    done = await cli("run", "--rm", "-p", words, BUSYBOX, "true", ok=False)
    assert done.returncode == 125 and "publish" in done.stderr, done


async def test_what_ends_by_itself_lets_its_port_go(cli: Docker, box: Box) -> None:
    port = free_port()
    done = await cli("run", "--rm", "-p", f"{port}:8080", BUSYBOX, "sh", "-c", "exit 3", ok=False)
    assert done.returncode == 3
    await soon(lambda: not listens(port) and not shown(box))


async def test_another_session_has_what_is_published(cli: Docker, box: Box, name: str) -> None:
    """As of a named sandbox, which goes on; the engine's record says which ports they are."""
    await cli("run", "-d", "--name", name, "-p", "8080", BUSYBOX, *WEB)
    [before], port = shown(box), int((await cli("port", name, "8080")).stdout.rpartition(":")[2])
    box.manager.endpoints._ports.pop(box.sandbox.sandbox_id).close()
    assert shown(box) == [] and not listens(port)
    box.manager.endpoints.open(box.sandbox, ports=True)
    await soon(lambda: shown(box) == [before])
    assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://127.0.0.1:{port}/passwd")


def refused(box: Box) -> tuple[str, str]:
    """The last refusal of a gate that stands in the audit log: its code, and what was asked for."""
    last = entries(box.manager.settings.state_dir / "audit", Wanted(tool="gate", refused=True))[-1]
    return last["code"], last["path"]


async def test_so_many_ports_and_no_more(cli: Docker, box: Box, name: str) -> None:
    full = [f"{name}-{number}" for number in range(2)]
    try:
        for each in full:
            publish = [word for port in range(7000, 7032) for word in ("-p", str(port))]
            await cli("run", "-d", "--name", each, *publish, BUSYBOX, *SERVICE)
        assert len(shown(box)) == 64
        one_more = await cli("run", "-d", "--name", name, "-p", "8080", BUSYBOX, *SERVICE, ok=False)
        assert one_more.returncode == 125 and "64 ports of this sandbox are published" in one_more.stderr, one_more
        assert refused(box) == ("PORT_LIMIT", f"/containers/{await made(cli, name)}/start")
        assert len(shown(box)) == 64, "none of them was let go for it"
        await cli("rm", "-f", full.pop())
        await soon(lambda: len(shown(box)) == 32)
        await cli("start", name)
        assert len(shown(box)) == 33
    finally:
        await cli("rm", "-f", *full, ok=False)


async def made(cli: Docker, name: str) -> str:
    return (await cli("inspect", "--format", "{{.Id}}", name)).stdout.strip()


async def test_much_goes_both_ways_and_nothing_is_left(cli: Docker, box: Box, name: str) -> None:
    """Several at once; ends are handed on; who goes away leaves no process in the sandbox."""
    serve = "while true; do nc -l -p 8080 -e sh -c 'head -c 3000000 | md5sum; head -c 3000000 /dev/zero'; done"
    script = f"({serve}) & nc -ll -p 8081 -e sleep 7998 & trap 'exit 0' TERM; wait"
    await cli("run", "-d", "--name", name, "-p", "8080", "-p", "8081", BUSYBOX, "sh", "-c", script)
    found = dict(line.split(f"/tcp -> {LOOPBACK}:") for line in (await cli("port", name)).stdout.splitlines())
    data = os.urandom(3_000_000)

    def exchange() -> bytes:
        deadline = time.monotonic() + 20
        while True:  # until it listens
            with (
                contextlib.suppress(OSError),
                socket.create_connection((LOOPBACK, int(found["8080"])), timeout=20) as sock,
            ):
                sending = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
                sending.start()
                received = b"".join(iter(lambda: sock.recv(1 << 16), b""))
                sending.join()
                return received
            assert time.monotonic() < deadline
            time.sleep(0.1)

    said, _, rest = (await anyio.to_thread.run_sync(exchange)).partition(b"\n")
    assert said.split()[0].decode() == hashlib.md5(data).hexdigest() and len(rest) == 3_000_000
    held = [socket.create_connection((LOOPBACK, int(found["8081"])), timeout=20) for _ in range(3)]
    await soon(lambda: len(box.processes("busybox nc ")) >= 3)
    for each in held:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        each.close()
    await soon(lambda: not box.processes("busybox nc "))


async def test_docker_py(cli: Docker, box: Box) -> None:
    with contextlib.closing(docker.DockerClient(base_url=f"unix://{cli.path}")) as client:
        container: Any = await anyio.to_thread.run_sync(
            lambda: client.containers.run(BUSYBOX, WEB, detach=True, ports={"8080/tcp": None})
        )
        port = client.api.port(container.id, 8080)[0]["HostPort"]
        assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://127.0.0.1:{port}/passwd")
        await anyio.to_thread.run_sync(lambda: container.remove(force=True))
    await soon(lambda: not listens(int(port)))
