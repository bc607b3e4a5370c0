"""What may be published, in both dialects; and a port that leads somewhere."""

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from manyoyo_mcp.errors import EngineUnreachable, PolicyRefused, RequestError
from manyoyo_mcp.policy import ports
from manyoyo_mcp.policy.base import Limits, Request
from manyoyo_mcp.policy.ports import LOOPBACK, Binding, Published, Publisher
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.sessions import forwarding
from manyoyo_mcp.sessions.forwarding import Forward, listening
from manyoyo_mcp.sessions.ports import _choose, _outside
from manyoyo_mcp.values import Caps

NONE = Limits(default=Caps(1, 512 << 20, 100), largest=Caps(2, 1 << 30, 200))
INSIDE, OUTSIDE = replace(NONE, ports="inside"), replace(NONE, ports="outside")
DOCKER, LIBPOD = "/containers/create", "/libpod/containers/create"


def docker_body(bindings: Any, **host: Any) -> dict[str, Any]:
    return {"Image": "x", "HostConfig": {"PortBindings": bindings, **host}}


def libpod_body(*mappings: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"image": "x", "portmappings": list(mappings), **spec}


def judged(path: str, body: dict[str, Any], limits: Limits) -> dict[str, Any]:
    return decide(Request("POST", path, {}, body), limits).body or {}


@pytest.mark.parametrize("given", ["", "0.0.0.0", "::", "127.0.0.1", "::1", None])
def test_outside_is_loopback_and_inside_is_not(given: str | None) -> None:
    body = docker_body({"80/tcp": [{"HostIp": given, "HostPort": "8080"}]})
    written = judged(DOCKER, body, OUTSIDE)
    assert written["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": LOOPBACK, "HostPort": "8080"}]}
    assert written["ExposedPorts"] == {"80/tcp": {}} and _outside(written) == {8080: 80}
    inside = judged(DOCKER, body, INSIDE)
    assert inside["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    assert _outside(inside) == {}, "what a nested client publishes is never taken for the user's"
    mapping = {"container_port": 80, "host_port": 8080, "host_ip": given}
    assert judged(LIBPOD, libpod_body(mapping), OUTSIDE)["portmappings"][0]["host_ip"] == LOOPBACK
    assert "host_ip" not in judged(LIBPOD, libpod_body(mapping), INSIDE)["portmappings"][0]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DOCKER, docker_body({"80/tcp": [{"HostPort": "8080"}]})),
        (DOCKER, docker_body({}, PublishAllPorts=True)),
        (LIBPOD, libpod_body({"container_port": 80})),
        (LIBPOD, libpod_body(publish_image_ports=True)),
    ],
)
def test_nothing_is_published_unasked(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused, match="not published") as caught:
        judged(path, body, NONE)
    assert "ports=true" in caught.value.hint
    assert judged(path, body, INSIDE) and judged(path, body, OUTSIDE)


