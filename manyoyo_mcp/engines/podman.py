"""Podman's API service as a nested engine (crun underneath), and where it differs from Docker's API as dockerd serves it."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import anyio

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.engines.api import DockerApiEngine
from manyoyo_mcp.engines.base import BuildSpec, Built, ExecSpec
from manyoyo_mcp.engines.buildlog import BuildLog
from manyoyo_mcp.engines.failures import Verdict
from manyoyo_mcp.engines.running import ATTACH_OUTPUT
from manyoyo_mcp.engines.streams import Streaming
from manyoyo_mcp.errors import EngineFailed, EngineUnreachable, ManyoyoError, NotSupported
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.workers import in_thread

_DIRECT = {"Cmd", "Env", "WorkingDir", "User", "AttachStdin", "AttachStdout", "AttachStderr"}
"""What an exec may ask for that podman itself is not asked for."""
_NO_EXECS = 2
"""Exit code of `ctl serve-execs` where a sandbox's tier has no such service."""
_SOON = 20.0
"""Seconds that a step may have taken which is run once more."""
_LEFT = re.compile(r'deleting build container "([0-9a-f]{64})"')
"""What a build says that could not remove its working container."""


class PodmanEngine(DockerApiEngine):
    """Podman 5: no daemon of its own beside the service, the fastest way to a nested run."""

    name = "podman"
    build_secrets = True
    build_networks = {"default": "NetworkDefault", "none": "NetworkDisabled"}  # noqa: RUF012 - a ClassVar of the base

    def _attach(self, client: GuardedClient, container: str, *, stdin: bool) -> Attached:
        # Where a command ends without reading all of its stdin podman hangs up, whatever output is still to come: what goes
        # in has a connection of its own.
        feeding = super()._attach(client, container, stdin=True) if stdin else None
        try:
            return Attached(client.attach_socket(container, ATTACH_OUTPUT), stdin=feeding)
        except BaseException:
            if feeding is not None:
                feeding.close()
            raise

    async def remove(self, container: str) -> None:
        # A forced removal waits the whole stop time for a process that ignores SIGTERM, unless it is dead before.
        with contextlib.suppress(ManyoyoError):
            await self._ask(lambda client: client.kill(container, "SIGKILL"))
        await super().remove(container)

    async def _enter(self, spec: ExecSpec, body: dict[str, Any]) -> Attached | None:
        # Its own way to an exec takes longer than crun does, and drops output where stdin is not read. It says what is wrong.
        execs = self._execs
        if execs is None or body.keys() - _DIRECT:
            return None

        def begin(client: GuardedClient) -> Attached:
            answer = client._post_json(client._url("/containers/{0}/exec", container), data=body, stream=True)
            client._raise_for_status(answer)
            return Attached(client._get_raw_response_socket(answer), told_end=True)

        try:
            raw = await self._inspect(spec.container)
            if raw["State"]["Status"] != "running":
                return None
            container = raw["Id"]
            try:
                return await in_thread(self._translate, begin, execs)
            except EngineUnreachable as error:
                if not isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
                    raise
            if (await self._maintain("serve-execs")).exit_code == _NO_EXECS:
                self._execs = None
                execs.close()
                return None
            return await in_thread(self._translate, begin, execs)
        except EngineUnreachable as error:
            if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
                return None
            raise  # it may have begun
        except ManyoyoError:
            return None

    async def _may_be_told(self, container: str, body: dict[str, Any], variables: Sequence[str]) -> None:
        # It keeps an exec's environment in its database, on the disk. Who is not running has podman's own word for that; but without the secrets, for
        # it may run by then.
        if (await self._inspect(container))["State"]["Status"] == "running":
            raise NotSupported(
                "This exec would have its secrets on the sandbox's disk: podman has to be asked for it.",
                'Run it anew with the secrets (nested_run), or in a sandbox with start_sandbox engine="docker".',
                code="EXEC_SECRETS_UNAVAILABLE",
            )
        body["Env"] = [each for each in body["Env"] if each not in variables]

    async def logs(self, container: str, tail: int | None, since: float | None) -> bytes:
        # It reads the file while it is written to, and takes the beginning of a line for a broken one.
        for _ in range(9):
            try:
                return await super().logs(container, tail, since)
            except EngineFailed as error:
                if "not a valid container log line" not in error.message:
                    raise
                await anyio.sleep(0.02)
        return await super().logs(container, tail, since)

    async def _cleaned_up(self, container: str) -> None:
        # "stopped" until a process of its own has taken its file system down; what is read meanwhile comes out empty.
        with anyio.move_on_after(10):
            while (await self._inspect(container))["State"]["Status"] == "stopped":  # noqa: ASYNC110 - nothing tells
                await anyio.sleep(0.005)

    async def _build_failed(self, spec: BuildSpec, log: BuildLog, seconds: float, told: Verdict | None = None) -> Built:
        left = _LEFT.search(log.error)
        if left is not None:  # for want of room: and it holds what fills the disk
            await self._maintain("settle-disk")
            await self._maintain("drop-build", left[1])
            await self._maintain("settle-disk")
        return await super()._build_failed(spec, log, seconds, told)

    def _unheard(self, log: BuildLog) -> bool:
        # Its builder loses all that a RUN step says about once in a thousand steps, on a busy machine.
        log.end_step()
        silent = log.exit_code is not None and not log.output.strip() and log.failed_step is not None
        return silent and (log.steps[-1].seconds or 0) < _SOON

    async def _stop_build(self, spec: BuildSpec, call: Streaming) -> None:
        # A closed connection does not end a RUN step here, and the step after it would begin: its cgroup is
        # killed until the build has noticed and answered.
        with anyio.move_on_after(4):
            while not call.over:
                await self._maintain("kill-build", spec.build_id)
                await anyio.sleep(0.05)
        call.stop()
