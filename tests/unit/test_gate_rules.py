"""A gate between a client and an engine that are both the test's: what of a request goes on, and what does not."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h11
import pytest

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy import gate as gates
from manyoyo_mcp.policy import wire
from manyoyo_mcp.policy.gate import Gate
from manyoyo_mcp.policy.grpc import Calls
from manyoyo_mcp.policy.http2 import _MOST_CALLS, _MOST_WAITING, _TOO_MANY, Outgoing, Side
from manyoyo_mcp.policy.rules import endpoint
from manyoyo_mcp.policy.witness import Witness
from tests.unit.test_gate import WAYS, ask

_PATIENCE = 10


class Told(Witness):
    def __init__(self) -> None:
        self.refusals: list[tuple[str, str, str]] = []

    def refused(self, method: str, path: str, code: str, reason: str) -> None:
        self.refusals.append((method, path, code))


class Behind:
    """An engine, as far as a test plays it: each connection that a gate makes is one of `connections`."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self._made = threading.Semaphore(0)

    def dial(self) -> socket.socket:
        near, far = socket.socketpair()
        far.settimeout(_PATIENCE)
        self.connections.append(far)
        self._made.release()
        return near

    def asked(self) -> tuple[socket.socket, bytes]:
        """The next connection, and the head of what is asked over it."""
        assert self._made.acquire(timeout=_PATIENCE), "nothing reaches the engine"
        far = self.connections[-1]
        head = b""
        while b"\r\n\r\n" not in head:
            piece = far.recv(1 << 16)
            assert piece, head
            head += piece
        return far, head


@pytest.fixture
def behind() -> Iterator[Behind]:
    made = Behind()
    yield made
    for each in made.connections:
        each.close()


@contextmanager
def opened(tmp_path: Path, **ways: Any) -> Iterator[Path]:
    gate = Gate(tmp_path / "x.sock", replace(WAYS, **ways))
    gate.open()
    try:
        yield gate.path
    finally:
        gate.close()


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(str(path))
        yield sock


def silent(sock: socket.socket, seconds: float = 0.3) -> bool:
    sock.settimeout(seconds)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return True
    finally:
        sock.settimeout(_PATIENCE)


ATTACH = b"POST /containers/x/attach?stream=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"


def test_what_follows_a_request_waits_until_the_engine_says_that_it_is_a_stream(tmp_path: Path, behind: Behind) -> None:
    """Until then it would be taken for another request, which nobody has judged."""
    smuggled = b"POST /containers/create HTTP/1.1\r\nHost: x\r\n\r\n"
    with opened(tmp_path, dial=behind.dial) as path:
        with connected(path) as client:
            client.sendall(ATTACH + smuggled)
            engine, head = behind.asked()
            assert head.startswith(b"POST /v1.41/containers/x/attach") and b"create" not in head
            assert silent(engine)
            engine.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            assert engine.recv(len(smuggled)) == smuggled
        with connected(path) as client:
            client.sendall(ATTACH + smuggled)
            engine, _ = behind.asked()
            engine.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
            assert silent(engine), "that is no stream"


def test_what_a_session_sends_is_bounded_as_a_context_is(tmp_path: Path, behind: Behind) -> None:
    told = Told()
    with opened(tmp_path, dial=behind.dial, context_max=1 << 20, witness=told) as path, connected(path) as client:
        client.sendall(
            b"POST /session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
        )
        engine, _ = behind.asked()
        engine.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        received = 0

        def receive() -> None:
            nonlocal received
            with contextlib.suppress(OSError):
                while piece := engine.recv(1 << 16):
                    received += len(piece)

        receiving = threading.Thread(target=receive)
        receiving.start()
        with contextlib.suppress(OSError):
            for _ in range(64):
                client.sendall(bytes(1 << 16))
        receiving.join(_PATIENCE)
        assert received <= 1 << 20
    assert told.refusals == [("POST", "/session", "CONTEXT_REFUSED")]


def test_a_stream_that_is_no_session_has_no_bound(tmp_path: Path, behind: Behind) -> None:
    with opened(tmp_path, dial=behind.dial, context_max=1 << 10) as path, connected(path) as client:
        client.sendall(ATTACH)
        engine, _ = behind.asked()
        engine.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        sending = threading.Thread(target=client.sendall, args=(bytes(1 << 18),))
        sending.start()
        left = 1 << 18
        while left:
            piece = engine.recv(1 << 16)
            assert piece, "hung up on"
            left -= len(piece)
        sending.join()


