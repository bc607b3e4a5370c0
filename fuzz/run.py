"""`scripts/fuzz`: so many generated tool calls, and so many generated requests to gates, each followed by a look at its answer; and
now and then one at what must not have changed."""

import contextlib
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import docker
import typer
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from mcp import Client

from fuzz.calls import calls
from fuzz.requests import SERVICES, requests
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.escape.canaries import Canaries
from tests.escape.roads import IMAGE, server
from tests.escape.world import World, neighbour, world
from tests.support import BUSYBOX, Box, busybox_context

_BATCH = 250
"""After so many there is a look around."""
_PATIENCE = 60.0
"""Seconds for a call or an answer; what takes longer hangs."""
_MOST_FAILURES = 20


class Found:
    """What was tried, what came of it, and what should not have."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.tried = 0
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

    def fail(self, words: str) -> None:
        self.failures.append(words)
        print(f"{self.kind}: FAILED after {self.tried}: {words[:2000]}", flush=True)

    def summary(self) -> str:
        outcomes = ", ".join(f"{name} {number}" for name, number in self.outcomes.most_common(25))
        return f"{self.kind}: {self.tried} tried, {len(self.failures)} failures ({outcomes})"


def _generate(
    found: Found,
    number: int,
    first_seed: int,
    strategy: st.SearchStrategy[Any],
    one: Callable[[Any], None],
    look: Callable[[], None],
) -> None:
    """Call `one` with so many examples, `look` between."""
    for batch in range(1 << 20):
        left = min(_BATCH, number - found.tried)
        if left <= 0 or len(found.failures) >= _MOST_FAILURES:
            return

        @seed(first_seed * 1_000_003 + batch)
        @settings(
            max_examples=left, deadline=None, database=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def play(example: Any) -> None:
            found.tried += 1
            one(example)

        play()
        look()
        print(f"{found.kind}: {found.tried}", flush=True)


# -- tool calls


def _tools(
    portal: BlockingPortal, number: int, first_seed: int, directory: Path, manager: Manager, around: Canaries
) -> Found:
    found = Found("tool calls")
    codes = {each.code for each in _subclasses(ManyoyoError)} - {"INTERNAL"}
    live = ["sb-0"]
    roots = directory / "roots"
    (roots / "Dockerfile").write_text(f"FROM {BUSYBOX}\nCOPY . /x\n")

    async def call(name: str, arguments: dict[str, Any]) -> None:
        with anyio.fail_after(_PATIENCE * 3):
            async with Client(server(manager)) as client:
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
            portal.call(call, *example)
        except Exception as error:
            found.fail(f"{example[0]} {example[1]!r}: {type(error).__name__}: {error}")

    async def ready() -> None:
        """A few sandboxes, one of them with the image that is mostly asked for."""
        if len(manager.sandboxes()) > 3:
            async with Client(server(manager)) as client:
                await client.call_tool("cleanup", {"everything": True})
        if not manager.sandboxes():
            box = Box(manager, await manager.start("podman" if found.tried % 2 else "docker", memory=512 << 20))
            await box.build(files=busybox_context(), tags=[BUSYBOX])
            live.append(box.sandbox.sandbox_id)

    def look() -> None:
        portal.call(ready)
        if changed := around.changed():
            found.fail(f"changed: {changed}")

    portal.call(ready)
    _generate(found, number, first_seed, calls(live, roots), one, look)
    return found


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


# -- requests to a gate


def _requests(portal: BlockingPortal, number: int, first_seed: int, there: World) -> Found:
    found = Found(f"requests ({there.engine})")
    path = there.box.manager.endpoints.open(there.box.sandbox)

    def one(example: tuple[bytes, bool]) -> None:
        data, proper = example
        answer = _ask(path, data, proper)
        status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.") else "none"
        found.outcomes[status] += 1
        if proper and status == "none":
            found.fail(f"no answer: {data[:1500]!r}")
        if b"Traceback" in answer or b"engine does not answer" in answer:
            found.fail(f"{answer[:500]!r} to {data[:1500]!r}")

    async def tidy() -> None:
        for container in (await there.control.request("GET", "/containers/json", {"all": "1"})).json():
            await there.control.drop(container["Id"])
        for path in ("/containers/prune", "/networks/prune", "/volumes/prune", "/images/prune"):
            await there.control.request("POST", path)
        for name in SERVICES:
            made = await there.roads["gate"].request(
                "POST",
                "/containers/create",
                {"name": name},
                {"Image": IMAGE, "Cmd": ["sleep", "1000"], "StopSignal": "KILL"},
            )
            if not made.ok:
                built = await there.box.build(files=_context(), tags=[IMAGE])  # an image can be removed, too
                assert built.image_id, built
                continue
            await there.roads["gate"].request("POST", f"/containers/{name}/start")

    async def let_through() -> list[str]:
        """What no container may have, whoever asked for it."""
        wrong = []
        for row in (await there.control.request("GET", "/containers/json", {"all": "1"})).json():
            looked = (await there.control.request("GET", f"/containers/{row['Id']}/json")).json()
            host = looked.get("HostConfig") or {}
            binds = [
                each
                for each in host.get("Binds") or []
                if each.startswith("/") and not each.startswith("/run/manyoyo/gate.sock:")
            ]
            largest = there.box.sandbox.limits.largest
            odd = {
                "Privileged": host.get("Privileged"),
                "Binds": binds,
                "Devices": host.get("Devices"),
                "PidMode": host.get("PidMode") == "host",
                "NetworkMode": str(host.get("NetworkMode")).startswith(("host", "ns:")),
                "Memory": not 0 < host.get("Memory", 0) <= largest.memory,
                "PidsLimit": not 0 < (host.get("PidsLimit") or 0) <= largest.pids,
                "SYS_ADMIN": any("SYS_ADMIN" in each or "ALL" in each for each in host.get("CapAdd") or []),
            }
            wrong += [f"{row['Names']} has {name}: {value}" for name, value in odd.items() if value]
        return wrong

    def look() -> None:
        for each in portal.call(let_through):
            found.fail(each)
        if changed := portal.call(there.changed):
            found.fail(f"changed: {changed}")
        portal.call(tidy)

    portal.call(tidy)
    _generate(found, number, first_seed, requests(), one, look)
    return found


def _context() -> dict[str, bytes]:
    from tests.escape.world import context

    return context()


def _ask(path: Path, data: bytes, proper: bool) -> bytes:
    """What a gate answers. Of a stream the first half second."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.settimeout(_PATIENCE)
        sock.connect(str(path))
        with contextlib.suppress(OSError):
            sock.sendall(data)
        if not proper:
            sock.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        while (piece := sock.recv(1 << 16)) and time.monotonic() - begun < _PATIENCE:
            answer = (answer + piece)[: 1 << 16]
            sock.settimeout(0.5)
    return answer


