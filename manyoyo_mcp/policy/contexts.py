"""A build context that a client sent, written anew: what the builder reads is what was judged, and nothing else.

A Dockerfile has to be UTF-8: podman's own store has a name there that is not (docs/decisions/0007-transports.md).
"""

import io
import posixpath
import tarfile
from typing import IO

from manyoyo_mcp.errors import ContextRefused, InvalidArgument
from manyoyo_mcp.values import format_bytes

MAX_DOCKERFILE = 512 << 10
"""Largest Dockerfile, in bytes: a hundred times what people write."""


def copy(given: IO[bytes], dockerfile: str, largest: int, spool: IO[bytes]) -> None:
    """Copy a tar, compressed or not, into `spool`, uncompressed; the judged text of `dockerfile` once more at its end, so
    that it is what is read by that name, wherever links among the rest lead.

    Raises ContextRefused for what is no part of a context, or beyond `largest` bytes; InvalidArgument for a Dockerfile
    that is none.
    """
    size = 0
    last: tuple[tarfile.TarInfo, bytes] | None = None
    try:
        with (
            tarfile.open(fileobj=given, mode="r|*") as archive,
            tarfile.open(fileobj=spool, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape") as out,
        ):
            for member in archive:
                entry = _entry(member)
                size += tarfile.BLOCKSIZE + entry.size
                if size > largest:
                    raise ContextRefused(
                        f"The build context is larger than {format_bytes(largest)}.",
                        "Leave out what the build does not need with a .dockerignore, or raise MANYOYO_CONTEXT_MAX_BYTES.",
                    )
                content = archive.extractfile(member) if entry.isreg() else None
                if posixpath.normpath(entry.name) == dockerfile:
                    raw = content.read(MAX_DOCKERFILE + 1) if content is not None else None
                    last, content = (entry, check(raw, dockerfile)), io.BytesIO(raw or b"")
                out.addfile(entry, content)
            if last is None:
                raise InvalidArgument(f"There is no {dockerfile} in the context.", "Name it with -f.")
            out.addfile(last[0], io.BytesIO(last[1]))
    except tarfile.TarError as error:
        raise InvalidArgument(
            f"The build context can't be read: {error}.",
            "It is a tar archive, plain or compressed with gzip, bzip2 or xz.",
        ) from error


def _entry(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ContextRefused(
            f"{member.name[:200]!r} is a device or a pipe, which is no part of a context.", "Leave it out."
        )
    if ".." in member.name.split("/") or (member.islnk() and ".." in member.linkname.split("/")):
        raise ContextRefused(f"{member.name[:200]!r} leads out of the context.", "Leave it out.")
    entry = tarfile.TarInfo(member.name)
    entry.type = tarfile.REGTYPE if member.isreg() else member.type
    entry.size = member.size if member.isreg() else 0
    entry.linkname, entry.mode, entry.mtime = member.linkname, member.mode, member.mtime
    entry.uid, entry.gid = member.uid, member.gid
    return entry


def check(raw: bytes | None, name: str) -> bytes:
    """The same text. Raises InvalidArgument for what is no Dockerfile."""
    if raw is None:
        raise InvalidArgument(f"{name} is no regular file.", "Put the file itself there, not a link to it.")
    if len(raw) > MAX_DOCKERFILE:
        raise InvalidArgument(f"{name} is larger than {format_bytes(MAX_DOCKERFILE)}.", "That is no Dockerfile.")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidArgument(f"{name} is not text in UTF-8.", "That is no Dockerfile.")
    return raw