@pytest.mark.parametrize("limits", [INSIDE, OUTSIDE])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DOCKER, docker_body({"80/tcp": [{"HostIp": "192.0.2.1", "HostPort": "80"}]})),
        (DOCKER, docker_body({"80/tcp": [{"HostIp": "127.0.0.2"}]})),
        (DOCKER, docker_body({"80/tcp": [{"HostPort": "70000"}]})),
        (DOCKER, docker_body({"80/tcp": [{"HostPort": "9-8"}]})),
        (DOCKER, docker_body({"80/tcp": [{"HostPort": "80; x"}]})),
        (DOCKER, docker_body({"80/tcp": [{"HostPort": 80}]})),
        (DOCKER, docker_body({"80/tcp": [{"HostPort": "80", "Tomorrow": "x"}]})),
        (DOCKER, docker_body({"0/tcp": [{"HostPort": "80"}]})),
        (DOCKER, docker_body({"70000/tcp": [{}]})),
        (DOCKER, docker_body({"80/tcp": [{}] * 65})),
        (DOCKER, docker_body({"80/tcp": [{"HostIp": 5}]})),
        (DOCKER, docker_body({"80/tcp": ["80"]})),
        (DOCKER, docker_body({"80/tcp": 5})),
        (DOCKER, docker_body({"80/icmp": [{"HostPort": "80"}]})),
        (DOCKER, docker_body({"80/tcp": "x"})),
        (DOCKER, docker_body(["x"])),
        (DOCKER, docker_body({f"{port}/tcp": [{}] for port in range(1, 34)})),
        (DOCKER, docker_body({}, PublishAllPorts="yes")),
        (LIBPOD, libpod_body({"container_port": 80, "host_ip": "192.0.2.1"})),
        (LIBPOD, libpod_body({"container_port": 80, "host_port": -1})),
        (LIBPOD, libpod_body({"container_port": 80, "host_port": 65530, "range": 10})),
        (LIBPOD, libpod_body({"container_port": 1, "range": 33})),
        (LIBPOD, libpod_body({"container_port": 1, "range": 10**9})),
        (LIBPOD, libpod_body({"container_port": 80, "protocol": "icmp"})),
        (LIBPOD, libpod_body({"container_port": True})),
        (LIBPOD, libpod_body({"container_port": 80, "host_port": "80"})),
        (LIBPOD, libpod_body({"container_port": 80, "host_ip": 5})),
        (LIBPOD, libpod_body({"container_port": 80, "range": "2"})),
        (LIBPOD, libpod_body({"container_port": 80, "protocol": 5})),
        (LIBPOD, libpod_body({"container_port": 80, "protocol": "tcp;"})),
        (LIBPOD, libpod_body(*["80:80"])),  # type: ignore[arg-type]
        (LIBPOD, {"image": "x", "portmappings": 5}),
        (LIBPOD, libpod_body({"tomorrow": 1})),
        (LIBPOD, libpod_body(publish_image_ports=1)),
    ],
)  # fmt: skip
def test_what_is_no_port_is_refused(path: str, body: dict[str, Any], limits: Limits) -> None:
    with pytest.raises(PolicyRefused):
        judged(path, body, limits)


def test_a_range_that_is_none_is_one_port() -> None:
    for odd in (0, -5, None):
        rows = judged(LIBPOD, libpod_body({"container_port": 80, "range": odd}), INSIDE)["portmappings"]
        assert [row["container_port"] for row in rows] == [80]


def test_what_an_image_exposes_is_published_once() -> None:
    body = docker_body({"80/tcp": [{"HostPort": "8080"}]}, PublishAllPorts=True) | {"ExposedPorts": {"80/tcp": {}}}
    assert judged(DOCKER, body, INSIDE)["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}]
    }
    had = Published((Binding(80, 8080, 8080), Binding(53, protocol="udp")))
    found = ports.with_exposed(had, {"80/tcp": {}, "53/tcp": {}, "90": {}}).bindings
    assert found == (*had.bindings, Binding(53), Binding(90))


def test_what_is_not_tcp_stays_inside() -> None:
    for path, body in (
        (DOCKER, docker_body({"53/udp": [{"HostPort": "5300"}]})),
        (LIBPOD, libpod_body({"container_port": 53, "host_port": 5300, "protocol": "tcp,udp"})),
    ):
        assert judged(path, body, INSIDE)
        with pytest.raises(PolicyRefused, match="TCP"):
            judged(path, body, OUTSIDE)


@pytest.mark.parametrize("port", ["53", "1053", "1000-1060"])
def test_the_sandboxs_own_name_server_keeps_its_ports(port: str) -> None:
    for limits in (INSIDE, OUTSIDE):
        for exposed in ("53/tcp", "53/udp"):
            with pytest.raises(PolicyRefused):
                judged(DOCKER, docker_body({exposed: [{"HostPort": port}]}), limits)
    with pytest.raises(PolicyRefused, match="name server"):
        judged(LIBPOD, libpod_body({"container_port": 1050, "host_port": 1050, "range": 5}), INSIDE)


