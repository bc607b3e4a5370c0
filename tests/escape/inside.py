"""Code that runs as root in a nested container. All of it is tried in one script, once for each road, with all capabilities that the policy
grants, and once in a RUN step.

What could hurt the machine if it worked is asked in a way that does not: a file is opened for writing, not written; a module's blob
is none; a reboot has the wrong magic number. So the same script shows, in the outer container itself, that an attempt can work.
"""

from dataclasses import dataclass

from manyoyo_mcp.policy.fields import CAPABILITIES
from tests.escape import beside, guests
from tests.escape.canaries import ABSTRACT, CANARY, SYSCALLS
from tests.escape.roads import IMAGE, Road
from tests.escape.vectors import BUILDS, ON_HOST, OWN, Out, Outcome, Vector, add, nothing_out
from tests.escape.world import World

_MASKS = "Docker's masked and read-only paths (CVE-2015-3630)"
ABSENT = "ABSENT"
"""Said where this kernel has no such thing."""

_FUNCTIONS = r"""
W=$(mktemp -d /tmp/escape.XXXXXX); mkdir $W/m
cat > $W/syscall.pl <<'PERL'
%s
PERL
sys() { perl $W/syscall.pl "$@" 2>&1; }
out() { echo "OUT $*"; }
# Opened, so that it is known whether that may be written; nothing is.
writable() {
  for each; do
    if [ ! -e "$each" ]; then echo "ABSENT $each"; continue; fi
    if ( : >> "$each" ) 2>/dev/null; then out "$each can be written"; else echo "$each: no"; fi
  done
}
readable() {
  for each; do
    if [ ! -e "$each" ]; then echo "ABSENT $each"; continue; fi
    if [ "$(dd if="$each" bs=1 count=1 2>/dev/null | wc -c)" = 1 ]; then out "$each can be read"; else echo "$each: nothing"; fi
  done
}
device() { rm -f $W/d; mknod $W/d "$@" 2>&1 && if ( : < $W/d ) 2>/dev/null; then out "device $* can be opened"; else echo "device $*: no"; fi; }
mounted() { sys mount "$@" && { out "mounted $*"; umount $W/m 2>/dev/null; }; }
"""


@dataclass(frozen=True, slots=True)
class Inside:
    """`shown`: in which tiers' outer container the same script says OUT, or that this kernel lacks it. Else it is not tried there."""

    name: str
    source: str
    script: str
    shown: str = ""
    smoke: bool = False


_BOTH, _PRIVILEGED = "privileged hardened", "privileged"
_OUTER = {"userns": "hardened", "gvisor": "hardened", "rootless": "hardened", "sock": "", "common": ""}
"""Tiers whose outer container may what another's may. Where there is none, it is not tried on the machine itself."""
_USERNS = r"""perl -e '
my ($number, $flags, $script) = @ARGV;
syscall($number + 0, $flags + 0) == 0 or do { print "unshare: $!\n"; exit };
for (["uid_map", "0 0 1"], ["setgroups", "deny"], ["gid_map", "0 0 1"]) {
    open(my $f, ">", "/proc/self/$_->[0]") or next;
    print $f $_->[1];
    close $f;
}
exec "sh", "-c", $script' $(case $(uname -m) in aarch64) echo 97 ;; *) echo 272 ;; esac) %d '%s' 2>&1
"""
"""A script in a user namespace of its own, and others as the flags say (clone(2))."""
_NEW_USER, _NEW_MOUNTS, _NEW_CGROUP, _NEW_NET = 0x10000000, 0x20000, 0x2000000, 0x40000000
_SYSCALL = 'sys() { perl "$W"/syscall.pl "$@"; }; '

