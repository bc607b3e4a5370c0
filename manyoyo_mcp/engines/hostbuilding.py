"""What the host's own dockerd builds for a sandbox that has no engine of its own: its classic builder does everything but run commands, which are run as
any container of the sandbox's is (docs/decisions/0015-host-engine-tiers.md)."""

import codecs
import contextlib
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from manyoyo_mcp.engines.base import BuildSpec, Built, RunSpec, Sink, Step
from manyoyo_mcp.engines.building import named
from manyoyo_mcp.engines.buildlog import BuildLog, Instruction, instructions
from manyoyo_mcp.engines.docker import DockerEngine
from manyoyo_mcp.engines.failures import Verdict
from manyoyo_mcp.engines.stepwise import ARGUMENT, Batch, Recipe, Stage, archives, command, unpacked
from manyoyo_mcp.engines.streams import Streaming, Tail, json_lines, since
from manyoyo_mcp.errors import (
    EngineFailed,
    InvalidArgument,
    NotFound,
    NotSupported,
    PolicyRefused,
    Reason,
)
from manyoyo_mcp.policy import hostbuilds, labelled
from manyoyo_mcp.policy.bounded import Boundary, BoundedClient
from manyoyo_mcp.policy.fields import OURS
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.workers import in_thread

OTHERWISE = "start_sandbox with another isolation (hardened, privileged) starts one that has its own engine."
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
        for image in hostbuilds.check(within, [each.raw for each in found]):
            await self._check_base(image, spec)
        await self._check_adds([each for each in found if each.keyword == "ADD"], spec)
        begun = time.monotonic()
        work = _Work(spec, BuildLog(spec.dockerfile_text, on_step), Tail(sink))
        timed_out, image = False, ""
        with contextlib.ExitStack() as until_over:
            await in_thread(until_over.enter_context, self._bounded.building(spec.caps))
            try:
                self._check_dockerfile(spec.dockerfile_text)
                with anyio.move_on_after(spec.timeout_s) as limit:
                    image = await self._stages(
                        work, Recipe(spec.dockerfile_text, spec.build_args, hostbuilds.ours(within))
                    )
                timed_out = limit.cancelled_caught
            except _Failed:
                pass
            except (EngineFailed, InvalidArgument, NotFound, NotSupported) as error:
                work.log.error = work.log.error or error.message
                await in_thread(work.end, work.log.error.encode() + b"\n")
            if image and not timed_out:
                # A name, by which alone it could be run, it gets once all has been judged that the engine did.
                name = spec.tags[0] if spec.tags else f"{within.images_prefix}build:{spec.build_id}"
                await self._ask(partial(named, image, name))
        work.log.image_id = image or None
        return await self._concluded(spec, work.log, since(begun), timed_out=timed_out, told=work.told)

    async def _stages(self, work: "_Work", recipe: Recipe) -> str:
        """Build them; the image of the last. Raises _Failed."""
        for stage in recipe.stages(work.spec.target):
            given: dict[str, str] = {}
            for instructions_, run in stage.parts():
                if instructions_:
                    stage.image = await self._batch(work, stage.batch(instructions_))
                    given = await self._arguments(work, stage) if run is not None else {}
                if run is not None:
                    await self._step(work, stage, *run, given)
            if stage.bare:
                stage.image = await self._batch(work, stage.batch([]))
        if unused := recipe.unused():
            await in_thread(work.end, f"[Warning] One or more build-args {unused} were not consumed\n".encode())
        return stage.image

    async def _batch(self, work: "_Work", batch: Batch) -> str:
        """What the builder makes of it. Raises _Failed."""
        spec, call, made = work.spec, Streaming(), ""
        context = spec.context() if batch.reads_context else iter([bytes(2 * tarfile.BLOCKSIZE)])

        def stream(client: GuardedClient) -> str:
            image = ""
            with call.on(client):
                response = client._post(
                    client._url("/build"),
                    data=_with(context, spec.dockerfile, batch.text),
                    params=self._build_params(spec),
                    headers={"Content-Type": "application/x-tar"},
                    stream=True,
                    timeout=None,
                )
                client._raise_for_status(response)
                for event in batch.told(json_lines(response)):
                    image = str((event.get("aux") or {}).get("ID") or image)
                    work.tell(event)
            return image

        try:
            made = await self._await(stream)
        except BaseException:
            call.stop()
            raise
        if work.log.error or not made:
            raise _Failed
        self._bounded.made(made)
        return made

    async def _arguments(self, work: "_Work", stage: Stage) -> dict[str, str]:
        """The values of the arguments that RUN has; what the image's environment has comes first."""
        config = await self._config(stage.image)
        own = {each.partition("=")[0] for each in config.get("Env") or []}
        known = {name: value for name, value in stage.arguments().items() if name not in own}
        asked = [name for name, value in known.items() if value is None]
        if not asked:
            return {name: value for name, value in known.items() if value is not None}
        image = await self._batch(work, stage.asking(asked))  # which is removed with the sandbox, by its label
        labels = (await self._config(image)).get("Labels") or {}
        return {name: labels.get(f"{ARGUMENT}{name}", "") if value is None else value for name, value in known.items()}

    async def _step(self, work: "_Work", stage: Stage, number: int, run: Instruction, given: dict[str, str]) -> None:
        """Run a RUN, and make an image of what it leaves. Raises _Failed."""
        spec, log = work.spec, work.log
        config = await self._config(stage.image)
        await in_thread(work.tell, {"stream": f"Step {number}/{stage.recipe.total} : {run.raw}\n"})
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def hear(output: bytes) -> None:
            log.heard(decoder.decode(output))
            work.end(output)

        async def keep(container: str) -> None:
            stage.image = await self._await(partial(_committed, container, config))  # which takes long, of much
            self._bounded.made(stage.image)

        ended = await self.run(
            RunSpec(
                stage.image,
                command(run, config.get("Shell") or ["/bin/sh", "-c"], given),
                spec.caps,
                entrypoint=[""],  # none, not the image's
                network=spec.network,
                name=f"build-{spec.build_id}-{number}",
                labels=spec.labels | {labelled.STEP: spec.build_id},
                pull="never",
                keep=keep,
            ),
            hear,
        )
        log.end_step()
        if ended.exit_code == 0:
            stage.bare = stage.bare or not (config.get("Cmd") or config.get("Entrypoint"))
            return
        words = ended.explanation
        if ended.reason is not Reason.COMMAND_NOT_FOUND:
            words = f"The command '{run.text.partition(' ')[2]}' returned a non-zero code: {ended.exit_code}"
            if ended.reason is not Reason.EXIT_NONZERO:
                work.told = Verdict(ended.reason, ended.explanation, ended.hint, ended.evidence)
        await in_thread(work.tell, {"error": words, "errorDetail": {"code": ended.exit_code, "message": words}})
        raise _Failed

    async def _config(self, image: str) -> dict[str, Any]:
        return dict((await self._ask(lambda client: client.inspect_image(image))).get("Config") or {})

    async def _check_adds(self, adds: Sequence[Instruction], spec: BuildSpec) -> None:
        """Raises PolicyRefused for one that unpacks: dockerd would, as root of the host, whatever devices the archive has."""
        found = await in_thread(lambda: archives(spec.context())) if adds else set()
        for each in adds:
            if (archive := unpacked(each, found)) is not None:
                raise PolicyRefused(
                    f"{each.text[:100]} may not stand in a Dockerfile in this isolation: {archive[:100]} would be unpacked by the host's engine, as root of the host.",
                    f"COPY it, and unpack it in a RUN step (tar -xf); or {OTHERWISE}",
                )

    async def _check_base(self, image: str, spec: BuildSpec) -> None:
        """It is there before the builder begins, which would fetch it without asking; and it orders nothing done in builds. Raises NotFound, PolicyRefused."""
        try:
            raw = await self._ask(lambda client: client.inspect_image(image))
        except NotFound:
            await self.pull(image, await spec.login(image))
            raw = await self._ask(lambda client: client.inspect_image(image))
        if (raw.get("Config") or {}).get("OnBuild"):
            raise PolicyRefused(
                f"The image {image} has instructions for builds that begin with it (ONBUILD): they can't be looked at here.",
                f"Begin with another; or {OTHERWISE}",
            )

    def _build_params(self, spec: BuildSpec) -> dict[str, Any]:
        return {name: value for name, value in super()._build_params(spec).items() if name not in ("t", "target")}


