"""The example applications, built and tested in a sandbox through an MCP client; and the certificates that their builds got."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from mcp import Client

from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.manager import open_manager
from tests.conftest import ROOT, server_parameters
from tests.integration.bases import ensure_bases
from tests.support import Box

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("bases_begun"),
    pytest.mark.timeout(900),  # the first to need base images makes them
]

APPS = ROOT / "examples" / "apps"
ENGINES = pytest.mark.parametrize("engine", ["podman", "docker"])


@pytest.fixture(scope="module", autouse=True)
async def _bases() -> None:
    await ensure_bases(["debian", "python", "node", "busybox"])


class Job:
    """A client with a sandbox."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await self._client.call_tool(tool, arguments)
        assert not answer.is_error, answer.content
        return answer.structured_content

    async def build(self, app: str, **arguments: Any) -> dict[str, Any]:
        tag = f"localhost/{app}:1"
        built = await self.call("nested_build", context_dir=str(APPS / app), tags=[tag], wait_s=900, **arguments)
        assert built["reason"] == "OK", built
        return built

    async def run(self, image: str, *command: str, **arguments: Any) -> str:
        ended = await self.call("nested_run", image=image, command=list(command), wait_s=300, **arguments)
        assert ended["reason"] == "OK", ended
        return ended["output"]


@asynccontextmanager
async def job(directory: Path, engine: str) -> AsyncIterator[Job]:
    async with Client(server_parameters(directory, MANYOYO_ROOTS=json.dumps([str(APPS)]))) as client:
        started = Job(client)
        await started.call("start_sandbox", engine=engine)
        yield started
        await started.call("cleanup")


@ENGINES
async def test_python_web(tmp_path: Path, engine: str) -> None:
    async with job(tmp_path, engine) as at:
        await at.build("python-web")
        assert "7 passed" in await at.run("localhost/python-web:1", "python3", "-m", "pytest", "-q", network="none")
        service = (await at.call("nested_run", image="localhost/python-web:1", detach=True))["container"]
        script = """
import time, urllib.request
for _ in range(100):
    try:
        made = urllib.request.urlopen("http://127.0.0.1:8000/pastes", data=b"over the wire")
        break
    except OSError:
        time.sleep(0.1)
print(made.status)
"""
        answered = await at.call("nested_exec", container=service, command=["python3", "-c", script])
        assert answered["exit_code"] == 0 and "201" in answered["output"], answered


@ENGINES
async def test_node_web(tmp_path: Path, engine: str) -> None:
    async with job(tmp_path, engine) as at:
        await at.build("node-web")
        said = await at.run("localhost/node-web:1", "node", "--test", network="none")
        assert re.search(r"# pass 4\b", said) and re.search(r"# fail 0\b", said), said
        service = (await at.call("nested_run", image="localhost/node-web:1", detach=True))["container"]
        script = """
for (let i = 0; i < 100; i++) {
  try { console.log((await fetch("http://127.0.0.1:8000/")).status); break; }
  catch { await new Promise((later) => setTimeout(later, 100)); }
}
"""
        answered = await at.call(
            "nested_exec", container=service, command=["node", "--input-type=module", "-e", script]
        )
        assert answered["exit_code"] == 0 and "200" in answered["output"], answered


@ENGINES
async def test_c_multistage(tmp_path: Path, engine: str) -> None:
    async with job(tmp_path, engine) as at:
        built = await at.build("c-multistage")
        assert built["size_bytes"] < 2 << 20
        said = await at.run("localhost/c-multistage:1", "2", stdin="b a b c b a", network="none")
        assert re.search(r"^ *3 b\n *2 a$", said, re.MULTILINE), said
        tested = await at.build("c-multistage", target="test")
        assert tested["cache_hits"] >= 4, tested["steps"]
        assert "all tests passed" in await at.run("localhost/c-multistage:1", network="none")
        script = "ls /var/cache/apt/archives /var/lib/apt/lists"  # what apt-get downloaded is not in the layer
        assert ".deb" not in await at.run("localhost/c-multistage:1", "sh", "-c", script, network="none")


