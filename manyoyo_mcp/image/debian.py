"""Root file systems assembled from Debian's packages with mmdebstrap, from the mirrors this machine is configured for."""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import anyio

from manyoyo_mcp.errors import ImageUnavailable

SUITE = "trixie"
"""Debian 13: the release whose podman, crun and netavark the product is measured with."""

_SLIM = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info", "lintian")]
_SLIM += ["path-include=/usr/share/doc/*/copyright"]
_APT_SETTINGS = re.compile(r'^(Acquire::(?:https?::[^ ]*|Retries|ForceIPv[46])) "(.*)";$', re.MULTILINE)
_MEMORY_WANTED = 3 << 30
"""Available memory, in bytes, from which on packages are unpacked there."""


def available() -> bool:
    """Whether this machine can assemble root file systems: mmdebstrap is there, and apt knows a Debian mirror."""
    return shutil.which("mmdebstrap") is not None and mirror() is not None


def mirror() -> str | None:
    """The Debian mirror of this machine's own apt configuration, deb822 or one-line; None where there is none."""
    return next((uri for uri in _uris() if uri.rstrip("/").endswith("/debian")), None)


def sources() -> list[str]:
    """apt's one-line sources of SUITE on this machine's mirrors: the release, its updates and, where the machine has
    a mirror of them, its security updates. Empty where there is no mirror."""
    main = mirror()
    if main is None:
        return []
    security = next((uri for uri in _uris() if uri.rstrip("/").endswith("/debian-security")), None)
    lines = [f"deb {main} {suite} main" for suite in (SUITE, f"{SUITE}-updates")]
    return lines + ([f"deb {security} {SUITE}-security main"] if security else [])


def settings() -> list[str]:
    """How this machine's apt reaches its mirrors (proxies and the like), as lines of apt's configuration."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    return [f'{key} "{value}";' for key, value in _APT_SETTINGS.findall(dump)]


def _uris() -> list[str]:
    return uris(Path("/etc/apt"))


def uris(etc: Path) -> list[str]:
    """The addresses of the sources that apt is configured with in `etc`, one-line or deb822."""
    found: list[str] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))] if etc.is_dir() else []:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".sources":
            found += re.findall(r"^URIs:\s*(\S+)", text, re.MULTILINE)
        elif path.suffix == ".list":
            found += re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+\S+.*\bmain\b", text, re.MULTILINE)
    return found


async def assemble(
    packages: Sequence[str],
    target: IO[bytes],
    say: Callable[[str], None],
    hooks: Sequence[str] = (),
    variant: str = "minbase",
    dpkg: Sequence[str] = _SLIM,
) -> None:
    """Write a root file system with `packages` (and what they need) to the file `target`, as a tar; `hooks` are
    mmdebstrap's customize hooks, `variant` is one of its variants, `dpkg` are dpkg's
    options. Raises ImageUnavailable with the last lines where it fails."""
    lists = sources()
    if shutil.which("mmdebstrap") is None:
        raise ImageUnavailable(
            "Images can't be assembled from packages here: that takes mmdebstrap, on Debian.",
            "Install it (`apt-get install mmdebstrap`), or use a registry.",
        )
    if not lists:
        raise ImageUnavailable(
            "Images can't be assembled from packages here: apt on this machine is configured with no mirror of Debian's.",
            "Do it on a Debian machine, or use a registry.",
        )
    command = [
        *_in_memory(),
        "mmdebstrap",
        f"--variant={variant}",
        *([f"--include={','.join(packages)}"] if packages else []),
        *(f"--dpkgopt={option}" for option in dpkg),
        "--dpkgopt=force-unsafe-io",  # what is interrupted is thrown away: nothing is won by waiting for the disk
        *(f"--aptopt={line}" for line in settings()),
        *(f"--customize-hook={hook}" for hook in hooks),
        SUITE,
        "-",
        *lists,
    ]
    lines: list[str] = []
    async with await anyio.open_process(
        command, stdin=subprocess.DEVNULL, stdout=target, stderr=subprocess.PIPE, cwd="/"
    ) as process:
        assert process.stderr is not None
        try:
            pending = ""
            async for chunk in process.stderr:
                *whole, pending = (pending + chunk.decode(errors="replace")).replace("\r", "\n").split("\n")
                for line in filter(None, map(str.strip, whole)):
                    lines.append(line)
                    if line.startswith("I: "):
                        say(line.removeprefix("I: "))
        except BaseException:
            process.terminate()  # it removes its scratch directory then, given the time
            with anyio.CancelScope(shield=True), anyio.move_on_after(15):
                await process.wait()
            raise
        code = await process.wait()
    if code != 0:
        raise ImageUnavailable(
            "mmdebstrap failed:\n" + "\n".join(lines[-8:]), "Check that `apt-get update` works on this machine."
        )


def _in_memory() -> list[str]:
    """Words before a command that give it, and nobody else, a TMPDIR in memory that goes when it ends: unpacking packages
    is mostly waiting for the disk. None where memory is short or mounting not allowed. It hides what lies in /mnt."""
    words = ["unshare", "--mount", "sh", "-euc", 'mount -t tmpfs tmpfs /mnt; export TMPDIR=/mnt; exec "$@"', "sh"]
    try:
        available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        allowed = subprocess.run([*words, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return []
    return words if allowed and available is not None and int(available[1]) << 10 > _MEMORY_WANTED else []
