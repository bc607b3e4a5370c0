"""BuildKit through a gate: what of its calls goes on, what of its clients' sessions, and HTTP/2 without an engine behind it."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import h2.connection
import h2.events
import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyoyo_mcp.errors import InvalidArgument, NotSupported, PolicyRefused
from manyoyo_mcp.policy import calling, wire
from manyoyo_mcp.policy.base import Limits, Query, Request
from manyoyo_mcp.policy.buildkit_api import MESSAGES, METHOD
from manyoyo_mcp.policy.grpc import Calls
from manyoyo_mcp.policy.protobuf import read, write
from manyoyo_mcp.policy.rules import decide, endpoint
from manyoyo_mcp.policy.witness import Witness
from manyoyo_mcp.values import Caps
from tests.unit.test_protobuf import SLOW, messages

LIMITS = Limits(default=Caps(1.5, 512 << 20, 100), largest=Caps(2, 1 << 30, 200))
SOLVE = "/moby.buildkit.v1.Control/Solve"
GATEWAY = "/moby.buildkit.v1.frontend.LLBBridge/Solve"


class Noted(Witness):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def asked(self, method: str, path: str, query: Query, narrowed: bool) -> Callable[[int | None], None]:
        self.told.append((method, path, dict(query), narrowed))
        return self.told.append

    def refused(self, method: str, path: str, code: str, reason: str) -> None:
        self.told.append((method, path, code))


@pytest.mark.parametrize(("path", "attrs"), [(SOLVE, "FrontendAttrs"), (GATEWAY, "FrontendOpt")])
def test_each_build_is_held_by_its_caps_and_the_daemons_own_frontend(path: str, attrs: str) -> None:
    body = decide(Request(METHOD, path, {}, {attrs: {"filename": "D", "build-arg:A": "b"}}), LIMITS).body
    assert body == {attrs: {
        "filename": "D", "build-arg:A": "b", "cmdline": "dockerfile.v0", "cgroup-parent": "/manyoyo-builds/536870912-150000-100",
    }}  # fmt: skip
    assert attrs in (decide(Request(METHOD, path, {}, {}), LIMITS).body or {})


def test_what_a_client_of_today_says_goes_on() -> None:
    asked = {
        "Ref": "abc1", "Session": "def2", "ExporterDeprecated": "moby", "ExporterAttrsDeprecated": {"name": "docker.io/library/x:1"},
        "Exporters": [{"Type": "moby", "Attrs": {"name": "docker.io/library/x:1,y"}}], "Cache": {
            "Imports": [{"Type": "registry", "Attrs": {"ref": "example.org/c"}}], "Exports": [{"Type": "inline"}]},
        "FrontendAttrs": {"filename": "Dockerfile", "image-resolve-mode": "local", "no-cache": "", "label:a": "b", "context:x": "local:x",
                          "context:y": "docker-image://example.org/y:1", "cache-imports": '[{"Type": "registry", "Attrs": {"ref": "r"}}]',
                          "attest:provenance": "mode=min,inline-only=true", "vcs:revision": "1", "force-network-mode": "none",
                          "context": "http://buildkit-session/abc"},
    }  # fmt: skip
    body = decide(Request(METHOD, SOLVE, {}, asked), LIMITS).body or {}
    left = {name: value for name, value in body["FrontendAttrs"].items() if name not in ("cmdline", "cgroup-parent")}
    assert body | {"FrontendAttrs": left} == asked | {
        "Cache": asked["Cache"] | {"Exports": [{"Type": "inline", "Attrs": {}}]}
    }  # type: ignore[operator]


@SLOW
@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_whatever_is_asked_is_refused_or_held(path: str, data: st.DataObject) -> None:
    asked = data.draw(messages(MESSAGES[path]))
    try:
        body = decide(Request(METHOD, path, {}, asked), LIMITS).body or {}
    except (PolicyRefused, InvalidArgument) as error:
        assert error.message and error.hint
        return
    sent = write(body, MESSAGES[path])
    assert write(read(sent, MESSAGES[path], "x"), MESSAGES[path]) == sent
    assert not body.keys() & {"Definition", "Entitlements", "FrontendInputs", "SourcePolicy", "SourcePolicies"}
    for attrs in (body[name] for name in ("FrontendAttrs", "FrontendOpt") if name in body):
        assert attrs["cgroup-parent"].startswith("/manyoyo-builds/") and attrs["cmdline"] == "dockerfile.v0"


def test_each_call_is_read_judged_and_on_record() -> None:
    noted = Noted()
    check = calling.judge(lambda: LIMITS, noted)
    asked = {"Ref": "abc", "Exporters": [{"Type": "moby", "Attrs": {"name": "x:1"}}], "Frontend": ""}
    message, ended = check(SOLVE, write(asked, MESSAGES[SOLVE]))
    ended(0)
    assert read(message, MESSAGES[SOLVE], "x")["FrontendAttrs"]["cmdline"] == "dockerfile.v0"
    assert noted.told == [(METHOD, SOLVE, {"name": "x:1"}, True), 0]
    noted.told.clear()
    assert check("/moby.buildkit.v1.Control/Info", b"")[0] == b"" and not noted.told
    for path, raw, code in (
        (SOLVE, write({"Entitlements": ["security.insecure"]}, MESSAGES[SOLVE]), "POLICY_REFUSED"),
        (SOLVE, b"\xff", "INVALID_ARGUMENT"),
        (SOLVE, b"\x82\x01\x00", "POLICY_REFUSED"),
        ("/moby.buildkit.v1.Control/Session", b"", "NOT_SUPPORTED"),
        ("/moby.buildkit.v1.Control/UpdateBuildHistory", b"", "NOT_SUPPORTED"),
        ("/moby.buildkit.v1.frontend.LLBBridge/ExecProcess", b"", "NOT_SUPPORTED"),
    ):
        with pytest.raises((PolicyRefused, InvalidArgument, NotSupported)):
            check(path, raw)
        assert noted.told.pop() == (METHOD, path, code) and not noted.told


def test_what_every_client_asks_in_vain_is_refused_without_a_record() -> None:
    noted = Noted()
    with pytest.raises(NotSupported):
        calling.judge(lambda: LIMITS, noted)("/moby.buildkit.v1.Control/ListenBuildHistory", b"")
    assert not noted.told


@pytest.mark.parametrize("path", ["/grpc", "/session"])
def test_the_tools_have_no_way_past_the_gate(path: str) -> None:
    assert decide(Request("POST", path), LIMITS)
    with pytest.raises(PolicyRefused, match="through a gate alone"):
        decide(Request("POST", path, ours=True), LIMITS)


def session(*headers: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    head = h11.Request(method="POST", target="/session", headers=[("Host", "x"), ("Upgrade", "h2c"), *headers])
    return wire.headers(head, endpoint("POST", "/session"), 0)


def test_a_session_gives_what_is_known() -> None:
    name = "X-Docker-Expose-Session-Grpc-Method"
    sent = session(
        ("X-Docker-Expose-Session-Uuid", "abc"), (name, "/moby.filesync.v1.FileSync/DiffCopy"), (name, "/moby.filesync.v1.Auth/GetTokenAuthority"),
        (name, "/moby.tomorrow.v1/Odd"), ("X-Docker-Expose-Session-Tomorrow", "x"), ("X-Other", "x"),
    )  # fmt: skip
    assert [value for key, value in sent if key == name.lower().encode()] == [
        b"/moby.filesync.v1.FileSync/DiffCopy", b"/moby.filesync.v1.Auth/GetTokenAuthority",
    ]  # fmt: skip
    assert (b"upgrade", b"h2c") in sent and not any(b"tomorrow" in key or key == b"x-other" for key, _ in sent)
    with pytest.raises(PolicyRefused, match="session's id"):
        session(("X-Docker-Expose-Session-Uuid", "a/b"))


def test_headers_of_a_session_go_with_no_other_request() -> None:
    head = h11.Request(
        method="GET",
        target="/info",
        headers=[("Host", "x"), ("X-Docker-Expose-Session-Uuid", "abc"), ("Upgrade", "h2c")],
    )
    sent = dict(wire.headers(head, endpoint("GET", "/info"), 0))
    assert not any(b"session" in name for name in sent) and b"upgrade" not in sent


class Client:
    """HTTP/2 to calls that lead to no engine."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10)
        calls = Calls(theirs, None, calling.judge(lambda: LIMITS, Witness()), lambda: None, calling.NO_BUILDKIT)
        self.thread = threading.Thread(target=calls.serve)
        self.thread.start()
        self.h2 = h2.connection.H2Connection()

    def ask(self, path: str, raw: bytes, **headers: str) -> dict[str, str]:
        """The answer's headers, or its trailers."""
        if not self.h2.open_outbound_streams and self.h2.state_machine.state.name == "IDLE":
            self.h2.initiate_connection()
        stream = self.h2.get_next_available_stream_id()
        given = {
            ":method": "POST",
            ":scheme": "http",
            ":authority": "x",
            ":path": path,
            "content-type": "application/grpc",
        }
        self.h2.send_headers(
            stream, list((given | {name.replace("_", "-"): value for name, value in headers.items()}).items())
        )
        while raw and not self.h2.local_flow_control_window(
            stream
        ):  # a large call before this one took the connection's
            self._answer(stream)
        while raw and (window := min(self.h2.local_flow_control_window(stream), 16384)):
            self.h2.send_data(stream, raw[:window])
            raw = raw[window:]
            self.sock.sendall(self.h2.data_to_send())
            self.heard = [] if raw else None  # the window opens as it is read
            while raw and not self.h2.local_flow_control_window(stream):
                if answer := self._answer(stream):
                    return answer
        self.h2.end_stream(stream)
        self.sock.sendall(self.h2.data_to_send())
        while not (answer := self._answer(stream)):
            pass
        return answer

    def _answer(self, stream: int) -> dict[str, str]:
        data = self.sock.recv(1 << 16)
        assert data, "hung up"
        found = {}
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream:
                found = {_text(name): _text(value) for name, value in event.headers}
        self.sock.sendall(self.h2.data_to_send())
        return found

    def close(self) -> None:
        self.sock.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture
def client() -> Any:
    made = Client()
    yield made
    made.close()


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def test_an_engine_without_it_says_so_to_each_call(client: Client) -> None:
    for _ in range(3):
        answer = client.ask("/moby.buildkit.v1.Control/ListWorkers", framed(b""))
        assert answer["grpc-status"] == "12" and "DOCKER_BUILDKIT=0" in answer["grpc-message"]


@pytest.mark.parametrize(
    ("path", "raw", "headers", "status", "why"),
    [
        ("/moby.buildkit.v1.Control/Session", framed(b""), {}, "12", "not among the calls"),
        ("/a\u00e9", framed(b""), {}, "12", "not among the calls"),
        (SOLVE, framed(b"\xff"), {}, "3", "ends within"),
        (SOLVE, framed(b"\x4a\x0cnetwork.host"), {}, "7", "may not be allowed network.host"),
        (SOLVE, b"\x01\0\0\0\0", {}, "3", "uncompressed"),
        (SOLVE, framed(b"") * 2, {}, "3", "more than one"),
        (SOLVE, b"", {}, "3", "no message"),
        (SOLVE, framed(b""), {"grpc_encoding": "gzip"}, "12", "Compressed"),
        (SOLVE, framed(b""), {"content-type": "text/plain"}, "3", "no gRPC"),
        (SOLVE, framed(bytes(5 << 20)), {}, "3", "4 MiB"),
    ],
)  # fmt: skip
def test_a_call_that_is_refused_says_why(
    client: Client, path: str, raw: bytes, headers: dict[str, str], status: str, why: str
) -> None:
    answer = client.ask(path, raw, **headers)
    assert answer["grpc-status"] == status and why in answer["grpc-message"], answer
    assert client.ask(SOLVE, framed(b""))["grpc-status"] == "12", "the connection goes on"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=5), st.booleans())
def test_garbage_ends_the_connection_or_nothing(pieces: list[bytes], preface: bool) -> None:
    client = Client()
    try:
        if preface:
            client.sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        for piece in pieces:
            client.sock.sendall(piece)
    except OSError:
        pass
    finally:
        client.close()
