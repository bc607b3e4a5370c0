"""The directory that a sandbox shares with its server: the engine's socket, and files for the entrypoint."""

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from manyoyo_mcp.dialled import SocketLike

_LONGEST = 107
"""Bytes of the path in a unix socket's address (unix(7)), without the null byte at its end."""


def remove(path: Path) -> None:
    """Only what we put there: the path comes from a container's configuration, which others may have written."""
    with contextlib.suppress(OSError):
        for name in (
            "engine.sock",
            "execs.sock",
            "execs.sock.new",
            "lease",
            "lease.new",
            "ending",
            "gate.sock",
            "gate.new",
        ):
            (path / name).unlink(missing_ok=True)
        if (path / "files").is_dir() and not (path / "files").is_symlink():
            shutil.rmtree(path / "files")
        path.rmdir()


def renew(path: Path) -> bool:
    """Write what a sandbox has not read yet into its lease; nothing where its directory has gone. Whether it goes on: False where
    it is ending already."""
    with contextlib.suppress(OSError):
        scratch = path / "lease.new"
        scratch.write_text(f"{time.time_ns()}\n")
        scratch.replace(path / "lease")
    return not (path / "ending").exists()


def older_than(seconds: float, root: Path) -> list[Path]:
    """The directories in `root` that nobody put anything into for so long."""
    with contextlib.suppress(OSError):
        return [path for path in root.iterdir() if path.stat().st_mtime < time.time() - seconds]
    return []


def listens(path: Path) -> bool:
    try:
        connect(path).close()
    except OSError:
        return False
    return True


def connect(path: Path) -> SocketLike:
    sock = socket.socket(socket.AF_UNIX)
    try:
        with _short(path) as name:
            sock.connect(name)
    except OSError:
        sock.close()
        raise
    return cast(SocketLike, sock)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the path that fits a socket's address: where it is too long itself, by a descriptor of its directory."""
    if len(os.fsencode(path)) <= _LONGEST or sys.platform != "linux":
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def lay(files: dict[str, bytes], root: Path) -> None:
    """Put files where the entrypoint finds them: some milliseconds, where the engine takes a hundred for an archive."""
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.new")
        scratch.write_bytes(content)
        scratch.chmod(0o644)
        scratch.replace(path)
