"""One call of BuildKit's over `POST /grpc`, as a client of somebody else's making would send it: any path, any bytes."""

import time

import h2.connection
import h2.events

from manyoyo_mcp.dialled import Dial, SocketLike
from tests.escape.roads import Answer

_UPGRADE = b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
_PATIENCE = 40.0


def ask(dial: Dial, path: str, message: bytes) -> Answer:
    """What came of it, by gRPC's status; by HTTP's where the connection does not become one of gRPC."""
    sock = dial()
    try:
        sock.settimeout(_PATIENCE)
        sock.sendall(_UPGRADE)
        head = b""
        while b"\r\n\r\n" not in head and (piece := sock.recv(1 << 16)):
            head += piece
        first, _, rest = head.partition(b"\r\n\r\n")
        status = first.split(b" ")[1].decode() if first else "0"
        if status != "101":
            return Answer(False, status, head.decode(errors="replace"))
        return _called(sock, rest, path, message)
    finally:
        sock.close()


def _called(sock: SocketLike, early: bytes, path: str, message: bytes) -> Answer:
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":authority": "docker",
        ":path": path,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    connection.send_headers(1, list(headers.items()))
    connection.send_data(1, b"\0" + len(message).to_bytes(4, "big") + message, end_stream=True)
    sock.sendall(connection.data_to_send())
    said: dict[str, str] = {}
    received, data, end = b"", early, time.monotonic() + _PATIENCE
    while data or (data := sock.recv(1 << 16)):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                said |= {_text(name): _text(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                received += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        sock.sendall(connection.data_to_send())
        data = b""
        if "grpc-status" in said:
            break
        if time.monotonic() > end:
            raise TimeoutError(path)
    code = said.get("grpc-status", "?")
    words = said.get("grpc-message", "") + received.decode(errors="replace")
    return Answer(code == "0", code, words, grpc=True)


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
