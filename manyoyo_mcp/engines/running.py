"""Containers made, run, entered and removed over Docker's API."""

import contextlib
import io
import posixpath
import re
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import docker

from manyoyo_mcp.archive import tar
from manyoyo_mcp.attached import Attached
from manyoyo_mcp.engines.asking import Asking
from manyoyo_mcp.engines.base import (
    Ended,
    ExecSpec,
    OutputFile,
    RunSpec,
    Sink,
)
from manyoyo_mcp.engines.failures import SIGKILLED, Verdict, start_hint, suspicious, verdict
from manyoyo_mcp.engines.streams import Streaming, Tail, json_lines, since
from manyoyo_mcp.errors import (
    EngineFailed,
    EngineUnreachable,
    InvalidArgument,
    ManyoyoError,
    NotFound,
    Reason,
)
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.values import Caps, format_bytes
from manyoyo_mcp.workers import wait_in_thread

T = TypeVar("T")

_RESULT_FIRST = 0.02
"""Seconds before a run's container is removed: its result is with the caller by then, who else would wait longer for it."""
_SMALLER = "have the command pack, split or shorten it"
_NO_REGISTRY = "localhost/"
"""How the names of images begin that are made here and in no registry; one on this machine has a port."""
MAX_OUTPUT_FILE = 4 << 20
"""Largest file that `outputs` brings out of a run, in bytes; larger ones are named, not truncated."""
_NO_COMMAND = re.compile(
    r"executable file.*not found|no such file or directory: OCI runtime attempted to invoke|"
    r"(?:permission denied|operation not permitted): OCI|"
    r"exec: \"[^\"]*\": (?:stat [^:]*: )?(?:no such file|permission denied)|exec format error",
    re.IGNORECASE,
)
_REFUSED = re.compile("permission denied|not permitted|format error", re.IGNORECASE)
_EXEC_REFUSED = re.compile(rb"\A(?:OCI runtime exec failed: |Error: (?:nested|crun|runc): )")
"""How an engine begins what it writes into an exec's stream when the command never began."""


