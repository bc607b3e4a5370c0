"""Asking a nested engine behind a guarded docker-py client, and work on it that nobody waits for."""

import http.client
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import anyio
import docker
import urllib3

from manyoyo_mcp.attached import Attached
from manyoyo_mcp.engines.base import Maintain, Sink
from manyoyo_mcp.engines.failures import Verdict, from_answer
from manyoyo_mcp.errors import (
    DiskFull,
    EngineUnreachable,
    Reason,
)
from manyoyo_mcp.policy.refusals import read_report, refusal, speaks_of_network
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.text import sanitise
from manyoyo_mcp.workers import in_thread, wait_in_thread

T = TypeVar("T")
Spawn = Callable[[str, Callable[[], Awaitable[None]]], None]
"""`spawn(name, work)`: hand over work that nobody waits for; the sandbox does before it ends."""


class Asking:
    """An engine as one asks it: each request has an end, engines' errors come out as ours."""

    name: ClassVar[str]

    def __init__(
        self, client: GuardedClient, maintain: Maintain, spawn: Spawn, execs: GuardedClient | None = None
    ) -> None:
        self._client = client
        self._execs = execs
        self._maintain = maintain
        self._spawn = spawn
        self._seen_records: dict[str, str] = {}
        self._given: set[str] = set()  # what has secrets: containers and builds
        self._pending = 0
        self._settled = anyio.Event()

    async def _ask(self, fn: Callable[[GuardedClient], T]) -> T:
        """One request with an end of its own. Engine errors come out as ours. Asked twice where the disk is full: the second
        time there is a reserve."""
        try:
            return await in_thread(self._translate, fn)
        except DiskFull:
            await self._maintain("settle-disk")
        return await in_thread(self._translate, fn)

    async def _await(self, fn: Callable[[GuardedClient], T]) -> T:
        """One request that lasts as long as what runs inside."""
        return await wait_in_thread(self._translate, fn)

    def _translate(self, fn: Callable[[GuardedClient], T], client: GuardedClient | None = None) -> T:
        try:
            return fn(client or self._client)
        except docker.errors.APIError as error:
            text = sanitise(str(error.explanation or error)).strip()
            raise from_answer(self.name, error.status_code or 500, text) from error
        except (http.client.HTTPException, urllib3.exceptions.HTTPError, OSError) as error:
            raise EngineUnreachable(
                f"The sandbox's {self.name} engine does not answer: {error}",
                "It is started again by itself; try once more. If it stays away, sandbox_status says why.",
            ) from error

    async def _inspect(self, container: str) -> Any:
        return await self._ask(lambda client: client.inspect_container(container))

    def _converse(self, attached: Attached, stdin: bytes | None, sink: Sink, then: Callable[[GuardedClient], T]) -> T:
        """In a thread: feed and read until the output ends, `then` ask for the rest."""
        if stdin is not None:  # closing `attached` ends that thread
            threading.Thread(target=attached.feed, args=(stdin,), daemon=True).start()
        attached.pump(sink)  # not asking: an OSError here is the sink's
        return self._translate(then)

    async def ping(self) -> None:
        await self._ask(lambda client: client.ping())

    async def _record(self, cgroup: str) -> str:
        return str((await self._maintain("kernel-record", cgroup)).output)

    async def _new_record(self, cgroup: str) -> str:
        """The kernel's record, but for what was evidence of something before."""
        seen = self._seen_records.get(cgroup, "")
        return "\n".join(line for line in (await self._record(cgroup)).splitlines() if line not in seen)

    async def _refused(self, seconds: float, output_end: bytes) -> str:
        """What the sandbox's network policy refused in the last `seconds`, with what to do; nothing where the output's end does not
        speak of the network."""
        if not speaks_of_network(output_end):
            return ""
        return refusal(read_report(str((await self._maintain("egress-report")).output)), seconds)

    async def _with_refusals(self, told: Verdict, seconds: float, output_end: bytes) -> Verdict:
        """The same, with what was refused beside, where that may be why a command failed."""
        refused = await self._refused(seconds, output_end) if told.reason is Reason.EXIT_NONZERO else ""
        return replace(told, hint=refused, evidence="the record of the network policy") if refused else told

    def _later(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._pending += 1

        async def run() -> None:
            try:
                await work()
            finally:
                self._pending -= 1
                if self._pending == 0:
                    self._settled.set()
                    self._settled = anyio.Event()

        self._spawn(name, run)

    def close(self) -> None:
        self._client.close()
        if self._execs is not None:
            self._execs.close()

    async def settle(self) -> None:
        while self._pending:
            await self._settled.wait()
