"""The TypeScript SDKs, which most clients are built on: both hold results against the output schemas."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.clients.harness import BIN, MODULES, SERVER, TOOLS, Footprint, environment, run
from tests.support import BUSYBOX

HERE = Path(__file__).parent


@pytest.mark.parametrize(("script", "version"), [("sdk_v1.mjs", "2025-11-25"), ("sdk_v2.mjs", "2026-07-28")])
def test_job(tmp_path: Path, project: Path, footprint: Footprint, script: str, version: str) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("sdk_job.mjs", script):
        shutil.copy(HERE / name, scripts)
    (scripts / "node_modules").symlink_to(MODULES)  # node looks for packages beside the script
    done = run(BIN / "node", scripts / script, cwd=project, env=environment(tmp_path, SERVER=SERVER, IMAGE=BUSYBOX))
    assert done.stderr.strip() == "", "the server wrote to stderr"
    seen = json.loads(done.stdout)
    footprint.sandboxes.add(seen["built"]["structuredContent"]["sandbox_id"])

    assert seen["protocolVersion"] == version
    assert set(seen["names"]) == TOOLS
    assert seen["before"]["structuredContent"]["sandboxes"] == []
    assert seen["built"]["structuredContent"]["reason"] == "OK"
    # The first steps take no time, and of several that came at once the last is told.
    assert any(re.match(r"step \d/4: ", tick["message"]) for tick in seen["steps"]), seen["steps"]
    numbers = [tick["progress"] for tick in seen["steps"]]
    assert numbers == sorted(set(numbers)), "progress must rise"

    ran = seen["ran"]["structuredContent"]
    assert (ran["reason"], ran["exit_code"]) == ("OK", 0) and "\nslept\n" in ran["output"]
    assert seen["ticks"], "a run of three seconds reported no progress"
    links = [part["uri"] for part in seen["ran"]["content"] if part["type"] == "resource_link"]
    assert links == [f"manyoyo://jobs/{ran['job_id']}/log"]

    assert seen["refused"]["isError"] is True
    assert seen["refused"]["content"][0]["text"].startswith("INVALID_ARGUMENT: memory: ")
    assert seen["refused"]["_meta"]["org.manyoyo/error"]["code"] == "INVALID_ARGUMENT"
    assert seen["cleaned"]["structuredContent"]["removed"] == list(footprint.sandboxes)
    footprint.gone()
