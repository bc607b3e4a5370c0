"""`scripts/mutation --live`: what refuses by asking an engine, each rule switched off in a copy of the project, whose tests then run there against a live
engine; a table of what came of it."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from mutation import rules

ROOT = Path(__file__).parent.parent
# The quickest first.
TESTS = ("tests/unit/test_stepwise.py", "tests/integration/test_bounded.py", "tests/integration/test_host_engine.py")
_WHOLE = ("bounded",)
"""Modules each rule of which is tried; of others (`rules.BUILDER`), what refuses."""
_PATIENCE = 900
"""Seconds for the tests without a rule: it is missed too if they hang."""


def todo(only: str) -> Iterator[tuple[rules.Rule, int]]:
    for module in (*_WHOLE, *rules.BUILDER):
        for at, rule in enumerate(rules.found(module)):
            if only in rule.title and (module in _WHOLE or rule.kind == "refusal"):
                yield rule, at


def failing(copy: Path) -> str:
    """The first test that fails in a copy of the project; "" if all pass. Raises SystemExit if they can't be run."""
    return next(filter(None, (_failing(copy, file) for file in TESTS)), "")


def _failing(copy: Path, file: str) -> str:
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", file]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(words, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ran:  # fmt: skip
        try:
            said, _ = ran.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            ran.terminate()
            return "they hang"
    if ran.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {ran.returncode}:\n{said}")
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "" if ran.returncode == 0 else failed[0] if failed else "it says not which"


def main(
    only: Annotated[str, typer.Option(help="Rules whose name has this in it.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="Name the rules, and run nothing.")] = False,
) -> None:
    """Switch each rule that asks an engine off in turn; exit code 0 only if a test fails for each."""
    rows = list(todo(only))
    if listed:
        print("\n".join(rule.title for rule, _ in rows))
        return
    begun, left = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "project")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        if failed := failing(copy):
            raise SystemExit(f"the tests fail as they are: {failed}")
        for rule, at in rows:
            file = copy / rules.file_of(rule.module).relative_to(ROOT)
            written = file.read_text()
            file.write_text(ast.unparse(rules.mutated(rule.module, at)))
            failed = failing(copy)
            file.write_text(written)
            left += [] if failed else [rule.title]
            print(f"{rule.title} (line {rule.line}): {failed or 'NOT MISSED'}", flush=True)
        if failed := failing(copy):
            raise SystemExit(f"the tests fail afterwards, as they are: {failed}")
    print(f"{len(rows) - len(left)} of {len(rows)} rules are missed; {time.monotonic() - begun:.0f} s")
    raise typer.Exit(1 if left else 0)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
