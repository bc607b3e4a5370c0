"""The cgroup v2 guest, emulated on one processor: what runs in it takes minutes."""

import subprocess
from pathlib import Path

import docker

from manyoyo_mcp.config import Settings
from manyoyo_mcp.image import outer

_SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "cgroup2"


class Guest:
    """`scripts/cgroup2 --smoke` under way."""

    def __init__(self, directory: Path) -> None:
        tar = directory / "sandbox.tar"
        host = docker.from_env()
        with tar.open("wb") as file:
            for chunk in host.api.get_image(outer.reference(Settings())):
                file.write(chunk)
        host.close()
        self._log = directory / "guest.log"
        command = [_SCRIPT, "--image", tar, "--timeout", "1500", "--smoke"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def end(self) -> tuple[int, str]:
        """Its exit code, once it has one, and what it said."""
        return self._process.wait(), self._log.read_text(errors="replace")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
