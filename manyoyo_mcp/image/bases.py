"""Base images made from packages, for hosts that reach no registry; shared, read-only, by every sandbox.

Each is a Containerfile under `recipes/`; where it adds a `root.tar`, that is assembled from Debian's packages. They are
built in a maintenance sandbox and loaded into one volume, which holds

    podman/, docker/    an image store of podman's, a data root of dockerd's
    generations/N/      what there was at one time: podman/ (the store's metadata, its layers a link), docker.tar (what a
                        new dockerd begins with: metadata, its layers links), manifest.json (as `podman images` says it)
    current             a link to the last of them

Sandboxes mount the volume read-only and use the generation that is current when they start. **The stores only grow, and
a generation never changes**: making an image again moves its names, in a new generation, and leaves the old layers where
they are, so a sandbox that uses them never notices. A generation becomes current by a rename, as the last step: whoever
starts meanwhile, or after a maker that died, has the images of before, whole. Space comes back with `remove`, which the
host refuses while a sandbox has the volume.

One process at a time makes images: the maintenance sandbox has a fixed name, and who finds it taken waits.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import IO

import anyio

from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines import ENGINES
from manyoyo_mcp.engines.base import BuildSpec, Engine, RunSpec, Step
from manyoyo_mcp.errors import EngineFailed, ImageUnavailable, InvalidArgument, NameConflict, RequestError, SandboxError
from manyoyo_mcp.hosts.base import LABEL, Host, Outer, OuterSpec
from manyoyo_mcp.hosts.pool import BASES
from manyoyo_mcp.image import debian, outer
from manyoyo_mcp.image.outer import Progress
from manyoyo_mcp.policy.base import Limits
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.values import Caps

VOLUME = BASES
PREFIX = "localhost/manyoyo/"
"""Registry and namespace of their names: fully qualified, so that both engines take the name as it is."""

_MAKER = "manyoyo-bases-maker"
_PATIENCE = 900.0
"""Seconds to wait while another process makes base images."""
_LONGEST = 3600
"""Seconds after which whoever makes base images is stuck or gone: its sandbox's lease, which is not renewed."""
_RECIPES = files("manyoyo_mcp.image").joinpath("recipes")
_FORGET_MACHINE = 'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"'


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a base is made. `packages` are assembled into its root.tar with mmdebstrap's `variant`; without any, its
    Containerfile begins FROM another base. The version is read from `version`'s output: its first `parts` numbers."""

    name: str
    summary: str
    version: tuple[str, ...]
    parts: int
    packages: tuple[str, ...] = ()
    variant: str = "minbase"
    parent: str | None = None

    def context(self) -> dict[str, bytes]:
        """The files beside the root file system: path → content; the Containerfile among them."""
        found: dict[str, bytes] = {}

        def walk(directory: Traversable, prefix: str) -> None:
            for entry in directory.iterdir():
                if entry.is_dir():
                    walk(entry, f"{prefix}{entry.name}/")
                else:
                    found[prefix + entry.name] = entry.read_bytes()

        walk(_RECIPES.joinpath(self.name), "")
        return found

    def digest(self) -> str:
        """Changes when the image would come out differently, newer packages apart: its files, packages, parent, and the
        mirrors that it carries in its apt configuration."""
        parts = [self.name, debian.SUITE, self.variant, *self.packages, *debian.sources(), *debian.settings()]
        parts += [f"{path}\0{content!r}" for path, content in sorted(self.context().items())]
        parts += [RECIPES[self.parent].digest()] if self.parent else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("debian", "Debian, apt ready to use", ("cat", "/etc/debian_version"), 1, packages=("ca-certificates",)),
        Recipe("python", "Python, pip and venv, on debian", ("python", "--version"), 2, parent="debian"),
        Recipe("node", "Node.js and npm, on debian", ("node", "--version"), 1, parent="debian"),
        Recipe("busybox", "one static program: a shell and small tools", ("busybox",), 2, packages=("busybox-static",),
               variant="extract"),
        Recipe("postgres", "PostgreSQL, a service, on debian", ("psql", "--version"), 1, parent="debian"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Base:
    """A base image that there is. `tags` are its whole names; size in bytes, `created` in Unix seconds."""

    name: str
    tags: list[str]
    image_id: str
    size: int
    created: float
    recipe: str

    @property
    def current(self) -> bool:
        """Whether it would be made the same way today."""
        return self.name in RECIPES and self.recipe == RECIPES[self.name].digest()


@dataclass(frozen=True, slots=True)
class Maintenance:
    """On whose behalf a maintenance sandbox runs: its `labels`, the `files` that hand on the host's certificates, and
    `sweep`, which removes what processes that ended left behind."""

    labels: dict[str, str]
    files: dict[str, bytes]
    sweep: Callable[[], Awaitable[object]]


async def volume(host: Host) -> str | None:
    """The volume to mount into a new sandbox; None where no base image was made on this host."""
    return VOLUME if await host.volume_exists(VOLUME) else None


async def present(host: Host, settings: Settings, maintenance: Maintenance, progress: Progress) -> list[Base]:
    """The base images that sandboxes on this host have."""
    if not await host.volume_exists(VOLUME):
        return []
    image = await outer.ensure(host, settings, progress)
    labels = {**maintenance.labels, "kind": "maintenance", "sandbox": _new_id()}
    return parse_manifest(await host.read_volume(VOLUME, "current/manifest.json", image, labels))


def parse_manifest(raw: bytes | None) -> list[Base]:
    """The images of a manifest that have a name; none where there is no manifest."""
    found = []
    for row in json.loads(raw or b"[]"):
        tags = sorted(row.get("Names") or [])
        match = re.match(rf"{re.escape(PREFIX)}([a-z]+):", tags[0]) if tags else None
        if match is not None:
            labels = row.get("Labels") or {}
            found.append(
                Base(
                    match[1], tags, row["Id"], int(row["Size"]), float(row["Created"]), labels.get(f"{LABEL}recipe", "")
                )
            )
    return sorted(found, key=lambda base: base.name)


def with_parents(names: Sequence[str]) -> list[str]:
    """The bases to make for `names`, each after the one it stands on. Raises InvalidArgument for a name that is none."""
    ordered: dict[str, None] = {}
    for name in names:
        if name not in RECIPES:
            raise InvalidArgument(f"There is no base image {name[:60]!r}.", f"There are: {', '.join(RECIPES)}.")
        if (parent := RECIPES[name].parent) is not None:
            ordered |= dict.fromkeys(with_parents([parent]))
        ordered[name] = None
    return list(ordered)


async def make(
    host: Host,
    settings: Settings,
    names: Sequence[str],
    maintenance: Maintenance,
    progress: Progress,
    *,
    again: bool = False,
) -> list[Base]:
    """See that every new sandbox has the bases `names` and those they stand on, which are returned. Makes those that are
    missing or whose recipe changed, with `again` all of them, from today's packages.

    Raises InvalidArgument for an unknown name, ImageUnavailable (BASE_IMAGE_UNAVAILABLE) where one can't be made; those
    before it stay.
    """
    wanted = with_parents(names)
    before = {base.name: base for base in await present(host, settings, maintenance, progress)}
    if again or not _complete(before, wanted):
        image = await outer.ensure(host, settings, progress)
        await host.create_volume(VOLUME, {"kind": "bases"})
        async with _maker(host, settings, image, maintenance, progress) as maker:
            await maker.make([RECIPES[name] for name in wanted], progress, again=again)
    now = {base.name: base for base in await present(host, settings, maintenance, progress)}
    return [now[name] for name in wanted]


def _complete(there: dict[str, Base], wanted: Sequence[str]) -> bool:
    return all(name in there and there[name].current for name in wanted)


async def remove(host: Host) -> bool:
    """Remove the base images; whether there were any. Raises RequestError (IN_USE) while a sandbox uses them, or one with a
    name or a checkpoint may."""
    for kind, label in (("sandbox", "name"), ("checkpoint", "checkpoint")):
        kept = [store.labels[label] for store in await host.stores({"kind": kind}) if label in store.labels]
        if kept:
            raise RequestError(
                f"What is kept builds on the base images: {kind} {', '.join(kept)}.",
                "Remove those first: `manyoyo-mcp ps` lists yours, `manyoyo-mcp rm` removes them.",
                code="IN_USE",
            )
    return await host.remove_volume(VOLUME)


@contextlib.asynccontextmanager
async def _maker(
    host: Host, settings: Settings, image: str, maintenance: Maintenance, progress: Progress
) -> "AsyncIterator[_Maker]":
    """The one maintenance sandbox that may write the volume; gone afterwards."""
    info = await host.info()
    sandbox_id = _new_id()
    spec = OuterSpec(
        sandbox_id=sandbox_id,
        image=image,
        engine="podman",
        caps=Caps(float(info.cpus), min(info.memory, 4 << 30), 4096),
        build_pids=4000,
        lease=_LONGEST,
        labels={**maintenance.labels, "sandbox": sandbox_id, "kind": "maintenance", "engine": "podman"},
        files=maintenance.files,
        bases_volume=VOLUME,
        bases_writable=True,
        name=_MAKER,
    )
    created = await _create_alone(host, spec, maintenance, progress)
    try:
        _, dial = await host.dialer(created)
        engine = ENGINES["podman"](
            client=GuardedClient(dial, lambda: Limits(spec.caps, spec.caps)),
            maintain=partial(host.maintain, created),
            spawn=lambda name, work: None,  # what would be removed later goes with the whole sandbox
        )
        await engine.ping()
        yield _Maker(host, created, engine)
    finally:
        with anyio.CancelScope(shield=True):
            await host.remove(created)


def _new_id() -> str:
    return f"bases-{secrets.token_hex(8)}"


async def _create_alone(host: Host, spec: OuterSpec, maintenance: Maintenance, progress: Progress) -> Outer:
    """Its name is the lock: taken by making it, let go by removing it, and with it by the sweep where its process died."""
    begun = time.monotonic()
    while True:
        try:
            return await host.create(spec)
        except NameConflict:
            if time.monotonic() - begun > _PATIENCE:
                raise EngineFailed(
                    f"Another process has been making base images on this host for {_PATIENCE / 60:.0f} minutes.",
                    f"If there is none, remove what it left: `docker rm -fv {_MAKER}`.",
                ) from None
        progress(0, None, "waiting for another process that makes base images")
        with contextlib.suppress(SandboxError):
            await maintenance.sweep()
        await anyio.sleep(1)


class _Maker:
    """What goes on inside the maintenance sandbox."""

    def __init__(self, host: Host, container: Outer, engine: Engine) -> None:
        self._host = host
        self._container = container
        self._engine = engine

    async def make(self, recipes: Sequence[Recipe], progress: Progress, *, again: bool) -> None:
        """Make those that are missing or changed, in this order."""
        there = {base.name: base for base in parse_manifest((await self._ctl("bases-manifest")).encode())}
        todo = [recipe for recipe in recipes if again or not _complete(there, [recipe.name])]
        for number, recipe in enumerate(todo):

            def say(words: str, number: int = number, recipe: Recipe = recipe) -> None:
                progress(number, len(todo), f"{recipe.name}: {words}")

            try:
                await self._build(recipe, say)
                version = await self._version(recipe)
                say("sharing it with the sandboxes")
                await self._ctl("bases-add", f"{PREFIX}{recipe.name}", version)
            except ImageUnavailable as error:
                raise ImageUnavailable(error.message, error.hint, code="BASE_IMAGE_UNAVAILABLE") from error
        progress(len(todo), len(todo), "done")

    async def _build(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        context = recipe.context()
        text = context["Containerfile"].decode() + f'LABEL {LABEL}recipe="{recipe.digest()}"\n'
        context["Containerfile"] = text.encode()
        output = bytearray()
        with tempfile.TemporaryFile() as root:
            if recipe.packages:
                say("assembling packages")
                await debian.assemble(recipe.packages, root, say, [_FORGET_MACHINE], recipe.variant)
            spec = BuildSpec(
                context=lambda: _stream(context, root if recipe.packages else None),
                dockerfile="Containerfile",
                dockerfile_text=text,
                build_id=hashlib.sha256(recipe.name.encode()).hexdigest()[:16],
                caps=self._container.caps,
                tags=[f"{PREFIX}{recipe.name}:latest"],
                no_cache=True,
            )

            def on_step(step: Step) -> None:
                anyio.from_thread.run_sync(say, f"step {step.number}/{step.total}: {step.instruction[:80]}")

            built = await self._engine.build(spec, output.extend, on_step)
        if built.image_id is None:
            raise ImageUnavailable(
                f"The base image {recipe.name} could not be built: {built.cause or built.error}\n"
                + output.decode(errors="replace")[-600:],
                built.mend or "Check that this host's containers reach the package mirror.",
            )

    async def _version(self, recipe: Recipe) -> str:
        output = bytearray()
        image = f"{PREFIX}{recipe.name}:latest"
        spec = RunSpec(image, list(recipe.version), self._container.caps, network="none")
        ended = await self._engine.run(spec, output.extend)
        numbers = re.search(r"[0-9]+(?:\.[0-9]+)*", output.decode(errors="replace"))
        if ended.exit_code != 0 or numbers is None:
            raise ImageUnavailable(
                f"The base image {recipe.name} does not work: {output.decode(errors='replace')[-400:]}",
                "Make it again; if that does not help, report it.",
            )
        return ".".join(numbers[0].split(".")[: recipe.parts])

    async def _ctl(self, *argv: str) -> str:
        done = await self._host.maintain(self._container, *argv, timeout=600)
        if done.exit_code != 0:
            raise ImageUnavailable(f"{argv[0]} failed: {done.output.strip()[-800:]}", "Is the host's disk full?")
        return done.output


def _stream(context: dict[str, bytes], root: IO[bytes] | None) -> Iterator[bytes]:
    """A build context as a tar, a large `root.tar` in it piece by piece."""
    for name, content in context.items():
        yield _header(name, len(content), 0o755 if content.startswith(b"#!") else 0o644) + content
        yield b"\0" * (-len(content) % tarfile.BLOCKSIZE)
    if root is not None:
        size = root.seek(0, os.SEEK_END)
        root.seek(0)
        yield _header("root.tar", size, 0o644)
        while piece := root.read(1 << 20):
            yield piece
        yield b"\0" * (-size % tarfile.BLOCKSIZE)
    yield b"\0" * 2 * tarfile.BLOCKSIZE


def _header(name: str, size: int, mode: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, mode
    return info.tobuf(tarfile.PAX_FORMAT)
