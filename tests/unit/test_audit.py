"""The audit log: its chain, what of tampering is found, torn writes, rotation, many writers, and a disk that is full."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from manyoyo_mcp.audit import chain, files, journal
from manyoyo_mcp.audit.files import CURRENT, Busy, Files, locked, old_name
from manyoyo_mcp.audit.journal import Journal
from manyoyo_mcp.audit.reading import Wanted, entries
from manyoyo_mcp.audit.verifying import verify
from manyoyo_mcp.errors import AuditUnavailable
from tests.support import SLACK

BIG = 1 << 30


def opened(directory: Path, session: str = "aaaa", mode: journal.Mode = "required", most: int = BIG) -> Journal:
    return Journal(Files(directory, most, 3), mode, "0@here", session)


def call(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "call", "phase": "ended", "call": str(number), "tool": "nested_run", **more}


def written(directory: Path, count: int = 6) -> list[bytes]:
    """A log of so many calls after the two records that begin it; its lines."""
    one = opened(directory)
    for number in range(count):
        one.after_now(call(number))
    return (directory / CURRENT).read_bytes().splitlines(keepends=True)


def test_each_record_holds_the_hash_of_the_one_before(tmp_path: Path) -> None:
    lines = written(tmp_path)
    records = [json.loads(line) for line in lines]
    assert [each["kind"] for each in records] == ["log", "session"] + ["call"] * 6
    prev = "0" * 64
    for line, record in zip(lines, records, strict=True):
        assert record["prev"] == prev
        prev = record.pop("hash")
        text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(text).hexdigest() == prev and line.startswith(text[:-1])
    verdict = verify(tmp_path, expected=records[3]["prev"])
    assert (verdict.records, verdict.broken, verdict.last, verdict.contains) == (8, None, prev, True)
    assert not verify(tmp_path, expected="f" * 64).contains


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    written(tmp_path / "state" / "audit")
    assert (tmp_path / "state" / "audit").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "audit" / CURRENT).stat().st_mode & 0o777 == 0o600


def forged(lines: list[bytes], at: int) -> list[bytes]:
    """Another record in between, right in itself."""
    prev = json.loads(lines[at - 1])["hash"]
    return [*lines[:at], chain.seal(call(99, session="aaaa", n=at), prev)[0], *lines[at:]]


TAMPERED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str, int]] = {
    "a value": (lambda lines: [*lines[:4], lines[4].replace(b"nested_run", b"nested_cat"), *lines[5:]], "edited", 5),
    "a value of the last": (lambda lines: [*lines[:-1], lines[-1].replace(b"nested_run", b"nested_cat")], "edited", 8),
    "a space": (lambda lines: [*lines[:4], lines[4].replace(b",", b", ", 1), *lines[5:]], "edited", 5),
    "a value and its hash": (
        lambda lines: [*lines[:4], chain.seal(call(7, session="aaaa", n=4), json.loads(lines[3])["hash"])[0], *lines[5:]],
        "removed",
        6,
    ),
    "rubbish": (lambda lines: [*lines[:4], b"rubbish\n", *lines[5:]], "edited", 5),
    "one left out": (lambda lines: [*lines[:4], *lines[5:]], "removed", 5),
    "the first left out": (lambda lines: lines[1:], "removed", 1),
    "two swapped": (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "reordered", 5),
    "one twice": (lambda lines: [*lines[:5], lines[4], *lines[5:]], "inserted", 6),
    "one more": (lambda lines: forged(lines, 5), "inserted", 6),
    "an end cut in the middle": (lambda lines: [*lines[:-1], lines[-1][:40]], "torn", 8),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_found_where_it_begins(tmp_path: Path, what: str) -> None:
    tamper, how, line = TAMPERED[what]
    lines = written(tmp_path)
    (tmp_path / CURRENT).write_bytes(b"".join(tamper(lines)))
    broken = verify(tmp_path).broken
    assert broken is not None and (broken.how, broken.file, broken.line) == (how, CURRENT, line), broken


def test_an_end_cut_off_while_the_session_goes_on_is_found(tmp_path: Path) -> None:
    one = opened(tmp_path)
    for number in range(5):
        one.after_now(call(number))
    lines = (tmp_path / CURRENT).read_bytes().splitlines(keepends=True)
    (tmp_path / CURRENT).write_bytes(b"".join(lines[:-2]))
    one.after_now(call(9))
    broken = verify(tmp_path).broken
    assert broken is not None and (broken.how, broken.line) == ("removed", 6) and "record 7 after 4" in broken.words


def test_a_log_that_was_removed_is_begun_anew_and_that_is_found(tmp_path: Path) -> None:
    one = opened(tmp_path / "audit")
    one.after_now(call(1))
    for path in (tmp_path / "audit").iterdir():
        path.unlink()
    (tmp_path / "audit").rmdir()
    one.after_now(call(2))
    broken = verify(tmp_path / "audit").broken
    assert broken is not None and broken.how == "removed", broken


@pytest.mark.parametrize(
    "rest", [b'{"at":"2026', b"\0\0\0\0", b'{"at":"2026\n', b'{"a\n{"b', b"\xff" * 40000], ids=range(5)
)
def test_a_torn_write_is_marked_by_the_next(tmp_path: Path, rest: bytes) -> None:
    written(tmp_path)
    with (tmp_path / CURRENT).open("ab") as file:
        file.write(rest)
    assert verify(tmp_path).broken is not None
    opened(tmp_path, "bbbb").after_now(call(1))
    verdict = verify(tmp_path)
    assert (verdict.broken, verdict.torn, verdict.records) == (None, 1, 11), verdict
    marked = [each for each in entries(tmp_path, Wanted(tool="log")) if each["event"] == "torn"]
    assert marked[0]["bytes"] == len(rest) and marked[0]["sha256"] == hashlib.sha256(rest).hexdigest()
    raw = (tmp_path / CURRENT).read_bytes()
    (tmp_path / CURRENT).write_bytes(raw.replace(rest.rstrip(b"\n"), b"x" * len(rest.rstrip(b"\n"))))
    assert verify(tmp_path).broken is not None, "what is marked can't be edited either"


def test_a_record_that_lacks_its_line_end_alone_is_kept(tmp_path: Path) -> None:
    lines = written(tmp_path)
    (tmp_path / CURRENT).write_bytes(b"".join(lines)[:-1])
    opened(tmp_path, "bbbb").after_now(call(1))
    assert (verdict := verify(tmp_path)).broken is None and (verdict.torn, verdict.records) == (0, 10)


@pytest.mark.parametrize("left", [b"", None], ids=["empty", "absent"])
def test_whoever_was_killed_as_it_began_a_file_is_no_hindrance(tmp_path: Path, left: bytes | None) -> None:
    written(tmp_path)
    (tmp_path / CURRENT).rename(tmp_path / old_name(1))
    if left is not None:
        (tmp_path / CURRENT).write_bytes(left)
    opened(tmp_path, "bbbb").after_now(call(1))
    assert (verdict := verify(tmp_path)).broken is None and (verdict.files, verdict.records) == (2, 11), verdict


def rotated(directory: Path, count: int) -> list[str]:
    one = opened(directory, most=2000)
    for number in range(count):
        one.after_now(call(number))
    return sorted(path.name for path in directory.glob("*.jsonl"))


def test_the_chain_goes_on_over_rotations_and_old_files_go(tmp_path: Path) -> None:
    assert rotated(tmp_path, 10) == [old_name(1), CURRENT]
    assert verify(tmp_path).broken is None
    names = rotated(tmp_path, 40)
    assert len(names) == 4 and old_name(1) not in names
    verdict = verify(tmp_path)
    assert verdict.broken is None and verdict.files == 4
    assert all((tmp_path / name).stat().st_size <= 2000 for name in names)


def test_more_may_be_kept_from_some_day_on_or_less(tmp_path: Path) -> None:
    assert len(rotated(tmp_path, 50)) == 4
    for kept, least in ((6, 7), (2, 3), (9, 4)):
        one = Journal(Files(tmp_path, 2000, kept), "required", "0@here", f"kept{kept}")
        for number in range(12 if kept == 9 else 30):
            one.after_now(call(number))
        assert verify(tmp_path).broken is None
        assert least <= len(list(tmp_path.glob("*.jsonl"))) <= kept + 1


def test_a_file_that_is_missing_or_edited_is_found(tmp_path: Path) -> None:
    names = rotated(tmp_path, 50)
    middle, raw = tmp_path / names[1], (tmp_path / names[1]).read_bytes()
    middle.write_bytes(raw.replace(b"nested_run", b"nested_cat", 1))
    broken = verify(tmp_path).broken
    assert broken is not None and (broken.how, broken.file) == ("edited", middle.name)
    middle.unlink()
    broken = verify(tmp_path).broken
    assert broken is not None and (broken.how, broken.file, broken.line) == ("removed", middle.name, 0)
    middle.write_bytes(raw)
    assert verify(tmp_path).broken is None
    (tmp_path / names[0]).unlink()
    broken = verify(tmp_path).broken
    assert broken is not None and (broken.how, broken.file) == ("removed", names[0]), "the oldest that is to be there"


WRITER = """
import sys
from pathlib import Path
from manyoyo_mcp.audit.files import Files
from manyoyo_mcp.audit.journal import Journal
one = Journal(Files(Path(sys.argv[1]), 200_000, 900), "required", "0@here", sys.argv[2])
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    one.before_now({"kind": "call", "phase": "ended", "call": str(number), "tool": "x", "text": "y" * (number * 37 % 9000)})
"""


def writer(directory: Path, session: str, count: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), session, str(count)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_many_processes_write_one_chain_and_some_are_killed(tmp_path: Path) -> None:
    lasting = [writer(tmp_path, f"lasting{number}", 300) for number in range(2)]
    for number in range(8):
        dying = writer(tmp_path, f"dying{number}", 1_000_000)
        time.sleep(0.05 + 0.013 * number)
        dying.send_signal(signal.SIGKILL)
        dying.wait()
    assert [each.wait(120 * SLACK) for each in lasting] == [0, 0]
    verdict = verify(tmp_path)
    if verdict.broken is not None and verdict.broken.how == "torn":  # the last of them died in its last write
        opened(tmp_path, "next").after_now(call(1))
        verdict = verify(tmp_path)
    assert verdict.broken is None and verdict.files > 1, verdict
    for number in range(2):
        assert len(entries(tmp_path, Wanted(f"lasting{number}", "x", limit=1000))) == 300


FULL = """
import resource, sys
from pathlib import Path
from manyoyo_mcp.audit.files import Files
from manyoyo_mcp.audit.journal import Journal
from manyoyo_mcp.errors import AuditUnavailable
one = Journal(Files(Path(sys.argv[1]), 1 << 30, 3), sys.argv[2], "0@here", "aaaa")
record = {"kind": "call", "phase": "ended", "call": "1", "tool": "x", "text": "y" * 500}
one.before_now(record)
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))
refused = 0
for _ in range(6):
    try:
        one.before_now(record)
    except AuditUnavailable as error:
        refused += 1
        assert error.instance_code == "AUDIT_UNAVAILABLE" and sys.argv[1] in error.message and "MANYOYO_AUDIT" in error.hint
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
one.before_now(record)
print(refused)
"""


@pytest.mark.parametrize(("mode", "refused"), [("required", 5), ("optional", 0)])
def test_a_full_disk_is_told_and_what_is_missing_is_counted(tmp_path: Path, mode: str, refused: int) -> None:
    """A limit on a file's size is the same for a writer: part of a record is written, then none of it."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), mode], capture_output=True, text=True, check=True)
    assert int(done.stdout) == refused and "can't be written" in done.stderr
    verdict = verify(tmp_path)
    assert verdict.broken is None and verdict.torn == 0, verdict
    lost = [each for each in entries(tmp_path, Wanted(tool="log")) if each["event"] == "lost"]
    assert sum(each["records"] for each in lost) == 5


