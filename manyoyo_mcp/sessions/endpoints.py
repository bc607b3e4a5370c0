"""Ways into sandboxes for Docker clients of the user's own: a gate each, for as long as this session has the sandbox."""

import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from manyoyo_mcp.audit.journal import Journal
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument, NotSupported
from manyoyo_mcp.hosts import sharing
from manyoyo_mcp.hosts.base import Host
from manyoyo_mcp.hosts.isolation import ON_HOST, tier
from manyoyo_mcp.policy.base import Limits
from manyoyo_mcp.policy.bounded import Boundary
from manyoyo_mcp.policy.connection import Ways
from manyoyo_mcp.policy.gate import Gate
from manyoyo_mcp.policy.ports import Publisher
from manyoyo_mcp.sessions.ports import Ports
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.sessions.witness import GateWitness, port_on_record

_INSIDE = "/run/manyoyo/gate.sock"
"""Where the outer container has the gate for nested ones: in the directory that it shares with the server."""
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
        journal: Journal,
    ) -> None:
        self._settings = settings
        self._host = host
        self._directory = _root(settings) / session
        self._spawn = spawn
        self._journal = journal
        self._gates: dict[Path, Gate] = {}
        self._ports: dict[str, Ports] = {}

    def open(self, sandbox: Sandbox, *, ports: bool = False) -> Path:
        """The sandbox's gate for the user's own clients: a unix socket, made where it is not there. With `ports`, which stays so, what they publish
        is reachable on this machine's loopback. Raises InvalidArgument where its path is too long, NotSupported where there is no engine to lead to."""
        _check_leads(sandbox, ports)
        found = tier(sandbox.isolation)
        if self._inside(sandbox) is not None and found.socket_inside and not found.on_host:
            self.open_inside(sandbox)  # a client may mount it
        path = self._open(sandbox, self._directory / f"{sandbox.sandbox_id}.sock", "user")
        if ports and not self.publishes(sandbox):
            client = sandbox.client()
            reach, told = (
                partial(self._host.reach, sandbox.outer),
                partial(port_on_record, self._journal, sandbox.sandbox_id),
            )
            opened = Ports(client, reach, partial(_use, sandbox), told)
            self._ports[sandbox.sandbox_id] = opened
            opened.open()
        return path

    def publishes(self, sandbox: Sandbox) -> bool:
        """Whether the user's clients may publish ports."""
        return sandbox.sandbox_id in self._ports

    def published(self, sandbox: Sandbox) -> list[str]:
        """What is published, in words."""
        ports = self._ports.get(sandbox.sandbox_id)
        return ports.shown() if ports is not None else []

    def open_inside(self, sandbox: Sandbox) -> None:
        """The sandbox's gate for its own nested containers, apart from the user's: they could take every connection. Raises NotSupported
        where host and sandbox share no directory, or nobody in there may connect."""
        _check_own_engine(sandbox)
        if not tier(sandbox.isolation).socket_inside:
            raise NotSupported(
                f"Nested containers can have no Docker socket in isolation {sandbox.isolation}: it is the server's user's, and they are nobody's.",
                "Leave docker_socket out: build and run with the tools. Other isolations have it.",
            )
        path = self._inside(sandbox)
        if path is None:
            raise NotSupported(
                "Nested containers can have no Docker socket in this sandbox: it is reached through a relay, and shares no directory with "
                "the server.",
                "Leave docker_socket out: build and run with the tools. Sandboxes on this machine's own engine have it.",
            )
        self._open(sandbox, path, "nested")
        sandbox.limits = replace(sandbox.limits, socket=_INSIDE)

    def _inside(self, sandbox: Sandbox) -> Path | None:
        if sandbox.transport != "socket" or sandbox.outer.socket_dir is None:
            return None
        return Path(sandbox.outer.socket_dir) / _INSIDE.rpartition("/")[2]

    def _open(self, sandbox: Sandbox, path: Path, road: str) -> Path:
        if path in self._gates:
            return path
        token = current_token()

        def limits() -> Limits:
            if road == "nested":
                return replace(sandbox.limits, ports="inside")
            return replace(sandbox.limits, ports="outside" if self.publishes(sandbox) else "none", own=str(path))

        def publisher() -> Publisher:
            return (self._ports.get(sandbox.sandbox_id) if road == "user" else None) or Publisher()

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

        witness = GateWitness(self._journal, sandbox.sandbox_id, road)
        context_max, used = self._settings.context_max_bytes, partial(_use, sandbox)
        boundary = Boundary(sandbox.dial, limits, sandbox.within) if sandbox.within is not None else None
        ways = Ways(sandbox.dial, limits, context_max, used, hung_up, witness, publisher, boundary)
        # Root of a nested container is nobody's id outside in that tier; the directory is its server's and the sandbox's alone.
        gate = Gate(path, ways, 0o666 if road == "nested" and sandbox.isolation == "userns" else 0o600)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            gate.open()
        except OSError as error:
            raise InvalidArgument(
                f"The socket {gate.path} can't be made: {error}.",
                "Set MANYOYO_RUNTIME_DIR to a shorter path that is yours.",
            ) from error
        self._gates[path] = gate
        return path

    def close(self, sandbox_id: str) -> None:
        """End a sandbox's gates, where it has some, and all that goes through them."""
        for path in [each for each in self._gates if sandbox_id in (each.stem, each.parent.name)]:
            self._gates.pop(path).close()
        if (ports := self._ports.pop(sandbox_id, None)) is not None:
            ports.close()
        if not self._gates:
            with contextlib.suppress(OSError):
                self._directory.rmdir()

    def close_all(self) -> None:
        """The session ends, and with it what leads into sandboxes that go on."""
        for path in list(self._gates):
            self._gates.pop(path).close()
        while self._ports:
            self._ports.popitem()[1].close()


def _check_leads(sandbox: Sandbox, ports: bool) -> None:
    if sandbox.isolation != "sock":
        _check_own_engine(sandbox)
    elif ports:
        raise NotSupported(
            "Ports of a sandbox with isolation sock are not opened on this machine.",
            "Leave ports out; services of such a sandbox meet at localhost.",
            code="ENDPOINT_UNAVAILABLE",
        )


def _check_own_engine(sandbox: Sandbox) -> None:
    if sandbox.isolation in ON_HOST:
        raise NotSupported(
            f"There is no Docker socket into a sandbox with isolation {sandbox.isolation}: its engine is the host's.",
            "Use the tools, or start a sandbox with another isolation, which has an engine of its own.",
            code="ENDPOINT_UNAVAILABLE",
        )


def _use(sandbox: Sandbox) -> None:
    sandbox.used = time.monotonic()


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
