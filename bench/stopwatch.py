"""The server with a stopwatch: it notes, in the file that NOTES names, when a request came in, when an answer went out, and
how long it waited for its engine's answers in between. What is written is with the other side before the call that writes it
returns: a kernel often lets whom that wakes go first, on the same processor. That is the other side's time, and counts as such."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from manyoyo_mcp import stdio
from manyoyo_mcp.cli.main import main

NOTES = "MANYOYO_BENCH_NOTES"


def call(path: Path, began: float, ended: float) -> tuple[float, float]:
    """Seconds from a call's arrival to its answer, and those of them spent waiting for the engine. The call is the only
    one that a client made between two times of `time.perf_counter`."""
    notes = [(kind, float(start), float(end)) for kind, start, end in map(str.split, path.read_text().splitlines())]
    notes = [note for note in notes if began <= note[2] and note[1] < ended]
    arrived = min(end for kind, _, end in notes if kind == "in")
    answered = max(end for kind, _, end in notes if kind == "out")
    waits = [min(end, answered) - start for kind, start, end in notes if kind == "wait" and arrived <= start < answered]
    return answered - arrived, sum(waits)


def told(output: str) -> float:
    """The milliseconds that a command's output names: from its line "from to", both seconds since boot."""
    began, ended = next(line for line in output.splitlines() if line.count(".") == 2).split()
    return (float(ended) - float(began)) * 1000


def timing(command: str) -> str:
    """A shell's command that says from when to when it ran, for `told`."""
    clock = "cut -d' ' -f1 /proc/uptime"
    return f'began=$({clock}); {command}; echo "$began $({clock})"'


_notes: list[str] = []
"""Written when an answer is out: then nobody waits for it."""


def _write(descriptor: int, data: Any) -> int:
    began, used = time.perf_counter(), time.thread_time()
    written = os.write(descriptor, data)
    _notes.append(f"out {began} {began + time.thread_time() - used}\n")
    notes, _notes[:] = "".join(_notes), []
    with Path(os.environ[NOTES]).open("a") as file:
        file.write(notes)
    return written


def _timed(kind: str, function: Any, *arguments: Any) -> Any:
    began = time.perf_counter()
    try:
        return function(*arguments)
    finally:
        _notes.append(f"{kind} {began} {time.perf_counter()}\n")


def _send(self: socket.socket, data: Any) -> None:
    began, used = time.perf_counter(), time.thread_time()
    try:
        _sendall(self, data)
    finally:
        _notes.append(f"wait {began + time.thread_time() - used} {time.perf_counter()}\n")


_sendall = socket.socket.sendall


def install() -> None:
    """Take the time of this process's reads and writes from here on."""
    readinto = socket.SocketIO.readinto
    socket.socket.sendall = _send  # type: ignore[method-assign,assignment]
    socket.SocketIO.readinto = lambda *arguments: _timed("wait", readinto, *arguments)  # type: ignore[method-assign]
    stdio.read, stdio.write = (lambda *arguments: _timed("in", os.read, *arguments)), _write


if __name__ == "__main__":
    install()
    main()
