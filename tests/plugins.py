"""Plugins of Docker's command line, buildx and compose, as Debian has them: `python -m tests.plugins` fetches them into the cache, where they are not
there yet."""

import os
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from manyoyo_mcp.image import debian

NAMES = ("docker-buildx", "docker-compose")


def program(name: str) -> Path:
    """A plugin of docker's command line."""
    cache = Path(
        os.environ.get("MANYOYO_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "manyoyo-mcp"
    )
    found = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
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
        for words in (["update"], ["download", target.name]):
            subprocess.run([*apt, *words], cwd=directory, check=True, capture_output=True, text=True)
        (package,) = directory.glob(f"{target.name}_*.deb")
        subprocess.run(["dpkg", "-x", package, directory / "package"], check=True)
        (plugin,) = directory.glob(f"package/usr/**/cli-plugins/{target.name}")
        plugin.replace(target)


def environment(docker_host: str, home: Path) -> dict[str, str]:
    """Docker's command line at that address, with its plugins and a home of its own."""
    plugins = home / ".docker" / "cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (plugins / name).unlink(missing_ok=True)
        (plugins / name).symlink_to(program(name))
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "DOCKER_CONFIG": str(home / ".docker"), "DOCKER_HOST": docker_host,
        "TERM": "dumb", "BUILDKIT_PROGRESS": "plain",
    }  # fmt: skip


if __name__ == "__main__":
    for each in NAMES:
        print(program(each))
