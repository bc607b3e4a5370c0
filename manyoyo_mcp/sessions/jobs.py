"""Builds, runs and execs as jobs: they go on when the call that began them has returned, until they end or are cancelled."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup

from manyoyo_mcp.errors import ManyoyoError, NotFound, RequestError
from manyoyo_mcp.sessions.logs import Log
from manyoyo_mcp.workers import in_thread

_log = logging.getLogger(__name__)

Kind = Literal["build", "run", "exec"]
JobState = Literal["running", "finished", "cancelled", "failed"]

KEPT = 200
"""How many ended jobs are remembered, with their logs."""
MOST_RUNNING = 100
"""Jobs of a session that run at once; each waits in a thread or two."""
KEPT_LOGS = 4
"""Ended jobs' logs together take at most so many times what one may; the oldest jobs are forgotten then."""
_RESULT_FIRST = 0.005
"""Seconds after which an ended job is tidied up behind: its result is with the caller by then."""


@dataclass(slots=True)
class Job:
    """One build, run or exec. `result` is what the work returned, `error` what it raised; `progress` is (done, total, words). `outlives`:
    the call on record that began it and has returned before its end."""

    job_id: str
    kind: Kind
    sandbox_id: str
    title: str
    log: Log
    started: float = field(default_factory=time.time)
    ended: float | None = None
    state: JobState = "running"
    result: Any = None
    error: ManyoyoError | None = None
    progress: tuple[float, float | None, str] = (0, None, "")
    outlives: str = ""
    _done: anyio.Event = field(default_factory=anyio.Event)
    _changed: anyio.Event = field(default_factory=anyio.Event)
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def seconds(self) -> float:
        return round((self.ended or time.time()) - self.started, 2)

    @property
    def over(self) -> bool:
        return self._done.is_set()

    def report(self, done: float, total: float | None, words: str) -> None:
        """Note progress; from the event loop."""
        self.progress = (done, total, words)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self, seconds: float | None) -> bool:
        """Whether the job ended within that time."""
        with anyio.move_on_after(seconds):
            await self._done.wait()
        return self._done.is_set()

    async def wait_change(self, seconds: float) -> None:
        """Until progress is reported, the job ends, or the time is over."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()

    async def cancel(self) -> None:
        """End it, and with it what runs inside; returns when it has ended."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True), anyio.move_on_after(10):
            await self._done.wait()


class Jobs:
    """The jobs of one session. They run in its task group. `over` is told of the end of those that outlive their call."""

    def __init__(
        self,
        group: TaskGroup,
        directory: Path,
        log_max_bytes: int,
        over: Callable[[Job], Awaitable[None]] | None = None,
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._group = group
        self._directory = directory
        self._log_max_bytes = log_max_bytes
        self._over = over
        self._jobs: dict[str, Job] = {}

    def start(self, kind: Kind, sandbox_id: str, title: str, work: Callable[[Job], Awaitable[Any]]) -> Job:
        """Begin `work(job)`; its result or ManyoyoError is kept in the job. Raises RequestError (TOO_MANY_JOBS)."""
        if len(self.running()) >= MOST_RUNNING:
            raise RequestError(
                f"{MOST_RUNNING} jobs of this session run already.",
                "job_status lists them, job_cancel ends one; or wait for one's end.",
                code="TOO_MANY_JOBS",
            )
        job_id = f"{kind}-{secrets.token_hex(4)}"
        job = Job(job_id, kind, sandbox_id, title, Log(self._directory / job_id, self._log_max_bytes))
        self._jobs[job_id] = job
        self._group.start_soon(self._run, job, work, name=job_id)
        return job

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[Any]]) -> None:
        try:
            with job._scope:
                job.result = await work(job)
                job.state = "finished"
            if job._scope.cancelled_caught:
                job.state = "cancelled"
        except ManyoyoError as error:
            job.error, job.state = error, "failed"
        except Exception as error:  # one job's end is not the session's
            _log.exception("%s failed", job.job_id)
            words = f"The server failed in {job.job_id}: {type(error).__name__}: {error}"
            job.error, job.state = ManyoyoError(words, "Try once more; if it fails again, report it."), "failed"
        finally:
            if job.state == "running":
                job.state = "cancelled"
            job.ended = time.time()
            job.log.close()
            job._done.set()
            job._changed.set()
        await self._tell(job)
        await anyio.sleep(_RESULT_FIRST)
        await self._forget_oldest()

    async def outlive(self, job: Job, call: str) -> None:
        """The call that began it returns now."""
        job.outlives = call
        if job.over:  # since a moment ago
            await self._tell(job)

    async def _tell(self, job: Job) -> None:
        if job.outlives and self._over is not None:
            await self._over(job)

    async def _forget_oldest(self) -> None:
        ended = [job for job in self._jobs.values() if job.state != "running"]
        kept = sum(job.log.kept for job in ended)
        while len(ended) > KEPT or kept > KEPT_LOGS * self._log_max_bytes:
            job = ended.pop(0)
            kept -= job.log.kept
            if self._jobs.pop(job.job_id, None) is not None:  # else another that ended was here meanwhile
                await in_thread(job.log.remove)

    def get(self, job_id: str) -> Job:
        """Raises NotFound, naming the newest jobs."""
        job = self._jobs.get(job_id)
        if job is None:
            newest = ", ".join(list(self._jobs)[-5:]) or "none yet"
            raise NotFound(
                f"There is no job {job_id[:40]!r} in this session.", f"The newest: {newest}.", code="JOB_NOT_FOUND"
            )
        return job

    def of(self, sandbox_id: str) -> list[Job]:
        return [job for job in self._jobs.values() if job.sandbox_id == sandbox_id]

    def newest(self, count: int) -> list[Job]:
        return list(self._jobs.values())[-count:]

    def running(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "running"]
