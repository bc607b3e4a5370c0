"""gRPC through a gate: HTTP/2 is ended on both sides, and each call is taken whole, judged, and made anew; its answer goes back as it comes.

A call that is offered sends one message, so what it asks for is known before anything of it reaches the engine. An answer is sent on no faster
than the client takes it, for the engine's windows are opened by what has gone out.
"""

import contextlib
import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h2.errors
import h2.events
import h2.exceptions

from manyoyo_mcp.errors import CapExceeded, ManyoyoError, NotSupported, PolicyRefused, RequestError
from manyoyo_mcp.policy.http2 import Headers, Outgoing, Side, Wire

Ended = Callable[[int | None], None]
Judge = Callable[[str, bytes], tuple[bytes, Ended]]
"""What of a call's message goes on, and who is to be told of its status at the end; raises ManyoyoError where it may not."""

_PIECE = 1 << 16
_MOST_ASKED = 4 << 20
"""Bytes of messages that are being received on one connection."""
_LINGER = 1.0
"""Seconds for a client that goes to take what is left for it."""
INVALID, REFUSED, PRECONDITION, UNKNOWN, GONE = 3, 7, 9, 12, 14
"""gRPC's codes: INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION, UNIMPLEMENTED, UNAVAILABLE."""
_METADATA = {
    b"buildkit-controlapi-buildid": re.compile(rb"[A-Za-z0-9]{1,64}"),
    b"grpc-timeout": re.compile(rb"[0-9]{1,8}[HMSmun]"),
    b"user-agent": re.compile(rb"[\x20-\x7e]{1,200}"),
}
"""Of a call's metadata what goes on."""


def code_of(error: ManyoyoError) -> int:
    if isinstance(error, PolicyRefused | CapExceeded):
        return REFUSED
    if isinstance(error, NotSupported):
        return UNKNOWN
    return INVALID if isinstance(error, RequestError) else PRECONDITION


def _escaped(message: str) -> bytes:
    """As gRPC writes a message in a header."""
    return b"".join(
        bytes([each]) if 0x20 <= each <= 0x7E and each != 0x25 else b"%%%02X" % each for each in message[:4000].encode()
    )


@dataclass(slots=True)
class _Call:
    """`theirs`, `ours`: its stream of the client's connection, and of the engine's once it goes there."""

    theirs: int
    path: str = ""
    headers: Headers = field(default_factory=list)
    asked: bytearray = field(default_factory=bytearray)
    ours: int = 0
    ended: Ended | None = None
    status: int | None = None


