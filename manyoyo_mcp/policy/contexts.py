"""A build context that a client sent, written anew: what the builder reads is what was judged, and nothing else.

A Dockerfile has to be UTF-8: podman's own store has a name there that is not (docs/decisions/0007-transports.md). And nothing may lie
below a link: podman unpacks contexts in the outer container's file system, where a link leads wherever it says.
"""

import bz2
import gzip
import io
import lzma
import posixpath
import re
import tarfile
import zlib
from typing import IO, Any, cast

from manyoyo_mcp.errors import ContextRefused, InvalidArgument
from manyoyo_mcp.values import format_bytes

MAX_DOCKERFILE = 512 << 10
FEWER = "Write fewer patterns: the name of a directory leaves out all that is below it."
"""Largest Dockerfile, in bytes: a hundred times what people write."""
_MAX_HEADER = 64 << 10
"""Bytes of an extended header; names are 4,096 at most (PATH_MAX)."""
_MAX_ENTRIES = 500_000
_EXTENDED, _DATA, _PLAIN = b"xgLK", b"0\0007", b"125"
"""Types of entries (ustar, pax, GNU): headers for the next, files, and what has no data: hard link, link, directory."""
_MAX_EXTENDED = 4
"""Extended headers in a row: a long name, a long link, one of pax and a global one."""
_MAX_LINKS = 20_000
_MAX_DEPTH = 255
_NEVER = re.compile(rb"size|GNU\.sparse\..*", re.DOTALL)
"""Keys of pax that change where the next header lies."""
_PASSED = (b"path", b"linkpath", b"mtime")
_DIGITS = re.compile(rb"[0-9]{256}")
"""No part of a name is that long, and a reader may try each of them as the beginning of a record (CVE-2024-6232)."""
_XZ = 128 << 20
"""Bytes of memory for what xz packed: twice what its strongest preset asks for."""
_IGNORES = (".dockerignore", ".containerignore")
_LESS = "Leave out what is not needed; a build's context has a .dockerignore for that."
_UNREADABLE = "It is a tar archive, plain or compressed with gzip, bzip2 or xz."


class Links:
    """The links of a context, as they are written to it; what would lie below one is refused."""

    def __init__(self) -> None:
        self._links: set[str] = set()

    def check(self, entry: tarfile.TarInfo) -> None:
        """Raises ContextRefused."""
        name = _normal(entry.name)
        if (not name and not entry.isdir()) or name.count("/") > _MAX_DEPTH:
            raise ContextRefused(f"{entry.name[:100]!r} is no name of a file.", "Leave it out.")
        self._no_link_above(name)
        if entry.islnk():
            aim = _normal(entry.linkname)
            self._no_link_above(aim)
            if aim in self._links:
                raise ContextRefused(f"{name[:200]!r} is a hard link to a link.", "Put a link there.")
        if entry.issym():
            if name.endswith(_IGNORES):
                raise ContextRefused(f"{name[:200]!r} is a link.", "Put the file itself there.")
            if len(self._links) >= _MAX_LINKS:
                raise ContextRefused(f"The build context has more than {_MAX_LINKS} links.", "Use a .dockerignore.")
            self._links.add(name)

    def _no_link_above(self, name: str) -> None:
        above = posixpath.dirname(name)
        while above:
            if above in self._links:
                raise ContextRefused(
                    f"{name[:200]!r} lies below a link, {above[:200]!r}.", "Put the directory itself there."
                )
            above = posixpath.dirname(above)


