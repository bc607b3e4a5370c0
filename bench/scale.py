"""Figures of much: warm sandboxes, large images, fifty sandboxes, sixteen clients, a real application, another library."""

import logging
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles

import anyio
import docker

from bench.figures import ONE_STEP, Bench, Figure, Measure, Measured, Tick, own_parts, pairs
from bench.sandbox import BIG, IMAGE, Session, session
from bench.stopwatch import timing
from manyoyo_mcp.cli.image import make_bases
from manyoyo_mcp.config import Settings
from manyoyo_mcp.image.outer import no_progress
from manyoyo_mcp.sessions import trust

PYTHON = "localhost/manyoyo/python:latest"
APPLICATION = "fastapi uvicorn sqlalchemy jinja2 httpx"
_PIP = f"pip install --quiet --target /tmp/site {APPLICATION}"
_PORT = 7000
_SERVE = f"truncate -s 1G /tmp/file; httpd -f -p {_PORT} -h /tmp"
_FIFTY = 50
_CLIENTS = 16
_ROUNDS = 20
_MIB = 1 << 20


async def _warm(bench: Bench, runs: int, tick: Tick) -> Measured:
    with tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory:
        async with session(Path(directory), "--warm", "1") as warmed:

            async def ours() -> float:
                await anyio.sleep(1.5)  # the next one is being made
                return await warmed.start("podman")

            async def theirs() -> float:
                return bench.host.start()

            return await pairs(ours, theirs, runs, tick)


async def _from_big(bench: Bench, runs: int, tick: Tick) -> Measured:
    await bench.session.big("podman")
    return await pairs(
        lambda: bench.session.start("podman", from_checkpoint=BIG), lambda: bench.session.start("podman"), runs, tick
    )


async def _fork_big(bench: Bench, runs: int, tick: Tick) -> Measured:
    big = await bench.session.big("podman")
    return await pairs(lambda: bench.session.fork("podman", big), lambda: bench.session.start("podman"), runs, tick)


def _disk(tool: str) -> Measure:
    """What a sandbox with the large image, begun by `tool`, takes of the disk."""

    async def measure(bench: Bench, runs: int, tick: Tick) -> Measured:
        ours = bench.session
        big = await ours.big("podman")
        taken = []
        for _ in range(runs):
            if tool == "fork_sandbox":
                sandbox = (await ours.call(tool, sandbox_id=big))["forks"][0]["sandbox_id"]
            else:
                sandbox = (await ours.call(tool, from_checkpoint=BIG))["sandbox"]["sandbox_id"]
            await anyio.sleep(6)  # the pool counts what it has written, every five seconds
            taken.append(await ours.disk_used(sandbox) / _MIB)
            await ours.call("cleanup", sandbox_id=sandbox)
            tick()
        return Measured(value=median(taken), more={"most_mib": round(max(taken), 2)})

    return measure


async def _pip(bench: Bench, runs: int, tick: Tick) -> Measured:
    """Both with the host's certificates and proxies, over the default network."""
    await make_bases(Settings(), ["python"], no_progress)
    handed = trust.files(Settings())
    with tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory:
        async with _python(Path(directory), bench) as ours:
            words = [f"--env={line}" for line in handed.get("/etc/manyoyo/nested-env", b"").decode().splitlines()]
            if bundle := handed.get("/etc/manyoyo/ca-certificates.crt"):
                (Path(directory) / "ca.crt").write_bytes(bundle)
                words += [f"--volume={directory}/ca.crt:{trust.NESTED_CA}:ro"]

            async def theirs() -> float:
                return bench.host.timed(timing(_PIP), PYTHON, "bridge", *words)

            return await pairs(lambda: ours.timed("podman", timing(_PIP), PYTHON, "default"), theirs, runs, tick)


@asynccontextmanager
async def _python(directory: Path, bench: Bench) -> AsyncIterator[Session]:
    """A session that has the Python image, as the host then has."""
    async with session(directory) as ours:
        sandbox = await ours.sandbox("podman")
        nested = docker.APIClient(f"unix://{ours.engine_socket(sandbox)}", version="1.41", timeout=120)
        try:
            with tempfile.TemporaryFile() as file:
                for piece in nested.get_image(PYTHON):
                    file.write(piece)
                file.seek(0)
                bench.host.api.api.load_image(file)
        finally:
            nested.close()
        try:
            yield ours
        finally:
            bench.host.api.images.remove(PYTHON, force=True)


