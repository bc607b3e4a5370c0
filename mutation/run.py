"""`scripts/mutation`: every rule of the policy switched off in turn, the unit tests of the policy run on that, and a table of what came of it.

The tests are collected once. Each rule has a process of its own, forked from there, which imports the policy and the tests anew: the module with the
rule is compiled from its tree, with the rule off. Nothing is written to disk. Tests that draw at random are left out: a rule is not held by luck.
"""

import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Annotated, Any

import pytest
import typer
from _pytest.runner import runtestprotocol

from mutation import rules
from mutation.equivalent import EQUIVALENT

TESTS = (
    "test_policy_calls", "test_policy_checks", "test_policy_rules", "test_policy", "test_policy_labelled", "test_policy_hostbuilds", "test_contexts", "test_egress", "test_buildkit", "test_protobuf", "test_ports",
    "test_gate_rules", "test_gate",
)  # fmt: skip
_FIRST = {
    "labelled": "test_policy_labelled", "hostruns": "test_policy_labelled", "hostroom": "test_policy_labelled", "hostbuilds": "test_policy_hostbuilds", "hostlengths": "test_policy_hostbuilds", "base": "test_policy_checks", "fields": "test_policy_checks", "containers": "test_policy_checks", "libpod": "test_policy_checks",
    "libpod_things": "test_policy_checks", "things": "test_policy_checks", "buildkit": "test_policy_checks", "contexts": "test_contexts",
    "egress": "test_egress", "ports": "test_ports", "protobuf": "test_protobuf", "wire": "test_gate_rules", "connection": "test_gate_rules",
    "gate": "test_gate_rules", "http2": "test_gate_rules", "grpc": "test_gate_rules", "calling": "test_buildkit",
}  # fmt: skip
"""Where a module's rules are most likely to be missed, so that most of them need no other file."""
_KEPT = ("manyoyo_mcp.config", "manyoyo_mcp.dialled", "manyoyo_mcp.errors", "manyoyo_mcp.values")
"""What knows nothing of the policy, and is not imported anew."""
_DRAWN = frozenset({"test_what_is_written_is_read"})
"""Draws at random without saying so."""
_PATIENCE, _WORK = 900, 20
"""Seconds for the tests of one rule, and of CPU time, which tells no lies on a machine that is busy: a rule is missed too if they hang without it."""


class _Off(importlib.abc.MetaPathFinder):
    """Imports a module of the policy with its rule number `at` switched off."""

    def __init__(self, module: str, at: int) -> None:
        self._module, self._at = module, at

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != f"manyoyo_mcp.policy.{self._module}":
            return None
        file = str(rules.POLICY / f"{self._module}.py")
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, file, self._at))


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, at: int) -> None:
        super().__init__(fullname, path)
        self._at = at

    def get_code(self, fullname: str) -> CodeType:
        return compile(rules.mutated(Path(self.path).stem, self._at), self.path, "exec")