def test_the_machines_own_ports_are_not_taken() -> None:
    body = docker_body({"22/tcp": [{"HostPort": "1023"}]})
    assert judged(DOCKER, body, INSIDE)
    with pytest.raises(PolicyRefused, match="below 1024"):
        judged(DOCKER, body, OUTSIDE)
    assert judged(DOCKER, docker_body({"22/tcp": [{"HostPort": "1024"}]}), OUTSIDE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (LIBPOD, libpod_body(*[{"container_port": 1, "range": 33, "protocol": "," * 30}] * 3000)),
        (LIBPOD, libpod_body(publish_image_ports=True, expose={f"{each}-65000": "tcp" for each in range(3000)})),
        (DOCKER, docker_body({}, PublishAllPorts=True) | {"ExposedPorts": {f"{each}-65000": {} for each in range(3000)}}),
        (DOCKER, docker_body({"1/tcp": [{"HostPort": str(each)} for each in range(2000, 60000)]})),
    ],
)  # fmt: skip
def test_what_is_very_many_is_refused_before_it_is_made(path: str, body: dict[str, Any]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PolicyRefused, match="32 ports"):
            judged(path, body, INSIDE)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


class Chooses(Publisher):
    """The next ones, and an image that exposes two."""

    def settle(self, image: str, published: Published) -> Published:
        assert image == "x"
        if published.every:
            published = ports.with_exposed(published, {"80/tcp": {}, "90": {}, "53/udp": {}})
        fresh = iter(range(30001, 40000))
        return replace(
            published, bindings=tuple(each if each.first else replace(each, first=at, last=at) for each, at in zip(published.bindings, fresh, strict=False))
        )  # fmt: skip


def test_every_port_is_chosen_before_the_engine_hears_of_it() -> None:
    body = judged(DOCKER, docker_body({"80/tcp": [{}, {"HostPort": "8080"}]}, PublishAllPorts=True), OUTSIDE)
    told = ports.settled(DOCKER, body, OUTSIDE, Chooses())["HostConfig"]
    assert told["PublishAllPorts"] is False
    assert told["PortBindings"] == {
        "80/tcp": [{"HostIp": LOOPBACK, "HostPort": "30001"}, {"HostIp": LOOPBACK, "HostPort": "8080"}],
        "90/tcp": [{"HostIp": LOOPBACK, "HostPort": "30003"}],
    }
    body = judged(
        LIBPOD, libpod_body({"container_port": 70, "range": 2}, publish_image_ports=True, expose={"60": "tcp"}), OUTSIDE
    )
    told = ports.settled(LIBPOD, body, OUTSIDE, Chooses())
    assert told["publish_image_ports"] is False
    assert [(each["container_port"], each["host_port"]) for each in told["portmappings"]] == [
        (70, 30001), (71, 30002), (60, 30003), (80, 30004), (90, 30005),
    ]  # fmt: skip
    assert ports.settled(DOCKER, body, INSIDE, Chooses()) is body, "inside, the engine chooses"


def test_what_starts_a_container() -> None:
    assert ports.started_by("POST", "/containers/web/start") == "web"
    assert ports.started_by("POST", "/libpod/containers/web/restart") == "web"
    assert ports.started_by("POST", "/containers/web/stop") is None
    assert ports.started_by("GET", "/containers/web/start") is None


def test_the_users_own_socket_is_an_engines() -> None:
    limits = replace(NONE, socket="/run/manyoyo/gate.sock", own="/run/user/1/x.sock")
    host = judged(DOCKER, {"Image": "x", "HostConfig": {
        "Binds": ["/run/user/1/x.sock:/var/run/docker.sock:rw"],
        "Mounts": [{"Type": "bind", "Source": "/run/user/1/x.sock", "Target": "/y"}]}}, limits)["HostConfig"]  # fmt: skip
    assert host["Binds"] == ["/run/manyoyo/gate.sock:/var/run/docker.sock:rw"]
    assert host["Mounts"][0]["Source"] == "/run/manyoyo/gate.sock"
    spec = {"image": "x", "mounts": [{"type": "bind", "source": "/run/user/1/x.sock", "destination": "/y"}]}
    assert judged(LIBPOD, spec, limits)["mounts"][0]["source"] == "/run/manyoyo/gate.sock"
    for other in ("/run/user/1/x.sock.d:/y", "/run/user/1:/y", "/run/user/1/other.sock:/y"):
        with pytest.raises(PolicyRefused):
            judged(DOCKER, {"Image": "x", "HostConfig": {"Binds": [other]}}, limits)


