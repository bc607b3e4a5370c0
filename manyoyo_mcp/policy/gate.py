"""The gate: a unix socket that speaks Docker's API, and podman's own, to clients that we don't trust. Who connects gets a `Connection`, which judges what is asked.

A connection has a thread of its own and one more for what the client goes on to send, for what reaches an engine need not be a socket that an event loop knows.
"""

import contextlib
import logging
import socket
import threading
import time
from pathlib import Path

from manyoyo_mcp.policy.connection import Connection, Ways

_log = logging.getLogger(__name__)
_MOST = 64
"""Connections at a time, of one gate: each is two descriptors and two threads."""
_CONTEXTS_EACH = 2
"""Contexts of one gate that are being received or sent at a time: each is a file of this machine's meanwhile."""


class Gate:
    """One sandbox's. `open` makes the socket, with this `mode`: for its owner alone, where nothing is said; `close` ends it and every connection."""

    def __init__(self, path: Path, ways: Ways, mode: int = 0o600) -> None:
        self.path = path
        self._mode = mode
        self._ways = ways
        self._listening: socket.socket | None = None
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._contexts = threading.BoundedSemaphore(_CONTEXTS_EACH)

    def open(self) -> None:
        """Raises OSError, as for a path that is too long for a socket's address."""
        listening = socket.socket(socket.AF_UNIX)
        scratch = self.path.with_suffix(".new")  # what has its name listens
        try:
            scratch.unlink(missing_ok=True)
            listening.bind(str(scratch))
            scratch.chmod(self._mode)
            listening.listen(_MOST)
            scratch.replace(self.path)
        except BaseException:
            listening.close()
            raise
        self._listening = listening
        threading.Thread(target=self._accept, args=(listening,), daemon=True, name=f"gate {self.path.stem}").start()

    def close(self) -> None:
        with self._lock:  # who is let in has been seen, or sees that it is closed
            listening, self._listening = self._listening, None
            connections = list(self._connections)
        if listening is not None:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            self.path.unlink(missing_ok=True)
        for each in connections:
            each.end()
        self._ways.witness.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                if self._listening is not listening:
                    return
                time.sleep(0.05)  # no file descriptor left: some connection will end
                continue
            connection = Connection(client, self._ways, self._contexts)
            with self._lock:
                closed, full = self._listening is not listening, len(self._connections) >= _MOST
                if not closed and not full:
                    self._connections.add(connection)
            if closed:
                connection.end()
                return
            if full:
                connection.turn_away(f"The gate has {_MOST} connections, the most that it serves at a time.")
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True, name="gate connection").start()
            except RuntimeError:  # no thread is left
                connection.turn_away("The server has no thread left.")
                with self._lock:
                    self._connections.discard(connection)

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        except Exception:
            _log.exception("a connection of a gate failed")
        finally:
            connection.end()
            with self._lock:
                self._connections.discard(connection)
