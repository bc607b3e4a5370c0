"""What sandboxes there are on a host, read from its containers and volumes: their labels are the only truth."""

from pathlib import Path
from typing import Any

import docker

from manyoyo_mcp.hosts.base import LABEL, Claim, Outer, ours, store_of
from manyoyo_mcp.hosts.stores import Stores
from manyoyo_mcp.values import Caps, unix_time

SOCKET_DIR = "/run/manyoyo"


class Looking(Stores):
    """A host's sandboxes, as one finds them."""

    def _socket_dir(self, sandbox_id: str) -> Path:
        return self._settings.runtime_dir / "sandboxes" / sandbox_id

    async def find(
        self, labels: dict[str, str], sandbox_id: str | None = None, *, remains: bool = False
    ) -> list[Outer]:
        wanted = [f"{LABEL}{key}={value}" for key, value in labels.items()]
        if sandbox_id is not None:
            wanted.append(f"{LABEL}sandbox={sandbox_id}")
        rows = await self._look_up(lambda client: client.containers(all=True, filters={"label": wanted}))
        looked = [await self._look(row["Id"]) for row in rows]
        found = [outer for outer in looked if outer is not None]
        return found + await self._remains(wanted, {outer.sandbox_id for outer in found}) if remains else found

    async def _remains(self, wanted: list[str], there: set[str]) -> list[Outer]:
        """The stores that carry all of `wanted`, are not named, and whose container is gone; each as an outer container that
        is none."""
        answer = await self._look_up(lambda client: client.volumes(filters={"label": wanted}))
        found = []
        for row in answer["Volumes"] or []:
            labels = ours(row["Labels"])
            sandbox_id = labels.get("sandbox", "")
            if row["Name"] == store_of(sandbox_id) and sandbox_id not in there and "name" not in labels:
                socket_dir = str(self._socket_dir(sandbox_id))
                found.append(
                    Outer(
                        row["Name"], sandbox_id, labels, False, unix_time(row["CreatedAt"]), Caps(0, 0, 0), socket_dir
                    )
                )
        return found

    async def claims(self) -> list[Claim]:
        def look(client: docker.APIClient) -> tuple[list[Any], list[Any]]:
            rows = client.containers(filters={"label": f"{LABEL}kind=sandbox"})
            return rows, client.volumes(filters={"label": f"{LABEL}kind"})["Volumes"] or []

        rows, volumes = await self._look_up(look)
        told = [labels for row in rows if _holds_store(row.get("Mounts") or [], labels := ours(row["Labels"]))]
        running = {labels["sandbox"]: labels for labels in told}
        kept = [(volume["Name"], ours(volume["Labels"])) for volume in volumes]
        stored = {labels.get("sandbox", ""): labels for _, labels in kept if labels["kind"] == "sandbox"}
        checkpoints = [
            Claim(name, labels.get("owner", ""), False, 0.0, 0, int(labels.get("used", labels.get("disk", 0))))
            for name, labels in kept
            if labels["kind"] == "checkpoint"
        ]
        return checkpoints + [
            Claim(
                sandbox_id,
                labels.get("owner", ""),
                sandbox_id in running,
                float(labels.get("cpus", 0)) if sandbox_id in running else 0.0,
                int(labels.get("memory", 0)) if sandbox_id in running else 0,
                max(int(each.get(sandbox_id, {}).get("disk", 0)) for each in (stored, running)),
            )
            for sandbox_id, labels in (stored | running).items()
        ]

    async def inspect(self, outer: Outer) -> Outer | None:
        return await self._look(outer.container_id)

    async def _look(self, container_id: str) -> Outer | None:
        try:
            raw = await self._look_up(lambda client: client.inspect_container(container_id))
        except docker.errors.NotFound:
            return None
        labels = ours(raw["Config"].get("Labels"))
        if not _holds_store(raw["Mounts"], labels):
            return None
        config = raw["HostConfig"]
        return Outer(
            container_id=raw["Id"],
            sandbox_id=labels.get("sandbox", ""),
            labels=labels,
            running=bool(raw["State"]["Running"]),
            created=unix_time(raw["Created"]),
            caps=Caps(config["NanoCpus"] / 1e9, config["Memory"], config.get("PidsLimit") or 0),
            socket_dir=next((each["Source"] for each in raw["Mounts"] if each["Destination"] == SOCKET_DIR), None),
        )

    async def last_words(self, outer: Outer, lines: int = 20) -> str:
        try:
            raw = await self._call(lambda client: client.logs(outer.container_id, tail=lines))
        except docker.errors.APIError:
            return ""
        return bytes(raw).decode(errors="replace").strip()


def _holds_store(mounts: list[dict[str, Any]], labels: dict[str, str]) -> bool:
    """Whether a container has the store of the sandbox that its labels name: they may be those of an image somebody runs here."""
    return any(mount.get("Name") == store_of(labels.get("sandbox", "")) for mount in mounts)
