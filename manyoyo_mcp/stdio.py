"""MCP over standard input and output without a change of threads for every line, which takes as long as a small call's own
work. Where these are no pipes or sockets, the SDK's own way does."""

import fcntl
import os
import select
import stat
from os import read, write  # by names of this module's, which the bench replaces by ones that take the time
from typing import Any, cast

import anyio
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server

_PIECE = select.PIPE_BUF
"""Bytes that can be written at once, without waiting, where poll(2) says that something can."""


class Input:
    """The lines of a descriptor that can be polled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._begun: list[bytes] = []

    def __aiter__(self) -> "Input":
        return self

    async def __anext__(self) -> str:
        while not self._lines:
            await anyio.wait_readable(self._descriptor)
            try:
                data = read(self._descriptor, 1 << 16)
            except ConnectionResetError:  # a socket whose other side died with answers unread
                data = b""
            if not data and not self._begun:
                raise StopAsyncIteration
            first, *others = (
                data.split(b"\n") if data else (b"", b"")
            )  # at the end the last line needs no end of its own
            self._begun.append(first)
            if others:
                self._lines = [*reversed(others[:-1]), b"".join(self._begun)]
                self._begun = [others[-1]] if others[-1] else []
        return self._lines.pop().decode(errors="replace")


class Output:
    """Writes to a descriptor that can be polled. Once nobody reads there, what is written is lost: the input ends too then."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    async def write(self, text: str) -> None:
        left = memoryview(text.encode())
        while left:
            if not self._poll.poll(0):
                await anyio.wait_writable(self._descriptor)
            try:
                left = left[write(self._descriptor, left[:_PIECE]) :]
            except (BrokenPipeError, ConnectionResetError):
                return

    async def flush(self) -> None:
        """There is nothing to flush."""


async def run(server: MCPServer[Any]) -> None:
    """Serve until the input ends."""
    if not all(stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) for mode in (os.fstat(0).st_mode, os.fstat(1).st_mode)):
        await server.run_stdio_async()
        return
    with open(os.devnull, "rb") as nothing:  # noqa: ASYNC230, PTH123 - once, at the start
        streams = cast(Any, Input(_taken(0, nothing.fileno()))), cast(Any, Output(_taken(1, 2)))
    lowlevel = server._lowlevel_server  # as its run_stdio_async does; there is no other way to it
    async with stdio_server(*streams) as (incoming, outgoing):
        await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())


def _taken(descriptor: int, instead: int) -> int:
    """A standard descriptor for ourselves alone: what children and stray prints use is `instead`."""
    own = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.dup2(instead, descriptor)
    return own
