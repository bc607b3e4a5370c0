"""What a person sees on stderr while something takes its time: a moving bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from manyoyo_mcp.text import sanitise

_WIDEST = 240
"""Columns of a table: a terminal that has fewer wraps its lines; what is cut could not be copied."""
Report = Callable[[float, float | None, str], None]
"""`report(done, total, words)`; from any thread. `total` is None where it is not known."""


class Screen:
    """stderr, unless another console is given. `quiet` leaves it to errors."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False)

    @property
    def live(self) -> bool:
        """Whether lines may move: a terminal, and somebody who wants to watch."""
        return self.console.is_terminal and not self.quiet

    def say(self, text: str, style: str = "") -> None:
        """A line, made harmless."""
        if not self.quiet:
            self.console.print(sanitise(text), style=style, markup=False, soft_wrap=True)

    @contextmanager
    def working(self, words: str) -> Iterator[Report]:
        """Show that something is being done; what is reported replaces the words."""
        if self.live:
            with self._bar() as progress:
                yield _onto(progress, progress.add_task(words, total=None))
        else:
            yield self._lines()

    def _bar(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            _Bar(bar_width=20),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            expand=True,
        )

    def _lines(self) -> Report:
        last = ""
        begun = time.monotonic()

        def report(done: float, total: float | None, words: str) -> None:
            nonlocal last
            if words != last:
                last = words
                self.say(f"[{time.monotonic() - begun:5.1f} s] {words}")

        return report


class _Bar(BarColumn):
    """A bar where it is known how much there is to do; otherwise the spinner says enough."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if task.total is not None else Text("")


def _onto(progress: Progress, task: TaskID) -> Report:
    def report(done: float, total: float | None, words: str) -> None:
        progress.update(task, description=sanitise(words).replace("\n", " "), completed=done, total=total)

    return report


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; its cells are made harmless."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(Text(sanitise(cell).replace("\n", " ")) for cell in row))
    Console(width=_WIDEST, highlight=False).print(table)


def age(seconds: float) -> str:
    """A length of time for people: `42 s`, `7 min`, `3 h`, `5 d`."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) // size:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"
