"""Sandboxes on any endpoint that speaks Docker's API, used as root or as a member of the docker group."""

import contextlib
import io
import os
import re
import shutil
import socket
import sys
import tarfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import anyio
import anyio.from_thread
import docker
import requests
from docker.context import ContextAPI

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import (
    EngineFailed,
    HostUnavailable,
    ImageUnavailable,
    InvalidArgument,
    NameConflict,
    RequestError,
    SandboxError,
)
from manyoyo_mcp.hosts.base import LABEL, Completed, HostInfo, Outer, OuterSpec
from manyoyo_mcp.hosts.relay import relay
from manyoyo_mcp.policy.transport import Dial, SocketLike
from manyoyo_mcp.values import Caps
from manyoyo_mcp.workers import in_thread

T = TypeVar("T")

SOCKET_DIR = "/run/manyoyo"
READY_TIMEOUT = 30.0
"""Seconds that a nested engine may take until it listens."""
_LISTEN_INTERVAL = 0.005
"""Seconds between tries to connect to an engine that is starting; a try costs some ten microseconds."""
_LOOK_INTERVAL = 0.5
"""Seconds between looks whether its outer container runs still."""
_SOCKET_PATIENCE = 2.0
"""Seconds after which an engine that listens, yet not at our end of the shared directory, is asked through the relay."""


