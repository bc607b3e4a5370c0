"""A real registry, as people have one: the outer image pulled from it, and nested images over TLS with the host's own CA."""

import base64
import contextlib
import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import docker
import pytest
import requests
from mcp import Client

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from tests.clients.harness import until
from tests.conftest import server_parameters
from tests.support import busybox_rootfs, exec_in

pytestmark = pytest.mark.anyio

_CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{address}", {tls}}}
"""


class Registry:
    """One store behind two addresses: `local` (plain, on the loopback, as engines allow it there) and `remote`, which
    sandboxes reach, with a certificate that only `bundle` knows."""

    def __init__(self, local: str, remote: str, bundle: Path) -> None:
        self.local, self.remote, self.bundle = local, remote, bundle

    @property
    def known(self) -> dict[str, str]:
        """Settings with which sandboxes reach it: it is the host's own address, which is closed unless it is named."""
        return {"MANYOYO_CA_BUNDLE": str(self.bundle), "MANYOYO_NETWORK_ALLOW": self.remote}

    def push(self, host: docker.DockerClient, image: str, name: str) -> None:
        target = f"{self.local}/{name}"
        assert host.images.get(image).tag(target)
        try:
            said = host.images.push(target)
        finally:
            host.images.remove(target)
        assert "error" not in said, said

    def push_uncompressed(self, host: docker.DockerClient, image: str, name: str) -> None:
        """As `push`, with the layers as they are (an OCI image): to compress a large one takes an engine half a minute."""
        with tempfile.TemporaryFile() as saved:
            for chunk in host.images.get(image).save():
                saved.write(chunk)
            saved.seek(0)
            with tarfile.open(fileobj=saved) as archive:
                (listed,) = json.loads(_member(archive, "manifest.json").read())
                config = _member(archive, listed["Config"]).read()
                described = self._blob(name, "application/vnd.oci.image.config.v1+json", _digest(config), config)
                layers = [
                    self._blob(name, "application/vnd.oci.image.layer.v1.tar", digest, _member(archive, layer))
                    for digest, layer in zip(json.loads(config)["rootfs"]["diff_ids"], listed["Layers"], strict=True)
                ]
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": described, "layers": layers}
        repository, _, tag = name.partition(":")
        where = f"http://{self.local}/v2/{repository}/manifests/{tag}"
        requests.put(where, json.dumps(manifest), headers={"Content-Type": kind}, timeout=60).raise_for_status()

    def _blob(self, name: str, kind: str, digest: str, data: bytes | IO[bytes]) -> dict[str, Any]:
        """Uploads it; returns the descriptor that a manifest has of it. The registry compares the digest."""
        begun = requests.post(f"http://{self.local}/v2/{name.partition(':')[0]}/blobs/uploads/", timeout=60)
        size = len(data) if isinstance(data, bytes) else data.seek(0, os.SEEK_END)
        if not isinstance(data, bytes):
            data.seek(0)
        where, like = begun.headers["Location"], {"Content-Type": "application/octet-stream"}
        requests.put(where, data, params={"digest": digest}, headers=like, timeout=300).raise_for_status()
        return {"mediaType": kind, "digest": digest, "size": size}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    assert file, name
    return file


def _free(address: str) -> str:
    with socket.create_server((address, 0)) as server:
        return f"{address}:{server.getsockname()[1]}"


