"""`manyoyo-mcp demo`: the main job, for real, through an MCP client over stdio, as a person would want to watch it."""

import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from rich.console import Console
from rich.text import Text

from manyoyo_mcp.cli.connect import load_settings
from manyoyo_mcp.cli.exits import Exit
from manyoyo_mcp.cli.image import make_bases
from manyoyo_mcp.cli.screen import Screen
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument, SandboxError
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.image import debian, outer
from manyoyo_mcp.sessions.identity import owner
from manyoyo_mcp.values import format_bytes

IMAGE = "localhost/demo:1"
TEST_COMMAND = ["python3", "-m", "pytest", "-q"]
_HOG = "print('asking for 256 MiB', flush=True); block = b'x' * (256 << 20); print('got', len(block) >> 20, 'MiB')"
_SHOWN_LINES = 20
_FROM_PACKAGES = re.compile(r"^FROM localhost/manyoyo/python\S*", re.MULTILINE)
_FROM_REGISTRY = "FROM docker.io/library/python:3-slim"


class DemoFailed(SandboxError):
    """A step of the demo did not come out as it must."""

    code = "DEMO_FAILED"


@dataclass(slots=True)
class Show:
    """A client connected to a server, a screen, and the figures for the closing line."""

    client: Client
    screen: Screen
    figures: list[str] = field(default_factory=list)

    async def call(self, words: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a tool, its progress going by; its structured result. Raises DemoFailed for an error."""
        with self.screen.working(words) as report:

            async def progress(progress: float, total: float | None, message: str | None) -> None:
                report(progress, total, re.sub(r" \(\d+ s\)$", "", message or words))

            result = await self.client.call_tool(tool, arguments, progress_callback=progress)
        if result.is_error or result.structured_content is None:
            text = "\n".join(getattr(each, "text", "") for each in result.content)
            raise DemoFailed(f"{tool} answered: {text}", "`manyoyo-mcp doctor --try` looks for the cause.")
        return dict(result.structured_content)

    def title(self, text: str) -> None:
        self.screen.say("")
        self.screen.say(text, "bold cyan")

    def say(self, text: str) -> None:
        self.screen.say(f"  {text}")

    def output(self, result: dict[str, Any], title: str) -> None:
        """The end of what a command wrote, without the marks that tell a model that it is not to be trusted."""
        lines = [line for line in result["output"].splitlines() if not re.fullmatch(r"</?untrusted-[^>]*>", line)]
        self.screen.say(f"  ┌ {title}", "dim")
        for line in lines[-_SHOWN_LINES:]:
            self.screen.say(f"  │ {line}")


async def demo(*, quiet: bool) -> int:
    """Run the demo; 0 once everything came out as it must. Raises DemoFailed otherwise."""
    begun = time.monotonic()
    settings = load_settings()
    application = find_application()
    screen = Screen(quiet=quiet, console=Console(highlight=False))
    screen.say("Images: built once, then they are there", "bold cyan")
    await prepare(settings, screen)
    async with connected(application) as client:
        show = Show(client, screen)
        await main_job(show, settings, application)
    screen.say("")
    figures = "; ".join(show.figures)
    done = Text(f"Done in {time.monotonic() - begun:.1f} s: {figures}.", style="bold green")
    screen.console.print(done, soft_wrap=True)
    screen.say(f"For an agent of yours: claude mcp add manyoyo {_where()}-- {_program()}")
    return Exit.OK


def _program() -> Path:
    """The console script of this installation."""
    return Path(sys.executable).with_name("manyoyo-mcp")


def _where() -> str:
    """What tells a server of somebody else's shell where this one's engine is."""
    names = ("DOCKER_HOST", "DOCKER_CONTEXT", "MANYOYO_DOCKER_HOST", "MANYOYO_HOST_RUNTIME")
    return "".join(f"-e {name}={os.environ[name]} " for name in names if os.environ.get(name))


def find_application() -> Path:
    """The example that is built: from the installed package, else from the repository. Raises InvalidArgument."""
    here = Path(str(files("manyoyo_mcp")))
    for place in (here / "examples" / "python-web", here.parent / "examples" / "apps" / "python-web"):
        if (place / "Dockerfile").is_file():
            return place
    raise InvalidArgument(
        "The demo's application is not installed.", "Run ./scripts/demo in a clone of the repository."
    )


async def prepare(settings: Settings, screen: Screen) -> None:
    """The outer image and, where they can be made from packages, the base images. Raises ImageUnavailable."""
    with screen.working("the outer image") as report:
        async with open_host(settings) as host:
            name = await outer.ensure(host, settings, report)
    screen.say(f"  outer image: {name}")
    if debian.available():
        with screen.working("base images") as report:
            bases = await make_bases(settings, ["python", "busybox"], report)
        screen.say(f"  base images, in every new sandbox: {', '.join(base.tags[0] for base in bases)}")


@asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[Client]:
    """A client of a server that was started in `directory`, as an agent's own client starts it in a project."""
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "manyoyo_mcp", "serve"], env=dict(os.environ), cwd=directory
    )
    async with Client(server) as client:
        yield client


