"""Ways into sandboxes for Docker clients of the user's own: a gate each, for as long as this session has the sandbox."""

import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.hosts import sharing
from manyoyo_mcp.hosts.base import Host
from manyoyo_mcp.policy.gate import Gate, Ways
from manyoyo_mcp.sessions.sandbox import Sandbox

_ROUNDS, _PAUSE = 20, 0.1
"""How often, and after how many seconds again, a build is ended whose client has gone: its engine may begin the step after."""
_MOST = 64
"""Builds that are being ended at a time."""


class Endpoints:
    """A session's gates, in a directory of its own. `spawn` runs what nobody waits for."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        session: str,
        spawn: Callable[[str, Callable[[], Awaitable[object]]], None],
    ) -> None:
        self._settings = settings
        self._host = host
        self._directory = _root(settings) / session
        self._spawn = spawn
        self._gates: dict[str, Gate] = {}

    def open(self, sandbox: Sandbox) -> Path:
        """The sandbox's gate: a unix socket, made where it is not there. Raises InvalidArgument where its path is too long."""
        if sandbox.sandbox_id in self._gates:
            return self._gates[sandbox.sandbox_id].path
        token = current_token()

        def used() -> None:
            sandbox.used = time.monotonic()

        left: dict[str, int] = {}  # builds whose client has gone: rounds in which each is ended yet

        async def end() -> None:
            try:
                while left:
                    for build in list(left):
                        await self._host.maintain(sandbox.outer, "kill-build", build)
                        left[build] -= 1
                        if not left[build]:
                            del left[build]
                    await anyio.sleep(_PAUSE)
            finally:
                left.clear()  # the sandbox has gone: nothing is to be ended any more

        def begin(build: str) -> None:
            ends = bool(left)
            if len(left) < _MOST:
                left[build] = _ROUNDS
            if not ends:
                self._spawn("end builds", end)

        def hung_up(cgroup: str) -> None:
            with contextlib.suppress(RuntimeError):  # the session has ended meanwhile, and the sandbox with it
                anyio.from_thread.run_sync(begin, cgroup.rpartition("/")[2], token=token)

        ways = Ways(sandbox.dial, lambda: sandbox.limits, self._settings.context_max_bytes, used, hung_up)
        gate = Gate(self._directory / f"{sandbox.sandbox_id}.sock", ways)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            gate.open()
        except OSError as error:
            raise InvalidArgument(
                f"The socket {gate.path} can't be made: {error}.",
                "Set MANYOYO_RUNTIME_DIR to a shorter path that is yours.",
            ) from error
        self._gates[sandbox.sandbox_id] = gate
        return gate.path

    def close(self, sandbox_id: str) -> None:
        """End a sandbox's gate, where it has one, and all that goes through it."""
        gate = self._gates.pop(sandbox_id, None)
        if gate is not None:
            gate.close()
        if not self._gates:
            with contextlib.suppress(OSError):
                self._directory.rmdir()


def _root(settings: Settings) -> Path:
    return settings.runtime_dir / "gates"


def forget(settings: Settings, session: str) -> None:
    """Remove what is left of the gates of a session that has ended."""
    shutil.rmtree(_root(settings) / session, ignore_errors=True)


def forget_dead(settings: Settings) -> None:
    """Remove the sockets that nobody listens at."""
    for path in _root(settings).glob("*/*.sock"):
        if not sharing.listens(path):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
