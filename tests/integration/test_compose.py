"""Docker's compose, as people use it, over an endpoint: two services, on both engines."""

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from manyoyo_mcp.sessions.manager import Manager
from tests import plugins
from tests.contract.test_ports import fetch, free_port, listens
from tests.support import BUSYBOX, Box, busybox_context

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]
PROJECT = """
name: shop
services:
  store:
    image: {image}
    command: ["sh", "-c", "mkdir -p /data; echo in-store > /data/passwd; trap 'exit 0' TERM; httpd -f -p 8080 -h /data & wait"]
    volumes: ["kept:/data"]
    healthcheck: {{test: ["CMD", "nc", "-z", "127.0.0.1", "8080"], interval: 1s}}
  front:
    build: {{context: front, args: {{WHO: compose}}}}
    command: ["sh", "-c", "cat /who; trap 'exit 0' TERM; sleep 1000 & wait"]
    environment: {{COLOUR: green}}
    depends_on: [store]
    {ports}
volumes:
  kept: {{}}
"""
FRONT = f"FROM {BUSYBOX}\nARG WHO\nRUN echo built by $WHO > /who\n"


@pytest.fixture(scope="module", params=["podman", "docker"])
async def box(request: pytest.FixtureRequest, manager: Manager) -> AsyncIterator[Box]:
    sandbox = await manager.start(request.param, memory=1 << 30)
    opened = Box(manager, sandbox)
    assert (await opened.build(files=busybox_context(), tags=[BUSYBOX])).image_id
    yield opened
    await manager.remove(sandbox)


class Compose:
    """`docker compose` in a project's directory."""

    def __init__(self, box: Box, directory: Path, *, ports: str = "") -> None:
        self.directory = directory
        endpoint = box.manager.endpoints.open(box.sandbox, ports=bool(ports))
        self.environment = plugins.environment(f"unix://{endpoint}", directory)
        if box.sandbox.engine_name == "podman":
            self.environment["DOCKER_BUILDKIT"] = "0"  # it has none
        (directory / "front").mkdir()
        (directory / "front" / "Dockerfile").write_text(FRONT)
        (directory / "compose.yaml").write_text(PROJECT.format(image=BUSYBOX, ports=ports))

    async def __call__(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        def call() -> subprocess.CompletedProcess[str]:
            return subprocess.run(["docker", "compose", *words], env=self.environment, cwd=self.directory, text=True,
                                  capture_output=True, timeout=100)  # fmt: skip

        done = await anyio.to_thread.run_sync(call)
        assert not ok or done.returncode == 0, done
        return done


async def test_up_ps_logs_exec_down(box: Box, tmp_path: Path) -> None:
    compose = Compose(box, tmp_path)
    await compose("up", "-d", "--build")
    rows = [json.loads(line) for line in (await compose("ps", "--format", "json")).stdout.splitlines()]
    assert {each["Service"]: each["State"] for each in rows} == {"store": "running", "front": "running"}, rows
    assert "built by compose" in (await compose("logs", "front")).stdout
    asked = "echo $COLOUR; a=$(nslookup -type=a store | sed -n '/^Name:/,$s/^Address: //p' | head -n 1); "
    asked += "printf 'GET /passwd HTTP/1.0\\r\\n\\r\\n' | nc $a 8080"
    said = (await compose("exec", "-T", "front", "sh", "-c", asked)).stdout
    assert said.startswith("green\n") and said.endswith("in-store\n"), said
    await compose("stop", "front")
    await compose("start", "front")
    again = await compose("run", "--rm", "-T", "store", "cat", "/data/passwd")
    assert again.stdout == "in-store\n", again
    await compose("down", "-v")
    assert not [each for each in await box.engine.containers() if each.name.startswith("shop")]
    left = json.dumps(
        [
            await box.engine._ask(lambda client: client.volumes()),
            await box.engine._ask(lambda client: client.networks()),
        ]
    )
    assert "shop_" not in left


async def test_a_service_that_is_published(box: Box, tmp_path: Path) -> None:
    port = free_port()
    compose = Compose(box, tmp_path, ports=f'ports: ["{port}:8081"]')
    (tmp_path / "compose.override.yaml").write_text(
        """services: {front: {command: ["sh", "-c", "trap 'exit 0' TERM; httpd -f -p 8081 -h /etc & wait"]}}"""
    )
    await compose("up", "-d", "--build")
    assert b"root:" in await anyio.to_thread.run_sync(fetch, f"http://127.0.0.1:{port}/passwd")
    assert (await compose("port", "front", "8081")).stdout.strip().endswith(f":{port}")
    await compose("down", "-v")
    with anyio.fail_after(20):
        while await anyio.to_thread.run_sync(listens, port):
            await anyio.sleep(0.1)


async def test_a_host_path_is_refused(box: Box, tmp_path: Path) -> None:
    compose = Compose(box, tmp_path)
    (tmp_path / "compose.override.yaml").write_text("services: {store: {volumes: ['./front:/front']}}")
    refused = await compose("up", "-d", ok=False)
    assert refused.returncode != 0 and "docker cp" in refused.stderr, refused
    await compose("down", "-v")
