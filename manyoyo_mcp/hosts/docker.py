"""Sandboxes on any endpoint that speaks Docker's API, used as root or as a member of the docker group."""

import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import docker

from manyoyo_mcp.archive import tar
from manyoyo_mcp.config import Settings
from manyoyo_mcp.dialled import Dial
from manyoyo_mcp.errors import (
    EgressUnenforced,
    EngineFailed,
    EngineUnreachable,
    HostUnavailable,
    ImageUnavailable,
    InvalidArgument,
    NameConflict,
    NotSupported,
    SandboxError,
)
from manyoyo_mcp.hosts import beside, own, sharing
from manyoyo_mcp.hosts import mirror as mirroring
from manyoyo_mcp.hosts.base import ENDING, LABEL, Completed, Mirror, Outer, OuterSpec, store_of
from manyoyo_mcp.hosts.execs import execute
from manyoyo_mcp.hosts.isolation import ON_HOST
from manyoyo_mcp.hosts.isolation import host_config as isolated
from manyoyo_mcp.hosts.looking import SOCKET_DIR, Looking
from manyoyo_mcp.hosts.relay import Reached, reach, relay
from manyoyo_mcp.hosts.stores import driver
from manyoyo_mcp.values import Caps
from manyoyo_mcp.workers import in_thread, together

READY_TIMEOUT = 90.0
"""Seconds that a nested engine may take until it listens."""
_LISTEN_INTERVAL = 0.005
"""Seconds between tries to connect to an engine that is starting; a try costs some ten microseconds."""
_LOOK_INTERVAL = 0.5
"""Seconds between looks whether its outer container runs still."""
_SOCKET_PATIENCE = 2.0
"""Seconds after which an engine that listens, yet not at our end of the shared directory, is asked through the relay."""

_NO_RULES = "no engine without rules"
_NO_IDS = "no engine without a user namespace"
"""The entrypoint's words."""
_ENDING = 3
"""Exit code of `ctl renew` where it is too late."""
_FORGOTTEN_AFTER = 10
"""Leases after which a shared directory that has no sandbox is not one about to be started."""


