"""Images built over Docker's API."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import anyio
import docker

from manyoyo_mcp.engines.base import (
    BuildSpec,
    Built,
    Sink,
    Step,
)
from manyoyo_mcp.engines.buildlog import BuildLog, images
from manyoyo_mcp.engines.complaints import unechoed
from manyoyo_mcp.engines.diagnosis import Cause, diagnose
from manyoyo_mcp.engines.failures import UNTOLD, Verdict, suspicious, verdict
from manyoyo_mcp.engines.giving import Giving, for_build, placeholders
from manyoyo_mcp.engines.pulling import Pulling
from manyoyo_mcp.engines.streams import Streaming, Tail, json_lines, since
from manyoyo_mcp.errors import (
    DiskFull,
    EngineFailed,
    InvalidArgument,
    ManyoyoError,
    NotFound,
    NotSupported,
    Reason,
)
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.values import format_bytes

_UNREACHED = ("PROXY_FAILED", "NAME_RESOLUTION_FAILED", "CONNECTION_FAILED", "IMAGE_NOT_FOUND", "PIP_PACKAGE_NOT_FOUND")
"""Causes that may be a refusal of the network policy's: pip, for one, says that there is no such package."""
_AGAIN = b"manyoyo: the step failed and said nothing; should that have been lost, it is run once more\n"