TRIES = [
    # devices of the machine's
    Inside("host-disk", "Docker issue: privileged dind (trailofbits, 2019)", r"""
awk '$1 ~ /^[0-9]+$/ { print $1, $2 }' /proc/partitions | head -n 4 | while read -r major minor; do device b $major $minor; done
[ -s /proc/partitions ] || echo ABSENT""", _PRIVILEGED, smoke=True),
    Inside("dev-mem", OWN, "device c 1 1; device c 1 4"),
    Inside("dev-kmsg", OWN, "device c 1 11", _PRIVILEGED),
    Inside("dev-kvm-loop", OWN, "device c 10 232; device c 10 237; device b 7 0", _PRIVILEGED),
    Inside("dev-there-already", OWN, r"""
for each in /dev/*; do case ${each#/dev/} in sd*|vd*|nvme*|loop*|dm-*|mem|kmem|port|kmsg|kvm|fuse|mapper|net|snapshot|autofs) out $each ;; esac; done""", _PRIVILEGED),
    # settings of the kernel's, which are the machine's
    Inside("core-pattern", "core_pattern as a way to the host (CVE-2019-19921's aim)", "writable /proc/sys/kernel/core_pattern", _PRIVILEGED, smoke=True),
    Inside("modprobe-path", "modprobe_path", "writable /proc/sys/kernel/modprobe", _PRIVILEGED),
    Inside("sysrq", OWN, "writable /proc/sysrq-trigger", _PRIVILEGED),
    Inside("sysctls", _MASKS, "writable /proc/sys/kernel/panic /proc/sys/kernel/sysrq /proc/sys/vm/panic_on_oom /proc/sys/fs/file-max", _PRIVILEGED),
    Inside("binfmt-misc", "binfmt_misc handlers (bubblewrap, Toro 2020)", "writable /proc/sys/fs/binfmt_misc/register; mounted s:none s:$W/m s:binfmt_misc 0 0", _BOTH),
    Inside("uevent-helper", "uevent_helper (Trail of Bits, CVE-2022-0492's cousin)", "writable /sys/kernel/uevent_helper /sys/kernel/mm/transparent_hugepage/enabled", _PRIVILEGED),
    Inside("interrupts", _MASKS, "writable /proc/irq/default_smp_affinity", _PRIVILEGED),
    Inside("power-and-firmware", _MASKS, "writable /sys/power/state /sys/module/kernel/parameters/panic", _PRIVILEGED),
    Inside("kcore", _MASKS, "readable /proc/kcore", _PRIVILEGED),
    Inside("keys-and-timers", _MASKS, "readable /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats", _PRIVILEGED),
    Inside("kernel-log", OWN, f"sys syslog 3 b:{'00' * 128} 128 && out the kernel log", _BOTH),
    # calls that only the machine's root may make
    Inside("init-module", "CAP_SYS_MODULE", f"sys init_module b:{'00' * 16} 16 s:; [ $? != 8 ] || out a module would be loaded", _PRIVILEGED),
    Inside("finit-module", "CAP_SYS_MODULE", r"""
perl -e 'open F, "<", "/proc/version"; system("perl", "'$W'/syscall.pl", "finit_module", 0 + fileno(F), "s:", 0); exit $? >> 8'
case $? in 1|38) ;; *) out a module would be loaded ;; esac"""),
    Inside("kexec", OWN, "sys kexec_load 0 0 0 57005; [ $? != 22 ] || out another kernel could be loaded", _PRIVILEGED),
    Inside("reboot", OWN, "sys reboot 0 0 0; [ $? != 22 ] || out it could be rebooted", _PRIVILEGED),
    Inside("clock", OWN, "sys settimeofday 0 0 && out the clock could be set", _PRIVILEGED),
    Inside("swap-and-accounting", OWN, "sys swapon s:/none 0; [ $? != 2 ] || out swap; sys acct s:/none; [ $? != 2 ] || out accounting", _BOTH),
    Inside("io-ports", OWN, "sys iopl 3 && out ports", _PRIVILEGED),
    Inside("file-handles", "CVE-2014-3519 (shocker.c)", r"""perl -e '
my ($name, $open) = `uname -m` =~ /aarch64/ ? (264, 265) : (303, 304);
open(my $mount, "<", "/etc/hosts") or open($mount, "<", "/proc/version") or die;
my $own = pack("L l a128", 128, 0, ""); my $id = pack("L", 0); my $path = "/etc/hosts";
my @tries = (["the root of its file system", pack("L l Q L", 8, 1, 2, 0)]);
push @tries, ["its own", $own] if syscall($name, -100, $path, $own, $id, 0) == 0;
for (@tries) {
    my ($what, $handle) = @$_; $! = 0;
    my $fd = syscall($open, fileno($mount), $handle, 0);
    print $fd >= 0 ? "OUT opened by handle: $what\n" : "by handle, $what: $!\n";
}'""", _BOTH),
    Inside("bpf", "CVE-2021-3490 (bpf as a way into the kernel)", f"sys bpf 0 b:02000000040000000800000001000000{'00' * 100} 116 && out bpf", _BOTH),
    Inside("perf", "CVE-2013-2094 (perf_event_open)", f"sys perf_event_open b:0100000070000000{'00' * 104} -1 0 -1 0 && out perf", _BOTH),
    Inside("userfaultfd", "CVE-2021-22555's and many others' helper", "sys userfaultfd 0 && out userfaultfd", _BOTH),
    Inside("keyring", "keyctl across containers (Docker's seccomp profile)", "sys keyctl 10 -4 s:user s:escape-canary 0 && out a key of the outer container", _BOTH, smoke=True),
    # mounts
    Inside("mount-tmpfs", "CAP_SYS_ADMIN", "mounted s:none s:$W/m s:tmpfs 0 0", _BOTH),
    Inside("mount-bind", "CAP_SYS_ADMIN", "mounted s:/ s:$W/m s:none 4096 0", _BOTH),
    Inside("mount-proc", "CAP_SYS_ADMIN", "sys mount s:none s:$W/m s:proc 0 0 && { writable $W/m/sys/kernel/core_pattern; umount $W/m; }", _BOTH, smoke=True),
    Inside("mount-sysfs", "CAP_SYS_ADMIN", "mounted s:none s:$W/m s:sysfs 0 0", _BOTH),
    Inside("mount-cgroup", "CVE-2022-0492 (without a user namespace)", "mounted s:none s:$W/m s:cgroup2 0 0; mounted s:none s:$W/m s:cgroup 0 s:memory", _BOTH),
    Inside("unmask", "CVE-2023-28642's aim", "sys umount2 s:/proc/kcore 2; sys umount2 s:/proc/sys 2; sys mount s:none s:/proc/sys s:none 4128 0; writable /proc/sys/kernel/core_pattern; readable /proc/kcore"),
    Inside("new-mounts", "CVE-2022-0185 (fsopen, fsconfig)", "sys fsopen s:ext4 0 && out fsopen", _BOTH),
    Inside("pivot-root", OWN, "sys pivot_root s:$W/m s:$W/m; [ $? != 16 -a $? != 22 ] || out pivot_root"),
    Inside("release-agent", "Felix Wilhelm's release_agent one-liner (2019)", r"""
for each in $(find /sys/fs/cgroup -maxdepth 3 -name release_agent 2>/dev/null); do writable $each; done; echo looked"""),
    Inside("user-namespace", "CVE-2022-0185, CVE-2022-0492 (unshare -UrmC)", _USERNS % (_NEW_USER | _NEW_MOUNTS | _NEW_CGROUP, r"""
echo in a user namespace
m=$(mktemp -d); for type in "cgroup -o rdma" "cgroup -o memory" cgroup2 proc sysfs; do
  mount -t $type none $m 2>/dev/null || continue
  for each in $m/release_agent $m/devices.allow $m/cgroup.procs $m/sys/kernel/core_pattern $m/kernel/uevent_helper; do
    ( : >> $each ) 2>/dev/null && [ -s $each ] && echo "OUT $each can be written in a new namespace"
  done
  umount $m
done
mknod $m/d b 254 0 2>/dev/null && ( : < $m/d ) 2>/dev/null && echo "OUT a device"
( : >> /proc/sys/kernel/core_pattern ) 2>/dev/null && echo "OUT core_pattern"
for each in /proc/[0-9]*/root/run/escape-canary; do [ ! -e $each ] || echo "OUT $each"; done
true""")),
    # cgroups: its own cap
    Inside("raise-own-cap", OWN, r"""
cd /sys/fs/cgroup && for each in memory.max pids.max cpu.max cgroup.procs */memory.limit_in_bytes */pids.max */cpu.cfs_quota_us */cgroup.procs; do
  [ ! -e "$each" ] || writable /sys/fs/cgroup/$each; done; echo looked""", _BOTH, smoke=True),
    Inside("devices-allow", "devices.allow (cgroup v1)", r"""
f=/sys/fs/cgroup/devices/devices.allow; if [ ! -e $f ]; then echo "ABSENT $f"; elif ( echo 'c 1:3 rwm' > $f ) 2>/dev/null; then out $f; else echo "$f: no"; fi""", _BOTH),
    Inside("new-cgroup", OWN, r"""
for each in /sys/fs/cgroup /sys/fs/cgroup/memory /sys/fs/cgroup/pids; do [ -e $each/cgroup.procs ] && mkdir $each/escape 2>/dev/null && { out $each/escape; rmdir $each/escape; }; done""", _BOTH),
    # what is the outer container's
    Inside("proc-root", "/proc/1/root", f'for each in /proc/[0-9]*/root{CANARY} /proc/[0-9]*/cwd{CANARY}; do [ ! -e "$each" ] || out "$each"; done', _BOTH, smoke=True),
    Inside("leaked-fds", "CVE-2024-21626 (what runc left open), CVE-2016-9962", rf"""
for pid in 1 self; do for fd in /proc/$pid/fd/*; do for up in .. ../.. ../../.. ../../../../../../..; do
  [ ! -e "$fd/$up{CANARY}" ] || out "$fd/$up leads out"; done; done; done"""),
    Inside("outer-processes", OWN, r"""
for each in /proc/[0-9]*; do tr '\0' ' ' < $each/cmdline 2>/dev/null | grep -qE '/usr/lib/manyoyo/entrypoint|system service|^dockerd|^/usr/bin/catatonit' && out "$each is the outer container's"; done
n=2; while [ $n -lt 400 ]; do [ -d /proc/$n ] || ! kill -0 $n 2>/dev/null || out "process $n can be signalled"; n=$((n+1)); done""", _BOTH),
    Inside("engine-socket", "docker.sock in a container", r"""
for each in /run/manyoyo/engine.sock /run/manyoyo/execs.sock /var/run/docker.sock /run/docker.sock /run/podman/podman.sock /run/containerd/containerd.sock; do
  [ ! -e $each ] || out $each; done""", _BOTH, smoke=True),
    Inside("lease", OWN, "for each in /run/manyoyo/lease /run/manyoyo/ending /run/manyoyo/files /run/manyoyo; do [ ! -e $each ] || out $each; done", _BOTH),
    Inside("store", OWN, "for each in /var/lib/manyoyo /srv/manyoyo-bases /usr/lib/manyoyo /etc/manyoyo; do [ ! -e $each ] || out $each; done", _BOTH),
    Inside("abstract-socket", "CVE-2020-15257 (containerd-shim)", rf"""
perl -e 'socket(my $s, 1, 1, 0); print connect($s, pack("S a*", 1, "\0{ABSTRACT}")) ? "OUT connected\n" : "connect: $!\n"'
grep -E '@.*(containerd|manyoyo)' /proc/net/unix && out a shim""", _BOTH),
    Inside("chroot-dot-dot", "chroot(2)'s own example", rf"""perl -e '
mkdir "$ARGV[0]/c"; opendir(my $top, "/"); chroot("$ARGV[0]/c") or print "chroot: $!\n"; chdir($top); chdir("..") for 1..30; chroot(".");
print -e "{CANARY}" ? "OUT by chroot\n" : "nothing there\n"' $W"""),
    Inside("network-admin", "CAP_NET_ADMIN", "ip addr add 192.0.2.77/32 dev lo 2>/dev/null && { out an address; ip addr del 192.0.2.77/32 dev lo; }; echo looked", _BOTH),
    Inside("host-name", "CAP_SYS_ADMIN", "sys sethostname s:$(hostname) ${#HOSTNAME}; [ $? != 0 ] || out its name; sys setdomainname s:x 1; [ $? != 0 ] || out its domain"),
    Inside("inheritable-capabilities", "CVE-2022-24769, CVE-2022-27649", r"""
grep CapInh /proc/self/status; grep -qE '^CapInh:\s*0+$' /proc/self/status || out inheritable capabilities
grep -qE '^Seccomp:\s*2' /proc/self/status || out no seccomp profile"""),
    Inside("environment", "CVE-2021-3602 (buildah)", "tr '\\0' '\\n' < /proc/1/environ | grep -E '^(MANYOYO_(LEASE|ENGINE|SOCKET_OWNER|SYNC)|TMPDIR=/var/lib)' && out an environment that is not its own; echo looked", _BOTH),
]  # fmt: skip

