"""`manyoyo-mcp run`: one sandbox for one command; built, run, brought out, removed."""

import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manyoyo_mcp.cli.connect import load_settings
from manyoyo_mcp.cli.exits import Exit, code_of, complain, hint_of
from manyoyo_mcp.cli.sandboxes import finish, read_stdin, writer
from manyoyo_mcp.cli.screen import Screen
from manyoyo_mcp.cli.wording import in_options
from manyoyo_mcp.config import EngineName, Settings
from manyoyo_mcp.engines.base import BuildSpec, Built, Ended, OutputFile, RunSpec, Step
from manyoyo_mcp.errors import InvalidArgument, Reason
from manyoyo_mcp.image.outer import no_progress
from manyoyo_mcp.sessions import context
from manyoyo_mcp.sessions.manager import Manager, open_manager
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import in_thread

_SHOWN_LINES = 40
_ENGINE_MEMORY = 256 << 20
"""What the engine in a sandbox may need beside the command, in bytes, so that the command's own cap is what it hits."""


@dataclass(frozen=True, slots=True)
class Order:
    """What `run` was asked for. Memory in bytes, times in seconds; None is the default."""

    command: list[str]
    build: Path | None = None
    image: str | None = None
    dockerfile: str = "Dockerfile"
    target: str | None = None
    build_args: dict[str, str] = field(default_factory=dict)
    engine: EngineName | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    network: str = "default"
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    stdin: bool = False


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """`K=V` values as a mapping; `K` alone takes the value from the environment, and nothing where it has none.

    Raises InvalidArgument for what has no name.
    """
    found = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not name:
            raise InvalidArgument(f"{option} {value[:40]!r} has no name.", f"Write {option} NAME=VALUE.")
        if equals:
            found[name] = content
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def files_in(values: Sequence[str]) -> dict[str, bytes]:
    """`SRC:DST` values as path in the container → content. Raises InvalidArgument."""
    found = {}
    for value in values:
        source, _, target = value.rpartition(":")
        if not source or not target.startswith("/") or ".." in target.split("/"):
            raise InvalidArgument(
                f"--file {value[:80]!r} is not SRC:DST.", "Write e.g. --file config.json:/app/config.json."
            )
        try:
            found[target] = Path(source).read_bytes()
        except OSError as error:
            raise InvalidArgument(
                f"--file: {source} can't be read: {error.strerror}.", "Name a file that is there."
            ) from error
    return found


def files_out(values: Sequence[str]) -> dict[str, Path]:
    """`PATH[:DST]` values as path in the container → where it goes here; without DST into the working directory."""
    found = {}
    for value in values:
        source, colon, target = value.partition(":")
        if not source.startswith("/") or source.endswith("/") or ".." in source.split("/"):
            raise InvalidArgument(
                f"--output {value[:80]!r} is not a file's path.",
                "Write e.g. --output /app/report.xml[:reports/report.xml].",
            )
        place = Path(target) if colon and target else Path()
        found[source] = place / Path(source).name if place.is_dir() or target.endswith("/") else place
    return found


async def run(order: Order, screen: Screen, *, as_json: bool) -> int:
    """Do it all; the exit code. Output goes to stdout; with `as_json` to stderr, and how it ended to stdout."""
    settings = load_settings(**({"roots": [order.build]} if order.build else {}))
    ready = await in_thread(_context, settings, order) if order.build else None
    stdin = await read_stdin(order.stdin)
    report: dict[str, Any] = {}
    async with open_manager(settings) as manager:
        with screen.working("starting a sandbox") as progress:
            sandbox = await manager.start(order.engine, progress=progress)
            await _make_room(manager, sandbox, order)
        screen.say(
            f"sandbox {sandbox.sandbox_id} ({sandbox.engine_name}) started in {sandbox.start_seconds:.2f} s", "dim"
        )
        report |= {"sandbox": sandbox.sandbox_id, "engine": sandbox.engine_name, "start_seconds": sandbox.start_seconds}
        code: int = Exit.OK
        image = order.image or ""
        if ready is not None:
            built = await _build(manager, sandbox, order, ready, screen)
            report["build"] = {"reason": built.reason, "seconds": built.seconds, "image_id": built.image_id}
            code, image = _built(built), built.image_id or ""
        if code == Exit.OK:
            ended = await _command(manager, sandbox, order, image, stdin, to_stderr=as_json)
            code = finish(ended)
            report["run"] = _ended(ended)
            _save(ended.outputs, order.outputs, screen)
        with screen.working("removing the sandbox"):
            begun = time.monotonic()
            await manager.remove(sandbox)
        screen.say(f"sandbox removed in {time.monotonic() - begun:.2f} s", "dim")
    if as_json:
        print(json.dumps(report | {"exit_code": code}, indent=2))
    return code


def _context(settings: Settings, order: Order) -> context.Context:
    return context.prepare(settings, str(order.build), {}, order.dockerfile)


