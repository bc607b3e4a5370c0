"""Containers made, run and removed over Docker's API."""

import contextlib
import io
import posixpath
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.from_thread

from manyoyo_mcp.archive import tar
from manyoyo_mcp.attached import Attached
from manyoyo_mcp.engines.base import (
    Ended,
    OutputFile,
    RunSpec,
    Sink,
)
from manyoyo_mcp.engines.failures import (
    REFUSED,
    UNTOLD,
    Verdict,
    ended_well,
    says_killed,
    start_hint,
    suspicious,
    verdict,
)
from manyoyo_mcp.engines.giving import LABEL, Giving, for_run
from manyoyo_mcp.engines.pulling import Pulling
from manyoyo_mcp.engines.streams import Tail, since
from manyoyo_mcp.errors import (
    DiskFull,
    EngineFailed,
    EngineUnreachable,
    InvalidArgument,
    ManyoyoError,
    NotFound,
    Reason,
)
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.values import Caps, format_bytes
from manyoyo_mcp.workers import in_thread, wait_in_thread

T = TypeVar("T")

ATTACH_OUTPUT = {"stream": 1, "stdout": 1, "stderr": 1}
OVER = ("exited", "stopped", "dead")
"""Docker's words for a container that ran and runs no longer; "stopped" is podman's, until it has cleaned up."""
_RESULT_FIRST = 0.005
"""Seconds before a run's container is removed: its result is with the caller by then, who else would wait longer for it."""
_SMALLER = "have the command pack, split or shorten it"
MAX_OUTPUT_FILE = 4 << 20
"""Largest file that `outputs` brings out of a run, in bytes; larger ones are named, not truncated."""
_NO_COMMAND = re.compile(
    r"executable file.*not found|no such file or directory: OCI runtime attempted to invoke|"
    r"(?:permission denied|operation not permitted): OCI|"
    r"exec: \"[^\"]*\": (?:stat [^:]*: )?(?:no such file|permission denied)|exec format error",
    re.IGNORECASE,
)


