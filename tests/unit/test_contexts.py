"""A build's context as a client may have spoilt it: each wall by itself, for several of them hold the same thing back."""

import binascii
import gzip
import io
import lzma
import tarfile

import pytest

from manyoyo_mcp.errors import ContextRefused, InvalidArgument
from manyoyo_mcp.policy import bounded, contexts
from manyoyo_mcp.policy.contexts import Links
from tests.unit.test_gate import add, archive, copied


def entry(name: str, **attributes: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def reading(raw: bytes, largest: int = 1 << 20) -> bytes:
    return contexts._Checked(io.BytesIO(raw), largest).read(len(raw) + 1)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (entry("x", type=tarfile.CHRTYPE), "a device"),
        (entry("x", type=tarfile.FIFOTYPE), "a pipe"),
        (entry("x", type=tarfile.GNUTYPE_SPARSE, sparse=[(0, 1)]), "a sparse file"),
        (entry("a\0b"), "no name of a file"),
        (entry("x", type=tarfile.SYMTYPE, linkname="a\0b"), "no name of a file"),
        (entry("a/" * 2049), "no name of a file"),
        (entry("a/../../x"), "leads out"),
        (entry("x", type=tarfile.LNKTYPE, linkname="../x"), "leads out"),
    ],
)
def test_entries_that_are_no_part_of_a_context(given: tarfile.TarInfo, why: str) -> None:
    with pytest.raises(ContextRefused, match=why):
        contexts._entry(given)


def test_what_an_entry_says_beside_is_not_taken_over() -> None:
    kept = contexts._entry(entry("x", size=5, mtime=-7.5, uname="root", type=tarfile.CONTTYPE, pax_headers={"a": "b"}))
    assert (kept.size, kept.mtime, kept.uname, kept.type, kept.pax_headers) == (5, 0, "", tarfile.REGTYPE, {})
    assert contexts._entry(entry("x", size=5, type=tarfile.DIRTYPE)).size == 0


@pytest.mark.parametrize("kind", [b"3", b"4", b"6", b"S", b"V", b"?"])
def test_headers_of_what_is_no_part_of_a_context(kind: bytes) -> None:
    with pytest.raises(ContextRefused, match="a device"):
        reading(entry("x", type=kind).tobuf(tarfile.USTAR_FORMAT))


def sized(field: bytes, kind: bytes = b"0", name: bytes = b"x") -> bytes:
    block = bytearray(entry(name.decode(), type=kind).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = field
    return bytes(block)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (sized(b"\xff" * 12), "size is none"),
        (sized(b"00000001000\0", b"\0", b"d/"), "size is none"),
        (sized(b"00000210000\0", b"L"), "too long"),
        (sized(b"00000000000\0", b"L") * 5, "too long"),
        (sized(b"00000000011\0", b"x") + b"broken and".ljust(512, b"\0"), "broken"),
    ],
)
def test_headers_that_are_read_in_several_ways(raw: bytes, why: str) -> None:
    with pytest.raises(tarfile.ReadError, match=why):
        reading(raw)


@pytest.mark.parametrize(
    "body",
    [
        b"270 path=" + b"1" * 260 + b"\n",
        b"00000012?a=\n",
        b"+7 a=b\n",
        b"8 path=x",
        b"99 path=x\n",
        b"8 pathx\n",
        b"12 size=512\n",
        b"18 GNU.sparse.a=b\n",
    ],
)
def test_records_of_extended_headers_that_are_none(body: bytes) -> None:
    with pytest.raises(tarfile.ReadError):
        contexts._pax(body)


def test_records_that_do_not_count_are_left_out() -> None:
    path, link, times = (
        b"9 path=x\n",
        b"13 linkpath=y\n"[:0] + b"14 linkpath=y\n",
        b"12 mtime=1.5\n"[:0] + b"13 mtime=1.5\n",
    )
    body = path + b"13 comment=z\n"[:0] + b"14 comment=zz\n"[:0] + link + b"9 uid=17\n"[:0] + times
    header, kept = contexts._pax(body + b"11 gname=x\n"[:0] + b"10 uid=17\n" + path)
    assert kept == body + path and header[156:157] == b"x"


def test_what_is_read_is_counted_whatever_it_is() -> None:
    with pytest.raises(ContextRefused, match="larger than"):
        reading(bytes(10_240), largest=1024)
    with pytest.raises(ContextRefused, match="larger than"):
        reading(sized(b"00000010000\0") + bytes(8192), largest=1024)