class Calls:
    """The calls of one client's connection, which is HTTP/2 from here on, and the engine's, None where that has none of them; `instead`
    then says why to each call. `early` came of either already."""

    def __init__(
        self, client: Wire, engine: Wire | None, judge: Judge, used: Callable[[], None], instead: str = "",
        early: tuple[bytes, bytes] = (b"", b""),
    ) -> None:  # fmt: skip
        self._judge, self._used, self._instead, self._early = judge, used, instead, early
        self._lock = threading.RLock()
        self._client = Side(client, client_side=False)
        self._engine: Side | None = Side(engine, client_side=True) if engine is not None else None
        self._calls: dict[int, _Call] = {}
        self._answered: dict[int, _Call] = {}
        self._asked = 0

    def serve(self) -> None:
        """To the end of either. Raises nothing."""
        sending = threading.Thread(target=self._send, args=(self._client,), daemon=True, name="gate answers")
        threads = [sending]
        if self._engine is not None:
            threads += [
                threading.Thread(target=self._send, args=(self._engine,), daemon=True, name="gate calls"),
                threading.Thread(target=self._read_engine, args=(self._engine,), daemon=True, name="gate engine"),
            ]
        for thread in threads:
            thread.start()
        try:
            self._read(self._client, self._early[0], self._from_client)
        finally:
            self._client.queue.put(None)
            sending.join(_LINGER)
            self._hang_up()
            if self._engine is not None:
                self._engine.queue.put(None)
            for thread in threads:
                thread.join()
            for call in list(self._calls.values()):
                self._forget(call)

    def _sides(self) -> list[Side]:
        return [self._client] if self._engine is None else [self._client, self._engine]

    def _read(self, side: Side, early: bytes, take: Callable[[Any], None]) -> None:
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            self._pump()
            data = early
            while data or (data := side.sock.recv(_PIECE)):
                self._used()
                with self._lock:
                    try:
                        for event in side.h2.receive_data(data):
                            take(event)
                    finally:
                        self._pump()
                data = b""

    def _read_engine(self, engine: Side) -> None:
        try:
            self._read(engine, self._early[1], self._from_engine)
        finally:
            with contextlib.suppress(OSError), self._lock:
                for call in list(self._calls.values()):
                    self._refuse(call, GONE, "The sandbox's engine has hung up.")
                self._pump()
            self._client.queue.put(None)  # its client hears that first

    def _send(self, side: Side) -> None:
        def took(count: int) -> None:
            with self._lock:
                side.waiting -= count
                self._pump()

        with contextlib.suppress(OSError):
            side.send(took)
        self._hang_up()

    def _pump(self) -> None:
        with self._lock:
            for side in self._sides():  # the client's first: what it took opens the engine's windows
                side.flush()
                side.pump()

    def _hang_up(self) -> None:
        for side in self._sides():
            with contextlib.suppress(OSError):
                side.sock.shutdown(socket.SHUT_RDWR)

    # What the client says

    def _from_client(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event)
        elif isinstance(event, h2.events.DataReceived):
            self._client.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            call = self._calls.get(event.stream_id)
            if call is not None and not call.ours:
                call.asked += event.data
                self._asked += len(event.data)
                if self._asked > _MOST_ASKED:
                    self._refuse(
                        call, INVALID, f"Messages of more than {_MOST_ASKED >> 20} MiB are not taken. Send less."
                    )
        elif isinstance(event, h2.events.StreamEnded):
            call = self._calls.get(event.stream_id)
            if call is not None and not call.ours:
                self._ask(call)
        elif isinstance(event, h2.events.StreamReset):
            self._client.drop(event.stream_id)
            call = self._calls.get(event.stream_id)
            if call is not None:
                self._forget(call)
                if self._engine is not None and call.ours:
                    self._engine.reset(call.ours, h2.errors.ErrorCodes.CANCEL)
        elif isinstance(event, h2.events.ConnectionTerminated):
            raise OSError("the client says that it goes")

    def _begin(self, event: Any) -> None:
        call = self._calls[event.stream_id] = _Call(event.stream_id)
        given: dict[bytes, bytes] = dict(event.headers)
        if given.get(b":method") != b"POST" or not given.get(b"content-type", b"").startswith(b"application/grpc"):
            return self._refuse(call, INVALID, "That is no gRPC. Speak it, or Docker's API without POST /grpc.")
        if given.get(b"grpc-encoding", b"identity") != b"identity":
            return self._refuse(call, UNKNOWN, "Compressed messages are not read. Send them as they are.")
        call.path = given.get(b":path", b"").decode("ascii", "replace")
        call.headers = [
            (name, given[name]) for name, known in _METADATA.items() if name in given and known.fullmatch(given[name])
        ]
        return None

    def _ask(self, call: _Call) -> None:
        """The whole call has come."""
        raw = bytes(call.asked)
        self._asked -= len(raw)
        call.asked.clear()
        if len(raw) < 5 or raw[0] or int.from_bytes(raw[1:5], "big") != len(raw) - 5:
            return self._refuse(call, INVALID, "The call has no message, or more than one. Send one, uncompressed.")
        try:
            message, call.ended = self._judge(call.path, raw[5:])
            if self._engine is None:
                raise NotSupported(self._instead, "")
        except ManyoyoError as error:
            return self._refuse(call, code_of(error), f"{error.message} {error.hint}".strip())
        headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", call.path.encode()), (b":authority", b"docker"),
            (b"content-type", b"application/grpc"), (b"te", b"trailers"), *call.headers,
        ]  # fmt: skip
        engine = self._engine
        try:
            stream = engine.h2.get_next_available_stream_id()
            engine.h2.send_headers(stream, headers)
        except h2.exceptions.ProtocolError as error:  # it has said that it goes, or takes no more calls at a time
            return self._refuse(call, GONE, f"The sandbox's engine takes no more calls: {error}. Try again.")
        call.ours = stream
        self._answered[stream] = call
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        engine.outgoing[stream] = Outgoing(stream, deque([framed]), ends=True)
        return None

    def _refuse(self, call: _Call, code: int, message: str) -> None:
        """Answer it here, where it has no answer yet; where it has the beginning of one, that is its end."""
        begun = self._client.drop(call.theirs)
        call.status = code
        self._forget(call)
        ending = [(b"grpc-status", str(code).encode()), (b"grpc-message", _escaped(message))]
        if not begun:
            ending = [(b":status", b"200"), (b"content-type", b"application/grpc"), *ending]
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._client.h2.send_headers(call.theirs, ending, end_stream=True)

    def _forget(self, call: _Call) -> None:
        self._calls.pop(call.theirs, None)
        self._answered.pop(call.ours, None)
        self._asked -= len(call.asked)
        call.asked.clear()
        ended, call.ended = call.ended, None
        if ended is not None:
            ended(call.status)

    # What the engine answers

    def _from_engine(self, event: Any) -> None:
        assert self._engine is not None
        call = self._answered.get(getattr(event, "stream_id", 0))
        if isinstance(event, h2.events.ConnectionTerminated):
            raise OSError("the engine says that it goes")
        if isinstance(event, h2.events.DataReceived) and call is None:
            self._engine.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if call is None:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            self._note(call, event.headers)
        if isinstance(event, h2.events.ResponseReceived):
            self._begin_answer(call, event)
        elif isinstance(event, h2.events.DataReceived):
            outgoing = self._client.outgoing.get(call.theirs)
            if outgoing is not None and event.data:
                outgoing.pieces.append(event.data)
            taken = len(event.data) if outgoing is not None else 0  # the rest, padding, is nobody's
            self._engine.h2.acknowledge_received_data(event.flow_controlled_length - taken, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            if (outgoing := self._client.outgoing.get(call.theirs)) is not None:
                outgoing.trailers = list(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            if (outgoing := self._client.outgoing.get(call.theirs)) is not None:
                outgoing.ends = True
            self._forget(call)
        elif isinstance(event, h2.events.StreamReset):
            self._forget(call)
            self._client.reset(call.theirs, event.error_code)

    def _begin_answer(self, call: _Call, event: Any) -> None:
        engine = self._engine
        assert engine is not None
        headers = [(name, value) for name, value in event.headers if name not in (b"connection", b"transfer-encoding")]
        ends = event.stream_ended is not None
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._client.h2.send_headers(call.theirs, headers, end_stream=ends)
            if not ends:
                stream = call.ours

                def sent(count: int) -> None:
                    with contextlib.suppress(h2.exceptions.ProtocolError):
                        engine.h2.acknowledge_received_data(count, stream)

                self._client.outgoing[call.theirs] = Outgoing(call.theirs, sent=sent)

    def _note(self, call: _Call, headers: Headers) -> None:
        for name, value in headers:
            if name == b"grpc-status" and value.isdigit():
                call.status = int(value[:3])
