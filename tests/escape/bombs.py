"""What uses up what others need. Each stays below the sandbox's own caps, where there is nothing to hold it but those."""

import gzip
import io
import os
import re
import time

import anyio
import docker

from tests.escape.roads import Road, entry
from tests.escape.vectors import GATES, ON_HOST, OWN, Out, Outcome, contained, pointless, vector
from tests.escape.world import DISK, World

_LATE = 5.0
"""Seconds within which another sandbox answers, whatever this one does; a quarter of one is usual."""
_MEMORY = {"HostConfig": {"Memory": 96 << 20, "PidsLimit": 64}}


async def _meanwhile(world: World, road: Road, script: str, **config: object) -> tuple[int, str, float]:
    """A bomb's end, what it said, and the longest that another sandbox took for a run meanwhile."""
    longest, ended = 0.0, anyio.Event()
    told: list[tuple[int, str]] = []

    async def explode() -> None:
        try:
            told.append(await road.run(script, **(_MEMORY | config)))
        finally:
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(explode)
        while not ended.is_set():
            begun = time.monotonic()
            await world.neighbour.box.output("echo", "there", network="none")
            longest = max(longest, time.monotonic() - begun)
            await anyio.sleep(0.1)
    ((code, said),) = told
    if longest > _LATE:
        raise Out(f"another sandbox took {longest:.1f} s")
    return code, said, longest


@vector("fork-bomb", "CVE-less classic: :(){ :|:& };:", last=True)
async def fork_bomb(world: World, road: Road) -> Outcome:
    script = r"""perl -e '$0 = "escape-fork"; for (1..400) { defined(my $pid = fork) or next; $pid or do { sleep 3; exit } } sleep 3'"""
    box, peak, cap = world.box, 0, 64 + (_gvisors_own() if world.tier == "gvisor" else 0)

    async def count() -> None:
        nonlocal peak
        while True:
            if world.tier == "gvisor":
                now = int(await world.outer(_TASKS))
            elif world.tier in ON_HOST:
                now = int(await world.outer("grep -l escape-for[k] /proc/[0-9]*/cmdline 2>/dev/null | wc -l"))
            else:
                now = len(box.processes("escape-fork"))
            peak = max(peak, now)
            await anyio.sleep(0.2)

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        await _meanwhile(world, road, script)
        group.cancel_scope.cancel()
    if peak > cap:
        raise Out(f"{peak} processes at a cap of {cap}")
    assert peak > cap // 3, f"it did not explode: {peak}"
    return contained(f"{peak} processes at a cap of {cap}")


@vector("memory-bomb", OWN, last=True)
async def memory_bomb(world: World, road: Road) -> Outcome:
    code, said, _ = await _meanwhile(world, road, "tail /dev/zero")
    if code not in (137, 1):
        raise Out(f"not killed: {code} {said}")
    return contained("killed at its cap")


@vector("shared-memory-bomb", OWN, last=True)
async def shared_memory_bomb(world: World, road: Road) -> Outcome:
    """Files in memory are their container's too."""
    code, said, _ = await _meanwhile(world, road, "cat /dev/zero > /dev/shm/fill; stat -c %s /dev/shm/fill; echo ended")
    assert code == 137 or "ended" in said, f"it did not explode: {code} {said}"
    sizes = [int(line) for line in said.split() if line.isdigit()]
    if any(size > 96 << 20 for size in sizes):
        raise Out(said)
    return contained("killed at its cap" if code == 137 else f"full at {sizes[0] >> 20} MiB")


@vector("dentry-bomb", OWN, last=True)
async def dentry_bomb(world: World, road: Road) -> Outcome:
    """Names that are not there, and directories in memory: what the kernel keeps of them counts."""
    script = r"""perl -e 'mkdir "/dev/shm/d"; for (1..150000) { stat "/nothing/$_"; $_ % 3 or mkdir "/dev/shm/d/$_" or last } print "ended at $!\n"'"""
    code, _, _ = await _meanwhile(world, road, script)
    free = _free(await world.outer("cat /proc/meminfo"))
    if free < 256 << 20:
        raise Out(f"{free >> 20} MiB of memory are left on the machine")
    return contained(f"its own memory: exit code {code}")


