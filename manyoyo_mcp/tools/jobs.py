"""job_status, job_cancel, read_log."""

import re
from typing import Any

from pydantic import BaseModel, Field

from manyoyo_mcp.engines.base import Built, Ended
from manyoyo_mcp.errors import Reason
from manyoyo_mcp.sessions.jobs import Job
from manyoyo_mcp.text import fence, sanitise, shorten
from manyoyo_mcp.tools import build, run
from manyoyo_mcp.tools.base import Call, ToolInput, ToolOutput, tool
from manyoyo_mcp.tools.common import Text, follow, log_uri
from manyoyo_mcp.workers import in_thread

_NEW_BYTES = 64 << 10


class StatusInput(ToolInput):
    job_id: Text | None = Field(None, description="The job; without it all jobs are listed.")
    wait_s: float = Field(20, ge=0, le=3600, description="Wait so long for it to end.")
    cursor: int = Field(0, ge=0, description="Only output after this one, from the last answer.")
    max_tokens: int | None = Field(None, ge=200, le=50000, description="Longest result; default 2000.")


class JobRow(BaseModel):
    job_id: str
    kind: str
    state: str
    seconds: float
    title: str
    reason: Reason | None = Field(None, description="Why it ended so.")


class StatusOutput(ToolOutput):
    jobs: list[JobRow]
    progress: str | None = None
    output: str | None = Field(None, description="What is new since the cursor, untrusted, fenced.")
    omitted_bytes: int = 0
    cursor: int | None = None
    result: dict[str, Any] | None = Field(
        None, description="The result as nested_build or nested_run gives it, once it has ended."
    )
    log: str | None = None
    result_words: str | None = Field(None, exclude=True)

    def words(self) -> str:
        lines = [
            f"{row.job_id}: {row.state}{f' ({row.reason})' if row.reason else ''}, {row.seconds:.1f} s, {row.title}"
            for row in self.jobs
        ] or ["No jobs yet."]
        lines += [part for part in (self.progress, self.output) if part]
        lines += [self.result_words] if self.result_words else []
        if self.cursor is not None and self.result is None:
            lines.append(f"cursor={self.cursor}")
        return "\n".join(lines)

    def links(self) -> list[tuple[str, str]]:
        return [(self.log, f"log of {self.jobs[0].job_id}")] if self.log else []


def _row(job: Job) -> JobRow:
    reason = job.result.reason if isinstance(job.result, Ended | Built) else None
    return JobRow(job_id=job.job_id, kind=job.kind, state=job.state, seconds=job.seconds, title=sanitise(job.title),
                  reason=reason)  # fmt: skip


@tool(
    "job_status",
    "Wait for a job",
    """
How a build, run or exec that goes on as a job is doing. Waits up to wait_s seconds for its end and returns only what it wrote since cursor; once it has
ended, its result as the tool that began it would have given it. Without job_id: the session's jobs. To page through a whole log use read_log.
""",
    StatusInput,
    StatusOutput,
    read_only=True,
    idempotent=True,
)
async def job_status(call: Call, arguments: StatusInput) -> ToolOutput:
    jobs = call.manager.jobs
    if arguments.job_id is None:
        return StatusOutput(jobs=[_row(job) for job in jobs.newest(20)])
    job = jobs.get(arguments.job_id)
    if job.state == "running":
        await follow(call, job, arguments.wait_s, cancel=False)
    tokens = arguments.max_tokens or call.manager.settings.result_tokens
    if job.state != "running":
        result = build.describe(job, tokens - 150) if job.kind == "build" else run.describe(job, tokens - 150)
        data = result.data()
        return StatusOutput(
            jobs=[_row(job)], result=data, cursor=job.log.size, log=log_uri(job.job_id), result_words=result.words()
        )
    size = job.log.size
    start = max(min(arguments.cursor, size), size - _NEW_BYTES)
    page = job.log.read(start, size - start)
    text, omitted = shorten(sanitise(page.data), tokens - 250)
    return StatusOutput(
        jobs=[_row(job)],
        progress=sanitise(job.progress[2]) or None,
        output=fence(text, job.job_id),
        omitted_bytes=omitted + start - min(arguments.cursor, size),
        cursor=size,
        log=log_uri(job.job_id),
    )


