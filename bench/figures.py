"""What is measured, against what, and the limits. Every figure is made of pairs of runs, ours and theirs in turn."""

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import anyio

from bench.host import HostDocker
from bench.sandbox import Session, session
from bench.stopwatch import timing

ONE_STEP = "FROM {image}\nRUN true\n"
_MIB = 1 << 20
_REST = 0.15
"""Seconds of rest before a run: engines still clear up behind a container when they say that it is gone."""

Side = Callable[[], Awaitable[float]]
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples in milliseconds, in the order they were taken in; `value` for figures that are no ratio of the two."""

    ours: Sequence[float] = ()
    theirs: Sequence[float] = ()
    value: float | None = None
    more: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the measurements work on."""

    session: Session
    host: HostDocker
    rootfs: bytes
    known: dict[str, Any] = field(default_factory=dict)
    """What one figure found and another needs."""


Measure = Callable[[Bench, int, Tick], Awaitable[Measured]]
"""`await measure(bench, runs, tick)`; `tick()` after every pair."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. `limit` bounds `ours / theirs` (unit "x") or the value itself ("ms", "MiB"); None: reported only."""

    name: str
    ours: str
    theirs: str
    limit: float | None
    runs: int
    measure: Measure
    unit: Literal["x", "ms", "MiB"] = "x"

    def value(self, measured: Measured) -> float:
        """The number that the limit bounds."""
        return measured.value if measured.value is not None else median(measured.ours) / median(measured.theirs)


