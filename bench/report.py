"""The results as a table for a person, as JSON, and as the README's table."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from bench.figures import Figure, Measured

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

Row = tuple[Figure, Measured]


def machine(engine: str) -> str:
    """What it was measured on, in a line; `engine` says what the host's engine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return (
        f"{os.cpu_count()} CPUs ({_cpu()}), {memory:.0f} GiB, {system}, Linux {platform.release()}, "
        f"{engine}, Python {platform.python_version()}"
    )


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def over(rows: Sequence[Row]) -> list[str]:
    """The names of the figures above their limits."""
    bounded = ((figure, figure.limit, figure.value(measured)) for figure, measured in rows if figure.limit is not None)
    return [figure.name for figure, limit, value in bounded if value > limit]


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """`ratio` is the number that `limit` bounds; what it counts is `unit` ("x": ours_ms / theirs_ms, the medians)."""
    return [
        {
            "figure": figure.name,
            "ours": figure.ours,
            "theirs": figure.theirs or None,
            "ratio": round(figure.value(measured), 3),
            "unit": figure.unit,
            "limit": figure.limit,
            "ours_ms": round(median(measured.ours), 1) if measured.ours else None,
            "theirs_ms": round(median(measured.theirs), 1) if measured.theirs else None,
            "runs": max(len(measured.ours), 1),
            "ours_range_ms": _range(measured.ours),
            "theirs_range_ms": _range(measured.theirs),
            **measured.more,
        }
        for figure, measured in rows
    ]


def _range(samples: Sequence[float]) -> dict[str, float] | None:
    if not samples:
        return None
    return {"min": round(min(samples), 1), "median": round(median(samples), 1), "max": round(max(samples), 1)}


def _value(figure: Figure, number: float) -> str:
    return f"{number:.2f} x" if figure.unit == "x" else f"{number:.1f} {figure.unit}"


def _limit(figure: Figure) -> str:
    return "" if figure.limit is None else f"≤ {figure.limit:g} {figure.unit}"


def _side(words: str, samples: Sequence[float]) -> str:
    return f"{words}: {median(samples):.0f} ms" if samples else words


def table(rows: Sequence[Row], title: str) -> Table:
    """For the terminal."""
    shown = Table(title=title, title_justify="left", caption="medians, min to max", caption_justify="left")
    shown.add_column("figure")
    for heading in ("ours, ms", "theirs, ms", "value", "limit", "runs"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for figure, measured in rows:
        number = figure.value(measured)
        colour = "none" if figure.limit is None else "green" if number <= figure.limit else "bold red"
        against = f" / {figure.theirs}" if figure.theirs else ""
        shown.add_row(
            f"{figure.name}\n[dim]{figure.ours}{against}[/dim]",
            _cell(measured.ours),
            _cell(measured.theirs),
            f"[{colour}]{_value(figure, number)}[/]",
            _limit(figure),
            str(max(len(measured.ours), 1)),
        )
    return shown


def _cell(samples: Sequence[float]) -> str:
    return f"{median(samples):.0f}\n[dim]{min(samples):.0f} to {max(samples):.0f}[/dim]" if samples else ""


def markdown(rows: Sequence[Row], on: str) -> str:
    """For the README."""
    lines = ["| ours | theirs | ratio | limit |", "|---|---|---|---|"]
    for figure, measured in rows:
        cells = (
            _side(figure.ours, measured.ours),
            _side(figure.theirs, measured.theirs),
            _value(figure, figure.value(measured)),
            _limit(figure),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Medians of interleaved runs, one machine, one session: {on}."]
    beyond = set(over(rows))
    said = [
        f"{figure.ours} ({_value(figure, figure.value(measured))}, {_limit(figure)})"
        for figure, measured in rows
        if figure.name in beyond
    ]
    lines.append(f"Over their limits: {'; '.join(said)}." if said else "None is over its limit.")
    return "\n".join(lines) + "\n"


def into(readme: Path, text: str) -> bool:
    """Put `text` between the two markers; whether the file has them."""
    whole = readme.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
    return True