@pytest.mark.parametrize(
    ("request_", "status", "why"),
    [
        (b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{", b" 400 ", b"no JSON"),
        (b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]", b" 400 ", b"no JSON object"),
        (b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000, b" 400 ", b"no JSON"),
        (b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 4194305\r\n\r\n" + b" " * 4_194_305, b" 400 ", b"larger than 4 MiB"),
        (b"POST /build?cgroupparent=/manyoyo-builds/0123456789abcdef HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b" 403 ", b"choose its cgroup"),
        (b"GET /containers/x/json HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{\"a\"1", b" 400 ", b"no JSON"),
        (b"GET /containers/x/json HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n{\"a\":1}", b" 403 ", b"takes no JSON"),
        (b"POST /libpod/build?dockerfile=" + b"%5b" * 60_000 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b" 40", b"message"),
    ],
)  # fmt: skip
def test_bodies_that_are_none(tmp_path: Path, request_: bytes, status: bytes, why: bytes) -> None:
    with opened(tmp_path) as path:
        answer = ask(path, request_)
    assert status in answer and why in answer, answer


def test_a_gate_has_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_MOST", 2)
    ping = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
    with opened(tmp_path) as path, connected(path) as one, connected(path) as two:
        with connected(path) as three:
            assert b" 503 " in (answer := three.recv(1 << 16)) and b"the most that it serves" in answer
        for each in (one, two):
            each.sendall(ping)
            assert b"does not answer" in each.recv(1 << 16), "they are served"


def test_a_server_without_threads_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start: Callable[[threading.Thread], None] = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "gate connection":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with opened(tmp_path) as path, connected(path) as client:
        assert b"no thread left" in client.recv(1 << 16)


# -- requests as they are read and written anew


def head(target: str = "/info", *headers: tuple[str, str], method: str = "GET") -> h11.Request:
    return h11.Request(method=method, target=target, headers=[("Host", "x"), *headers])


@pytest.mark.parametrize(
    "target", ["/v1.23/info", "/v1.46/info", "/v2.0/info", "/v1.41.1/info", "/v3.9.9/libpod/info", "/info?x=%ff"]
)
def test_versions_and_targets_that_nobody_knows(target: str) -> None:
    with pytest.raises(InvalidArgument):
        wire.target(head(target))


@pytest.mark.parametrize(
    ("target", "prefix", "path"),
    [
        ("/info", "/v1.41", "/info"), ("/v1.24/info", "/v1.24", "/info"), ("/v1.45/info", "/v1.45", "/info"), ("/libpod/info", "/v5.4.2", "/libpod/info"),
        ("/v4.0.0/libpod/info", "/v4.0.0", "/libpod/info"), ("/v9.0/libpod/info", "/v5.4.2", "/libpod/info"),
        ("/v5.4.3/libpod/info", "/v5.4.2", "/libpod/info"), ("/images/a%2Fb%3A1%40x/json", "/v1.41", "/images/a/b:1@x/json"),
    ],
)  # fmt: skip
def test_versions_that_are_known(target: str, prefix: str, path: str) -> None:
    assert wire.target(head(target))[:2] == (prefix, path)


def test_a_body_whose_end_is_told_in_two_ways() -> None:
    with pytest.raises(InvalidArgument, match="two ways"):
        wire.length(head("/build", ("Content-Length", "5"), ("Transfer-Encoding", "chunked"), method="POST"))


def test_headers_that_an_engine_is_told() -> None:
    asked = endpoint("POST", "/containers/x/attach")
    given = head(
        "/containers/x/attach", ("X-Registry-Auth", "e30="), ("X-Forwarded-For", "1.2.3.4"), ("Content-Type", "application/x-www-form-urlencoded"),
        ("Upgrade", "h2c"), ("Connection", "Upgrade, X-Registry-Auth"), ("Cookie", "x"), method="POST",
    )  # fmt: skip
    sent = wire.headers(given, asked, 0)
    assert sorted(sent) == sorted([
        (b"x-registry-auth", b"e30="), (b"host", b"docker"), (b"content-type", b"application/x-tar"), (b"content-length", b"0"), (b"connection", b"close"),
    ])  # fmt: skip
    form = head("/containers/create", ("Content-Type", "application/x-www-form-urlencoded"), method="POST")
    assert dict(wire.headers(form, endpoint("POST", "/containers/create"), 0))[b"content-type"] == b"application/json"
    tcp = wire.headers(head("/x", ("Upgrade", "TCP"), ("Connection", "upgrade"), method="POST"), asked, 0)
    assert (b"upgrade", b"tcp") in tcp
    plain = endpoint("GET", "/info")
    assert b"upgrade" not in dict(wire.headers(head("/info", ("Upgrade", "tcp")), plain, 0)), "it is no stream"


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65, "a b"])
def test_a_sessions_id_has_no_odd_letters(name: str) -> None:
    given = head("/session", ("X-Docker-Expose-Session-Uuid", name), method="POST")
    with pytest.raises(PolicyRefused, match="session's id"):
        wire.headers(given, endpoint("POST", "/session"), 0)


# -- HTTP/2


class Far:
    """The engine's end of a connection of gRPC: it notes what calls it is asked, and answers each with nothing."""

    def __init__(self, said: bytes = b"") -> None:
        self.near, self.sock = socket.socketpair()
        self.sock.settimeout(_PATIENCE)
        self.asked: list[dict[bytes, bytes]] = []
        self._said = said
        as_it_is = {"validate_outbound_headers": False, "normalize_outbound_headers": False}
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None, **as_it_is)
        )
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._h2.initiate_connection()
            self.sock.sendall(self._h2.data_to_send())
            while data := self.sock.recv(1 << 16):
                for event in self._h2.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.asked.append(dict(event.headers))
                    elif isinstance(event, h2.events.StreamEnded):
                        answer = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"0")]
                        answer += [(b"grpc-message", self._said)] if self._said else []
                        self._h2.send_headers(event.stream_id, answer, end_stream=True)
                self.sock.sendall(self._h2.data_to_send())