async def pairs(ours: Side, theirs: Side, runs: int, tick: Tick) -> Measured:
    """`runs` pairs after one that does not count; who goes first alternates, so that drift hits both, and each begins
    when what the other left to be done is over."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, runs):
        sides = ((0, ours), (1, theirs)) if number % 2 else ((1, theirs), (0, ours))
        for which, side in sides:
            await anyio.sleep(_REST)
            spent = await side()
            if number >= 0:
                taken[which].append(spent)
        tick()
    return Measured(*taken)


def _start(engine: str) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async def theirs() -> float:
            return bench.host.start()

        return await pairs(lambda: bench.session.start(engine), theirs, runs, tick)

    return measure


def _run(engine: str, network: str, way: Literal["cli", "py", "kept"] = "cli") -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        call = {"cli": bench.host.run, "py": bench.host.py_run, "kept": bench.host.run_kept}[way]

        async def theirs() -> float:
            return call("bridge" if way == "py" and network == "default" else network)

        return await pairs(lambda: bench.session.run(engine, network), theirs, runs, tick)

    return measure


def _runs_in_a_row(engine: str, network: str, count: int) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async def theirs() -> float:
            return sum(bench.host.run(network) for _ in range(count)) / count

        return await pairs(lambda: bench.session.runs_in_a_row(engine, network, count), theirs, runs, tick)

    return measure


def _exec(engine: str, way: Literal["cli", "py"] = "cli") -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async with bench.session.service(engine) as nested:
            with bench.host.service() as plain:

                async def theirs() -> float:
                    return bench.host.exec(plain) if way == "cli" else bench.host.py_exec(plain)

                return await pairs(lambda: bench.session.exec(engine, nested), theirs, runs, tick)

    return measure


def _build(engine: str, network: str) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async def theirs() -> float:
            return bench.host.build(ONE_STEP, network)

        return await pairs(lambda: bench.session.build(engine, ONE_STEP, network), theirs, runs, tick)

    return measure


def _named(engine: str) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async def theirs() -> float:
            return bench.host.start()

        try:
            return await pairs(lambda: bench.session.start_named(engine), theirs, runs, tick)
        finally:
            await bench.session.remove_named(engine)

    return measure


def _fork(engine: str) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        return await pairs(lambda: bench.session.fork(engine), lambda: bench.session.start(engine), runs, tick)

    return measure


def _timed(engine: str, command: str) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async def theirs() -> float:
            return bench.host.timed(timing(command))

        return await pairs(lambda: bench.session.timed(engine, timing(command)), theirs, runs, tick)

    return measure


def _removal(engine: str, network: str) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async def theirs() -> float:
            return bench.host.run(network)

        return await pairs(lambda: bench.session.run_and_removal(engine, network), theirs, runs, tick)

    return measure


def _cached(engine: str) -> Measure:
    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        async def theirs() -> float:
            return bench.host.cached(ONE_STEP)

        return await pairs(lambda: bench.session.cached(engine, ONE_STEP), theirs, runs, tick)

    return measure


async def own_parts(bench: Bench, runs: int, tick: Tick) -> tuple[Sequence[float], Sequence[float]]:
    """Of nested_runs, the milliseconds from request to answer in the server, and those of them spent waiting for the engine."""
    taken = []
    with tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory:
        async with session(Path(directory), stopwatch=True) as ours:
            await ours.import_image("podman", bench.rootfs)
            for _ in range(runs + 1):
                await anyio.sleep(_REST)
                taken.append(await ours.own_part("podman"))
                tick()
    calls, waits = zip(*taken[1:], strict=True)
    return calls, waits


async def _own_part(bench: Bench, runs: int, tick: Tick) -> Measured:
    calls, waits = await own_parts(bench, runs, tick)
    return Measured(calls, waits, median(call - wait for call, wait in zip(calls, waits, strict=True)))


async def _bare_part(bench: Bench, runs: int, tick: Tick) -> Measured:
    """Both in turn, in one engine: ours, and what a server of the packages that ours is bound to takes at least."""
    ours, bare = [], []
    with tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory:
        async with session(Path(directory), stopwatch=True) as measured:
            await measured.import_image("podman", bench.rootfs)
            async with measured.bare("podman") as bare_part:
                for _ in range(runs + 1):
                    for side, taken in ((partial(measured.own_part, "podman"), ours), (bare_part, bare)):
                        await anyio.sleep(_REST)
                        whole, waiting = await side()
                        taken.append(whole - waiting)
                    tick()
    return Measured(ours[1:], bare[1:])


async def _round_trip(bench: Bench, runs: int, tick: Tick) -> Measured:
    taken = []
    for _ in range(runs):
        taken.append(await bench.session.refused("job_status", job_id="run-00000000"))
        tick()
    return Measured(taken, value=median(taken))


async def _memory(bench: Bench, runs: int, tick: Tick) -> Measured:
    """Resident memory once the sandbox has run and built something."""
    await bench.session.run("podman", "default")
    await bench.session.build("podman", ONE_STEP, "default")
    resident = bench.session.processes()
    tick()
    return Measured(value=resident["server"] / _MIB, more={"reaper_mib": round(resident["reaper"] / _MIB, 1)})


CPU = "i=0; while [ $i -lt 1500000 ]; do i=$((i + 1)); done"
WRITE = "dd if=/dev/zero of=/tmp/f bs=1M count=500 conv=fsync 2>/dev/null"
SMALL = "i=0; while [ $i -lt 4000 ]; do echo $i > /tmp/$i; i=$((i + 1)); done"
FSYNC = (
    "i=0; while [ $i -lt 100 ]; do dd if=/dev/zero of=/tmp/s bs=4k count=1 conv=fsync 2>/dev/null; i=$((i + 1)); done"
)

FIGURES = [
    Figure("start_podman", "start_sandbox, cold, podman", "docker run -d", 1.4, 15, _start("podman")),
    Figure("start_docker", "start_sandbox, cold, dockerd", "docker run -d", 2.0, 11, _start("docker")),
    Figure("start_named", "start_sandbox, named and stopped", "docker run -d", 1.5, 11, _named("podman")),
    Figure("fork", "fork_sandbox", "start_sandbox, cold", 1.2, 21, _fork("podman")),
    Figure("run", "nested_run", "docker run --rm", 0.35, 25, _run("podman", "default")),
    Figure("run_no_network", "nested_run, no network", "docker run --rm, no network", 0.25, 25, _run("podman", "none")),
    Figure("removed", "nested_run and its removal", "docker run --rm", 0.7, 15, _removal("podman", "default")),
    Figure("removed_no_network", "nested_run and its removal, no network", "docker run --rm, no network", 0.35, 15,
           _removal("podman", "none")),
    Figure("exec", "nested_exec", "docker exec", 0.8, 31, _exec("podman")),
    Figure("build", "nested_build, one RUN step", "docker build, classic", 0.9, 15, _build("podman", "default")),
    Figure("build_cached", "nested_build, all cached", "docker build, classic, all cached", 0.8, 15, _cached("podman")),
    Figure("cpu", "a loop in a nested run", "in a plain container", 1.05, 9, _timed("podman", CPU)),
    Figure("write", "500 MB written, with fsync", "in a plain container", 1.05, 9, _timed("podman", WRITE)),
    Figure("small_files", "4,000 small files", "in a plain container", 1.05, 9, _timed("podman", SMALL)),
    Figure("fsync", "100 times 4 KB with fsync", "in a plain container", 1.05, 9, _timed("podman", FSYNC)),
    Figure("own_part", "nested_run, in the server", "of it, waiting for the nested engine", 5, 61, _own_part, "ms"),
    Figure("memory", "server's memory with one sandbox", "", 90, 1, _memory, "MiB"),
]  # fmt: skip
"""Each has a limit; one above it fails the bench."""

EXTRAS = [
    Figure("round_trip", "a call that needs no engine", "", None, 31, _round_trip, "ms"),
    Figure(
        "bare_part", "nested_run, the server's own part", "of a server of mcp and docker alone", None, 21, _bare_part
    ),
    Figure("run_kept", "nested_run", "docker run, not removed", None, 11, _run("podman", "default", "kept")),
    Figure("run_docker_py", "nested_run", "docker-py: run(remove=True)", None, 11, _run("podman", "default", "py")),
    Figure("exec_docker_py", "nested_exec", "docker-py: exec_run", None, 15, _exec("podman", "py")),
    Figure(
        "run_in_a_row", "nested_run, 5 in a row", "docker run --rm", None, 3, _runs_in_a_row("podman", "default", 5)
    ),
    Figure(
        "build_no_network", "nested_build, no network", "docker build, no network", None, 7, _build("podman", "none")
    ),
    Figure("dockerd_run", "nested_run, dockerd", "docker run --rm", None, 7, _run("docker", "default")),
    Figure("dockerd_exec", "nested_exec, dockerd", "docker exec", None, 11, _exec("docker")),
    Figure("dockerd_build", "nested_build, dockerd", "docker build, classic", None, 7, _build("docker", "default")),
]
"""Reported beside them, without limits."""