async def _throughput(bench: Bench, runs: int, tick: Tick) -> Measured:
    """From one container to another over the default network."""
    ours = bench.session
    sandbox = await ours.sandbox("podman")

    async def nested() -> float:
        command = ["sh", "-c", _SERVE]
        started = await ours.call("nested_run", sandbox_id=sandbox, image=IMAGE, command=command, detach=True)
        try:
            listed = await ours.call("nested_list", sandbox_id=sandbox, what="containers")
            address = next(row["address"] for row in listed["containers"] if row["address"])
            return await ours.timed("podman", timing(_receive(address)), network="default")
        finally:
            await ours.call("nested_stop", sandbox_id=sandbox, container=started["container"], action="remove")

    async def plain() -> float:
        with bench.host.serving(_SERVE) as address:
            return bench.host.timed(timing(_receive(address)), network="bridge")

    return await pairs(nested, plain, runs, tick)


def _receive(address: str) -> str:
    return f"until wget -q -O /dev/null http://{address}:{_PORT}/file 2>/dev/null; do sleep 0.01; done"


async def _slowest(bench: Bench, runs: int, tick: Tick) -> Measured:
    calls, waits = await own_parts(bench, runs, tick)
    parts = [call - wait for call, wait in zip(calls, waits, strict=True)]
    return Measured(calls, waits, quantiles(parts, n=100)[-1])


async def _idle(bench: Bench, runs: int, tick: Tick) -> Measured:
    """A new sandbox's memory as `docker stats` counts it: without the files that the kernel can let go of."""
    taken = []
    for _ in range(runs):
        started = await bench.session.call("start_sandbox", engine="podman")
        sandbox = started["sandbox"]["sandbox_id"]
        await anyio.sleep(3)
        filters = {"label": f"org.manyoyo.sandbox={sandbox}"}
        (container,) = bench.host.api.containers.list(ignore_removed=True, filters=filters)
        used = container.stats(stream=False)["memory_stats"]
        files = used["stats"].get("total_inactive_file", used["stats"].get("inactive_file", 0))
        taken.append((used["usage"] - files) / _MIB)
        await bench.session.call("cleanup", sandbox_id=sandbox)
        tick()
    return Measured(value=median(taken))


async def _fifty(bench: Bench, tick: Tick) -> tuple[list[float], float]:
    """What each of so many starts took, in milliseconds, and the server's memory with all of them, in MiB."""
    if "fifty" not in bench.known:
        with tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory:
            async with session(Path(directory), host_sandboxes=str(2 * _FIFTY), sandbox_disk="1g") as ours:
                taken = []
                for _ in range(_FIFTY):
                    began = time.perf_counter()
                    await ours.call("start_sandbox", engine="podman", memory="256m", cpus=0.5)
                    taken.append((time.perf_counter() - began) * 1000)
                    tick()
                await anyio.sleep(2)
                bench.known["fifty"] = taken, ours.processes()["server"] / _MIB
    found: tuple[list[float], float] = bench.known["fifty"]
    return found


async def _fiftieth(bench: Bench, runs: int, tick: Tick) -> Measured:
    taken, _ = await _fifty(bench, tick)
    return Measured(taken[-5:], taken[:5])


async def _server_of_fifty(bench: Bench, runs: int, tick: Tick) -> Measured:
    _, memory = await _fifty(bench, tick)
    return Measured(value=memory)


async def _clients(bench: Bench, runs: int, tick: Tick) -> Measured:
    """So many clients at once, each so many times: a run, an exec, a status, a small build."""
    rounds = _ROUNDS if runs > 1 else 4
    ours = await _ours(bench, rounds)
    tick()
    theirs = await anyio.to_thread.run_sync(_theirs, bench, rounds)
    tick()
    return Measured([ours], [theirs])


async def _ours(bench: Bench, rounds: int) -> float:
    ready: list[float] = []
    ended: list[float] = []
    go = anyio.Event()

    async def client(directory: str) -> None:
        async with session(Path(directory)) as each:
            await each.import_image("podman", bench.rootfs)
            async with each.service("podman") as service:
                ready.append(time.perf_counter())
                await go.wait()
                for _ in range(rounds):
                    sandbox = await each.sandbox("podman")
                    await each.call("nested_run", sandbox_id=sandbox, image=IMAGE, command=["echo", "hi"])
                    await each.exec("podman", service)
                    await each.call("sandbox_status", sandbox_id=sandbox)
                    await each.build("podman", ONE_STEP, "default")
                ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory:
        async with anyio.create_task_group() as group:
            for number in range(_CLIENTS):
                group.start_soon(client, f"{directory}/{number}")
            while len(ready) < _CLIENTS:  # noqa: ASYNC110 - sixteen events are no simpler
                await anyio.sleep(0.1)
            began = time.perf_counter()
            go.set()
    return (max(ended) - began) * 1000


