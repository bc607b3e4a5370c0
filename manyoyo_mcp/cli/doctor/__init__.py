"""`manyoyo-mcp doctor`: is this machine fit, what was found, and how to mend it. Each check is a small function."""

import json
import os
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from rich.console import Console
from rich.text import Text

from manyoyo_mcp.cli.connect import load_settings
from manyoyo_mcp.cli.doctor import host, machine
from manyoyo_mcp.cli.doctor.check import Check, State, fail
from manyoyo_mcp.cli.doctor.network import network
from manyoyo_mcp.cli.doctor.trial import trial
from manyoyo_mcp.cli.doctor.walls import walls
from manyoyo_mcp.cli.exits import Exit
from manyoyo_mcp.cli.screen import Screen
from manyoyo_mcp.config import ISOLATIONS, Settings
from manyoyo_mcp.errors import InvalidArgument, ManyoyoError
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.hosts.isolation import RUNTIME, TIERS
from manyoyo_mcp.text import sanitise

_MARKS = {State.OK: ("ok  ", "green"), State.WARN: ("warn", "yellow"), State.FAIL: ("FAIL", "bold red")}


async def doctor(*, try_sandboxes: bool, as_json: bool, screen: Screen) -> int:
    """Print every check; the exit code: 1 where one fails."""
    return await _tell(_examine(try_sandboxes, screen), as_json)


async def isolation(names: Sequence[str], *, as_json: bool, screen: Screen) -> int:
    """The same for tiers of isolation, each of which is tried: those with these `names`, or all. Raises InvalidArgument for what is none."""
    for name in names:
        if re.match(ISOLATIONS, name) is None:
            raise InvalidArgument(
                f"There is no isolation {name[:60]!r}.", f"There are: {', '.join(TIERS)}, {RUNTIME}NAME."
            )
    return await _tell(walls(load_settings(), names, screen), as_json)


async def _tell(examined: AsyncGenerator[Check], as_json: bool) -> int:
    checks: list[Check] = []
    console = Console(highlight=False)
    async with aclosing(examined) as found:
        async for check in found:
            checks.append(check)
            if not as_json:
                _show(console, check)
    count = {state: sum(check.state is state for check in checks) for state in State}
    if as_json:
        rows = [{"name": each.name, "state": each.state, "found": each.found, "mend": each.mend} for each in checks]
        print(json.dumps({"ok": not count[State.FAIL], "checks": rows}, indent=2))
    else:
        console.print(f"{count[State.OK]} ok, {count[State.WARN]} warnings, {count[State.FAIL]} failures")
    return Exit.FAILED if count[State.FAIL] else Exit.OK


async def _examine(try_sandboxes: bool, screen: Screen) -> AsyncGenerator[Check]:
    yield machine.python()
    yield machine.mcp()
    try:
        settings = load_settings()
    except ManyoyoError as error:
        yield fail("configuration", error.message, error.hint)
        return
    for check in _local(settings):
        yield check
    async with open_host(settings) as opened:
        with screen.working("asking the host's engine"):
            check, facts = await host.engine(settings, opened)
        yield check
        if facts is None:
            return
        for question in (*host.CHECKS, network):
            with screen.working(question.__name__.replace("_", " ")):
                check = await question(facts)
            yield check
    if try_sandboxes:
        async for check in trial(settings, screen):
            yield check


def _local(settings: Settings) -> Sequence[Check]:
    found = [
        machine.configuration(settings, os.environ),
        machine.runtime_directory(settings.runtime_dir),
        machine.certificates(settings),
        machine.proxy(os.environ),
        machine.secrets(settings, os.environ),
        machine.access(host.endpoint(settings, os.environ)[0]),
    ]
    return [check for check in found if check is not None]


def _show(console: Console, check: Check) -> None:
    mark, style = _MARKS[check.state]
    console.print(
        Text(f"{mark}  ", style=style).append(f"{check.name}: ", style="bold").append(sanitise(check.found)),
        soft_wrap=True,
    )
    if check.mend:
        console.print(Text(f"      → {sanitise(check.mend)}"), soft_wrap=True)
