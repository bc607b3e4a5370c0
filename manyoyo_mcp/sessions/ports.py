"""What is published through a sandbox's endpoint, reachable on this machine's loopback under the number that the nested engine reports.

The nested engine keeps the record: a container whose ports are bound to loopback was made by the user's endpoint (`policy.ports`). A port is
held before its container starts, so that one that is taken is a reason not to start it, and let go when that ends, by whatever
road: the engine's own events say so. The connections go to the container's own address, for podman's publishing leads nowhere in a sandbox.
"""

import contextlib
import http.client
import ipaddress
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import docker
import urllib3

from manyoyo_mcp.dialled import SocketLike
from manyoyo_mcp.errors import EngineUnreachable, ManyoyoError, NotFound, RequestError
from manyoyo_mcp.hosts.base import Hop
from manyoyo_mcp.policy.ports import LOOPBACK, Binding, Published, Publisher, with_exposed
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.sessions.forwarding import Forward, listening

_log = logging.getLogger(__name__)
_MOST = 64
"""Ports of one sandbox, and connections through all of them."""
_PAUSE = 1.0
"""Seconds until an engine that does not say what happens in it is asked again."""
_TOLD = frozenset({"start", "restart", "die", "died", "stop", "destroy", "remove"})
"""What may have been the beginning or the end of a container."""
_SILENCE = (
    docker.errors.DockerException,
    ManyoyoError,
    OSError,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
)
"""Whatever an engine, or the way to it, fails with."""
_given: deque[int] = deque(maxlen=512)
"""Ports that were chosen lately, in any sandbox: their containers may not have started yet."""
_choosing = threading.Lock()

Reach = Callable[[str, int], Hop]
"""Connects to an address and port in a sandbox's own network."""


@dataclass(slots=True)
class _Held:
    """A port of this machine for one of a container's (`inner`). `pending`: it is about to start."""

    container: str
    name: str
    inner: int
    forward: Forward | None = None
    pending: bool = False

    @property
    def whither(self) -> str:
        return f"{self.name}:{self.inner}"


class Ports(Publisher):
    """One sandbox's. `client` asks its engine; `used` is told of each use, `told` of each port that is opened or closed: what, number, whither."""

    def __init__(
        self, client: GuardedClient, reach: Reach, used: Callable[[], None], told: Callable[[str, int, str], None]
    ) -> None:
        self._client = client
        self._reach = reach
        self._used = used
        self._told = told
        self._held: dict[int, _Held] = {}
        self._taken: dict[int, tuple[str, str]] = {}  # wanted by a container that started by itself: whose, and why not
        self._places = threading.BoundedSemaphore(_MOST)
        self._lock = threading.RLock()
        self._looking = threading.Lock()  # what was seen last is what counts
        self._closed = threading.Event()
        self._watched: SocketLike | None = None

    def open(self) -> None:
        """Take up what is published already, and watch for what becomes of it."""
        threading.Thread(target=self._watch, daemon=True, name="published ports").start()

    def close(self) -> None:
        """Let every port go."""
        self._closed.set()
        with self._lock:
            for number in list(self._held):
                self._let_go(number)
            watched = self._watched
        if watched is not None:
            with contextlib.suppress(OSError):
                watched.shutdown(socket.SHUT_RDWR)
        self._client.close()

    def shown(self) -> list[str]:
        """For people: what leads where."""
        with self._lock:
            held = [f"{LOOPBACK}:{number} to {each.whither}" for number, each in sorted(self._held.items())]
            return held + [f"{LOOPBACK}:{number}: {why}" for number, (_, why) in sorted(self._taken.items())]

    # -- what a gate tells

    def settle(self, image: str, published: Published) -> Published:
        try:
            if published.every:
                with contextlib.suppress(docker.errors.NotFound):  # the engine says so
                    config = self._client.inspect_image(image).get("Config") or {}
                    published = with_exposed(published, config.get("ExposedPorts"))
            if all(map(_chosen, published.bindings)):
                return published
            rows = self._client.containers()
        except _SILENCE as error:
            raise EngineUnreachable(f"The sandbox's engine does not answer: {error}", "Try again.") from error
        inside = {port.get("PublicPort") for row in rows for port in row.get("Ports") or []}
        inside |= {each.first for each in published.bindings if _chosen(each)}
        chosen = [each if _chosen(each) else _choose(each, inside) for each in published.bindings]
        return replace(published, bindings=tuple(chosen))

    def starting(self, container: str) -> Callable[[int | None], None]:
        try:
            found = self._client.inspect_container(container)
        except _SILENCE:  # the engine itself will say so
            return super().starting(container)
        container_id, wanted = str(found["Id"]), _outside(found)
        if not wanted:
            return super().starting(container)
        new: list[int] = []
        with self._lock:
            try:
                for number, inner in wanted.items():
                    if self._hold(number, _Held(container_id, _name(found), inner)):
                        new.append(number)
                    self._held[number].pending = True
            except BaseException:
                for number in new:
                    self._let_go(number)
                raise

        def ended(status: int | None) -> None:
            with self._lock:
                for each in self._held.values():
                    each.pending = each.pending and each.container != container_id
            self._look(container_id)

        return ended

    # -- what is held

    def _hold(self, number: int, wanted: _Held) -> bool:
        """Whether it was not held already. Raises RequestError."""
        had = self._held.get(number)
        if had is not None and had.container == wanted.container:
            return False
        if had is not None:
            raise _in_use(number, f"the nested container {had.name} has it")
        if self._closed.is_set():
            raise RequestError(
                "This endpoint has ended.", "sandbox_endpoint with ports=true opens another.", code="PORT_LIMIT"
            )
        if len(self._held) >= _MOST:
            raise RequestError(
                f"{_MOST} ports of this sandbox are published, the most at a time.",
                "Stop containers whose ports are not needed.",
                code="PORT_LIMIT",
            )
        try:
            wanted.forward = Forward(number, lambda: self._dial(wanted), self._places, self._used)
        except OSError as error:
            raise _in_use(number, os.strerror(error.errno or 0)) from error
        self._held[number] = wanted
        self._taken.pop(number, None)
        self._told("opened", number, wanted.whither)
        return True

    def _let_go(self, number: int) -> None:
        held = self._held.pop(number)
        if held.forward is not None:
            held.forward.close()
        self._told("closed", number, held.whither)

    def _dial(self, held: _Held) -> Hop:
        address = _address(
            self._client.inspect_container(held.container)
        )  # it may have another since it was started again
        if not address:
            raise NotFound(f"{held.name} has no address.", "Is it running?")
        return self._reach(address, held.inner)

    # -- what becomes of it

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                with self._client.telling(self._connected):
                    events = self._client.events(filters={"type": "container"}, decode=True)
                self._look_at_all()
                for event in events:
                    if self._closed.is_set():
                        return
                    if str(event.get("Action") or event.get("status")) in _TOLD:
                        self._look(str((event.get("Actor") or {}).get("ID") or event.get("id")))
            except _SILENCE as error:
                _log.debug("a sandbox's engine tells nothing: %s", error)
            except Exception:
                _log.exception("watching a sandbox's engine failed")
            self._closed.wait(_PAUSE)

    def _connected(self, sock: SocketLike) -> None:
        with self._lock:
            self._watched = sock
        if self._closed.is_set():
            sock.shutdown(socket.SHUT_RDWR)

    def _look_at_all(self) -> None:
        ids = {str(row["Id"]) for row in self._client.containers()}
        with self._lock:
            ids |= {each.container for each in self._held.values()}
        for container in ids:
            self._look(container)

    def _look(self, container: str) -> None:
        """Hold what a container publishes while it runs, and nothing else of it. Raises nothing."""
        with self._looking:
            try:
                found: dict[str, Any] | None = self._client.inspect_container(container)
            except docker.errors.NotFound:
                found = None
            except _SILENCE as error:
                _log.debug("%s can't be looked at: %s", container[:12], error)
                return
            self._seen(container, found if found and (found.get("State") or {}).get("Running") else None)

    def _seen(self, container: str, found: dict[str, Any] | None) -> None:
        """A container as it runs, None where it does not."""
        with self._lock:
            self._taken = {number: each for number, each in self._taken.items() if each[0] != container}
            if found is None:
                ended = [n for n, each in self._held.items() if each.container == container and not each.pending]
                for number in ended:
                    self._let_go(number)
                return
            for number, inner in _outside(found).items() if not self._closed.is_set() else ():
                try:
                    self._hold(number, _Held(container, _name(found), inner))
                except RequestError as error:
                    self._taken[number] = container, error.message


