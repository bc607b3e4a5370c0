"""A port of this machine's loopback that leads into a sandbox: whoever connects is joined to a connection that `dial` makes.

Threads, as a gate has: what leads into a sandbox may be an exec's stream, which no event loop knows. Two for each connection.
"""

import contextlib
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.hosts.base import Hop
from manyoyo_mcp.policy.ports import LOOPBACK

_log = logging.getLogger(__name__)
_PIECE = 1 << 16
_SILENCE = 300.0
"""Seconds without a byte after which a service is given up whose client has said all that it will."""
_GRACE = 2.0
"""Seconds that a service has to see that its client has gone, before the way to it is cut."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a connection is closed at once, as where nobody listens."""


Dialler = Callable[[], Hop]


class Forward:
    """Listens from its making until `close`. `places` bounds the connections of all that share it; `used` is told of each use.

    Raises OSError where the port is taken, or may not be had.
    """

    def __init__(self, port: int, dial: Dialler, places: threading.Semaphore, used: Callable[[], None]) -> None:
        self.port = port
        self._dial = dial
        self._places = places
        self._used = used
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening: socket.socket | None = listening(port)
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True, name=f"port {port}").start()

    def close(self) -> None:
        """Listen no more, and end every connection; twice is once."""
        with self._lock:
            ours, self._listening = self._listening, None
            connections = list(self._open)
        for each in (*connections, *([ours] if ours is not None else [])):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if ours is not None:
            ours.close()

    def _accept(self, ours: socket.socket) -> None:
        while True:
            try:
                client, _ = ours.accept()
            except OSError:
                if self._listening is not ours:
                    return
                time.sleep(0.05)  # no file descriptor left: some connection will end
                continue
            with self._lock:
                wanted = self._listening is ours and self._places.acquire(blocking=False)
                if wanted:
                    self._open.add(client)
            if not wanted:
                _reset(client)
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), daemon=True, name=f"port {self.port}").start()
            except RuntimeError:  # no thread is left
                self._over(client)

    def _serve(self, client: socket.socket) -> None:
        try:
            self._used()
            hop = self._dial()
        except (ManyoyoError, OSError) as error:
            _log.info("port %s leads nowhere: %s", self.port, error)
            self._over(client)
            return
        except Exception:
            _log.exception("port %s leads nowhere", self.port)
            self._over(client)
            return
        whole = False
        try:
            whole = _Joined(client, hop, self._used).serve()
        except Exception:
            _log.exception("a connection of port %s failed", self.port)
        finally:
            hop.close()
            self._over(client, whole)

    def _over(self, client: socket.socket, whole: bool = False) -> None:
        with self._lock:
            self._open.discard(client)
        self._places.release()
        if whole:
            client.close()
        else:
            _reset(client)


class _Joined:
    """A client and what it is joined to."""

    def __init__(self, client: socket.socket, hop: Hop, used: Callable[[], None]) -> None:
        self._client = client
        self._hop = hop
        self._used = used
        self._over = threading.Event()
        self._given_up = threading.Event()
        self._heard = time.monotonic()

    def serve(self) -> bool:
        """Until the service hangs up; whether it did, rather than the client, or the way to it."""
        sending = threading.Thread(target=self._send, daemon=True, name="port sending")
        sending.start()
        ended, broken = False, True
        try:
            ended, broken = self._receive(), False
        except ManyoyoError as error:  # as where nothing listens there
            _log.info("%s", error)
        finally:
            self._over.set()
            with contextlib.suppress(OSError):  # whoever reads it stops; who is hung up on sees no end of what was said
                self._client.shutdown(socket.SHUT_RDWR if ended else socket.SHUT_RD)
            sending.join()
        if not ended and not broken and (self._given_up.is_set() or not _ends(self._hop)):
            self._hop.cut()
        return ended

    def _receive(self) -> bool:
        """Whether all was passed on that the service had to say. Raises ManyoyoError."""
        with contextlib.suppress(OSError):
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while piece := self._hop.recv(_PIECE):
                self._used()
                self._heard = time.monotonic()
                self._client.sendall(piece)
            return not self._given_up.is_set()
        return False

    def _send(self) -> None:
        gone = True
        with contextlib.suppress(OSError, ManyoyoError):
            while piece := self._client.recv(_PIECE):
                self._used()
                self._hop.sendall(piece)
            gone = False
        with contextlib.suppress(OSError):
            self._hop.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(self._client, 0)
        while not gone and not self._over.wait(0.5):  # it has said all that it will, and listens
            gone = bool(poll.poll(0)) or time.monotonic() - self._heard > _SILENCE
        if not self._over.wait(_GRACE):
            self._given_up.set()
            with contextlib.suppress(OSError):
                self._hop.shutdown(socket.SHUT_RDWR)


def listening(port: int) -> socket.socket:
    """A socket that listens at a port of loopback; any that is free for 0. Raises OSError."""
    sock = socket.socket(socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was there a moment ago is no obstacle
        sock.bind((LOOPBACK, port))
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return sock


def _ends(hop: Hop) -> bool:
    """Whether the service hangs up, now that its client has gone."""
    deadline = time.monotonic() + _GRACE
    try:
        while (left := deadline - time.monotonic()) > 0:
            hop.settimeout(left)
            if not hop.recv(_PIECE):
                return True
    except TimeoutError:
        return False
    except (OSError, ManyoyoError):
        return True  # the way has broken already
    return False


def _reset(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
