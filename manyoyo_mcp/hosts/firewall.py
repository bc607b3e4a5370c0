"""A network policy as files for the outer container: nftables' rules, and the configuration of the one name server that what is nested
can reach. `egress` in the outer image loads them before the engine starts, and again at each change."""

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from string import ascii_lowercase, digits

from manyoyo_mcp.policy.egress import CLOSED, Entry, Network, Policy

DIRECTORY = "/etc/manyoyo/egress"
NEXT = f"{DIRECTORY}.next"
"""Where those of a change lie until they are in force."""
DNS_PORT = 1053
"""Where dnsmasq listens, so that aardvark's port stays free; whatever asks any name server is led there."""
_BRIDGES = {"podman": ("podman*",), "docker": ("docker0", "br-*")}
"""The interfaces of nested networks, by engine."""
_KEPT = "1h"
"""How long an address is remembered that a name had, or that was refused; counted from its last use. dnsmasq tells no TTL, and lives
without a cache here, so that each answer comes with its addresses."""


def files(
    policy: Policy, engine: str, named: Iterable[Entry], own: Iterable[str] = (), *, shared: bool = False
) -> dict[str, bytes]:
    """The files (path in the outer container → content). `named`: what the host itself uses, open in "open" and "log"; `own`: the
    host's own addresses; `shared`: what is run has this very network, and its loopback."""
    found = {
        "policy": f"{policy.label}\n",
        "rules.nft": rules(policy, engine, tuple(named), tuple(own), secrets.randbits(30) + 1, shared=shared),
        "dnsmasq.conf": name_server(policy),
    }
    return {f"{DIRECTORY}/{name}": content.encode() for name, content in found.items()}