def test_a_file_of_somebody_elses_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(AuditUnavailable, match="another user"):
        opened(tmp_path).before_now(call(1))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / CURRENT).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditUnavailable):
        opened(tmp_path / "audit").before_now(call(1))
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_is_held_ends_in_a_refusal_not_in_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PATIENCE", 0.05)
    written(tmp_path)
    one = opened(tmp_path)

    async def ask() -> None:
        with pytest.raises(AuditUnavailable, match="has held"):
            await one.before(call(1))
        await one.after(call(2))

    with (tmp_path / "lock").open("rb") as other, locked(other.fileno()):
        with pytest.raises(Busy):
            Files(tmp_path, BIG, 3).append(call(0), patience=0)
        anyio.run(ask)
    anyio.run(one.after, call(3))
    assert entries(tmp_path, Wanted(tool="log"))[-1]["records"] == 2


def test_off_writes_nothing(tmp_path: Path) -> None:
    one = opened(tmp_path, mode="off")
    one.before_now(call(1))
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_ends_in_order_says_so_where_it_did_anything(tmp_path: Path) -> None:
    opened(tmp_path, "idle").close()
    assert list(tmp_path.iterdir()) == []
    one = opened(tmp_path)
    one.after_now(call(1))
    one.close()
    assert [each.get("event") for each in entries(tmp_path, Wanted(tool="session"))] == ["begun", "ended"]


def test_what_was_asked_and_what_came_of_it_is_one_entry(tmp_path: Path) -> None:
    one = opened(tmp_path)
    one.before_now(call(1, phase="asked", arguments={"image": "x"}))
    one.before_now(call(2, phase="asked", arguments={"image": "y"}))
    one.after_now(call(1, decision="refused", code="POLICY_REFUSED"))
    first, second = entries(tmp_path, Wanted(tool="nested_run"))
    assert (first["arguments"], first["code"], "open" in first) == ({"image": "x"}, "POLICY_REFUSED", False)
    assert second["open"] is True
    assert entries(tmp_path, Wanted(refused=True)) == [first]
    assert entries(tmp_path, Wanted(session="b")) == [] and entries(tmp_path, Wanted(since="2999")) == []
    assert len(entries(tmp_path, Wanted(limit=2))) == 2


def test_records_have_the_size_of_a_line_at_most(tmp_path: Path) -> None:
    """A tail that is longer than what is read at once."""
    one = opened(tmp_path)
    one.after_now(call(1, text="x" * (files._TAIL * 3)))
    opened(tmp_path, "bbbb").after_now(call(2))
    assert verify(tmp_path).broken is None
