"""One connection of a gate: a client's request read, judged by `rules` as the tools' own are, and written anew; what the engine answers goes back as it comes.

It carries one request, so that nothing can hide behind the end of another; clients make a new one for the next. But BuildKit's: `POST /grpc` carries
many calls, each judged (`calling`, `grpc`). What a client sends after its request reaches an engine only once that has said that the connection is a stream now.
"""

import contextlib
import io
import json
import os
import secrets
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any
from urllib.parse import urlencode

import h11

from manyoyo_mcp.dialled import Dial, SocketLike
from manyoyo_mcp.errors import (
    BudgetExceeded,
    CapExceeded,
    EngineFailed,
    InvalidArgument,
    ManyoyoError,
    PolicyRefused,
    RequestError,
)
from manyoyo_mcp.policy import calling, contexts, wire
from manyoyo_mcp.policy.base import Limits, Request
from manyoyo_mcp.policy.bounded import Boundary, Missing
from manyoyo_mcp.policy.grpc import Calls
from manyoyo_mcp.policy.ports import Publisher, settled, started_by
from manyoyo_mcp.policy.rules import decide, endpoint
from manyoyo_mcp.policy.table import Endpoint
from manyoyo_mcp.policy.witness import Witness, changes

_MAX_HEAD = 256 << 10
"""Bytes of a request's head, credentials of all registries among it."""
_MAX_JSON = 4 << 20
_PIECE = 1 << 16
_HEAD_PATIENCE = 30.0
"""Seconds for a request's head and JSON to come."""
_CONTEXT_PATIENCE = 1800.0
"""The same for a build's context."""
_LINGER = 5.0
"""Seconds for a refused client to read why, before it is hung up on."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Where a gate leads: to an engine, within `limits`, which are read at each request. `context_max` bounds a build context, in
    bytes. `boundary`: what of the engine is the sandbox's, where it is the host's own. `used` is told of each use; `hung_up` of the build (by its cgroup) whose client went before its end. `publisher`: of what is published."""

    dial: Dial
    limits: Callable[[], Limits]
    context_max: int
    used: Callable[[], None]
    hung_up: Callable[[str], None]
    witness: Witness = field(default_factory=Witness)
    publisher: Callable[[], Publisher] = Publisher
    boundary: Boundary | None = None