@ENGINES
async def test_certificates_and_proxies_reach_a_build_and_stay_out_of_its_image(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Dockerfile has no line for either: packages install over TLS, and the image has neither a file nor a variable."""
    marker = "manyoyo-test-marker.invalid"
    bundle = tmp_path / "bundle.crt"
    bundle.write_text(f"# {marker}\n" + Path("/etc/ssl/certs/ca-certificates.crt").read_text())
    monkeypatch.setenv("no_proxy", marker)
    settings = Settings(state_dir=tmp_path / "state", runtime_dir=tmp_path / "run", ca_bundle=bundle)
    async with open_manager(settings) as manager:
        box = Box(manager, await manager.start(engine))
        touch = "touch /dev/made-$((40 + 2)) /tmp/made-$((40 + 2))"  # the image's history quotes it
        for name, install in {"python": "pip install idna", "node": "npm install --prefix /app ms"}.items():
            output: list[bytes] = []
            built = await box.build(
                f"FROM localhost/manyoyo/{name}\nRUN {install}\nRUN env; head -n 1 $SSL_CERT_FILE; {touch}\n",
                tags=[f"localhost/{name}:1"],
                output=output,
            )
            said = b"".join(output).decode()
            assert built.image_id, (built, said[-2000:])
            assert f"\nno_proxy={marker}\n" in said and f"\n# {marker}\n" in said  # the step has both
            base = _inspect(box, f"localhost/manyoyo/{name}:latest")
            assert _inspect(box, built.image_id)["Config"]["Env"] == base["Config"]["Env"]
            # A whole image, as an archive: configuration, history, layers. A file that a step made shows; nothing of ours does.
            traces = ("tmp/made-42", "dev/made-42", marker, "manyoyo-ca", "SSL_CERT_FILE=")
            assert _found_in_image(box, f"localhost/{name}:1", *traces) == {"tmp/made-42"}
        script = "echo $no_proxy $PIP_CERT; head -n 1 $SSL_CERT_FILE"
        seen = await box.output("sh", "-c", script, image="localhost/python:1", network="none")
        assert seen.split() == [marker, "/dev/manyoyo-ca.crt", "#", marker]  # the run has them again
        mine = {"PIP_CERT": "/mine", "no_proxy": "mine"}
        seen = await box.output("sh", "-c", "echo $no_proxy $PIP_CERT", image="localhost/python:1", env=mine)
        assert seen.split() == ["mine", "/mine"]  # and what the caller sets comes first
        built = await box.build("FROM localhost/manyoyo/python\nENV PIP_CERT=/own\nRUN test $PIP_CERT = /own\n")
        assert built.image_id, built
        await manager.remove(box.sandbox)


def _inspect(box: Box, image: str) -> dict[str, Any]:
    return box.engine._client.inspect_image(image)


def _found_in_image(box: Box, image: str, *traces: str) -> set[str]:
    """Which of these an image's archive contains."""
    container = docker.from_env().containers.get(box.sandbox.outer.container_id)
    program = ["docker", "--host", "unix:///run/manyoyo/engine.sock"]
    if box.sandbox.engine_name == "podman":
        program = ["podman", "--log-level=error"]
    archive = "/var/lib/manyoyo/tmp/saved.tar"
    done = container.exec_run([*program, "save", "-o", archive, image])
    assert done.exit_code == 0, done.output
    found = {trace for trace in traces if container.exec_run(["grep", "-qaF", trace, archive]).exit_code == 0}
    container.exec_run(["rm", archive])
    return found


_SUBVOLUME = r"""
import ctypes, fcntl, mmap, os, platform, sys
request, arguments = 0x5000940E, bytes(8) + b"inner".ljust(4088, b"\0")
directory = os.open("/data", os.O_RDONLY)
try:
    fcntl.ioctl(directory, request, bytearray(arguments))
    print("made")
except OSError as error:
    print(os.strerror(error.errno))
if platform.machine() != "x86_64":
    sys.exit("no other calls")
memory = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)  # MAP_32BIT
memory[:14] = bytes.fromhex("53 b836000000 89fb 89f1 cd80 5b c3")  # ioctl(edi, esi, edx) by int 0x80
memory[4096:] = arguments
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
sys.stdout.flush()
if (child := os.fork()) == 0:
    os._exit(-ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)(address)(
        directory, request, address + 4096))
status = os.waitpid(child, 0)[1]
print("no such calls" if os.WIFSIGNALED(status) else os.strerror(os.WEXITSTATUS(status)))
"""
"""Any process may ask btrfs for a subvolume (BTRFS_IOC_SUBVOL_CREATE) in a directory of its own; by the calls of 32-bit
programs too, where the kernel has them."""


@ENGINES
async def test_what_is_nested_makes_no_subvolumes(tmp_path: Path, engine: str) -> None:
    """They would lie outside their store's quota. A volume is the store's own file system, without layers over it."""
    async with open_manager(Settings(state_dir=tmp_path / "state", runtime_dir=tmp_path / "run")) as manager:
        box = Box(manager, await manager.start(engine))
        built = await box.build("FROM localhost/manyoyo/python\nVOLUME /data\n", tags=["localhost/volume:1"])
        assert built.image_id, built
        output: list[bytes] = []
        ended = await box.run("python", "-c", _SUBVOLUME, image="localhost/volume:1", output=output)
        told = b"".join(output).decode().splitlines()
        assert told[0] == "Operation not permitted", (ended, told)
        assert told[1] in ("Operation not permitted", "no such calls", "no other calls"), (ended, told)
        await manager.remove(box.sandbox)
