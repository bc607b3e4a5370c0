"""A client that takes its answer slowly has it; one that does not take it is not waited for."""

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from manyoyo_mcp.http import protocol
from manyoyo_mcp.http.door import PIECE, _in_pieces
from manyoyo_mcp.http.protocol import Protocol

pytestmark = pytest.mark.anyio
WHOLE = 48 << 20
"""Bytes: more than the kernel keeps for both ends."""


@asynccontextmanager
async def _served(ended: list[float]) -> AsyncIterator[int]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await _in_pieces({"type": "http.response.body", "body": b"a" * WHOLE}, send)
        ended.append(time.monotonic())

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=Protocol, lifespan="off", log_level="warning"))
        async with anyio.create_task_group() as group:
            group.start_soon(server._serve, [listening])
            while not server.started:
                await anyio.sleep(0.01)
            yield listening.getsockname()[1]
            server.should_exit = True


async def _take(port: int, pauses: Iterator[float]) -> int:
    """What is had of the answer by who waits so long after each piece."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    taken = 0
    try:
        while got := await reader.read(1 << 20):
            taken += len(got)
            await anyio.sleep(next(pauses))
    except ConnectionError:
        pass
    finally:
        writer.close()
    return taken


async def test_who_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ANSWER_S", 3.0)
    monkeypatch.setattr(protocol, "_LOOK_S", 0.1)
    ended: list[float] = []
    async with _served(ended) as port:
        begun = time.monotonic()
        slow: list[int] = []

        async def take() -> None:
            slow.append(await _take(port, itertools.repeat(0.01)))

        async with anyio.create_task_group() as group:
            group.start_soon(take)
            assert await _take(port, itertools.chain([10.0], itertools.repeat(0.0))) < WHOLE
        assert slow[0] > WHOLE and max(ended) - begun > 3.0


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 7])
async def test_pieces_are_the_whole(size: int) -> None:
    sent: list[dict[str, object]] = []

    async def send(message: object) -> None:
        sent.append(dict(message))  # type: ignore[call-overload]

    body = bytes(range(256)) * (size // 256 + 1)
    await _in_pieces({"type": "http.response.body", "body": body[:size], "more_body": False}, send)
    assert b"".join(each["body"] for each in sent) == body[:size]  # type: ignore[misc]
    assert [each["more_body"] for each in sent] == [True] * (len(sent) - 1) + [False]
    assert all(len(each["body"]) <= PIECE for each in sent)  # type: ignore[arg-type]
