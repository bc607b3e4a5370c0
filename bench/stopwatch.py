"""The server with a stopwatch: whenever it has waited for a nested engine, it writes a line to the file WAITS names."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manyoyo_mcp.cli.main import main
from manyoyo_mcp.engines.streams import Attached
from manyoyo_mcp.policy import transport

WAITS = "MANYOYO_BENCH_WAITS"
FOR_RESULT = ("create", "attach", "start", "pump", "wait")
"""What a run's result waits for: four requests, and the output between the last two."""


def waited(path: Path, began: float) -> float:
    """Seconds that the first run begun after `began` (of `time.perf_counter`) waited for its engine until its result."""
    lines = [line.split() for line in path.read_text().splitlines()]
    spent = {name: float(end) - float(start) for name, start, end in reversed(lines) if float(start) >= began}
    return sum(spent[name] for name in FOR_RESULT)


def _time(owner: type, method: str, name: Callable[..., str]) -> None:
    original = getattr(owner, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            ended = time.perf_counter()
            with Path(os.environ[WAITS]).open("a") as file:
                print(name(*args, **kwargs), began, ended, file=file)

    setattr(owner, method, timed)


if __name__ == "__main__":
    # From the request's first byte to the answer's head, and as long as output is read.
    _time(
        transport._Pool,
        "_make_request",
        lambda pool, conn, method, url, *_, **__: url.partition("?")[0].rsplit("/")[-1],
    )
    _time(Attached, "pump", lambda *_: "pump")
    main()