@vector("inode-bomb", OWN, last=True)
async def inode_bomb(world: World, road: Road) -> Outcome:
    script = "mkdir /i; cd /i; perl -e 'for (1..20000) { open(F, \">\", $_) or last }'; ls | wc -l"
    await _meanwhile(world, road, script)
    left = await world.outer(
        "touch /var/lib/manyoyo/tmp/escape && echo room; rm -f /var/lib/manyoyo/tmp/escape; df -i / | tail -n 1"
    )
    if "room" not in left:
        raise Out(left)
    return contained("the sandbox's store has room")


@vector("log-bomb", OWN, last=True)
async def log_bomb(world: World, road: Road) -> Outcome:
    """What nobody reads is kept up to a limit."""
    async with world.roads.get("gate", road).service(
        "sh",
        "-c",
        "yes 0123456789012345678901234567890123456789 | head -c 80000000; trap 'exit 0' TERM; sleep 300 & wait",
    ) as container:
        await anyio.sleep(4)
        sizes = await world.outer(
            f"find {_logs(world)} -path '*{container}*' -name '*.log*' -size +1k -exec stat -c %s {{}} + 2>/dev/null"
        )
        assert sizes.split(), "no log was found"
    kept = sum(map(int, sizes.split()))
    if kept > 40_000_000:
        raise Out(f"{kept >> 20} MiB of log")
    return contained(f"{kept >> 20} MiB of 76 are kept")


@vector("descriptor-bomb", OWN, last=True)
async def descriptor_bomb(world: World, road: Road) -> Outcome:
    script = r"""perl -e 'my @kept; while (@kept < 100000 and open(my $f, "<", "/dev/null")) { push @kept, $f } print scalar(@kept), " $!\n"; sleep 1'"""
    _, said, _ = await _meanwhile(world, road, script)
    return contained(f"{said.strip()[:50]}")


@vector("conntrack-bomb", OWN, last=True)
async def conntrack_bomb(world: World, road: Road) -> Outcome:
    """Some hundred flows to the sandbox's own gateway; others' go on."""
    script = r"""perl -e '
socket(my $s, 2, 2, 17); my ($gateway) = map { /^\S+\t00000000\t(\S{8})/ ? pack("L", hex $1) : () } do { open(my $f, "<", "/proc/net/route"); <$f> };
($gateway) = map { /default via ([0-9.]+)/ ? pack("C4", split /\./, $1) : () } `ip route` unless $gateway;
for (20000..20400) { send($s, "x", 0, pack("S n a4 x8", 2, $_, $gateway)) and $count++ or $why = $! } print "sent $count $why\n"'"""
    _, said, _ = await _meanwhile(world, road, script)
    if not re.search("sent [2-4][0-9][0-9]", said):
        if world.tier in ON_HOST:  # its gateway is the machine
            assert "not permitted" in said, said
            return contained("nothing goes to the machine")
        assert world.tier == "gvisor", said
        return pointless("what is in gVisor knows no gateway")
    most, now = (
        await world.outer("cat /proc/sys/net/netfilter/nf_conntrack_max /proc/sys/net/netfilter/nf_conntrack_count")
    ).split()[:2]
    if int(now) > int(most) // 2:
        raise Out(f"{now} of {most} are taken")
    return contained(f"{now} of {most} taken")


@vector("cpu-bomb", OWN, last=True)
async def cpu_bomb(world: World, road: Road) -> Outcome:
    host = {"NanoCpus": 500_000_000, "PidsLimit": 64, "Memory": 96 << 20}
    script = r"""perl -e 'my $end = time + 4; for (1..8) { fork or do { 1 while time < $end; exit } } 1 while wait > 0; print "USED ", (times)[2], "\n"'"""
    before = await _cpu_seconds(world)
    _, said, _ = await _meanwhile(world, road, script, HostConfig=host)
    used = float(said.partition("USED ")[2].split()[0])
    most = 3.2
    if world.tier == "gvisor":  # its processes' clocks are its own: what the sandbox used, engine and start too
        used, most = await _cpu_seconds(world) - before, 5.2
    assert used > 1, said
    if used > most:
        raise Out(f"{used} s of CPU in 4 s at a cap of a half")
    return contained(f"{used:.1f} s of CPU in 4 s at a cap of a half")