class _Failed(Exception):
    """A step has failed; the log says how."""


@dataclass(slots=True)
class _Work:
    """A build that is under way; what it says is said in worker threads. `told`: why its last step failed."""

    spec: BuildSpec
    log: BuildLog
    end: Tail
    told: Verdict | None = None

    def tell(self, event: dict[str, Any]) -> None:
        self.end(self.log.feed(event).encode())


def _committed(container: str, config: Mapping[str, Any], client: GuardedClient) -> str:
    """A container as an image that is configured as the one it was made of; its id. What a container has and the image not, dockerd takes over, so
    labels of ours are blank in it."""
    labels = client.inspect_container(container)["Config"].get("Labels") or {}
    blank = {name: "" for name in labels if name.startswith(OURS)}
    kept = {name: config[name] for name in _KEPT if config.get(name)}
    conf = kept | {"Labels": blank | (config.get("Labels") or {})}
    return str(client.commit(container, conf=conf)["Id"])


def _with(context: Iterator[bytes], name: str, text: str) -> Iterator[bytes]:
    """A context whose Dockerfile is another; what comes last is what counts."""
    held = b""
    for piece in context:
        yield held
        held = piece
    info = tarfile.TarInfo(name)
    raw = text.encode()
    info.size, info.mode = len(raw), 0o644
    yield info.tobuf(tarfile.PAX_FORMAT) + raw + bytes(-len(raw) % tarfile.BLOCKSIZE)
    yield held  # the archive's end
