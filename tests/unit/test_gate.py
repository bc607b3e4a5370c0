"""A gate's socket, without anything behind it: whose it is, how it ends, what is left of it; and contexts that are written anew."""

import contextlib
import gzip
import io
import socket
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.dialled import SocketLike
from manyoyo_mcp.errors import AuditUnavailable, ContextRefused, InvalidArgument
from manyoyo_mcp.policy.base import Limits, Query
from manyoyo_mcp.policy.connection import Ways
from manyoyo_mcp.policy.contexts import copy
from manyoyo_mcp.policy.gate import Gate
from manyoyo_mcp.policy.witness import Witness
from manyoyo_mcp.sessions import endpoints
from manyoyo_mcp.values import Caps


def nowhere() -> SocketLike:
    raise ConnectionRefusedError("nobody listens")


WAYS = Ways(
    nowhere, lambda: Limits(Caps(1, 1 << 30, 9), Caps(1, 1 << 30, 9)), 1 << 20, lambda: None, lambda build: None
)


def ask(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(request)
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
        return answer


@pytest.mark.parametrize(
    ("request_", "status", "why"),
    [
        (b"GRPC /moby.buildkit.v1.Control/Solve HTTP/1.1\r\nHost: x\r\n\r\n", b" 403 ", b"goes over POST /grpc"),
        (b"POST /moby.buildkit.v1.Control/Solve HTTP/1.1\r\nHost: x\r\n\r\n", b" 403 ", b"not among the engine calls"),
        (b"POST /v1.41/grpc HTTP/1.1\r\nHost: x\r\n\r\n", b" 400 ", b"no upgrade to h2c"),
        (
            b"POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            b" 503 ",
            b"does not answer",
        ),
        (b"POST /build?version=2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b" 403 ", b"Use docker buildx"),
    ],
)
def test_ways_to_buildkit_that_are_none(tmp_path: Path, request_: bytes, status: bytes, why: bytes) -> None:
    gate = Gate(tmp_path / "x.sock", WAYS)
    gate.open()
    try:
        answer = ask(gate.path, request_)
        assert status in answer and why in answer, answer
    finally:
        gate.close()


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_who_may_connect_to_a_gate(tmp_path: Path, mode: int) -> None:
    """Its owner alone, but where the ids of who is to come are moved."""
    gate = Gate(tmp_path / "x.sock", WAYS, *([] if mode == 0o600 else [mode]))
    gate.open()
    try:
        assert gate.path.stat().st_mode & 0o777 == mode
    finally:
        gate.close()


def test_a_gate_to_nowhere_says_so_and_closes(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "x.sock", WAYS)
    gate.open()
    try:
        assert gate.path.stat().st_mode & 0o777 == 0o600
        assert (
            b" 503 " in (answer := ask(gate.path, b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"))
            and b"does not answer" in answer
        )
        held = socket.socket(socket.AF_UNIX)
        held.connect(str(gate.path))
    finally:
        gate.close()
        gate.close()
    held.settimeout(10)
    with contextlib.suppress(ConnectionResetError):  # as it is where nobody had let it in yet
        assert held.recv(1) == b"", "whoever is connected is hung up on"
    held.close()
    assert list(tmp_path.iterdir()) == []


class Refuses(Witness):
    """Can't put anything on record."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def asked(self, method: str, path: str, query: Query, narrowed: bool) -> Callable[[int | None], None]:
        raise AuditUnavailable("no room", "Make room.")

    def refused(self, method: str, path: str, code: str, reason: str) -> None:
        self.told.append((method, path, code))


def test_what_can_not_be_put_on_record_does_not_go_on(tmp_path: Path) -> None:
    witness = Refuses()
    gate = Gate(tmp_path / "x.sock", replace(WAYS, witness=witness))
    gate.open()
    try:
        answer = ask(gate.path, b"POST /containers/x/start HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert b" 503 " in answer and b"no room" in answer
        for harmless in (b"GET /containers/json", b"POST /containers/x/wait"):
            answer = ask(gate.path, harmless + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert b"does not answer" in answer, "it goes on, to nowhere"
        assert b" 403 " in ask(gate.path, b"PUT /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert b" 400 " in ask(gate.path, b"rubbish\r\n\r\n")
    finally:
        gate.close()
    assert witness.told == [
        ("POST", "/containers/x/start", "AUDIT_UNAVAILABLE"),
        ("PUT", "/nothing", "POLICY_REFUSED"),
        ("", "", "INVALID_ARGUMENT"),
    ]


def test_what_dead_sessions_left_is_removed(tmp_path: Path) -> None:
    settings = Settings(runtime_dir=tmp_path)
    dead, live = (tmp_path / "gates" / name / "sb-1.sock" for name in ("dead", "live"))
    dead.parent.mkdir(parents=True)
    live.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    gate = Gate(live, WAYS)
    gate.open()
    try:
        endpoints.forget_dead(settings)
        assert not dead.parent.exists() and live.exists()
    finally:
        gate.close()
    endpoints.forget(settings, "live")
    assert list((tmp_path / "gates").iterdir()) == []


def archive(fill: Callable[[tarfile.TarFile], object], mode: str = "w") -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as out:  # type: ignore[call-overload]
        fill(out)
    buffer.seek(0)
    return buffer


def add(out: tarfile.TarFile, name: str, content: bytes = b"", **attributes: object) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in attributes.items():
        setattr(entry, key, value)
    out.addfile(entry, io.BytesIO(content))


def copied(given: io.BytesIO, dockerfile: str = "Dockerfile", largest: int = 1 << 20) -> list[tuple[str, bytes | None]]:
    spool = io.BytesIO()
    copy(given, dockerfile, largest, spool)
    spool.seek(0)
    with tarfile.open(fileobj=spool) as read:
        found: list[tuple[str, bytes | None]] = []
        for each in read.getmembers():
            file = read.extractfile(each) if each.isreg() else None
            found.append((each.name, file.read() if file is not None else None))
        return found


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_context_is_the_same_but_for_the_dockerfile_at_its_end(mode: str) -> None:
    def fill(out: tarfile.TarFile) -> None:
        add(out, "Dockerfile", b"FROM x\n")
        add(out, "dir", type=tarfile.DIRTYPE)
        add(out, "dir/" + "long" * 60, b"content")
        add(out, "link", type=tarfile.SYMTYPE, linkname="dir")

    names = copied(archive(fill, mode))
    assert names == [
        ("Dockerfile", b"FROM x\n"), ("dir", None), ("dir/" + "long" * 60, b"content"), ("link", None), ("Dockerfile", b"FROM x\n"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fill", "error"),
    [
        (lambda out: add(out, "Dockerfile", type=tarfile.SYMTYPE, linkname="x"), InvalidArgument),
        (lambda out: add(out, "Dockerfile", type=tarfile.DIRTYPE), InvalidArgument),
        (lambda out: [add(out, "Dockerfile", b"FROM x\n"), add(out, "dev", type=tarfile.BLKTYPE)], ContextRefused),
        (lambda out: [add(out, "Dockerfile", b"FROM x\n"), add(out, "pipe", type=tarfile.FIFOTYPE)], ContextRefused),
        (lambda out: [add(out, "Dockerfile", b"FROM x\n"), add(out, "a/../../x", b"x")], ContextRefused),
        (
            lambda out: [add(out, "Dockerfile", b"FROM x\n"), add(out, "h", type=tarfile.LNKTYPE, linkname="../x")],
            ContextRefused,
        ),
        (lambda out: [add(out, "Dockerfile", b"FROM x\n"), add(out, "large", b"x" * (1 << 20))], ContextRefused),
        (lambda out: add(out, "Dockerfile", b"FROM x\n\0"), InvalidArgument),
    ],
)
def test_contexts_that_are_refused(fill: Callable[[tarfile.TarFile], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        copied(archive(fill))


@pytest.mark.parametrize(
    "fill",
    [
        lambda out: [add(out, "d", type=tarfile.SYMTYPE, linkname="/usr/lib"), add(out, "d/x", b"x")],
        lambda out: [add(out, "d", type=tarfile.SYMTYPE, linkname="."), add(out, "./d//e/x", b"x")],
        lambda out: [
            add(out, "d", type=tarfile.SYMTYPE, linkname="/x"),
            add(out, "h", type=tarfile.LNKTYPE, linkname="d"),
            add(out, "h/x", b"x"),
        ],
        lambda out: [
            add(out, "d", type=tarfile.SYMTYPE, linkname="/x"),
            add(out, "h", type=tarfile.LNKTYPE, linkname="d/passwd"),
        ],
        lambda out: [
            add(out, "x", type=tarfile.SYMTYPE, linkname="/x"),
            add(out, "Dockerfile.dockerignore", type=tarfile.LNKTYPE, linkname="x"),
        ],
        lambda out: add(out, "/", type=tarfile.SYMTYPE, linkname="/build"),
        lambda out: add(out, "a/" * 300 + "x"),
        lambda out: add(out, ".dockerignore", type=tarfile.SYMTYPE, linkname="/etc/shadow"),
        lambda out: add(out, "d\0x", type=tarfile.SYMTYPE, linkname="/x", pax_headers={"path": "d\0x"}),
    ],
)
def test_nothing_lies_below_a_link(fill: Callable[[tarfile.TarFile], object]) -> None:
    with pytest.raises((ContextRefused, InvalidArgument)):
        copied(archive(lambda out: [add(out, "Dockerfile", b"FROM x\n"), fill(out)]))


def pax(body: bytes, kind: bytes = b"x") -> io.BytesIO:
    """An archive that begins with an extended header of this body."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, len(body)
    rest = archive(lambda out: add(out, "Dockerfile", b"FROM x\n")).getvalue()
    return io.BytesIO(header.tobuf(tarfile.USTAR_FORMAT) + body + b"\0" * (-len(body) % 512) + rest)


@pytest.mark.parametrize(
    "body",
    [
        b"1" * 60_000, b"9 a=\n", b"20 size=99999999999\n", b"12 size=512\n", b"20 GNU.sparse.map=a\n", b"x", b"3 =\n", b"99 path=x\n",
        b"x" * 70_000, b"60006 a=" + b"1" * 59_997 + b"\n", b"1 a=b\n",
    ],
)  # fmt: skip
def test_extended_headers_that_are_none(body: bytes) -> None:
    begun = time.monotonic()
    with pytest.raises((ContextRefused, InvalidArgument)):
        copied(pax(body))
    assert time.monotonic() - begun < 5, "tarfile takes a time that grows with the square"


def test_headers_in_a_row_have_an_end() -> None:
    one = pax(b"", b"L").getvalue()[:512]
    with pytest.raises(InvalidArgument):
        copied(io.BytesIO(one * 3000))


def test_what_pads_an_extended_header_is_none_of_it() -> None:
    header = tarfile.TarInfo("pax")
    body = b"6 a=b\n"
    header.type, header.size = tarfile.XHDTYPE, len(body)
    rest = archive(lambda out: add(out, "Dockerfile", b"FROM x\n")).getvalue()
    given = header.tobuf(tarfile.USTAR_FORMAT) + (body + b"10 size=0\n").ljust(512, b"\0") + rest
    assert copied(io.BytesIO(given))[0] == ("Dockerfile", b"FROM x\n")


def test_a_directory_of_old_has_no_data() -> None:
    """tarfile takes a name that ends in a slash for a directory's, up to its first null byte, and what follows for headers."""
    entry = tarfile.TarInfo("d")
    entry.size = 512
    block = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    block[:5], block[156:157] = b"d/\0x\0", b"\0"
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    rest = archive(lambda out: add(out, "Dockerfile", b"FROM x\n")).getvalue()
    with pytest.raises(InvalidArgument):
        copied(io.BytesIO(bytes(block) + b"\0" * 512 + rest))


def test_names_and_times_of_pax_are_kept() -> None:
    def fill(out: tarfile.TarFile) -> None:
        add(out, "Dockerfile", b"FROM x\n", mtime=1.5)
        add(out, "ü" * 100 + "/" + "é" * 90, b"x")
        add(out, ".gitignore", type=tarfile.SYMTYPE, linkname="ß" * 150)

    names = [name for name, _ in copied(archive(fill))]
    assert names == ["Dockerfile", "ü" * 100 + "/" + "é" * 90, ".gitignore", "Dockerfile"]


@pytest.mark.parametrize(
    "junk",
    [
        gzip.compress(b"x" * 2000, mtime=0) + b"junk",
        b"BZh9junk",
        b"\xfd7zXZ\0junk",
        gzip.compress(b"y" * 9000, mtime=0)[:-9],
    ],
    ids=["gzip and more", "bzip2", "xz", "half a gzip"],
)
def test_what_is_compressed_badly_is_the_clients_fault(junk: bytes) -> None:
    with pytest.raises(InvalidArgument):
        copied(io.BytesIO(junk))


def test_names_count_too() -> None:
    def fill(out: tarfile.TarFile) -> None:
        add(out, "Dockerfile", b"FROM x\n")
        for index in range(100):
            add(out, f"{index}/" + "n/" * 20_000)

    with pytest.raises((ContextRefused, InvalidArgument)):
        copied(archive(fill))


def test_a_bomb_ends_at_the_limit() -> None:
    bomb = io.BytesIO(gzip.compress(archive(lambda out: add(out, "zeros", b"\0" * (64 << 20))).getvalue()))
    with pytest.raises(ContextRefused, match="larger than"):
        copied(bomb)


def test_extended_headers_name_nothing_else() -> None:
    def fill(out: tarfile.TarFile) -> None:
        add(out, "Dockerfile", b"FROM x\n", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y", "comment": "x"})

    spool = io.BytesIO()
    copy(archive(fill), "Dockerfile", 1 << 20, spool)
    assert b"SCHILY" not in spool.getvalue()
