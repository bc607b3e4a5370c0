"""A nested engine over Docker's API: what podman and dockerd have in common, which is nearly all."""

import contextlib
import io
import json
import posixpath
import re
import secrets
import shlex
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.to_thread
import docker
import requests
import urllib3

from manyoyo_mcp.engines.base import (
    Action,
    BuildSpec,
    Built,
    Container,
    Ended,
    ExecSpec,
    Image,
    Maintain,
    OutputFile,
    RunSpec,
    Sink,
    Step,
)
from manyoyo_mcp.engines.buildlog import BuildLog
from manyoyo_mcp.engines.complaints import unechoed
from manyoyo_mcp.engines.diagnosis import Cause, diagnose
from manyoyo_mcp.engines.failures import SIGKILLED, Verdict, from_answer, verdict
from manyoyo_mcp.engines.streams import Attached, hang_up, json_lines
from manyoyo_mcp.errors import (
    EngineFailed,
    EngineUnreachable,
    InvalidArgument,
    ManyoyoError,
    NotFound,
    NotSupported,
    Reason,
)
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.values import Caps, format_bytes
from manyoyo_mcp.workers import in_thread, wait_in_thread

T = TypeVar("T")
Spawn = Callable[[str, Callable[[], Awaitable[None]]], None]
"""`spawn(name, work)`: hand over work that nobody waits for; the sandbox does before it ends."""

MAX_OUTPUT_FILE = 4 << 20
"""Largest file that `outputs` brings out of a run, in bytes; larger ones are named, not truncated."""
_END = 64 << 10

_NO_COMMAND = re.compile(
    r"executable file.*not found|no such file or directory: OCI runtime attempted to invoke|"
    r"(?:permission denied|operation not permitted): OCI|"
    r"exec: \"[^\"]*\": (?:stat [^:]*: )?(?:no such file|permission denied)|exec format error",
    re.IGNORECASE,
)
_EXEC_REFUSED = re.compile(rb"\A(?:OCI runtime exec failed: |Error: (?:nested|crun|runc): )")
"""How an engine begins what it writes into an exec's stream when the command never began."""


