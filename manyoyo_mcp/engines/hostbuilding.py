"""What the host's own dockerd builds for a sandbox that has no engine of its own: its classic builder does everything but run commands, which are run as
any container of the sandbox's is (docs/decisions/0015-host-engine-tiers.md)."""

import codecs
import contextlib
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from manyoyo_mcp.engines.archives import Contents, Seen, look
from manyoyo_mcp.engines.base import BuildSpec, Built, RunSpec, Sink, Step
from manyoyo_mcp.engines.building import named, posted
from manyoyo_mcp.engines.buildlog import BuildLog, Instruction, instructions
from manyoyo_mcp.engines.docker import DockerEngine
from manyoyo_mcp.engines.dockerfile import by_owners, command, exported, owner_of, rest_of, sources, unpacked
from manyoyo_mcp.engines.failures import Verdict
from manyoyo_mcp.engines.stepwise import ARGUMENT, Batch, Numbered, Recipe, Stage
from manyoyo_mcp.engines.streams import Streaming, Tail, since
from manyoyo_mcp.errors import (
    EngineFailed,
    InvalidArgument,
    NotFound,
    NotSupported,
    PolicyRefused,
    Reason,
)
from manyoyo_mcp.policy import hostbuilds, hostlengths, labelled
from manyoyo_mcp.policy.bounded import Boundary, BoundedClient
from manyoyo_mcp.policy.fields import OURS
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import in_thread

OTHERWISE = "start_sandbox with another isolation (hardened, privileged) starts one that has its own engine."
_END = bytes(2 * tarfile.BLOCKSIZE)
"""An archive's."""
_MOST = 8 << 30
"""Bytes that a step may add to its image, as `ls` counts them."""
_MOST_LINES, _MOST_LETTERS = 1000, 512 << 10
"""That the builder is given in one build."""
_MOST_MADE = 32 << 20
"""Bytes of these lines in the descriptions of all that it makes."""
_CONTENTS = 4
"""Images whose contents are kept in mind."""
_KEPT = (
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
)
"""What of an image's configuration its containers don't change."""