def _theirs(bench: Bench, rounds: int) -> float:
    failed: list[BaseException] = []

    def client() -> None:
        host = docker.from_env(timeout=300)
        try:
            with bench.host.service() as service:
                started.wait()
                for _ in range(rounds):
                    bench.host.py_run("bridge", host)
                    bench.host.py_exec(service, host)
                    host.containers.get(service)
                    bench.host.py_build(ONE_STEP, host)
                ended.wait()
        except BaseException as error:
            failed.append(error)
            started.abort()
            ended.abort()
        finally:
            host.close()

    started, ended = threading.Barrier(_CLIENTS + 1), threading.Barrier(_CLIENTS + 1)
    threads = [threading.Thread(target=client) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        started.wait()
        began = time.perf_counter()
        ended.wait()
        spent = (time.perf_counter() - began) * 1000
    except threading.BrokenBarrierError:
        raise RuntimeError(f"docker-py: {failed[0]}") from failed[0]
    for thread in threads:
        thread.join()
    return spent


async def _llm_sandbox(bench: Bench, runs: int, tick: Tick) -> Measured:
    """Open, run a line of Python, close; its image there already and its environment's set-up left out."""
    from llm_sandbox import SandboxSession

    logging.getLogger("llm_sandbox").setLevel(logging.ERROR)
    await make_bases(Settings(), ["python"], no_progress)
    with tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory:
        async with _python(Path(directory), bench) as ours:

            async def mine() -> float:
                began = time.perf_counter()
                started = await ours.call("start_sandbox")
                sandbox = started["sandbox"]["sandbox_id"]
                ran = await ours.call(
                    "nested_run", sandbox_id=sandbox, image=PYTHON, command=["python", "-c", "print('hi')"]
                )
                assert ran["exit_code"] == 0 and "hi\n" in ran["output"], ran
                await ours.call("cleanup", sandbox_id=sandbox)
                return (time.perf_counter() - began) * 1000

            def open_run_close() -> float:
                began = time.perf_counter()
                with SandboxSession(
                    client=bench.host.api, image=PYTHON, lang="python", keep_template=True, skip_environment_setup=True
                ) as opened:
                    ran = opened.run("print('hi')")
                    assert ran.stdout.strip() == "hi", ran
                return (time.perf_counter() - began) * 1000

            return await pairs(mine, lambda: anyio.to_thread.run_sync(open_run_close), runs, tick)


SCALE = [
    Figure("start_warm", "start_sandbox, warm", "docker run -d", 0.2, 9, _warm),
    Figure("start_shared", "start_sandbox with 1 GB of images", "start_sandbox, cold", 1.1, 41, _from_big),
    Figure("start_shared_disk", "its disk", "", 1, 3, _disk("start_sandbox"), "MiB"),
    Figure("fork_big", "fork_sandbox of one with 1 GB of images", "start_sandbox, cold", 1.2, 21, _fork_big),
    Figure("fork_big_disk", "its disk", "", 5, 3, _disk("fork_sandbox"), "MiB"),
    Figure("pip", f"pip install {APPLICATION}", "in a plain container", 1.05, 5, _pip),
    Figure("own_part_p99", "nested_run, in the server, 99 of 100", "of it, waiting", 15, 200, _slowest, "ms"),
    Figure("idle", "an idle podman sandbox's memory", "", 15, 3, _idle, "MiB"),
    Figure("fiftieth", "start_sandbox, the 46th to 50th", "the first five", 1.5, 1, _fiftieth),
    Figure("fifty", "server's memory with 50 sandboxes", "", 120, 1, _server_of_fifty, "MiB"),
    Figure("clients", f"{_CLIENTS} clients' work, through MCP", "by docker-py", 1.0, 3, _clients),
    Figure("llm_sandbox", "start, run, cleanup", "llm-sandbox: open, run, close", 0.2, 5, _llm_sandbox),
]  # fmt: skip
"""Each has a limit; one above it fails the bench."""

REPORTED = [Figure("throughput", "1 GB over HTTP between two containers", "the same, plain", None, 5, _throughput)]