class DockerApiEngine:
    """An engine behind a guarded docker-py client. Subclasses say where theirs differs."""

    name: ClassVar[str]
    build_networks: ClassVar[dict[str, str]] = {"default": "default", "none": "none"}
    """A build's network, in the engine's words."""

    def __init__(self, client: docker.APIClient, maintain: Maintain, spawn: Spawn, default_caps: Callable[[], Caps]):
        self._client = client
        self._maintain = maintain
        self._spawn = spawn
        self._default_caps = default_caps
        self._pending = 0
        self._settled = anyio.Event()

    # -- asking

    async def _ask(self, fn: Callable[[docker.APIClient], T]) -> T:
        """One request with an end of its own. Engine errors come out as ours."""
        return await in_thread(self._translate, fn)

    async def _await(self, fn: Callable[[docker.APIClient], T]) -> T:
        """One request that lasts as long as what runs inside."""
        return await wait_in_thread(self._translate, fn)

    def _translate(self, fn: Callable[[docker.APIClient], T]) -> T:
        try:
            return fn(self._client)
        except docker.errors.APIError as error:
            text = sanitise(str(error.explanation or error)).strip()
            raise from_answer(self.name, error.status_code or 500, text) from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise EngineUnreachable(
                f"The sandbox's {self.name} engine does not answer: {error}",
                "It is started again by itself; try once more. If it stays away, sandbox_status says why.",
            ) from error

    async def ping(self) -> None:
        await self._ask(lambda client: client.ping())

    # -- running

    async def start(self, spec: RunSpec) -> str:
        container = await self._create(spec)
        try:
            await self._put(container, spec.files)
            await self._start(container)
        except BaseException:
            self._remove_later(container)
            raise
        return container

    async def run(self, spec: RunSpec, sink: Sink) -> Ended:
        begun = time.monotonic()
        end = _Tail(sink)
        container = await self._create(spec)
        attached: Attached | None = None
        try:
            await self._put(container, spec.files)
            timed_out = False
            try:
                with _command_not_found():
                    attached = await self._attach(container, spec.stdin is not None)
                await self._start(container)
            except NotFound as error:
                if error.instance_code != "COMMAND_NOT_FOUND":
                    raise
                code = (
                    126 if re.search("permission|permitted", error.message, re.IGNORECASE) else 127
                )  # as a shell has it
                return Ended(
                    code, Reason.COMMAND_NOT_FOUND, _since(begun), error.message, error.hint, container=container
                )
            with anyio.move_on_after(spec.timeout_s) as limit:
                await self._converse(attached, spec.stdin, end)
                code = await self._wait(container)
            if limit.cancelled_caught:
                timed_out = True
                await self._kill(container, attached, end)
                code = await self._wait(container)
            seconds = _since(begun)
            if timed_out:
                return Ended(code, Reason.TIMEOUT, seconds, f"Killed after timeout_s={spec.timeout_s:g}.",
                             "Give it a larger timeout_s, or find what it waits for.", container=container)  # fmt: skip
            outputs = await self._outputs(container, spec)
            if code == 0:
                return Ended(0, Reason.OK, seconds, outputs=outputs, container=container)
            told = await self._explain(container, code, end.tail, spec.caps)
            return Ended(code, told.reason, seconds, told.explanation, told.hint, told.evidence, outputs, container)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._kill(container, attached, end)
            raise
        finally:
            if attached is not None:
                attached.close()
            self._remove_later(container)

    async def _create(self, spec: RunSpec) -> str:
        host_config: dict[str, Any] = (spec.caps or self._default_caps()).host_config() | {
            "NetworkMode": spec.network,
            "ReadonlyRootfs": spec.read_only,
            "CapDrop": spec.cap_drop,
        }
        body: dict[str, Any] = {
            "Image": spec.image,
            "Cmd": spec.command,
            "Env": [f"{key}={value}" for key, value in spec.env.items()],
            "Labels": spec.labels,
            "OpenStdin": spec.stdin is not None,
            "StdinOnce": spec.stdin is not None,
            "AttachStdin": spec.stdin is not None,
            "HostConfig": host_config,
        }
        for key, value in (("Entrypoint", spec.entrypoint), ("WorkingDir", spec.workdir), ("User", spec.user)):
            if value is not None:
                body[key] = value
        if spec.pull == "always":
            await self.pull(spec.image)
        try:
            return await self._post_create(body, spec.name)
        except NotFound as error:
            if error.instance_code != "IMAGE_NOT_FOUND" or spec.pull == "never":
                raise
        await self.pull(spec.image)
        return await self._post_create(body, spec.name)

    async def _post_create(self, body: dict[str, Any], name: str | None) -> str:
        created = await self._ask(lambda client: client.create_container_from_config(body, name))
        return str(created["Id"])

    async def pull(self, image: str) -> None:
        """Pull `image` from its registry. Raises NotFound with what the registry (or the lack of one) said."""
        repository, _, tag = image.rpartition(":") if ":" in image.rsplit("/", 1)[-1] else (image, "", "latest")
        if "@" in image:
            repository, tag = image.split("@", 1)

        def pull(client: docker.APIClient) -> None:
            url = client._url("/images/create")
            response = client._post(url, params={"fromImage": repository, "tag": tag}, stream=True, timeout=None)
            client._raise_for_status(response)
            for event in json_lines(response):
                if event.get("error"):
                    raise docker.errors.ImageNotFound(str(event["error"]))

        try:
            await self._await(pull)
        except (NotFound, EngineFailed) as error:
            raise NotFound(
                f"The image {image} is not in the sandbox, and it could not be pulled: {sanitise(error.message)[:600]}",
                "Check the name and tag; nested_list shows the images there are. Where no registry is reachable, "
                "build on a base image made from packages: `manyoyo-mcp image base debian`.",
                code="IMAGE_NOT_FOUND",
            ) from error

    async def _put(self, container: str, files: dict[str, bytes]) -> None:
        if files:
            archive = _tar(files)
            await self._ask(lambda client: client.put_archive(container, "/", archive))

    async def _attach(self, container: str, stdin: bool) -> Attached:
        params = {"stream": 1, "stdout": 1, "stderr": 1, "stdin": int(stdin)}
        return await self._ask(lambda client: Attached(client.attach_socket(container, params)))

    async def _start(self, container: str) -> None:
        with _command_not_found():
            await self._ask(lambda client: client.start(container))

    async def _converse(self, attached: Attached, stdin: bytes | None, sink: Sink) -> None:
        async with anyio.create_task_group() as group:
            if stdin is not None:
                group.start_soon(wait_in_thread, attached.feed, stdin)
            await wait_in_thread(attached.pump, sink)
            group.cancel_scope.cancel()

    async def _wait(self, container: str) -> int:
        answer = await self._await(lambda client: client.wait(container, timeout=3600 * 24 * 30))
        return int(answer["StatusCode"])

    async def _kill(self, container: str, attached: Attached | None, end: "_Tail") -> None:
        """SIGKILL, at once: whoever wants grace asks nested_stop for it."""
        with contextlib.suppress(ManyoyoError):
            await self._ask(lambda client: client.kill(container, "SIGKILL"))

    async def _explain(self, container: str, code: int, output_end: bytes, caps: Caps | None) -> Verdict:
        state = (await self._ask(lambda client: client.inspect_container(container)))["State"]
        oom = bool(state.get("OOMKilled"))
        record = await self._record(container) if code == SIGKILLED or oom or _suspicious(output_end) else ""
        cap = format_bytes((caps or self._default_caps()).memory)
        return verdict(code, oom_flag=oom, record=record, cgroup=container, output_end=output_end, cap=cap)

    async def _record(self, cgroup: str) -> str:
        return str((await self._maintain("kernel-record", cgroup)).output)

    async def _outputs(self, container: str, spec: RunSpec) -> list[OutputFile]:
        base = spec.workdir or "/"
        return [await self._bring_out(container, posixpath.join(base, path)) for path in spec.outputs]

    async def _bring_out(self, container: str, path: str) -> OutputFile:
        def get(client: docker.APIClient) -> OutputFile:
            stream, stat = client.get_archive(container, path)
            with contextlib.closing(stream):
                if stat["size"] > MAX_OUTPUT_FILE:
                    return OutputFile(
                        path, None, f"{format_bytes(stat['size'])}, more than {format_bytes(MAX_OUTPUT_FILE)}"
                    )
                data = io.BytesIO()
                for piece in stream:
                    data.write(piece)
                    if data.tell() > MAX_OUTPUT_FILE + (1 << 20):
                        return OutputFile(path, None, f"more than {format_bytes(MAX_OUTPUT_FILE)}")
            data.seek(0)
            with tarfile.open(fileobj=data) as archive:
                member = archive.next()
                if member is None or not member.isfile():
                    return OutputFile(path, None, "not a regular file")
                content = archive.extractfile(member)
                return OutputFile(path, content.read() if content else b"")

        try:
            return await self._ask(get)
        except NotFound:
            return OutputFile(path, None, "missing")
        except (EngineFailed, tarfile.TarError) as error:
            return OutputFile(path, None, str(error)[:200])

    def _remove_later(self, container: str) -> None:
        async def remove() -> None:
            with contextlib.suppress(ManyoyoError):
                await self.remove(container)

        self._later(f"remove {container[:12]}", remove)

    def _later(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._pending += 1

        async def run() -> None:
            try:
                await work()
            finally:
                self._pending -= 1
                if self._pending == 0:
                    self._settled.set()
                    self._settled = anyio.Event()

        self._spawn(name, run)

    async def settle(self) -> None:
        while self._pending:
            await self._settled.wait()

    async def remove(self, container: str) -> None:
        """Kill and remove; no error where it is gone already."""
        with contextlib.suppress(NotFound):
            await self._ask(lambda client: client.remove_container(container, force=True, v=True))

    # -- a command in a container that runs

    async def exec(self, spec: ExecSpec, sink: Sink) -> Ended:
        begun = time.monotonic()
        end = _Tail(sink)
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

        def create(client: docker.APIClient) -> str:
            answer = client._post_json(client._url("/containers/{0}/exec", spec.container), data=body)
            return str(client._result(answer, True)["Id"])

        exec_id = await self._ask(create)
        attached = await self._exec_attach(exec_id)
        try:
            with anyio.move_on_after(spec.timeout_s) as limit:
                await self._converse(attached, spec.stdin, end)
            if limit.cancelled_caught:
                await self._maintain("kill-exec", marker)
            code = (await self._ask(lambda client: client.exec_inspect(exec_id)))["ExitCode"]
            seconds = _since(begun)
            if limit.cancelled_caught:
                return Ended(code, Reason.TIMEOUT, seconds, f"Killed after timeout_s={spec.timeout_s:g}.",
                             "Give it a larger timeout_s.", container=spec.container)  # fmt: skip
            return await self._exec_ended(spec, code, seconds, end.tail)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._maintain("kill-exec", marker)
            raise
        finally:
            attached.close()

    async def _exec_attach(self, exec_id: str) -> Attached:
        return await self._ask(lambda client: Attached(client.exec_start(exec_id, socket=True)))

    async def _exec_ended(self, spec: ExecSpec, code: int | None, seconds: float, output_end: bytes) -> Ended:
        code = code if code is not None else -1
        if code == 0:
            return Ended(0, Reason.OK, seconds, container=spec.container)
        if code in (126, 127) and _EXEC_REFUSED.match(output_end):
            words = _runtime_words(sanitise(output_end))
            return Ended(code, Reason.COMMAND_NOT_FOUND, seconds, f"The command could not be started: {words}",
                         'command is an argv list; for shell syntax write ["sh", "-c", "…"].', container=spec.container)  # fmt: skip
        raw = await self._ask(lambda client: client.inspect_container(spec.container))
        record = await self._record(raw["Id"]) if code == SIGKILLED or _suspicious(output_end) else ""
        cap = format_bytes(raw["HostConfig"].get("Memory") or 0)
        told = verdict(code, oom_flag=False, record=record, cgroup=raw["Id"], output_end=output_end, cap=cap)
        return Ended(code, told.reason, seconds, told.explanation, told.hint, told.evidence, container=spec.container)

    # -- building

    async def build(self, spec: BuildSpec, sink: Sink, on_step: Callable[[Step], None]) -> Built:
        begun = time.monotonic()
        end = _Tail(sink)
        log = BuildLog(spec.dockerfile_text, on_step)
        call = BuildCall()

        def stream(client: docker.APIClient) -> None:
            try:
                call.response = client._post(
                    client._url("/build"),
                    data=call.unless_stopped(spec.context()),
                    params=self._build_params(spec),
                    headers={"Content-Type": "application/x-tar"},
                    stream=True,
                    timeout=None,
                )
                client._raise_for_status(call.response)
                for event in json_lines(call.response):
                    end(log.feed(event).encode())
            finally:
                call.over = True

        timed_out = False
        try:
            self._check_dockerfile(spec.dockerfile_text)
            with anyio.move_on_after(spec.timeout_s) as limit:
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
        log.end_step()
        seconds = _since(begun)
        if timed_out:
            return Built(Reason.TIMEOUT, seconds, log.steps, failed_step=log.steps[-1] if log.steps else None,
                         error=f"Stopped after timeout_s={spec.timeout_s:g}.",
                         mend="Give it a larger timeout_s; finished steps are cached.")  # fmt: skip
        if log.error:
            return await self._build_failed(spec, log, seconds)
        image = log.image_id or ""
        size = (await self._ask(lambda client: client.inspect_image(image)))["Size"] if image else None
        return Built(Reason.OK, seconds, log.steps, image_id=log.image_id, size=size, tags=spec.tags)

    def _build_params(self, spec: BuildSpec) -> dict[str, Any]:
        caps = spec.caps or self._default_caps()
        params: dict[str, Any] = {
            "dockerfile": spec.dockerfile,
            "t": spec.tags[0] if spec.tags else f"localhost/manyoyo/build:{spec.build_id}",
            "memory": caps.memory,
            "memswap": caps.memory,
            "cpuperiod": 100_000,
            "cpuquota": round(caps.cpus * 100_000),
            "cgroupparent": f"/manyoyo-builds/{spec.build_id}",
            "rm": "1",
            "forcerm": "1",
            "buildargs": json.dumps(spec.build_args),
            "networkmode": self.build_networks[spec.network],
        }
        if spec.no_cache:
            params["nocache"] = "1"
        if spec.pull:
            params["pull"] = "1"
        if spec.target:
            params["target"] = spec.target
        if spec.platform:
            params["platform"] = spec.platform
        return params

    def _check_dockerfile(self, text: str) -> None:
        """Raise InvalidArgument for what the engine's builder would take for something else. Engines say what."""

    async def _stop_build(self, spec: BuildSpec, call: "BuildCall") -> None:
        """End the step that runs and the build with it. Engines say what more it takes than hanging up."""
        call.stop()

    async def _build_failed(self, spec: BuildSpec, log: BuildLog, seconds: float) -> Built:
        step = log.failed_step
        code = log.exit_code
        output = sanitise(log.output)
        instruction = step.instruction if step else ""
        output_end = (unechoed(output, instruction) if code is not None else log.error).encode(errors="replace")
        caps = spec.caps or self._default_caps()
        record = ""
        if step is not None and (code == SIGKILLED or _suspicious(output_end)):
            record = await self._record(f"/manyoyo-builds/{spec.build_id}")
        told = verdict(
            code or 1,
            oom_flag=False,
            record=record,
            cgroup=f"/manyoyo-builds/{spec.build_id}",
            output_end=output_end,
            cap=format_bytes(caps.memory),
        )
        reason = told.reason if told.reason is not Reason.EXIT_NONZERO else Reason.BUILD_FAILED
        cause: Cause | None = Cause(reason, told.explanation, told.hint)
        if reason is Reason.BUILD_FAILED:
            cause = diagnose(output, sanitise(log.error), instruction, code, network=spec.network)
        return Built(reason, seconds, log.steps, failed_step=step, exit_code=code, error=sanitise(log.error),
                     cause_code=cause.code if cause else "", cause=cause.cause if cause else "",
                     mend=cause.mend if cause else "", evidence=told.evidence)  # fmt: skip

    # -- looking and acting

    async def logs(self, container: str, tail: int | None, since: float | None) -> bytes:
        def get(client: docker.APIClient) -> bytes:
            return bytes(
                client.logs(container, stdout=True, stderr=True, tail=tail if tail is not None else "all",
                            since=int(since) if since is not None else None)
            )  # fmt: skip

        return await self._ask(get)

    async def containers(self) -> list[Container]:
        rows = await self._ask(lambda client: client.containers(all=True))
        return [
            Container(
                container_id=row["Id"].removeprefix("sha256:"),
                name=(row.get("Names") or ["/"])[0].lstrip("/"),
                image=row.get("Image", ""),
                state=row.get("State", ""),
                status=row.get("Status", ""),
                created=float(row.get("Created") or 0),
                command=row["Command"] if isinstance(row.get("Command"), str) else shlex.join(row.get("Command") or []),
                exit_code=row.get("ExitCode"),
            )
            for row in rows
        ]

    async def images(self) -> list[Image]:
        rows = await self._ask(lambda client: client.images())
        return [
            Image(
                image_id=row["Id"],
                tags=[tag for tag in row.get("RepoTags") or [] if tag != "<none>:<none>"],
                size=int(row.get("Size") or 0),
                created=float(row.get("Created") or 0),
                shared=bool(row.get("ReadOnly")),
            )
            for row in rows
        ]

    async def act(self, action: Action, container: str, timeout_s: float) -> str:
        match action:
            case "stop":
                await self._ask(lambda client: client.stop(container, timeout=round(timeout_s)))
            case "restart":
                await self._ask(lambda client: client.restart(container, timeout=round(timeout_s)))
            case "start":
                await self._start(container)
            case "remove":
                await self._ask(lambda client: client.inspect_container(container))
                await self.remove(container)
                return "removed"
        return str((await self._ask(lambda client: client.inspect_container(container)))["State"]["Status"])


@contextlib.contextmanager
def _command_not_found() -> Iterator[None]:
    """Engines say in their own words that a command can't be started; here it becomes COMMAND_NOT_FOUND."""
    try:
        yield
    except (EngineFailed, NotFound, InvalidArgument) as error:
        if not _NO_COMMAND.search(error.message):
            raise
        raise NotFound(
            f"The command could not be started: {_runtime_words(error.message)}",
            "command is an argv list: its first word must be a program in the image; for shell syntax write "
            '["sh", "-c", "…"].',
            code="COMMAND_NOT_FOUND",
        ) from error


class BuildCall:
    """A build request under way, for whoever must end it: `over` once its thread has returned."""

    def __init__(self) -> None:
        self.response: Any = None
        self.over = False
        self._stopping = False

    def unless_stopped(self, context: Iterator[bytes]) -> Iterator[bytes]:
        """The context's pieces, until `stop`."""
        for piece in context:
            if self._stopping:
                raise OSError("the build was stopped while its context was sent")
            yield piece

    def stop(self) -> None:
        self._stopping = True
        if self.response is not None:
            hang_up(self.response)


class _Tail:
    """A sink that passes on and remembers the end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.tail = b""

    def __call__(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-_END:] if len(data) < _END else data[-_END:]
        self._sink(data)


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)


def _suspicious(output_end: bytes) -> bool:
    """Whether the output's end may speak of a limit, so that the kernel's record is worth a look."""
    return bool(re.search(rb"kill|memory|fork|thread|resource temporarily|alloc", output_end[-4096:], re.IGNORECASE))


def _runtime_words(text: str) -> str:
    """The OCI runtime's message without the engines' prefixes."""
    return text.split("OCI runtime create failed: ", 1)[-1].split("answered: ", 1)[-1].strip()[:300]


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode, entry.mtime = (
                len(content),
                0o755 if content[:2] == b"#!" else 0o644,
                int(time.time()),
            )
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
