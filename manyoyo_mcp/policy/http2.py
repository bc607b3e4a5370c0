"""One of the two HTTP/2 connections of a gate that carries gRPC: what waits to go out on it, and who sends that."""

import contextlib
import queue
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.exceptions
import h2.settings

from manyoyo_mcp.dialled import SocketLike

Headers = list[tuple[bytes, bytes]]
Wire = socket.socket | SocketLike

_MOST_CALLS = 64
"""Calls at a time, of one connection."""
_MOST_WAITING = 1 << 20
"""Bytes for one side that it has not taken yet, from which on it gets no more of an answer …"""
_TOO_MANY = 4 << 20
"""… and from which on it is hung up on: it asks without reading."""


@dataclass(slots=True)
class Outgoing:
    """What waits to go out on a stream: pieces, then the end with its trailers. `sent` is told of bytes that went."""

    stream: int
    pieces: deque[bytes] = field(default_factory=deque)
    ends: bool = False
    trailers: Headers = field(default_factory=list)
    sent: Callable[[int], None] = lambda count: None


class Side:
    """One of the two connections."""

    def __init__(self, sock: Wire, client_side: bool) -> None:
        self.sock = sock
        # An engine's errors may end in a space ("no such job "): no reason to end the connection. What goes on to the client is put right.
        strict = not client_side
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client_side, header_encoding=None, validate_inbound_headers=strict)
        )
        self.h2.local_settings = h2.settings.Settings(
            client=client_side,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: _MOST_CALLS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 16,
            },
        )
        self.h2.initiate_connection()
        self.queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.waiting = 0
        self.outgoing: dict[int, Outgoing] = {}

    def pump(self) -> None:
        """Hand what is to be sent to who sends it. Raises OSError where too much waits already."""
        if data := self.h2.data_to_send():
            self.waiting += len(data)
            if self.waiting > _TOO_MANY:
                raise OSError("what is sent is not read")
            self.queue.put(data)

    def flush(self) -> None:
        """Send what the windows take of what waits."""
        for outgoing in list(self.outgoing.values()):
            with contextlib.suppress(h2.exceptions.ProtocolError):
                if not self._flush(outgoing):
                    continue
            self.drop(outgoing.stream)

    def _flush(self, outgoing: Outgoing) -> bool:
        """Whether the stream has ended by that. Raises ProtocolError where it had before."""
        while outgoing.pieces and self.waiting < _MOST_WAITING:
            window = min(self.h2.local_flow_control_window(outgoing.stream), self.h2.max_outbound_frame_size)
            if window <= 0:
                return False
            piece = outgoing.pieces.popleft()
            if len(piece) > window:
                outgoing.pieces.appendleft(piece[window:])
                piece = piece[:window]
            self.h2.send_data(outgoing.stream, piece)
            outgoing.sent(len(piece))
            self.pump()
        if outgoing.pieces or not outgoing.ends:
            return False
        if outgoing.trailers:
            self.h2.send_headers(outgoing.stream, outgoing.trailers, end_stream=True)
        else:
            self.h2.send_data(outgoing.stream, b"", end_stream=True)
        return True

    def drop(self, stream: int) -> bool:
        """Send no more on this stream; whether something was to be sent. What is left of it is counted as sent."""
        outgoing = self.outgoing.pop(stream, None)
        if outgoing is not None and outgoing.pieces:
            outgoing.sent(sum(map(len, outgoing.pieces)))
        return outgoing is not None

    def reset(self, stream: int, code: int) -> None:
        self.drop(stream)
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.h2.reset_stream(stream, code)

    def send(self, took: Callable[[int], None]) -> None:
        """What is handed over, to its end; `took` is told of bytes that the other side has. Raises OSError."""
        while (data := self.queue.get()) is not None:
            self.sock.sendall(data)
            took(len(data))