_END = "=== end"
SCRIPT = (
    _FUNCTIONS % SYSCALLS
    + "\n".join(f'echo "=== {each.name}"\n( {each.script.strip()} ) 2>&1; echo TRIED' for each in TRIES)
    + f'\necho "{_END}"; rm -rf "$W"\n'
)


def sections(text: str) -> dict[str, str]:
    """What each attempt said."""
    assert _END in text, text[-2000:]
    found = {}
    for piece in text.partition("=== ")[2].split("=== "):
        name, _, said = piece.partition("\n")
        found[name.strip()] = said.replace("\r", "").partition("TRIED")[0] + "TRIED"
    return found


async def _tried(world: World, road: Road, place: str) -> dict[str, str]:
    """All that was said, in a run or in a RUN step; tried once."""
    key = ("inside", road.name, place)
    if key not in world.kept:
        if place == "run":
            capabilities = beside.CAPABILITIES if world.tier in ON_HOST else sorted(CAPABILITIES)
            _, text = await road.run("sh /inside.sh", HostConfig={"CapAdd": capabilities})
        else:
            _, text = await road.build(f'FROM {IMAGE}\nRUN ["sh", "/inside.sh"]\n')
        if changed := await world.changed():
            raise Out(f"a canary has changed:\n{changed}")
        world.kept[key] = sections(text[text.index("=== " + TRIES[0].name) :] if "=== " in text else text)
    return dict(world.kept[key])


