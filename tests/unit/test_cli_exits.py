"""Exit codes and messages of the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from manyoyo_mcp.cli.arguments import command_words
from manyoyo_mcp.cli.exits import Exit, code_of, code_of_error, complain, hint_of, reported
from manyoyo_mcp.cli.wording import in_options
from manyoyo_mcp.engines.failures import MAKE_ROOM, verdict
from manyoyo_mcp.errors import (
    CapExceeded,
    EngineFailed,
    HostUnavailable,
    InvalidArgument,
    ManyoyoError,
    NotFound,
    NotRunning,
    Reason,
)
from manyoyo_mcp.sessions.budgets import _OPERATOR, _WAIT


@pytest.mark.parametrize(
    ("reason", "exit_code", "expected"),
    [
        (Reason.OK, 0, 0),
        (Reason.EXIT_NONZERO, 7, 7),
        (Reason.EXIT_NONZERO, None, 125),
        (Reason.EXIT_NONZERO, -1, 125),
        (Reason.OOM_KILLED, 137, 137),
        (Reason.OOM_KILLED, 1, 137),
        (Reason.SANDBOX_OOM, 137, 137),
        (Reason.TIMEOUT, 137, 124),
        (Reason.CANCELLED, 137, 130),
        (Reason.COMMAND_NOT_FOUND, 126, 126),
        (Reason.COMMAND_NOT_FOUND, 127, 127),
        (Reason.COMMAND_NOT_FOUND, None, 127),
        (Reason.PIDS_LIMIT, 2, 2),
        (Reason.DISK_FULL, 1, 1),
        (Reason.BUILD_FAILED, 1, 125),
    ],
)
def test_how_a_command_ended(reason: Reason, exit_code: int | None, expected: int) -> None:
    assert code_of(reason, exit_code) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidArgument("x"), Exit.USAGE),
        (CapExceeded("x"), Exit.USAGE),
        (NotFound("x", code="SANDBOX_NOT_FOUND"), Exit.SANDBOX),
        (NotFound("x", code="COMMAND_NOT_FOUND"), Exit.NOT_FOUND),
        (NotRunning("x"), Exit.SANDBOX),
        (HostUnavailable("x"), Exit.SANDBOX),
        (EngineFailed("x"), Exit.SANDBOX),
    ],
)
def test_what_could_not_be_done(error: ManyoyoError, expected: int) -> None:
    assert code_of_error(error) == expected


def test_hints_speak_of_options_not_of_tools() -> None:
    assert "--memory" in hint_of(Reason.OOM_KILLED, "Ask for more with memory=…")
    theirs = (
        "Caps are the container's: start it anew with more (nested_run, detach=true), or make the command use less."
    )
    shown = hint_of(Reason.OOM_KILLED, theirs, capped_here=False)
    assert shown == "Caps are the container's: start it anew with more, or make the command use less."
    assert hint_of(Reason.DISK_FULL, "Remove something.") == "Remove something."


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Killed after timeout_s=1.", "Killed after --timeout 1."),
        ("Give it a larger timeout_s; finished steps are cached.", "Give it a larger --timeout; finished steps are cached."),
        ("Name it with dockerfile=…, or give it: files={'Dockerfile': '…'}.", "Name it with --dockerfile ….",),
        ("context_dir='x' is not a directory.", "--build 'x' is not a directory."),
        ("dockerfile: '../x' is not a path", "--dockerfile: '../x' is not a path"),
        ("start_sandbox with engine='docker' or 'podman'.", "--engine 'docker' or 'podman'."),
        ("sandbox_status shows the engine's log.", "`manyoyo-mcp logs SANDBOX` shows the engine's log."),
        ("Remove what is not needed (nested_list shows sizes).", "Remove what is not needed."),
        (f"Too much. {_WAIT}{_OPERATOR}", f"Too much. `manyoyo-mcp ps` shows what there is, `manyoyo-mcp rm` removes it; or ask for less (--memory, --cpus). {_OPERATOR}"),
        (MAKE_ROOM, "Write less, or let sandboxes have more: MANYOYO_SANDBOX_DISK=40g."),
        ("--memory='lots' and a.memory=1 and 'cpus=2' stay", "--memory='lots' and a.memory=1 and 'cpus=2' stay"),
    ],
)  # fmt: skip
def test_errors_of_tools_are_said_in_options(said: str, shown: str) -> None:
    assert in_options(said) == shown


def test_a_command_begins_where_options_end() -> None:
    for words in (["sh", "-c", "a"], ["--", "sh", "-c", "a"]):
        assert command_words(words, "exec …") == ["sh", "-c", "a"]
    assert command_words(["--", "-odd", "--"], "exec …") == ["-odd", "--"]
    assert command_words([], "shell …") == []
    with pytest.raises(InvalidArgument, match="'--user' comes too late") as raised:
        command_words(["--user", "postgres", "id"], "exec [OPTIONS] SANDBOX …")
    assert "exec [OPTIONS] SANDBOX" in raised.value.hint and "after --" in raised.value.hint


def test_messages_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    complain("from \x1b]0;inside\x07 a \x1b[31mcontainer\x1b[0m", "do\x07 this")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "manyoyo-mcp: from  a container\n  do this\n"


@pytest.mark.parametrize(
    ("error", "code", "first", "second"),
    [
        (InvalidArgument("it is wrong", "make it right"), 2, "INVALID_ARGUMENT: it is wrong", "make it right"),
        (NotFound("none", "start_sandbox", code="SANDBOX_NOT_FOUND"), 125, "SANDBOX_NOT_FOUND: none", "manyoyo-mcp ps"),
        (RuntimeError("a bug"), 125, "INTERNAL: RuntimeError: a bug", "MANYOYO_TRACEBACK"),
        (KeyboardInterrupt(), 130, "interrupted", ""),
    ],
)
def test_errors_end_in_two_lines(
    error: BaseException, code: int, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, reported():
        raise error
    assert ended.value.code == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and first in lines[0] and len(lines) == (2 if second else 1)
    assert second in lines[-1]


def test_a_bug_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYOYO_TRACEBACK", "1")
    with pytest.raises(RuntimeError), reported():
        raise RuntimeError("a bug")


def test_a_server_loads_no_command_line() -> None:
    """What `manyoyo-mcp serve` imports before the server itself: neither typer nor rich, which cost a tenth of a second."""
    code = "import sys, manyoyo_mcp.cli.main; print(sorted({'typer', 'rich', 'click', 'docker', 'mcp'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == "[]"


def test_how_a_sandbox_grows_is_said_in_words_that_a_command_line_has() -> None:
    told = verdict(137, oom_flag=False, record="oom-kill:oom_memcg=/docker/a,", cgroup="b", output_end=b"", cap="1 GiB")
    assert told.reason is Reason.SANDBOX_OOM and "sandbox_id" in told.hint
    assert "sandbox_id" not in in_options(told.hint) and "start_sandbox" in in_options(told.hint)
