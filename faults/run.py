"""`scripts/faults`: rounds of killing, each followed by a look at what is left. Resumable: a round's number decides all of it."""

import contextlib
import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
import docker
import typer
from mcp import Client

from faults.world import LABEL, LEASE, World, kill, until
from manyoyo_mcp import __version__
from tests.support import busybox_context

IMAGE = "localhost/manyoyo-faults/busybox:latest"
OPERATIONS = ("start", "build", "run", "exec", "checkpoint", "cleanup")
VICTIMS = ("server", "reaper", "entrypoint", "nested engine", "outer engine")
OTHERS = ("disk full", "memory pressure", "socket removed", "volume removed")
ENGINES = ("podman", "docker")
_EVERY = 10
"""Of so many rounds the last is one of the OTHERS."""
_CONVERGED = 90.0
"""Seconds after which what is left is a leak; some ten are the rule."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round does."""

    number: int
    fault: str
    operation: str
    engine: str
    named: bool
    delay: float
    also_server: bool

    @classmethod
    def of(cls, number: int, seed: int) -> "Plan":
        chance = random.Random(f"{seed}-{number}")  # noqa: S311 - to be the same again
        if number % _EVERY == _EVERY - 1:
            fault = OTHERS[number // _EVERY % len(OTHERS)]
            operation = "run"
        else:
            turn = number - number // _EVERY
            fault = VICTIMS[turn % len(VICTIMS)]
            operation = OPERATIONS[turn // len(VICTIMS) % len(OPERATIONS)]
        return cls(
            number,
            fault,
            operation,
            chance.choice(ENGINES),
            chance.random() < 0.5,
            chance.uniform(0, 0.1 if operation == "cleanup" else 1.2),  # about as long as it takes
            chance.random() < 0.3,
        )


class Failed(Exception):
    """What a round found that should not be."""


class Round:
    """One round in a lane's world."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.sandbox: str | None = None
        self.killed = 0

    async def play(self) -> None:
        with contextlib.suppress(Exception):  # what becomes of the call is not the point here
            async with Client(self.world.server(), read_timeout_seconds=60) as client:
                try:
                    await self._prepare(client)
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._operate, client)
                        await anyio.sleep(self.plan.delay)
                        await anyio.to_thread.run_sync(self._strike)
                        with anyio.move_on_after(20):
                            await self._done.wait()
                        group.cancel_scope.cancel()
                    if self.plan.also_server:
                        kill(self.world.servers())
                finally:
                    if self.plan.fault != "server" and not self.plan.also_server:
                        with anyio.move_on_after(5, shield=True):
                            await client.call_tool("sandbox_status", {})

    # -- before

    async def _prepare(self, client: Client) -> None:
        self._done = anyio.Event()
        if self.plan.operation == "start":
            return
        wanted: dict[str, Any] = {"engine": self.plan.engine, "memory": "512m"}
        if self.plan.fault == "disk full":
            wanted["disk"] = "192m"
        if self.plan.named:
            wanted |= {"name": self._name}
        started = await _call(client, "start_sandbox", **wanted)
        self.sandbox = started["sandbox"]["sandbox_id"]
        if IMAGE not in started["sandbox"]["images"]:
            await _build(client, self.sandbox)
        if self.plan.operation == "exec" or self.plan.fault in OTHERS:
            await _call(
                client, "nested_run", sandbox_id=self.sandbox, image=IMAGE, command=["sleep", "1000"], detach=True
            )

    @property
    def _name(self) -> str:
        return f"kept-{self.plan.engine}"

    # -- during

    async def _operate(self, client: Client) -> None:
        try:
            with contextlib.suppress(Exception):
                await _OPERATIONS[self.plan.operation](self, client)
        finally:
            self._done.set()

    async def start(self, client: Client) -> None:
        wanted = {"engine": self.plan.engine, "memory": "512m"} | ({"name": self._name} if self.plan.named else {})
        await client.call_tool("start_sandbox", wanted)

    async def build(self, client: Client) -> None:
        dockerfile = f"FROM {IMAGE}\nRUN sleep 0.5; echo {self.plan.number} > /number\nRUN sleep 0.5\n"
        files = {"Dockerfile": dockerfile}
        await client.call_tool("nested_build", {"sandbox_id": self.sandbox, "files": files, "no_cache": True})

    async def run(self, client: Client) -> None:
        arguments = {"sandbox_id": self.sandbox, "image": IMAGE, "command": ["sh", "-c", self._command()]}
        await client.call_tool("nested_run", arguments)

    def _command(self) -> str:
        match self.plan.fault:
            case "disk full":
                return "cat /dev/zero > /fill"
            case "memory pressure":
                return "for i in 1 2 3 4 5 6; do tail /dev/zero & done; wait"
        return "sleep 1"

    async def exec(self, client: Client) -> None:
        listed = await _call(client, "nested_list", sandbox_id=self.sandbox)
        running = [each["id"] for each in listed["containers"] if each["state"] == "running"]
        arguments = {"sandbox_id": self.sandbox, "container": running[0], "command": ["sleep", "1"]}
        await client.call_tool("nested_exec", arguments)

    async def checkpoint(self, client: Client) -> None:
        await client.call_tool("checkpoint", {"sandbox_id": self.sandbox, "name": "faults", "replace": True})
        await client.call_tool("fork_sandbox", {"sandbox_id": self.sandbox})
        await client.call_tool("start_sandbox", {"from_checkpoint": "faults", "memory": "512m"})

    async def cleanup(self, client: Client) -> None:
        await client.call_tool("cleanup", {"sandbox_id": self.sandbox, "keep_data": self.plan.named})

    def _strike(self) -> None:
        world, fault = self.world, self.plan.fault
        match fault:
            case "server":
                self.killed = kill(world.servers())
            case "reaper":
                until(world.reapers, 3, 0.05)
                self.killed = kill(world.reapers())
            case "entrypoint":
                self.killed = self._kill_inside(("entrypoint", "catatonit"))
            case "nested engine":
                self.killed = self._kill_inside(("podman", "dockerd"))
            case "outer engine":
                self.killed = kill([world.engine()])
                time.sleep(0.3)
                world.up()
            case "socket removed":
                for path in (world.runtime / "sandboxes").glob("*/engine.sock"):
                    path.unlink(missing_ok=True)
                    self.killed += 1
            case "volume removed":
                with contextlib.closing(world.host()) as host:
                    for container in host.containers.list(
                        filters={"label": f"{LABEL}sandbox={self.sandbox}"}, ignore_removed=True
                    ):
                        if not self.plan.named:
                            container.remove(force=True)
                            host.volumes.get(f"manyoyo-{self.sandbox}").remove()
                            self.killed += 1
            case _:
                self.killed = 1

    def _kill_inside(self, names: tuple[str, ...]) -> int:
        until(lambda: self.world.inside(names, self.sandbox), 3, 0.05)
        return kill(self.world.inside(names, self.sandbox))

    # -- after

    async def judge(self) -> float:
        """Seconds until nothing was left. Raises Failed."""
        begun = time.monotonic()
        kept = self.world.kept()
        left: list[str] = ["not looked at"]
        while left and time.monotonic() - begun < _CONVERGED:
            await anyio.sleep(LEASE / 2)
            if time.monotonic() - begun > 3 * LEASE:  # the next server's start: its sweep
                await anyio.to_thread.run_sync(self.world.gc)
            kept = self.world.kept()
            left = await anyio.to_thread.run_sync(self.world.left, kept)
        if left:
            raise Failed(f"left behind: {left}")
        hurt = await anyio.to_thread.run_sync(self.world.hurt)
        if hurt:
            raise Failed(f"bystanders hurt: {hurt}")
        return time.monotonic() - begun


_OPERATIONS: dict[str, Callable[[Round, Client], Awaitable[None]]] = {
    "start": Round.start,
    "build": Round.build,
    "run": Round.run,
    "exec": Round.exec,
    "checkpoint": Round.checkpoint,
    "cleanup": Round.cleanup,
}


async def _call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(f"{tool}: {result.content}")
    return result.structured_content or {}


async def _build(client: Client, sandbox: str) -> None:
    import base64

    context = busybox_context()
    files = {
        "Dockerfile": context["Dockerfile"].decode(),
        "root.tar": {"base64": base64.b64encode(context["root.tar"]).decode()},
    }
    await _call(client, "nested_build", sandbox_id=sandbox, files=files, tags=[IMAGE])


async def _lay_down(world: World) -> None:
    """The named sandboxes, with something in them that must never be lost."""
    async with Client(world.server(), read_timeout_seconds=120) as client:
        for engine in ENGINES:
            name = f"kept-{engine}"
            started = await _call(client, "start_sandbox", name=name, engine=engine, memory="512m", disk="1g")
            sandbox = started["sandbox"]["sandbox_id"]
            if not any("treasure" in each for each in started["sandbox"].get("containers", [])):
                await _build(client, sandbox)
                command = ["sh", "-c", f"echo {name} > /treasure; sleep 1000000"]
                await _call(
                    client, "nested_run", sandbox_id=sandbox, image=IMAGE, command=command, detach=True, name="treasure"
                )
            await _call(client, "cleanup", sandbox_id=name, keep_data=True)


async def _check_treasures(world: World) -> None:
    """Raises Failed where a named sandbox is lost, or what was in it."""
    async with Client(world.server(), read_timeout_seconds=120) as client:
        for engine in ENGINES:
            name = f"kept-{engine}"
            try:
                started = await _call(client, "start_sandbox", name=name, memory="512m")
                sandbox = started["sandbox"]["sandbox_id"]
                arguments = {"sandbox_id": sandbox, "container": "treasure"}
                await _call(client, "nested_stop", **arguments, action="start")
                told = await _call(client, "nested_exec", **arguments, command=["cat", "/treasure"])
            except RuntimeError as error:
                raise Failed(f"{name} is lost: {error}") from error
            if name not in told["output"]:
                raise Failed(f"{name} has lost its treasure: {told}")
            await _call(client, "cleanup", sandbox_id=name, keep_data=True)
        with contextlib.suppress(RuntimeError):
            await _call(client, "cleanup", checkpoint="faults")


async def lane(
    directory: Path, numbers: list[int], seed: int, bystanders: str, note: Callable[[dict[str, Any]], None]
) -> None:
    """Play rounds, one after the other."""
    world = World(directory, bystanders)
    await anyio.to_thread.run_sync(world.up)
    await anyio.to_thread.run_sync(world.lay_image)
    await _lay_down(world)
    for number in numbers:
        plan = Plan.of(number, seed)
        played = Round(world, plan)
        begun = time.monotonic()
        failure = None
        try:
            with anyio.move_on_after(150):
                await played.play()
            seconds = await played.judge()
            await _check_treasures(world)
            await played.judge()
        except Failed as error:
            failure, seconds = str(error), time.monotonic() - begun
        except Exception as error:  # the harness itself: to be looked at
            whole: BaseException = error
            while isinstance(whole, BaseExceptionGroup):
                whole = whole.exceptions[0]
            failure, seconds = f"{type(whole).__name__}: {whole}", time.monotonic() - begun
        note({
            "round": number, "fault": plan.fault, "operation": plan.operation, "engine": plan.engine, "named": plan.named,
            "killed": played.killed, "settled_s": round(seconds, 1), "whole_s": round(time.monotonic() - begun, 1), "failure": failure,
        })  # fmt: skip
    await anyio.to_thread.run_sync(world.purge)


def _bystander(host: docker.DockerClient) -> None:
    """A container and a volume that are none of our business."""
    labels = {f"{LABEL}faults": "bystander"}
    filters = {"label": f"{LABEL}faults=bystander"}
    for dead in host.containers.list(all=True, filters=filters | {"status": "exited"}):
        dead.start()  # of a run that was ended, as was the engine since
    if not host.containers.list(filters=filters):
        from manyoyo_mcp.config import Settings
        from manyoyo_mcp.image import outer

        host.containers.run(
            outer.reference(Settings()),
            entrypoint=["sleep", "1000000"],
            detach=True,
            labels=labels,
            name="faults-bystander",
        )
        host.volumes.create("faults-bystander", labels=labels)


def _revision() -> str:
    """What is tried: rounds of other code don't count for it."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return asked.stdout.strip() or __version__


def main(
    rounds: Annotated[int, typer.Argument(min=1)] = 30,
    seed: Annotated[int, typer.Argument()] = 1,
    lanes: Annotated[int, typer.Option(help="At once, each on an engine of its own.")] = 3,
    directory: Annotated[Path, typer.Option(help="Of the lanes, and of what was played.")] = Path(
        "/var/lib/manyoyo-faults"
    ),
    only: Annotated[int | None, typer.Option(help="This round alone, again.")] = None,
) -> None:
    """Kill, and look at what is left. Goes on where it was ended; exit code 1 where a round failed."""
    results = directory / f"seed-{seed}-{_revision()}.jsonl"
    directory.mkdir(parents=True, exist_ok=True)
    played = {}
    if results.exists():
        played = {row["round"]: row for row in map(json.loads, results.read_text().splitlines())}
    todo = [number for number in range(rounds) if number not in played] if only is None else [only]
    host = docker.from_env()
    _bystander(host)

    def note(row: dict[str, Any]) -> None:
        played[row["round"]] = row
        if only is None:
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
        mark = "FAILED" if row["failure"] else "ok"
        print(f"{row['round']:5} {mark:6} {row['fault']:15} {row['operation']:10} {row['engine']:6} "
              f"{'named' if row['named'] else '':5} {row['whole_s']:6.1f} s  {row['failure'] or ''}", flush=True)  # fmt: skip

    async def all_lanes() -> None:
        async with anyio.create_task_group() as group:
            for index in range(min(lanes, len(todo))):
                group.start_soon(
                    lane, directory / f"lane-{index}", todo[index::lanes], seed, os.environ["DOCKER_HOST"], note
                )

    if todo:
        anyio.run(all_lanes)
    rows = [played[number] for number in sorted(played) if number < rounds or number == only]
    killed = Counter(row["fault"] for row in rows if row["killed"])
    pairs = Counter((row["fault"], row["operation"]) for row in rows if row["killed"])
    print("\nrounds in which the fault struck, by fault and operation:")
    for fault in (*VICTIMS, *OTHERS):
        per = ", ".join(f"{operation} {pairs[fault, operation]}" for operation in OPERATIONS if pairs[fault, operation])
        print(f"  {fault:15} {killed[fault]:4}  ({per})")
    failed = [row for row in rows if row["failure"]]
    leaks = sum("left behind" in row["failure"] for row in failed)
    hurt = sum("bystanders" in row["failure"] for row in failed)
    lost = sum("lost" in row["failure"] for row in failed)
    print(f"{_revision()}, seed {seed}, {len(rows)} rounds: {leaks} leaks, {hurt} bystanders hurt, {lost} named sandboxes lost, "
          f"{len(failed) - leaks - hurt - lost} other failures")  # fmt: skip
    for container in host.containers.list(filters={"label": f"{LABEL}faults=bystander"}):
        container.remove(force=True)
        host.volumes.get("faults-bystander").remove()
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
