"""The main job through a client over stdio: start, build, run under a cap, learn why, clean up."""

import base64
import io
import os
import sys
import tarfile
from pathlib import Path

import docker
import pytest
from mcp import Client, StdioServerParameters

from tests.conftest import server_parameters

pytestmark = pytest.mark.anyio


def busybox_tar() -> str:
    """A root file system of one static program, from the probe's in the outer image."""
    host = docker.from_env()
    image = next(
        tag for each in host.images.list() for tag in each.tags if tag.startswith("localhost/manyoyo/sandbox:")
    )
    container = host.containers.create(image)
    try:
        stream, _ = container.get_archive("/usr/lib/manyoyo/probe/bin")
        raw = b"".join(stream)
    finally:
        container.remove()
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        archive.getmember("bin/busybox")
    return base64.b64encode(raw).decode()


async def main_job(client: Client, engine: str) -> None:
    started = await client.call_tool("start_sandbox", {"engine": engine})
    assert not started.is_error, started.content
    assert started.structured_content["sandbox"]["caps_enforced"] == "enforced"
    built = await client.call_tool(
        "nested_build",
        {
            "files": {
                "Dockerfile": 'FROM scratch\nADD bb.tar /\nRUN ["/bin/busybox", "echo", "built"]\n',
                "bb.tar": {"base64": busybox_tar()},
            },
            "tags": ["localhost/bb:1"],
        },
    )
    assert built.structured_content["reason"] == "OK", built.content
    killed = await client.call_tool(
        "nested_run", {"image": "localhost/bb:1", "command": ["/bin/busybox", "tail", "/dev/zero"], "memory": "32m"}
    )
    assert killed.structured_content["reason"] == "OOM_KILLED"
    assert killed.structured_content["exit_code"] == 137
    cleaned = await client.call_tool("cleanup", {})
    assert cleaned.structured_content["removed"] == [started.structured_content["sandbox"]["sandbox_id"]]


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_main_job(client: Client, engine: str) -> None:
    await main_job(client, engine)


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_as_a_member_of_the_docker_group(tmp_path: Path, engine: str) -> None:
    """Another user than root, who may do no more than write to the host engine's socket, and read this checkout."""
    somebody = 54321
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, somebody, somebody)
    group = Path(os.environ["DOCKER_HOST"].removeprefix("unix://")).stat().st_gid
    as_root = server_parameters(home, HOME=str(home), MANYOYO_RUNTIME_DIR=str(home / "run"))
    become = [f"--reuid={somebody}", f"--regid={somebody}", f"--groups={group}", "--bounding-set=-all,+dac_read_search"]
    become += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    parameters = StdioServerParameters(
        command="setpriv", args=[*become, sys.executable, "-m", "manyoyo_mcp", "serve"], env=as_root.env, cwd=home
    )
    async with Client(parameters) as client:
        await main_job(client, engine)
