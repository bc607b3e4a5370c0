"""A nested engine over Docker's API: what podman and dockerd have in common, which is nearly all."""

import shlex

from manyoyo_mcp.engines.base import (
    Action,
    Container,
    Image,
)
from manyoyo_mcp.engines.building import Building
from manyoyo_mcp.engines.running import Running
from manyoyo_mcp.policy.transport import GuardedClient


class DockerApiEngine(Running, Building):
    """An engine behind a guarded docker-py client. Subclasses say where theirs differs."""

    async def logs(self, container: str, tail: int | None, since: float | None) -> bytes:
        def get(client: GuardedClient) -> bytes:
            return bytes(
                client.logs(container, stdout=True, stderr=True, tail=tail if tail is not None else "all",
                            since=int(since) if since is not None else None)
            )  # fmt: skip

        return await self._ask(get)

    async def containers(self) -> list[Container]:
        rows = await self._ask(lambda client: client.containers(all=True))
        return [
            Container(
                container_id=row["Id"].removeprefix("sha256:"),
                name=(row.get("Names") or ["/"])[0].lstrip("/"),
                image=row.get("Image", ""),
                state=row.get("State", ""),
                status=row.get("Status", ""),
                created=float(row.get("Created") or 0),
                command=row["Command"] if isinstance(row.get("Command"), str) else shlex.join(row.get("Command") or []),
                exit_code=row.get("ExitCode"),
            )
            for row in rows
        ]

    async def images(self) -> list[Image]:
        rows = await self._ask(lambda client: client.images())
        return [
            Image(
                image_id=row["Id"],
                tags=[tag for tag in row.get("RepoTags") or [] if tag != "<none>:<none>"],
                size=int(row.get("Size") or 0),
                created=float(row.get("Created") or 0),
                shared=bool(row.get("ReadOnly")),
            )
            for row in rows
        ]

    async def act(self, action: Action, container: str, timeout_s: float) -> str:
        match action:
            case "stop":
                await self._ask(lambda client: client.stop(container, timeout=round(timeout_s)))
            case "restart":
                await self._ask(lambda client: client.restart(container, timeout=round(timeout_s)))
            case "start":
                await self._start(container)
            case "remove":
                await self._inspect(container)
                await self.remove(container)
                return "removed"
        return str((await self._inspect(container))["State"]["Status"])
