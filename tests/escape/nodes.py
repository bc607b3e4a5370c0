"""Images whose files are no files: device nodes, pipes and links where an engine reads as root of the outer container (who is `User`?), or mounts."""

import io
import secrets
import tarfile
from collections.abc import Sequence
from functools import cache
from typing import Any

import anyio
import anyio.to_thread
import docker

from manyoyo_mcp.errors import PolicyRefused
from tests.escape.canaries import CANARY
from tests.escape.roads import Answer, Road, entry, tar
from tests.escape.vectors import ON_HOST, OWN, ROADS, Out, Outcome, Vector, add, contained, vector
from tests.escape.world import IMAGE, World, context

_SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep 300 & wait"]
Member = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]
_READ = "token too long"
"""What an engine written in Go says of a list of users that is a disk: some line of it does not end."""


async def _image(world: World, *members: Member) -> str:
    """An image with busybox and these, made as a registry's could be: by an archive that a build unpacks. On the machine's own engine, which unpacks
    none for a sandbox: one that the operator has named."""
    files = {"root.tar": _without_users(context()["root.tar"]), "more.tar": tar({}, *members)}
    if world.tier in ON_HOST:
        tag = f"localhost/manyoyo-test/nodes:{secrets.token_hex(4)}"
        await anyio.to_thread.run_sync(_laid, tag, files)
        return tag
    tag = world.tag("nodes")
    built, said = await world.tool.build(
        'FROM scratch\nADD root.tar more.tar /\nENV PATH=/bin\nCMD ["sh"]\n', files, tag
    )
    assert built, said
    return tag


def _laid(tag: str, files: dict[str, bytes]) -> None:
    dockerfile = b'FROM scratch\nADD root.tar more.tar /\nENV PATH=/bin\nCMD ["sh"]\n'
    host = docker.from_env()
    try:
        archive = io.BytesIO(tar(files | {"Dockerfile": dockerfile}))
        host.images.build(fileobj=archive, custom_context=True, tag=tag, rm=True)
    finally:
        host.close()


@cache
def _without_users(rootfs: bytes) -> bytes:
    """A root file system in whose /etc is nothing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(rootfs)) as given, tarfile.open(fileobj=buffer, mode="w") as kept:
        for each in given:
            if not each.name.startswith("etc/"):
                kept.addfile(each, given.extractfile(each))
    return buffer.getvalue()


def _plain(name: str, text: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = entry(name)
    info.size = len(text)
    return info, text


async def _soon(road: Road, method: str, path: str, **given: Any) -> Answer | None:
    """None where it takes too long: who opened a pipe waits for ever."""
    answer = None
    with anyio.move_on_after(20):
        answer = await road.request_left(method, path, **given)
    return answer


async def _started(world: World, road: Road, tag: str, user: str) -> tuple[str, str]:
    """A run and an exec as that user: what the engine says of either, "" where it runs, or that it hangs."""

    async def said(answer: Answer | None) -> str:
        if answer is not None:
            return answer.text if not answer.ok or "unable" in answer.text else ""
        listed = await _soon(road, "GET", "/containers/json")
        await world.outer(_RELEASE % await _root(world))
        return "hangs" if listed is not None else _HANGS

    async def one(command: list[str], who: str, *, enters: bool) -> str:
        made = await _soon(road, "POST", "/containers/create", body={"Image": tag, "Cmd": command, "User": who})
        if made is None or not made.ok:
            return await said(made)
        container = made.json()["Id"]
        answer = await _soon(road, "POST", f"/containers/{container}/start")
        if enters and answer is not None and answer.ok:
            body = {"Cmd": ["echo", "ran"], "AttachStdout": True, "AttachStderr": True, "User": user}
            answer = await _soon(road, "POST", f"/containers/{container}/exec", body=body)
            if answer is not None and answer.ok:
                begun = {"Detach": False, "Tty": False}
                answer = await _soon(road, "POST", f"/exec/{answer.json()['Id']}/start", body=begun)
        found = await said(answer)
        await _soon(road, "DELETE", f"/containers/{container}", query={"force": "1"})
        return found

    return await one(["echo", "ran"], user, enters=False), await one(_SLEEP, "0:0", enters=True)


_HANGS = "hangs, and its engine with it"
_RELEASE = """for round in $(seq 20); do
  for each in %s; do
    [ ! -p $each ] || timeout 0.2 sh -c ': > $0' $each; done; sleep 0.05; done"""
"""Whoever waits at a pipe need not any more."""


async def _root(world: World) -> str:
    """Where the files of containers that run are seen, as a pattern of the shell's."""
    if world.tier not in ON_HOST:
        return "/var/lib/manyoyo/*/overlay*/*/merged/etc/passwd /var/lib/manyoyo/docker/*/overlay2/*/merged/etc/passwd"
    host = await anyio.to_thread.run_sync(docker.from_env)
    root = (await anyio.to_thread.run_sync(host.info))["DockerRootDir"]
    host.close()
    return f"{root}/overlay2/*/merged/etc/passwd"


