"""What archives hold that an engine would read as root of its host: build contexts, and files that are copied from one image to another."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from posixpath import normpath
from typing import Any, cast

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.wire import Body

_PACKED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is in a build context: `archives`, files that dockerd takes for such; `ignored`, what its .dockerignore says."""

    archives: set[str] = field(default_factory=set)
    ignored: bytes | None = None


def look(context: Iterator[bytes]) -> Seen:
    """Read a build context through."""
    archives, ignored = set(), None
    with tarfile.open(fileobj=BufferedReader(Body(context)), mode="r|") as given:
        for member in given:
            cast(Any, given).members = []  # else it keeps all that ever was
            content = given.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            name = normpath(member.name).lstrip("/")
            if name == ".dockerignore":
                ignored = content.read()
            elif _is_archive(content.read(tarfile.BLOCKSIZE)):
                archives.add(name)
    return Seen(archives, ignored)


def check_plain(stream: Iterator[bytes]) -> None:
    """Raises PolicyRefused where a tar has what is no file, directory or link."""
    with tarfile.open(fileobj=BufferedReader(Body(stream)), mode="r|") as given:
        for member in given:
            cast(Any, given).members = []
            if member.isdev():  # pipes too
                raise PolicyRefused(
                    f"{member.name[:100]!r} is a device or a pipe, which the host's engine does not copy here, as root of the host.",
                    "Name the files that are wanted, without patterns and variables; or copy them in a RUN step.",
                )


def _is_archive(head: bytes) -> bool:
    if head.startswith(_PACKED) or (head[1:4] == b"\x2a\x4d\x18" and head[:1] and head[0] & 0xF0 == 0x50):
        return True
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