def rules(
    policy: Policy, engine: str, named: Sequence[Entry], own: Sequence[str], generation: int, *, shared: bool = False
) -> str:
    """The table, in place of the one that there is. What was let through bears the mark of its `generation`: another one judges what is
    under way anew."""
    bridges = _BRIDGES[engine]
    between = "accept" if engine == "podman" else "drop"  # dockerd's networks do not reach each other
    extra = (*named, *policy.allow) if policy.mode in ("open", "log") else policy.allow
    closed = _collapsed([*CLOSED, *map(ipaddress.ip_network, own)])
    own_too = [each for each in closed if each not in CLOSED]
    opened = [each for each in extra if each.network is not None and (each.closed or _within(each.network, own_too))]
    listed = [each for each in policy.allow if each.network is not None and each not in opened]
    by_name = _sets(policy) if policy.mode == "allowlist" else {}
    asks_us = policy.mode != "open"
    lines = ["table inet manyoyo", "delete table inet manyoyo", "table inet manyoyo {"]
    for version in (4, 6):
        lines += _interval_set(f"closed{version}", version, (each for each in closed if each.version == version))
        for name, chosen in (("named", opened), ("listed", listed)):
            lines += _entry_sets(name, version, chosen)
        for port in sorted({port for ports in by_name.values() for port in ports}, key=str):
            lines += [
                f"set {_set_of(port, version)} {{ type ipv{version}_addr; flags dynamic,timeout; timeout {_KEPT}; }}"
            ]
        for name, size in (("refused", 1024), ("seen", 16384)):
            key = f"ipv{version}_addr . inet_proto . inet_service"
            lines += [f"set {name}{version} {{ type {key}; size {size}; flags dynamic,timeout; timeout {_KEPT}; }}"]
    lines += ["chain grant {", f"ct mark set {generation}"]
    if asks_us:  # what can't be noted any more is not let through
        lines += [f"meta nfproto ipv{v} ct state new update @seen{v} {{ {_tuple(v)} counter }} accept" for v in (4, 6)]
        lines += ["ct state new goto refuse"]
    lines += ["accept", "}", "chain refuse {"]
    lines += [f"meta nfproto ipv{v} update @refused{v} {{ {_tuple(v)} counter }}" for v in (4, 6)]
    # The engine's own: podman tries a pull again, for seconds, after any answer that may mean a server that is down.
    begun = "meta l4proto tcp ct state new meta skuid 0-4294967294"
    lines += [f"meta nfproto ipv4 {begun} reject with icmp type prot-unreachable"]
    lines += [f"meta nfproto ipv6 {begun} reject with icmpv6 type admin-prohibited"]
    lines += ["meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited", "}"]
    lines += ["chain judge {", "ct state invalid drop", f"ct state established,related ct mark {generation} accept"]
    for version in (4, 6):
        to, both = _to(version), f"{_to(version)} . ct original proto-dst"
        of = f"meta nfproto ipv{version}"
        lines += [f"{of} {to} @named{version} goto grant", f"{of} {both} @named{version}p goto grant"]
        lines += [f"{of} {to} @closed{version} goto refuse"]
        lines += [f"{of} {to} @listed{version} goto grant", f"{of} {both} @listed{version}p goto grant"]
        for number in sorted({number for ports in by_name.values() for number in ports}, key=str):
            only = "" if number is None else f"ct original proto-dst {number} meta l4proto {{ tcp, udp }} "
            known = _set_of(number, version)
            lines += [f"{of} {only}{to} @{known} update @{known} {{ {to} }} goto grant"]
    lines += [f"goto {'grant' if policy.mode in ('open', 'log') else 'refuse'}", "}"]
    lines += ["chain leaving {", *(f'oifname "{each}" {between}' for each in bridges), "goto judge", "}"]
    lines += ["chain forward { type filter hook forward priority filter; policy drop;"]
    lines += [f'iifname "{each}" goto leaving' for each in bridges]
    lines += [*(f'oifname "{each}" ct direction reply goto judge' for each in bridges), "}"]
    lines += ["chain output { type filter hook output priority filter; policy drop;"]
    # Of the outer container itself nothing is for what the engine fetches (`ADD http://127.0.0.1`), but the name servers. It answers as where
    # nothing listens, and is not noted: engines ask there for each image that is called localhost/…
    names = f"ct original proto-dst {{ 53, {DNS_PORT} }} accept"
    few = ("ct state established,related accept", names, "meta l4proto { icmp, ipv6-icmp } accept")
    none = ("meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited")
    lines += [f'oifname "lo" {each}' for each in (("accept",) if shared else (*few, *none))]
    lines += [f'oifname "{each}" accept' for each in bridges]
    neighbours = "nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld2-listener-report"
    lines += [f"icmpv6 type {{ {neighbours} }} accept"]
    if asks_us:
        lines += ['meta skuid "dnsmasq" meta l4proto { tcp, udp } th dport 53 accept']
        lines += [
            f"{to} meta l4proto {{ tcp, udp }} th dport {DNS_PORT} accept"
            for to in ("ip daddr 127.0.0.1", "ip6 daddr ::1")
        ]  # led there
    lines += ["goto judge", "}"]
    lines += ["chain input { type filter hook input priority filter; policy drop;", 'iifname "lo" accept']
    lines += ["ct state established,related accept", "meta l4proto { icmp, ipv6-icmp } accept"]
    for each in bridges:
        lines += [f'iifname "{each}" meta l4proto {{ tcp, udp }} th dport {{ 53, {DNS_PORT} }} accept']
        lines += [f'iifname "{each}" goto refuse']
    lines += ["}", "chain nat { type nat hook postrouting priority srcnat;"]
    lines += [" ".join(f'oifname != "{each}"' for each in ("lo", *bridges)) + " masquerade", "}"]
    if asks_us:
        to_us = f"meta l4proto {{ tcp, udp }} th dport 53 redirect to :{DNS_PORT}"
        lines += ["chain asked { type nat hook prerouting priority dstnat - 10;"]
        lines += [*(f'iifname "{each}" fib daddr type != local {to_us}' for each in bridges), "}"]
        lines += ["chain asking { type nat hook output priority dstnat - 10;"]
        lines += [f'meta skuid != "dnsmasq" {to_us}', "}"]
    return "\n".join([*lines, "}", ""])