def test_a_size_that_is_said_counts_before_anything_is_read() -> None:
    """As of a file that is nearly all holes."""
    given = io.BytesIO(entry("Dockerfile", size=1 << 32).tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(ContextRefused, match="larger than"):
        copied(given)


@pytest.mark.parametrize(
    ("raw", "why"), [(None, "no regular file"), (b"#" * (contexts.MAX_DOCKERFILE + 1), "larger than"), (b"\xff", "UTF-8"), (b"FROM x\0", "UTF-8")]
)  # fmt: skip
def test_dockerfiles_that_are_none(raw: bytes | None, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        contexts.check(raw, "Dockerfile")


def test_where_reading_fails_is_no_end() -> None:
    """Or half a context would be built."""
    entry = archive(lambda out: add(out, "Dockerfile", b"FROM x\n")).getvalue()[:1024]
    assert copied(io.BytesIO(gzip.compress(entry, mtime=0)))
    with pytest.raises(InvalidArgument, match="can't be read"):
        copied(io.BytesIO(gzip.compress(entry, mtime=0) + b"junk"))


def test_a_context_has_to_have_the_dockerfile() -> None:
    with pytest.raises(InvalidArgument, match="no Dockerfile in the context"):
        copied(archive(lambda out: add(out, "other", b"FROM x\n")))


def test_the_dockerfile_is_not_read_through_a_link_that_came_after_it() -> None:
    """It is written once more at the end: below what is a link by then."""

    def fill(out: tarfile.TarFile) -> None:
        add(out, "d/Dockerfile", b"FROM x\n")
        add(out, "d", type=tarfile.SYMTYPE, linkname="/x")

    with pytest.raises(ContextRefused, match="below a link"):
        copied(archive(fill), "d/Dockerfile")


def test_entries_and_links_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "_MAX_ENTRIES", 3)
    with pytest.raises(ContextRefused, match="more than 3 entries"):
        copied(archive(lambda out: [add(out, name) for name in ("Dockerfile", "a", "b", "c")]))
    monkeypatch.setattr(contexts, "_MAX_LINKS", 2)
    links = Links()
    for name in ("a", "b"):
        links.check(entry(name, type=tarfile.SYMTYPE, linkname="x"))
    with pytest.raises(ContextRefused, match="more than 2 links"):
        links.check(entry("c", type=tarfile.SYMTYPE, linkname="x"))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (entry("/", type=tarfile.SYMTYPE, linkname="x"), "no name of a file"),
        (entry("a/" * 300 + "x"), "no name of a file"),
        (entry("link/x"), "below a link"),
        (entry("./link//a/x"), "below a link"),
        (entry("h", type=tarfile.LNKTYPE, linkname="link/x"), "below a link"),
        (entry("h", type=tarfile.LNKTYPE, linkname="./link"), "hard link to a link"),
        (entry("D.dockerignore", type=tarfile.SYMTYPE, linkname="x"), "is a link"),
        (entry("a/.containerignore", type=tarfile.SYMTYPE, linkname="x"), "is a link"),
    ],
)
def test_what_links_may_not_be_or_lead_to(given: tarfile.TarInfo, why: str) -> None:
    links = Links()
    links.check(entry("link", type=tarfile.SYMTYPE, linkname="/x"))
    with pytest.raises(ContextRefused, match=why):
        links.check(given)
    links.check(entry("linked/x"))
    links.check(entry("h", type=tarfile.LNKTYPE, linkname="linked/x"))


def test_what_is_unpacked_in_a_container_of_the_hosts() -> None:
    def passed(raw: bytes, largest: int = 1 << 20) -> list[tuple[str, bytes, str]]:
        spool = io.BytesIO()
        contexts.copy(io.BytesIO(raw), None, largest, spool)
        with tarfile.open(fileobj=io.BytesIO(spool.getvalue())) as out:
            return [(each.name, each.type, each.linkname) for each in out]

    def fill(out: tarfile.TarFile) -> None:
        out.addfile(entry("d", type=tarfile.DIRTYPE))
        out.addfile(entry("d/link", type=tarfile.SYMTYPE, linkname="../../x"))
        add(out, "d/file", b"content")

    good = archive(fill).getvalue()
    expected = [("d", tarfile.DIRTYPE, ""), ("d/link", tarfile.SYMTYPE, "../../x"), ("d/file", tarfile.REGTYPE, "")]
    assert passed(good) == passed(gzip.compress(good)) == expected
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        with pytest.raises(ContextRefused, match="a device"):
            passed(entry("x", type=kind).tobuf() + bytes(1024))
        with pytest.raises(ContextRefused, match="a device"):  # nor by the tools' own way
            bounded._plain(entry("x", type=kind).tobuf() + bytes(1024))
    assert bounded._plain(iter([good[:700], good[700:]]))
    with pytest.raises(ContextRefused, match="larger"):
        passed(good, 1024)
    with pytest.raises(InvalidArgument):
        passed(b"x" * 2000)


def hungry(packed: bytes) -> bytes:
    """The same xz file, which asks for 1.5 GiB to be unpacked (the .xz file format, 3.1 and 5.3.1)."""
    header = bytearray(packed[12 : 12 + (packed[12] + 1) * 4])
    assert header[2:4] == b"\x21\x01", "its one filter is LZMA2"
    header[4] = 37
    header[-4:] = binascii.crc32(header[:-4]).to_bytes(4, "little")
    return packed[:12] + bytes(header) + packed[12 + len(header) :]


def test_what_xz_packed_takes_no_more_memory_than_it_needs() -> None:
    plain = archive(lambda out: add(out, "Dockerfile", b"abc" * 20_000)).getvalue()
    packed = lzma.compress(plain)
    expected = copied(io.BytesIO(plain))
    half = len(plain) // 2
    for whole in (packed, packed + bytes(8), lzma.compress(plain[:half]) + bytes(4) + lzma.compress(plain[half:])):
        assert copied(io.BytesIO(whole)) == expected
    for broken, why in (
        (packed[:40], "ended early"),
        (packed[:60] + b"\xff" + packed[61:], "Corrupt"),
        (hungry(packed), "Memory usage limit"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            copied(io.BytesIO(broken))
