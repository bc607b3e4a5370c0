"""What `run` makes of its options, and what a person sees while it works."""

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from manyoyo_mcp.cli.oneshot import files_in, files_out, pairs, step_line
from manyoyo_mcp.cli.screen import Screen, age
from manyoyo_mcp.cli.uninstall import on_disk
from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import Step
from manyoyo_mcp.errors import InvalidArgument


def test_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "from here")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert pairs(["A=1", "B=x=y", "C=", "HERE", "NOWHERE"], "--env") == {
        "A": "1",
        "B": "x=y",
        "C": "",
        "HERE": "from here",
    }
    with pytest.raises(InvalidArgument, match="--env"):
        pairs(["=x"], "--env")


def test_files_in(tmp_path: Path) -> None:
    source = tmp_path / "a:b.txt"
    source.write_bytes(b"\x00data")
    assert files_in([f"{source}:/app/b.txt"]) == {"/app/b.txt": b"\x00data"}
    for wrong in (
        str(source),
        f"{source}:relative",
        f"{source}:/a/../b",
        ":/x",
        f"{tmp_path}/none:/x",
        f"{tmp_path}:/x",
    ):
        with pytest.raises(InvalidArgument):
            files_in([wrong])


def test_files_out(tmp_path: Path) -> None:
    there = tmp_path / "out"
    there.mkdir()
    assert files_out(["/app/report.xml"]) == {"/app/report.xml": Path("report.xml")}
    assert files_out([f"/app/report.xml:{there}"]) == {"/app/report.xml": there / "report.xml"}
    assert files_out(["/app/report.xml:new/"]) == {"/app/report.xml": Path("new/report.xml")}
    assert files_out(["/app/report.xml:other.xml"]) == {"/app/report.xml": Path("other.xml")}
    for wrong in ("relative", "/dir/", "/a/../b"):
        with pytest.raises(InvalidArgument):
            files_out([wrong])


def test_step_line() -> None:
    assert step_line(Step(2, 5, "RUN make", seconds=1.24)) == "  2/5 RUN make (1.2 s)"
    assert step_line(Step(2, 5, "RUN make", stage=1, cached=True)) == "  stage 1 2/5 RUN make (cached)"


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (42.7, "42 s"), (119, "119 s"), (180, "3 min"), (7300, "2 h"), (200000, "2 d")]
)
def test_age(seconds: float, words: str) -> None:
    assert age(seconds) == words


def screen(*, terminal: bool, quiet: bool = False) -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, highlight=False, color_system=None)
    return Screen(quiet=quiet, console=console), file


def test_lines_where_there_is_no_terminal() -> None:
    shown, file = screen(terminal=False)
    with shown.working("beginning") as report:
        report(0, 3, "one [bold]\x1b[31m")
        report(1, 3, "one [bold]\x1b[31m")
        report(2, 3, "two")
    lines = file.getvalue().splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == ["one [bold]", "two"]


def test_quiet_says_nothing() -> None:
    for terminal in (True, False):
        shown, file = screen(terminal=terminal, quiet=True)
        with shown.working("beginning") as report:
            report(1, 2, "one")
        shown.say("done")
        assert file.getvalue() == ""


def test_a_bar_on_a_terminal_from_any_thread() -> None:
    shown, file = screen(terminal=True)
    with shown.working("beginning") as report:
        thread = threading.Thread(target=report, args=(1, 3, "1/3 RUN [x]"))
        thread.start()
        thread.join()
    assert "1/3 RUN [x]" in file.getvalue()


def test_uninstall_takes_only_what_servers_make(tmp_path: Path) -> None:
    """Whatever directory the settings name, only our own entries in it go; it goes only if nothing else is there."""
    state, run = tmp_path / "state", tmp_path / "run"
    for directory in (
        *(state / each for each in ("sessions/abc", "audit", "disks", "networks")),
        run / "sandboxes" / "sb-1",
        run / "gates" / "abc",
    ):
        directory.mkdir(parents=True)
    (state / "probes.json").write_text("{}")
    (state / "yours.txt").write_text("keep")
    things = list(on_disk(Settings(state_dir=state, runtime_dir=run)))
    assert {thing.name for thing in things} == {
        *(str(state / each) for each in ("sessions", "audit", "disks", "networks")),
        str(run / "gates"),
        str(state / "probes.json"),
        str(run / "sandboxes"),
    }
    for thing in things:
        thing.remove()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["state", "yours.txt"]
    assert list(on_disk(Settings(state_dir=state, runtime_dir=run))) == []
