"""`scripts/fuzz`: so many generated tool calls, so many generated requests to gates, and conversations with BuildKit, each followed by a look at
its answer; and now and then one at what must not have changed. In parts, a process and a seed each, some of them beside each other."""

import contextlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import docker
import typer
from anyio.from_thread import BlockingPortal, start_blocking_portal

from fuzz import gate, tools
from fuzz.found import Found, Unforeseen
from manyoyo_mcp.config import Settings
from manyoyo_mcp.sessions.manager import open_manager
from tests.escape.canaries import Canaries
from tests.escape.world import neighbour, world

KINDS = ("requests (podman)", "requests (docker)", "conversations", "tool calls")
_PART = 2_500
"""Calls or requests at most in one part, which is the life of a server and its sandboxes."""


@dataclass(frozen=True, slots=True)
class Part:
    kind: str
    number: int
    seed: int


def parts(number: int, first_seed: int, only: str) -> list[Part]:
    """What a run consists of: `number` tool calls, as many requests, by halves to each engine, and a fifth of that of conversations."""
    shares = {KINDS[0]: (number + 1) // 2, KINDS[1]: number // 2, KINDS[2]: max(1, number // 5), KINDS[3]: number}
    found = []
    for kind, share in shares.items():
        if only and only != ("tools" if kind == "tool calls" else "buildkit" if kind == "conversations" else "gate"):
            continue
        starts = range(0, share, _PART)
        found += [
            Part(kind, min(_PART, share - at), first_seed * 1_000 + turn * 10 + KINDS.index(kind))
            for turn, at in enumerate(starts)
        ]
    return sorted(found, key=lambda part: (part.seed, -part.number))


def play(part: Part) -> Found:
    """One part, in a process of its own."""
    found = Found(part.kind)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, Unforeseen(found), start_blocking_portal() as portal:
        try:
            _play(part, found, portal, Path(scratch))
        except Exception:
            found.fail(traceback.format_exc())
    return found


def _play(part: Part, found: Found, portal: BlockingPortal, directory: Path) -> None:
    for name in ("state", "run", "roots", "other-state", "other-run", "canary"):
        (directory / name).mkdir()
    settings = Settings(
        state_dir=directory / "state", runtime_dir=directory / "run", roots=[directory / "roots"], context_max_bytes=64 << 20,
        owner_sandboxes=10, max_sandbox_memory=1 << 30,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:

        def entered(context: Any) -> Any:
            return stack.enter_context(portal.wrap_async_context_manager(context))

        beside = entered(neighbour(directory / "other-state", directory / "other-run"))
        # Whose they are is a principal's: parts beside each other don't meet.
        manager = entered(open_manager(settings, principal=f"fuzz-{os.getpid()}"))
        if part.kind == "tool calls":
            host = docker.from_env()
            stack.callback(host.close)
            stack.callback(partial(portal.call, tools.cleared, manager))
            around = Canaries(host.containers.get(beside.box.sandbox.outer.container_id), directory / "canary")
            tools.play(found, portal, part.number, part.seed, directory / "roots", manager, around)
        else:
            engine = "podman" if "podman" in part.kind else "docker"
            there = entered(world(manager, "hardened", engine, beside, directory / "canary"))
            once = gate.play_buildkit if part.kind == "conversations" else gate.play
            once(found, portal, part.number, part.seed, there)


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


def _played(todo: list[Part], lanes: int) -> Iterator[Found]:
    pool = ProcessPoolExecutor(lanes, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with pool:
        for each in as_completed([pool.submit(play, part) for part in todo]):
            yield each.result()


def main(
    number: Annotated[int, typer.Argument(min=1, help="Of tool calls, and of requests.")] = 1000,
    first_seed: Annotated[int, typer.Argument(metavar="SEED")] = 1,
    only: Annotated[str, typer.Option(help="tools, gate, or buildkit.")] = "",
    lanes: Annotated[int, typer.Option(min=1, help="Parts beside each other.")] = 3,
) -> None:
    """Generate calls and requests; exit code 1 where one came to what should not be."""
    host = docker.from_env()
    before = _labelled(host)
    results = {kind: Found(kind) for kind in KINDS}
    for each in _played(parts(number, first_seed, only), lanes):
        results[each.kind].add(each)
        print(each.summary(), flush=True)
    left = _labelled(host) - before
    print("\nAltogether:")
    for each in results.values():
        if each.tried or each.failures:
            print(each.summary())
    if left:
        print(f"left behind: {sorted(left)}")
    host.close()
    if left or any(each.failures for each in results.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
