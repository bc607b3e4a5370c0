"""The smoke of the contract suite on a cgroup v2 machine: in qemu, on plain runc, with a kernel of its own."""

import subprocess
from pathlib import Path

import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer
from tests.conftest import ROOT


@pytest.mark.timeout(1900)
def test_smoke_on_cgroup_v2(tmp_path: Path) -> None:
    tar = tmp_path / "sandbox.tar"
    host = docker.from_env()
    with tar.open("wb") as file:
        for chunk in host.api.get_image(outer.reference(Settings())):
            file.write(chunk)
    host.close()
    command = [ROOT / "scripts" / "cgroup2", "--image", tar, "--timeout", "1500", "--smoke"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout[-4000:] + completed.stderr[-4000:]
    assert " passed" in completed.stdout and "skipped" not in completed.stdout