class Tests:
    """The policy's, as pytest collects them: a plugin of its own that runs them in its own way."""

    def __init__(self, todo: Sequence[tuple[rules.Rule, int]], lanes: int) -> None:
        self._todo, self._lanes = todo, lanes
        for name in _KEPT:
            importlib.import_module(name)
        assert not any(name.startswith("manyoyo_mcp.policy") for name in sys.modules)
        self._kept = frozenset(sys.modules)
        self._items: dict[str, list[pytest.Function]] = {}
        self.ends: list[tuple[rules.Rule, bool]] = []
        self.passed = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            if isinstance(item, pytest.Function) and item.originalname not in _DRAWN:
                self._items.setdefault(item.path.stem, []).append(item)
        _, status = os.waitpid(self._without(None, 0), 0)
        self.passed = status == 0
        if self.passed:
            self.ends += self._each()
        return True

    def _each(self) -> Iterator[tuple[rules.Rule, bool]]:
        gc.collect()
        gc.freeze()  # a child touches none of it
        begun, running = time.monotonic(), dict[int, rules.Rule]()
        waiting = list(reversed(self._todo))
        turn = 0
        while waiting or running:
            while waiting and len(running) < self._lanes:
                rule, at = waiting.pop()
                running[self._without(rule.module, at)] = rule
            child, status = os.wait()
            rule, turn = running.pop(child), turn + 1
            if os.WIFSIGNALED(status):
                print(f"ended by signal {os.WTERMSIG(status)}: {rule.title} (line {rule.line})", flush=True)
            if not status:
                print(f"not missed: {rule.module} {rule.kind} {rule.name} (line {rule.line})", flush=True)
            if turn % 100 == 0:
                print(f"{turn} of {len(self._todo)} after {time.monotonic() - begun:.0f} s", flush=True)
            yield rule, status != 0

    def _without(self, module: str | None, at: int) -> int:
        """A process in which the tests run, up to the first that fails, with a rule switched off where one is named."""
        child = os.fork()
        if child:
            return child
        code = 99
        try:
            gc.disable()
            signal.alarm(_PATIENCE)
            resource.setrlimit(resource.RLIMIT_CPU, (_WORK, _WORK))
            if module is not None:
                sys.meta_path.insert(0, _Off(module, at))
                null = os.open(os.devnull, os.O_RDWR)
                for each in (1, 2):
                    os.dup2(null, each)
            for name in [
                each for each in sys.modules if each.startswith(("manyoyo_mcp", "tests")) and each not in self._kept
            ]:
                del sys.modules[name]
            order = sorted(self._items, key=lambda name: (name != _FIRST.get(module or ""), TESTS.index(name)))
            code = 0 if all(_passes(item) for name in order for item in self._items[name]) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def _passes(item: pytest.Function) -> bool:
    """Whether a test does, as its module imported anew has it; what it is given is as it was collected."""
    module = importlib.import_module(f"tests.unit.{item.path.stem}")
    function = getattr(module, item.originalname)
    given = item.callspec.params if hasattr(item, "callspec") else {}
    if set(item.fixturenames) <= given.keys():
        try:
            function(**given)
        except BaseException:
            traceback.print_exc()
            return False
        return True
    item.obj = function
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for each in definitions:
            if each.func.__module__.startswith("tests."):
                anew = getattr(importlib.import_module(each.func.__module__), each.func.__name__)
                object.__setattr__(each, "func", anew._get_wrapped_function())
    reports = runtestprotocol(item, log=False, nextitem=None)
    for report in reports:
        if report.failed:
            print(report.longreprtext)
    return not any(report.failed for report in reports)


def main(
    module: Annotated[list[str] | None, typer.Argument(help="Modules of manyoyo_mcp/policy; all by default.")] = None,
    lanes: Annotated[int, typer.Option(min=1, help="Rules at a time.")] = os.cpu_count() or 1,
    only: Annotated[str, typer.Option(help="Rules whose name has this in it.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="Name the rules, and run nothing.")] = False,
) -> None:
    """Switch every rule of the policy off in turn; exit code 0 only if a test fails for each."""
    todo = [
        (rule, at)
        for name in module or rules.modules()
        for at, rule in enumerate(rules.found(name))
        if only in rule.title
    ]
    named = {rule.title for rule, _ in todo}
    if listed:
        print("\n".join(sorted(named)))
        return
    if not module and not only and (unknown := EQUIVALENT.keys() - named):
        raise SystemExit(f"mutation/equivalent.py names what is no rule (any more): {sorted(unknown)}")
    begun, tests = time.monotonic(), Tests(todo, lanes)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    words = [
        "-q",
        "-s",
        "--noconftest",
        "--assert=plain",
        "-p",
        "_hypothesis_pytestplugin",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:logging",
        "-m",
        "not hypothesis",
    ]
    pytest.main([*words, *(f"tests/unit/{name}.py" for name in TESTS)], plugins=[tests])
    if not tests.passed:
        raise SystemExit("the unit tests of the policy fail as they are")
    raise typer.Exit(_told(tests.ends, time.monotonic() - begun))


def _told(ends: Sequence[tuple[rules.Rule, bool]], seconds: float) -> int:
    missed, left = Counter[str](), Counter[str]()
    excused = 0
    for rule, failed in ends:
        if failed:
            missed[rule.module] += 1
        elif rule.title in EQUIVALENT:
            excused += 1
        else:
            left[rule.module] += 1
            print(f"survived: {rule.title} (line {rule.line})")
    for name in sorted({rule.module for rule, _ in ends}):
        print(f"{name:14} killed {missed[name]:4}   survived {left[name]}")
    killed, total = missed.total(), missed.total() + left.total()
    score = 100 * killed / total if total else 100.0
    print(
        f"mutation score {score:.1f} %: {killed} of {total} rules; {excused} more are equivalent (mutation/equivalent.py); {seconds:.0f} s"
    )
    return 1 if left else 0


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
