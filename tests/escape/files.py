"""Contexts of builds: names that lead elsewhere, and links that do."""

import tarfile
import threading
from pathlib import Path

import anyio.to_thread

from manyoyo_mcp.errors import ContextRefused, InvalidArgument
from manyoyo_mcp.sessions import context as contexts
from tests.escape.canaries import CANARY
from tests.escape.roads import IMAGE, Road, entry, tar
from tests.escape.vectors import GATES, OWN, Out, Outcome, Vector, add, contained, refused, vector
from tests.escape.world import World

_DOCKERFILE = {"Dockerfile": f"FROM {IMAGE}\nCOPY . /all\n".encode()}
_SLEEP = ("sh", "-c", "trap 'exit 0' TERM; sleep 300 & wait")
_FILE = (entry("l/escape-canary/empty"), b"pwned")


def _context(name: str, source: str, archive: bytes, code: str, words: str) -> None:
    """A build context as a client of Docker's sends it. The tools make their own."""

    async def attempt(world: World, road: Road) -> Outcome:
        return refused(await road.request("POST", "/build", road.build_query(), data=archive), code, words)

    add(Vector(name, source, "files", attempt, roads=GATES))


_context(
    "context-below-a-link",
    "Zip Slip; CVE-2018-15664's kin",
    tar(_DOCKERFILE, entry("l", tarfile.SYMTYPE, "/run"), _FILE),
    "CONTEXT_REFUSED",
    "below a link",
)
_context(
    "context-dots",
    "Zip Slip (Snyk, 2018)",
    tar({**_DOCKERFILE, f"../../../../../..{CANARY}/empty": b"pwned"}),
    "CONTEXT_REFUSED",
    "leads out",
)
_context(
    "context-hard-link-dots",
    "CVE-2014-6407",
    tar(_DOCKERFILE, entry("x", tarfile.LNKTYPE, f"../../../../..{CANARY}/secret")),
    "CONTEXT_REFUSED",
    "leads out",
)
_context(
    "context-hard-link-to-link",
    "CVE-2021-41190's kin",
    tar(_DOCKERFILE, entry("l", tarfile.SYMTYPE, CANARY), entry("x", tarfile.LNKTYPE, "l")),
    "CONTEXT_REFUSED",
    "hard link to a link",
)
_context(
    "context-device", OWN, tar(_DOCKERFILE, entry("d", tarfile.BLKTYPE, devmajor=254)), "CONTEXT_REFUSED", "device"
)
_context("context-pipe", OWN, tar(_DOCKERFILE, entry("p", tarfile.FIFOTYPE)), "CONTEXT_REFUSED", "pipe")
_context(
    "context-ignore-link",
    "docker's .dockerignore",
    tar(_DOCKERFILE, entry(".dockerignore", tarfile.SYMTYPE, f"{CANARY}/secret")),
    "CONTEXT_REFUSED",
    "is a link",
)
_context(
    "dockerfile-is-a-link",
    "CVE-2014-9357's kin",
    tar({"x": b""}, entry("Dockerfile", tarfile.SYMTYPE, f"{CANARY}/secret")),
    "INVALID_ARGUMENT",
    "no regular file",
)
_context(
    "dockerfile-twice",
    "two readers of one archive",
    tar({"Dockerfile": b"FROM scratch\n"}, (entry("./Dockerfile"), b"\xff")) + b"",
    "INVALID_ARGUMENT",
    "UTF-8",
)
_context(
    "context-sparse",
    "CVE-2024-6232's kin",
    tar(_DOCKERFILE, entry("s", tarfile.GNUTYPE_SPARSE)),
    "CONTEXT_REFUSED",
    "sparse",
)


@vector("context-absolute", "Zip Slip (Snyk, 2018)", roads=GATES)
async def context_absolute(world: World, road: Road) -> Outcome:
    """A name that begins with a slash is one in the context."""
    archive = tar({**_DOCKERFILE, f"{CANARY}/empty": b"pwned"})
    answer = await road.request("POST", "/build", road.build_query(), data=archive)
    return contained(f"unpacked below the context: {answer.code}")