# -- both


def _labelled(host: docker.DockerClient) -> set[str]:
    """What is on the engine with our labels, but images and what all sandboxes share."""
    shared = ("image", "bases", "pool")
    found = {
        each.name
        for each in host.containers.list(all=True, ignore_removed=True)
        if each.labels.get("org.manyoyo.kind", "image") not in shared
    }
    volumes = [(each.name, each.attrs.get("Labels") or {}) for each in host.volumes.list()]
    return found | {name for name, labels in volumes if labels.get("org.manyoyo.kind", "image") not in shared}


async def _opened(stack: AsyncExitStack, directory: Path) -> tuple[Manager, Any]:
    for name in ("state", "run", "roots", "other-state", "other-run"):
        (directory / name).mkdir()
    beside = await stack.enter_async_context(neighbour(directory / "other-state", directory / "other-run"))
    manager = await stack.enter_async_context(
        open_manager(
            Settings(
                state_dir=directory / "state", runtime_dir=directory / "run", roots=[directory / "roots"], context_max_bytes=64 << 20,
                owner_sandboxes=10, max_sandbox_memory=1 << 30,
            )
        )
    )  # fmt: skip
    return manager, beside


def main(
    number: Annotated[int, typer.Argument(min=1, help="Of tool calls, and of requests.")] = 1000,
    first_seed: Annotated[int, typer.Argument(metavar="SEED")] = 1,
    only: Annotated[str, typer.Option(help="tools, or gate.")] = "",
) -> None:
    """Generate calls and requests; exit code 1 where one came to what should not be."""
    host = docker.from_env()
    before = _labelled(host)
    results: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, start_blocking_portal() as portal:
        directory = Path(scratch)
        with portal.wrap_async_context_manager(_all(directory, number, first_seed, only, portal, results)):
            pass
    left = _labelled(host) - before
    for each in results:
        print(each.summary())
    if left:
        print(f"left behind: {sorted(left)}")
    host.close()
    if left or any(each.failures for each in results):
        raise typer.Exit(1)


@contextlib.asynccontextmanager
async def _all(
    directory: Path, number: int, first_seed: int, only: str, portal: BlockingPortal, results: list[Found]
) -> Any:
    async with AsyncExitStack() as stack:
        manager, beside = await _opened(stack, directory)
        host = docker.from_env()
        stack.callback(host.close)
        guarded = directory / "host"
        guarded.mkdir()
        if only != "tools":
            for at, engine in enumerate(("podman", "docker")):
                (directory / engine).mkdir()
                async with world(manager, "hardened", engine, beside, directory / engine) as there:
                    share = (number + 1 - at) // 2
                    results.append(await anyio.to_thread.run_sync(_requests, portal, share, first_seed, there))
        if only != "gate":
            around = await anyio.to_thread.run_sync(
                Canaries, host.containers.get(beside.box.sandbox.outer.container_id), guarded
            )
            results.append(
                await anyio.to_thread.run_sync(_tools, portal, number, first_seed, directory, manager, around)
            )
        yield


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