class Running(Pulling, Giving):
    """Containers that are made for a command."""

    async def start(self, spec: RunSpec) -> str:
        made = _Made()
        try:
            await self._begin(spec, made, lambda: None, attach=False)
        except BaseException:
            await made.give_up()
            self._remove_later(made.container)
            raise
        return made.container

    async def run(self, spec: RunSpec, sink: Sink) -> Ended:
        begun = time.monotonic()
        end = Tail(sink)
        made = _Made()
        limit = anyio.CancelScope()

        def follow() -> int | None:
            assert made.attached is not None
            if spec.timeout_s is not None:
                anyio.from_thread.run_sync(_expire, limit, spec.timeout_s)
            return self._converse(made.attached, spec.stdin, end, partial(_exit_code, made.container))

        try:
            with limit:
                try:
                    answered = await self._begin(spec, made, follow, attach=True)
                except NotFound as error:
                    if error.instance_code != "COMMAND_NOT_FOUND":
                        raise
                    return Ended(126 if error.details["refused"] else 127, Reason.COMMAND_NOT_FOUND, since(begun), error.message,
                                 error.hint, container=made.container)  # fmt: skip  # the codes are a shell's
                code = await self._code(made.container, answered)
            container = made.container
            if limit.cancelled_caught:
                await self._kill(container)
                code = await self._code(container, await self._await(partial(_exit_code, container)))
            made.ended = True
            seconds = since(begun)
            if limit.cancelled_caught:
                return Ended(code, Reason.TIMEOUT, seconds, f"Killed after timeout_s={spec.timeout_s:g}.",
                             "Give it a larger timeout_s, or find what it waits for.", container=container)  # fmt: skip
            outputs = await self._outputs(container, spec)
            if code == 0 and spec.on_success is not None:
                await spec.on_success(container)
            if code == 0 and not says_killed(end.tail):
                return Ended(0, Reason.OK, seconds, outputs=outputs, container=container)
            told = await self._explain(container, code, end.tail, spec.caps)
            if code == 0:
                return ended_well(told, format_bytes(spec.caps.memory), seconds, outputs, container)
            told = await self._with_refusals(told, seconds, end.tail)
            return Ended(code, told.reason, seconds, told.explanation, told.hint, told.evidence, outputs, container)
        except BaseException:
            await made.give_up()
            if made.container:
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    await self._kill(made.container)
            raise
        finally:
            if made.attached is not None:
                made.attached.close()
            self._remove_later(made.container, ended=made.ended)

    async def _begin(self, spec: RunSpec, made: "_Made", then: Callable[[], T], *, attach: bool) -> T:
        """Create a container, lay its files, attach before any output, start it, and go on with `then`. In one go, for every
        change of threads takes its time; `made` tells at every moment what there is of it. Raises NotFound
        (COMMAND_NOT_FOUND, …), and what `then` does."""
        body = self._body(spec)
        archive = tar(spec.files, time.time()) if spec.files else None

        def create(client: GuardedClient) -> None:
            if not made.container:  # or begun before, on a disk that was full
                made.container = str(client.create_container_from_config(body, spec.name)["Id"])

        def begin(client: GuardedClient) -> None:
            create(client)
            if archive is not None:
                client.put_archive(made.container, "/", archive)
            if spec.archive is not None:
                client.put_archive(made.container, spec.workdir, spec.archive())
            if attach and made.attached is None:
                made.attached = self._attach(client, made.container, stdin=spec.stdin is not None)
            client.start(made.container)
            made.started = True

        def do(step: Callable[[GuardedClient], None]) -> None:
            with made.beginning, _command_not_found([*(spec.entrypoint or []), *spec.command]):
                if made.given_up:
                    raise EngineUnreachable("Nobody waits for this run any more.")
                self._translate(step)

        def work() -> T:
            do(begin)
            return then()

        async def attempt() -> T:
            # Laid for a container by its id, before it starts.
            if (spec.secrets or spec.given) and made.container not in self._given:
                await wait_in_thread(do, create)
                await self._give(made.container, for_run(made.container, spec.secrets, await spec.values(), spec.given))
            return await wait_in_thread(work)

        async def ask() -> T:
            try:
                return await attempt()
            except DiskFull:
                if made.started:
                    raise
            await self._maintain("settle-disk")
            return await attempt()

        if spec.pull == "always":
            await self.pull(spec.image, await spec.login(spec.image))
        try:
            return await ask()
        except NotFound as error:
            if error.instance_code != "IMAGE_NOT_FOUND" or spec.pull == "never" or made.started:
                raise
        await self.pull(spec.image, await spec.login(spec.image))
        return await ask()

    def _attach(self, client: GuardedClient, container: str, *, stdin: bool) -> Attached:
        return Attached(client.attach_socket(container, ATTACH_OUTPUT | {"stdin": int(stdin)}))

    def _body(self, spec: RunSpec) -> dict[str, Any]:
        body: dict[str, Any] = {
            "Image": spec.image,
            "Cmd": spec.command,
            "Env": [f"{key}={value}" for key, value in spec.env.items()],
            "Labels": spec.labels
            | {LABEL: ",".join(each.name for each in spec.secrets)},  # else its image could say so
            "OpenStdin": spec.stdin is not None,
            "StdinOnce": spec.stdin is not None,
            "AttachStdin": spec.stdin is not None,
            "HostConfig": spec.caps.host_config()
            | {"NetworkMode": spec.network, "ReadonlyRootfs": spec.read_only, "CapDrop": spec.cap_drop},
        }
        if spec.unchecked:
            body["Healthcheck"] = {"Test": ["NONE"]}
        if spec.docker_socket:  # the policy puts the gate's in its place
            body["HostConfig"]["Binds"] = ["/var/run/docker.sock:/var/run/docker.sock"]
        for key, value in (("Entrypoint", spec.entrypoint), ("WorkingDir", spec.workdir), ("User", spec.user)):
            if value is not None:
                body[key] = value
        return body

    async def _start(self, container: str) -> None:
        with _command_not_found():
            await self._ask(lambda client: client.start(container))

    async def _code(self, container: str, code: int | None) -> int:
        """The exit code; asked for once more where it could not be told."""
        if code is not None:
            return code
        await self._maintain("settle-disk")
        for _ in range(50):
            state = (await self._inspect(container))["State"]
            if state["Status"] in OVER:
                break
            await anyio.sleep(0.05)
        else:
            raise EngineFailed(
                f"The sandbox's {self.name} engine could not say how {container[:12]} ended.",
                "sandbox_status shows its log; is its disk full?",
            )
        return int(state["ExitCode"])

    async def _kill(self, container: str) -> None:
        """SIGKILL, at once: whoever wants grace asks nested_stop for it."""
        with contextlib.suppress(ManyoyoError):
            await self._ask(lambda client: client.kill(container, "SIGKILL"))

    async def _explain(self, container: str, code: int, output_end: bytes, caps: Caps) -> Verdict:
        state = (await self._inspect(container))["State"]
        oom = bool(state.get("OOMKilled"))
        record = await self._record(container) if code in UNTOLD or oom or suspicious(output_end) else ""
        cap = format_bytes(caps.memory)
        return verdict(code, oom_flag=oom, record=record, cgroup=container, output_end=output_end, cap=cap)

    async def _outputs(self, container: str, spec: RunSpec) -> list[OutputFile]:
        if spec.outputs:
            await self._cleaned_up(container)
        base = spec.workdir or "/"
        return [await self._bring_out(container, posixpath.join(base, path)) for path in spec.outputs]

    async def _cleaned_up(self, container: str) -> None:
        """Until a container that ended can be read from. Engines say what that takes."""

    async def _bring_out(self, container: str, path: str) -> OutputFile:
        def get(client: GuardedClient) -> OutputFile:
            stream, stat = client.get_archive(container, path)
            with contextlib.closing(stream):
                if stat["size"] > MAX_OUTPUT_FILE:
                    return OutputFile(
                        path,
                        None,
                        f"{format_bytes(stat['size'])}, more than {format_bytes(MAX_OUTPUT_FILE)}: {_SMALLER}",
                    )
                data = io.BytesIO()
                for piece in stream:
                    data.write(piece)
                    if data.tell() > MAX_OUTPUT_FILE + (1 << 20):
                        return OutputFile(path, None, f"more than {format_bytes(MAX_OUTPUT_FILE)}: {_SMALLER}")
            data.seek(0)
            with tarfile.open(fileobj=data) as archive:
                member = archive.next()
                if member is None or not member.isfile():
                    return OutputFile(
                        path, None, "not a regular file: name files, or have the command pack a directory (tar -cf)"
                    )
                content = archive.extractfile(member)
                return OutputFile(path, content.read() if content else b"")

        try:
            return await self._ask(get)
        except NotFound:
            return OutputFile(path, None, "missing")
        except EngineUnreachable:
            raise
        except (ManyoyoError, tarfile.TarError) as error:  # the run's own result counts more
            return OutputFile(path, None, str(error)[:200])

    def _remove_later(self, container: str, *, ended: bool = False) -> None:
        if not container:
            return

        async def remove() -> None:
            await anyio.sleep(_RESULT_FIRST)
            with contextlib.suppress(ManyoyoError):
                await (self._drop(container) if ended else self.remove(container))

        self._later(f"remove {container[:12]}", remove)

    async def remove(self, container: str) -> None:
        await self._drop(container)

    async def _drop(self, container: str) -> None:
        with contextlib.suppress(NotFound):
            await self._ask(lambda client: client.remove_container(container, force=True, v=True))
        await self._take_away(container)


