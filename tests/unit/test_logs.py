"""Logs on disk: whole while they are short, bounded when they are not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.sessions.logs import Log


def test_pages(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", 1 << 20)
    log.write(b"0123456789")
    first = log.read(0, 4)
    assert (first.data, first.next_offset, first.end) == (b"0123", 4, False)
    last = log.read(first.next_offset, 100)
    assert (last.data, last.end, last.size) == (b"456789", True, 10)
    assert log.read(-3, 100).data == b"789"
    assert log.read(10, 100).data == b""
    with pytest.raises(InvalidArgument):
        log.read(11, 1)


def test_short_ones_take_no_file(tmp_path: Path) -> None:
    log = Log(tmp_path / "logs" / "log", 1 << 20)
    log.write(b"0123456789")
    log.close()
    log.write(b"late")
    assert log.read(4, 3).data == b"456" and log.size == 10
    assert not (tmp_path / "logs").exists()
    longer = Log(tmp_path / "logs" / "log", 1 << 20)
    for _ in range(20):
        longer.write(b"x" * 1000)
    assert longer.read(0, 1 << 20).data == b"x" * 20_000
    assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) == 20_000
    longer.remove()
    assert not list((tmp_path / "logs").iterdir())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=60))
def test_head_and_tail_of_a_long_log_stay(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    log = Log((directory := tmp_path_factory.mktemp("logs")) / "log", 1000)
    for piece in pieces:
        log.write(piece)
    whole = b"".join(pieces)
    assert log.size == len(whole)
    assert log.read(0, 500).data == whole[:500]
    if whole:
        tail = log.read(max(0, len(whole) - 200), 1000)
        assert whole.endswith(tail.data) and tail.end
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 1000
    seen, offset = bytearray(), 0
    while True:
        page = log.read(offset, 64)
        assert whole[page.offset : page.next_offset] == page.data
        seen += page.data
        offset = page.next_offset
        if page.end:
            break
    assert len(whole) - len(seen) <= max(0, len(whole) - 750)


def test_what_was_dropped_is_counted(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", 1000)
    log.write(bytes(10_000))
    page = log.read(500, 10)
    assert page.offset > 500 and page.skipped == page.offset - 500
