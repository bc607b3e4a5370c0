"""The host's own dockerd, for a sandbox that has no engine of its own. What reaches it is held to the sandbox's part of it (`policy.bounded`)."""

import contextlib
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from manyoyo_mcp.engines.base import BuildSpec, Built, Sink, Step, Usage
from manyoyo_mcp.engines.building import named
from manyoyo_mcp.engines.buildlog import instructions
from manyoyo_mcp.engines.docker import DockerEngine
from manyoyo_mcp.errors import NotFound, NotSupported, PolicyRefused
from manyoyo_mcp.policy import hostbuilds
from manyoyo_mcp.policy.bounded import Boundary, BoundedClient
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.workers import in_thread

OTHERWISE = "start_sandbox with another isolation (hardened, privileged) starts one that has its own engine."
_STEP = re.compile(rb"^Step \d+/\d+ : (.*)$", re.MULTILINE)
"""What dockerd's classic builder says of a step before it does it."""


class HostEngine(DockerEngine):
    """It runs, enters and removes; it builds where its tier does."""

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
        held = await self._maintain("holds-builds")
        if held.exit_code:
            raise NotSupported(
                f"Nothing can be built in this sandbox: the host's engine takes no cgroup for it, and its steps would be uncapped. {held.output.strip()[:200]}",
                f"It takes dockerd's cgroup driver cgroupfs. {OTHERWISE}",
                code="BUILD_UNAVAILABLE",
            )
        hostbuilds.check_tags(within, spec.tags)
        found = instructions(spec.dockerfile_text)
        for image in hostbuilds.check(within, [each.text for each in found]):
            await self._check_base(image, spec)
        after = [each.line for each in found if each.keyword == "FROM"]
        text = hostbuilds.labelled(within, spec.dockerfile_text, after)
        judge = hostbuilds.Judge(within)

        def follow(output: bytes) -> None:  # as the engine reads it: should we have read it otherwise, it ends there
            for step in _STEP.findall(output):
                judge.check(step.decode(errors="replace").strip())
            sink(output)

        def seen(step: Step) -> None:
            if not _is_ours(step):
                on_step(_moved(step, after))

        with contextlib.ExitStack() as until_over:
            await in_thread(until_over.enter_context, self._bounded.building(spec.caps))
            # Without a name, by which alone it could be run: that it gets once all has been judged that the engine did.
            labelled = replace(
                spec, tags=[], dockerfile_text=text, context=lambda: _with(spec.context(), spec.dockerfile, text)
            )
            built = await super().build(labelled, follow, seen)
            if built.image_id is not None:
                tags = spec.tags or [f"{within.images_prefix}build:{spec.build_id}"]
                built = replace(built, size=await self._name(built.image_id, tags), tags=spec.tags)
        steps = [_moved(each, after) for each in built.steps if not _is_ours(each)]
        failed = built.failed_step
        return replace(built, steps=steps, failed_step=_moved(failed, after) if failed is not None else None)

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
        return {name: value for name, value in super()._build_params(spec).items() if name != "t"}

    async def _name(self, image: str, tags: Sequence[str]) -> int:
        """Give an image that was made here its names; its size in bytes."""
        self._bounded.made(image)
        for tag in tags:
            await self._ask(partial(named, image, tag))
        return int((await self._ask(lambda client: client.inspect_image(image)))["Size"])

    async def _give(self, id_: str, archive: bytes) -> None:
        raise NotSupported(
            "Secrets can't be given to a run in this sandbox: the host's engine would store them.",
            f"Give them to an exec (nested_exec), as variables; or {OTHERWISE}",
            code="SECRETS_UNAVAILABLE",
        )

    async def _image_hint(self, image: str) -> str:
        return (
            "nested_list shows the images that may be run here: those of the host's engine that MANYOYO_HOST_IMAGES names. The user can bring "
            f"others there; or {OTHERWISE}"
        )

    async def usage(self, besides: str = "") -> list[Usage]:
        rows = await self._ask(lambda client: client.containers(all=True, size=True))
        found = [
            Usage("container", row["Names"][0].lstrip("/"), int(row.get("SizeRw") or 0))
            for row in rows
            if row["Id"] != besides
        ]
        return sorted((each for each in found if each.size > 0), key=lambda each: -each.size)

    async def used(self) -> dict[str, int]:
        def ask(client: GuardedClient) -> list[Any]:
            return [client.stats(row["Id"], stream=False, one_shot=True) for row in client.containers()]

        found = await self._ask(ask)
        return {
            "memory_used": sum(int(each.get("memory_stats", {}).get("usage") or 0) for each in found),
            "pids_used": sum(int(each.get("pids_stats", {}).get("current") or 0) for each in found),
            "cpu_us": sum(int(each.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage") or 0) for each in found)
            // 1000,
        }


def _moved(step: Step, after: Sequence[int]) -> Step:
    """A step in its place in the Dockerfile that was given: each FROM was followed by a line of ours."""
    if step.line is None:
        return step
    before = sum(line + index < step.line for index, line in enumerate(after))
    return replace(step, line=step.line - before, number=step.number - before, total=step.total - len(after))


def _is_ours(step: Step) -> bool:
    return step.instruction.startswith(f"LABEL {hostbuilds.OF}=")


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