def _normal(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")


def copy(given: IO[bytes], dockerfile: str | None, largest: int, spool: IO[bytes]) -> None:
    """Copy a tar, compressed or not, into `spool`, uncompressed: files, directories and links. Of a build's context the judged text of
    `dockerfile` comes once more at its end, so that it is what is read by that name, and nothing lies below a link.

    Raises ContextRefused for what is no part of that, or beyond `largest` bytes; InvalidArgument for a Dockerfile
    that is none, and for what is no archive.
    """
    last: tuple[tarfile.TarInfo, bytes] | None = None
    links, count, size = Links(), 0, 0
    try:
        checked: Any = _Checked(_decompressed(given), largest)
        with (
            tarfile.open(fileobj=checked, mode="r|") as archive,
            tarfile.open(
                fileobj=cast(Any, spool), mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape"
            ) as out,
        ):
            for member in archive:
                for each in (archive, out):
                    cast(Any, each).members = []  # else they keep all that ever was
                count += 1
                if count > _MAX_ENTRIES:
                    raise ContextRefused(f"What was sent has more than {_MAX_ENTRIES} entries.", _LESS)
                entry = _entry(member)
                if dockerfile is not None:
                    links.check(entry)
                size += entry.size
                if size > largest:  # as it would be of a sparse file
                    raise _too_large(largest)
                content = archive.extractfile(member) if entry.isreg() else None
                if dockerfile is not None and _normal(entry.name) == dockerfile:
                    raw = content.read(MAX_DOCKERFILE + 1) if content is not None else None
                    last, content = (entry, check(raw, dockerfile)), io.BytesIO(raw or b"")
                out.addfile(entry, content)
            if dockerfile is not None:
                if last is None:
                    raise InvalidArgument(f"There is no {dockerfile} in the context.", "Name it with -f.")
                links.check(last[0])
                out.addfile(last[0], io.BytesIO(last[1]))
        while given.read(1 << 16):  # what pads it
            pass
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InvalidArgument(f"What was sent can't be read: {str(error)[:200]}.", _UNREADABLE) from error


def _entry(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if member.issparse() or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ContextRefused(
            f"{member.name[:200]!r} is a device, a pipe or a sparse file, which may not be sent.",
            "Leave it out.",
        )
    for name in (member.name, member.linkname):
        if "\0" in name or len(name) > 4096:
            raise ContextRefused(f"{name[:100]!r} is no name of a file.", "Leave it out.")
    if ".." in member.name.split("/") or (member.islnk() and ".." in member.linkname.split("/")):
        raise ContextRefused(f"{member.name[:200]!r} leads out of the context.", "Leave it out.")
    entry = tarfile.TarInfo(member.name)
    entry.type = tarfile.REGTYPE if member.isreg() else member.type
    entry.size = member.size if member.isreg() else 0
    entry.linkname, entry.mode, entry.mtime = member.linkname, member.mode, max(0, int(member.mtime))
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


def _decompressed(given: IO[bytes]) -> IO[bytes]:
    peeked = io.BufferedReader(_Whole(given), 1 << 16)
    magic = peeked.peek(6)[:6]
    kind: Any = peeked
    if magic.startswith(b"\x1f\x8b"):
        kind = gzip.GzipFile(fileobj=peeked)
    elif magic.startswith(b"BZh"):
        kind = bz2.BZ2File(peeked)
    elif magic.startswith(b"\xfd7zXZ"):
        kind = io.BufferedReader(_Unpacked(peeked), 1 << 16)
    return kind  # type: ignore[no-any-return]


class _Whole(io.RawIOBase):
    """Another file's bytes, which stays open when this is closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Unpacked(io.RawIOBase):
    """What an xz file holds, one stream after another; Python's own takes as much memory as a file says. Raises lzma.LZMAError, EOFError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream = _stream()
        self._begun = False
        self._raw = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof:
                self._raw = self._stream.unused_data
                self._stream, self._begun = _stream(), False
            if not self._begun:  # four zeros at a time may stand between streams
                self._raw = self._raw.lstrip(b"\0")
            if not self._raw and self._stream.needs_input:
                self._raw = self._file.read(1 << 16)
                if not self._raw:
                    if self._begun:
                        raise EOFError("the compressed file ended early")
                    return 0
                continue
            self._begun = True
            data = self._stream.decompress(self._raw, len(buffer))
            self._raw = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


def _stream() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ)


class _Checked:
    """A tar as it is read, each header looked at before tarfile sees it: what takes long to read, or is read differently by others, is
    refused. Raises ContextRefused, tarfile.TarError."""

    def __init__(self, file: IO[bytes], largest: int) -> None:
        self._file = file
        self._left, self._largest = largest, largest
        self._data = 0
        """Bytes of the present entry's data, padded, that were not read yet."""
        self._extended = 0

    def read(self, count: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < count:
            piece = self._some(min(self._data, count - len(pieces))) if self._data else self._header()
            if not piece:
                break
            pieces += piece
        return bytes(pieces)

    def _some(self, count: int) -> bytes:
        piece = self._read(count)
        self._data -= len(piece)
        return self._counted(piece)

    def _counted(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise _too_large(self._largest)
        return piece

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except (TimeoutError, ConnectionError):
            raise
        except OSError as error:  # what gzip and bz2 say of what is neither
            raise tarfile.ReadError(str(error)) from error

    def _whole(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (piece := self._read(count - len(data))):
            data += piece
        return self._counted(data)

    def _header(self) -> bytes:
        block = self._whole(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE or not block.strip(b"\0"):
            return block
        size, kind = tarfile.nti(block[124:136]), block[156:157]  # type: ignore[attr-defined]
        if size < 0 or (kind == b"\0" and size and block[:100].partition(b"\0")[0].endswith(b"/")):
            raise tarfile.ReadError("an entry's size is none")
        padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if kind not in _EXTENDED:
            self._extended = 0
            if kind in _DATA:
                self._data = padded
            elif kind not in _PLAIN:
                raise ContextRefused("The archive has a device, a pipe or a sparse file.", "Leave it out.")
            return block
        self._extended += 1
        if size > _MAX_HEADER or self._extended > _MAX_EXTENDED:
            raise tarfile.ReadError("an extended header is too long")
        body = self._whole(padded)[:size]
        if kind == b"g":
            return self._header()
        if kind == b"x":
            block, body = _pax(body)
        return block + body + b"\0" * (-len(body) % tarfile.BLOCKSIZE)


def _pax(body: bytes) -> tuple[bytes, bytes]:
    """An extended header, its block and its body, of what counts in another's: records of "LENGTH KEY=VALUE", one after another (pax,
    POSIX.1-2008)."""
    at, kept = 0, b""
    if _DIGITS.search(body):
        raise tarfile.ReadError("an extended header is nothing but digits")
    while at < len(body):
        digits, space, _ = body[at : at + 8].partition(b" ")
        if not space or not digits.isdigit():
            raise tarfile.ReadError("an extended header is broken")
        end = at + int(digits)
        record = body[at + len(digits) + 1 : end]
        key, equals, _ = record.partition(b"=")
        if end > len(body) or not record.endswith(b"\n") or not equals or _NEVER.fullmatch(key):
            raise tarfile.ReadError("an extended header is broken, or of a sparse or huge file")
        if key in _PASSED:
            kept += body[at:end]
        at = end
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(kept)
    return header.tobuf(tarfile.USTAR_FORMAT), kept


def _too_large(largest: int) -> ContextRefused:
    return ContextRefused(
        f"What was sent is larger than {format_bytes(largest)}.", f"{_LESS} Or raise MANYOYO_CONTEXT_MAX_BYTES."
    )