@dataclass(slots=True)
class _Made:
    """What there is of a container that is being started: its id, once created; the connection, once attached; whether it
    was started; its end."""

    container: str = ""
    attached: Attached | None = None
    started: bool = False
    ended: bool = False
    given_up: bool = False
    beginning: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread that begins it."""

    async def give_up(self) -> None:
        """Nobody waits for it any more. Returns when no thread begins it, nor ever will: what it says is then all there is."""
        self.given_up = True
        with anyio.CancelScope(shield=True):
            await in_thread(self._begun)

    def _begun(self) -> None:
        with self.beginning:
            pass


def _expire(scope: anyio.CancelScope, seconds: float) -> None:
    scope.deadline = anyio.current_time() + seconds


def _exit_code(container: str, client: GuardedClient) -> int | None:
    """None where the engine could not say it, as on a full disk: it then answers 0, and an error beside."""
    answer = client.wait(container, timeout=3600 * 24 * 30)
    return None if (answer.get("Error") or {}).get("Message") else int(answer["StatusCode"])


@contextlib.contextmanager
def _command_not_found(command: Sequence[str] = ()) -> Iterator[None]:
    """Engines say in their own words that a command can't be started; here it becomes COMMAND_NOT_FOUND."""
    try:
        yield
    except (EngineFailed, NotFound, InvalidArgument) as error:
        if not _NO_COMMAND.search(error.message):
            raise
        refused = REFUSED.search(error.message) is not None
        raise NotFound(
            f"The command could not be started: {_runtime_words(error.message)}",
            start_hint(command, refused),
            code="COMMAND_NOT_FOUND",
            refused=refused,
        ) from error


def _runtime_words(text: str) -> str:
    """The OCI runtime's message without the engines' prefixes."""
    return text.split("OCI runtime create failed: ", 1)[-1].split("answered: ", 1)[-1].strip()[:300]
