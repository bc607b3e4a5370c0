"""What a network policy refused, or let through where that is recorded: read from what the outer container's `egress report` prints."""

import calendar
import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from manyoyo_mcp.policy.egress import Policy

_SPEAKS = re.compile(
    rb"resolv|refused|unreachable|no route|timed? ?out|prohibited|network|connect|name or service|ENOTFOUND|EAI_AGAIN|ECONN|"
    rb"bad address|NXDOMAIN|no such host|getaddrinfo|lookup|hostname|sendto",
    re.IGNORECASE,
)
_PROTOCOLS = {"1": "icmp", "58": "ipv6-icmp", "132": "sctp"}
_LATER = 1.5
"""Seconds by which a refusal may seem to be older than the command that met it: names are noted by the second."""


def speaks_of_network(output_end: bytes) -> bool:
    """Whether the output's end may speak of a refusal, so that the record is worth a look; so may one that says nothing."""
    return not output_end.strip() or bool(_SPEAKS.search(output_end[-4096:]))


@dataclass(frozen=True, slots=True)
class Met:
    """A destination: a name that was asked for, or an address (with its port). `age`: seconds since the last time."""

    what: str
    count: int
    age: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a sandbox was refused, the latest first, and what it reached, where that is recorded."""

    policy: Policy
    refused: list[Met] = field(default_factory=list)
    reached: list[Met] = field(default_factory=list)


_ASKED = re.compile(
    r"(\w{3}) +(\d+) (\d\d:\d\d:\d\d) dnsmasq\S* (?:query\[(\S+)\] (\S+) from|config (\S+) is NXDOMAIN)"
)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")


def read_report(text: str) -> Report:
    """What `egress report` prints; empty where that is nothing."""
    lines = text.splitlines()
    if len(lines) < 3 or not lines[0].isdecimal():
        return Report(Policy("open"))
    now = int(lines[0])
    refused: dict[str, Met] = {}
    reached: dict[str, Met] = {}
    for line in lines[3:]:
        match = _ASKED.match(line)
        name = (match[5] or match[6]) if match else ""
        if match is None or not _NAME.fullmatch(name):
            continue
        into = reached if match[5] else refused
        before = into.get(name)
        into[name] = Met(name, (before.count if before else 0) + 1, _age(now, match[1], match[2], match[3]))
    for name in refused:
        reached.pop(name, None)
    with contextlib.suppress(ValueError):
        for row in json.loads(lines[2])["nftables"]:
            kind = row.get("set", {}).get("name", "")
            if kind in ("refused4", "refused6", "seen4", "seen6"):
                into = refused if kind.startswith("refused") else reached
                into |= {met.what: met for met in map(_met, row["set"].get("elem", []))}
    by_age = (sorted(each.values(), key=lambda met: met.age) for each in (refused, reached))
    return Report(Policy.of_label(lines[1]), *by_age)


def _met(raw: dict[str, Any]) -> Met:
    element = raw["elem"]
    address, protocol, port = element["val"]["concat"]
    shown = f"[{address}]" if ":" in address else address
    if str(protocol) in ("tcp", "udp", "6", "17"):
        what = f"{shown}:{port}" + ("/udp" if str(protocol) in ("udp", "17") else "")
    else:
        number = str(protocol)
        called = _PROTOCOLS.get(number, f"protocol {number}" if number.isdecimal() else number)
        what = f"{shown} ({called})"
    age = float(element.get("timeout", 3600)) - float(element.get("expires", 0))
    return Met(what, int(element.get("counter", {}).get("packets", 1)) or 1, max(age, 0.0))


def _age(now: int, month: str, day: str, clock: str) -> float:
    """dnsmasq writes no year; the sandbox's clock is in UTC."""
    year = time.gmtime(now).tm_year
    for each in (year, year - 1):
        with contextlib.suppress(ValueError):
            then = calendar.timegm(time.strptime(f"{each} {month} {day} {clock}", "%Y %b %d %H:%M:%S"))
            if then <= now + 60:
                return max(0.0, float(now - then))
    return 0.0


def refusal(report: Report, seconds: float) -> str:
    """What was refused in the last `seconds`, in words with what to do; nothing where nothing was."""
    met = [each.what for each in report.refused if each.age <= seconds + _LATER][:6]
    if not met:
        return ""
    what = ", ".join(met)
    mode = report.policy.mode
    if mode == "none":
        return f"The sandbox has no network (network_policy none), which refused {what}. start_sandbox with its sandbox_id and another network_policy changes that."
    if mode == "allowlist":
        return (
            f'Refused by the allow-list: {what}. Ask for it: start_sandbox with its sandbox_id, network_policy="allowlist" and a '
            "network_allow that has it too."
        )
    return (
        f"Refused by the network policy, under which private addresses and the host are closed: {what}. The operator can name what is "
        "to be open in MANYOYO_NETWORK_ALLOW."
    )