class CancelInput(ToolInput):
    job_id: Text = Field(description="The job to end.")


class CancelOutput(ToolOutput):
    job_id: str
    state: str
    was_running: bool

    def words(self) -> str:
        return f"{self.job_id}: {self.state}" + ("; what ran inside was killed." if self.was_running else " already.")


@tool(
    "job_cancel",
    "Cancel a job",
    """
End a build, run or exec that goes on as a job; the processes inside are killed within two seconds. No error where it has ended already. For a detached
container use nested_stop.
""",
    CancelInput,
    CancelOutput,
    destructive=True,
    idempotent=True,
)
async def job_cancel(call: Call, arguments: CancelInput) -> ToolOutput:
    job = call.manager.jobs.get(arguments.job_id)
    was_running = job.state == "running"
    if was_running:
        await job.cancel()
    return CancelOutput(job_id=job.job_id, state=job.state, was_running=was_running)


class ReadInput(ToolInput):
    job_id: Text = Field(description="The job whose log to read.")
    offset: int = Field(0, description="Byte to begin at; negative: from the end.")
    max_tokens: int | None = Field(None, ge=200, le=50000, description="Longest result; default 2000.")
    grep: Text | None = Field(
        None, max_length=200, description="Only lines that contain this text (any case), with their line numbers."
    )


class ReadOutput(ToolOutput):
    job_id: str
    offset: int
    next_offset: int
    size: int
    end: bool
    dropped_bytes: int = Field(0, description="Bytes that were too many to keep, just before offset.")
    matches: int | None = None
    output: str

    def words(self) -> str:
        if self.matches is not None:
            return f"{self.matches} matching lines in {self.size:,} bytes.\n{self.output}"
        more = "the end" if self.end else f"continue with offset={self.next_offset}"
        dropped = f"({self.dropped_bytes:,} bytes before this were too many to keep.)\n" if self.dropped_bytes else ""
        return f"{dropped}{self.output}\nBytes {self.offset:,} to {self.next_offset:,} of {self.size:,}; {more}."


@tool(
    "read_log",
    "Read a job's whole log",
    """
Page through the whole output of a nested_build, nested_run or nested_exec by its job_id: from a byte offset (next_offset continues), or only the lines
that contain grep. For the output of a detached container use nested_logs; to wait for a job, job_status.
""",
    ReadInput,
    ReadOutput,
    read_only=True,
    idempotent=True,
)
async def read_log(call: Call, arguments: ReadInput) -> ToolOutput:
    job = call.manager.jobs.get(arguments.job_id)
    tokens = (arguments.max_tokens or call.manager.settings.result_tokens) - 150
    if arguments.grep is not None:
        return await in_thread(_grep, job, arguments.grep, tokens)
    page = job.log.read(arguments.offset, tokens * 4)
    length = len(page.data)
    text = sanitise(page.data)
    while length > 64:
        if not shorten(text, tokens)[1]:
            break
        length = length * 3 // 4
        text = sanitise(page.data[:length])
    following = page.offset + length
    return ReadOutput(
        job_id=job.job_id,
        offset=page.offset,
        next_offset=following,
        size=page.size,
        end=following >= page.size,
        dropped_bytes=page.skipped,
        output=fence(text, job.job_id),
    )


def _grep(job: Job, text: str, tokens: int) -> ReadOutput:
    pattern = re.compile(re.escape(text.encode()), re.IGNORECASE)
    found: list[str] = []
    matches, number, offset, rest = 0, 0, 0, b""
    while True:
        page = job.log.read(offset, 1 << 20)
        *lines, rest = (rest + page.data).split(b"\n")
        for line in lines + ([rest] if page.end else []):
            number += 1
            if pattern.search(line):
                matches += 1
                if len(found) < 2000:
                    found.append(f"{number}: {sanitise(line)[:400]}")
        offset = page.next_offset
        if page.end or not page.data:
            break
    output, _ = shorten("\n".join(found), tokens)
    return ReadOutput(job_id=job.job_id, offset=0, next_offset=offset, size=job.log.size, end=True, matches=matches,
                      output=fence(output, job.job_id))  # fmt: skip


TOOLS = [job_status, job_cancel, read_log]