def _project(world: World, name: str) -> Path:
    """A directory that the tools may read: below the server's roots."""
    directory = world.box.manager.settings.roots[0] / name
    directory.mkdir()
    (directory / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY . /all\nRUN cat /all/* /all/*/* || true\n")
    return directory


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    directory.rmdir()


@vector("project-link-out", "CVE-2018-15664's kin: a link in a project", roads=("tool",), smoke=True)
async def project_link_out(world: World, road: Road) -> Outcome:
    project = _project(world, "link")
    try:
        (project / "x").symlink_to(world.directory / "canary")
        return refused(await world.tool.call("nested_build", context_dir=str(project)), "CONTEXT_REFUSED", "leads out")
    finally:
        _remove(project)


@vector("project-directory-link-out", OWN, roads=("tool",))
async def project_directory_link_out(world: World, road: Road) -> Outcome:
    project = _project(world, "dir")
    try:
        (project / "sub").symlink_to(world.directory, target_is_directory=True)
        return refused(await world.tool.call("nested_build", context_dir=str(project)), "CONTEXT_REFUSED", "leads out")
    finally:
        _remove(project)


@vector("project-dockerfile-link-out", OWN, roads=("tool",))
async def project_dockerfile_link_out(world: World, road: Road) -> Outcome:
    project = _project(world, "file")
    try:
        (project / "Dockerfile").unlink()
        (project / "Dockerfile").symlink_to(world.directory / "canary")
        return refused(await world.tool.call("nested_build", context_dir=str(project)), "CONTEXT_REFUSED", "leads out")
    finally:
        _remove(project)


@vector("project-outside-the-roots", OWN, roads=("tool",))
async def project_outside_the_roots(world: World, road: Road) -> Outcome:
    return refused(
        await world.tool.call("nested_build", context_dir=str(world.directory)), "CONTEXT_REFUSED", "outside"
    )


@vector("project-dots", OWN, roads=("tool",))
async def project_dots(world: World, road: Road) -> Outcome:
    return refused(
        await world.tool.call("nested_build", context_dir="../../../../../../etc"), "CONTEXT_REFUSED", "outside"
    )


@vector("files-dots", "Zip Slip (Snyk, 2018)", roads=("tool",))
async def files_dots(world: World, road: Road) -> Outcome:
    given = {"Dockerfile": f"FROM {IMAGE}\n", "../../x": "pwned"}
    return refused(await world.tool.call("nested_build", files=given), "INVALID_ARGUMENT", "not a path inside")


@vector("project-changed-after-the-look", "check-then-use (CWE-367)", roads=("tool",))
async def project_changed_after_the_look(world: World, road: Road) -> Outcome:
    """A file of a context becomes a link to a secret and back, thousands of times, while contexts are checked and read."""
    project = _project(world, "race")
    secret, file, end = world.directory / "canary", project / "x", threading.Event()
    file.write_bytes(b"harmless")

    def swap() -> None:
        link, plain = project / ".l", project / ".p"
        while not end.is_set():
            link.symlink_to(secret)
            link.replace(file)
            plain.write_bytes(b"harmless")
            plain.replace(file)

    def read() -> tuple[int, int]:
        sent = stopped = 0
        for _ in range(400):
            try:
                ready = contexts.prepare(world.box.manager.settings, str(project), {}, "Dockerfile")
                data = b"".join(ready.stream())
            except (ContextRefused, InvalidArgument):
                stopped += 1
                continue
            if world.canaries.secret.encode() in data:
                raise Out("a file outside the context was read")
            sent += 1
        return sent, stopped

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        sent, stopped = await anyio.to_thread.run_sync(read)
    finally:
        end.set()
        thread.join()
        _remove(project)
    assert sent and stopped, "the file was never seen both ways, so nothing was tried"
    return contained("the file opened is the one looked at")