async def main_job(show: Show, settings: Settings, application: Path) -> None:
    """Start, build, test, hit a cap, mend it, clean up."""
    show.title("start_sandbox: a container host of its own")
    started = await show.call("starting a sandbox", "start_sandbox", {})
    sandbox = started["sandbox"]
    caps = sandbox["caps"]
    show.say(f"{sandbox['sandbox_id']} ({sandbox['engine']}) started in {started['seconds']:.2f} s")
    granted = f"{caps['cpus']:g} CPUs, {format_bytes(caps['memory_bytes'])}, {caps['pids_limit']} processes"
    show.say(f"{granted}: {sandbox['caps_enforced']}")
    _expect(sandbox["caps_enforced"] == "enforced", f"the caps are {sandbox['caps_enforced']}: {sandbox['evidence']}")
    show.figures.append(f"sandbox up in {started['seconds']:.2f} s")

    await _build(show, application)
    await _tests(show)
    await _cap(show)

    show.title("cleanup: nothing stays")
    begun = time.monotonic()
    removed = (await show.call("removing it", "cleanup", {}))["removed"]
    _expect(removed == [sandbox["sandbox_id"]], f"cleanup removed {removed}")
    left = await _left(settings, sandbox["sandbox_id"])
    _expect(not left, f"still there: {', '.join(left)}")
    show.say(f"{removed[0]} removed in {time.monotonic() - begun:.2f} s; its containers, images and volume with it")
    show.figures.append("everything removed")


async def _build(show: Show, application: Path) -> None:
    show.title(f"nested_build: {application.name}, an application with dependencies and tests of its own")
    arguments: dict[str, Any] = {"context_dir": ".", "tags": [IMAGE], "wait_s": 600}
    if not debian.available():  # no base images from packages: the same application on a registry's
        text = (application / "Dockerfile").read_text()
        arguments["files"] = {"Dockerfile": _FROM_PACKAGES.sub(_FROM_REGISTRY, text)}
    built = await show.call("building", "nested_build", arguments)
    for step in built.get("steps", []) if show.screen.live else []:  # elsewhere they went by as lines
        how = "cached" if step.get("cached") else f"{step.get('seconds', 0):.1f} s"
        show.say(f"{step['step']:>5}  {step['instruction'][:90]}  ({how})")
    if built.get("reason") != "OK":
        show.output(built, "the build's log")
    why = built.get("cause") or built.get("error")
    _expect(built.get("reason") == "OK", f"the build ended with {built.get('reason')}: {why}")
    show.say(f"built in {built['seconds']:.1f} s: {format_bytes(built['size_bytes'])}")
    show.figures.append(f"{len(built['steps'])} build steps in {built['seconds']:.1f} s")


async def _tests(show: Show) -> None:
    show.title("nested_run: the application's own tests")
    run = await show.call("running its tests", "nested_run", {"image": IMAGE, "command": TEST_COMMAND, "wait_s": 300})
    show.output(run, " ".join(TEST_COMMAND))
    _expect(run["reason"] == "OK", f"the tests ended with {run['reason']}, exit code {run.get('exit_code')}")
    passed = re.search(r"(\d+) passed", run["output"])
    _expect(passed is not None, "no test has passed")
    show.say(f"{run['reason']}, exit code {run['exit_code']}, {run['seconds']:.2f} s")
    show.figures.append(f"{passed[1] if passed else 0} tests passed")


async def _cap(show: Show) -> None:
    show.title("nested_run: 256 MiB wanted, 64 MiB granted")
    hog = {"image": IMAGE, "command": ["python3", "-c", _HOG], "network": "none"}
    run = await show.call("running into the cap", "nested_run", {**hog, "memory": "64m"})
    show.output(run, "memory=64m")
    show.say(f"{run['reason']}, exit code {run['exit_code']}, after {run['seconds']:.2f} s: {run.get('explanation')}")
    show.say(f"what to do: {run.get('hint')}")
    _expect(run["reason"] == "OOM_KILLED" and run["exit_code"] == 137, f"the run ended with {run['reason']}")
    show.figures.append(f"1 run killed at its cap, and named {run['reason']}")
    run = await show.call("the same with what it needs", "nested_run", {**hog, "memory": "512m"})
    show.output(run, "memory=512m")
    _expect(run["reason"] == "OK", f"with 512 MiB it ended with {run['reason']}")
    show.say(f"{run['reason']}, exit code {run['exit_code']}, {run['seconds']:.2f} s")


async def _left(settings: Settings, sandbox_id: str) -> list[str]:
    async with open_host(settings) as host:
        found = [f"container of {outer.sandbox_id}" for outer in await host.find({"owner": owner()}, sandbox_id)]
        found += [f"volume manyoyo-{sandbox_id}"] if await host.volume_exists(f"manyoyo-{sandbox_id}") else []
    return found


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DemoFailed(
            f"The demo did not come out as it must: {otherwise}.", "`manyoyo-mcp doctor --try` looks for the cause."
        )