async def _make_room(manager: Manager, sandbox: Sandbox, order: Order) -> None:
    """Grow the sandbox where the command is given more than it has. Raises CapExceeded above the maximum."""
    has = sandbox.limits.largest
    memory = order.memory or 0
    most = manager.settings.max_sandbox_memory or (await manager.host.info()).memory
    if memory > has.memory or (order.cpus or 0) > has.cpus or (order.pids or 0) > has.pids:
        roomy = max(memory, min(memory + _ENGINE_MEMORY, most))
        await manager.grow(
            sandbox, max(order.cpus or 0, has.cpus), max(roomy, has.memory), max(order.pids or 0, has.pids)
        )


async def _build(manager: Manager, sandbox: Sandbox, order: Order, ready: context.Context, screen: Screen) -> Built:
    """Build the image. On a terminal its steps go by, elsewhere its log; quiet: the log's end, should it fail."""
    build_id = secrets.token_hex(8)
    spec = BuildSpec(
        context=ready.stream,
        dockerfile=ready.dockerfile,
        dockerfile_text=ready.dockerfile_text,
        build_id=build_id,
        target=order.target,
        build_args=order.build_args,
        caps=manager.work.caps(sandbox, order.cpus, None, None),
        login=manager.work.login,
    )
    tail = b""
    passing = writer(sys.stderr.buffer) if not screen.live and not screen.quiet else None
    with screen.working("sending the build context") if screen.live else nullcontext(no_progress) as progress:

        def sink(data: bytes) -> None:
            nonlocal tail
            tail = (tail + data)[-16384:]
            if passing is not None:
                passing(data)

        seen: list[Step] = []

        def on_step(step: Step) -> None:
            if seen and screen.live:
                screen.say(step_line(seen[-1]))
            seen.append(step)
            progress(step.number - 1, step.total, f"{step.number}/{step.total} {step.instruction}")

        built = await manager.work.ask(sandbox, lambda: sandbox.engine.build(spec, sink, on_step))
    if seen and screen.live and built.reason is Reason.OK:
        screen.say(step_line(seen[-1]))
    if built.reason is Reason.OK:
        cached = sum(step.cached for step in built.steps)
        screen.say(
            f"built in {built.seconds:.1f} s: {format_bytes(built.size or 0)}, "
            f"{cached} of {len(built.steps)} steps cached",
            "dim",
        )
    elif passing is None:
        print("\n".join(sanitise(tail).splitlines()[-_SHOWN_LINES:]), file=sys.stderr)
    return built


def step_line(step: Step) -> str:
    """A finished step: its number, instruction, and how long it took."""
    stage = f"stage {step.stage} " if step.stage is not None else ""
    how = "cached" if step.cached else f"{step.seconds or 0:.1f} s"
    return f"  {stage}{step.number}/{step.total} {step.instruction[:100]} ({how})"


def _built(built: Built) -> int:
    if built.reason is Reason.OK:
        return Exit.OK
    step = built.failed_step
    place = (
        f" in step {step.number}/{step.total}{f' (line {step.line})' if step.line else ''}: {step.instruction[:120]}"
        if step
        else ""
    )
    error = in_options(built.error) if built.reason is Reason.TIMEOUT else built.error  # else it quotes the log
    why = in_options(built.cause) or error.strip()[:400]
    complain(
        f"{built.reason}: the build failed{place}. {why}",
        hint_of(built.reason, built.mend) or "The log above says why.",
    )
    return code_of(built.reason, built.exit_code)


async def _command(
    manager: Manager, sandbox: Sandbox, order: Order, image: str, stdin: bytes | None, *, to_stderr: bool
) -> Ended:
    spec = RunSpec(
        image=image,
        command=order.command,
        caps=manager.work.caps(sandbox, order.cpus, order.memory, order.pids),
        env=order.env,
        stdin=stdin,
        network=order.network,
        workdir=order.workdir,
        user=order.user,
        files=order.files,
        outputs=list(order.outputs),
        timeout_s=order.timeout_s,
        login=manager.work.login,
    )
    sink = writer((sys.stderr if to_stderr else sys.stdout).buffer)
    return await manager.work.ask(sandbox, lambda: sandbox.engine.run(spec, sink))


def _ended(ended: Ended) -> dict[str, Any]:
    return {
        "reason": ended.reason,
        "exit_code": ended.exit_code,
        "seconds": ended.seconds,
        "explanation": sanitise(in_options(ended.explanation)),
        "hint": hint_of(ended.reason, ended.hint),
        "evidence": ended.evidence,
        "outputs": [{"path": each.path, "size": len(each.content or b""), "note": each.note} for each in ended.outputs],
    }


def _save(outputs: Sequence[OutputFile], places: dict[str, Path], screen: Screen) -> None:
    for file in outputs:
        place = places[file.path]
        if file.content is None:
            complain(
                f"{file.path} was not brought out: {file.note}.", "The path is one in the container, of a regular file."
            )
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.content)
        screen.say(f"{file.path} → {place} ({format_bytes(len(file.content))})", "dim")
