"""Seam 2, what runs nested containers. An engine is asked in these words, whichever it is; it knows no host."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from manyoyo_mcp.errors import Reason
from manyoyo_mcp.values import Caps

Sink = Callable[[bytes], None]
"""Takes output as it arrives; called from a worker thread."""

Action = Literal["stop", "start", "restart", "remove"]

Maintain = Callable[..., Awaitable[Any]]
"""`await maintain("kill-exec", id)`: runs the outer container's `ctl`; answers with `exit_code` and `output`."""


Values = Callable[[], Awaitable[Mapping[str, bytes]]]
"""Has secrets' values, by name. Asked once nothing else is in the way: it may run a program of the user's."""


async def no_values() -> Mapping[str, bytes]:
    """Of no secret."""
    return {}


Login = Callable[[str], Awaitable[str]]
"""What the pull of an image is sent with (X-Registry-Auth), asked for when it is pulled; nothing where it goes without."""


async def no_login(image: str) -> str:
    """Of no registry."""
    return ""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret for a nested container: as the file `path`, or as the variable of that name."""

    name: str
    path: str = ""
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """A directory of the outer container's for a nested one of the server's own. No tool takes one, and no engine is told."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A nested container to be run. `files` maps absolute paths to content; `outputs` are absolute paths to bring out.
    `docker_socket`: it gets the gate that its sandbox has for nested containers. `secrets` are told to no engine. Of the server's own
    alone: `archive` yields a tar that is unpacked in its workdir, what is `given` comes with the right to make namespaces, `on_success` is awaited
    with the container's id before it is removed, and one that is `unchecked` has no health check of its image's."""

    image: str
    command: list[str]
    caps: Caps
    entrypoint: list[str] | None = None
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    network: str = "default"
    workdir: str | None = None
    user: str | None = None
    read_only: bool = False
    cap_drop: list[str] = field(default_factory=list)
    name: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    timeout_s: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    pull: Literal["missing", "never", "always"] = "missing"
    docker_socket: bool = False
    secrets: Sequence[Secret] = ()
    archive: Callable[[], Iterator[bytes]] | None = None
    given: Sequence[Given] = ()
    on_success: Callable[[str], Awaitable[None]] | None = None
    unchecked: bool = False
    values: Values = no_values
    login: Login = no_login


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A command for a nested container that runs. `secrets` are variables."""

    container: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    workdir: str | None = None
    user: str | None = None
    timeout_s: float | None = None
    secrets: Sequence[Secret] = ()
    values: Values = no_values


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """An image build. `context` yields a tar stream, anew at each call, in a worker thread: a build may be begun again. `secrets`: names of what
    `RUN --mount=type=secret,id=NAME` has. `daemonless`: by buildah in a nested container, which has these `labels`, and not by the engine."""

    context: Callable[[], Iterator[bytes]]
    dockerfile: str
    dockerfile_text: str
    build_id: str
    caps: Caps
    tags: list[str] = field(default_factory=list)
    target: str | None = None
    build_args: dict[str, str] = field(default_factory=dict)
    no_cache: bool = False
    pull: bool = False
    network: str = "default"
    platform: str | None = None
    timeout_s: float | None = None
    secrets: Sequence[str] = ()
    values: Values = no_values
    login: Login = no_login
    daemonless: bool = False
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file brought out of a container: `content` is None where it is missing or too large, and `note` says so."""

    path: str
    content: bytes | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. `explanation` says what happened, `hint` what to do; `evidence` is what it was told by."""

    exit_code: int | None
    reason: Reason
    seconds: float
    explanation: str = ""
    hint: str = ""
    evidence: str = ""
    outputs: list[OutputFile] = field(default_factory=list)
    container: str = ""


@dataclass(slots=True)
class Step:
    """One instruction of a build, as the engine reports it. `line` is its line in the Dockerfile, from 1."""

    number: int
    total: int
    instruction: str
    stage: int | None = None
    line: int | None = None
    cached: bool = False
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """How a build ended. Where it failed, `failed_step` and `exit_code` (None where no command ran) say where, `cause`
    and `mend` why and what to do; `cause_code` is the cause's stable name."""

    reason: Reason
    seconds: float
    steps: list[Step]
    image_id: str | None = None
    size: int | None = None
    tags: list[str] = field(default_factory=list)
    failed_step: Step | None = None
    exit_code: int | None = None
    error: str = ""
    cause_code: str = ""
    cause: str = ""
    mend: str = ""
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A nested container as listed. `state` is Docker's word (created, running, exited …); `created` in Unix seconds;
    `address` its IP address in the sandbox, where it has one."""

    container_id: str
    name: str
    image: str
    state: str
    status: str
    created: float
    command: str
    exit_code: int | None = None
    address: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """A nested image as listed; size in bytes."""

    image_id: str
    tags: list[str]
    size: int
    created: float
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk that something of the engine's takes: `kind` is image, container, volume or build cache; bytes."""

    kind: str
    name: str
    size: int


class Engine(Protocol):
    """What the tools ask of a nested engine.

    Every method raises EngineUnreachable or EngineFailed where the engine is to blame, and a RequestError where the request is.
    A cancelled run, exec or build ends the process inside before the cancellation is passed on.
    """

    name: ClassVar[str]
    build_secrets: ClassVar[bool]

    async def ping(self) -> None: ...

    async def usage(self, besides: str = "") -> list[Usage]:
        """What takes how much disk, the largest first; without what is shared with other sandboxes, and one container."""

    async def used(self) -> dict[str, int]:
        """What runs uses, where it is not under the outer container's cgroups: `memory_used` in bytes, `pids_used`, `cpu_us`."""

    async def run(self, spec: RunSpec, sink: Sink) -> Ended: ...

    async def start(self, spec: RunSpec) -> str:
        """Start a container that stays (`detach`); its id."""

    async def remove(self, container: str) -> None:
        """Kill and remove; no error where it is gone already."""

    async def pull(self, image: str, login: str = "") -> None:
        """Pull an image from its registry, with a `Login`'s word for it. Raises NotFound with what the registry (or the lack of one) said."""

    async def exec(self, spec: ExecSpec, sink: Sink) -> Ended: ...

    async def kill_exec(self, exec_id: str, marker: str) -> None:
        """SIGKILL what an exec began: what has its marker (MANYOYO_EXEC in its environment), and what descends from it."""

    async def build(self, spec: BuildSpec, sink: Sink, on_step: Callable[[Step], None]) -> Built: ...

    async def ended(self, container: str) -> Ended | None:
        """How a container that stays has ended; None where it has not, or never ran."""

    async def logs(self, container: str, tail: int | None, since: float | None) -> bytes: ...

    async def containers(self) -> list[Container]: ...

    async def images(self) -> list[Image]: ...

    async def act(self, action: Action, container: str, timeout_s: float) -> str:
        """Do it; the container's state afterwards, in Docker's words, or "removed"."""

    def close(self) -> None:
        """Let go of the connections that wait for the next request."""

    async def settle(self) -> None:
        """Wait until removals that nobody waited for are finished."""
