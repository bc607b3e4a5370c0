"""Lines in and out without threads."""

import os
from collections.abc import Iterator

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification

from manyoyo_mcp import stdio
from manyoyo_mcp.stdio import Answers, Input, Output, Requests

pytestmark = pytest.mark.anyio


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test closed it


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\ntw", b"o\n\nlast"], ["one", "two", "", "last"]),
        (["\u00fc".encode()[:1], "\u00fc".encode()[1:] + b"\n"], ["\u00fc"]),
        ([b"\xff\n"], ["\ufffd"]),
        ([], []),
    ],
)
async def test_lines(pipe: tuple[int, int], pieces: list[bytes], lines: list[str]) -> None:
    reading, writing = pipe

    async def write() -> None:
        for piece in pieces:
            os.write(writing, piece)
            await anyio.sleep(0.01)
        os.close(writing)

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        assert [line async for line in Input(reading)] == lines


async def test_a_reader_that_is_slow_holds_up_its_answer_alone(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    text = "x" * 300_000
    got = bytearray()
    others = 0

    async def other() -> None:
        nonlocal others
        while len(got) < len(text):
            others += 1
            await anyio.sleep(0.001)

    async def read() -> None:
        while len(got) < len(text):
            await anyio.sleep(0.01)
            got.extend(os.read(reading, 1 << 16))

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        group.start_soon(read)
        await Output(writing, anyio.Event()).write(text)
    assert got.decode() == text and others > 5


async def test_nobody_reads_any_more(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    output = Output(writing, anyio.Event())
    await output.write("lost\n")


async def test_a_line_without_an_end_is_the_last(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "_LONGEST", 1000)
    reading, writing = pipe
    os.write(writing, b"short\n" + b"x" * 2000)
    incoming = Input(reading)
    with anyio.fail_after(5):
        assert len([line async for line in incoming]) <= 1
    assert incoming.over.is_set()


async def test_who_has_gone_without_reading_is_not_waited_for(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "_UNREAD", 0.1)
    _, writing = pipe
    over = anyio.Event()
    output = Output(writing, over)
    with anyio.move_on_after(0.5) as limit:
        await output.write("x" * 300_000)
    assert limit.cancelled_caught, "its client may only be slow"
    over.set()
    with anyio.fail_after(5):
        for _ in range(100):
            await output.write("x" * 300_000)


async def test_what_is_no_message_is_an_error_and_not_the_end(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b'{"jsonrpc": "2.0", "method": "one"}\nno json\n{"jsonrpc": "2.0", "id": 2, "method": "two"}\n')
    os.close(writing)
    async with Requests(Input(reading)) as requests:
        first, second, third = [each async for each in requests]
        with pytest.raises(anyio.EndOfStream):
            await requests.receive()
    assert isinstance(first, SessionMessage) and first.message.method == "one"  # type: ignore[union-attr]
    assert isinstance(second, ValueError)
    assert isinstance(third, SessionMessage) and third.message.method == "two"  # type: ignore[union-attr]


async def test_answers_stay_whole_whoever_is_cancelled(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    answers = Answers(Output(writing, anyio.Event()))
    long = "x" * 150_000
    got = bytearray()

    async def send(method: str) -> None:
        await answers.send(SessionMessage(JSONRPCNotification(jsonrpc="2.0", method=method)))

    async def read() -> None:
        await anyio.wait_readable(reading)
        while data := os.read(reading, 1 << 16):
            got.extend(data)
            await anyio.wait_readable(reading)

    async with anyio.create_task_group() as group:
        async with anyio.create_task_group() as senders:
            senders.start_soon(send, long)
            await anyio.sleep(0.05)  # it fills the pipe; the other waits for it
            senders.start_soon(send, "not begun")
            await anyio.sleep(0.01)
            group.start_soon(read)
            senders.cancel_scope.cancel()
        await send("next")
        os.close(writing)
    told = [stdio.jsonrpc_message_adapter.validate_json(line) for line in got.splitlines()]
    assert [each.method for each in told] == [long, "next"]  # type: ignore[union-attr]
    await answers.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await send("late")