class DockerHost(Looking):
    """Sandboxes on one endpoint."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._transport: str | None = None if settings.transport == "auto" else settings.transport
        self._host_socket: str | None = None

    # -- making one

    async def create(self, spec: OuterSpec) -> Outer:
        name = spec.name or f"manyoyo-{spec.sandbox_id}"
        if spec.isolation in ON_HOST:
            await self._look_up(beside.check)
        kept = spec.keep and await self.volume_exists(store_of(spec.sandbox_id))
        shared = self._socket_dir(spec.sandbox_id) if self._may_share() else None
        if shared is not None:
            shared.mkdir(mode=0o700, parents=True, exist_ok=True)
            sharing.lay(spec.files, shared / "files")
        try:
            device = await self._device_for(spec)

            async def container() -> dict[str, Any]:
                body = self._body(spec, shared, device)
                return await self._call(lambda client: client.create_container_from_config(body, name))

            if spec.keep:  # what there is a volume of is there, whenever one of us dies
                await self._lay_store(spec, device)
                made = await container()
            else:
                made, _ = await together(container, partial(self._lay_store, spec, device))
            container_id = str(made["Id"])
            if spec.files and shared is None:
                archive = tar(spec.files)
                await self._call(lambda client: client.put_archive(container_id, "/", archive))
            await self._call(lambda client: client.start(container_id))
        except docker.errors.ImageNotFound as error:
            await self._discard(spec.sandbox_id, kept)
            raise ImageUnavailable(
                f"The outer image {spec.image} is not on the host.", "Build it: `manyoyo-mcp image build`."
            ) from error
        except docker.errors.APIError as error:
            if error.status_code != 409 or not spec.keep:  # else what there is is another's, of the same id
                await self._discard(spec.sandbox_id, kept)
            if error.status_code == 409:
                raise NameConflict(
                    f"There is an outer container {name} already.", "Remove it, or wait for its end."
                ) from error
            if self._host_socket not in (None, beside.USUAL) and f"does not exist: {self._host_socket}" in str(error):
                self._host_socket = beside.USUAL  # the engine knows its socket by another path than we do
                return await self.create(spec)
            if shared is not None and "bind source path does not exist" in str(error):
                self._transport = "relay"  # a local socket, yet an engine in a virtual machine
                return await self.create(spec)
            raise _refused(error) from error
        except BaseException:
            await self._discard(spec.sandbox_id, kept)
            raise
        socket_dir = str(shared) if shared is not None else None
        return Outer(container_id, spec.sandbox_id, spec.labels, True, time.time(), spec.caps, socket_dir)

    async def _discard(self, sandbox_id: str, kept: bool) -> None:
        """Remove what there is of one that did not come to be; found by its label, for its name may be another's."""
        directory = self._socket_dir(sandbox_id)
        with anyio.CancelScope(shield=True), contextlib.suppress(SandboxError):
            found = await self.find({}, sandbox_id)
            container = found[0].container_id if found else sandbox_id
            await self._remove(container, sandbox_id, str(directory), keep_store=kept)
        sharing.remove(directory)  # the engine may be gone; a container of it that is not ends without a lease

    def _body(self, spec: OuterSpec, shared: Path | None, device: str | None) -> dict[str, Any]:
        labels = {LABEL + key: value for key, value in spec.labels.items()}
        store = store_of(spec.sandbox_id)
        mounts: list[dict[str, Any]] = [
            {
                "Type": "volume",
                "Source": store,
                "Target": "/var/lib/manyoyo",
                # Nothing of the image belongs in it; looking for that would mount it before it is there.
                "VolumeOptions": {"NoCopy": True, "Labels": labels, **driver(device, store)},
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
        if spec.isolation in ON_HOST:
            self._host_socket = self._host_socket or beside.socket_of(self._written())
            mounts.append(beside.mount(self._host_socket))
        uid, gid = (os.getuid(), os.getgid()) if hasattr(os, "getuid") else (0, 0)
        host_config: dict[str, Any] = spec.caps.host_config() | {
            **isolated(spec.isolation, self._settings.host_runtime),
            "CgroupnsMode": "private",
            "Mounts": mounts,
            "Tmpfs": {"/run": "exec,mode=755"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "1"}},
        }
        return {
            "Image": spec.image,
            "Labels": labels,
            "Hostname": spec.sandbox_id,
            "Env": [
                f"MANYOYO_ENGINE={spec.engine}",
                f"MANYOYO_SOCKET_OWNER={uid}:{gid}",
                f"MANYOYO_BUILD_PIDS={spec.build_pids}",
                f"MANYOYO_LEASE={spec.lease}",
                f"MANYOYO_SANDBOX={spec.sandbox_id}",
                f"MANYOYO_ISOLATION={spec.isolation}",
                f"MANYOYO_SYNC={'strict' if (spec.keep and device is None) or spec.isolation in ON_HOST else 'relaxed'}",
            ],
            "HostConfig": host_config,
        }

    # -- reaching its engine

    def _may_share(self) -> bool:
        """Whether the host could see our directories: a unix socket on this Linux machine, not known to be a VM's."""
        return self._transport != "relay" and sys.platform == "linux" and self._by_unix_socket

    def _shared(self, outer: Outer) -> Path:
        return Path(outer.socket_dir or self._socket_dir(outer.sandbox_id))

    async def dialer(self, outer: Outer) -> tuple[str, Dial]:
        path = self._shared(outer) / "engine.sock"
        engine = outer.labels["engine"]
        on_host = outer.labels.get("isolation") in ON_HOST
        listens = partial(beside.listens, self._shared(outer)) if on_host else partial(sharing.listens, path)
        target = Path(beside.socket_of(self._written())) if on_host else path
        shared = self._may_share() and outer.socket_dir is not None  # another server may have made it, for the relay
        started = looked = time.monotonic()
        while time.monotonic() - started < READY_TIMEOUT:
            if shared and listens():
                self._transport = "socket"
                return "socket", lambda: sharing.connect(target)
            if not shared or (self._transport != "socket" and time.monotonic() - started > _SOCKET_PATIENCE):
                try:
                    listening = await self._call(
                        lambda client: execute(client, outer.container_id, ["test", "-S", f"{SOCKET_DIR}/engine.sock"])
                    )
                except docker.errors.APIError:
                    break  # it runs no longer
                if listening.exit_code == 0 and not (shared and listens()):
                    if shared:  # tried in vain: an engine in a virtual machine
                        self._transport = "relay"
                    return "relay", lambda: relay(self.client, outer.container_id, engine)
            await anyio.sleep(_LISTEN_INTERVAL)
            if time.monotonic() - looked > _LOOK_INTERVAL:
                looked = time.monotonic()
                now = await self.inspect(outer)
                if now is None or not now.running:
                    break
        words = await self.last_words(outer)
        if _NO_RULES in words:
            raise EgressUnenforced(
                f"The rules of the sandbox's network policy could not be made, and without them no engine is started:\n{words}",
                "The host's kernel needs nftables (nf_tables, nft_nat, nft_reject_inet, nft_fib_inet, nf_conntrack): load the modules.",
            )
        if _NO_IDS in words:
            raise NotSupported(
                f"This isolation can't be had on this host: the ids of what is nested can't be mapped:\n{words}",
                "The host's kernel needs user namespaces (user.max_user_namespaces) and, where base images are shared, mounts with mapped ids (5.19); "
                "or take another isolation.",
                code="ISOLATION_UNAVAILABLE",
            )
        raise EngineFailed(
            f"The nested {engine} engine did not start. Its last words:\n{words}",
            "sandbox_status and `manyoyo-mcp doctor --try` say more; the other engine may start, where the isolation can be had with it.",
        )

    def execs(self, outer: Outer) -> Dial | None:
        path = self._shared(outer) / "execs.sock"
        return (lambda: sharing.connect(path)) if self._transport == "socket" and outer.socket_dir is not None else None

    def reach(self, outer: Outer, address: str, port: int) -> Reached:
        return reach(self.client, outer.container_id, address, port)

    async def maintain(self, outer: Outer, *argv: str, timeout: float = 30, stdin: bytes | None = None) -> Completed:
        command = ["timeout", str(timeout), "/usr/lib/manyoyo/ctl", *argv]
        try:
            return await self._call(lambda client: execute(client, outer.container_id, command, timeout, stdin))
        except docker.errors.APIError as error:
            return Completed(125, str(error.explanation or error))

    async def lay(self, outer: Outer, files: dict[str, bytes]) -> None:
        archive = tar(files)
        try:
            await self._call(lambda client: client.put_archive(outer.container_id, "/", archive))
        except docker.errors.APIError as error:
            raise EngineUnreachable(
                f"{outer.sandbox_id} takes no files: {error.explanation or error}",
                "sandbox_status says whether it runs.",
            ) from error

    async def addresses(self) -> list[str]:
        local = self._may_share() or self._by_unix_socket
        return await in_thread(own.addresses, None if local else self._host_name())

    async def renew(self, outer: Outer, patience: float = 30) -> None:
        if outer.socket_dir is not None:
            goes_on = await in_thread(sharing.renew, Path(outer.socket_dir))
        else:
            goes_on = (await self.maintain(outer, "renew", timeout=patience)).exit_code != _ENDING
        if not goes_on:
            raise EngineUnreachable(f"{outer.sandbox_id} is ending.", "start_sandbox starts another.", code=ENDING)

    async def tidy(self) -> None:
        await self._sweep_pool()
        root = self._settings.runtime_dir / "sandboxes"
        old = {path.name for path in sharing.older_than(_FORGOTTEN_AFTER * self._settings.lease_s, root)}
        if old:
            rows = await self._look_up(lambda client: client.containers(all=True, filters={"label": f"{LABEL}sandbox"}))
            for name in old - {row["Labels"][f"{LABEL}sandbox"] for row in rows}:
                if not sharing.listens(root / name / "engine.sock"):  # another endpoint's sandboxes are in there too
                    sharing.remove(root / name)

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

    # -- its mirror

    async def mirror(self) -> Mirror | None:
        return await self._look_up(mirroring.find)

    async def start_mirror(
        self, image: str, registry: str, upstream: str, credentials: dict[str, str], files: dict[str, bytes]
    ) -> None:
        await self._look_up(lambda client: mirroring.start(client, image, registry, upstream, credentials, files))

    async def stop_mirror(self, *, data: bool) -> bool:
        return await self._look_up(lambda client: mirroring.stop(client, data=data))

    # -- ending one

    async def remove(self, outer: Outer, *, keep_store: bool = False) -> int:
        beside_it = partial(beside.remove_all, sandbox_id=outer.sandbox_id)
        on_host = outer.labels.get("isolation") in ON_HOST
        if on_host:
            with contextlib.suppress(
                EngineUnreachable
            ):  # it alone can take its cgroup away; one that is ending itself may never answer
                await self.maintain(outer, "stop-all")
            await self._look_up(beside_it)
        freed = await self._remove(outer.container_id, outer.sandbox_id, outer.socket_dir, keep_store=keep_store)
        if on_host:  # what was begun meanwhile
            await self._look_up(beside_it)
        return freed

    async def _remove(
        self, container: str, sandbox_id: str, socket_dir: str | None, *, keep_store: bool = False
    ) -> int:
        def container_gone(client: docker.APIClient) -> None:
            try:
                client.remove_container(container, force=True, v=True)
            except docker.errors.NotFound:
                pass
            except docker.errors.APIError as error:
                if error.status_code != 409:  # another is removing it already: its store tells when that is done
                    raise

        try:
            await self._call(container_gone)
        except docker.errors.APIError as error:
            raise HostUnavailable(
                f"The host could not remove {container}: {error.explanation}", "Try again."
            ) from error
        freed = 0 if keep_store else await self.remove_store(store_of(sandbox_id))
        if socket_dir is not None and Path(socket_dir).name == sandbox_id:
            sharing.remove(Path(socket_dir))
        return freed


@contextlib.asynccontextmanager
async def open_host(settings: Settings) -> AsyncIterator[DockerHost]:
    """The host of the settings, closed on leaving."""
    host = DockerHost(settings)
    try:
        yield host
    finally:
        await host.close()


def _refused(error: docker.errors.APIError) -> HostUnavailable | NotSupported:
    text = str(error.explanation or error)
    if "/dev/fuse" in text:
        return NotSupported(
            f"This isolation can't be had on this host: {text}",
            "The host needs /dev/fuse (modprobe fuse); or take another isolation.",
            code="ISOLATION_UNAVAILABLE",
        )
    hint = "`manyoyo-mcp doctor` looks for the cause."
    if "unable to apply caps" in text or "operation not permitted" in text.lower():
        hint = "This machine lacks a capability that --privileged asks for; `manyoyo-mcp doctor` says what to do."
    elif "runtime" in text and "nknown" in text:
        hint = "MANYOYO_HOST_RUNTIME names a runtime that the host's engine does not have."
    return HostUnavailable(f"The host's engine could not start the sandbox: {text}", hint)