def calls(*headers: tuple[str, str], said: bytes = b"") -> tuple[Far, dict[str, str], h2.connection.H2Connection]:
    """One call through a gate's two connections: the engine, the answer, the client's state."""
    far, (sock, theirs) = Far(said), socket.socketpair()
    sock.settimeout(_PATIENCE)
    passed = Calls(theirs, far.near, lambda path, raw: (raw, lambda status: None), lambda: None)
    serving = threading.Thread(target=passed.serve)
    serving.start()
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    usual = {
        ":method": "POST",
        ":scheme": "http",
        ":authority": "x",
        ":path": "/x/Y",
        "content-type": "application/grpc",
    }
    client.send_headers(1, list((usual | dict(headers)).items()))
    client.send_data(1, b"\0\0\0\0\0", end_stream=True)
    sock.sendall(client.data_to_send())
    answer: dict[str, Any] = {}
    while not answer:
        data = sock.recv(1 << 16)
        assert data, "hung up"
        for event in client.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                answer = dict(event.headers)
    sock.close()
    serving.join(_PATIENCE)
    far.sock.close()
    assert not serving.is_alive()
    return far, answer, client


def test_of_a_calls_metadata_what_is_known_and_well_formed_goes_on() -> None:
    far, answer, _ = calls(
        ("grpc-timeout", "100S"), ("buildkit-controlapi-buildid", "abc1"), ("user-agent", "x"), ("x-odd", "y"), ("authorization", "z"), ("traceparent", "0"),
    )  # fmt: skip
    assert answer["grpc-status"] == "0"
    assert {name: far.asked[0].get(name) for name in (b"grpc-timeout", b"buildkit-controlapi-buildid", b"user-agent")} == {
        b"grpc-timeout": b"100S", b"buildkit-controlapi-buildid": b"abc1", b"user-agent": b"x",
    }  # fmt: skip
    assert not {b"x-odd", b"authorization", b"traceparent"} & far.asked[0].keys()
    far, answer, _ = calls(("grpc-timeout", "soon"), ("buildkit-controlapi-buildid", "../x"), ("user-agent", "x" * 300))
    assert answer["grpc-status"] == "0"
    assert not {b"grpc-timeout", b"buildkit-controlapi-buildid", b"user-agent"} & far.asked[0].keys()


def test_an_engines_words_may_end_in_a_space() -> None:
    """As of the status of a build without a name."""
    _, answer, _ = calls(said=b"no such job ")
    assert answer["grpc-message"] == "no such job" and answer["grpc-status"] == "0"


def test_what_is_no_post_is_no_call() -> None:
    far, answer, _ = calls((":method", "PUT"))
    assert answer["grpc-status"] == "3" and not far.asked


def test_a_connection_has_so_many_calls_and_so_long_headers() -> None:
    _, _, client = calls()
    assert client.remote_settings.max_concurrent_streams == _MOST_CALLS == 64
    assert client.remote_settings.max_header_list_size == 1 << 16


def side() -> tuple[Side, socket.socket]:
    near, far = socket.socketpair()
    return Side(near, client_side=True), far


def test_who_asks_without_reading_is_hung_up_on() -> None:
    made, far = side()
    made.waiting = _TOO_MANY
    with pytest.raises(OSError, match="not read"):
        made.pump()
    far.close()


def test_of_an_answer_no_more_is_taken_than_its_client_takes() -> None:
    made, far = side()
    made.h2.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", "/")])
    outgoing = made.outgoing[1] = Outgoing(1)
    outgoing.pieces.append(b"x")
    made.waiting = _MOST_WAITING
    made.flush()
    assert list(outgoing.pieces) == [b"x"]
    made.waiting = 0
    made.flush()
    assert not outgoing.pieces
    far.close()


def test_json_is_written_anew(tmp_path: Path, behind: Behind) -> None:
    raw = b'{"Image": "x", "HostConfig": {"Privileged": true}, "HostConfig": {}}'
    with opened(tmp_path, dial=behind.dial) as path, connected(path) as client:
        client.sendall(b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
        engine, asked = behind.asked()
        size = int(asked.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = asked.partition(b"\r\n\r\n")[2]
        while len(body) < size:
            body += engine.recv(1 << 16)
        engine.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    assert json.loads(body)["HostConfig"]["Memory"] and b"Privileged" not in body
