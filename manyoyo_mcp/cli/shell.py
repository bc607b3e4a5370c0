"""`manyoyo-mcp shell`: a terminal in a nested container, over the nested engine's API and through its policy.

It leads into no outer container: that is privileged, and root in it is root on the host.
"""

import os
import secrets
import signal
import socket
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import docker

from manyoyo_mcp.cli.connect import load_settings, open_sandbox
from manyoyo_mcp.cli.exits import Exit, complain, hint_of
from manyoyo_mcp.cli.screen import Screen
from manyoyo_mcp.engines.failures import from_answer
from manyoyo_mcp.errors import InvalidArgument, Reason, SandboxError
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.workers import in_thread, wait_in_thread

T = TypeVar("T")
_DEFAULT = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]


async def shell(name: str, container: str | None, image: str | None, command: list[str], screen: Screen) -> int:
    """This terminal, joined to `command` (default: a shell) in `container`, or in a throw-away one of `image`.

    Returns its exit code. Raises InvalidArgument where this is no terminal, or neither or both of the two are given.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidArgument(
            "A shell needs a terminal.",
            "Without one: `manyoyo-mcp exec SANDBOX CONTAINER COMMAND…`, or `manyoyo-mcp run --image IMAGE -- COMMAND…` in a "
            "sandbox of its own.",
        )
    if container is not None and image is not None:
        raise InvalidArgument("CONTAINER and --image exclude each other.", "Give the one that is meant.")
    async with open_sandbox(load_settings(), name) as (_, sandbox):
        visit = Visit(sandbox, sandbox.client())
        if container is not None:
            code = await visit.enter(container, command or _DEFAULT)
        else:
            async with visit.throw_away(image) as made:
                screen.say(f"a throw-away container of {image} in {sandbox.sandbox_id}; it goes when you leave", "dim")
                code = await visit.enter(made, command or _DEFAULT)
    if command and code in (Exit.SANDBOX, Exit.NOT_EXECUTABLE, Exit.NOT_FOUND):  # an engine's words may be no help
        complain(
            f"exit code {code}: most likely {command[0]!r} could not be started.",
            hint_of(Reason.COMMAND_NOT_FOUND, ""),
        )
    return code


@dataclass(frozen=True, slots=True)
class Visit:
    """A guarded connection to a sandbox's engine, for what the engine's own methods don't do: terminals."""

    sandbox: Sandbox
    client: GuardedClient

    async def _ask(self, fn: Callable[[Any], T]) -> T:
        try:
            return await in_thread(fn, self.client)
        except docker.errors.APIError as error:
            text = sanitise(str(error.explanation or error)).strip()
            raise from_answer(self.sandbox.engine_name, error.status_code or 500, text) from error

    @asynccontextmanager
    async def throw_away(self, image: str | None) -> AsyncIterator[str]:
        """A container of `image` whose shell waits at a terminal of its own, removed at the end; its id."""
        if image is None:
            tags = [tag for each in await self.sandbox.engine.images() for tag in each.tags]
            raise InvalidArgument(
                "Neither a container nor an image is named.",
                f"`manyoyo-mcp ps {self.sandbox.sandbox_id}` lists the containers; "
                f"--image takes one of: {', '.join(tags) or 'none yet'}.",
            )
        body = {"Image": image, "Entrypoint": _DEFAULT, "Cmd": [], "Tty": True, "OpenStdin": True, "HostConfig": {}}

        def create(client: Any) -> str:
            return str(client.create_container_from_config(body)["Id"])

        try:
            made = await in_thread(create, self.client)
        except docker.errors.ImageNotFound:
            with Screen().working(f"pulling {image}"):
                await self.sandbox.engine.pull(image)
            made = await self._ask(create)
        try:
            await self._ask(lambda client: client.start(made))
            yield made
        finally:
            with anyio.CancelScope(shield=True), suppress(SandboxError):
                await self.sandbox.engine.remove(made)

    async def enter(self, container: str, command: list[str]) -> int:
        """Run `command` in a running container, joined to this terminal; its exit code."""
        marker = secrets.token_hex(8)  # what ends it where this process is ended
        body = {
            "Cmd": command,
            "Env": [f"TERM={os.environ.get('TERM', 'xterm')}", f"MANYOYO_EXEC={marker}"],
            "Tty": True,
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
        }

        def begin(client: Any) -> tuple[str, Any]:
            created = client._post_json(client._url("/containers/{0}/exec", container), data=body)
            exec_id = str(client._result(created, True)["Id"])
            upgrade = {"Connection": "Upgrade", "Upgrade": "tcp"}
            url = client._url("/exec/{0}/start", exec_id)
            response = client._post_json(url, headers=upgrade, data={"Tty": True, "Detach": False}, stream=True)
            client._raise_for_status(response)
            return exec_id, response

        exec_id, response = await self._ask(begin)
        reader = response.raw._fp.fp  # with what came in together with the headers, unlike docker-py's raw socket
        try:
            await self._converse(exec_id, reader, reader.raw._sock)
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(SandboxError):
                await self.sandbox.engine.kill_exec(exec_id, marker)
            raise
        finally:
            with suppress(OSError):
                reader.raw._sock.shutdown(socket.SHUT_RDWR)
            response.close()
        code = (await self._ask(lambda client: client.exec_inspect(exec_id)))["ExitCode"]
        return int(code) if code is not None else Exit.SANDBOX

    async def _converse(self, exec_id: str, reader: Any, sock: Any) -> None:
        sock.settimeout(None)
        with raw_terminal(sys.stdin.fileno()):
            async with anyio.create_task_group() as group:
                group.start_soon(self._follow_size, exec_id)
                threading.Thread(target=_feed, args=(sock,), daemon=True).start()
                await wait_in_thread(_pump, reader)
                group.cancel_scope.cancel()

    async def _follow_size(self, exec_id: str) -> None:
        with anyio.open_signal_receiver(signal.SIGWINCH) as changes:
            await self._resize(exec_id)
            async for _ in changes:
                await self._resize(exec_id)

    async def _resize(self, exec_id: str) -> None:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())  # COLUMNS and LINES may be of another
        with suppress(docker.errors.APIError):  # it has ended meanwhile
            await in_thread(self.client.exec_resize, exec_id, height=lines, width=columns)


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Every key goes through as it is; the terminal is as before at the end."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pump(reader: Any) -> None:
    with suppress(OSError, ValueError):
        while data := reader.read1(1 << 16):
            os.write(sys.stdout.fileno(), data)


def _feed(sock: Any) -> None:
    with suppress(OSError):
        while data := os.read(sys.stdin.fileno(), 4096):
            sock.sendall(data)