class Running(Asking):
    """What runs in an engine."""

    async def start(self, spec: RunSpec) -> str:
        made = _Made()
        try:
            await self._begin(spec, made, attach=False)
        except BaseException:
            self._remove_later(made.container)
            raise
        return made.container

    async def run(self, spec: RunSpec, sink: Sink) -> Ended:
        begun = time.monotonic()
        end = Tail(sink)
        made = _Made()
        try:
            try:
                await self._begin(spec, made, attach=True)
            except NotFound as error:
                if error.instance_code != "COMMAND_NOT_FOUND":
                    raise
                return Ended(126 if error.details["refused"] else 127, Reason.COMMAND_NOT_FOUND, since(begun), error.message, error.hint,
                             container=made.container)  # fmt: skip  # the codes are a shell's
            container, attached = made.container, made.attached
            assert attached is not None
            with anyio.move_on_after(spec.timeout_s) as limit:
                code = await self._converse(attached, spec.stdin, end, partial(_exit_code, container))
            if limit.cancelled_caught:
                await self._kill(container)
                code = await self._await(partial(_exit_code, container))
            seconds = since(begun)
            if limit.cancelled_caught:
                return Ended(code, Reason.TIMEOUT, seconds, f"Killed after timeout_s={spec.timeout_s:g}.",
                             "Give it a larger timeout_s, or find what it waits for.", container=container)  # fmt: skip
            outputs = await self._outputs(container, spec)
            if code == 0:
                return Ended(0, Reason.OK, seconds, outputs=outputs, container=container)
            told = await self._explain(container, code, end.tail, spec.caps)
            return Ended(code, told.reason, seconds, told.explanation, told.hint, told.evidence, outputs, container)
        except BaseException:
            if made.container:
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    await self._kill(made.container)
            raise
        finally:
            if made.attached is not None:
                made.attached.close()
            self._remove_later(made.container)

    async def _begin(self, spec: RunSpec, made: "_Made", *, attach: bool) -> None:
        """Create a container, lay its files, attach before any output, start it. In one go, for every change of threads
        takes its time; `made` tells at every moment what there is of it. Raises NotFound (COMMAND_NOT_FOUND, …)."""
        body = self._body(spec)
        archive = tar(spec.files, time.time()) if spec.files else None

        def begin(client: GuardedClient) -> None:
            made.container = str(client.create_container_from_config(body, spec.name)["Id"])
            if archive is not None:
                client.put_archive(made.container, "/", archive)
            if attach:
                params = {"stream": 1, "stdout": 1, "stderr": 1, "stdin": int(spec.stdin is not None)}
                made.attached = Attached(client.attach_socket(made.container, params))
            client.start(made.container)

        if spec.pull == "always":
            await self.pull(spec.image)
        try:
            with _command_not_found([*(spec.entrypoint or []), *spec.command]):
                return await self._ask(begin)
        except NotFound as error:
            if error.instance_code != "IMAGE_NOT_FOUND" or spec.pull == "never":
                raise
        await self.pull(spec.image)
        with _command_not_found([*(spec.entrypoint or []), *spec.command]):
            await self._ask(begin)

    def _body(self, spec: RunSpec) -> dict[str, Any]:
        body: dict[str, Any] = {
            "Image": spec.image,
            "Cmd": spec.command,
            "Env": [f"{key}={value}" for key, value in spec.env.items()],
            "Labels": spec.labels,
            "OpenStdin": spec.stdin is not None,
            "StdinOnce": spec.stdin is not None,
            "AttachStdin": spec.stdin is not None,
            "HostConfig": spec.caps.host_config()
            | {"NetworkMode": spec.network, "ReadonlyRootfs": spec.read_only, "CapDrop": spec.cap_drop},
        }
        for key, value in (("Entrypoint", spec.entrypoint), ("WorkingDir", spec.workdir), ("User", spec.user)):
            if value is not None:
                body[key] = value
        return body

    async def pull(self, image: str) -> None:
        """Pull `image` from its registry. Raises NotFound with what the registry (or the lack of one) said."""
        if image.startswith(_NO_REGISTRY):
            raise NotFound(f"The image {image} is not in the sandbox, and no registry has it.", _image_hint(image),
                           code="IMAGE_NOT_FOUND")  # fmt: skip
        repository, _, tag = image.rpartition(":") if ":" in image.rsplit("/", 1)[-1] else (image, "", "latest")
        if "@" in image:
            repository, tag = image.split("@", 1)

        call = Streaming()

        def pull(client: GuardedClient) -> None:
            with call.on(client):
                url = client._url("/images/create")
                response = client._post(url, params={"fromImage": repository, "tag": tag}, stream=True, timeout=None)
                client._raise_for_status(response)
                for event in json_lines(response):
                    if event.get("error"):
                        raise docker.errors.ImageNotFound(str(event["error"]))

        try:
            await self._await(pull)
        except anyio.get_cancelled_exc_class():
            call.stop()
            raise
        except (NotFound, EngineFailed) as error:
            raise NotFound(
                f"The image {image} is not in the sandbox, and it could not be pulled: {sanitise(error.message)[:600]}",
                _image_hint(image),
                code="IMAGE_NOT_FOUND",
            ) from error

    async def _start(self, container: str) -> None:
        with _command_not_found():
            await self._ask(lambda client: client.start(container))

    async def _converse(
        self, attached: Attached, stdin: bytes | None, sink: Sink, then: Callable[[GuardedClient], T]
    ) -> T:
        """Feed and read until the output ends, `then` ask for the rest."""

        def read() -> T:
            attached.pump(sink)  # not asking: an OSError here is the sink's
            return self._translate(then)

        if stdin is None:
            return await wait_in_thread(read)
        async with anyio.create_task_group() as group:
            group.start_soon(wait_in_thread, attached.feed, stdin)
            result = await wait_in_thread(read)
            group.cancel_scope.cancel()
        return result

    async def _kill(self, container: str) -> None:
        """SIGKILL, at once: whoever wants grace asks nested_stop for it."""
        with contextlib.suppress(ManyoyoError):
            await self._ask(lambda client: client.kill(container, "SIGKILL"))

    async def _explain(self, container: str, code: int, output_end: bytes, caps: Caps) -> Verdict:
        state = (await self._inspect(container))["State"]
        oom = bool(state.get("OOMKilled"))
        record = await self._record(container) if code == SIGKILLED or oom or suspicious(output_end) else ""
        cap = format_bytes(caps.memory)
        return verdict(code, oom_flag=oom, record=record, cgroup=container, output_end=output_end, cap=cap)

    async def _outputs(self, container: str, spec: RunSpec) -> list[OutputFile]:
        if spec.outputs:
            await self._cleaned_up(container)
        base = spec.workdir or "/"
        return [await self._bring_out(container, posixpath.join(base, path)) for path in spec.outputs]

    async def _inspect(self, container: str) -> Any:
        return await self._ask(lambda client: client.inspect_container(container))

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

    def _remove_later(self, container: str) -> None:
        if not container:
            return

        async def remove() -> None:
            await anyio.sleep(_RESULT_FIRST)
            with contextlib.suppress(ManyoyoError):
                await self.remove(container)

        self._later(f"remove {container[:12]}", remove)

    async def remove(self, container: str) -> None:
        """Kill and remove; no error where it is gone already."""
        with contextlib.suppress(NotFound):
            await self._ask(lambda client: client.remove_container(container, force=True, v=True))

    # -- a command in a container that runs

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
            # Only the caller's own word is quoted: the stream may be the command's, and the output is shown as such.
            refused = _REFUSED.search(output_end.decode(errors="replace")) is not None
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


@dataclass(slots=True)
class _Made:
    """What there is of a container that is being started: its id, once created; the connection, once attached."""

    container: str = ""
    attached: Attached | None = None


def _exit_code(container: str, client: GuardedClient) -> int:
    return int(client.wait(container, timeout=3600 * 24 * 30)["StatusCode"])


@contextlib.contextmanager
def _command_not_found(command: Sequence[str] = ()) -> Iterator[None]:
    """Engines say in their own words that a command can't be started; here it becomes COMMAND_NOT_FOUND."""
    try:
        yield
    except (EngineFailed, NotFound, InvalidArgument) as error:
        if not _NO_COMMAND.search(error.message):
            raise
        refused = _REFUSED.search(error.message) is not None
        raise NotFound(
            f"The command could not be started: {_runtime_words(error.message)}",
            start_hint(command, refused),
            code="COMMAND_NOT_FOUND",
            refused=refused,
        ) from error


def _image_hint(image: str) -> str:
    base = re.fullmatch(r"localhost/manyoyo/(\w+)(?::.*)?", image)
    made = f"`manyoyo-mcp image base {base[1] if base else 'NAME'}`"
    return (
        f"Check the name and tag; nested_list shows the images there are. Where no registry is reachable, {made} makes "
        "base images from packages (debian, python, node, busybox): sandboxes started after that have them as "
        "localhost/manyoyo/NAME, so cleanup and start_sandbox once more."
    )


def _runtime_words(text: str) -> str:
    """The OCI runtime's message without the engines' prefixes."""
    return text.split("OCI runtime create failed: ", 1)[-1].split("answered: ", 1)[-1].strip()[:300]