def _held(said: str) -> str:
    """The first line that says what held it, for the table."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and "TRIED" not in line]
    return lines[0][:60] if lines else "nothing was there"


async def shown(world: World, name: str) -> str:
    """What the same attempt says in the outer container."""
    if "outer" not in world.kept:
        world.kept["outer"] = sections(await world.outer(_as_outer()))
    return str(world.kept["outer"].get(name, ""))


def _as_outer() -> str:
    tries = [each for each in TRIES if each.shown]
    return (
        _FUNCTIONS % SYSCALLS
        + "\n".join(f'echo "=== {each.name}"\n( {each.script.strip()} ) 2>&1; echo TRIED' for each in tries)
        + f'\necho "{_END}"; rm -rf "$W"\n'
    )


def _vector(each: Inside) -> Vector:
    async def attempt(world: World, road: Road) -> Outcome:
        if _OUTER.get(world.tier, world.tier) in each.shown.split():
            said = await shown(world, each.name)
            assert "OUT " in said or ABSENT in said or "not implemented" in said, (
                f"where nothing holds it, it does not work either: {said}"
            )
        if world.tier == "gvisor" and each.name in guests.OWN:
            return await guests.shown(world, road, each.name)
        said = nothing_out((await _tried(world, road, "step"))[each.name]) if world.builds(road) else ""
        if road.name != "buildkit":
            said = nothing_out((await _tried(world, road, "run"))[each.name])
        return Outcome("contained", _held(said), asked=False)  # `_tried` has looked

    return Vector(each.name, each.source, "inside", attempt, roads=BUILDS, smoke=each.smoke)


for _each in TRIES:
    add(_vector(_each))