class HostBuilding(DockerEngine):
    """Builds, where its tier has them."""

    caches = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._contents: dict[str, Contents] = {}  # by the image's id

    @property
    def _bounded(self) -> Boundary:
        assert isinstance(self._client, BoundedClient)
        return self._client.boundary

    async def build(self, spec: BuildSpec, sink: Sink, on_step: Callable[[Step], None]) -> Built:
        within = self._bounded.within
        if not within.builds:
            raise NotSupported(
                "Nothing can be built in this sandbox: it has no engine of its own, and the host's would build beside everybody else's.",
                f"Build in another sandbox: {OTHERWISE}",
                code="BUILD_UNAVAILABLE",
            )
        if spec.daemonless:
            raise NotSupported(
                "The host's engine has no builder but its own.",
                f"Leave builder out, or build in another sandbox: {OTHERWISE}",
                code="BUILDER_UNAVAILABLE",
            )
        hostbuilds.check_tags(within, spec.tags)
        found = instructions(spec.dockerfile_text)
        raws = [each.raw for each in found]
        named_ = hostbuilds.check(within, raws)
        bases = {image: await self._check_base(image, spec) for image in named_}
        described = [await in_thread(self._bounded.letters_of, str(base["Id"])) for base in bases.values()]
        hostlengths.check(raws, spec.build_args, list(bases.values()), max(described, default=0))
        images = {image: str(base["Id"]) for image, base in bases.items()}
        seen = await self._look_through(spec, found)
        begun = time.monotonic()
        work = _Work(spec, seen, BuildLog(spec.dockerfile_text, on_step), Tail(sink))
        timed_out, image = False, ""
        with contextlib.ExitStack() as until_over:
            await in_thread(until_over.enter_context, self._bounded.building(spec.caps))
            try:
                self._check_dockerfile(spec.dockerfile_text)
                recipe = Recipe(spec.dockerfile_text, spec.build_args, hostbuilds.ours(within), images)
                with anyio.move_on_after(spec.timeout_s) as limit:
                    image = await self._stages(work, recipe)
                timed_out = limit.cancelled_caught
            except _Failed:
                pass
            except (EngineFailed, InvalidArgument, NotFound, NotSupported) as error:
                work.log.error = work.log.error or error.message
                await in_thread(work.out, work.log.error.encode() + b"\n")
            if image and not timed_out:
                # A name, by which alone it could be run, it gets once all has been judged that the engine did.
                name = spec.tags[0] if spec.tags else f"{within.images_prefix}build:{spec.build_id}"
                await self._ask(partial(named, image, name))
        work.log.image_id = image or None
        return await self._concluded(spec, work.log, since(begun), timed_out=timed_out, told=work.verdict)

    async def _stages(self, work: "_Work", recipe: Recipe) -> str:
        """Build them; the image of the last. Raises _Failed."""
        for stage in recipe.stages(work.spec.target):
            for batch, run in stage.parts():
                if batch:
                    await self._make(work, stage, batch)
                    if run is not None:
                        stage.values = await self._values(work, stage)
                if run is not None:
                    await self._step(work, stage, *run)
            if stage.bare:
                await self._make(work, stage, [])
        if unused := recipe.unused():
            words = f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n"
            await in_thread(work.out, words.encode())
        return stage.image

    async def _make(self, work: "_Work", stage: Stage, batch: list[Numbered]) -> None:
        """What comes next of a stage, by the builder. Raises _Failed."""
        for part in by_owners(batch):
            command = (await self._described(stage.image))["Config"].get("Cmd") if stage.image else None
            made = stage.batch(part, command)
            for line in made.lines:
                if (copied := sources(line)) is not None:
                    await self._check_copied(*copied)
            if stage.image and any(owner_of(line) for line in made.lines):
                await in_thread(self._bounded.check_users_of, stage.image)
            stage.image = await self._batch(work, made)

    async def _check_copied(self, image: str, paths: list[str]) -> None:
        """Raises PolicyRefused where there are devices, of which dockerd would make others as root of the host, or pipes, at which it would wait."""

        def read(client: GuardedClient) -> Contents:
            response = client._get(client._url("/images/{0}/get", image), stream=True, timeout=None)
            client._raise_for_status(response)
            with contextlib.closing(response):
                return Contents(response.raw.stream(1 << 16, decode_content=True))

        contents = self._contents.get(image)
        if contents is None:
            contents = await self._await(read)
            if len(self._contents) >= _CONTENTS:
                self._contents.clear()
            self._contents[image] = contents
        odd = await in_thread(lambda: next(filter(None, map(contents.odd, paths)), ""))
        if odd:
            raise PolicyRefused(
                f"{odd[:100]!r} is a device or a pipe, which the host's engine does not copy here, as root of the host.",
                "Name the files that are wanted, without patterns and variables; or copy them in a RUN step.",
            )

    async def _batch(self, work: "_Work", batch: Batch) -> str:
        """The image that the builder makes of it. Raises _Failed."""
        spec, call = work.spec, Streaming()
        work.count(batch)
        context = spec.context() if batch.reads_context else iter([_END])
        dockerfile = f".dockerfile.{secrets.token_hex(8)}"  # beside the one that was given, which may be copied too

        def stream(client: GuardedClient) -> str:
            image = ""
            params = self._build_params(spec) | {"dockerfile": dockerfile}
            with call.on(client):
                for event in batch.told(
                    posted(client, _with(context, dockerfile, batch.text, work.seen.ignored), params)
                ):
                    image = str((event.get("aux") or {}).get("ID") or image)
                    work.tell(event)
            return image

        try:
            made = await self._await(stream)
        except (EngineFailed, InvalidArgument) as error:
            error.message = batch.complaint(error.message)
            raise
        except BaseException:
            call.stop()
            raise
        if not made and not work.log.error:
            await in_thread(work.tell, {"error": "The host's engine ended the build without a word of why."})
        if work.log.error:
            raise _Failed
        self._bounded.made(made)
        return made

    async def _values(self, work: "_Work", stage: Stage) -> dict[str, str]:
        """Those of the arguments that a RUN has now; what the image's environment has comes first."""
        config = (await self._described(stage.image))["Config"]
        own = {each.partition("=")[0] for each in config.get("Env") or []}
        known = {name: value for name, value in stage.arguments().items() if name not in own}
        if None not in known.values():
            return {name: value for name, value in known.items() if value is not None}
        image = await self._batch(work, stage.asking())
        labels = (await self._described(image))["Config"].get("Labels") or {}
        await self._ask(lambda client: client.remove_image(image))
        return {name: labels.get(f"{ARGUMENT}{name}", "") if value is None else value for name, value in known.items()}

    async def _step(self, work: "_Work", stage: Stage, number: int, run: Instruction) -> None:
        """Run a RUN, and make an image of what it leaves. Raises _Failed."""
        spec, log = work.spec, work.log
        image = await self._described(stage.image)
        config = image["Config"]
        await in_thread(work.tell, {"stream": f"Step {number}/{stage.recipe.total} : {run.raw}\n"})
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def hear(output: bytes) -> None:
            log.heard(decoder.decode(output))
            work.out(output)

        async def commit(container: str) -> None:
            with anyio.CancelScope(shield=True):  # dockerd goes on with it, whoever hangs up
                stage.image = await self._await(partial(_committed, container, image))
            self._bounded.made(stage.image)

        ended = await self.run(
            RunSpec(
                stage.image,
                command(run, config.get("Shell") or ["/bin/sh", "-c"], stage.values),
                spec.caps,
                entrypoint=[""],  # none, not the image's
                stdin=exported(stage.values) or None,
                network=spec.network,
                name=f"build-{spec.build_id}-{number}",
                labels=spec.labels | {labelled.STEP: spec.build_id},
                pull="never",
                on_success=commit,
                unchecked=bool(config.get("Healthcheck")),
            ),
            hear,
        )
        log.end_step()
        if ended.exit_code == 0:
            stage.bare = stage.bare or not (config.get("Cmd") or config.get("Entrypoint"))
            return
        reason, code = ended.reason, ended.exit_code
        words = f"The command '{rest_of(run.raw)}' returned a non-zero code: {code}"
        if reason is Reason.COMMAND_NOT_FOUND:  # a build's own words for that are in its causes
            reason, code, words = Reason.EXIT_NONZERO, None, ended.explanation
        work.verdict = Verdict(reason, ended.explanation, ended.hint, ended.evidence)
        await in_thread(work.tell, {"error": words, "errorDetail": {"code": code, "message": words}})
        raise _Failed

    async def _described(self, image: str) -> dict[str, Any]:
        """An image, as the engine describes it."""
        raw = await self._ask(lambda client: client.inspect_image(image))
        return dict(raw) | {"Config": raw.get("Config") or {}}

    async def _look_through(self, spec: BuildSpec, found: Sequence[Instruction]) -> Seen:
        """What there is in the context. Raises PolicyRefused for an ADD that was meant to unpack some of it: what the builder is given unpacks nothing
        (`Recipe.line`), for dockerd would do that as root of the host, whatever devices there are."""
        if not any(each.keyword in ("ADD", "COPY") for each in found):
            return Seen()
        seen = await in_thread(lambda: look(spec.context()))
        for each in found:
            if each.keyword == "ADD" and (archive := await in_thread(unpacked, each, seen.archives)) is not None:
                raise PolicyRefused(
                    f"{each.text[:100]} may not stand in a Dockerfile in this isolation: {archive[:100]} would be unpacked by the host's engine, as root of the host.",
                    f"COPY it, and unpack it in a RUN step (tar -xf); or {OTHERWISE}",
                )
        return seen

    async def _check_base(self, image: str, spec: BuildSpec) -> dict[str, Any]:
        """As the engine describes it. It is there before the builder begins, which would fetch it without asking; and it orders nothing done in builds. Raises NotFound, PolicyRefused."""
        try:
            raw = await self._described(image)
            if spec.pull:
                raise labelled.there_already(image)
        except NotFound:
            await self.pull(image, await spec.login(image))
            raw = await self._described(image)
        if raw["Config"].get("OnBuild"):
            raise PolicyRefused(
                f"The image {image} has instructions for builds that begin with it (ONBUILD): they can't be looked at here.",
                f"Begin with another; or {OTHERWISE}",
            )
        return raw

    def _build_params(self, spec: BuildSpec) -> dict[str, Any]:
        return {name: value for name, value in super()._build_params(spec).items() if name not in ("t", "target")}


