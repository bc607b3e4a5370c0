"""What archives hold that an engine would read as root of its host: build contexts, and images from which files are copied."""

import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from posixpath import basename, dirname, normpath
from typing import IO, Any, cast

from manyoyo_mcp.errors import EngineFailed, InvalidArgument
from manyoyo_mcp.policy.contexts import FEWER, MAX_DOCKERFILE
from manyoyo_mcp.policy.wire import Body
from manyoyo_mcp.values import format_bytes

_ODD = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_MOST_PATTERNS = 2000
"""Lines of a .dockerignore, each of which the engine keeps as an expression."""
_MOST_LINKS = 255
"""Links that are followed for one path, as dockerd does."""
_MOST_ENTRIES, _MOST_LETTERS = 500_000, 32 << 20
"""Of what is kept in mind of one context or image: entries, and letters of their names, of which each may take four bytes."""
_PACKED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is in a build context: `archives`, files that dockerd takes for such, and links, which may lead to them; `ignored`, what its .dockerignore says."""

    archives: set[str] = field(default_factory=set)
    ignored: bytes | None = None


class _Kept:
    """Counts what is kept in mind. Raises InvalidArgument where it is too much."""

    def __init__(self) -> None:
        self._entries = self._letters = 0

    def add(self, *words: str) -> None:
        self._entries += 1
        self._letters += sum(map(len, words))
        if self._entries > _MOST_ENTRIES or self._letters > _MOST_LETTERS:
            raise InvalidArgument(
                f"The context or image has more than {_MOST_ENTRIES:,} links, directories and archives, or {_MOST_LETTERS >> 20} Mi letters of their names, which are looked at here.",
                "Build with fewer: .dockerignore leaves some out of a context, and `tar` makes one file of many in an image.",
            )


def look(context: Iterator[bytes]) -> Seen:
    """Read a build context through. Raises InvalidArgument for one that is too large."""
    archives, ignored, kept = set(), None, _Kept()
    with tarfile.open(fileobj=BufferedReader(Body(context)), mode="r|") as given:
        for member in given:
            cast(Any, given).members = []  # else it keeps all that ever was
            name = normpath(member.name).lstrip("/")
            content = given.extractfile(member) if member.isreg() else None
            if content is None:
                if not member.isdir():
                    kept.add(name)
                    archives.add(name)
                continue
            if name == ".dockerignore":
                ignored = content.read(MAX_DOCKERFILE + 1)
                if len(ignored) > MAX_DOCKERFILE or ignored.count(b"\n") > _MOST_PATTERNS:
                    raise InvalidArgument(
                        f"{name} is larger than {format_bytes(MAX_DOCKERFILE)}, or has more than {_MOST_PATTERNS} lines.",
                        FEWER,
                    )
            elif _is_archive(content.read(tarfile.BLOCKSIZE)):
                kept.add(name)
                archives.add(name)
    return Seen(archives, ignored)


class Contents:
    """What an image holds, as far as it matters to who copies from it: its links, and its devices and pipes, of which an engine would make others as root
    of its host, or wait at them. `archive`: the image as it is saved. Not a container of it, in which the engine has laid files of its own. Raises
    EngineFailed for what can't be read."""

    def __init__(self, archive: Iterator[bytes]) -> None:
        try:
            self._read(archive)
        except (tarfile.TarError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
            raise EngineFailed(
                f"The image can't be read as the host's engine saves it: {str(error)[:200]}",
                "COPY from another image or stage.",
            ) from error

    def _read(self, archive: Iterator[bytes]) -> None:
        layers: dict[str, list[tuple[str, bytes, str]] | None] = {}
        same: dict[str, str] = {}
        order: list[str] | None = None
        kept = _Kept()
        with tarfile.open(fileobj=BufferedReader(Body(archive)), mode="r|") as saved:
            for member in saved:
                cast(Any, saved).members = []
                if member.issym():  # a layer that is there already
                    same[member.name] = normpath(f"{dirname(member.name)}/{member.linkname}")
                    continue
                file = saved.extractfile(member) if member.isreg() else None
                if file is not None and member.name == "manifest.json":
                    order = json.loads(file.read())[0]["Layers"]
                elif file is not None and (member.name.endswith("/layer.tar") or member.name.startswith("blobs/")):
                    layers[member.name] = _entries(file, kept)
        self._links: dict[str, str] = {}
        self._odd: set[str] = set()
        if order is None:
            raise tarfile.ReadError("it ends before it says of what it is made")
        for name in order:
            entries = layers[same.get(name, name)]
            if entries is None:
                raise tarfile.ReadError(f"{name} is no archive that is known here")
            for path, kind, aim in entries:
                self._add(path, kind, aim)

    def _add(self, path: str, kind: bytes, aim: str) -> None:
        if (removed := basename(path).removeprefix(".wh.")) != basename(path):
            self._links.pop(f"{dirname(path).rstrip('/')}/{removed}", None)
            return
        self._links.pop(path, None)
        same = _path(aim) if kind == tarfile.LNKTYPE else ""  # of whatever it is another name, a link too
        if kind == tarfile.SYMTYPE or same in self._links:
            self._links[path] = self._links.get(same, aim)
        elif kind in _ODD or same in self._odd:
            self._odd.add(path)

    def odd(self, source: str) -> str:
        """A device or a pipe at or below a path, whatever links lead there; "" where there is none."""
        path, rest, links = "", [each for each in source.split("/") if each], 0
        while rest and links <= _MOST_LINKS:
            part = rest.pop(0)
            path = dirname(path) if part == ".." else path if part == "." else f"{path.rstrip('/')}/{part}"
            if (aim := self._links.get(path)) is not None:
                links += 1
                rest = [each for each in aim.split("/") if each] + rest
                path = "" if aim.startswith("/") else dirname(path)
        if links > _MOST_LINKS:  # who follows them gives up
            return ""
        path = path.rstrip("/")
        return min((each for each in self._odd if each == path or each.startswith(f"{path}/")), default="")


def _entries(layer: IO[bytes], kept: _Kept) -> list[tuple[str, bytes, str]] | None:
    """Of a layer: paths, types and aims of what is no plain file. None of what is none: an image's configuration lies among them."""
    found = []
    if layer.peek(2)[:2] == b"\x1f\x8b":  # type: ignore[attr-defined]
        layer = cast(IO[bytes], gzip.GzipFile(fileobj=layer))
    try:
        with tarfile.open(fileobj=layer, mode="r|") as given:
            for member in given:
                cast(Any, given).members = []
                if not member.isreg() or basename(member.name).startswith(".wh."):
                    kept.add(member.name, member.linkname)
                    found.append((_path(member.name), member.type, member.linkname))
    except tarfile.ReadError:
        return None
    return found


def _path(name: str) -> str:
    return normpath(f"/{name}").replace("//", "/")


def _is_archive(head: bytes) -> bool:
    if head.startswith(_PACKED) or (head[1:4] == b"\x2a\x4d\x18" and head[:1] and head[0] & 0xF0 == 0x50):
        return True
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
