"""Build contexts: a directory under the configured roots or files given in the call, as a tar stream never held in memory."""

import contextlib
import errno
import io
import os
import re
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import docker.utils.build as docker_build

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import ContextRefused, InvalidArgument
from manyoyo_mcp.policy.contexts import FEWER, MAX_DOCKERFILE, Links, check
from manyoyo_mcp.values import format_bytes

_REPEATED = re.compile(r"(?:\*\*/)+")
_MOST_DEEP = 3
_CHUNK = 1 << 18
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Files of a context are opened at once even where they are a pipe by now, which nobody may ever write to."""
NO_ROOTS = [Path("/dev/null")]
"""Roots with which no directory of this machine is a build context."""


@dataclass(frozen=True, slots=True)
class Context:
    """A checked context: `stream` yields it as a tar; `size` and `count` are of the files in it."""

    stream: Callable[[], Iterator[bytes]]
    dockerfile: str
    dockerfile_text: str
    size: int
    count: int


def prepare(settings: Settings, directory: str | None, files: dict[str, bytes], dockerfile: str) -> Context:
    """A context of `directory` with `files` laid over it. Reads names and sizes, no contents but the Dockerfile's.

    Raises InvalidArgument for a bad path or Dockerfile, ContextRefused for what lies outside the roots, leads out by
    a link, or is too large.
    """
    if "\n" in dockerfile or dockerfile.upper().startswith("FROM "):
        raise InvalidArgument(
            "dockerfile is a path in the context, not a Dockerfile's text.",
            "Give the text as files={'Dockerfile': '…'}.",
        )
    dockerfile = relative_path(dockerfile, "dockerfile")
    extra = {relative_path(name, "files"): content for name, content in files.items()}
    root = check_directory(settings, directory) if directory is not None else None
    ignored = _ignored(root, extra, dockerfile)
    extra = {name: content for name, content in extra.items() if name == dockerfile or not ignored.matches(name)}
    text = _dockerfile_text(root, extra, dockerfile)
    extra.pop(dockerfile, None)
    extra[dockerfile] = text.encode()  # what was judged is what is sent, whatever becomes of the file meanwhile
    with _readable(root):
        entries = sorted(set(ignored.walk(str(root))) - {"", ".", *extra}) if root is not None else []
    size = sum(len(content) for content in extra.values())
    for entry in entries:
        assert root is not None
        with _readable(root / entry):
            size += _check_entry(root, entry)
        if size > settings.context_max_bytes:
            raise ContextRefused(
                f"The build context {root} is larger than {format_bytes(settings.context_max_bytes)} "
                f"(reached at {entry}).",
                "Leave out what the build does not need with a .dockerignore, or raise MANYOYO_CONTEXT_MAX_BYTES.",
            )
    return Context(lambda: _stream(root, entries, extra), dockerfile, text, size, len(entries) + len(extra))


def check_directory(settings: Settings, directory: str) -> Path:
    """The real path of a context directory. Raises ContextRefused outside the roots, InvalidArgument where it is none."""
    if "\0" in directory:
        raise InvalidArgument("context_dir contains a null byte.", "Write a plain path.")
    if settings.roots == NO_ROOTS:
        raise ContextRefused(
            "No directory of the server's machine may be a build context here.",
            "Give the context in the call: files={'Dockerfile': '…', …}. The operator can name directories (MANYOYO_ROOTS).",
        )
    home_and_all = {Path("/"), Path.home().resolve()}
    here = Path.cwd().resolve()
    roots = settings.roots or ([here] if here not in home_and_all else [])
    path = Path(directory).expanduser()
    path = ((roots[0] if roots else here) / path).resolve()
    if not any(path == root or root in path.parents for root in roots):
        raise ContextRefused(
            f"context_dir={directory!r} is outside the directories that may be read: "
            f"{', '.join(str(root) for root in roots) or 'none (the server was started in / or in a home directory)'}.",
            "Use a directory below those, or start the server in the project (or with MANYOYO_ROOTS naming it).",
        )
    if path in home_and_all:
        raise ContextRefused(
            f"context_dir={directory!r} is {path}, which holds far more than a project.",
            "Name the project's directory.",
        )
    if not path.is_dir():
        raise InvalidArgument(f"context_dir={directory!r} is not a directory.", "Name the directory of the Dockerfile.")
    return path


def relative_path(name: str, argument: str) -> str:
    """A path inside a context, normalised. Raises InvalidArgument for one that leads out or can't be a path."""
    path = PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or len(name) > 4096:
        raise InvalidArgument(
            f"{argument}: {name[:80]!r} is not a path inside the context.", "Write a relative path without '..'."
        )
    return str(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # as of a name that is too long for any file
        return False


def _ignored(root: Path | None, extra: dict[str, bytes], dockerfile: str) -> docker_build.PatternMatcher:
    """What .dockerignore leaves out; a Dockerfile may have one of its own, NAME.dockerignore, which then counts instead."""
    raw = b""
    for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
        if name in extra:
            raw = extra[name]
        elif root is not None and _is_file(root / name):
            with _open_inside(root, name) as file:
                raw = file.read(MAX_DOCKERFILE + 1)
        else:
            continue
        if len(raw) > MAX_DOCKERFILE:
            raise InvalidArgument(f"{name} is larger than {format_bytes(MAX_DOCKERFILE)}.", FEWER)
        break
    lines = (line.strip() for line in raw.decode(errors="replace").splitlines())
    patterns = [_REPEATED.sub("**/", line) for line in lines if line and not line.startswith("#")]
    for pattern in patterns:
        if pattern.count("**") > _MOST_DEEP:  # matching them takes exponentially long, and holds up everything
            raise InvalidArgument(
                f".dockerignore: {pattern[:80]!r} has ** more than {_MOST_DEEP} times.", "Write it as several patterns."
            )
    return docker_build.PatternMatcher([*patterns, f"!{dockerfile}"])


@contextlib.contextmanager
def _readable(path: Path | None) -> Iterator[None]:
    """What can't be read, or has gone since it was listed, is the context's fault and nobody else's."""
    try:
        yield
    except OSError as error:
        raise ContextRefused(
            f"{error.filename or path} can't be read: {error.strerror or error}.",
            "Make it readable for the user that the server runs as, or leave it out with a .dockerignore.",
        ) from error


def _check_entry(root: Path, entry: str) -> int:
    """Bytes that an entry adds. Links are sent as links, never followed; one that leads out is refused."""
    path = root / entry
    if path.is_symlink():
        target = Path(os.path.normpath(path.parent / path.readlink()))
        if target != root and root not in target.parents:
            raise ContextRefused(
                f"{entry} is a link that leads out of the context, to {path.readlink()}.",
                f"Leave it out: add {_left_out_with(root, path)} to .dockerignore; or put a copy in its place.",
            )
        return 0
    if path.is_file() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path.stat().st_size if path.is_file() else 0


def _left_out_with(root: Path, link: Path) -> str:
    """What to leave out with a link: a virtual environment is of no use without its interpreter, nor elsewhere."""
    whole = next((each for each in link.parents if root in each.parents and (each / "pyvenv.cfg").is_file()), link)
    return str(whole.relative_to(root))


def _dockerfile_text(root: Path | None, extra: dict[str, bytes], dockerfile: str) -> str:
    if dockerfile in extra:
        raw = extra[dockerfile]
    elif root is not None and _is_file(root / dockerfile):
        with _open_inside(root, dockerfile) as file:
            raw = file.read(MAX_DOCKERFILE + 1)
    else:
        where = str(root) if root is not None else "files"
        raise InvalidArgument(
            f"There is no {dockerfile} in {where}.", "Name it with dockerfile=…, or give it: files={'Dockerfile': '…'}."
        )
    text = check(raw, dockerfile).decode()
    if not any(line.strip() and not line.strip().startswith("#") for line in text.splitlines()):
        raise InvalidArgument(
            f"{dockerfile} has no instruction.", "It begins with FROM, e.g. FROM localhost/manyoyo/debian."
        )
    return text


def _stream(root: Path | None, entries: list[str], extra: dict[str, bytes]) -> Iterator[bytes]:
    """`extra` comes last, and nothing lies below a link: so none can lead the builder to another file of that name, nor out."""
    links = Links()
    buffer = tarfile.open(fileobj=io.BytesIO(), mode="w")  # noqa: SIM115 - only makes headers
    for entry in entries:
        assert root is not None
        path = root / entry
        with _readable(path):
            _check_entry(root, entry)  # it may have become a link since
            info = buffer.gettarinfo(str(path), arcname=entry)
        if info is None or not (info.isfile() or info.isdir() or info.issym() or info.islnk()):
            continue  # sockets, devices and pipes are no part of a context
        if info.islnk():
            info.type, info.linkname = tarfile.REGTYPE, ""
            info.size = path.stat().st_size
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        links.check(info)
        yield _header(info)
        if info.isfile():
            yield from _content(root, entry, info.size)
    for name, content in extra.items():
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(content), int(time.time())
        info.mode = 0o755 if content.startswith(b"#!") else 0o644
        links.check(info)
        yield _header(info)
        yield content
        yield _padding(len(content))
    yield b"\0" * 1024


def _open_inside(root: Path, entry: str) -> IO[bytes]:
    """A file of the context, opened. Raises ContextRefused where a link leads out of it, be it made this very moment."""
    path = root / entry
    with _readable(path), contextlib.ExitStack() as until_known:
        file = until_known.enter_context(os.fdopen(os.open(path, _FLAGS), "rb"))
        real = path.resolve()
        opened = os.fstat(file.fileno())
        if root in real.parents and stat.S_ISREG(opened.st_mode) and os.path.samestat(opened, real.stat()):
            until_known.pop_all()
            return file
    raise ContextRefused(
        f"{entry} is a link that leads out of the context, or no file any more.", "Put the file itself there."
    )


def _content(root: Path, entry: str, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes, whatever happens to the file meanwhile."""
    left = size
    with _open_inside(root, entry) as file:
        while left > 0:
            with _readable(root / entry):
                piece = file.read(min(left, _CHUNK)) or b"\0" * min(left, _CHUNK)
            left -= len(piece)
            yield piece
    yield _padding(size)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)
