"""Base images made from packages: in every new sandbox of either engine, shared and not copied, safe to make while used."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import docker
import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import NameConflict, RequestError
from manyoyo_mcp.hosts.base import OuterSpec
from manyoyo_mcp.image import bases, outer
from manyoyo_mcp.image.bases import Base
from manyoyo_mcp.sessions.manager import Manager, open_manager
from tests.integration.bases import ensure_bases
from tests.support import MIB, Box, exec_in

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("bases_begun"),
    pytest.mark.timeout(900),  # the first to need base images makes them
]

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
    done = exec_in(container, argv, environment={"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"})
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


async def test_no_prune_of_the_hosts_takes_them(box: Box) -> None:
    """What is kept stands on them, and the host's owner may not know it. Asked of ours alone: a prune of all would take others'."""
    host = docker.DockerClient(
        base_url=os.environ.get("DOCKER_HOST"), version="1.41"
    )  # up to it named volumes are pruned
    keeper = host.containers.get("manyoyo-pool")
    assert {"manyoyo-pool", "manyoyo-bases"} <= {mount.get("Name") for mount in keeper.attrs["Mounts"]}
    assert keeper.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped", "nor after a reboot"
    for kind in ("bases", "pool"):
        assert not host.volumes.prune(filters={"label": f"org.manyoyo.kind={kind}"})["VolumesDeleted"]
    host.close()


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
        removal = exec_in(container, [*program, "rmi", "-f", *names])
        if engine == "docker":
            assert removal.exit_code == 0, removal.output
            assert not any(set(names) & set(image.tags) for image in await vandal.engine.images())
        else:
            assert b"read-only" in removal.output
        written = exec_in(container, ["sh", "-c", "touch /srv/manyoyo-bases/x; rm -rf /srv/manyoyo-bases/*"])
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
    """Two processes make an image again; the first is killed while it writes the shared stores, and the second, which
    waited, does it. Sandboxes that use the old image go on with it, new ones have the new one."""
    old = (await ensure_bases(["busybox"]))["busybox"]
    async with sandbox(manager, "podman") as podman, sandbox(manager, "docker") as dockerd:
        services = {
            box.sandbox.sandbox_id: await box.service("sleep", "600", image="localhost/manyoyo/busybox", network="none")
            for box in (podman, dockerd)
        }
        again = command_line("base", "busybox", "--again", "--json")
        async with await anyio.open_process(again) as first:
            await said_by(first, "assembling packages")
            async with await anyio.open_process(again) as second:
                await said_by(second, "waiting for another process")
                await said_by(first, "sharing it with the sandboxes")
                await anyio.sleep(0.7)
                first.kill()
                assert await first.wait() == -signal.SIGKILL
                await said_by(second, "done")
                assert await second.wait() == 0
                assert second.stdout is not None
                [printed] = json.loads(await second.stdout.receive())
        for box in (podman, dockerd):
            assert await box.output("echo", "again", image=old.image_id, network="none") == "again\n"
            said: list[bytes] = []
            assert (await box.exec(services[box.sandbox.sandbox_id], "ls", "/bin/sh", output=said)).exit_code == 0, said
    assert not makers()
    there = await ensure_bases()
    assert set(there) == set(made)
    assert there["busybox"].image_id == printed["image_id"] != old.image_id
    for engine in ("podman", "docker"):
        async with sandbox(manager, engine) as later:
            [image] = [
                image for image in await later.engine.images() if "localhost/manyoyo/busybox:latest" in image.tags
            ]
            assert image.image_id.removeprefix("sha256:") == printed["image_id"]
            assert await later.output("echo", "hi", image="localhost/manyoyo/busybox:1.37", network="none") == "hi\n"
            python = await later.output("python", "-c", "print(1)", image="localhost/manyoyo/python", network="none")
            assert python == "1\n"


async def said_by(process: anyio.abc.Process, words: str) -> None:
    """Wait until a process has written `words` to stderr."""
    assert process.stderr is not None
    said = b""
    with anyio.fail_after(600):
        while words.encode() not in said:
            try:
                said += await process.stderr.receive()
            except anyio.EndOfStream:
                pytest.fail(f"never said {words!r}, but: {said.decode()}")


async def test_an_interrupted_maker_cleans_up(made: dict[str, Base]) -> None:
    async with await anyio.open_process(
        command_line("base", "busybox", "--again"), stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        await said_by(process, "running apt-get update")
        below = group_of(process.pid)
        assert len(below) > 2
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert not group_of(process.pid)
    assert not makers()
    assert set(await ensure_bases()) == set(made)


def group_of(session: int) -> list[str]:
    """The processes of a session, by their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


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
    """The name is the lock: who does not get it must not take away what has it, nor leave anything of its own."""
    held = box.sandbox.outer
    mine = f"sb-{secrets.token_hex(8)}"
    spec = OuterSpec(
        sandbox_id=mine,
        image=outer.reference(manager.settings),
        engine="podman",
        caps=held.caps,
        build_pids=100,
        lease=600,
        labels={**held.labels, "sandbox": mine},
        name=f"manyoyo-{held.sandbox_id}",
    )
    with pytest.raises(NameConflict):
        await manager.host.create(spec)
    assert await manager.host.inspect(held) is not None
    assert await box.output("echo", "alive", image="localhost/manyoyo/busybox", network="none") == "alive\n"
    assert await manager.host.find({}, mine) == []
    assert not await manager.host.volume_exists(f"manyoyo-{mine}")
    assert not (manager.settings.runtime_dir / "sandboxes" / mine).exists()


def test_the_command_line_lists_them(made: dict[str, Base]) -> None:
    listed = cli("base", "--list", "--json", "--quiet")
    assert listed.returncode == 0, listed.stderr
    assert {each["name"] for each in json.loads(listed.stdout)} >= set(made)
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
    assert says in refused.stderr and "debian, python, node, busybox, postgres" in refused.stderr