class Building(Pulling, Giving):
    """What an engine builds."""

    build_secrets: ClassVar[bool] = False
    """Whether its builder knows `RUN --mount=type=secret`."""

    caches: ClassVar[bool] = True
    """Whether a build goes on where an earlier one came to."""

    build_networks: ClassVar[dict[str, str]] = {"default": "default", "none": "none"}
    """A build's network, in the engine's words."""

    async def build(self, spec: BuildSpec, sink: Sink, on_step: Callable[[Step], None]) -> Built:
        begun = time.monotonic()
        end = Tail(sink)
        log = BuildLog(spec.dockerfile_text, on_step)
        call = Streaming()

        def stream(client: GuardedClient) -> None:
            with call.on(client):
                for event in posted(client, self._context(spec), self._build_params(spec)):
                    end(log.feed(event).encode())

        timed_out = False
        over: Callable[[], None] | None = None
        try:
            self._check_dockerfile(spec.dockerfile_text)
            spec = await self._with_bases(spec)
            if spec.secrets:
                await self._give(spec.build_id, for_build(await spec.values()))
                over = self._keep(spec.build_id)
            with anyio.move_on_after(spec.timeout_s) as limit:
                try:
                    await self._await(stream)
                except DiskFull:  # before its first step: with the reserve it gets as far as it can
                    await self._maintain("settle-disk")
                    await self._await(stream)
                if self._unheard(log):
                    end(_AGAIN)
                    log = BuildLog(spec.dockerfile_text, on_step)
                    await self._await(stream)
            if limit.cancelled_caught:
                timed_out = True
                await self._stop_build(spec, call)
        except (EngineFailed, InvalidArgument, NotFound, NotSupported) as error:
            log.error = log.error or error.message  # the engine refused the Dockerfile before its first step
            end(log.error.encode() + b"\n")
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._stop_build(spec, call)
            raise
        finally:
            if over is not None:
                over()
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._take_away(spec.build_id)
        return await self._concluded(spec, log, since(begun), timed_out=timed_out)

    async def _concluded(
        self, spec: BuildSpec, log: BuildLog, seconds: float, *, timed_out: bool, told: Verdict | None = None
    ) -> Built:
        """How a build ended, whose log is `log`. `told`: why its last step failed, where that is known."""
        log.end_step()
        if timed_out:
            return Built(Reason.TIMEOUT, seconds, log.steps, failed_step=log.steps[-1] if log.steps else None,
                         error=f"Stopped after timeout_s={spec.timeout_s:g}.",
                         mend=f"Give it a larger timeout_s{'; finished steps are cached' if self.caches else ''}.")  # fmt: skip
        if log.error:
            return await self._build_failed(spec, log, seconds, told)
        image, size = log.image_id or "", None
        with contextlib.suppress(ManyoyoError):  # podman can't show an image that it built with EXPOSE of no port
            size = (await self._ask(lambda client: client.inspect_image(image)))["Size"] if image else None
        for name in spec.tags[1:]:
            await self._ask(partial(named, image, name))
        return Built(Reason.OK, seconds, log.steps, image_id=log.image_id, size=size, tags=spec.tags)

    async def _with_bases(self, spec: BuildSpec) -> BuildSpec:
        """What has a login is pulled before: the builder is told none, for podman's would write it to the sandbox's disk."""
        names = images(spec.dockerfile_text, spec.build_args, spec.target)
        logins = {image: await spec.login(image) for image in names}
        if not any(logins.values()):
            return spec
        for image, login in logins.items():
            if login and (spec.pull or not await self._has(image)):
                await self.pull(image, login)
            elif spec.pull and not image.startswith("localhost/"):
                with contextlib.suppress(NotFound):  # the builder says so, should it need it
                    await self.pull(image, login)
        return replace(spec, pull=False)

    async def _has(self, image: str) -> bool:
        try:
            await self._ask(lambda client: client.inspect_image(image))
        except NotFound:
            return False
        return True

    def _build_params(self, spec: BuildSpec) -> dict[str, Any]:
        params: dict[str, Any] = {
            "dockerfile": spec.dockerfile,
            "t": spec.tags[0] if spec.tags else f"localhost/manyoyo/build:{spec.build_id}",
            "memory": spec.caps.memory,
            "memswap": spec.caps.memory,
            "cpuperiod": 100_000,
            "cpuquota": round(spec.caps.cpus * 100_000),
            "cgroupparent": f"/manyoyo-builds/{spec.build_id}",
            "rm": "1",
            "forcerm": "1",
            "buildargs": json.dumps(spec.build_args),
            "networkmode": self.build_networks[spec.network],
        }
        if spec.secrets:
            params["secrets"] = placeholders(spec.build_id, spec.secrets)[0]
        if spec.no_cache:
            params["nocache"] = "1"
        if spec.pull:
            params["pull"] = "1"
        if spec.target:
            params["target"] = spec.target
        if spec.platform:
            params["platform"] = spec.platform
        return params

    def _context(self, spec: BuildSpec) -> Iterator[bytes]:
        if spec.secrets:
            yield placeholders(spec.build_id, spec.secrets)[1]
        yield from spec.context()

    def _check_dockerfile(self, text: str) -> None:
        """Raise InvalidArgument for what the engine's builder would take for something else. Engines say what."""

    def _unheard(self, log: BuildLog) -> bool:
        """Whether a step failed of which the engine may have lost what it said, and that is soon done again."""
        return False

    async def _stop_build(self, spec: BuildSpec, call: Streaming) -> None:
        """End the step that runs and the build with it. Engines say what more it takes than hanging up."""
        call.stop()

    async def _build_failed(self, spec: BuildSpec, log: BuildLog, seconds: float, told: Verdict | None = None) -> Built:
        step = log.failed_step
        code = log.exit_code
        output = sanitise(log.output)
        instruction = step.instruction if step else ""
        output_end = (unechoed(output, instruction) if code is not None else log.error).encode(errors="replace")
        of_all = told is None
        if told is None:
            record = ""
            if step is not None and (code in UNTOLD or suspicious(output_end)):
                record = await self._record(f"/manyoyo-builds/{spec.build_id}")
            told = verdict(
                code or 1,
                oom_flag=False,
                record=record,
                cgroup=f"/manyoyo-builds/{spec.build_id}",
                output_end=output_end,
                cap=format_bytes(spec.caps.memory),
            )
        reason = told.reason if told.reason is not Reason.EXIT_NONZERO else Reason.BUILD_FAILED
        hint = told.hint
        if reason is Reason.PIDS_LIMIT and of_all:
            hint = "Run fewer in parallel (make -j, workers): the cap is that of all the sandbox's builds together."
        cause: Cause | None = Cause(reason, told.explanation, hint)
        if reason is Reason.BUILD_FAILED:
            cause = diagnose(output, sanitise(log.error), instruction, code, network=spec.network)
            unreached = cause is None or cause.code in _UNREACHED
            if unreached and spec.network != "none" and (refused := await self._refused(seconds, output_end)):
                what, _, mend = refused.partition(". ")
                cause = Cause("NETWORK_REFUSED", f"{what}.", mend)
        return Built(reason, seconds, log.steps, failed_step=step, exit_code=code, error=sanitise(log.error),
                     cause_code=cause.code if cause else "", cause=cause.cause if cause else "",
                     mend=cause.mend if cause else "", evidence=told.evidence)  # fmt: skip


def posted(client: GuardedClient, context: Iterator[bytes], params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What an engine's builder says, as it says it."""
    response = client._post(
        client._url("/build"),
        data=context,
        params=params,
        headers={"Content-Type": "application/x-tar"},
        stream=True,
        timeout=None,
    )
    client._raise_for_status(response)
    yield from json_lines(response)


def named(image: str, name: str, client: GuardedClient) -> None:
    """Give an image a name."""
    repository, tag = docker.utils.parse_repository_tag(name)
    client.tag(image, repository, tag or "latest")
