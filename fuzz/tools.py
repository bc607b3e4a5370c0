"""Generated tool calls: each must end with a result, or an error that has a code of ours."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal
from mcp import Client

from fuzz.calls import calls
from fuzz.found import PATIENCE, Found, generate, still
from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.sessions.manager import Manager
from tests.escape.canaries import Canaries
from tests.escape.roads import server
from tests.support import BUSYBOX, Box, busybox_context


def play(
    found: Found, portal: BlockingPortal, number: int, first_seed: int, roots: Path, manager: Manager, around: Canaries
) -> None:
    codes = {each.code for each in _subclasses(ManyoyoError)} - {"INTERNAL"}
    live = ["sb-0"]
    (roots / "Dockerfile").write_text(f"FROM {BUSYBOX}\nCOPY . /x\n")

    connections = contextlib.ExitStack()

    async def call(client: Client, name: str, arguments: dict[str, Any]) -> None:
        with anyio.fail_after(PATIENCE * 3):
            result = await client.call_tool(name, arguments)
        if not result.is_error:
            found.outcomes["OK"] += 1
            _note_ids(result.structured_content, live)
            return
        code = ((result.meta or {}).get("org.manyoyo/error") or {}).get("code")
        found.outcomes[str(code)] += 1
        if code is None or code == "INTERNAL" or not (code in codes or code.isupper()):
            found.fail(f"{name} {arguments!r}: {code}: {result.content}")

    def one(example: tuple[str, dict[str, Any]]) -> None:
        try:
            portal.call(call, clients[0], *example)
        except Exception as error:
            found.fail(f"{example[0]} {example[1]!r}: {type(error).__name__}: {error}")

    async def ready() -> None:
        """A few sandboxes, one of them with the image that is mostly asked for."""
        if len(manager.sandboxes()) > 3:
            await cleared(manager)
        if not manager.sandboxes():
            box = Box(manager, await manager.start("podman" if found.tried % 2 else "docker", memory=512 << 20))
            await box.build(files=busybox_context(), tags=[BUSYBOX])
            live.append(box.sandbox.sandbox_id)

    clients: list[Client] = []

    def connect() -> None:
        """Anew for each batch: what comes to a call does not come to all after it."""
        connections.close()
        clients[:] = [connections.enter_context(portal.wrap_async_context_manager(Client(server(manager))))]

    def look() -> None:
        portal.call(ready)
        connect()
        if changed := still(around.changed):
            found.fail(f"changed: {changed}")

    portal.call(ready)
    with connections:
        connect()
        generate(found, number, first_seed, calls(live, roots), one, look)


async def cleared(manager: Manager) -> None:
    """Remove what outlives servers too."""
    await manager.remove_all()
    for store in await manager.keeping.stores():
        if "checkpoint" in store.labels:
            await manager.keeping.remove_checkpoint(store.labels["checkpoint"])
        else:
            await manager.remove_by_id(store.labels["sandbox"])


def _note_ids(data: Any, live: list[str]) -> None:
    if isinstance(data, dict):
        for name, value in data.items():
            if name in ("sandbox_id", "job_id") and isinstance(value, str) and value not in live:
                live.append(value)
            _note_ids(value, live)
    elif isinstance(data, list):
        for each in data:
            _note_ids(each, live)


def _subclasses(kind: type) -> Iterator[type]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)
