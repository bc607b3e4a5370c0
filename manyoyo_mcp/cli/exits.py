"""How the command line ends: exit codes, and errors in two lines, what happened and what to do."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn

from manyoyo_mcp.cli.wording import in_options
from manyoyo_mcp.errors import ManyoyoError, NotFound, NotRunning, Reason, RequestError
from manyoyo_mcp.text import sanitise


class Exit(IntEnum):
    """Our own exit codes; the rest are the command's. 124 is timeout(1)'s, 125 to 127 are docker's."""

    OK = 0
    FAILED = 1
    USAGE = 2
    TIMEOUT = 124
    SANDBOX = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130
    KILLED = 137
    PIPE_CLOSED = 141


_HINTS = {
    "SANDBOX_NOT_FOUND": "`manyoyo-mcp ps` lists the sandboxes there are.",
    "CONTAINER_NOT_FOUND": "`manyoyo-mcp ps SANDBOX` lists the containers in it.",
    "CONTAINER_NOT_RUNNING": "`manyoyo-mcp ps SANDBOX` shows the state of the containers in it.",
    "COMMAND_NOT_FOUND": "Its first word must be a program in the image; for shell syntax write -- sh -c '…'.",
    "IMAGE_NOT_FOUND": "Check the name and tag. Where no registry is reachable, build on a base image made from "
    "packages: `manyoyo-mcp image base debian`.",
}
"""What to do, in this command line's words, where the error's own hint speaks of the tools."""

_CAP_HINTS = {
    Reason.OOM_KILLED: "Give it more with --memory (e.g. --memory 2g), or make it use less.",
    Reason.SANDBOX_OOM: "Give the run more with --memory (the sandbox grows with it), or run less at once.",
    Reason.PIDS_LIMIT: "Give it more with --pids-limit, or run fewer in parallel (make -j, workers).",
}
_REASON_HINTS = {
    Reason.TIMEOUT: "Give it longer with --timeout, or find what it waits for.",
    Reason.COMMAND_NOT_FOUND: _HINTS["COMMAND_NOT_FOUND"],
}


def code_of(reason: Reason, exit_code: int | None) -> int:
    """The exit code for a command that ended: its own, unless something else ended it."""
    match reason:
        case Reason.OK:
            return Exit.OK
        case Reason.TIMEOUT:
            return Exit.TIMEOUT
        case Reason.OOM_KILLED | Reason.SANDBOX_OOM:
            return Exit.KILLED
        case Reason.CANCELLED:
            return Exit.INTERRUPTED
        case Reason.BUILD_FAILED:
            return Exit.SANDBOX
        case Reason.COMMAND_NOT_FOUND:
            return exit_code if exit_code in (Exit.NOT_EXECUTABLE, Exit.NOT_FOUND) else Exit.NOT_FOUND
        case _:
            return exit_code if exit_code is not None and 0 < exit_code < 256 else Exit.SANDBOX


def hint_of(reason: Reason, hint: str, *, capped_here: bool = True) -> str:
    """What to do about a command that ended so, in the command line's words. `capped_here`: its caps are options."""
    hints = _REASON_HINTS | (_CAP_HINTS if capped_here else {})
    return hints.get(reason) or in_options(hint)


def code_of_error(error: ManyoyoError) -> int:
    """The exit code for what could not be done: 2 where the command line is to blame, 127 for a missing command."""
    if error.instance_code == "COMMAND_NOT_FOUND":
        return Exit.NOT_FOUND
    if isinstance(error, RequestError) and not isinstance(error, NotFound | NotRunning):
        return Exit.USAGE
    return Exit.SANDBOX


def complain(happened: str, to_do: str) -> None:
    """Two lines on stderr; what they quote may come from inside and is made harmless."""
    print(f"manyoyo-mcp: {sanitise(happened).strip()}", file=sys.stderr)
    if to_do:
        print(f"  {sanitise(to_do).strip()}", file=sys.stderr)


def end_without_reader() -> NoReturn:
    """Whoever read our stdout has gone; the interpreter shall not complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(Exit.PIPE_CLOSED)


def flush() -> None:
    """Write what is left for stdout, while it can still be said that this failed."""
    if sys.stdout is None:  # nobody wanted it: the command line was started with it closed
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        end_without_reader()


@contextmanager
def reported() -> Iterator[None]:
    """Whatever goes wrong inside ends the process with its exit code and two lines, never with a traceback.

    MANYOYO_TRACEBACK=1 shows where a fault of ours lies.
    """
    try:
        yield
    except ManyoyoError as error:
        hint = _HINTS.get(error.instance_code) or in_options(error.hint)
        complain(f"{error.instance_code}: {in_options(error.message)}", hint)
        sys.exit(code_of_error(error))
    except KeyboardInterrupt:
        complain("interrupted", "")
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        if os.environ.get("MANYOYO_TRACEBACK"):
            raise
        complain(
            f"INTERNAL: {type(error).__name__}: {error}",
            "That is a fault of manyoyo-mcp: please report it; MANYOYO_TRACEBACK=1 shows where it happened.",
        )
        sys.exit(Exit.SANDBOX)