class _Failed(Exception):
    """A step has failed; the log says how."""


@dataclass(slots=True)
class _Work:
    """A build that is under way; what it says is said in worker threads. `verdict`: why its last step failed."""

    spec: BuildSpec
    seen: Seen
    log: BuildLog
    out: Tail
    verdict: Verdict | None = None
    lines: int = 0
    letters: int = 0
    made: int = 0
    """Bytes of what describes all images so far, by these lines."""

    def count(self, batch: Batch) -> None:
        """Raises PolicyRefused where the builder would be given too much: each line is an image, and in the history of those after it."""
        for line in batch.lines:
            self.lines += 1
            self.letters += hostlengths.written(line)
            self.made += self.letters
        if self.lines > _MOST_LINES or self.letters > _MOST_LETTERS or self.made > _MOST_MADE:
            raise PolicyRefused(
                f"The Dockerfile is more than {_MOST_LINES} lines or {_MOST_LETTERS >> 10} KiB for the host's engine, or too much in the descriptions of all images: what is declared (ARG) is said again after each RUN.",
                f"Join RUN steps (RUN … && …), declare less; or {OTHERWISE}",
            )

    def tell(self, event: dict[str, Any]) -> None:
        self.out(self.log.feed(event).encode())


def _committed(container: str, image: Mapping[str, Any], client: GuardedClient) -> str:
    """A container as an image that is configured as the one it was made of; its id. What a container has and the image not, dockerd takes over, so
    labels of ours are blank in it."""
    found = client._result(client._get(client._url("/containers/{0}/json", container), params={"size": "1"}), True)
    size = int(found.get("SizeRw") or 0)
    if not 0 <= size <= _MOST:  # below where dockerd can't tell
        raise PolicyRefused(
            f"The step leaves more than {format_bytes(_MOST)} of files, which dockerd would write out to the host's disk, holes too."
            if size > 0 else "The step leaves files of which dockerd can't tell the size.",
            f"Write less, or smaller files; or {OTHERWISE}",
        )  # fmt: skip
    labels = found["Config"].get("Labels") or {}
    blank = {name: "" for name in labels if name.startswith(OURS)}
    kept = {name: image["Config"][name] for name in _KEPT if image["Config"].get(name)}
    conf = kept | {"Labels": blank | (image["Config"].get("Labels") or {})}
    return str(client.commit(container, author=image.get("Author") or None, conf=conf)["Id"])


def _with(context: Iterator[bytes], dockerfile: str, text: str, ignored: bytes | None) -> Iterator[bytes]:
    """A context with another Dockerfile, which nothing copies; its last piece is its end. As Docker's own client sends one that it has from its standard input."""
    held = b""
    for piece in context:
        yield held
        held = piece
    ignore = (b".dockerignore" if ignored is None else ignored) + f"\n{dockerfile}\n".encode()
    for name, raw in ((dockerfile, text.encode()), (".dockerignore", ignore)):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(raw), 0o644
        yield info.tobuf(tarfile.PAX_FORMAT) + raw + bytes(-len(raw) % tarfile.BLOCKSIZE)
    yield held
