"""uvicorn's HTTP, with an end to waiting: for a request's headers, and for a client that does not take its answer."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 10.0
"""Seconds that a client may take for the headers of a request, from its connection or their first byte on."""
ANSWER_S = 60.0
"""Seconds in which a client must have taken something of an answer that waits for it: a piece (`door.PIECE`), or the rest. What the kernel
keeps of it in between, some 1 MiB on loopback, counts when it has gone."""
_LOOK_S = 5.0
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Protocol(H11Protocol):
    """One connection. It ends where headers do not come; who has begun to send them is told why. It ends too where an answer isn't taken: what
    is not yet sent of it is this server's memory, and closing waits for that without end."""

    _waits: asyncio.TimerHandle | None = None
    _looks: asyncio.TimerHandle | None = None
    _taken = 0.0
    _begun = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waits = self.loop.call_later(HEADERS_S, self._too_slow)
        self._looks = self.loop.call_later(_LOOK_S, self._look)
        self._taken = self.loop.time()

    def resume_writing(self) -> None:
        self._taken = self.loop.time()
        super().resume_writing()

    def _look(self) -> None:
        now = self.loop.time()
        if not self.transport.get_write_buffer_size():
            self._taken = now
        elif now - self._taken > ANSWER_S:
            self.transport.abort()
            return
        self._looks = self.loop.call_later(_LOOK_S, self._look)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._begun = self.conn.their_state is h11.IDLE
        if not self._begun:
            self._stop_waiting()
        elif self._waits is None:
            self._waits = self.loop.call_later(HEADERS_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._looks is not None:
            self._looks.cancel()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _too_slow(self) -> None:
        self._waits = None
        if self.conn.their_state is not h11.IDLE:
            return
        if self._begun:
            self.transport.write(_TOO_SLOW)
            self.transport.close()
        else:
            self.transport.abort()