class DockerHost:
    """One endpoint. Calls go out from worker threads; the client keeps its connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: docker.APIClient | None = None
        self._info: HostInfo | None = None
        self._transport: str | None = None if settings.transport == "auto" else settings.transport

    @property
    def client(self) -> docker.APIClient:
        """The docker-py client of the endpoint. Raises HostUnavailable."""
        if self._client is None:
            self._client = _connect(self._settings.docker_host)
        return self._client

    async def _call(self, fn: Callable[[docker.APIClient], T]) -> T:
        def call() -> T:
            try:
                return fn(self.client)
            except docker.errors.APIError:
                raise  # the host's engine answered: the caller knows what that means
            except requests.exceptions.RequestException as error:
                raise _unavailable(error) from error

        return await in_thread(call)

    async def info(self) -> HostInfo:
        if self._info is None:
            raw = await self._call(lambda client: client.info())
            self._info = HostInfo(
                identity=str(raw.get("ID") or raw.get("Name")),
                name=raw.get("Name", ""),
                cpus=int(raw.get("NCPU", 1)),
                memory=int(raw.get("MemTotal", 0)),
                kernel=raw.get("KernelVersion", ""),
                architecture=raw.get("Architecture", ""),
                cgroup_version=str(raw.get("CgroupVersion", "1")),
                engine_version=raw.get("ServerVersion", ""),
            )
        return self._info

    async def image_exists(self, reference: str) -> bool:
        try:
            await self._call(lambda client: client.inspect_image(reference))
        except docker.errors.ImageNotFound:
            return False
        return True

    async def pull(self, reference: str) -> None:
        repository, _, tag = reference.rpartition(":")

        def pull(client: docker.APIClient) -> None:
            for event in client.pull(repository, tag=tag, stream=True, decode=True):
                if event.get("error"):
                    raise docker.errors.ImageNotFound(event["error"])

        try:
            await self._call(pull)
        except docker.errors.APIError as error:
            raise ImageUnavailable(
                f"{reference} can't be pulled: {error}", "Check the name and the network."
            ) from error

    async def build_image(
        self, context: bytes, reference: str, build_args: dict[str, str], say: Callable[[str], None]
    ) -> None:
        def build(client: docker.APIClient) -> None:
            events = client.build(
                fileobj=io.BytesIO(context),
                custom_context=True,
                tag=reference,
                buildargs=build_args,
                rm=True,
                forcerm=True,
                labels={f"{LABEL}kind": "image"},
                decode=True,
            )
            last = ""
            for event in events:
                if event.get("error"):
                    raise ImageUnavailable(f"The outer image's build failed: {event['error']}\n{last}", "See above.")
                line = str(event.get("stream", "")).strip()
                if line:
                    last = line
                    if line.startswith("Step "):
                        anyio.from_thread.run_sync(say, line)

        try:
            await self._call(build)
        except docker.errors.APIError as error:
            raise ImageUnavailable(
                f"The host could not build {reference}: {error}", "See the host engine's log."
            ) from error

    async def import_image(self, tar: IO[bytes], reference: str) -> None:
        repository, _, tag = reference.rpartition(":")

        def load(client: docker.APIClient) -> None:
            tar.seek(0)
            answer = client.post(
                client._url("/images/create"),
                params={"fromSrc": "-", "repo": repository, "tag": tag},
                data=tar,
                headers={"Content-Type": "application/x-tar"},
                timeout=600,
            )
            client._raise_for_status(answer)

        try:
            await self._call(load)
        except docker.errors.APIError as error:
            raise ImageUnavailable(f"The host could not import {reference}: {error}", "Is its disk full?") from error

    async def volume_exists(self, name: str) -> bool:
        try:
            await self._call(lambda client: client.inspect_volume(name))
        except docker.errors.NotFound:
            return False
        return True

    async def create_volume(self, name: str, labels: dict[str, str]) -> None:
        named = {LABEL + key: value for key, value in labels.items()}
        await self._call(lambda client: client.create_volume(name, labels=named))

    async def remove_volume(self, name: str) -> bool:
        try:
            await self._call(lambda client: client.remove_volume(name))
        except docker.errors.NotFound:
            return False
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise HostUnavailable(f"The host could not remove {name}: {error.explanation}", "Try again.") from error
            users = await self._call(lambda client: client.containers(all=True, filters={"volume": name}))
            names = ", ".join(user["Names"][0].lstrip("/") for user in users) or "a container"
            raise RequestError(
                f"The volume {name} is in use by {names}.", "Remove those first, or wait until they end.", code="IN_USE"
            ) from error
        return True

    async def read_volume(self, name: str, path: str, image: str, labels: dict[str, str]) -> bytes | None:
        mount = {"Type": "volume", "Source": name, "Target": "/volume", "ReadOnly": True}
        named = {LABEL + key: value for key, value in labels.items()}
        body = {"Image": image, "Labels": named, "HostConfig": {"Mounts": [mount]}}

        def read(client: docker.APIClient) -> bytes | None:
            container = client.create_container_from_config(body)["Id"]
            try:
                stream, _ = client.get_archive(container, f"/volume/{path}")
                with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                    file = archive.extractfile(archive.next() or tarfile.TarInfo())
                    return file.read() if file is not None else None
            except docker.errors.NotFound:
                return None
            finally:
                client.remove_container(container, force=True)

        try:
            return await self._call(read)
        except docker.errors.APIError as error:
            raise HostUnavailable(f"The host could not read {name}: {error.explanation}", "Try again.") from error

    # -- making one

    async def create(self, spec: OuterSpec) -> Outer:
        shared = self._socket_dir(spec.sandbox_id) if self._may_share() else None
        if shared is not None:
            shared.mkdir(mode=0o700, parents=True, exist_ok=True)
            _lay(spec.files, shared / "files")
        name = spec.name or f"manyoyo-{spec.sandbox_id}"
        try:
            created = await self._call(
                lambda client: client.create_container_from_config(self._body(spec, shared), name)
            )
            container_id = str(created["Id"])
            if spec.files and shared is None:
                archive = _tar(spec.files)
                await self._call(lambda client: client.put_archive(container_id, "/", archive))
            await self._call(lambda client: client.start(container_id))
        except docker.errors.ImageNotFound as error:
            raise ImageUnavailable(
                f"The outer image {spec.image} is not on the host.", "Build it: `manyoyo-mcp image build`."
            ) from error
        except docker.errors.APIError as error:
            await self._discard(spec.sandbox_id)
            if error.status_code == 409:
                raise NameConflict(
                    f"There is an outer container {name} already.", "Remove it, or wait for its end."
                ) from error
            if shared is not None and "bind source path does not exist" in str(error):
                self._transport = "relay"  # a local socket, yet an engine in a virtual machine
                return await self.create(spec)
            raise _refused(error) from error
        except BaseException:
            await self._discard(spec.sandbox_id)
            raise
        socket_dir = str(shared) if shared is not None else None
        return Outer(container_id, spec.sandbox_id, spec.labels, True, time.time(), spec.caps, socket_dir)

    async def _discard(self, sandbox_id: str) -> None:
        """Remove what there is of one that did not come to be; found by its label, for its name may be another's."""
        with anyio.CancelScope(shield=True), contextlib.suppress(SandboxError):
            found = await self.find({}, sandbox_id)
            container = found[0].container_id if found else sandbox_id
            await self._remove(container, sandbox_id, str(self._socket_dir(sandbox_id)))

    def _body(self, spec: OuterSpec, shared: Path | None) -> dict[str, Any]:
        labels = {LABEL + key: value for key, value in spec.labels.items()}
        mounts: list[dict[str, Any]] = [
            {
                "Type": "volume",
                "Source": f"manyoyo-{spec.sandbox_id}",
                "Target": "/var/lib/manyoyo",
                "VolumeOptions": {"Labels": labels},
            }
        ]
        if shared is not None:
            mounts.append({"Type": "bind", "Source": str(shared), "Target": SOCKET_DIR})
        if spec.bases_volume is not None:
            target = "/var/lib/manyoyo-bases" if spec.bases_writable else "/srv/manyoyo-bases"
            mounts.append(
                {
                    "Type": "volume",
                    "Source": spec.bases_volume,
                    "Target": target,
                    "ReadOnly": not spec.bases_writable,
                    # Should it have gone a moment ago, what the host then makes in its place is labelled too. Nothing of
                    # the image belongs in it; looking for that would cost a mount.
                    "VolumeOptions": {"NoCopy": True, "Labels": {f"{LABEL}kind": "bases"}},
                }
            )
        uid, gid = (os.getuid(), os.getgid()) if hasattr(os, "getuid") else (0, 0)
        host_config: dict[str, Any] = spec.caps.host_config() | {
            "Privileged": True,
            "CgroupnsMode": "private",
            "Mounts": mounts,
            "Tmpfs": {"/run": "exec,mode=755"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "1"}},
        }
        if self._settings.host_runtime:
            host_config["Runtime"] = self._settings.host_runtime
        return {
            "Image": spec.image,
            "Labels": labels,
            "Hostname": spec.sandbox_id,
            "Env": [
                f"MANYOYO_ENGINE={spec.engine}",
                f"MANYOYO_SOCKET_OWNER={uid}:{gid}",
                f"MANYOYO_BUILD_PIDS={spec.build_pids}",
            ],
            "HostConfig": host_config,
        }

    # -- reaching its engine

    def _may_share(self) -> bool:
        """Whether the host could see our directories: a unix socket on this Linux machine, not known to be a VM's."""
        return (
            self._transport != "relay"
            and sys.platform == "linux"
            and str(self.client.base_url) == "http+docker://localhost"
        )

    def _socket_dir(self, sandbox_id: str) -> Path:
        return self._settings.runtime_dir / "sandboxes" / sandbox_id

    async def dialer(self, outer: Outer) -> tuple[str, Dial]:
        path = self._socket_dir(outer.sandbox_id) / "engine.sock"
        engine = outer.labels["engine"]
        started = looked = time.monotonic()
        while time.monotonic() - started < READY_TIMEOUT:
            if self._may_share() and _listens(path):
                self._transport = "socket"
                return "socket", lambda: _connect_unix(path)
            if self._transport != "socket" and (not self._may_share() or time.monotonic() - started > _SOCKET_PATIENCE):
                try:
                    listening = await self._call(
                        lambda client: _exec(client, outer.container_id, ["test", "-S", f"{SOCKET_DIR}/engine.sock"])
                    )
                except docker.errors.APIError:
                    break  # it runs no longer
                if listening.exit_code == 0 and not (self._may_share() and _listens(path)):
                    self._transport = "relay"
                    return "relay", lambda: relay(self.client, outer.container_id, engine)
            await anyio.sleep(_LISTEN_INTERVAL)
            if time.monotonic() - looked > _LOOK_INTERVAL:
                looked = time.monotonic()
                now = await self.inspect(outer)
                if now is None or not now.running:
                    break
        words = await self.last_words(outer)
        raise EngineFailed(
            f"The nested {engine} engine did not start. Its last words:\n{words}",
            "Try engine='docker'." if engine == "podman" else "Try engine='podman'.",
        )

    async def maintain(self, outer: Outer, *argv: str, timeout: float = 30) -> Completed:
        command = ["timeout", str(timeout), "/usr/lib/manyoyo/ctl", *argv]
        try:
            return await self._call(lambda client: _exec(client, outer.container_id, command))
        except docker.errors.APIError as error:
            return Completed(125, str(error.explanation or error))

    # -- what there is

    async def find(self, labels: dict[str, str], sandbox_id: str | None = None) -> list[Outer]:
        wanted = [f"{LABEL}{key}={value}" for key, value in labels.items()]
        if sandbox_id is not None:
            wanted.append(f"{LABEL}sandbox={sandbox_id}")
        rows = await self._call(lambda client: client.containers(all=True, filters={"label": wanted}))
        found = [await self._look(row["Id"]) for row in rows]
        return [outer for outer in found if outer is not None]

    async def inspect(self, outer: Outer) -> Outer | None:
        return await self._look(outer.container_id)

    async def _look(self, container_id: str) -> Outer | None:
        try:
            raw = await self._call(lambda client: client.inspect_container(container_id))
        except docker.errors.NotFound:
            return None
        labels = {
            key.removeprefix(LABEL): value
            for key, value in (raw["Config"].get("Labels") or {}).items()
            if key.startswith(LABEL)
        }
        config = raw["HostConfig"]
        created = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]*", r"\1", raw["Created"]))
        return Outer(
            container_id=raw["Id"],
            sandbox_id=labels.get("sandbox", ""),
            labels=labels,
            running=bool(raw["State"]["Running"]),
            created=created.timestamp(),
            caps=Caps(config["NanoCpus"] / 1e9, config["Memory"], config.get("PidsLimit") or 0),
            socket_dir=next((each["Source"] for each in raw["Mounts"] if each["Destination"] == SOCKET_DIR), None),
        )

    async def last_words(self, outer: Outer, lines: int = 20) -> str:
        try:
            raw = await self._call(lambda client: client.logs(outer.container_id, tail=lines))
        except docker.errors.APIError:
            return ""
        return bytes(raw).decode(errors="replace").strip()

    async def grow(self, outer: Outer, caps: Caps) -> Outer:
        body = caps.host_config()

        def update(client: docker.APIClient) -> None:
            url = client._url("/containers/{0}/update", outer.container_id)
            client._raise_for_status(client._post_json(url, data=body))

        try:
            await self._call(update)
        except docker.errors.APIError as error:
            raise InvalidArgument(f"The host refused the larger caps: {error.explanation}", "Ask for less.") from error
        return await self.inspect(outer) or outer

    # -- ending one

    async def remove(self, outer: Outer) -> int:
        return await self._remove(outer.container_id, outer.sandbox_id, outer.socket_dir)

    async def _remove(self, container: str, sandbox_id: str, socket_dir: str | None) -> int:
        def volume(client: docker.APIClient) -> None:
            for attempt in range(50):
                try:
                    client.remove_volume(f"manyoyo-{sandbox_id}", force=True)
                    return
                except docker.errors.NotFound:
                    return
                except docker.errors.APIError:  # still in use: the container is on its way out
                    if attempt == 49:
                        raise
                    time.sleep(0.1)

        def container_gone(client: docker.APIClient) -> None:
            try:
                client.remove_container(container, force=True, v=True)
            except docker.errors.NotFound:
                pass
            except docker.errors.APIError as error:
                if error.status_code != 409:  # another is removing it already: its volume tells when that is done
                    raise

        try:
            await self._call(container_gone)
            await self._call(volume)
        except docker.errors.APIError as error:
            raise HostUnavailable(
                f"The host could not remove {container}: {error.explanation}", "Try again."
            ) from error
        if socket_dir is not None and Path(socket_dir).name == sandbox_id:
            _remove_socket_dir(Path(socket_dir))
        return 0

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _connect(endpoint: str | None) -> docker.APIClient:
    """A client for `endpoint`, else DOCKER_HOST's (with its TLS settings), else the current docker context's."""
    try:
        if endpoint is None and not os.environ.get("DOCKER_HOST"):
            context = ContextAPI.get_current_context()
            if context is not None and context.Name != "default" and context.Host:
                return docker.APIClient(
                    base_url=context.Host, tls=context.TLSConfig, version="auto", use_ssh_client=True, timeout=60
                )
        kwargs = docker.utils.kwargs_from_env()
        if endpoint is not None:
            kwargs["base_url"] = endpoint
        return docker.APIClient(version="auto", use_ssh_client=True, timeout=60, **kwargs)
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> HostUnavailable:
    return HostUnavailable(
        f"The host's container engine does not answer: {error}",
        "Start it (e.g. `systemctl start docker`), or name its endpoint in DOCKER_HOST or MANYOYO_DOCKER_HOST (in the "
        "`env` of this server's entry in the client's configuration: some clients hand on nothing else); "
        "`manyoyo-mcp doctor` says what was tried.",
    )


