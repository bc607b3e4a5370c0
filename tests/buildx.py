"""Docker's buildx, as Debian has it: `python -m tests.buildx` fetches it into the cache, where it is not there yet."""

import os
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from manyoyo_mcp.image import debian


def program() -> Path:
    """The plugin of docker's command line."""
    cache = Path(
        os.environ.get("MANYOYO_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "manyoyo-mcp"
    )
    found = cache / "docker-buildx"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "docker-buildx.lock"):
        if not found.exists():
            _fetch(found)
    return found


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        directory = Path(scratch)
        for each in ("state/lists/partial", "cache/archives/partial", "parts"):
            (directory / each).mkdir(parents=True)
        (directory / "sources.list").write_text("".join(f"{line}\n" for line in debian.sources()[:1]))
        options = {
            "Dir::Etc::SourceList": directory / "sources.list", "Dir::Etc::SourceParts": directory / "parts",
            "Dir::State": directory / "state", "Dir::Cache": directory / "cache", "Dir::State::status": "/dev/null",
            "Acquire::Languages": "none", "APT::Sandbox::User": "root",
        }  # fmt: skip
        apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        for words in (["update"], ["download", "docker-buildx"]):
            subprocess.run([*apt, *words], cwd=directory, check=True, capture_output=True, text=True)
        (package,) = directory.glob("docker-buildx*.deb")
        subprocess.run(["dpkg", "-x", package, directory / "package"], check=True)
        (plugin,) = directory.glob("package/usr/**/cli-plugins/docker-buildx")
        plugin.replace(target)


def environment(docker_host: str, home: Path) -> dict[str, str]:
    """Docker's command line at that address, with buildx and a home of its own."""
    plugins = home / ".docker" / "cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    (plugins / "docker-buildx").unlink(missing_ok=True)
    (plugins / "docker-buildx").symlink_to(program())
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "DOCKER_CONFIG": str(home / ".docker"), "DOCKER_HOST": docker_host,
        "TERM": "dumb", "BUILDKIT_PROGRESS": "plain",
    }  # fmt: skip


if __name__ == "__main__":
    print(program())
