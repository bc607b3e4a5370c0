"""What a host keeps for sandboxes: their stores, in its pool where it can have one, and other volumes."""

import contextlib
import io
import tarfile
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import anyio
import docker

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import HostUnavailable, InvalidArgument, NotSupported, RequestError, SandboxError
from manyoyo_mcp.hosts.base import LABEL, Copied, OuterSpec, Storage, Store, ours, store_of
from manyoyo_mcp.hosts.images import Images
from manyoyo_mcp.hosts.pool import BASES, KEEPER, Device, Pool, PoolUnavailable
from manyoyo_mcp.values import format_bytes, unix_time

_WHOLE = ".manyoyo-whole"
"""Name of a file that a copy of files gets last: one without it was interrupted, or is under way."""
_COPY = f"cp -a /from/. /to && touch /to/{_WHOLE} && du -sb /to | cut -f1"
_IN_USE_PATIENCE = 5.0
"""Seconds that a container on its way out may hold its volume."""


def driver(device: str | None, store: str) -> dict[str, Any]:
    """What Docker's local volume driver needs to mount a store of the pool; nothing for one that lies elsewhere."""
    if device is None:
        return {}
    options = {"type": "btrfs", "device": device, "o": f"subvol={store},noatime"}
    return {"DriverConfig": {"Name": "local", "Options": options}}


def pooled(volume: dict[str, Any]) -> bool:
    """Whether a volume, as the engine describes it, is a store of the pool."""
    return "subvol=" in str((volume.get("Options") or {}).get("o", ""))


def _half_made(volume: dict[str, Any]) -> bool:
    """Whether a volume by a store's name leads to no store and says of nobody that it is theirs: dockerd was killed while it made it."""
    return not volume.get("Options") and not volume.get("Labels")


