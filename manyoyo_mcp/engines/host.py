"""The host's own dockerd, for a sandbox that has no engine of its own. What reaches it is held to the sandbox's part of it (`policy.bounded`)."""

from typing import Any

from manyoyo_mcp.engines.base import Usage
from manyoyo_mcp.engines.hostbuilding import OTHERWISE, HostBuilding
from manyoyo_mcp.errors import NotSupported
from manyoyo_mcp.policy.transport import GuardedClient


class HostEngine(HostBuilding):
    """It runs, enters and removes; it builds where its tier does."""

    async def _give(self, id_: str, archive: bytes) -> None:
        raise NotSupported(
            "Secrets can't be given to a run in this sandbox: the host's engine would store them.",
            f"Give them to an exec (nested_exec), as variables; or {OTHERWISE}",
            code="SECRETS_UNAVAILABLE",
        )

    async def _image_hint(self, image: str) -> str:
        return (
            "nested_list shows the images that may be run here: those of the host's engine that MANYOYO_HOST_IMAGES names. The user can bring "
            f"others there; or {OTHERWISE}"
        )

    async def usage(self, besides: str = "") -> list[Usage]:
        rows = await self._ask(lambda client: client.containers(all=True, size=True))
        found = [
            Usage("container", row["Names"][0].lstrip("/"), int(row.get("SizeRw") or 0))
            for row in rows
            if row["Id"] != besides
        ]
        return sorted((each for each in found if each.size > 0), key=lambda each: -each.size)

    async def used(self) -> dict[str, int]:
        def ask(client: GuardedClient) -> list[Any]:
            return [client.stats(row["Id"], stream=False, one_shot=True) for row in client.containers()]

        found = await self._ask(ask)
        return {
            "memory_used": sum(int(each.get("memory_stats", {}).get("usage") or 0) for each in found),
            "pids_used": sum(int(each.get("pids_stats", {}).get("current") or 0) for each in found),
            "cpu_us": sum(int(each.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage") or 0) for each in found)
            // 1000,
        }
