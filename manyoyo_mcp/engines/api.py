"""A nested engine over Docker's API: what podman and dockerd have in common, which is nearly all."""

import contextlib
import re
import shlex
from typing import Any

from manyoyo_mcp.engines.base import (
    Action,
    Container,
    Ended,
    Image,
    Usage,
)
from manyoyo_mcp.engines.daemonless import Daemonless
from manyoyo_mcp.engines.entering import Entering
from manyoyo_mcp.engines.failures import UNTOLD, suspicious, verdict
from manyoyo_mcp.engines.running import OVER
from manyoyo_mcp.errors import ManyoyoError, Reason
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.values import format_bytes, unix_time

_NEVER = re.compile(r"Exited \(\d+\) [1-9]\d\d years ago")
"""What podman says of a container that ran when its store was copied: of its end it knows neither time nor code."""


class DockerApiEngine(Daemonless, Entering):
    """An engine behind a guarded docker-py client. Subclasses say where theirs differs."""

    async def logs(self, container: str, tail: int | None, since: float | None) -> bytes:
        def get(client: GuardedClient) -> bytes:
            return bytes(
                client.logs(container, stdout=True, stderr=True, tail=tail if tail is not None else "all",
                            since=int(since) if since is not None and since >= 1 else None)  # it takes no time before 1970
            )  # fmt: skip

        return await self._ask(get)

    async def ended(self, container: str) -> Ended | None:
        raw = await self._inspect(container)
        state = raw["State"]
        if state["Status"] not in OVER:
            return None
        code, oom = int(state["ExitCode"]), bool(state.get("OOMKilled"))
        seconds = max(0.0, round(unix_time(state["FinishedAt"]) - unix_time(state["StartedAt"]), 3))
        if code == 0:
            return Ended(0, Reason.OK, seconds, container=raw["Id"])
        end = b""
        with contextlib.suppress(ManyoyoError):  # that it ended is known all the same
            end = await self.logs(container, 50, unix_time(state["StartedAt"]))
        record = await self._new_record(raw["Id"]) if code in UNTOLD or oom or suspicious(end) else ""
        # The flag is the container's: of an exec that was killed in it, and with podman of a start before this one.
        oom = oom and ("oom-kill" in record or "oom-kill" not in self._seen_records.get(raw["Id"], ""))
        cap = format_bytes(raw["HostConfig"].get("Memory") or 0)
        told = verdict(code, oom_flag=oom, record=record, cgroup=raw["Id"], output_end=end, cap=cap, stays=True)
        return Ended(code, told.reason, seconds, told.explanation, told.hint, told.evidence, container=raw["Id"])

    async def containers(self) -> list[Container]:
        rows = await self._ask(lambda client: client.containers(all=True))
        return [
            Container(
                container_id=row["Id"].removeprefix("sha256:"),
                name=(row.get("Names") or ["/"])[0].lstrip("/"),
                image=row.get("Image", ""),
                state=row.get("State", ""),
                status=_NEVER.sub("Stopped when its sandbox was, or was copied", row.get("Status", "")),
                created=float(row.get("Created") or 0),
                command=row["Command"] if isinstance(row.get("Command"), str) else shlex.join(row.get("Command") or []),
                exit_code=row.get("ExitCode"),
                address=_address(row),
                labels=row.get("Labels") or {},
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

    async def usage(self, besides: str = "") -> list[Usage]:
        raw = await self._ask(lambda client: client.df())
        shared = {image.image_id.removeprefix("sha256:") for image in await self.images() if image.shared}
        found = [
            Usage("image", (row.get("RepoTags") or [str(row["Id"])[:19]])[0], _own(row))
            for row in raw.get("Images") or []
            if str(row["Id"]).removeprefix("sha256:") not in shared
        ]
        found += [
            Usage("container", (row.get("Names") or [str(row["Id"])[:12]])[0].lstrip("/"), int(row.get("SizeRw") or 0))
            for row in raw.get("Containers") or []
            if str(row["Id"]).removeprefix("sha256:") != besides
        ]
        found += [
            Usage("volume", row["Name"], int((row.get("UsageData") or {}).get("Size") or 0))
            for row in raw.get("Volumes") or []
        ]
        found += [
            Usage("build cache", str(row.get("ID", ""))[:12], int(row.get("Size") or 0))
            for row in raw.get("BuildCache") or []
        ]
        return sorted((each for each in found if each.size > 0), key=lambda each: -each.size)

    async def used(self) -> dict[str, int]:
        return {}

    async def act(self, action: Action, container: str, timeout_s: float) -> str:
        match action:
            case "stop":
                await self._ask(lambda client: client.stop(container, timeout=round(timeout_s)))
            case "restart":
                await self._still_has(container)
                await self._forget_record(container)
                await self._ask(lambda client: client.restart(container, timeout=round(timeout_s)))
            case "start":
                await self._still_has(container)
                await self._forget_record(container)
                await self._start(container)
            case "remove":
                found = (await self._inspect(container))["Id"]
                await self.remove(container)
                await self._take_away(found)
                return "removed"
        return str((await self._inspect(container))["State"]["Status"])


def _own(image: Any) -> int:
    """What an image takes for itself."""
    return int(image.get("Size") or 0) - max(0, int(image.get("SharedSize") or 0))


def _address(row: Any) -> str:
    networks = (row.get("NetworkSettings") or {}).get("Networks") or {}
    return next((each["IPAddress"] for each in networks.values() if each and each.get("IPAddress")), "")
