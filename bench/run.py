"""`scripts/bench`: measures, prints the table, writes the results; exit code 1 where a figure is over its limit."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import report
from bench.figures import EXTRAS, FIGURES, Bench, Figure
from bench.host import HostDocker
from bench.sandbox import session
from bench.scale import REPORTED, SCALE
from tests.support import busybox_rootfs

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


async def measure(figures: list[Figure], quick: bool, console: Console) -> tuple[str, list[report.Row]]:
    """What it was measured on, and a row for each figure, in their order."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows: list[report.Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="manyoyo-bench-") as directory,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        preparing = progress.add_task("preparing", total=None)
        async with session(Path(directory)) as ours:
            await ours.sandbox("podman")  # with it comes the outer image, and in that the files for the image
            rootfs = busybox_rootfs()
            host = HostDocker(rootfs)
            try:
                await ours.import_image("podman", rootfs)
                if any(figure.name.startswith("dockerd") for figure in figures):
                    await ours.import_image("docker", rootfs)
                progress.remove_task(preparing)
                bench = Bench(ours, host, rootfs)
                for figure in figures:
                    runs = max(figure.runs // 3, 1) if quick else figure.runs
                    task = progress.add_task(figure.name, total=runs + 1)
                    measured = await figure.measure(bench, runs, partial(progress.advance, task))
                    progress.remove_task(task)
                    rows.append((figure, measured))
            finally:
                host.close()
            return report.machine(host.about), rows


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A third of the runs.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="This figure, nothing written; repeatable.")] = None,
) -> None:
    """Measure manyoyo-mcp beside the host's own Docker."""
    console = Console()
    known = {figure.name: figure for figure in [*FIGURES, *SCALE, *EXTRAS, *REPORTED]}
    for name in only or []:
        if name not in known:
            raise typer.BadParameter(f"there is no figure {name!r}; there are: {', '.join(known)}", param_hint="--only")
    chosen = [known[name] for name in only] if only else list(known.values())
    on, rows = anyio.run(measure, chosen, quick, console)
    bounded = [row for row in rows if row[0].limit is not None]
    others = [row for row in rows if row[0].limit is None]
    for some, title in ((bounded, "Figures"), (others, "Beside them")):
        if some:
            console.print(report.table(some, title))
    console.print(on, style="dim")
    if not only:
        _write(on, bounded, others)
    over = report.over(rows)
    if over:
        console.print(
            f"Over the limit: {', '.join(over)}. Was the machine busy? Run it again when it is not.", style="red"
        )
        raise typer.Exit(1)


def _write(on: str, bounded: list[report.Row], others: list[report.Row]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    whole = {"machine": on, "figures": report.as_json(bounded), "extras": report.as_json(others)}
    (RESULTS / "latest.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    table = report.markdown(bounded, on)
    if not report.into(ROOT / "README.md", table):
        (RESULTS / "latest.md").write_text(table)


if __name__ == "__main__":
    typer.run(main)
