"""The outer image: found, or built on first use, from a registry's Debian or from packages where there is none."""

import hashlib
import tempfile
from collections.abc import Callable
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

from manyoyo_mcp import __version__
from manyoyo_mcp.archive import tar
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import ImageUnavailable
from manyoyo_mcp.hosts.base import Host
from manyoyo_mcp.image import debian
from manyoyo_mcp.image.seccomp import filter_of_calls

Progress = Callable[[float, float | None, str], None]
"""`progress(done, total, words)`."""
Source = Literal["auto", "registry", "packages"]

_HERE = files("manyoyo_mcp.image")
_BASE = "docker.io/library/debian:trixie-slim"
_HIDE = "LC_ALL=C sed -i 's/containers-storage/containers\\xffstorage/g' \"$1/usr/bin/podman\""
"""As the Containerfile does, which says why, where it installs the packages."""


def no_progress(done: float, total: float | None, words: str) -> None:
    """For callers that show none."""


def packages() -> list[str]:
    """The Debian packages in the outer image."""
    return _HERE.joinpath("packages.txt").read_text().split()


def _dpkg() -> list[str]:
    """dpkg's options for the outer image: what of its packages is left out."""
    lines = _HERE.joinpath("dpkg.cfg").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _content() -> dict[str, bytes]:
    """What the image is made of: path → content."""
    found = {name: _HERE.joinpath(name).read_bytes() for name in ("Containerfile", "packages.txt", "dpkg.cfg")}

    def walk(directory: Traversable, prefix: str) -> None:
        for entry in sorted(directory.iterdir(), key=lambda each: each.name):
            if entry.is_dir():
                walk(entry, f"{prefix}{entry.name}/")
            else:
                found[prefix + entry.name] = entry.read_bytes()

    walk(_HERE.joinpath("rootfs"), "rootfs/")
    found["rootfs/usr/lib/manyoyo/calls.bpf"] = filter_of_calls()
    return found


def reference(settings: Settings) -> str:
    """The image's name: the package's version and a hash of what is in it, so that it is never a stale one."""
    if settings.outer_image:
        return settings.outer_image
    digest = hashlib.sha256()
    for name, content in sorted(_content().items()):
        digest.update(name.encode() + b"\0" + content)
    return f"localhost/manyoyo/sandbox:{__version__}-{digest.hexdigest()[:10]}"


async def ensure(host: Host, settings: Settings, progress: Progress) -> str:
    """The image's reference, once the host has it; built here if it has not. Raises ImageUnavailable."""
    name = reference(settings)
    if await host.image_exists(name):
        return name
    if settings.outer_image:
        progress(0, None, f"pulling {name}")
        await host.pull(name, lambda line: progress(0, None, line))
        return name
    await build(host, settings, progress)
    return name


async def build(host: Host, settings: Settings, progress: Progress, source: Source = "auto") -> str:
    """Build the image; `auto` tries the registry first and falls back on packages. Raises ImageUnavailable."""
    name = reference(settings)
    base = _BASE
    if source != "packages":
        try:
            progress(0, None, f"pulling {_BASE}")
            await host.pull(_BASE, lambda line: progress(0, None, line))
        except ImageUnavailable as error:
            if source == "registry" or not debian.available():
                raise ImageUnavailable(
                    f"The outer image must be built, and its base can't be pulled: {error.message}",
                    "Reach a registry, or install mmdebstrap on a Debian machine (`manyoyo-mcp image build --from packages`).",
                ) from error
            source = "packages"
    if source == "packages":
        base = await _assemble_base(host, progress)
    progress(0, None, f"building {name}")
    context = {"Dockerfile" if path == "Containerfile" else path: content for path, content in _content().items()}
    await host.build_image(tar(context), name, {"BASE": base}, lambda line: progress(0, None, line))
    return name


async def _assemble_base(host: Host, progress: Progress) -> str:
    digest = hashlib.sha256("\n".join([*packages(), *_dpkg(), _HIDE]).encode()).hexdigest()[:10]
    name = f"localhost/manyoyo/sandbox-base:{digest}"
    if await host.image_exists(name):
        return name
    progress(0, None, "assembling the outer image from Debian's packages (about half a minute)")
    with tempfile.TemporaryFile() as root:
        await debian.assemble(packages(), root, lambda line: progress(0, None, line), hooks=[_HIDE], dpkg=_dpkg())
        await host.import_image(root, name)
    return name
