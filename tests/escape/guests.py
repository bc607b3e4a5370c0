"""What is gVisor's own. Root in it may open its `/proc/sysrq-trigger`, write its cgroups, read its kernel log: all made up by a process, which
nobody outside hears of. So what is seen inside shows nothing, and these do all of it, to the end, and look outside for what came of it.
"""

import re
import subprocess
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from tests.escape.roads import Road
from tests.escape.vectors import Out, Outcome, contained
from tests.escape.world import World

OWN = {
    "dev-there-already": "its /dev/fuse is no file of the machine's",
    "sysrq": "what is written to its sysrq-trigger reaches no kernel's log",
    "kernel-log": "its log has no line of the machine's",
    "raise-own-cap": "its cgroups are made up: those outside stay, and kill as before",
    "devices-allow": "its cgroups are made up: those outside stay",
    "new-cgroup": "its cgroups are made up: there are no more outside than before",
}
"""Attempts that get through in gVisor, and what is to be shown of each."""
_CAP = 96 << 20
_DO = r"""
if ( : <> /dev/fuse ); then exec 3<>/dev/fuse; echo DID dev-there-already; fi
echo h > /proc/sysrq-trigger && echo DID sysrq
perl -e 'my $log = "\0" x 262144; my $got = syscall(103, 3, $log, 262144); print "LOG ", join("\nLOG ", split /\n/, substr($log, 0, $got)), "\nDID kernel-log\n" if $got > 0'
cd /sys/fs/cgroup && for each in memory.max pids.max */memory.limit_in_bytes */memory.memsw.limit_in_bytes */pids.max */cpu.cfs_quota_us; do
  [ ! -e $each ] || { echo 700000000 > $each && echo DID raise-own-cap; }; done
for each in devices/devices.allow; do [ ! -e $each ] || { echo 'a *:* rwm' > $each && echo DID devices-allow; }; done
for each in . memory pids devices; do [ ! -e $each/cgroup.procs ] || { mkdir $each/escape && echo DID new-cgroup; }; done
"""
_SCRIPT = f"while [ ! -e /go ]; do sleep 0.1; done; exec 2>&1; {_DO} echo DONE; while [ ! -e /on ]; do sleep 0.1; done; tail /dev/zero"
_CGROUPS = r"""for each in $(find /sys/fs/cgroup -type d -path '*ID*' | sort); do echo $each
  for file in memory.max pids.max cpu.max memory.limit_in_bytes memory.memsw.limit_in_bytes cpu.cfs_quota_us devices.list; do
    [ ! -e $each/$file ] || echo $file $(cat $each/$file); done; done"""


async def shown(world: World, road: Road, name: str) -> Outcome:
    """The outcome of one of `OWN`. Raises Out."""
    key = ("guest", road.name)
    if key not in world.kept:
        world.kept[key] = await _done(world, road)
    if name not in world.kept[key]:
        return contained("it is not let do that here")
    return contained(OWN[name])


async def _done(world: World, road: Road) -> set[str]:
    """All of it, and the looks outside; which of them the guest was let do."""
    host = {"Memory": _CAP, "MemorySwap": _CAP, "PidsLimit": 64}
    async with road.service("sh", "-c", _SCRIPT, HostConfig=host) as container:
        cgroups = _CGROUPS.replace("ID", container)
        before, log = await world.outer(cgroups), await anyio.to_thread.run_sync(_kernel_log)
        assert str(_CAP) in before, f"its cgroups are not found: {before}"
        await road.exec(container, "touch", "/go")
        with anyio.fail_after(30):
            while "DONE" not in (said := await road.logs(container)):
                await anyio.sleep(0.2)
        did = set(re.findall(r"^DID (\S+)", said.replace("\r", ""), re.MULTILINE))
        after, opened = await world.outer(cgroups), await anyio.to_thread.run_sync(_open_files, world)
        if before != after:
            raise Out(f"its cgroups have changed outside:\n{before}\n{after}")
        if fuse := [each for each in opened if "fuse" in each]:
            raise Out(f"the machine's device is open: {fuse}")
        lines = {line.partition("LOG ")[2].strip() for line in said.splitlines() if line.startswith("LOG ")}
        theirs = {_words(line) for line in log if len(_words(line)) > 20}
        if "kernel-log" in did and (seen := theirs & {_words(line) for line in lines}):
            raise Out(f"the machine's kernel log is read: {sorted(seen)[:3]}")
        new = (await anyio.to_thread.run_sync(_kernel_log))[len(log) :]
        if sysrq := [line for line in new if "sysrq" in line.lower()]:
            raise Out(f"the machine's kernel was told: {sysrq}")
        await road.exec(container, "touch", "/on")
        if (code := await road.ended(container)) != 137:
            raise Out(f"it took what it liked, and ended with {code}")
    return did


def _kernel_log() -> list[str]:
    """The machine's; nothing where it can't be read."""
    return subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace").stdout.splitlines()


def _words(line: str) -> str:
    """A line of a kernel's log without its time."""
    return re.sub(r"^(<[0-9]+>)?\[[ 0-9.]+\]\s*", "", line).strip()


def _open_files(world: World) -> set[str]:
    """What processes of the sandbox have open, as this machine has it."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if world.box.sandbox.outer.container_id in (entry / "cgroup").read_text():
                for each in (entry / "fd").iterdir():
                    with suppress(OSError):
                        found.add(str(each.readlink()))
    return found
