"""Ended jobs and their logs: what is kept, what is forgotten."""

from pathlib import Path

import anyio
import pytest

from manyoyo_mcp.errors import NotFound
from manyoyo_mcp.sessions.jobs import KEPT, KEPT_LOGS, Job, Jobs

pytestmark = pytest.mark.anyio

LONG = 17 << 10
"""Bytes of a log that is kept on disk."""


async def _run(jobs: Jobs, count: int, data: bytes) -> list[Job]:
    async def work(job: Job) -> None:
        job.log.write(data)

    ran = []
    for _ in range(count):
        ran.append(jobs.start("run", "sb-1", "test", work))
        await ran[-1].wait(None)
    return ran


async def test_the_oldest_are_forgotten_by_number(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        jobs = Jobs(group, tmp_path, 1 << 20)
        ran = await _run(jobs, KEPT + 5, b"x" * LONG)
    with pytest.raises(NotFound):
        jobs.get(ran[0].job_id)
    assert jobs.get(ran[-KEPT].job_id)
    assert len(list(tmp_path.iterdir())) == KEPT


async def test_the_oldest_are_forgotten_by_size(tmp_path: Path) -> None:
    async with anyio.create_task_group() as group:
        jobs = Jobs(group, tmp_path, 1000)
        ran = await _run(jobs, KEPT_LOGS + 5, b"x" * 5000)
    assert [job for job in ran if job in jobs.newest(100)] == ran[-KEPT_LOGS:]
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= KEPT_LOGS * 1000