@contextmanager
def _serving(program: Path, directory: Path, root: Path, address: str, tls: str = "") -> Iterator[None]:
    config, log = directory / f"{address}.yml", directory / f"{address}.log"
    config.write_text(_CONFIG.format(root=root, address=address, tls=tls))

    def listens() -> bool:
        host, port = address.split(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0

    with log.open("wb") as output:
        process = subprocess.Popen([program, "serve", config], stdout=output, stderr=subprocess.STDOUT)
    try:
        until(f"the registry listens; see {log}", listens, 20)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    directory = tmp_path_factory.mktemp("registry")
    subprocess.run(["apt-get", "download", "docker-registry"], cwd=directory, check=True, capture_output=True)
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, directory / "package"], check=True)
    program = directory / "package" / "usr" / "bin" / "docker-registry"
    host = docker.from_env()
    gateway = host.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    host.close()
    key, certificate, bundle = (directory / name for name in ("key.pem", "certificate.pem", "bundle.pem"))
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry"]
    request += ["-addext", f"subjectAltName=IP:{gateway}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, check=True, capture_output=True)
    bundle.write_text(Path("/etc/ssl/certs/ca-certificates.crt").read_text() + certificate.read_text())
    local, remote = _free("127.0.0.1"), _free(gateway)
    tls = f"tls: {{certificate: {certificate}, key: {key}}}"
    with (
        _serving(program, directory, directory / "store", local),
        _serving(program, directory, directory / "store", remote, tls),
    ):
        yield Registry(local, remote, bundle)


@pytest.fixture
def host() -> Iterator[docker.DockerClient]:
    client = docker.from_env(timeout=300)
    yield client
    client.close()


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error and result.structured_content is not None, result.content
    return dict(result.structured_content)


async def test_the_outer_image_is_pulled(tmp_path: Path, registry: Registry, host: docker.DockerClient) -> None:
    registry.push_uncompressed(host, outer.reference(Settings()), "manyoyo/sandbox:pushed")
    name = f"{registry.local}/manyoyo/sandbox:pushed"
    said: list[str] = []

    async def progress(done: float, total: float | None, words: str | None) -> None:
        said.append(words or "")

    try:
        async with Client(server_parameters(tmp_path, MANYOYO_OUTER_IMAGE=name)) as client:
            result = await client.call_tool("start_sandbox", {}, progress_callback=progress)
            assert not result.is_error, result.content
    finally:
        host.images.remove(name)
    assert any(words.startswith(f"pulling {name}") for words in said), said


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_nested_images_are_pulled(
    tmp_path: Path, registry: Registry, host: docker.DockerClient, engine: str
) -> None:
    image = host.api.import_image_from_data(busybox_rootfs(), repository="localhost/manyoyo-test/pushed", tag=engine)
    assert "error" not in image
    registry.push(host, f"localhost/manyoyo-test/pushed:{engine}", f"team/app:{engine}")
    host.images.remove(f"localhost/manyoyo-test/pushed:{engine}")
    app = f"{registry.remote}/team/app:{engine}"
    async with Client(server_parameters(tmp_path, **registry.known)) as client:
        await call(client, "start_sandbox", engine=engine)
        run = await call(client, "nested_run", image=app, command=["echo", "from the registry"])
        assert run["reason"] == "OK" and "from the registry" in run["output"], run
        files = {"Dockerfile": f'FROM {app}\nRUN ["/bin/sh", "-c", "echo built"]\n'}
        built = await call(client, "nested_build", files=files, tags=["localhost/built:1"], pull=True)
        assert built["reason"] == "OK", built
        missing = await client.call_tool("nested_run", {"image": f"{registry.remote}/team/none:1", "command": ["x"]})
        assert missing.is_error and missing.content[0].type == "text"
        assert (
            missing.content[0].text.startswith("IMAGE_NOT_FOUND") and "could not be pulled" in missing.content[0].text
        )


async def test_an_images_annotations_give_no_orders(
    tmp_path: Path, registry: Registry, host: docker.DockerClient
) -> None:
    """Crun would load a library that they name, or take this for its filter of calls, and fail. Podman must not hand them on."""
    assert "error" not in host.api.import_image_from_data(busybox_rootfs(), repository="localhost/orders", tag="1")
    registry.push(host, "localhost/orders:1", "team/orders:1")
    host.images.remove("localhost/orders:1")
    manifests = f"http://{registry.local}/v2/team/orders/manifests"
    docker_type, oci = (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
    )
    session = requests.Session()
    session.trust_env = False
    manifest = session.get(f"{manifests}/1", headers={"Accept": docker_type}).json()
    manifest["mediaType"] = oci
    manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"
    for layer in manifest["layers"]:
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
    async with Client(server_parameters(tmp_path, **registry.known)) as client:
        evil = json.dumps(manifest | {"annotations": {"run.oci.seccomp_bpf_data": "AAAA"}})
        put = session.put(f"{manifests}/evil", data=evil, headers={"Content-Type": oci})
        assert put.status_code == 201, put.text
        image = f"{registry.remote}/team/orders:evil"
        ran = await client.call_tool("nested_run", {"image": image, "command": ["echo", "ran"]})
        assert not ran.is_error and (ran.structured_content or {})["reason"] == "OK", ran
        build = {"files": {"Dockerfile": f'FROM {image}\nRUN ["/bin/sh", "-c", "echo built"]\n'}}
        built = await call(client, "nested_build", **build)
        assert built["reason"] == "OK", built


async def test_a_cancelled_pull_hangs_up(tmp_path: Path, registry: Registry) -> None:
    """On podman; dockerd waits its own 15 s for a registry's first answer, whoever has gone."""
    with socket.create_server((registry.remote.split(":")[0], 0)) as silent:
        silent.settimeout(20)
        image = f"{registry.remote.split(':')[0]}:{silent.getsockname()[1]}/never/answers"
        async with Client(server_parameters(tmp_path, MANYOYO_NETWORK_ALLOW=image.partition("/")[0])) as client:
            run = await call(client, "nested_run", image=image, command=["true"], wait_s=0)
            asked, _ = await anyio.to_thread.run_sync(silent.accept)
            with asked:
                cancelled = await call(client, "job_cancel", job_id=run["job_id"])
                assert cancelled["state"] == "cancelled"
                asked.settimeout(5)
                await anyio.to_thread.run_sync(lambda: [None for _ in iter(lambda: asked.recv(1 << 16), b"")])


# -- mirrors


class Counted:
    """A plain-HTTP road to the registry that counts the bytes of its answers."""

    def __init__(self, address: str, registry: str) -> None:
        self.bytes = 0
        self._registry = registry
        host, port = address.split(":")
        self._server = socket.create_server((host, int(port)))
        self.address = address
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                host, port = self._registry.split(":")
                upstream = socket.create_connection((host, int(port)))
                for source, target, counts in ((client, upstream, False), (upstream, client, True)):
                    threading.Thread(target=self._pump, args=(source, target, counts), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.bytes += len(data) if counts else 0
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def counted(registry: Registry) -> Iterator[Counted]:
    road = Counted(_free(registry.remote.split(":")[0]), registry.local)
    yield road
    road.close()


def publish(registry: Registry, host: docker.DockerClient, name: str) -> None:
    """An image in the registry, as Docker's own official ones are named."""
    repository, tag = name.split(":")
    host.api.import_image_from_data(busybox_rootfs(), repository=f"localhost/test/{repository}", tag=tag)
    registry.push(host, f"localhost/test/{name}", f"library/{name}")
    host.images.remove(f"localhost/test/{name}")


def cli(*arguments: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "manyoyo_mcp", *arguments]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_the_second_sandbox_downloads_nothing_twice(
    registry: Registry, counted: Counted, host: docker.DockerClient, tmp_path: Path, engine: str
) -> None:
    publish(registry, host, f"mirrored:{engine}")
    assert cli("mirror", "show") == "No mirror runs.\n"
    try:
        assert "docker.io is mirrored" in cli("mirror", "up", "--quiet", "--upstream", f"http://{counted.address}")
        assert counted.address in cli("mirror", "show")
        async with Client(server_parameters(tmp_path), read_timeout_seconds=120) as client:
            fetched = []
            for _ in range(2):
                before = counted.bytes
                sandbox = (await call(client, "start_sandbox", engine=engine, memory="512m"))["sandbox"]["sandbox_id"]
                ended = await call(
                    client,
                    "nested_run",
                    sandbox_id=sandbox,
                    image=f"docker.io/library/mirrored:{engine}",
                    command=["echo", "here"],
                )
                assert ended["reason"] == "OK" and "here" in ended["output"], ended
                fetched.append(counted.bytes - before)
                await anyio.sleep(1)  # the mirror stores what it has passed on
        assert fetched[0] > 500_000, fetched
        assert fetched[1] < 20_000, (
            "of the second, the upstream is asked whether the tag is still the same, and no more"
        )
    finally:
        assert cli("mirror", "down", "--data") == "Removed.\n"
    assert cli("mirror", "down") == "There is no mirror.\n"


@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_a_registry_without_tls_and_a_mirror_of_the_users(
    registry: Registry, counted: Counted, host: docker.DockerClient, tmp_path: Path, engine: str
) -> None:
    publish(registry, host, f"plain:{engine}")
    settings = {
        "MANYOYO_INSECURE_REGISTRIES": counted.address,
        "MANYOYO_MIRRORS": f"docker.io=http://{counted.address}",
    }
    async with Client(server_parameters(tmp_path, **settings), read_timeout_seconds=120) as client:
        sandbox = (await call(client, "start_sandbox", engine=engine, memory="512m"))["sandbox"]["sandbox_id"]
        for image in (f"{counted.address}/library/plain:{engine}", f"docker.io/library/plain:{engine}"):
            ended = await call(client, "nested_run", sandbox_id=sandbox, image=image, command=["echo", "here"])
            assert ended["reason"] == "OK" and "here" in ended["output"], ended


async def test_a_mirror_that_is_none_is_refused(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path, MANYOYO_MIRRORS="mirror.example")) as client:
        result = await client.call_tool("start_sandbox", {})
        assert result.is_error and "REGISTRY=URL" in result.content[0].text


# -- logins


HELPER = """#!/bin/sh
# A credential helper as docker's are: `get` is told a registry, and answers with what it knows of it.
[ "$1" = get ] || exit 1
cat > {directory}/asked
printf '{{"ServerURL":"x","Username":"reader","Secret":"{password}"}}'
"""


@pytest.fixture
def private(registry: Registry, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The same store behind an address that wants a login; that, and the password."""
    password = f"pass-{secrets.token_hex(12)}"
    salt = "$2b$05$" + secrets.token_hex(11)
    crypt = subprocess.run(
        ["perl", "-e", "print crypt($ARGV[0], $ARGV[1])", password, salt], capture_output=True, text=True
    )
    users = tmp_path / "users"
    users.write_text(f"reader:{crypt.stdout}\n")
    address = _free(registry.remote.split(":")[0])
    tls = f"tls: {{certificate: {registry.bundle.parent}/certificate.pem, key: {registry.bundle.parent}/key.pem}}"
    program = registry.bundle.parent / "package" / "usr" / "bin" / "docker-registry"
    auth = f"}}\nauth: {{htpasswd: {{realm: private, path: {users}}}"
    with _serving(program, tmp_path, registry.bundle.parent / "store", address, tls + auth):
        yield address, password


@pytest.mark.parametrize("by", ["file", "helper"])
@pytest.mark.parametrize("engine", ["podman", "docker"])
async def test_a_pull_with_the_users_own_login(
    tmp_path: Path, registry: Registry, private: tuple[str, str], host: docker.DockerClient, engine: str, by: str
) -> None:
    """`docker login`, or a credential helper: what is pulled has it, the sandbox does not keep it."""
    address, password = private
    publish(registry, host, f"private:{engine}")
    config, bin_ = tmp_path / "docker", tmp_path / "bin"
    config.mkdir()
    bin_.mkdir()
    token = base64.b64encode(f"reader:{password}".encode()).decode()
    how: dict[str, Any] = (
        {"auths": {address: {"auth": token}}} if by == "file" else {"credHelpers": {address: "tested"}}
    )
    (config / "config.json").write_text(json.dumps(how))
    helper = bin_ / "docker-credential-tested"
    helper.write_text(HELPER.format(directory=tmp_path, password=password))
    helper.chmod(0o755)
    settings = {
        "MANYOYO_CA_BUNDLE": str(registry.bundle), "MANYOYO_NETWORK_ALLOW": address, "DOCKER_CONFIG": str(config),
        "PATH": f"{bin_}:{os.environ['PATH']}",
    }  # fmt: skip
    image = f"{address}/library/private:{engine}"
    async with Client(server_parameters(tmp_path, **settings)) as client:
        await call(client, "start_sandbox", engine=engine)
        refused = await client.call_tool("nested_run", {"image": image, "command": ["true"]})
        assert refused.is_error and "MANYOYO_REGISTRY_LOGINS" in refused.content[0].text, refused.content
    async with Client(server_parameters(tmp_path, **settings, MANYOYO_REGISTRY_LOGINS=address)) as client:
        sandbox = (await call(client, "start_sandbox", engine=engine))["sandbox"]["sandbox_id"]
        ran = await call(client, "nested_run", image=image, command=["echo", "ran"])
        assert ran["reason"] == "OK" and "ran" in ran["output"], ran
        assert by == "file" or (tmp_path / "asked").read_text() == address
        files = {"Dockerfile": f'FROM {image}\nRUN ["/bin/sh", "-c", "echo built"]\n'}
        built = await call(client, "nested_build", files=files, pull=True)
        assert built["reason"] == "OK", built
        removed = docker.DockerClient((await call(client, "sandbox_endpoint"))["docker_host"])
        await anyio.to_thread.run_sync(partial(removed.images.remove, image, force=True))
        removed.close()
        dockerfile = (
            f"ARG WHICH\nFROM $WHICH AS one\nFROM scratch\nCOPY --from={image} /bin /bin\nCOPY --from=one /etc /etc\n"
        )
        built = await call(
            client, "nested_build", files={"Dockerfile": dockerfile}, build_args={"WHICH": image}, no_cache=True
        )
        assert built["reason"] == "OK", built

        def looked() -> tuple[int, str]:
            outer = host.containers.get(f"manyoyo-{sandbox}")
            places = ["/var/lib/manyoyo", "/run", "/etc", "/root", "/tmp"]
            script = (
                'for each; do grep -rlaF -e "$each" $PLACES; done; cat /proc/[0-9]*/environ | grep -aF -e "$1" -e "$2"'
            )
            done = exec_in(outer, ["sh", "-c", script, "sh", password, token], environment={"PLACES": " ".join(places)})
            return done.exit_code, done.output.decode()

        code, said = await anyio.to_thread.run_sync(looked)
        assert code == 1 and said.replace("Permission denied", "").strip() == "", said
        told = await call(client, "nested_run", image=image, command=["cat"], stdin=f"it is {password}, {token}")
        assert "it is [secret login at " in told["output"] and password not in str(told) and token not in str(told), (
            told
        )


async def test_a_login_that_can_not_be_had(tmp_path: Path) -> None:
    config = tmp_path / "docker"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"credHelpers": {"registry.test": "not-there"}}))
    settings = {"DOCKER_CONFIG": str(config), "MANYOYO_REGISTRY_LOGINS": "registry.test"}
    async with Client(server_parameters(tmp_path, **settings)) as client:
        refused = await client.call_tool("nested_run", {"image": "registry.test/x:1", "command": ["true"]})
        assert refused.is_error and refused.content[0].text.startswith("REGISTRY_LOGIN_UNAVAILABLE"), refused.content