def _outside(found: dict[str, Any]) -> dict[int, int]:
    """The ports of this machine that a container is to have, each with its own."""
    wanted = {}
    for inner, rows in ((found.get("HostConfig") or {}).get("PortBindings") or {}).items():
        number, _, protocol = str(inner).partition("/")
        for row in rows or []:
            if row.get("HostIp") == LOOPBACK and protocol in ("", "tcp") and str(row.get("HostPort")).isdecimal():
                wanted[int(row["HostPort"])] = int(number)
    return wanted


def _address(found: dict[str, Any]) -> str:
    """Where a container is reached from within its sandbox, and only it; "" where it is in no network."""
    settings = found.get("NetworkSettings") or {}
    for network in (*(settings.get("Networks") or {}).values(), settings):
        for name in ("IPAddress", "GlobalIPv6Address"):
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(network.get(name) or "")
                address = getattr(address, "ipv4_mapped", None) or address
                if not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast):
                    return str(address)
    return ""


def _name(found: dict[str, Any]) -> str:
    return str(found.get("Name") or found["Id"][:12]).lstrip("/")[:60]


def _chosen(binding: Binding) -> bool:
    return binding.first == binding.last != 0


def _choose(binding: Binding, inside: set[Any]) -> Binding:
    """At a port that is free on this machine and not `inside`, which has it then. Raises RequestError."""
    numbers = range(binding.first, binding.last + 1) if binding.first else [0] * 50
    with _choosing:
        for number in numbers:
            try:
                with listening(number) as sock:
                    port = int(sock.getsockname()[1])
            except OSError:
                continue
            if port not in inside and (number or port not in _given):
                _given.append(port)
                inside.add(port)
                return replace(binding, first=port, last=port)
    which = f"None of the ports {binding.first} to {binding.last}" if binding.first else "No port"
    raise RequestError(f"{which} of this machine's loopback is free.", "Name other ports.", code="PORT_IN_USE")


def _in_use(number: int, why: str) -> RequestError:
    return RequestError(
        f"Port {number} of this machine's loopback ({LOOPBACK}) can't be had: {why}. The container was not started.",
        "Publish another one (-p OTHER:PORT), or none in particular (-p PORT), which chooses one that is free.",
        code="PORT_IN_USE",
    )
