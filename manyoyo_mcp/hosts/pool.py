"""The pool: where a host's stores are copied in milliseconds and capped for certain.

One btrfs in a sparse file on a volume of the host, a subvolume for each store. A *keeper*, the one container that has the
whole of it mounted, does what is asked of it (`pool` in the outer image); Docker's local volume driver mounts a subvolume as a volume.
So all of it goes through the engine's API, on a host of which we see nothing else. Shared by all who use the host.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import docker

from manyoyo_mcp.errors import HostUnavailable
from manyoyo_mcp.hosts.base import LABEL, Completed
from manyoyo_mcp.hosts.execs import execute
from manyoyo_mcp.hosts.line import Line
from manyoyo_mcp.values import unix_time

KEEPER = "manyoyo-pool"
"""The keeper's name, and that of the volume with the file."""
BASES = "manyoyo-bases"
"""The volume of base images: the keeper has it mounted where there is one, for what is in use no `docker volume prune` removes."""
IMAGES = "localhost/manyoyo/sandbox"
_PROGRAM = "/usr/lib/manyoyo/pool"
_ALWAYS = "unless-stopped"
"""The keeper's restart policy: after a reboot it is there again, and so nothing of its volumes is unused."""
_CANNOT = 3
"""The keeper's exit code where this host can have no pool: it stays, stopped, to say so."""
_GOING = ("dead", "removing")
"""States of one whose removal has begun: it starts no more. Of an engine that was killed meanwhile, for good."""
_TRY_AGAIN = 600.0
"""Seconds after which a host that could have no pool is asked again."""


@dataclass(frozen=True, slots=True)
class Device:
    """The block device with the pool, and the bytes that are in it and free."""

    path: str
    size: int
    free: int


class PoolUnavailable(Exception):
    """This host has no pool; the words say why."""


