"""Images built without the engine's builder: by buildah in a nested container that holds the context and the images it begins with, has
the build's caps, and no right outside a user namespace of its own (docs/decisions/0016-without-root.md)."""

import re
import time
from collections.abc import Callable, Iterator, Sequence

import anyio

from manyoyo_mcp.engines.base import BuildSpec, Built, Ended, Given, RunSpec, Sink, Step
from manyoyo_mcp.engines.building import Building, named
from manyoyo_mcp.engines.buildlog import BuildLog, images
from manyoyo_mcp.engines.running import Running
from manyoyo_mcp.engines.streams import Tail, since
from manyoyo_mcp.errors import DiskFull, EngineFailed, ManyoyoError, NotFound, Reason

_PLACE = "/var/lib/manyoyo/alone"
"""Where `ctl begin-alone` has a directory for each such build, in the outer container."""
_PATIENCE = 900.0
"""Seconds in which images of any size are brought in or out."""
_ID = re.compile(r"\b[0-9a-f]{64}\b")
_STEP = re.compile(rb"((?:\[\d+/\d+\] )?STEP )(\d+)/(\d+)(: .*)", re.DOTALL)
_OWN = b"MANYOYO_ALONE"
"""In the step after each FROM, by which the steps get variables of the sandbox's (`build-alone`)."""
_LEVELS = re.compile(rb"subprocess exited (?:with status \d+|on ([a-z ]+))\s*")
"""What each of buildah's processes between it and a step says of the next."""
_SAID = "Error: "


class Daemonless(Running, Building):
    """What an engine builds, itself or not."""

    async def build(self, spec: BuildSpec, sink: Sink, on_step: Callable[[Step], None]) -> Built:
        if not spec.daemonless:
            return await super().build(spec, sink, on_step)
        begun = time.monotonic()
        log = BuildLog(spec.dockerfile_text, on_step)
        try:
            try:
                bases = await self._bases(spec)
            except NotFound as error:
                sink(error.message.encode() + b"\n")
                return Built(Reason.BUILD_FAILED, since(begun), [], error=error.message,
                             cause_code=error.instance_code, cause=error.message, mend=error.hint)  # fmt: skip
            builder = await self._begin_alone(spec, list(bases.values()))
            return await self._build_alone(spec, builder, list(bases), log, sink, begun)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(30):
                await self._maintain("drop-alone", spec.build_id)

    async def _bases(self, spec: BuildSpec) -> dict[str, str]:
        """The images that it begins with or copies from: by the name that the Dockerfile has for it, its id. Raises NotFound."""
        found = {}
        for name in images(spec.dockerfile_text, spec.build_args, spec.target):
            if spec.pull and not name.startswith("localhost/"):
                await self.pull(name, await spec.login(name))
            try:
                raw = await self._ask(lambda client, name=name: client.inspect_image(name))  # type: ignore[misc]
            except NotFound:
                await self.pull(name, await spec.login(name))
                raw = await self._ask(lambda client, name=name: client.inspect_image(name))  # type: ignore[misc]
            found[name] = str(raw["Id"]).removeprefix("sha256:")
        return found

    async def _begin_alone(self, spec: BuildSpec, ids: Sequence[str]) -> str:
        """Lay out what it begins with; the image of the builder."""
        done = await self._maintain("begin-alone", spec.build_id, *ids, timeout=_PATIENCE)
        if done.exit_code:
            raise _failed("The images to build on could not be laid out", str(done.output))
        return str(done.output).split("image=", 1)[-1].split()[0]

    async def _build_alone(
        self, spec: BuildSpec, builder: str, bases: Sequence[str], log: BuildLog, sink: Sink, begun: float
    ) -> Built:
        end = Tail(sink)
        lines = Lines(log, end)
        place = f"{_PLACE}/{spec.build_id}"
        ended = await self.run(
            RunSpec(
                image=builder,
                entrypoint=["/usr/lib/manyoyo/build-alone"],
                command=[*bases, "--", *_arguments(spec)],
                caps=spec.caps,
                labels=spec.labels,
                network=spec.network,
                workdir="/context",
                timeout_s=spec.timeout_s,
                pull="never",
                archive=spec.context,
                given=(Given(f"{place}/from", "/from"), Given(f"{place}/made", "/made", writable=True)),
            ),
            lines,
        )
        lines.end()
        log.end_step()
        if ended.reason is not Reason.OK:
            return await self._ended_badly(spec, log, ended, since(begun))
        done = await self._maintain("end-alone", spec.build_id, timeout=_PATIENCE)
        made = _ID.findall(str(done.output))
        if done.exit_code or not made:
            raise _failed("The image that was built could not be brought into the sandbox", str(done.output))
        image = made[-1]
        for name in spec.tags or [f"localhost/manyoyo/build:{spec.build_id}"]:
            await self._ask(lambda client, name=name: named(image, name, client))  # type: ignore[misc]
        size = (await self._ask(lambda client: client.inspect_image(image)))["Size"]
        return Built(Reason.OK, since(begun), log.steps, image_id=f"sha256:{image}", size=size, tags=spec.tags)

    async def _ended_badly(self, spec: BuildSpec, log: BuildLog, ended: Ended, seconds: float) -> Built:
        """By its own evidence where that is of a cap, else as any build that failed."""
        if ended.reason in (Reason.EXIT_NONZERO, Reason.COMMAND_NOT_FOUND):
            log.error = log.error or "the builder ended without a word"
            return await self._build_failed(spec, log, seconds)
        return Built(ended.reason, seconds, log.steps, failed_step=log.failed_step, exit_code=log.exit_code or ended.exit_code,
                     error=log.error or ended.explanation, cause_code=ended.reason, cause=ended.explanation, mend=ended.hint,
                     evidence=ended.evidence)  # fmt: skip


class Lines:
    """A sink that reads what buildah says line by line, as a build's log has it."""

    def __init__(self, log: BuildLog, sink: Sink) -> None:
        self._log = log
        self._sink = sink
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._take(line + b"\n")

    def end(self) -> None:
        """What has no end of line is a line too."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""

    def _take(self, line: bytes) -> None:
        if (step := _STEP.fullmatch(line)) is not None:
            number, total = int(step[2]), int(step[3])
            if number == 2 and _OWN in step[4]:
                return
            line = b"%s%d/%d%s" % (step[1], number - (number > 2), total - 1, step[4])
        elif (level := _LEVELS.fullmatch(line)) is not None:
            if level[1] is None:
                return
            line = b"container exited on " + level[1] + b"\n"  # as another of its isolations says
        text = line.decode(errors="replace")
        error = {"error": text.removeprefix(_SAID).strip()}
        said = text.startswith((_SAID, "building at STEP "))
        self._sink(self._log.feed(error if said else {"stream": text}).encode())


def _arguments(spec: BuildSpec) -> Iterator[str]:
    yield from ("--file", f"/context/{spec.dockerfile}")
    for name, value in spec.build_args.items():
        yield from ("--build-arg", f"{name}={value}")
    if spec.target:
        yield from ("--target", spec.target)
    if spec.platform:
        yield from ("--platform", spec.platform)


def _failed(what: str, said: str) -> ManyoyoError:
    words = f"{what}: {said.strip()[-300:]}"
    if "no space left" in said or "disk quota exceeded" in said.lower():
        return DiskFull(words, "Remove images that are not needed, or give the sandbox a larger disk.")
    return EngineFailed(words, 'Try once more, or with builder="engine".')
