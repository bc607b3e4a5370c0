"""Reading what a container writes: attached streams, whose frames carry stdout and stderr."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from manyoyo_mcp.errors import EngineUnreachable

_HUNG_UP = re.compile(rb"Error: (?:read|write) unixpacket @->/proc/self/fd/[0-9]+/attach: [^\n]{,80}\n")
"""What podman writes into the output itself where the command ended without reading all of its stdin."""

_END = 3
"""A frame that is no output. Docker's engines keep the number for errors of their own, and send none."""


def _cut(why: str) -> EngineUnreachable:
    return EngineUnreachable(
        f"The connection to what runs broke, and with it its output: {why}",
        "Run it again. If that goes on, look at the connection to the host's engine.",
    )


class Attached:
    """A hijacked connection to a container's or exec's stdin, stdout and stderr (no TTY: framed, 8-byte headers). `stdin` is
    another one that its stdin goes over; after `silence` seconds without a byte it counts as broken."""

    def __init__(
        self, raw: Any, *, told_end: bool = False, stdin: "Attached | None" = None, silence: float | None = None
    ) -> None:
        # docker-py hands out the raw reader and keeps the response on it. The response's own buffer is what must be
        # read: output may have arrived together with the answer's headers and lie there already.
        self._response = raw._response
        self._sock = getattr(raw, "_sock", raw)  # over TLS docker-py hands out the socket itself
        self._reader = self._response.raw._fp.fp
        self._sock.settimeout(silence)
        self._pumping = False
        self._told_end = told_end
        self._stdin = stdin
        self.exit_code: int | None = None
        """Once it is over, where the stream ends with it (`told_end`): that of an exec without the engine. None where that never
        began."""

    def pump(self, sink: Callable[[bytes], object]) -> None:
        """Hand on all output until the stream ends. Where the command ended without reading all of its stdin the end is
        a reset, after the output. Raises EngineUnreachable where the stream was cut."""
        self._pumping = True
        try:
            while header := self._read(8, whole=True):
                kind, left = struct.unpack(">BxxxL", header)
                if kind == _END and self._told_end:
                    code = self._read(left, whole=True) if left else b""
                    if len(code) < left:
                        break
                    self.exit_code = int(code) if code else None
                    return
                while left > 0:
                    piece = self._read(min(left, 1 << 18))
                    if not piece:
                        raise _cut("it ended early")
                    if not _HUNG_UP.fullmatch(piece):
                        sink(piece)
                    left -= len(piece)
            if self._told_end:
                raise _cut("it ended early")
        finally:
            self._response.close()

    def patience(self, silence: float) -> None:
        """From now on it counts as broken after so many seconds without a byte."""
        self._sock.settimeout(silence)

    def send(self, data: bytes) -> None:
        """Write to stdin, which stays open. Raises EngineUnreachable where nobody reads it."""
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise _cut(str(error)) from error

    def receive(self) -> bytes:
        """The next frame's output, empty at the end. Raises EngineUnreachable where the stream was cut."""
        header = self._read(8, whole=True)
        return self._read(struct.unpack(">BxxxL", header)[1], whole=True) if header else b""

    def _read(self, count: int, *, whole: bool = False) -> bytes:
        try:
            data: bytes = self._reader.read(count) if whole else self._reader.read1(count)
        except ConnectionResetError:
            return b""
        except OSError as error:
            raise _cut(str(error)) from error
        if whole and 0 < len(data) < count:
            raise _cut("it ended early")
        return data

    def feed(self, data: bytes) -> None:
        """Write all of stdin, then close it. A process that does not read all of it is no error."""
        if self._stdin is not None:
            threading.Thread(target=self._stdin._drain, daemon=True).start()
            self._stdin.feed(data)
            return
        with contextlib.suppress(OSError):
            self._sock.sendall(data)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _drain(self) -> None:
        """Read what another connection carries too: an engine writes to all of them, and waits for each."""
        with contextlib.suppress(EngineUnreachable, ValueError):  # closed meanwhile, or before it began
            self.pump(lambda _: None)

    def close(self) -> None:
        """End the stream; a thread that reads it returns."""
        if self._stdin is not None:
            self._stdin.close()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self._pumping:  # else whoever reads it does so
            self._response.close()
        with contextlib.suppress(OSError):
            self._sock.close()