class Pool:
    """One host's pool. `call` asks the host's engine; `near`: whether that is on this machine, so that no connection to it breaks
    unheard."""

    def __init__(self, call: Any, runtime: str | None, size: int, near: Callable[[], bool]) -> None:
        self._call = call
        self._near = near
        self._line = Line(KEEPER, _PROGRAM)
        self._runtime = runtime
        self._size = size
        self._device: Device | None = None
        self._failed: tuple[float, str] | None = None
        self._opening = anyio.Lock()

    @property
    def opened(self) -> bool:
        """Whether it has been used from here."""
        return self._device is not None

    async def device(self, image: str | None = None) -> Device:
        """The device, after making the keeper, of `image`, and the pool where there are none. Raises PoolUnavailable."""
        async with self._opening:
            if self._failed is not None and time.monotonic() - self._failed[0] < _TRY_AGAIN:
                raise PoolUnavailable(self._failed[1])
            if self._device is None:
                try:
                    self._device = await self._call(lambda client: self._open_patiently(client, image))
                    self._line = Line(KEEPER, _PROGRAM)
                except (PoolUnavailable, docker.errors.APIError) as error:
                    words = str(getattr(error, "explanation", None) or error)
                    self._failed = (time.monotonic(), words)
                    raise PoolUnavailable(words) from error
            return self._device

    def hang_up(self) -> None:
        """It is not asked again from here."""
        self._line.close()

    async def close(self) -> None:
        """Remove the keeper, which is made again when it is needed; what is mounted stays so."""
        self._device = None

        def remove(client: docker.APIClient) -> None:
            with contextlib.suppress(docker.errors.NotFound):
                client.remove_container(KEEPER, force=True)

        await self._call(remove)

    async def create(self, name: str, cap: int) -> None:
        """An empty store; `cap` in bytes, 0 for none. Raises HostUnavailable, as those below."""
        await self._ask("create", name, str(cap))

    async def copy(self, source: str, name: str, cap: int) -> None:
        """A store that begins as `source` is now."""
        await self._ask("copy", source, name, str(cap))

    async def cap(self, name: str, cap: int) -> None:
        """Another cap for a store."""
        await self._ask("cap", name, str(cap))

    async def remove(self, name: str) -> int:
        """Remove a store that nothing has mounted; the bytes that were its own."""
        return int((await self._ask("remove", name)).strip() or 0)

    async def stores(self) -> list[tuple[str, float]]:
        """Every store: its name, seconds since it was made."""
        return [(name, float(age)) for name, age in map(str.split, (await self._ask("list")).splitlines())]

    async def sizes(self, names: list[str]) -> dict[str, int]:
        """The bytes of their own that stores have; those that are there."""
        return {name: int(size) for name, size in map(str.split, (await self._ask("sizes", *names)).splitlines())}

    async def _ask(self, *argv: str) -> str:
        for last in (False, True):
            try:
                await self.device()
            except PoolUnavailable as error:
                raise HostUnavailable(f"The host's pool can't be had: {error}", "`manyoyo-mcp doctor`.") from error
            try:
                done: Completed = await self._call(lambda client: self._line.ask(client, [*argv], keep=self._near()))
            except docker.errors.APIError as error:  # the keeper is gone, or stopped
                done = Completed(125, str(error.explanation or error))
            if done.exit_code == 0:
                return done.output
            if last or done.exit_code != 125:
                break
            self._device = None
        raise HostUnavailable(
            f"The pool could not {' '.join(argv[:2])}: {done.output.strip()[-300:]}",
            "Is the host's disk full? `manyoyo-mcp gc` removes what nobody needs.",
        )

    def _open_patiently(self, client: docker.APIClient, image: str | None) -> Device:
        for pause in (0.2, 1.0, 3.0):
            try:
                return self._open(client, image)
            except docker.errors.APIError:  # as where two replace a keeper at once, and one is too late
                time.sleep(pause)
        return self._open(client, image)

    def _open(self, client: docker.APIClient, image: str | None) -> Device:
        found = _look(client)
        if found is not None and found["State"].get("Status") in _GOING:
            with contextlib.suppress(docker.errors.NotFound):
                client.remove_container(KEEPER, force=True)
            found = None
        if found is not None and image not in (None, found["Config"]["Image"]) and client.images(name=image):
            client.remove_container(KEEPER, force=True)  # another version's
            found = None
        if found is not None and _unheld(client, found):
            client.remove_container(KEEPER, force=True)
            found = None
        if found is None:
            found = self._make(client, image or _any_image(client))
        state = found["State"]
        if not state["Running"]:
            if state["ExitCode"] == _CANNOT and time.time() - unix_time(state["FinishedAt"]) < _TRY_AGAIN:
                raise PoolUnavailable(_words(client))
            client.start(KEEPER)
        for _ in range(5):
            try:
                done = execute(client, KEEPER, [_PROGRAM, "device"])
            except docker.errors.APIError:  # it runs no longer
                break
            if done.exit_code == 0:
                policy = found["HostConfig"].get("RestartPolicy") or {}
                if policy.get("Name") != _ALWAYS:  # now that it is known to work
                    with contextlib.suppress(docker.errors.APIError):
                        client.update_container(KEEPER, restart_policy={"Name": _ALWAYS})
                path, size, free = done.output.split()
                return Device(path, int(size), int(free))
        raise PoolUnavailable(_words(client))

    def _make(self, client: docker.APIClient, image: str) -> dict[str, Any]:
        labels = {f"{LABEL}kind": "pool"}
        volume = {
            "Type": "volume",
            "Source": KEEPER,
            "Target": "/var/lib/manyoyo-pool",
            "VolumeOptions": {"Labels": labels},
        }
        mounts = [volume, {"Type": "bind", "Source": "/dev", "Target": "/dev"}]
        if _has_bases(client):
            mounts.append({"Type": "volume", "Source": BASES, "Target": "/srv/manyoyo-bases", "ReadOnly": True})
        body = {
            "Image": image,
            "Labels": labels,
            "Entrypoint": ["/usr/bin/catatonit", "--", _PROGRAM, "keep", str(self._size)],
            "HostConfig": {
                "Privileged": True,
                "NetworkMode": "none",
                "Mounts": mounts,
                "Tmpfs": {"/run": "mode=755"},  # what a start before left there is gone, where docker starts it again
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
                **({"Runtime": self._runtime} if self._runtime else {}),
            },
        }
        try:
            client.create_container_from_config(body, KEEPER)
        except docker.errors.APIError as error:
            if error.status_code != 409:  # another server makes it too
                raise
        return client.inspect_container(KEEPER)  # type: ignore[no-any-return]


def _look(client: docker.APIClient) -> dict[str, Any] | None:
    try:
        return client.inspect_container(KEEPER)  # type: ignore[no-any-return]
    except docker.errors.NotFound:
        return None


def _has_bases(client: docker.APIClient) -> bool:
    return any(row["Name"] == BASES for row in client.volumes(filters={"name": BASES})["Volumes"] or [])


def _unheld(client: docker.APIClient, keeper: dict[str, Any]) -> bool:
    """Whether there are base images that this keeper, made before them, does not hold."""
    return not any(mount.get("Name") == BASES for mount in keeper["Mounts"]) and _has_bases(client)


def _any_image(client: docker.APIClient) -> str:
    for row in client.images(name=IMAGES):
        for tag in row.get("RepoTags") or []:
            return str(tag)
    raise PoolUnavailable("its keeper is gone, and there is no image to make another of")


def _words(client: docker.APIClient) -> str:
    return bytes(client.logs(KEEPER, tail=5)).decode(errors="replace").strip()[-400:] or "its keeper does not answer"