_DISKS = """awk 'NR > 2 { print $1, $2 }' /proc/partitions | head -n 40 | while read -r major minor; do
  mknod /tmp/escape-disk b $major $minor; [ "$(head -c 65600 /tmp/escape-disk 2>/dev/null | tr -d '\\n' | wc -c)" != 65600 ] || echo $major $minor
  rm -f /tmp/escape-disk; done"""
"""Those that the outer container can read, and that begin with one long line, as empty ones do."""


async def _disk(world: World) -> tarfile.TarInfo:
    """A list of users that is a disk of the machine's: to be opened for reading harms none, and no container has it."""
    if "disk" not in world.kept:
        found = (await world.outer(_DISKS)).split()
        assert found or world.tier != "privileged", "the outer container has no disk either, so this shows nothing"
        world.kept["disk"] = tuple(map(int, found[:2])) or (254, 0)
    major, minor = world.kept["disk"]
    return entry("etc/passwd", tarfile.BLKTYPE, devmajor=major, devminor=minor, mode=0o666)


def _passwd(name: str, source: str, *given: Member | None, roads: Sequence[str] = ROADS) -> None:
    """An image with these files; a disk for one that is None."""

    async def attempt(world: World, road: Road) -> Outcome:
        tag = await _image(world, *[each or await _disk(world) for each in given])
        try:
            said = await _started(world, road, tag, "escapee")
            ran = "hangs"
            with anyio.move_on_after(20):
                ran = "".join((await world.tool.run("echo alive"))[1].split())
        finally:
            with anyio.CancelScope(shield=True):
                await _soon(world.control, "DELETE", f"/images/{tag}", query={"force": "1"})
        if any(_READ in each for each in said):
            raise Out(f"the engine read a device node: {said}")
        if "" in said:
            raise Out(f"it runs as a user of somewhere else: {said}")
        if _HANGS in said or ran != "alive":
            raise Out(f"the engine hangs: {said}, {ran}")
        return contained("; ".join(dict.fromkeys(each.strip()[-80:] for each in said)))

    add(Vector(name, source, "nodes", attempt, roads=roads))


_GROUP = _plain("etc/group", b"root:x:0:\n")
_passwd("passwd-is-a-device", "docs/security.md: dockerd reads it as the outer container's root", None, _GROUP)
_passwd("passwd-is-a-pipe", OWN, entry("etc/passwd", tarfile.FIFOTYPE), _GROUP, roads=("gate",))
for _name, _link in (
    ("link", "/proc/1/root/run/escape-canary/passwd"),
    ("link-with-dots", f"../../../../../../../..{CANARY}/passwd"),
    ("link-to-a-process", "/proc/self/cwd/run/escape-canary/passwd"),
):
    _passwd(f"passwd-is-a-{_name}", "CVE-2018-15664's kin", entry("etc/passwd", tarfile.SYMTYPE, _link), _GROUP)


_RUN_AS = (
    "RUN rm -f /etc/passwd; mknod /etc/passwd b {} {}",
    "RUN mknod /d b {} {}; mv -f /d /etc/passwd",
    "ADD more.tar /\nRUN mv -f /d /etc/passwd",
)


