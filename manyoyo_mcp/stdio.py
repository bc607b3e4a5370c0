"""MCP over standard input and output without a change of threads for every line, nor of tasks, which take as long as a small
call's own work. Where these are no pipes or sockets, the SDK's own way does."""

import fcntl
import os
import select
import stat
from os import read, write  # by names of this module's, which the bench replaces by ones that take the time
from types import TracebackType
from typing import Any, Self

import anyio
from mcp.server import MCPServer
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

_LONGEST = 256 << 20
"""Bytes of a line, which is one message; nobody has a reason for more, and it is held in memory."""
_UNREAD = 5.0
"""Seconds that answers wait for a client that has closed its side and does not read them."""
_PIECE = select.PIPE_BUF
"""Bytes that can be written at once, without waiting, where poll(2) says that something can."""


class Input:
    """The lines of a descriptor that can be polled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._begun: list[bytes] = []
        self._length = 0
        self.over = anyio.Event()

    def __aiter__(self) -> "Input":
        return self

    async def __anext__(self) -> str:
        while not self._lines:
            await anyio.wait_readable(self._descriptor)
            try:
                data = read(self._descriptor, 1 << 16)
            except ConnectionResetError:  # a socket whose other side died with answers unread
                data = b""
            self._length += len(data)
            if (not data and not self._begun) or self._length > _LONGEST:
                self.over.set()
                raise StopAsyncIteration
            first, *others = (
                data.split(b"\n") if data else (b"", b"")
            )  # at the end the last line needs no end of its own
            self._begun.append(first)
            if others:
                self._lines = [*reversed(others[:-1]), b"".join(self._begun)]
                self._begun = [others[-1]] if others[-1] else []
                self._length = len(others[-1])
        return self._lines.pop().decode(errors="replace")


class Output:
    """Writes to a descriptor that can be polled. Once nobody reads there, what is written is lost: the input ends too then, `over`
    says so."""

    def __init__(self, descriptor: int, over: anyio.Event) -> None:
        self._descriptor = descriptor
        self._over = over
        self._gone = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    async def write(self, text: str) -> None:
        left = memoryview(text.encode())
        while left and not self._gone:
            if not self._poll.poll(0):
                with anyio.move_on_after(_UNREAD) as limit:
                    await anyio.wait_writable(self._descriptor)
                self._gone = limit.cancelled_caught and self._over.is_set()
                continue
            try:
                left = left[write(self._descriptor, left[:_PIECE]) :]
            except (BrokenPipeError, ConnectionResetError):
                return


class _Ended:
    """A stream's end, as the SDK has it."""

    ended = False

    async def aclose(self) -> None:
        self.ended = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Requests(_Ended):
    """What comes in, as messages: the SDK's `ReadStream`. What is no message comes as the error that says so."""

    def __init__(self, lines: Input) -> None:
        self._lines = lines

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        line = await anext(self._lines)
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError as error:
            return error

    async def receive(self) -> SessionMessage | Exception:
        """The next one. Raises anyio.EndOfStream."""
        try:
            return await anext(self)
        except StopAsyncIteration:
            raise anyio.EndOfStream from None


class Answers(_Ended):
    """What goes out: the SDK's `WriteStream`. One goes after the other and as a whole, whoever is cancelled meanwhile."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._one = anyio.Lock(fast_acquire=True)

    async def send(self, item: SessionMessage, /) -> None:
        """Raises anyio.ClosedResourceError."""
        if self.ended:
            raise anyio.ClosedResourceError
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True) + "\n"
        async with self._one:
            with anyio.CancelScope(shield=True):
                await self._output.write(line)


async def run(server: MCPServer[Any]) -> None:
    """Serve until the input ends."""
    if not all(stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) for mode in (os.fstat(0).st_mode, os.fstat(1).st_mode)):
        await server.run_stdio_async()
        return
    with open(os.devnull, "rb") as nothing:  # noqa: ASYNC230, PTH123 - once, at the start
        incoming = Input(_taken(0, nothing.fileno()))
        outgoing = Output(_taken(1, 2), incoming.over)
    lowlevel = server._lowlevel_server  # as its run_stdio_async does; there is no other way to it
    await lowlevel.run(Requests(incoming), Answers(outgoing), lowlevel.create_initialization_options())


def _taken(descriptor: int, instead: int) -> int:
    """A standard descriptor for ourselves alone: what children and stray prints use is `instead`."""
    own = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.dup2(instead, descriptor)
    return own
