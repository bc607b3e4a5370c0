"""Arguments and result parts that several tools share."""

import base64
import re
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from manyoyo_mcp.engines.base import Secret
from manyoyo_mcp.errors import InvalidArgument, ManyoyoError
from manyoyo_mcp.sessions.jobs import Job
from manyoyo_mcp.text import fence, sanitise, shorten
from manyoyo_mcp.tools.base import Call, ToolInput
from manyoyo_mcp.values import Caps, check_cpus, check_image, check_pids, parse_memory

MAX_ENV = 1000
"""Most environment variables of a run, exec or build argument list."""
_TAIL_BYTES = 1 << 20


def _value_errors(check: Any) -> Any:
    """Our InvalidArgument, inside a pydantic model, becomes what pydantic collects."""

    def checked(value: Any) -> Any:
        if value is None:
            return None
        try:
            return check(value)
        except InvalidArgument as error:
            raise ValueError(f"{error.message} {error.hint}") from error

    return checked


def _no_null(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains a null byte.")
    if not value.isprintable() and any("\ud800" <= each <= "\udfff" for each in value):
        raise ValueError("contains half a surrogate pair, which is no character.")
    return value


Text = Annotated[str, AfterValidator(_no_null)]
Memory = Annotated[
    int | None,
    BeforeValidator(_value_errors(parse_memory)),
    WithJsonSchema({"type": "string"}),
]
Disk = Annotated[
    int | None,
    BeforeValidator(_value_errors(partial(parse_memory, argument="disk"))),
    WithJsonSchema({"type": "string"}),
]
Cpus = Annotated[float | None, AfterValidator(_value_errors(check_cpus))]
Pids = Annotated[int | None, AfterValidator(_value_errors(check_pids))]

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def _env(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_ENV:
        raise ValueError(f"has {len(value)} variables; at most {MAX_ENV}. Put large data into files.")
    for name, content in value.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is not the name of an environment variable.")
        if len(content) > 65536:
            raise ValueError(f"{name} is longer than 65,536 characters. Put large data into files.")
        _no_null(content)
    return value


Env = Annotated[dict[str, str], AfterValidator(_env)]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KERNELS = re.compile(r"/(?:proc|sys|dev)(?:/.*)?")


def _secrets(value: dict[str, str]) -> dict[str, str]:
    """Of secrets the places, never a value: that would be no place, and is not quoted."""
    for name, place in value.items():
        path = (
            place.startswith("/") and ".." not in place.split("/") and place.isprintable() and not place.endswith("/")
        )
        plain = "/" + "/".join(part for part in place.split("/") if part not in ("", "."))
        if place and not _VARIABLE.fullmatch(place) and (not path or plain == "/" or _KERNELS.fullmatch(plain)):
            raise ValueError(
                f"{name[:64]!r} is to go to no place that there is. Write an absolute path (not below /proc, /sys, /dev), a variable's "
                'name, or "" for /run/secrets/NAME.'
            )
    if len(set(value.values()) - {""}) < len([place for place in value.values() if place]):
        raise ValueError("two secrets have one place.")
    return value


Secrets = Annotated[dict[str, str], AfterValidator(_secrets)]


def _variables(value: dict[str, str]) -> dict[str, str]:
    if not all(map(_VARIABLE.fullmatch, value.values())):
        raise ValueError("takes names of variables alone: a container that runs is given no files.")
    return value


Variables = Annotated[dict[str, str], AfterValidator(_variables), AfterValidator(_secrets)]


def places_of(places: dict[str, str]) -> list[Secret]:
    """Secrets as they go into a container."""
    return [
        Secret(name, variable=place)
        if _VARIABLE.fullmatch(place)
        else Secret(name, path=place or f"/run/secrets/{name}")
        for name, place in places.items()
    ]


def _command(value: list[str]) -> list[str]:
    for word in value:
        _no_null(word)
    if sum(map(len, value)) > 1 << 17:
        raise ValueError("is longer than 131,072 characters. Put long scripts into files.")
    return value


Command = Annotated[list[str], AfterValidator(_command)]

Image = Annotated[str, AfterValidator(_value_errors(check_image))]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value[:60]!r} is not a container's name or id (letters, digits, _ . -).")
    return value


Name = Annotated[str, AfterValidator(_name)]


class Base64(BaseModel):
    """Binary content."""

    base64: str


Files = dict[str, str | Base64]


def decode_files(files: dict[str, str | Base64], argument: str = "files") -> dict[str, bytes]:
    """Contents as bytes. Raises InvalidArgument for base64 that is none."""
    decoded = {}
    for path, content in files.items():
        if isinstance(content, str):
            decoded[path] = content.encode()
            continue
        try:
            decoded[path] = base64.b64decode(content.base64, validate=True)
        except ValueError as error:  # binascii.Error, and what is no ASCII
            raise InvalidArgument(
                f"{argument}: {path[:80]!r} is not valid base64.", "Encode the bytes, or give text."
            ) from error
    return decoded


def absolute_path(path: str, argument: str, workdir: str | None = None) -> str:
    """A path in a container. Raises InvalidArgument for a relative one without a workdir, '..', and null bytes."""
    if "\0" in path or ".." in path.split("/") or not path or len(path) > 4096:
        raise InvalidArgument(
            f"{argument}: {path[:80]!r} is not a path in the container.", "Write /dir/file, without '..'."
        )
    if not path.startswith("/"):
        if workdir is None:
            raise InvalidArgument(
                f"{argument}: {path[:80]!r} is relative, and no workdir was given.", "Write /dir/file, or give workdir."
            )
        path = f"{workdir.rstrip('/')}/{path}"
    return path


class SandboxArgument(ToolInput):  # nearly all tools have it; a docstring would be told with each of them
    sandbox_id: Text | None = Field(None, description="Default: this session's only one.")


class CapArguments(SandboxArgument):
    """Caps of a run or build."""

    memory: Memory = Field(
        None, description='Memory cap, docker notation ("512m", "2g"); default: half the sandbox\'s.'
    )
    cpus: Cpus = Field(None, description="CPU cap in cores, e.g. 1.5; default: the sandbox's.")


class GrantedCaps(BaseModel):
    """Caps as granted."""

    cpus: float
    memory_bytes: int
    pids_limit: int

    @classmethod
    def of(cls, caps: Caps) -> "GrantedCaps":
        return cls(cpus=caps.cpus, memory_bytes=caps.memory, pids_limit=caps.pids)


def log_uri(job_id: str) -> str:
    return f"manyoyo://jobs/{job_id}/log"


def show(raw: bytes, source: str, tokens: int) -> tuple[str, int]:
    """Output for a model: sanitised, shortened, fenced. Returns it and how many bytes were left out."""
    text, omitted = shorten(sanitise(raw), tokens)
    return fence(text, source), omitted


def log_view(job: Job, tokens: int) -> tuple[str, int]:
    """A job's output so far, as `show` shows it, without reading more of a long log than can be shown."""
    size = job.log.size
    if size <= 2 * _TAIL_BYTES:
        return show(job.log.read(0, size).data, job.job_id, tokens)
    head, tail = job.log.read(0, _TAIL_BYTES // 4), job.log.read(-_TAIL_BYTES, _TAIL_BYTES)
    text, omitted = shorten(sanitise(head.data) + "\n" + sanitise(tail.data), tokens)
    gap = size - len(head.data) - len(tail.data)
    return fence(
        text.replace(f"{omitted:,} bytes left out", f"{omitted + gap:,} bytes left out"), job.job_id
    ), omitted + gap


async def follow(call: Call, job: Job, wait_s: float, *, cancel: bool = True) -> bool:
    """Wait for a job, reporting its progress; whether it ended in time. `cancel`: a cancelled request cancels the job."""
    try:
        waited = 0.0
        while waited < wait_s:
            begun = job.seconds
            await job.wait_change(min(2.0, wait_s - waited))
            if job.over:
                return True
            waited += max(job.seconds - begun, 0.01)
            done, total, words = job.progress
            await call.progress(done, total, f"{words or job.title} ({job.seconds:.0f} s)")
    except BaseException:
        if cancel:
            await job.cancel()
        raise
    return False


def raise_failure(job: Job) -> None:
    """Raise what the job raised, if it did."""
    if job.error is not None:
        raise ManyoyoErrorWithLog(job.error, job.job_id)


class ManyoyoErrorWithLog(ManyoyoError):
    """An error that names the log of the job it ended."""

    def __init__(self, error: ManyoyoError, job_id: str) -> None:
        super().__init__(error.message, error.hint, code=error.instance_code, **{**error.details, "job_id": job_id})
        self.__cause__ = error
