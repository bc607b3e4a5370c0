"""What the commands share: settings, an event loop that ends cleanly on a signal, this owner's sandboxes by name."""

import os
import signal
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from pydantic import ValidationError

from manyoyo_mcp.cli.exits import complain, end_without_reader
from manyoyo_mcp.config import CONFIG_FILE, Settings
from manyoyo_mcp.errors import InvalidArgument, NotFound, NotRunning, SandboxAmbiguous

if TYPE_CHECKING:  # imported where they are used: a server's start needs none of them here
    from manyoyo_mcp.hosts.base import Host, Outer
    from manyoyo_mcp.sessions.manager import Manager
    from manyoyo_mcp.sessions.sandbox import Sandbox

T = TypeVar("T")


def load_settings(**overrides: Any) -> Settings:
    """The settings. Raises InvalidArgument that names the setting that is wrong."""
    where = f"Settings are MANYOYO_… variables and lines of {CONFIG_FILE}."
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise InvalidArgument(f"The setting {name} is wrong: {first['msg']}.", where, argument=name) from error
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise InvalidArgument(f"The configuration {CONFIG_FILE} can't be read: {error}.", where) from error


def run_async(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work()`. A signal cancels it and ends the process with 128 + its number once everything is cleaned up; a
    second one ends it at once and leaves the rest to the reaper. Errors come out as raised, of a group the first."""
    caught: list[int] = []

    async def watched() -> list[T]:
        results: list[T] = []
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(_cancel_on_signal, scope, caught)
                results.append(await work())
            group.cancel_scope.cancel()
        return results

    try:
        results = anyio.run(watched)
    except BrokenPipeError:
        end_without_reader()
    except BaseExceptionGroup as group:
        error = _first(group)
        if isinstance(error, BrokenPipeError):
            end_without_reader()
        raise error from None
    if caught:
        raise SystemExit(128 + caught[0])
    return results[0]


async def _cancel_on_signal(scope: anyio.CancelScope, caught: list[int]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for number in signals:
            if caught:
                os._exit(128 + number)
            caught.append(number)
            complain("interrupted: cleaning up", "")
            scope.cancel()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def own_sandboxes(host: "Host") -> "list[Outer]":
    """This owner's sandboxes on the host, of whichever session, the newest first."""
    from manyoyo_mcp.sessions.identity import owner

    found = await host.find({"owner": owner(), "kind": "sandbox"})
    return sorted(found, key=lambda outer: outer.created, reverse=True)


def _stopped(labels: dict[str, str]) -> NotRunning:
    """What is said of a sandbox that has stopped."""
    sandbox_id = labels["sandbox"]
    message = f"The sandbox {labels.get('name', sandbox_id)} has stopped."
    if "name" in labels:
        hint = (
            f"What it holds is kept: start_sandbox with name={labels['name']!r} starts it again; `manyoyo-mcp rm "
            f"{labels['name']}` removes it."
        )
    else:
        hint = f"`manyoyo-mcp logs {sandbox_id}` shows why; `manyoyo-mcp gc` removes it after its server."
    return NotRunning(message, hint, code="SANDBOX_NOT_RUNNING")


async def find_sandbox(host: "Host", name: str) -> "Outer":
    """The sandbox with this name or id, or whose id begins so ("sb-" may be left out). Raises NotFound, SandboxAmbiguous, or
    NotRunning where a named one has stopped and left its container."""
    from manyoyo_mcp.sessions.identity import owner

    everything = await own_sandboxes(host)
    found = [outer for outer in everything if name and name == outer.labels.get("name")]
    found = found or [o for o in everything if name in (o.sandbox_id, o.sandbox_id.removeprefix("sb-"))]
    found = found or [outer for outer in everything if name and outer.sandbox_id.startswith((name, f"sb-{name}"))]
    if not found:
        for store in await host.stores({"owner": owner(), "kind": "sandbox"}):
            if name in (store.labels.get("name"), store.labels["sandbox"]) and "name" in store.labels:
                raise _stopped(store.labels)
        raise NotFound(f"There is no sandbox {name[:60]!r} of yours on this host.", code="SANDBOX_NOT_FOUND")
    if len(found) > 1:
        raise SandboxAmbiguous(
            f"{len(found)} sandboxes begin with {name!r}.",
            f"Write more of it: {', '.join(o.sandbox_id for o in found)}.",
        )
    return found[0]


@asynccontextmanager
async def open_sandbox(settings: Settings, name: str) -> "AsyncIterator[tuple[Manager, Sandbox]]":
    """A sandbox that some server of this owner holds, to look into or work in; it is left as it is.

    Raises NotFound, SandboxAmbiguous, NotRunning, HostUnavailable, EngineFailed.
    """
    from manyoyo_mcp.sessions.manager import open_manager

    async with open_manager(settings, sweep_first=False) as manager:
        found = await find_sandbox(manager.host, name)
        if not found.running:
            raise _stopped(found.labels)
        yield manager, await manager.adopt(found)
