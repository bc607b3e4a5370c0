"""Base images made from packages: in every new sandbox of either engine, shared and not copied, safe to make while used."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import docker
import pytest

from manyoyo_mcp.cli.image import make_bases
from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import RunSpec
from manyoyo_mcp.errors import NameConflict, RequestError
from manyoyo_mcp.hosts.base import OuterSpec
from manyoyo_mcp.image import bases, outer
from manyoyo_mcp.image.bases import Base
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.integration.bases import ensure_bases
from tests.support import MIB, Box

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]  # the first to need base images makes them

ENGINES = pytest.mark.parametrize("engine", ["podman", "docker"])
MAKER = "manyoyo-bases-maker"


@pytest.fixture(scope="module")
async def made() -> dict[str, Base]:
    return await ensure_bases()


@pytest.fixture(scope="module")
async def manager(made: dict[str, Base], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Manager]:
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"), runtime_dir=tmp_path_factory.mktemp("run"))
    async with open_manager(settings) as opened:
        yield opened


@pytest.fixture(scope="module", params=["podman", "docker"])
async def box(manager: Manager, request: pytest.FixtureRequest) -> AsyncIterator[Box]:
    async with sandbox(manager, request.param) as started:
        yield started


@asynccontextmanager
async def sandbox(manager: Manager, engine: str) -> AsyncIterator[Box]:
    started = await manager.start(engine)
    try:
        yield Box(manager, started)
    finally:
        await manager.remove(started)


def outside(box: Box, *argv: str) -> str:
    """What a command in the outer container itself says; its own failure is an error."""
    container = docker.from_env().containers.get(box.sandbox.outer.container_id)
    done = container.exec_run(list(argv), environment={"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"})
    assert done.exit_code == 0, done.output
    return done.output.decode()


def command_line(*argv: str) -> list[str]:
    return [sys.executable, "-m", "manyoyo_mcp", "image", *argv]


def cli(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_line(*argv), capture_output=True, text=True, timeout=300)


def makers() -> list[str]:
    return [each.name for each in docker.from_env().containers.list(all=True, filters={"name": MAKER})]


async def test_every_new_sandbox_has_them(box: Box, made: dict[str, Base]) -> None:
    listed = {tag: image for image in await box.engine.images() for tag in image.tags}
    for base in made.values():
        for tag in base.tags:
            assert listed[tag].image_id.removeprefix("sha256:") == base.image_id, (tag, listed)
    said = {
        "debian": await box.output("cat", "/etc/debian_version", image="localhost/manyoyo/debian", network="none"),
        "python": await box.output("python", "--version", image="localhost/manyoyo/python", network="none"),
        "node": await box.output("node", "--version", image="localhost/manyoyo/node", network="none"),
        "busybox": await box.output("busybox", image="localhost/manyoyo/busybox", network="none"),
    }
    for name, output in said.items():  # the tag says what is in it
        version = next(tag.rpartition(":")[2] for tag in made[name].tags if not tag.endswith(":latest"))
        assert re.search(rf"\b{re.escape(version)}\.[0-9]", output.replace("v", " ")), (name, version, output)


async def test_they_are_what_one_expects(box: Box) -> None:
    python, node, debian, busybox = (
        f"localhost/manyoyo/{name}:latest" for name in ("python", "node", "debian", "busybox")
    )
    assert await box.output(image=python, stdin=b"print(6 * 7)", network="none") == "42\n"  # without a command: python3
    assert await box.output(image=node, stdin=b"console.log(6 * 7)", network="none") == "42\n"
    assert await box.output(image=busybox, stdin=b"echo $((6 * 7)) | sed s/4/four/", network="none") == "four2\n"
    assert await box.output(image=debian, stdin=b"echo ${BASH_VERSION%%.*}", network="none") == "5\n"
    script = (
        "python3 -m venv /tmp/v && /tmp/v/bin/pip --version && pip --version && ls /usr/lib/python3*/EXTERNALLY-MANAGED"
    )
    ended = await box.run("sh", "-c", script, image=python, network="none", output=(words := []))
    assert ended.exit_code == 2, b"".join(words)  # ls: there is none
    assert b"".join(words).count(b"pip 2") == 2
    assert int(await box.output("node", "-p", "process.versions.node.split('.')[0]", image=node, network="none")) >= 20
    assert re.match(r"[0-9]+\.", await box.output("npm", "--version", image=node, network="none"))
    for image in (python, node, debian):  # no downloads in a layer
        script = "find /var/lib/apt/lists /var/cache/apt /tmp -type f -size +0"
        assert await box.output("sh", "-c", script, image=image, network="none") == "", image


async def test_they_are_shared_not_copied(box: Box, made: dict[str, Base]) -> None:
    await box.run("true", image="localhost/manyoyo/node", network="none")
    await box.engine.settle()
    copied = int(outside(box, "du", "-sxm", "/var/lib/manyoyo").split()[0])
    assert copied < 30, f"{copied} MiB in the sandbox's own store"
    assert made["node"].size > 100 * MIB
    assert "/srv/manyoyo-bases ro" in " ".join(
        f"{words[1]} {words[3].split(',')[0]}"
        for words in map(str.split, outside(box, "cat", "/proc/mounts").splitlines())
    )


async def test_layers_on_layers(box: Box) -> None:
    """An image of several layers, built on one of several shared layers, with a file of a shared one changed and one gone."""
    built = await box.build(
        "FROM localhost/manyoyo/python\nRUN echo changed > /etc/debian_version && rm /etc/issue\nRUN echo more > /more\n"
    )
    assert built.image_id, built
    script = "cat /etc/debian_version /more; ls /etc/issue; python -c 'import ssl; print(ssl.OPENSSL_VERSION[:7])'"
    output: list[bytes] = []
    await box.run("sh", "-c", script, image=built.image_id, network="none", output=output)
    said = b"".join(output).decode()
    assert "changed\n" in said and "more\n" in said and "OpenSSL\n" in said and "No such file" in said, said
    assert "changed" not in await box.output(
        "cat", "/etc/debian_version", image="localhost/manyoyo/python", network="none"
    )


async def test_what_one_sandbox_does_to_them_no_other_sees(box: Box, manager: Manager) -> None:
    engine = box.sandbox.engine_name
    names = ("localhost/manyoyo/python:latest", "localhost/manyoyo/python:3.13")
    async with sandbox(manager, engine) as vandal:
        container = docker.from_env().containers.get(vandal.sandbox.outer.container_id)
        program = ["docker", "--host", "unix:///run/manyoyo/engine.sock"] if engine == "docker" else ["podman"]
        removal = container.exec_run([*program, "rmi", "-f", *names])
        if engine == "docker":
            assert removal.exit_code == 0, removal.output
            assert not any(set(names) & set(image.tags) for image in await vandal.engine.images())
        else:
            assert b"read-only" in removal.output
        written = container.exec_run(["sh", "-c", "touch /srv/manyoyo-bases/x; rm -rf /srv/manyoyo-bases/*"])
        assert b"Read-only file system" in written.output
    async with sandbox(manager, engine) as later:
        for each in (box, later):
            assert await each.output("python", "-c", "print(1)", image=names[0], network="none") == "1\n"


async def test_making_them_again_needs_a_reason(made: dict[str, Base]) -> None:
    begun = anyio.current_time()
    again = await ensure_bases()
    assert again == made  # the very same images, with the time at which they were made
    assert anyio.current_time() - begun < 20
    assert not makers()


async def test_making_while_they_are_used(manager: Manager, made: dict[str, Base]) -> None:
    """Two callers at once make an image again; sandboxes that use the old one go on with it, new ones have the new one."""
    waited: list[str] = []
    results: list[Base] = []

    async def make() -> None:
        results.extend(await make_bases(Settings(), ["busybox"], lambda _, __, words: waited.append(words), again=True))

    old = (await ensure_bases(["busybox"]))["busybox"]
    async with sandbox(manager, "podman") as podman, sandbox(manager, "docker") as dockerd:
        sleeper = RunSpec(image="localhost/manyoyo/busybox", command=["sleep", "600"], network="none")
        services = {box.sandbox.sandbox_id: await box.engine.start(sleeper) for box in (podman, dockerd)}
        async with anyio.create_task_group() as group:
            group.start_soon(make)
            group.start_soon(make)
        assert any("waiting for another process" in words for words in waited)
        for box in (podman, dockerd):
            assert await box.output("echo", "again", image=old.image_id, network="none") == "again\n"
            said: list[bytes] = []
            assert (await box.exec(services[box.sandbox.sandbox_id], "ls", "/bin/sh", output=said)).exit_code == 0, said
    assert not makers()
    new = (await ensure_bases(["busybox"]))["busybox"]
    assert new.image_id != old.image_id
    assert new in results
    for engine in ("podman", "docker"):
        async with sandbox(manager, engine) as later:
            [image] = [
                image for image in await later.engine.images() if "localhost/manyoyo/busybox:latest" in image.tags
            ]
            assert image.image_id.removeprefix("sha256:") == new.image_id
            assert await later.output("echo", "hi", image="localhost/manyoyo/busybox:1.37", network="none") == "hi\n"
            python = await later.output("python", "-c", "print(1)", image="localhost/manyoyo/python", network="none")
            assert python == "1\n"


async def test_a_maker_that_is_killed_is_in_nobodys_way(made: dict[str, Base]) -> None:
    """Killed while it writes the shared stores, without a chance to clean up: the next one finds them in order."""
    before = (await ensure_bases(["busybox"]))["busybox"]
    async with await anyio.open_process(
        command_line("base", "busybox", "--again"), stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        said = b""
        while b"sharing it" not in said:
            said += await process.stderr.receive()
        await anyio.sleep(0.7)
        process.kill()
        assert await process.wait() == -signal.SIGKILL
    assert set(await ensure_bases()) == set(made)
    after = cli("base", "busybox", "--again", "--json", "--quiet")
    assert after.returncode == 0, after.stderr
    [base] = json.loads(after.stdout)
    assert base["current"] and base["image_id"] != before.image_id
    assert not makers()


async def test_an_interrupted_maker_cleans_up(made: dict[str, Base]) -> None:
    async with await anyio.open_process(
        command_line("base", "busybox", "--again"), stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        said = b""
        while b"apt-get update" not in said:  # packages are being assembled
            said += await process.stderr.receive()
        below = descendants(process.pid)
        assert len(below) > 2
        process.send_signal(signal.SIGINT)
        async for _ in process.stderr:
            pass
        assert await process.wait() == 130
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    assert not makers()
    assert set(await ensure_bases()) == set(made)


def descendants(pid: int) -> list[int]:
    children = [int(each) for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    return children + [each for child in children for each in descendants(child)]


@ENGINES
async def test_a_volume_without_images_is_no_obstacle(
    manager: Manager, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox that starts while the first base image is being made finds the volume empty."""
    empty = f"manyoyo-test-empty-{os.getpid()}"

    async def volume(*_: object) -> str:
        return empty

    monkeypatch.setattr(bases, "volume", volume)
    await manager.host.create_volume(empty, {"kind": "test"})
    try:
        async with sandbox(manager, engine) as box:
            assert await box.engine.images() == []
    finally:
        assert await manager.host.remove_volume(empty)
    assert not await manager.host.remove_volume(empty)


