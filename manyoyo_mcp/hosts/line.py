"""A line to a program of ours in a container of ours that stays for the next question: an exec costs some fifty milliseconds, a question on
the line three."""

import re
import threading

import docker

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.errors import EngineUnreachable
from manyoyo_mcp.hosts.base import Completed
from manyoyo_mcp.hosts.execs import execute

_GREETING = 3.0
"""Seconds that a line may take to begin."""
_WORD = re.compile(r"[\w./:-]+", re.ASCII)
"""What is one word on a line for sure; whatever else it is asked with goes by an exec."""
_PATIENCE = 60.0
"""Seconds after which a line without an answer counts as broken: its container may be paused."""


class Line:
    """Asks `program` in `container`. Whoever finds the line taken, or broken, asks by an exec. The program, called with `serve`, reads a question a
    line, its words between spaces, and writes for each its exit code and the length in bytes of what it printed, in decimal, on a line, and
    then that, stdout and stderr together; once before the first, as if it had been asked for nothing. It ends with its stdin."""

    def __init__(self, container: str, program: str) -> None:
        self._container = container
        self._program = program
        self._taken = threading.Lock()
        self._open: Attached | None = None
        self._served = True

    def ask(self, client: docker.APIClient, argv: list[str], *, keep: bool) -> Completed:
        """What it says to `argv`, with `keep` over the line where each word is plain. Raises docker.errors.APIError where the
        container does not run. What is asked may be done twice, where a line breaks."""
        if keep and all(map(_WORD.fullmatch, argv)) and self._served and self._taken.acquire(blocking=False):
            try:
                return self._exchange(client, argv)
            except (EngineUnreachable, ValueError):
                self._hang_up()
            finally:
                self._taken.release()
        return execute(client, self._container, [self._program, *argv])

    def _exchange(self, client: docker.APIClient, argv: list[str]) -> Completed:
        if self._open is None:
            self._open = self._begin(client)
        line = self._open
        line.send(" ".join(argv).encode() + b"\n")
        return _answer(line)

    def _begin(self, client: docker.APIClient) -> Attached:
        self._served = (
            False  # until it has said so: another version's knows no `serve`, and an engine may lose what it says
        )
        exec_id = client.exec_create(self._container, [self._program, "serve"], stdin=True)["Id"]
        line = Attached(client.exec_start(exec_id, socket=True), silence=_GREETING)
        try:
            _answer(line)
        except (EngineUnreachable, ValueError):
            line.close()
            raise
        line.patience(_PATIENCE)
        self._served = True
        return line

    def close(self) -> None:
        """End the line; whoever waits for an answer asks by an exec."""
        self._served = False
        self._hang_up()

    def _hang_up(self) -> None:
        held, self._open = self._open, None
        if held is not None:
            held.close()


def _answer(line: Attached) -> Completed:
    head, said = b"", b""
    while b"\n" not in head:
        head += _next(line)
    head, _, said = head.partition(b"\n")
    code, length = map(int, head.split())
    while len(said) < length:
        said += _next(line)
    return Completed(code, said.decode(errors="replace"))


def _next(line: Attached) -> bytes:
    piece = line.receive()
    if not piece:
        raise EngineUnreachable("The line ended.", "Ask again.")
    return piece
