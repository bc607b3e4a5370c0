"""Answers as HTTP has them, read by the client below docker-py."""

import http.client
import http.server
import io
import socket
import threading
from typing import Any

import pytest

from manyoyo_mcp.dialled import DialledClient, _Response, _written


class _Raw(io.RawIOBase):
    """Hands out `at_once` bytes at a time."""

    at_once = 1 << 16

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece, self._data = self._data[: min(len(buffer), self.at_once)], self._data[min(len(buffer), self.at_once) :]
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.fixture(autouse=True, params=[1, 7, 1 << 16])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Raw, "at_once", request.param)


class _Sent:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> Any:
        return io.BufferedReader(_Raw(self._data))


def answer(data: bytes, method: str = "GET") -> http.client.HTTPResponse:
    response: Any = _Response(_Sent(data), method=method)  # type: ignore[arg-type]
    response.begin()
    return response  # type: ignore[no-any-return]


def test_an_answer_of_a_length() -> None:
    read = answer(b"HTTP/1.1 201 Created\r\ncontent-type:application/json\r\nContent-Length: 2 \r\n\r\n{}rest")
    assert (read.status, read.reason, read.headers["Content-Type"]) == (201, "Created", "application/json")
    assert not read.will_close and read.read() == b"{}"


def test_pieces() -> None:
    read = answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert not read.will_close and read.read() == b"abcde"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"101 UPGRADED"])
def test_no_body(status: bytes) -> None:
    read = answer(b"HTTP/1.1 " + status + b"\r\nUpgrade: tcp\r\n\r\nwhat follows is no answer")
    assert not read.will_close and read.read() == b""


def test_no_body_where_only_headers_were_asked_for() -> None:
    read = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "HEAD")
    assert not read.will_close and read.read() == b""


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200\r\nConnection: close\r\n\r\n"])
def test_a_body_that_ends_with_the_connection(head: bytes) -> None:
    read = answer(head + b"all of it")
    assert read.will_close and read.read() == b"all of it"


def test_a_connection_that_is_closed_after_an_answer_of_a_length() -> None:
    read = answer(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx")
    assert read.will_close and read.read() == b"x"


def test_go_on_is_no_answer() -> None:
    assert answer(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 404 Not Found\r\n\r\n").status == 404


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(200)) + b"\r\n",
    ],
    ids=["nothing", "no answer", "two digits", "no number", "a long line", "many lines"],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(http.client.HTTPException):
        answer(data)


class _Service(http.server.BaseHTTPRequestHandler):
    """Says how long the body was that it got; keeps its connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = 0
        if "Content-Length" in self.headers:
            length = len(self.rfile.read(int(self.headers["Content-Length"])))
        while "Content-Length" not in self.headers and (size := int(self.rfile.readline(), 16)):
            length += len(self.rfile.read(size))
            self.rfile.readline()
        if "Content-Length" not in self.headers:
            self.rfile.readline()
        answer = f"{length} of {self.client_address[1]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words: Any) -> None:
        pass


def test_one_connection_for_bodies_of_every_kind() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = DialledClient(lambda: socket.create_connection(server.server_address), "1.41")  # type: ignore[arg-type]
        said = [
            client.request("POST", "/x", data=body).text.split(" of ")
            for body in (None, iter([b"ab", b"c"]), "text", iter([b"d"]), iter([]), b"bytes", iter([b"e"]))
        ]
        client.close()
        server.shutdown()
    assert [length for length, _ in said] == ["0", "3", "4", "1", "0", "5", "1"]
    assert len({connection for _, connection in said}) == 1


def test_a_request() -> None:
    assert _written("GET", "/v1/x?a=%20", None, {}) == (
        b"GET /v1/x?a=%20 HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: identity\r\n\r\n"
    )
    assert _written("POST", "/x", None, {}).endswith(b"\r\nContent-Length: 0\r\n\r\n")
    assert _written("DELETE", "/x", b"{}", {"A": "b"}).endswith(b"\r\nContent-Length: 2\r\nA: b\r\n\r\n{}")


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/a\nb", "/\x7f", "/\u00e9", "/a\tb"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(http.client.InvalidURL):
        _written("GET", target, None, {})


@pytest.mark.parametrize("header", [("A", "b\r\nC: d"), ("A\nB", "c"), ("A", "\n")])
def test_what_is_no_header(header: tuple[str, str]) -> None:
    with pytest.raises(http.client.InvalidURL):
        _written("GET", "/a", None, dict([header]))
