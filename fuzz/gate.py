"""Generated requests to a gate, and conversations with its BuildKit: each must be answered, and nothing may come through that no
container may have."""

import re
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from anyio.from_thread import BlockingPortal

from fuzz import talking
from fuzz.found import PATIENCE, Found, generate, still
from fuzz.requests import SERVICES, requests
from fuzz.talks import Talk, talks
from tests.escape.roads import IMAGE
from tests.escape.world import World, context

_WAITS = re.compile(rb"POST [^ ]*/libpod/containers/[^/ ]+/wait[? ]")
"""Is answered at the container's end, to the first byte."""
_SILENCE = 2.0


def play(found: Found, portal: BlockingPortal, number: int, first_seed: int, there: World) -> None:
    """Requests of Docker's API and of podman's own."""
    path = there.box.manager.endpoints.open(there.box.sandbox)

    def one(example: tuple[bytes, bool]) -> None:
        data, proper = example
        waits = _WAITS.match(data)
        answer = _ask(path, data, proper, _SILENCE if waits else PATIENCE)
        status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.") else "none"
        found.outcomes[status] += 1
        if proper and status == "none" and not waits:
            found.fail(f"no answer: {data[:1500]!r}")
        if b"Traceback" in answer or b"engine does not answer" in answer:
            found.fail(f"{answer[:500]!r} to {data[:1500]!r}")

    around = _Around(found, portal, there)
    generate(found, number, first_seed, requests(), one, around.look)


def play_buildkit(found: Found, portal: BlockingPortal, number: int, first_seed: int, there: World) -> None:
    """Calls of BuildKit's, over gRPC, with the sessions that they name."""
    path = there.box.manager.endpoints.open(there.box.sandbox)

    def one(talk: Talk) -> None:
        heard = talking.hold(path, talk)
        found.outcomes.update(heard.outcomes)
        for each in heard.wrong:
            found.fail(f"{each} in {talk!r:.3000}")

    around = _Around(found, portal, there)
    generate(found, number, first_seed, talks(), one, around.look)


class _Around:
    """What is looked at between."""

    def __init__(self, found: Found, portal: BlockingPortal, there: World) -> None:
        self._found, self._portal, self._there = found, portal, there
        portal.call(self._tidy)
        self._threads, self._files = _threads(), _files()

    def look(self) -> None:
        there, portal = self._there, self._portal
        for each in portal.call(self._let_through):
            self._found.fail(each)
        if changed := still(lambda: portal.call(there.changed)):
            self._found.fail(f"changed: {changed}")
        portal.call(self._tidy)
        end = time.monotonic() + PATIENCE
        while (_threads() > self._threads or _files() > self._files + 20) and time.monotonic() < end:
            time.sleep(0.2)
        if (threads := _threads()) > self._threads:
            self._found.fail(f"{threads} threads of gates are left, of {self._threads}")
        if (files := _files()) > self._files + 20:  # of pools of connections
            self._found.fail(f"{files} files are open, {self._files} were")

    async def _tidy(self) -> None:
        for container in (await self._there.control.request("GET", "/containers/json", {"all": "1"})).json():
            await self._there.control.drop(container["Id"])
        for path in ("/containers/prune", "/networks/prune", "/volumes/prune", "/images/prune"):
            await self._there.control.request("POST", path)
        for name in SERVICES:
            made = await self._there.roads["gate"].request(
                "POST",
                "/containers/create",
                {"name": name},
                {"Image": IMAGE, "Cmd": ["sleep", "1000"], "StopSignal": "KILL"},
            )
            if not made.ok:
                built = await self._there.box.build(files=context(), tags=[IMAGE])  # an image can be removed, too
                assert built.image_id, built
                continue
            await self._there.roads["gate"].request("POST", f"/containers/{name}/start")

    async def _let_through(self) -> list[str]:
        """What no container may have, whoever asked for it."""
        wrong = []
        for row in (await self._there.control.request("GET", "/containers/json", {"all": "1"})).json():
            looked = (await self._there.control.request("GET", f"/containers/{row['Id']}/json")).json()
            host = looked.get("HostConfig") or {}
            binds = [
                each
                for each in host.get("Binds") or []
                if each.startswith("/") and not each.startswith("/run/manyoyo/gate.sock:")
            ]
            largest = self._there.box.sandbox.limits.largest
            odd = {
                "Privileged": host.get("Privileged"),
                "Binds": binds,
                "Devices": host.get("Devices"),
                "PidMode": host.get("PidMode") == "host",
                "NetworkMode": str(host.get("NetworkMode")).startswith(("host", "ns:")),
                "Memory": not 0 < host.get("Memory", 0) <= largest.memory,
                "PidsLimit": not 0 < (host.get("PidsLimit") or 0) <= largest.pids,
                "SYS_ADMIN": any("SYS_ADMIN" in each or "ALL" in each for each in host.get("CapAdd") or []),
            }
            wrong += [f"{row['Names']} has {name}: {value}" for name, value in odd.items() if value]
        return wrong


def _threads() -> int:
    return sum(each.name.startswith("gate ") for each in threading.enumerate())


def _files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _ask(path: Path, data: bytes, proper: bool, patience: float) -> bytes:
    """What a gate answers. Of a stream the first half second."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
        sock.settimeout(patience)
        sock.connect(str(path))
        with suppress(OSError):
            sock.sendall(data)
        if not proper:
            sock.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        while (piece := sock.recv(1 << 16)) and time.monotonic() - begun < patience:
            answer = (answer + piece)[: 1 << 16]
            sock.settimeout(0.5)
    return answer