@vector(
    "passwd-becomes-a-device",
    "docs/security.md: a node made, unpacked or copied in, and moved there",
    roads=("tool", "gate"),
)
async def passwd_becomes_a_device(world: World, road: Road) -> Outcome:
    """The same without an image that has it: by a step of a build, by an archive that it adds, by a copy into a container that runs."""
    disk = await _disk(world)
    node = tar({}, entry("d", tarfile.BLKTYPE, devmajor=disk.devmajor, devminor=disk.devminor, mode=0o666))
    said = []
    if road is world.tool and world.builds(road):
        for step in _RUN_AS:
            dockerfile = (
                f"FROM {IMAGE}\nUSER 0\n{step.format(disk.devmajor, disk.devminor)}\nUSER escapee\nRUN echo ran\n"
            )
            try:
                said.append((await world.tool.build(dockerfile, {"more.tar": node}, world.tag("becomes")))[1])
            except PolicyRefused as refused:
                said.append(refused.message)
    async with road.service(*_SLEEP) as container:
        laid = await road.request("PUT", f"/containers/{container}/archive", {"path": "/tmp"}, data=node)
        said.append(laid.text)
        await road.exec(
            container, "sh", "-c", f"mknod /tmp/d b {disk.devmajor} {disk.devminor}; mv -f /tmp/d /etc/passwd"
        )
        said.append((await road.exec(container, "echo", "ran", User="escapee"))[1])
    after = await world.tool.run("echo alive")
    if any(_READ in each for each in said):
        raise Out(f"the engine read a device node: {said}")
    assert "alive" in after[1], after
    return contained(" | ".join(dict.fromkeys(each.strip()[-80:] for each in said)))


@vector("engines-files-are-links", "CVE-2015-3629, CVE-2015-3627 (links on the way of what an engine lays in)")
async def engines_files_are_links(world: World, road: Road) -> Outcome:
    """What engines make or mount over in every container leads out: their names, their marks, their secrets."""
    names = ("hosts", "hostname", "resolv.conf", "mtab", "passwd", "group")
    links = [entry(f"etc/{each}", tarfile.SYMTYPE, f"../../../../../..{CANARY}/empty") for each in names]
    links += [entry(each, tarfile.SYMTYPE, f"{CANARY}/made") for each in (".dockerenv", "run", "dev", "sys", "var")]
    tag = await _image(world, *links)
    try:
        code, said = await road.run(
            "echo x > /etc/hosts; echo x > /etc/hostname; ls -la /etc /; cat /etc/passwd; echo TRIED", Image=tag
        )
    finally:
        await world.control.request("DELETE", f"/images/{tag}", {"force": "1"})
    if world.canaries.secret in said:
        raise Out(said[-500:])
    return contained("it does not start" if code == 125 else "it starts, and its links are its own")


@vector("image-of-nodes", "docs/security.md: device nodes in an image")
async def image_of_nodes(world: World, road: Road) -> Outcome:
    """Nodes of the machine's disks, memory and log, in an image as a registry could have it."""
    kinds = (
        (tarfile.BLKTYPE, 254, 0),
        (tarfile.BLKTYPE, 8, 0),
        (tarfile.BLKTYPE, 7, 0),
        (tarfile.CHRTYPE, 1, 1),
        (tarfile.CHRTYPE, 1, 11),
        (tarfile.CHRTYPE, 10, 237),
    )
    members = [
        entry(f"n{at}", kind, devmajor=major, devminor=minor, mode=0o666)
        for at, (kind, major, minor) in enumerate(kinds)
    ]
    tag = await _image(world, *members)
    try:
        script = (
            'for each in /n*; do if ( : < $each ) 2>/dev/null; then echo "OUT $each"; fi; done; ls -l /n*; echo TRIED'
        )
        code, said = await road.run(script, Image=tag)
    finally:
        await world.control.request("DELETE", f"/images/{tag}", {"force": "1"})
    if "OUT " in said:
        raise Out(said[-500:])
    assert code == 125 or "TRIED" in said, said
    return contained("no image, or it does not start" if code == 125 else "they can't be opened")