class Stores(Images):
    """A host's stores and volumes."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.docker_host)
        self._settings = settings
        self._pool = Pool(self._call, settings.host_runtime, settings.pool_size or 0, lambda: self._by_unix_socket)

    async def close(self) -> None:
        self._pool.hang_up()
        await super().close()

    # -- stores

    async def storage(self, image: str) -> Storage:
        try:
            device = await self._device(image)
        except PoolUnavailable as error:
            return Storage("plain", str(error))
        return Storage("pool", f"btrfs pool of {format_bytes(device.size)}", device.size, device.free)

    async def _device(self, image: str | None = None) -> Device:
        if self._settings.storage == "plain":
            raise PoolUnavailable("MANYOYO_STORAGE is plain")
        return await self._pool.device(image)

    async def _device_for(self, spec: OuterSpec) -> str | None:
        """The device that a new sandbox's store is mounted from; None where its store is a plain volume.

        Raises NotSupported where it is to be capped and can't be.
        """
        if spec.bases_writable:  # the maker of base images: an hour's scratch space
            return None
        there = await self._volume(store_of(spec.sandbox_id)) if spec.keep else None
        if there is not None and not pooled(there):
            return None
        try:
            return (await self._device(spec.image)).path
        except PoolUnavailable as error:
            if there is not None:
                raise HostUnavailable(
                    f"What the sandbox holds lies in this host's pool, which can't be had now: {error}",
                    "`manyoyo-mcp doctor` says more; nothing is lost by waiting.",
                ) from error
            if spec.disk is not None:
                raise NotSupported(
                    f"This host can't cap a disk: {error}.",
                    "Leave disk out: the sandbox's disk is then uncapped. `manyoyo-mcp doctor` says what a pool takes.",
                    code="DISK_CAP_UNAVAILABLE",
                ) from error
            return None

    async def _lay_store(self, spec: OuterSpec, device: str | None) -> None:
        """What a new sandbox begins with, in its store: nothing, or what is in another; as it is, where it has one."""
        name = store_of(spec.sandbox_id)
        if spec.keep and await self._volume(name) is not None:
            return
        if spec.origin is None:
            if device is not None:
                await self._pool.create(name, spec.disk or 0)
        else:
            await self.copy_store(spec.origin, name, spec.labels, spec.disk, spec.image)

    async def stores(self, labels: dict[str, str]) -> list[Store]:
        wanted = [f"{LABEL}{key}={value}" for key, value in labels.items()]
        answer = await self._look_up(lambda client: client.volumes(filters={"label": wanted}))
        return [
            Store(row["Name"], ours(row["Labels"]), unix_time(row["CreatedAt"]), pooled(row))
            for row in answer["Volumes"] or []
        ]

    async def sized(self, stores: Iterable[Store]) -> list[Store]:
        found = list(stores)
        names = [store.name for store in found if store.pooled]
        known: dict[str, int] = {}
        if names:
            with contextlib.suppress(SandboxError):
                known = await self._pool.sizes(names)
        return [replace(store, size=known.get(store.name)) for store in found]

    async def copy_store(self, source: str, name: str, labels: dict[str, str], cap: int | None, image: str) -> Copied:
        there = await self._volume(source)
        if there is None:
            raise InvalidArgument(f"There is no store {source}.", "sandbox_status lists what there is.")
        try:
            device = (await self._device(image)).path
        except PoolUnavailable:
            device = None
        try:
            if device is not None and pooled(there):
                await self._pool.copy(source, name, cap or 0)
                await self._create_volume(name, labels, device)
                return Copied("snapshot", 0)
            if device is not None:
                await self._pool.create(name, cap or 0)
            await self._create_volume(name, labels, device)
            checked = not pooled(there) and ours(there["Labels"]).get("kind") == "checkpoint"
            return Copied("copy", await self._copy_files(source, name, image, labels, checked=checked))
        except BaseException:
            with anyio.CancelScope(shield=True), contextlib.suppress(SandboxError):
                await self.remove_store(name)
            raise

    async def _copy_files(self, source: str, name: str, image: str, labels: dict[str, str], *, checked: bool) -> int:
        """Bytes copied. `checked`: the source is a copy itself, and used only if it is whole."""
        mounts = [
            {"Type": "volume", "Source": source, "Target": "/from", "ReadOnly": True},
            {"Type": "volume", "Source": name, "Target": "/to"},
        ]
        body = {
            "Image": image,
            "Labels": {LABEL + key: value for key, value in labels.items()} | {f"{LABEL}kind": "copier"},
            "Entrypoint": [
                "sh",
                "-c",
                f"[ -e /from/{_WHOLE} ] || {{ echo torn; exit; }}; {_COPY}" if checked else _COPY,
            ],
            "HostConfig": {
                "Mounts": mounts,
                "NetworkMode": "none",
                "AutoRemove": True,
            },  # also where nobody waits any more
        }

        def copy(client: docker.APIClient) -> int:
            container = client.create_container_from_config(body)["Id"]
            output = bytearray()
            try:
                attached = Attached(client.attach_socket(container, {"stream": 1, "stdout": 1, "stderr": 1}))
                client.start(container)
            except BaseException:  # it goes by itself only once it has run
                client.remove_container(container, force=True)
                raise
            try:
                attached.pump(output.extend)
            finally:
                attached.close()
            words = output.decode(errors="replace").strip()
            copied = words.rpartition("\n")[2]
            if copied == "torn":
                raise RequestError(
                    f"{source} is not whole: its own copy was interrupted, or is under way.",
                    "Wait a minute; if it stays so, remove it (cleanup with its checkpoint) and make it anew.",
                    code="CHECKPOINT_TORN",
                )
            if not copied.isdigit():
                raise HostUnavailable(f"{source} could not be copied: {words[-300:]}", "Is the host's disk full?")
            return int(copied)

        return await self._look_up(copy)

    async def cap_store(self, name: str, cap: int) -> None:
        volume = await self._volume(name)
        if volume is None or not pooled(volume):
            raise NotSupported(
                "What this sandbox holds lies in a plain volume, whose size can't be capped.",
                "Leave disk out.",
                code="DISK_CAP_UNAVAILABLE",
            )
        await self._pool.cap(name, cap)

    async def remove_store(self, name: str) -> int:
        volume = await self._volume(name)
        if volume is not None:  # first: a volume says that its store is there
            await self._drop(name)
        if pooled(volume) if volume is not None else self._pool.opened:
            with contextlib.suppress(SandboxError):  # without its keeper: a later sweep removes it
                return await self._pool.remove(name)
        return 0

    async def _drop(self, name: str) -> None:
        def drop(client: docker.APIClient) -> None:
            end = time.monotonic() + _IN_USE_PATIENCE
            while True:
                try:
                    client.remove_volume(name, force=True)
                    return
                except docker.errors.NotFound:
                    return
                except docker.errors.APIError:  # still in use: the container is on its way out
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.1)

        try:
            await self._call(drop)
        except docker.errors.APIError as error:
            raise HostUnavailable(f"The host could not remove {name}: {error.explanation}", "Try again.") from error

    async def _sweep_pool(self) -> None:
        """Remove from the pool what is no volume of the host's (any more), or was never one whole; after a lease, for it may be about to become one."""
        if self._settings.storage == "plain" or not await self.volume_exists(KEEPER):
            return
        strays = {name for name, age in await self._pool.stores() if age > self._settings.lease_s}
        if strays:
            answer = await self._look_up(lambda client: client.volumes())
            there = {row["Name"]: row for row in answer["Volumes"] or []}
            for name in strays:
                if name in there and not _half_made(there[name]):
                    continue
                with contextlib.suppress(SandboxError):  # one that can't be removed keeps no other
                    if name in there:
                        await self._drop(name)
                    await self._pool.remove(name)

    # -- volumes

    async def _volume(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._look_up(lambda client: client.inspect_volume(name))
        except docker.errors.NotFound:
            return None

    async def _create_volume(self, name: str, labels: dict[str, str], device: str | None) -> None:
        body = {"Name": name, "Driver": "local", "Labels": {LABEL + key: value for key, value in labels.items()}}
        if device is not None:
            body["DriverOpts"] = driver(device, name)["DriverConfig"]["Options"]

        def create(client: docker.APIClient) -> None:
            client._raise_for_status(client._post_json(client._url("/volumes/create"), data=body))

        await self._look_up(create)

    async def volume_exists(self, name: str) -> bool:
        return await self._volume(name) is not None

    async def create_volume(self, name: str, labels: dict[str, str]) -> None:
        await self._create_volume(name, labels, None)

    async def remove_volume(self, name: str) -> bool:
        if name == BASES and await self.volume_exists(KEEPER):
            await self._pool.close()  # it holds them
        try:
            await self._call(lambda client: client.remove_volume(name))
        except docker.errors.NotFound:
            return False
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise HostUnavailable(f"The host could not remove {name}: {error.explanation}", "Try again.") from error
            users = await self._look_up(lambda client: client.containers(all=True, filters={"volume": name}))
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
