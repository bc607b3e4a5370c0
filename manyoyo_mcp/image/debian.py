"""Root file systems assembled from Debian's packages with mmdebstrap, from the mirror this machine is configured for."""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from manyoyo_mcp.errors import ImageUnavailable

SUITE = "trixie"
"""Debian 13: the release whose podman, crun and netavark the product is measured with."""

_SLIM = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
_APT_SETTINGS = re.compile(r'^(Acquire::(?:https?::[^ ]*|Retries|ForceIPv[46])) "(.*)";$', re.MULTILINE)


def available() -> bool:
    """Whether this machine can assemble root file systems: mmdebstrap is there, and apt knows a Debian mirror."""
    return shutil.which("mmdebstrap") is not None and mirror() is not None


def mirror() -> str | None:
    """The Debian mirror of this machine's own apt configuration, deb822 or one-line; None where there is none."""
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))] if etc.is_dir() else []
    for path in files:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        found = re.findall(r"^URIs:\s*(\S+)", text, re.MULTILINE) if path.suffix == ".sources" else []
        if path.suffix in (".list",):
            found = re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+\S+.*\bmain\b", text, re.MULTILINE)
        for uri in found:
            if uri.rstrip("/").endswith("/debian"):
                return str(uri)
    return None


async def assemble(
    packages: Sequence[str], target: Path, say: Callable[[str], None], hooks: Sequence[str] = (), variant: str = "minbase"
) -> None:
    """Write a root file system with `packages` (and what they need) to `target`, a tar; `hooks` are mmdebstrap's
    customize hooks. Raises ImageUnavailable with the last lines where it fails."""
    source = mirror()
    if source is None or shutil.which("mmdebstrap") is None:
        raise ImageUnavailable(
            "Images can't be assembled from packages here: that takes Debian or Ubuntu with mmdebstrap.",
            "Install it (`apt-get install mmdebstrap`), or use a registry.",
        )
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    command = [
        "mmdebstrap",
        f"--variant={variant}",
        *([f"--include={','.join(packages)}"] if packages else []),
        *(f"--dpkgopt=path-exclude={path}" for path in _SLIM),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        *(f'--aptopt={key} "{value}"' for key, value in _APT_SETTINGS.findall(settings)),
        *(f"--customize-hook={hook}" for hook in hooks),
        SUITE,
        str(target),
        source,
    ]
    lines: list[str] = []
    async with await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=None, stderr=subprocess.PIPE) as process:
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
            process.terminate()  # it removes its scratch directory on SIGTERM
            raise
        code = await process.wait()
    if code != 0:
        target.unlink(missing_ok=True)
        raise ImageUnavailable(
            "mmdebstrap failed:\n" + "\n".join(lines[-8:]), "Check that `apt-get update` works on this machine."
        )