class Connection:
    """One client's, with the engine's once there is one."""

    def __init__(self, client: socket.socket, ways: Ways, contexts: threading.Semaphore) -> None:
        self._client = client
        self._contexts = contexts
        self._ways = ways
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._engine: SocketLike | None = None
        self._answered = threading.Event()
        self._streams = threading.Event()
        self._began = False
        self._asked = ("", "")
        self._tell_end: list[Callable[[int | None], None]] = []
        self._status: int | None = None
        self._deadline: float | None = None
        self._build = ""
        self._context: IO[bytes] | None = None
        self._lock = threading.Lock()

    def serve(self) -> None:
        try:
            self._deadline = time.monotonic() + _HEAD_PATIENCE
            head = self._event()
            if isinstance(head, h11.Request):
                self._ways.used()
                self._forward(head)
        except h11.RemoteProtocolError as error:
            self._tell_refusal("INVALID_ARGUMENT", f"no HTTP request: {error}")
            self.refuse(400, f"That is no HTTP request: {error}")
        except Missing as missing:
            self.refuse(404, str(missing))
        except (PolicyRefused, CapExceeded, BudgetExceeded) as error:
            self._tell_refusal(error.instance_code, error.message)
            self.refuse(403, f"{error.message} {error.hint}")
        except ManyoyoError as error:
            self._tell_refusal(error.instance_code, error.message)
            self.refuse(400 if isinstance(error, RequestError) else 503, f"{error.message} {error.hint}")
        except TimeoutError:
            self.refuse(408, "The request took too long to come.")
        except OSError as error:
            self.refuse(503, f"The sandbox's engine does not answer: {error.strerror or error}")
        finally:
            for tell in reversed(self._tell_end):
                tell(self._status)

    def _tell_refusal(self, code: str, reason: str) -> None:
        if not self._began:
            self._ways.witness.refused(*self._asked, code, reason)

    def refuse(self, status: int, message: str) -> None:
        """Say why not, unless it is being answered, and hang up once that is read; what the client still sends is dropped, or it would
        not look."""
        with contextlib.suppress(OSError):
            self._client.settimeout(_LINGER)
            if not self._began:
                self._client.sendall(wire.refusal(status, message))
            self._client.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _LINGER
            while time.monotonic() < end and self._client.recv(_PIECE):
                pass
        self.end()

    def turn_away(self, message: str) -> None:
        """Say why not, where that can be said at once, and hang up."""
        with contextlib.suppress(OSError):
            self._client.setblocking(False)
            self._client.send(wire.refusal(503, message))
        self.end()

    def end(self) -> None:
        """Whoever reads or writes stops; twice is once."""
        self._answered.set()
        self._streams.set()  # whoever waits for that sees that it is over
        for each in (self._client, self._engine):
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._client.close()
        if self._engine is not None:
            with contextlib.suppress(OSError):
                self._engine.close()

    def _event(self) -> Any:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._client.settimeout(left)
            if self._parser.they_are_waiting_for_100_continue:
                self._client.sendall(self._parser.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._parser.receive_data(self._client.recv(_PIECE))
        return event

    def _data(self) -> Iterator[bytes]:
        """The request's body, to its end."""
        while not isinstance(event := self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise h11.RemoteProtocolError("the connection ended within a request")
            yield bytes(event.data)

    def _forward(self, head: h11.Request) -> None:
        self._asked = head.method.decode(errors="replace"), ""
        prefix, path, query = wire.target(head)
        method, length, known = head.method.decode(), wire.length(head), b""
        self._asked = method, path
        asked = endpoint(method, path)
        if asked.takes == "message":
            raise PolicyRefused("a call of gRPC goes over POST /grpc.", "Use a client of BuildKit.")
        builds = path in ("/build", "/libpod/build")
        if builds:
            if query.get("cgroupparent"):
                raise PolicyRefused("a build may not choose its cgroup.", "Leave cgroup-parent out.")
            self._build = query["cgroupparent"] = f"/manyoyo-builds/{secrets.token_hex(8)}"
        body = self._json(asked)
        limits = self._ways.limits()
        request = Request(method, path, query, body)
        allowed, way = decide(request, limits), path
        if (boundary := self._ways.boundary) is not None:
            way = boundary.path(method, path)
            allowed = boundary.decided(request, allowed)
            if (known_answer := boundary.answer(method, path, allowed.query)) is not None:
                self._began = True
                self._client.sendall(wire.answer(known_answer))
                return
        if path == "/grpc":
            self._serve_calls(head, prefix)
            return
        if allowed.body is not None:
            allowed = replace(allowed, body=settled(path, allowed.body, limits, self._ways.publisher()))
        with contextlib.ExitStack() as until_answered:
            until_answered.callback(self._drop_context)
            if boundary is not None:
                until_answered.enter_context(boundary.room(method, way))
            if builds or (boundary is not None and asked.takes == "archive"):
                length = self._receive_context(str(allowed.query["dockerfile"]) if builds else None)
            elif asked.takes != "archive":
                known = json.dumps(allowed.body).encode() if allowed.body is not None else b""
                length = len(known)
            if changes(method, path):
                narrowed = (allowed.query, allowed.body) != (query, body)
                if (container := started_by(method, path)) is not None:
                    self._tell_end.append(self._ways.publisher().starting(container))
                self._tell_end.append(self._ways.witness.asked(method, path, query, narrowed))
            self._engine = self._ways.dial()
            out = h11.Connection(h11.CLIENT)
            target = f"{prefix}{way}" + (f"?{urlencode(allowed.query, doseq=True)}" if allowed.query else "")
            events: list[Any] = [h11.Request(method=method, target=target, headers=wire.headers(head, asked, length))]
            if asked.takes != "archive":
                events += [h11.Data(data=known), h11.EndOfMessage()]
            # In one go: who has answered a head may have hung up already.
            self._engine.sendall(b"".join(wire.sent(out.send(event)) for event in events))
            self._deadline = None
            self._client.settimeout(None)
            rest = threading.Thread(target=self._send_rest, args=(asked, out), daemon=True, name="gate sending")
            rest.start()
            self._answer(asked)
            self.end()
            rest.join()

    def _serve_calls(self, head: h11.Request, prefix: str) -> None:
        """The connection is gRPC from here on, also where the engine has none of it: a client shows its user no reason but a call's."""
        if not wire.upgrades(head, b"h2c"):
            raise InvalidArgument("POST /grpc asks for no upgrade to h2c.", "Send Upgrade: h2c.")
        self._engine, early = calling.dial(self._ways.dial, prefix)
        self._began, self._deadline = True, None
        self._client.settimeout(None)
        self._client.sendall(calling.UPGRADED)
        judge = calling.judge(self._ways.limits, self._ways.witness)
        first = bytes(self._parser.trailing_data[0])
        Calls(self._client, self._engine, judge, self._ways.used, calling.NO_BUILDKIT, (first, early)).serve()

    def _json(self, asked: Endpoint) -> dict[str, Any] | None:
        """The body of a request that takes none but JSON, to its end."""
        if asked.takes == "archive":
            return None
        raw = bytearray()
        for piece in self._data():
            raw += piece
            if len(raw) > _MAX_JSON:
                raise InvalidArgument(f"The body is larger than {_MAX_JSON >> 20} MiB.", "Send less.")
        try:
            body = json.loads(raw) if raw.strip() else None
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"The body is no JSON: {str(error)[:200]}.", "Correct it.") from error
        if not isinstance(body, dict | None):
            raise InvalidArgument("The body is no JSON object.", "Correct it.")
        return (body or None) if asked.takes == "nothing" else body

    def _receive_context(self, dockerfile: str | None) -> int:
        """A build's context, or with no Dockerfile what is to be unpacked, judged and written anew before anything of it is sent; its size in bytes."""
        self._deadline = time.monotonic() + _CONTEXT_PATIENCE
        if not self._contexts.acquire(timeout=_CONTEXT_PATIENCE):
            raise EngineFailed("Others are sending as much through this gate.", "Try again.")
        try:
            self._context = spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed once it is sent
        except BaseException:
            self._contexts.release()
            raise
        given = io.BufferedReader(wire.Body(self._data()), _PIECE)
        contexts.copy(given, dockerfile, self._ways.context_max, spool)
        size = spool.seek(0, os.SEEK_END)
        spool.seek(0)
        return size

    def _drop_context(self) -> None:
        with self._lock:
            spool, self._context = self._context, None
        if spool is not None:
            spool.close()
            self._contexts.release()

    def _pieces(self) -> Iterator[bytes]:
        """The archive that goes to the engine."""
        spool = self._context
        if spool is None:
            yield from self._data()
            return
        while piece := spool.read(_PIECE):
            yield piece
        self._drop_context()

    def _send_rest(self, asked: Endpoint, out: h11.Connection) -> None:
        """What the client sends after the head, for as long as the engine answers."""
        with contextlib.suppress(OSError, ValueError, h11.ProtocolError):  # the client has gone
            if asked.takes == "archive":
                for piece in self._pieces():
                    if not self._to_engine(wire.sent(out.send(h11.Data(data=piece)))):
                        return
                if not self._to_engine(wire.sent(out.send(h11.EndOfMessage()))):
                    return
            if asked.hijacks and self._becomes_a_stream():
                piece, left = self._parser.trailing_data[0], self._ways.context_max
                while piece or (piece := self._client.recv(_PIECE)):
                    left -= len(piece)
                    if asked.upgrade == "h2c" and left < 0:  # a session, over which a build's context comes
                        self._tell_too_much()
                        return
                    if not self._to_engine(piece):
                        return
                    piece = b""
                assert self._engine is not None
                self._engine.shutdown(socket.SHUT_WR)
                self._wait_for_hang_up(self._answered)
            elif not asked.hijacks:
                while self._client.recv(_PIECE):
                    pass
        if not self._answered.is_set():
            self.end()
            if self._build:
                self._ways.hung_up(self._build)

    def _tell_too_much(self) -> None:
        most = self._ways.context_max >> 20
        self._ways.witness.refused(*self._asked, "CONTEXT_REFUSED", f"A session has sent more than {most} MiB.")
        self.end()

    def _to_engine(self, data: bytes) -> bool:
        """Whether it still listens. Where it does not, its answer says why."""
        assert self._engine is not None
        self._ways.used()
        try:
            self._engine.sendall(data)
        except OSError:
            return False
        return True

    def _becomes_a_stream(self) -> bool:
        """Whether the engine says so: until then it would take what comes for another request, which nobody has judged."""
        return self._wait_for_hang_up(self._streams) and not self._answered.is_set()

    def _wait_for_hang_up(self, event: threading.Event) -> bool:
        """Until the client does not listen any more, or `event`; whether it was that."""
        poll = select.poll()
        poll.register(self._client, 0)
        while not event.wait(0.2):
            if poll.poll(0):
                return False
        return True

    def _answer(self, asked: Endpoint) -> None:
        """Pass the engine's answer on as it comes. Raises nothing: whoever is gone is gone."""
        engine = self._engine
        assert engine is not None
        head: bytes | None = b"" if asked.hijacks else None
        with contextlib.suppress(OSError, ManyoyoError):
            while piece := engine.recv(_PIECE):
                self._ways.used()
                if not self._began and (found := wire.STATUS.match(piece)):
                    self._status = int(found[1])
                self._began = True
                self._client.sendall(piece)
                if head is not None and b"\r\n\r\n" in (head := head + piece):
                    if wire.STREAM.match(head[: head.index(b"\r\n\r\n") + 2]):
                        self._streams.set()
                    head = None
