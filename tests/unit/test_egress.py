"""Network policies: how entries are written, what covers what, what is granted, what rules come of it, and how refusals are read."""

import ipaddress
import json

import pytest

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.hosts import firewall
from manyoyo_mcp.policy.egress import CLOSED, Entry, Policy, entries, grant, narrowed
from manyoyo_mcp.policy.refusals import Report, read_report, refusal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Example.ORG.", "example.org"), ("*.example.org:443", "*.example.org:443"), ("bücher.example", "xn--bcher-kva.example"),
        ("203.0.113.7", "203.0.113.7"), ("203.0.113.9/24:80", "203.0.113.0/24:80"), ("2001:db8::/32", "2001:db8::/32"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"), ("localhost:8080", "localhost:8080"),
    ],
)  # fmt: skip
def test_an_entry_is_written_in_one_way(text: str, shown: str) -> None:
    entry = Entry.parse(text)
    assert str(entry) == shown
    assert Entry.parse(shown) == entry


@pytest.mark.parametrize(
    "text",
    ["", "*", "a*.org", "*.*.org", "example.org:0", "example.org:99999", "http://example.org", "1.2.3", "1.2.3.4.5", "a b", "a\nb",
     "a.org:+80", "a.org:٨٠", "a.org:", "a." * 130 + "org", "x/#", "-a.org", "a..b", "1.2.3.0/33", "[::1", "é" * 70 + ".org", "a;b", 'a"b', "server=/x/"],
)  # fmt: skip
def test_what_is_no_entry_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Entry.parse(text)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("*.example.org", "example.org", True), ("*.example.org", "*.a.example.org:443", True), ("example.org", "a.example.org", False),
        ("*.example.org", "badexample.org", False), ("example.org:443", "example.org", False), ("example.org", "example.org:443", True),
        ("10.0.0.0/8", "10.1.2.3:80", True), ("10.0.0.0/8:81", "10.1.2.3:80", False), ("10.0.0.0/8", "2001:db8::1", False),
        ("0.0.0.0/0", "example.org", False), ("*.example.org", "10.0.0.1", False),
    ],
)  # fmt: skip
def test_what_covers_what(wide: str, narrow: str, covers: bool) -> None:
    assert Entry.parse(wide).covers(Entry.parse(narrow)) is covers


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
     "198.18.0.1", "100::1", "2001::1", "2002:a00:1::1", "64:ff9b:1::1", "::7", "224.0.0.1", "255.255.255.255", "0.0.0.0", "::1", "::ffff:10.0.0.1", "fe80::1", "fd00:ec2::254", "ff02::1", "64:ff9b::a9fe:a9fe"],
)  # fmt: skip
def test_what_is_closed(address: str) -> None:
    assert Entry.parse(address).closed


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "192.0.2.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_what_is_not(address: str) -> None:
    assert not any(
        ipaddress.ip_address(address) in each
        for each in CLOSED
        if each.version == ipaddress.ip_address(address).version
    )


def most(text: str) -> Policy:
    return Policy.of_label(text)


@pytest.mark.parametrize(
    ("configured", "mode", "allow", "granted"),
    [
        ("open", None, None, "open"), ("open", "none", None, "none"), ("open", None, ["a.org"], "allowlist a.org"),
        ("open 10.0.0.5", "log", None, "log 10.0.0.5"), ("open 10.0.0.0/24", None, ["10.0.0.5:80"], "allowlist 10.0.0.5:80"),
        ("log", None, None, "log"), ("log", "allowlist", ["a.org"], "allowlist a.org"), ("none", None, None, "none"),
        ("allowlist *.a.org", None, None, "allowlist *.a.org"), ("allowlist *.a.org", "allowlist", None, "allowlist *.a.org"),
        ("allowlist *.a.org", None, ["b.a.org:443"], "allowlist b.a.org:443"), ("open", None, ["10.9.9.9:3128"], "allowlist 10.9.9.9:3128"),
    ],
)  # fmt: skip
def test_what_is_granted(configured: str, mode: str | None, allow: list[str] | None, granted: str) -> None:
    used = [Entry.parse("10.9.9.9:3128")]
    assert grant(most(configured), mode, allow, used).label == granted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("configured", "mode", "allow"),
    [
        ("log", "open", None), ("allowlist a.org", "log", None), ("none", "allowlist", ["a.org"]), ("none", "open", None),
        ("allowlist a.org", None, ["b.org"]), ("allowlist a.org:443", None, ["a.org"]), ("open", None, ["10.0.0.5"]),
        ("open", None, ["169.254.169.254"]), ("open 10.0.0.5:80", None, ["10.0.0.5"]), ("allowlist 0.0.0.0/0", None, ["10.0.0.5"]),
        ("allowlist a.org", None, ["10.9.9.9:3128"]),
    ],
)  # fmt: skip
def test_what_goes_beyond(configured: str, mode: str | None, allow: list[str] | None) -> None:
    with pytest.raises(PolicyRefused) as refused:
        grant(most(configured), mode, allow, [Entry.parse("10.9.9.9:3128")])  # type: ignore[arg-type]
    assert "MANYOYO_NETWORK_POLICY" in refused.value.hint


@pytest.mark.parametrize(
    ("mode", "allow"), [("none", ["a.org"]), ("open", ["a.org"]), ("allowlist", None), ("allowlist", [])]
)
def test_what_makes_no_sense(mode: str, allow: list[str] | None) -> None:
    with pytest.raises(InvalidArgument):
        grant(Policy("open"), mode, allow)  # type: ignore[arg-type]


