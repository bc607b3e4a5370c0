"""What a part of a run has tried and found, and how it goes from example to example."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

PATIENCE = 60.0
"""Seconds for a call or an answer; what takes longer hangs."""
_BATCH = 250
"""After so many there is a look around."""
_MOST_FAILURES = 20


class Found:
    """What was tried, what came of it, and what should not have."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.tried = 0
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

    def fail(self, words: str) -> None:
        self.failures.append(words)
        print(f"{self.kind}: FAILED after {self.tried}: {words[:2000]}", flush=True)

    def add(self, other: "Found") -> None:
        self.tried += other.tried
        self.outcomes += other.outcomes
        self.failures += other.failures

    def summary(self) -> str:
        outcomes = ", ".join(f"{name} {number}" for name, number in self.outcomes.most_common(25))
        return f"{self.kind}: {self.tried} tried, {len(self.failures)} failures ({outcomes})"


def generate(
    found: Found,
    number: int,
    first_seed: int,
    strategy: st.SearchStrategy[Any],
    one: Callable[[Any], None],
    look: Callable[[], None],
) -> None:
    """Call `one` with so many examples, `look` between."""
    for batch in range(1 << 20):
        left = min(_BATCH, number - found.tried)
        if left <= 0 or len(found.failures) >= _MOST_FAILURES:
            return

        @seed(first_seed * 1_000_003 + batch)
        @settings(
            max_examples=left, deadline=None, database=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def play(example: Any) -> None:
            found.tried += 1
            one(example)

        play()
        look()
        print(f"{found.kind}: {found.tried}", flush=True)


def still(changed: Callable[[], str]) -> str:
    """What has changed, of two looks: an engine under load may lose a line of what a look has to say."""
    return changed() and changed()


class Unforeseen(logging.Handler):
    """Exceptions that nobody foresaw: what the server logs with a traceback, and what ends a thread of its."""

    def __init__(self, found: Found) -> None:
        super().__init__(logging.ERROR)
        self._found = found
        self._threads_own = threading.excepthook

    def __enter__(self) -> "Unforeseen":
        logging.getLogger("manyoyo_mcp").addHandler(self)
        threading.excepthook = self._ended
        return self

    def __exit__(self, *exc_info: object) -> None:
        threading.excepthook = self._threads_own
        logging.getLogger("manyoyo_mcp").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._found.fail(f"logged: {self.format(record)[-1500:]}")

    def _ended(self, args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread else "a thread"
        self._found.fail(f"{name} ended by {args.exc_type.__name__}: {args.exc_value}")
        self._threads_own(args)