def name_server(policy: Policy) -> str:
    """dnsmasq's configuration, but for the servers that it asks (`@servers@` stands for each of them); empty where nobody is to ask it."""
    if policy.mode == "open":
        return ""
    lines = [
        f"port={DNS_PORT}",
        "user=dnsmasq",
        "group=nogroup",
        "no-hosts",
        "no-resolv",
        "cache-size=0",
        "log-queries",
    ]
    if policy.mode == "log":
        return "\n".join([*lines, "server=@servers@", ""])
    names = [each for each in policy.allow if each.name is not None]
    for name, ports in _sets(policy).items():
        sets = (f"{v}#inet#manyoyo#{_set_of(port, v)}" for port in sorted(ports, key=str) for v in (4, 6))
        lines += [f"server=/{name}/@servers@", f"nftset=/{name}/{','.join(sets)}"]
        if not any(each.covers(Entry(f"*.{name}")) for each in (Entry(every.name) for every in names)):
            lines += [f"local=/*.{name}/"]
    # What is not named has no server to be asked of. By its last character it is told not to exist, which programs take for an answer.
    return "\n".join([*lines, *(f"local=/*{each}/" for each in f"{ascii_lowercase}{digits}-_"), ""])


def _sets(policy: Policy) -> dict[str, set[int | None]]:
    """For each name on the list the ports that it may be reached at, with those that wildcards above it give."""
    found: dict[str, set[int | None]] = {}
    names = [each for each in policy.allow if each.name is not None]
    for entry in names:
        plain = str(entry.name).removeprefix("*.")
        covering = (other for other in names if Entry(other.name).covers(Entry(plain)))
        found[plain] = {other.port for other in covering}
    return found


def _set_of(port: int | None, version: int) -> str:
    return f"at{'' if port is None else port}_{version}"


def _to(version: int) -> str:
    return "ct original ip daddr" if version == 4 else "ct original ip6 daddr"


def _tuple(version: int) -> str:
    return f"{_to(version)} . meta l4proto . ct original proto-dst"


def _collapsed(networks: Iterable[Network]) -> list[Network]:
    """Without those that others contain: intervals in a set must not overlap."""
    found: list[Network] = []
    every = list(networks)
    for version in (4, 6):
        of = [each for each in every if each.version == version]
        found += ipaddress.collapse_addresses(of)  # type: ignore[type-var]
    return found


def _within(network: Network, others: Iterable[Network]) -> bool:
    return any(each.version == network.version and network.subnet_of(each) for each in others)  # type: ignore[arg-type]


def _interval_set(name: str, version: int, networks: Iterable[Network]) -> list[str]:
    elements = ", ".join(map(str, networks))
    inside = f" elements = {{ {elements} }};" if elements else ""
    return [f"set {name} {{ type ipv{version}_addr; flags interval;{inside} }}"]


def _entry_sets(name: str, version: int, entries: Iterable[Entry]) -> list[str]:
    """Two sets: addresses, and addresses with a port."""
    of = [each for each in entries if each.network is not None and each.network.version == version]
    plain = _collapsed(each.network for each in of if each.port is None and each.network is not None)
    ports: list[str] = []
    for port in sorted({each.port for each in of if each.port is not None}):
        networks = _collapsed(each.network for each in of if each.port == port and each.network is not None)
        ports += [f"{network} . {port}" for network in networks]
    inside = f" elements = {{ {', '.join(ports)} }};" if ports else ""
    return [
        *_interval_set(f"{name}{version}", version, plain),
        f"set {name}{version}p {{ type ipv{version}_addr . inet_service; flags interval;{inside} }}",
    ]
