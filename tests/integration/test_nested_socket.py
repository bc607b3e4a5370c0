"""A nested container with a Docker socket: a gate of its own sandbox, whoever mounts it, and no more than that."""

import contextlib
import json
import re
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import NotSupported
from manyoyo_mcp.image.bases import Base
from manyoyo_mcp.sessions.forwarding import listening
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.contract.test_gate import SERVICE, Docker
from tests.integration.bases import ensure_bases
from tests.support import Box

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("bases_begun")]
DEBIAN = "localhost/manyoyo/debian"
PERL = """
use IO::Socket::UNIX;
my ($method, $path, $body) = @ARGV;
my $s = IO::Socket::UNIX->new(Peer => "/var/run/docker.sock") or die "no socket: $!\\n";
printf $s "%s /v1.41%s HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n%s",
    $method, $path, length $body, $body;
$s->flush; print while <$s>;
"""


@pytest.fixture(scope="module")
async def debian() -> Base:
    return (await ensure_bases(["debian"]))["debian"]


@pytest.fixture(scope="module", params=["podman", "docker"])
async def box(request: pytest.FixtureRequest, manager: Manager, debian: Base) -> AsyncIterator[Box]:
    sandbox = await manager.start(request.param, memory=1 << 30)
    yield Box(manager, sandbox)
    await manager.remove(sandbox)


async def ask(box: Box, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """What a nested container with the socket is answered: status and JSON."""
    box.manager.endpoints.open_inside(box.sandbox)
    said = await box.output(
        "perl", "-e", PERL, method, path, "" if body is None else json.dumps(body), image=DEBIAN, docker_socket=True
    )
    head, _, rest = said.partition("\r\n\r\n")
    if "chunked" in head:
        rest = re.sub(r"(?:^|\r\n)[0-9a-f]+\r\n", "", rest)
    return int(head.split()[1]), json.loads(rest) if rest.startswith("{") else rest


async def test_a_sibling_is_made_and_run(box: Box) -> None:
    name = f"sibling-{secrets.token_hex(4)}"
    status, made = await ask(box, "POST", f"/containers/create?name={name}", {"Image": DEBIAN, "Cmd": SERVICE})
    assert status == 201, made
    assert (await ask(box, "POST", f"/containers/{name}/start"))[0] == 204
    status, there = await ask(box, "GET", f"/containers/{name}/json")
    assert there["State"]["Running"] and there["HostConfig"]["Memory"] == box.sandbox.limits.default.memory
    assert (await ask(box, "DELETE", f"/containers/{name}?force=true"))[0] == 204


async def test_what_it_publishes_stays_inside(box: Box) -> None:
    """Also where the user's own endpoint publishes."""
    box.manager.endpoints.open(box.sandbox, ports=True)
    with listening(0) as sock:
        port = sock.getsockname()[1]
    name = f"sibling-{secrets.token_hex(4)}"
    host = {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}}
    body = {"Image": DEBIAN, "Cmd": SERVICE, "HostConfig": host}
    assert (await ask(box, "POST", f"/containers/create?name={name}", body))[0] == 201
    assert (await ask(box, "POST", f"/containers/{name}/start"))[0] == 204
    assert (await ask(box, "GET", f"/containers/{name}/json"))[1]["State"]["Running"]
    assert box.manager.endpoints.published(box.sandbox) == []
    with listening(port):
        pass
    with contextlib.closing(docker.from_env()) as host, socket.socket() as sock:
        networks = host.containers.get(box.sandbox.outer.container_id).attrs["NetworkSettings"]["Networks"]
        sock.settimeout(1)
        with pytest.raises(TimeoutError):  # nor is it a way in for whoever is beside the sandbox
            sock.connect((next(iter(networks.values()))["IPAddress"], port))
    await ask(box, "DELETE", f"/containers/{name}?force=true")


@pytest.mark.parametrize(
    "host",
    [
        {"Privileged": True},
        {"Binds": ["/:/x"]},
        {"Binds": ["/run/manyoyo:/x"]},
        {"Binds": ["/run/manyoyo/engine.sock:/x"]},
        {"Mounts": [{"Type": "bind", "Source": "/run/manyoyo/gate.sock", "Target": "/x"}]},
        {"Mounts": [{"Type": "bind", "Source": "/var/run/docker.sock", "Target": "/proc"}]},
        {"Binds": ["/var/run/docker.sock:/x:rshared"]},
        {"PidMode": "host"},
        {"CapAdd": ["SYS_ADMIN"]},
    ],
    ids=repr,
)
async def test_it_leads_no_further(box: Box, host: dict[str, Any]) -> None:
    status, said = await ask(box, "POST", "/containers/create", {"Image": DEBIAN, "HostConfig": host})
    assert status == 403, said


async def test_in_gvisor_too(manager: Manager, debian: Base) -> None:
    sandbox = await manager.start("podman", memory=1 << 30, isolation="gvisor")
    try:
        assert (await ask(Box(manager, sandbox), "GET", "/version"))[0] == 200
    finally:
        await manager.remove(sandbox)


async def test_a_users_client_may_mount_it(box: Box, tmp_path: Path) -> None:
    cli = Docker(box.manager.endpoints.open(box.sandbox), tmp_path)
    for words in (
        ("-v", "/var/run/docker.sock:/var/run/docker.sock:ro"),
        ("--mount", "type=bind,source=/var/run/docker.sock,target=/var/run/docker.sock"),
        ("-v", f"{cli.path}:/var/run/docker.sock"),  # as Testcontainers' reaper does
    ):
        said = await cli("run", "--rm", *words, DEBIAN, "perl", "-e", PERL, "GET", "/_ping", "")
        assert "HTTP/1.1 200" in said.stdout and "Docker" in said.stdout, said


async def test_without_being_asked_for_there_is_none(box: Box) -> None:
    said = await box.output("sh", "-c", "ls /var/run/docker.sock /run/manyoyo 2>&1 || true", image=DEBIAN)
    assert said.count("No such file") == 2


async def test_it_ends_with_the_gate(box: Box) -> None:
    other = await box.manager.start(box.sandbox.engine_name, memory=512 << 20)
    box.manager.endpoints.open_inside(other)
    socket = Path(str(other.outer.socket_dir)) / "gate.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    await box.manager.remove(other)
    with anyio.fail_after(10):
        while socket.parent.exists():
            await anyio.sleep(0.05)


async def test_over_a_relay_there_is_none(tmp_path: Path) -> None:
    async with open_manager(Settings(transport="relay", state_dir=tmp_path)) as manager:
        sandbox = await manager.start("podman", memory=512 << 20)
        with pytest.raises(NotSupported, match="relay"):
            manager.endpoints.open_inside(sandbox)
