"""Commands in containers that run already, over Docker's API."""

import contextlib
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.engines.asking import Asking
from manyoyo_mcp.engines.base import Ended, ExecSpec, Sink
from manyoyo_mcp.engines.failures import (
    MAKE_ROOM,
    NO_SPACE,
    REFUSED,
    SIGKILLED,
    ended_well,
    from_answer,
    says_killed,
    start_hint,
    suspicious,
    verdict,
)
from manyoyo_mcp.engines.giving import variable
from manyoyo_mcp.engines.streams import Tail, since
from manyoyo_mcp.errors import DiskFull, ManyoyoError, Reason
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import wait_in_thread


@dataclass(frozen=True, slots=True)
class _Entered:
    """An exec that runs: its stream, and the engine's id of it where the engine runs it."""

    attached: Attached
    exec_id: str = ""

    def code(self, client: GuardedClient) -> int | None:
        """Its exit code, once it has one."""
        code: int | None = client.exec_inspect(self.exec_id)["ExitCode"] if self.exec_id else self.attached.exit_code
        return code


_EXEC_REFUSED = re.compile(rb"\A(?:OCI runtime exec failed: |Error: (?:nested|crun|runc): )")
"""How an engine begins what it writes into an exec's stream when the command never began."""
_NOBODY = re.compile(rb"unable to find (?:user|group) [^\n]*: no matching entries in (?:passwd|group) file\r?\n")
"""All that dockerd writes into the stream where nobody is the user that was named."""


class Entering(Asking):
    """What is run in a container that others made."""

    async def exec(self, spec: ExecSpec, sink: Sink) -> Ended:
        begun = time.monotonic()
        marker = secrets.token_hex(8)
        if spec.secrets:  # else a container that is not there costs the user's programs
            await self._inspect(spec.container)
        values = await spec.values()
        variables = [variable(each, values) for each in spec.secrets]
        body = {
            "Cmd": spec.command,
            "Env": [
                *(f"{key}={value}" for key, value in spec.env.items()),
                *variables,
                f"MANYOYO_EXEC={marker}",
            ],
            "AttachStdin": spec.stdin is not None,
            "AttachStdout": True,
            "AttachStderr": True,
        }
        for key, value in (("WorkingDir", spec.workdir), ("User", spec.user)):
            if value is not None:
                body[key] = value
        directly = await self._enter(spec, body)
        if directly is not None:
            ended = await self._follow(_Entered(directly), spec, sink, marker, begun)
            if ended is not None:
                return ended

        if spec.secrets:
            await self._may_be_told(spec.container, body, variables)

        def begin(client: GuardedClient) -> _Entered:
            answer = client._post_json(client._url("/containers/{0}/exec", spec.container), data=body)
            exec_id = str(client._result(answer, True)["Id"])
            return _Entered(Attached(client.exec_start(exec_id, socket=True)), exec_id)

        ended = await self._follow(await self._ask(begin), spec, sink, marker, begun)
        return ended or await self._exec_ended(spec, None, since(begun), b"")

    async def _enter(self, spec: ExecSpec, body: dict[str, Any]) -> Attached | None:
        """Begin an exec without the engine's exec, where that goes. Engines say whether it does."""

    async def _may_be_told(self, container: str, body: dict[str, Any], variables: Sequence[str]) -> None:
        """Raise NotSupported where the engine would store an exec's secrets, which are variables in `body`. Engines say whether they do."""

    async def _follow(self, entered: "_Entered", spec: ExecSpec, sink: Sink, marker: str, begun: float) -> Ended | None:
        """An exec to its end; None where it has no exit code, as where it never began."""
        end = Tail(sink)
        attached = entered.attached
        try:
            with anyio.move_on_after(spec.timeout_s) as limit:
                code = await wait_in_thread(self._converse, attached, spec.stdin, end, entered.code)
            if limit.cancelled_caught:
                await self.kill_exec(entered.exec_id, marker)
                code = await self._ask(entered.code) if entered.exec_id else SIGKILLED
            seconds = since(begun)
            if limit.cancelled_caught:
                return Ended(code, Reason.TIMEOUT, seconds, f"Killed after timeout_s={spec.timeout_s:g}.",
                             "Give it a larger timeout_s.", container=spec.container)  # fmt: skip
            return None if code is None else await self._exec_ended(spec, code, seconds, end.tail)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self.kill_exec(entered.exec_id, marker)
            raise
        finally:
            attached.close()

    async def kill_exec(self, exec_id: str, marker: str) -> None:
        """SIGKILL what an exec began: what has its marker, and what descends from its own process."""
        own: list[str] = []
        with contextlib.suppress(ManyoyoError), anyio.move_on_after(1):  # a slow engine is no reason not to kill
            state = await self._await(lambda client: client.exec_inspect(exec_id)) if exec_id else {}
            if state.get("Running") and state.get("Pid"):
                own = [str(int(state["Pid"])), str(state["ContainerID"])]
        await self._maintain("kill-exec", marker, *own)

    async def _forget_record(self, container: str) -> None:
        """What the kernel wrote of a container up to now is no evidence about its next start."""
        cgroup = (await self._inspect(container))["Id"]
        self._seen_records[cgroup] = await self._record(cgroup)

    async def _exec_ended(self, spec: ExecSpec, code: int | None, seconds: float, output_end: bytes) -> Ended:
        code = code if code is not None else -1
        if code == 0 and not says_killed(output_end):
            return Ended(0, Reason.OK, seconds, container=spec.container)
        if code == 126 and spec.user is not None and _NOBODY.fullmatch(output_end):
            # Its words are not quoted: the stream may be the command's.
            raise from_answer(self.name, 400, f"unable to find user {spec.user!r}")
        if code in (126, 127) and _EXEC_REFUSED.match(output_end):
            if NO_SPACE.search(output_end.decode(errors="replace")):
                raise DiskFull("The sandbox's disk is full: its engine has no room for an exec.", MAKE_ROOM)
            # Only the caller's own word is quoted: the stream may be the command's, and the output is shown as such.
            refused = REFUSED.search(output_end.decode(errors="replace")) is not None
            return Ended(126 if refused else 127, Reason.COMMAND_NOT_FOUND, seconds,
                         f"The command {spec.command[0]!r} could not be started.", start_hint(spec.command, refused),
                         container=spec.container)  # fmt: skip  # the codes are a shell's; dockerd has 126 for both
        raw = await self._inspect(spec.container)
        record = ""
        if code in (0, SIGKILLED) or suspicious(output_end):
            record = await self._new_record(raw["Id"])
            self._seen_records[raw["Id"]] = self._seen_records.get(raw["Id"], "") + record
        cap = format_bytes(raw["HostConfig"].get("Memory") or 0)
        told = verdict(
            code, oom_flag=False, record=record, cgroup=raw["Id"], output_end=output_end, cap=cap, stays=True
        )
        if code == 0:
            return ended_well(told, cap, seconds, container=spec.container)
        told = await self._with_refusals(told, seconds, output_end)
        return Ended(code, told.reason, seconds, told.explanation, told.hint, told.evidence, container=spec.container)
