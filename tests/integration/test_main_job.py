"""The main job through a client over stdio: start, build, run under a cap, learn why, clean up."""

import base64
import io
import tarfile

import docker
import pytest
from mcp import Client

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


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_main_job(client: Client, engine: str) -> None:
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
