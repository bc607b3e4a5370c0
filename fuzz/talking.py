"""The client's end of a conversation with a gate's BuildKit, and of the session beside it, where the daemon asks and the client answers."""

import contextlib
import secrets
import select
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from fuzz.found import PATIENCE
from fuzz.talks import SESSION, SOLVE, Call, Talk
from manyoyo_mcp.policy.buildkit_api import MESSAGES

_WORK = 8.0
"""Seconds for a build, which then is hung up on."""
_QUIET = 0.3
"""Seconds of silence after which a spoilt conversation is over."""
_FRAME = 16_384
_WORKS = (SOLVE, "/moby.buildkit.v1.Control/Status", "/moby.buildkit.v1.Control/Prune")
"""Calls that may take their time."""
_SESSION_CALLS = (
    "/moby.upload.v1.Upload/Pull", "/grpc.health.v1.Health/Check", "/moby.filesync.v1.FileSync/DiffCopy", "/moby.filesync.v1.Auth/Credentials",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret", "/moby.tomorrow.v1/Odd",
)  # fmt: skip


@dataclass(slots=True)
class Heard:
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def _upgraded(path: Path, target: str, headers: str) -> tuple[socket.socket, bytes]:
    """A connection that is HTTP/2 from there on, and what came of it already. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        sock.sendall(
            f"POST /v1.41{target} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n{headers}Content-Length: 0\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            if not (piece := sock.recv(1 << 16)):
                raise OSError(f"{target} is not answered: {answer[:300]!r}")
            answer += piece
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise OSError(f"{target} is no stream: {answer[:300]!r}")
    except BaseException:
        sock.close()
        raise
    return sock, answer.partition(b"\r\n\r\n")[2]


class _Session:
    """Answers what the daemon asks."""

    def __init__(self, path: Path, talk: Talk, name: str) -> None:
        methods = "".join(f"X-Docker-Expose-Session-Grpc-Method: {each}\r\n" for each in _SESSION_CALLS)
        self.sock, early = _upgraded(path, "/session", f"X-Docker-Expose-Session-Uuid: {name}\r\n{methods}")
        self._talk, self._asked = talk, 0
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self._h2.initiate_connection()
        self._flush()
        if early:
            self.take(early)

    def _flush(self) -> None:
        self.sock.sendall(self._h2.data_to_send())

    def take(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self._answer(event.stream_id, dict(event.headers).get(b":path", b"").decode(errors="replace"))
            elif isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._flush()

    def _answer(self, stream: int, asked: str) -> None:
        status, message = 0, b"\x08\x01"  # healthy
        if asked.endswith("/Pull"):
            size, upload = len(self._talk.upload), self._talk.upload
            message = b"\x0a" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F]) + upload
        elif not asked.startswith("/grpc.health"):
            status, message = self._talk.replies[self._asked % len(self._talk.replies)]
            self._asked += 1
        self._h2.send_headers(stream, [(b":status", b"200"), (b"content-type", b"application/grpc")])
        left = b"\0" + len(message).to_bytes(4, "big") + message
        while left and (room := min(_FRAME, self._h2.local_flow_control_window(stream))):
            self._h2.send_data(stream, left[:room])
            left = left[room:]
        self._h2.send_headers(stream, [(b"grpc-status", str(status).encode())], end_stream=True)


class _Calls:
    """Makes the calls, and hears what comes of them."""

    def __init__(self, path: Path, talk: Talk, name: str, heard: Heard) -> None:
        self._name = name.encode()
        self.sock, early = _upgraded(path, "/grpc", "")
        self._heard = heard
        self.waiting: dict[int, Call] = {}
        """By stream, the calls that have no answer yet."""
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        self._h2.initiate_connection()
        for step in talk.steps:
            if isinstance(step, Call):
                self._call(step)
                self.sock.sendall(self._h2.data_to_send())
            else:
                self.sock.sendall(self._h2.data_to_send() + step)
        if early:
            self.take(early)

    def _call(self, call: Call) -> None:
        stream = self._h2.get_next_available_stream_id()
        usual = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", call.path.encode())]
        self._h2.send_headers(stream, [*usual, *call.headers])
        for each in call.pieces:
            piece = each.replace(SESSION.encode(), self._name)
            while True:
                self._h2.send_data(stream, piece[:_FRAME])
                piece = piece[_FRAME:]
                if not piece:
                    break
        if call.resets:
            self._h2.reset_stream(stream)
        elif call.ends:
            self._h2.end_stream(stream)
            self.waiting[stream] = call

    def take(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            stream = getattr(event, "stream_id", 0) or 0
            if isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                given = dict(event.headers)
                if b"grpc-status" in given:
                    self._answered(stream, given[b"grpc-status"].decode(), given.get(b"grpc-message", b""))
            elif isinstance(event, h2.events.StreamReset):
                self._answered(stream, "reset", b"")
        self.sock.sendall(self._h2.data_to_send())

    def _answered(self, stream: int, status: str, message: bytes) -> None:
        call = self.waiting.pop(stream, None)
        self._heard.outcomes[f"status {status}"] += 1
        if b"Traceback" in message or b"engine does not answer" in message or b"hung up" in message:
            self._heard.wrong.append(f"{message[:500]!r} to {call}")


def hold(path: Path, talk: Talk) -> Heard:
    """What comes of a conversation: where nothing of it is spoilt each call has an answer, but a build that takes long, and that is hung up on."""
    heard, name = Heard(), secrets.token_hex(8)[: len(SESSION)]
    with contextlib.ExitStack() as stack:
        try:
            session = _Session(path, talk, name) if talk.session else None
            if session is not None:
                stack.callback(session.sock.close)
        except OSError as error:
            heard.wrong.append(str(error))
            return heard
        try:
            calls = _Calls(path, talk, name, heard)
        except (OSError, h2.exceptions.ProtocolError) as error:
            heard.outcomes["no conversation"] += 1
            if talk.proper:
                heard.wrong.append(f"{type(error).__name__}: {error}")
            return heard
        stack.callback(calls.sock.close)
        _listen(talk, calls, session, heard)
    return heard


def _listen(talk: Talk, calls: _Calls, session: _Session | None, heard: Heard) -> None:
    begun = last = time.monotonic()
    sides: dict[Any, Any] = {each.sock: each for each in (calls, session) if each is not None}
    while calls.waiting:
        now = time.monotonic()
        works = all(each.path in _WORKS or each.path not in MESSAGES for each in calls.waiting.values())
        if now - begun > (_WORK if works else PATIENCE) or (not talk.proper and now - last > _QUIET):
            break
        for sock in select.select(list(sides), [], [], 0.1)[0]:
            last = time.monotonic()
            try:
                data = sock.recv(1 << 16)
                if data:
                    sides[sock].take(data)
            except (OSError, h2.exceptions.ProtocolError) as error:
                data = b""
                if talk.proper and sock is calls.sock:
                    heard.wrong.append(f"{type(error).__name__}: {error}")
            if not data:
                del sides[sock]
        if calls.sock not in sides:
            break
    for call in calls.waiting.values():
        heard.outcomes["hung up on" if calls.sock in sides else "hung up"] += 1
        if talk.proper and (call.path not in _WORKS or calls.sock not in sides):
            heard.wrong.append(f"no answer to {call}")