def _logs(world: World) -> str:
    """Where containers' logs lie."""
    if world.tier not in ON_HOST:
        return "/var/lib/manyoyo /run/containers"
    host = docker.from_env()
    try:
        return f"{host.info()['DockerRootDir']}/containers"
    finally:
        host.close()


async def _cpu_seconds(world: World) -> float:
    """That the sandbox has used."""
    said = await world.outer(
        "sed -n 's/^usage_usec /u/p' /sys/fs/cgroup/cpu.stat; sed 's/^/n/' /sys/fs/cgroup/cpuacct/cpuacct.usage"
    )
    found = re.search(r"^([un])([0-9]+)", said, re.MULTILINE)
    assert found, said
    return int(found[2]) / (1e6 if found[1] == "u" else 1e9)


@vector("archive-bomb", "zip bomb", roads=GATES, last=True)
async def archive_bomb(world: World, road: Road) -> Outcome:
    """A context of a few megabytes that unpacks to more than may be."""

    buffer = io.BytesIO()
    info = entry("zeros")
    info.size = 256 << 20
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(256):
            file.write(bytes(1 << 20))
    answer = await road.request("POST", "/build", road.build_query(), data=buffer.getvalue())
    if answer.ok:
        raise Out("unpacked")
    assert "larger than" in answer.text, answer
    return Outcome("refused", "CONTEXT_REFUSED")


@vector("disk-bomb", OWN, last=True)
async def disk_bomb(world: World, road: Road) -> Outcome:
    """Where a disk can be capped, it is full at its cap; elsewhere that is not held back, and is not tried."""
    if world.box.sandbox.disk is None:
        return pointless("this host can't cap disks")
    if world.tier == "rootless":
        return await _full_for_good(world, road)
    script = f"dd if=/dev/zero of=/fill bs=1M count={(DISK >> 20) + 256} 2>/dev/null; s=$(stat -c %s /fill); rm -f /fill; echo SIZE $s"
    _, said, _ = await _meanwhile(world, road, script)
    size = int(said.partition("SIZE ")[2].split()[0])
    if size > DISK:
        raise Out(said)
    return contained(f"full at {size >> 20} of {DISK >> 20} MiB")


async def _full_for_good(world: World, road: Road) -> Outcome:
    """A disk that has not even room to remove a file, and can't be lent any there (docs/security.md): the way out is a larger one."""
    cap = world.kept.get("disk cap", DISK)
    script = f"dd if=/dev/zero of=/fill bs=1M count={(cap >> 20) + 256} 2>/dev/null; exec sleep 1000"
    async with road.service("sh", "-c", script):
        size, before = 0, -1
        with anyio.fail_after(100):
            while size < cap >> 1 or size > before:
                await anyio.sleep(3)
                size, before = int((await world.outer("du -s -k /var/lib/manyoyo/podman")).split()[0]) << 10, size
        larger = cap + (1 << 30)
        answer = await world.tool.call("start_sandbox", disk=str(larger))
        assert answer.ok, answer
        world.kept["disk cap"] = larger
    if size > cap:
        raise Out(f"{size} bytes at a cap of {cap}")
    return contained(f"full at {size >> 20} of {cap >> 20} MiB")


_TASKS = """for each in $(find /sys/fs/cgroup -path '*libpod-*' -not -path '*conmon*' -name pids.current); do cat $each; done | sort -n | tail -n 1 | grep . || echo 0"""
"""Processes and threads of the nested container that has most, as the machine counts them."""


def _gvisors_own() -> int:
    """By how much the tier raises a cap of processes, for gVisor's own threads (`oci-add`)."""
    return 32 + 8 * (os.cpu_count() or 1)


def _free(meminfo: str) -> int:
    return int(meminfo.partition("MemAvailable:")[2].split()[0]) << 10