def _refused(error: docker.errors.APIError) -> HostUnavailable:
    text = str(error.explanation or error)
    hint = "`manyoyo-mcp doctor` looks for the cause."
    if "unable to apply caps" in text or "operation not permitted" in text.lower():
        hint = (
            "This machine lacks a capability that --privileged asks for; set MANYOYO_HOST_RUNTIME (see scripts/engine)."
        )
    elif "runtime" in text and "nknown" in text:
        hint = "MANYOYO_HOST_RUNTIME names a runtime that the host's engine does not have."
    return HostUnavailable(f"The host's engine could not start the sandbox: {text}", hint)


def _exec(client: docker.APIClient, container_id: str, argv: list[str]) -> Completed:
    exec_id = client.exec_create(container_id, argv)["Id"]
    output = client.exec_start(exec_id)
    return Completed(client.exec_inspect(exec_id)["ExitCode"] or 0, bytes(output).decode(errors="replace"))


def _remove_socket_dir(path: Path) -> None:
    """Only what we put there: the path comes from a container's configuration, which others may have written."""
    with contextlib.suppress(OSError):
        for socket_file in (path / "engine.sock", path / "engine.sock.new"):
            socket_file.unlink(missing_ok=True)
        if (path / "files").is_dir() and not (path / "files").is_symlink():
            shutil.rmtree(path / "files")
        path.rmdir()


def _listens(path: Path) -> bool:
    try:
        _connect_unix(path).close()
    except OSError:
        return False
    return True


def _connect_unix(path: Path) -> SocketLike:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return cast(SocketLike, sock)


def _lay(files: dict[str, bytes], root: Path) -> None:
    """Put files where the entrypoint finds them: some milliseconds, where the engine takes a hundred for an archive."""
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.new")
        scratch.write_bytes(content)
        scratch.chmod(0o644)
        scratch.replace(path)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