async def test_they_are_not_removed_while_a_sandbox_uses_them(box: Box, manager: Manager) -> None:
    with pytest.raises(RequestError) as refused:
        await bases.remove(manager.host)
    assert refused.value.instance_code == "IN_USE"
    assert f"manyoyo-{box.sandbox.sandbox_id}" in refused.value.message
    assert cli("base", "--remove").returncode == 2
    assert await manager.host.volume_exists(bases.VOLUME)


async def test_an_outer_container_of_that_name_is_left_alone(box: Box, manager: Manager) -> None:
    """The name is the lock: who does not get it must not take away what has it."""
    held = box.sandbox.outer
    spec = OuterSpec(held.sandbox_id, outer.reference(manager.settings), "podman", held.caps, 100, held.labels)
    with pytest.raises(NameConflict):
        await manager.host.create(spec)
    assert await manager.host.inspect(held) is not None
    assert await box.output("echo", "alive", image="localhost/manyoyo/busybox", network="none") == "alive\n"


def test_the_command_line_lists_them(made: dict[str, Base]) -> None:
    listed = cli("base", "--list", "--json", "--quiet")
    assert listed.returncode == 0, listed.stderr
    assert {each["name"] for each in json.loads(listed.stdout)} == set(made)
    shown = cli("base", "--list")
    assert all(f"localhost/manyoyo/{name}:latest" in shown.stdout for name in made)
    image = json.loads(cli("show", "--json").stdout)
    assert image["present"] and image["image"].startswith("localhost/manyoyo/sandbox:")


@pytest.mark.parametrize(
    ("argv", "says"), [(["base", "ruby"], "ruby"), (["base"], "--all"), (["base", "python", "--remove"], "--list")]
)
def test_the_command_line_says_what_there_is(argv: list[str], says: str) -> None:
    refused = cli(*argv)
    assert refused.returncode == 2
    assert says in refused.stderr and "debian, python, node, busybox" in refused.stderr