def test_ports_are_chosen_free_on_both_sides() -> None:
    with listening(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match="is free"):
            _choose(Binding(80, port, port), set())
        found = _choose(Binding(80, port, port + 3), {port + 1}).first
        assert port + 1 < found <= port + 3 or found == 0
    inside: set[Any] = set()
    several = {_choose(Binding(80), inside).first for _ in range(20)}
    assert len(several) == 20 == len(inside), "none is given twice"


class Way:
    """A connection that leads in, as far as this test goes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.was_cut = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def cut(self) -> None:
        self.was_cut.set()


@contextmanager
def forward(serve: Callable[[socket.socket], object], places: int = 9) -> Iterator[tuple[Forward, int, list[Way]]]:
    """A port that leads to `serve`."""
    ways: list[Way] = []

    def dial() -> Any:
        near, far = socket.socketpair()
        threading.Thread(target=serve, args=(far,), daemon=True).start()
        ways.append(Way(near))
        return ways[-1]

    with listening(0) as sock:
        port = int(sock.getsockname()[1])
    opened = Forward(port, dial, threading.BoundedSemaphore(places), lambda: None)
    try:
        yield opened, port, ways
    finally:
        opened.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection((LOOPBACK, port), timeout=10)


def all_of(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def test_bytes_go_both_ways_and_so_do_ends() -> None:
    def serve(far: socket.socket) -> None:
        said = all_of(far)  # to its end, which comes through
        far.sendall(said[::-1])
        far.close()

    said = bytes(range(256)) * 20_000
    with forward(serve) as (_, port, ways), connect(port) as client:
        sending = threading.Thread(target=lambda: (client.sendall(said), client.shutdown(socket.SHUT_WR)))
        sending.start()
        assert all_of(client) == said[::-1]
        sending.join()
        assert not ways[0].was_cut.wait(0.1)


@pytest.mark.parametrize("how", ["client", "port"])
def test_a_service_that_does_not_look_is_cut_off(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "_GRACE", 0.2)
    seen = threading.Event()

    def serve(far: socket.socket) -> None:
        if far.recv(1):
            seen.set()
        threading.Event().wait(20)

    with forward(serve) as (opened, port, ways):
        client = connect(port)
        client.sendall(b"x")
        assert seen.wait(10) and not ways[0].was_cut.is_set()
        if how == "client":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        else:
            opened.close()
        assert ways[0].was_cut.wait(10)


def test_where_nothing_listens_the_client_is_hung_up_on() -> None:
    def dial() -> Any:
        raise EngineUnreachable("nobody", "Start it.")

    with listening(0) as sock:
        port = int(sock.getsockname()[1])
    places = threading.BoundedSemaphore(1)
    opened = Forward(port, dial, places, lambda: None)
    for _ in range(3):  # and what it took is given back
        with pytest.raises(ConnectionResetError), connect(port) as client:
            client.recv(1)
    opened.close()
    opened.close()
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def test_there_is_a_limit_to_connections() -> None:
    with forward(lambda far: threading.Event().wait(20), places=1) as (opened, port, ways), connect(port) as held:
        held.sendall(b"x")
        while not ways:
            pass
        with pytest.raises(ConnectionResetError), connect(port) as more:
            more.recv(1)
        opened.close()
        held.settimeout(10)
        with pytest.raises(ConnectionResetError):
            if held.recv(1) == b"":
                raise ConnectionResetError


def test_a_port_that_is_taken_is_not_had() -> None:
    with listening(0) as taken, pytest.raises(OSError, match="in use"):
        Forward(int(taken.getsockname()[1]), lambda: None, threading.BoundedSemaphore(1), lambda: None)  # type: ignore[arg-type, return-value]