def test_a_list_has_an_end_and_a_label_was_written_by_us() -> None:
    with pytest.raises(InvalidArgument, match="201 entries"):
        entries(f"a{number}.org" for number in range(201))
    with pytest.raises(InvalidArgument, match="no network policy"):
        Policy.of_label("wide a.org")


@pytest.mark.parametrize(
    ("configured", "had", "has"),
    [
        ("open", "none", "none"), ("none", "open", "none"), ("allowlist a.org", "open", "allowlist a.org"), ("open", "open 10.0.0.5", "open"),
        ("allowlist a.org", "allowlist a.org b.org", "allowlist a.org"), ("allowlist a.org", "allowlist b.org", "none"),
        ("open", "allowlist 10.0.0.5 a.org", "allowlist a.org"), ("log", "log", "log"),
    ],
)  # fmt: skip
def test_what_a_name_had_never_becomes_more(configured: str, had: str, has: str) -> None:
    assert narrowed(most(configured), most(had)).label == has


@pytest.mark.parametrize("engine", ["podman", "docker"])
@pytest.mark.parametrize("mode", ["open", "log", "allowlist a.org 10.0.0.5 198.51.100.0/24:80", "none"])
def test_rules_drop_what_they_do_not_accept(engine: str, mode: str) -> None:
    named = (Entry.parse("10.9.9.9:3128"),)
    text = firewall.rules(Policy.of_label(mode), engine, named, ("203.0.113.1",), 7)
    assert text.count("policy drop;") == 3
    assert "203.0.113.1/32" in text, "the host itself is closed"
    leaving = text.partition("chain output")[2].partition("chain input")[0]
    assert leaving.index('oifname "lo" reject with') < leaving.index("goto judge"), "and so is the outer container"
    shared = firewall.rules(Policy.of_label(mode), engine, named, ("203.0.113.1",), 7, shared=True)
    assert 'oifname "lo" accept' in shared and 'oifname "lo" reject' not in shared
    assert ("10.9.9.9/32 . 3128" in text) == (mode in ("open", "log")), "what the host uses is no part of a list"
    assert ("redirect to :1053" in text) == (mode != "open")
    assert (
        f"goto {'grant' if mode in ('open', 'log') else 'refuse'}\n}}"
        in text.partition("chain judge")[2].partition("chain leaving")[0]
    )


def test_the_name_server_knows_the_list_alone() -> None:
    lines = firewall.name_server(Policy("allowlist", entries(["a.org:443", "*.b.org", "c.b.org:80"]))).splitlines()
    assert {line for line in lines if line.startswith("server=")} == {
        f"server=/{each}/@servers@" for each in ("a.org", "b.org", "c.b.org")
    }
    assert "nftset=/a.org/4#inet#manyoyo#at443_4,6#inet#manyoyo#at443_6" in lines
    assert any(line.startswith("nftset=/c.b.org/") and "at80_4" in line and "at_4" in line for line in lines), (
        "a wildcard's ports too"
    )
    assert "local=/*.a.org/" in lines and "local=/*.b.org/" not in lines
    assert {f"local=/*{each}/" for each in "azm059-_"} <= set(lines) and "no-resolv" in lines
    assert not any(line.startswith("server") for line in firewall.name_server(Policy("none")).splitlines())
    assert firewall.name_server(Policy("open")) == ""


def printed(policy: str, *log: str) -> str:
    element = {
        "val": {"concat": ["203.0.113.9", "tcp", 443]},
        "timeout": 3600,
        "expires": 3590,
        "counter": {"packets": 3, "bytes": 1},
    }
    ping = {
        "val": {"concat": ["203.0.113.8", "icmp", 2048]},
        "timeout": 3600,
        "expires": 3000,
        "counter": {"packets": 1, "bytes": 1},
    }
    rows = [{"set": {"name": "refused4", "elem": [{"elem": element}, {"elem": ping}]}}, {"set": {"name": "seen4"}}]
    return "\n".join(["1795834800", policy, json.dumps({"nftables": rows}), *log])  # Nov 28 03:00:00 2026


def test_refusals_are_read() -> None:
    found = read_report(
        printed(
            "allowlist a.org",
            "Nov 28 02:59:58 dnsmasq[7]: query[A] evil.org from 10.88.0.2",
            "Nov 28 02:59:58 dnsmasq[7]: config evil.org is NXDOMAIN",
            "Nov 28 02:59:59 dnsmasq[7]: query[A] a.org from 10.88.0.2",
            "Nov 28 02:59:59 dnsmasq[7]: config \x1b[31m is NXDOMAIN",
        )
    )
    assert [(met.what, met.count, met.age) for met in found.refused] == [
        ("evil.org", 1, 2.0), ("203.0.113.9:443", 3, 10.0), ("203.0.113.8 (icmp)", 1, 600.0),
    ]  # fmt: skip
    assert [met.what for met in found.reached] == ["a.org"]
    assert refusal(found, 1).startswith("Refused by the allow-list: evil.org. Ask for it: start_sandbox")
    assert "203.0.113.9:443" in refusal(found, 10) and "icmp" not in refusal(found, 10)
    assert "MANYOYO_NETWORK_ALLOW" in refusal(read_report(printed("open")), 10)
    assert "network_policy none" in refusal(read_report(printed("none")), 10)


@pytest.mark.parametrize("text", ["", "egress: no such file", "17\nopen\nnot json", "x\ny\nz"])
def test_what_is_no_report_says_nothing(text: str) -> None:
    found = read_report(text)
    assert (found.refused, found.reached) == ([], []) and refusal(found, 100) == ""
    assert isinstance(found, Report)
