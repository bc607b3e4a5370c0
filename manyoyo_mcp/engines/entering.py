"""Commands in containers that run already, over Docker's API."""

import contextlib
import re
import secrets
import time

import anyio

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.engines.asking import Asking
from manyoyo_mcp.engines.base import Ended, ExecSpec, Sink
from manyoyo_mcp.engines.failures import MAKE_ROOM, NO_SPACE, REFUSED, SIGKILLED, start_hint, suspicious, verdict
from manyoyo_mcp.engines.streams import Tail, since
from manyoyo_mcp.errors import DiskFull, ManyoyoError, Reason
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.values import format_bytes

_EXEC_REFUSED = re.compile(rb"\A(?:OCI runtime exec failed: |Error: (?:nested|crun|runc): )")
"""How an engine begins what it writes into an exec's stream when the command never began."""


class Entering(Asking):
    """What is run in a container that others made."""

    async def exec(self, spec: ExecSpec, sink: Sink) -> Ended:
        begun = time.monotonic()
        end = Tail(sink)
        marker = secrets.token_hex(8)
        body = {
            "Cmd": spec.command,
            "Env": [f"{key}={value}" for key, value in spec.env.items()] + [f"MANYOYO_EXEC={marker}"],
            "AttachStdin": spec.stdin is not None,
            "AttachStdout": True,
            "AttachStderr": True,
        }
        for key, value in (("WorkingDir", spec.workdir), ("User", spec.user)):
            if value is not None:
                body[key] = value

        def begin(client: GuardedClient) -> tuple[str, Attached]:
            answer = client._post_json(client._url("/containers/{0}/exec", spec.container), data=body)
            exec_id = str(client._result(answer, True)["Id"])
            return exec_id, Attached(client.exec_start(exec_id, socket=True))

        exec_id, attached = await self._ask(begin)

        def exit_code(client: GuardedClient) -> int | None:
            code: int | None = client.exec_inspect(exec_id)["ExitCode"]
            return code

        try:
            with anyio.move_on_after(spec.timeout_s) as limit:
                code = await self._converse(attached, spec.stdin, end, exit_code)
            if limit.cancelled_caught:
                await self.kill_exec(exec_id, marker)
                code = await self._ask(exit_code)
            seconds = since(begun)
            if limit.cancelled_caught:
                return Ended(code, Reason.TIMEOUT, seconds, f"Killed after timeout_s={spec.timeout_s:g}.",
                             "Give it a larger timeout_s.", container=spec.container)  # fmt: skip
            return await self._exec_ended(spec, code, seconds, end.tail)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self.kill_exec(exec_id, marker)
            raise
        finally:
            attached.close()

    async def kill_exec(self, exec_id: str, marker: str) -> None:
        """SIGKILL what an exec began: what has its marker, and what descends from its own process."""
        own: list[str] = []
        with contextlib.suppress(ManyoyoError), anyio.move_on_after(1):  # a slow engine is no reason not to kill
            state = await self._await(lambda client: client.exec_inspect(exec_id))
            if state.get("Running") and state.get("Pid"):
                own = [str(int(state["Pid"])), str(state["ContainerID"])]
        await self._maintain("kill-exec", marker, *own)

    async def _forget_record(self, container: str) -> None:
        """What the kernel wrote of a container up to now is no evidence about its next start."""
        cgroup = (await self._inspect(container))["Id"]
        self._seen_records[cgroup] = await self._record(cgroup)

    async def _exec_ended(self, spec: ExecSpec, code: int | None, seconds: float, output_end: bytes) -> Ended:
        code = code if code is not None else -1
        if code == 0:
            return Ended(0, Reason.OK, seconds, container=spec.container)
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
        if code == SIGKILLED or suspicious(output_end):
            record = await self._new_record(raw["Id"])
            self._seen_records[raw["Id"]] = self._seen_records.get(raw["Id"], "") + record
        cap = format_bytes(raw["HostConfig"].get("Memory") or 0)
        told = verdict(
            code, oom_flag=False, record=record, cgroup=raw["Id"], output_end=output_end, cap=cap, stays=True
        )
        return Ended(code, told.reason, seconds, told.explanation, told.hint, told.evidence, container=spec.container)
