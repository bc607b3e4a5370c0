"""What may leave a sandbox: the network policy, and the entries of its list. Pure; `hosts.firewall` makes rules of it."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from manyoyo_mcp.config import NetworkMode
from manyoyo_mcp.errors import InvalidArgument, PolicyRefused

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_ENTRIES = 200
_STRICTNESS: dict[str, int] = {"none": 0, "allowlist": 1, "log": 2, "open": 3}
"""Each lets through no more than the next, and says no less of it."""
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}")
_HOW = 'Write a name ("example.org", "*.example.org": it and all below it), an address or a CIDR, each with ":PORT" for one port alone.'

_CLOSED4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16",
    "198.18.0.0/15", "224.0.0.0/3",
    "168.63.129.16/32",  # the metadata service of one cloud, at a public address
)  # fmt: skip
_CLOSED6 = ("::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2002::/16", "fc00::/6")
_NAT64 = int(ipaddress.IPv6Address("64:ff9b::"))
CLOSED: tuple[Network, ...] = (
    *(ipaddress.ip_network(each) for each in _CLOSED4),
    *(ipaddress.ip_network(each) for each in _CLOSED6),
    # the same through a translator to IPv4
    *(
        ipaddress.IPv6Network((_NAT64 + int(each.network_address), 96 + each.prefixlen))
        for each in map(ipaddress.IPv4Network, _CLOSED4)
    ),
)
"""Private, link-local, metadata and the like (RFC 6890): closed in every mode unless named by address."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list: a `name` ("*." before it: with all below), or a `network`; `port` None: any, and any protocol."""

    name: str | None = None
    network: Network | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Raises InvalidArgument for what is neither a name, an address nor a CIDR."""
        words = text.strip().lower().rstrip(".")
        host, port = words, None
        bracketed = re.fullmatch(r"\[([^\]]+)\](?::([0-9]{1,5}))?", words)
        if bracketed:
            host, port = bracketed[1], bracketed[2]
        elif words.count(":") == 1:
            host, _, port = words.partition(":")
        if port is not None and not (_PORT.fullmatch(port) and 1 <= int(port) <= 65535):
            raise _not_an_entry(text)
        number = int(port) if port is not None else None
        try:
            return cls(network=ipaddress.ip_network(host, strict=False), port=number)
        except ValueError:
            pass
        return cls(name=_name(host, text), port=number)

    def __str__(self) -> str:
        if self.network is None:
            text = str(self.name)
        else:
            single = self.network.prefixlen == self.network.max_prefixlen
            text = str(self.network.network_address if single else self.network)
            text = f"[{text}]" if self.network.version == 6 and self.port is not None else text
        return text if self.port is None else f"{text}:{self.port}"

    def covers(self, other: "Entry") -> bool:
        """Whether all that `other` lets through is let through by this one too."""
        if self.port not in (None, other.port):
            return False
        if self.network is not None and other.network is not None:
            return self.network.version == other.network.version and other.network.subnet_of(self.network)  # type: ignore[arg-type]
        if self.name is None or other.name is None:
            return False
        if not self.name.startswith("*."):
            return self.name == other.name
        theirs = other.name.removeprefix("*.")
        return theirs == self.name[2:] or theirs.endswith(self.name[1:])

    @property
    def closed(self) -> bool:
        """Whether it names what is closed unless it is named."""
        return self.network is not None and any(
            each.version == self.network.version and self.network.subnet_of(each)  # type: ignore[arg-type]
            for each in CLOSED
        )


def _name(host: str, text: str) -> str:
    star = "*." if host.startswith("*.") else ""
    try:
        plain = host.removeprefix("*.").encode("idna").decode() if not host.isascii() else host.removeprefix("*.")
    except UnicodeError as error:
        raise _not_an_entry(text) from error
    labels = plain.split(".")
    numeric = labels[-1].isdecimal()  # an address that is none
    if len(plain) > 253 or numeric or not all(_LABEL.fullmatch(label) for label in labels):
        raise _not_an_entry(text)
    return star + plain


def _not_an_entry(text: str) -> InvalidArgument:
    return InvalidArgument(f"{text[:80]!r} is nothing that network_allow takes.", _HOW, argument="network_allow")


def entries(texts: Iterable[str]) -> tuple[Entry, ...]:
    """Raises InvalidArgument for what is no entry, and for too many."""
    found = tuple(dict.fromkeys(Entry.parse(text) for text in texts))
    if len(found) > MOST_ENTRIES:
        raise InvalidArgument(
            f"network_allow has {len(found)} entries.", f"The most is {MOST_ENTRIES}: use wildcards and CIDRs."
        )
    return found


@dataclass(frozen=True, slots=True)
class Policy:
    """What a sandbox may reach. `allow`: with "allowlist" that and nothing else; with "open" and "log" what it names of that which is
    closed otherwise."""

    mode: NetworkMode
    allow: tuple[Entry, ...] = ()

    @property
    def label(self) -> str:
        """As a label keeps it, and `of_label` reads it."""
        return " ".join([self.mode, *map(str, self.allow)])

    @classmethod
    def of_label(cls, text: str) -> "Policy":
        """Raises InvalidArgument for what no version wrote."""
        mode, *allow = text.split() or ["open"]
        for known in ("none", "allowlist", "log", "open"):
            if mode == known:
                return cls(known, entries(allow))
        raise InvalidArgument(f"{mode[:40]!r} is no network policy.", "Remove what has this label; it is not ours.")

    def in_full(self) -> str:
        """For a person who decides on it: every entry of it."""
        listed = f": {', '.join(map(str, self.allow))}" if self.mode == "allowlist" else ""
        return f"{self.mode}{listed}." if listed else self.words()

    def words(self) -> str:
        """For people and models."""
        named = f"; of these open: {', '.join(map(str, self.allow))}" if self.allow else ""
        private = f"private, link-local and metadata addresses and the host itself are closed{named}"
        if self.mode == "none":
            return "none. Nothing leaves the sandbox."
        if self.mode == "allowlist":
            shown = ", ".join(map(str, self.allow[:20])) + (" …" if len(self.allow) > 20 else "")
            return f"allowlist. Only these can be reached: {shown}."
        return f"{self.mode}. The internet{', recorded' if self.mode == 'log' else ''}; {private}."


def meant(most: Policy, mode: NetworkMode | None, allow: Sequence[str] | None) -> Policy:
    """The policy that is asked for, whether or not it may be had; what is not said is as configured. Raises InvalidArgument for what makes no
    sense."""
    if mode is None:
        mode = "allowlist" if allow is not None else most.mode
    if allow is not None and mode != "allowlist":
        raise InvalidArgument(
            f"network_allow goes with network_policy='allowlist', not {mode!r}.", "Leave one of them out."
        )
    if mode == "allowlist":
        asked = entries(allow) if allow is not None else most.allow
        if not asked:
            raise InvalidArgument(
                "network_policy='allowlist' needs a list.",
                'Give network_allow, e.g. ["example.org:443", "*.example.net"]; for nothing at all network_policy="none".',
            )
        return Policy(mode, asked)
    return Policy(mode, most.allow if mode != "none" else ())


def grant(most: Policy, mode: NetworkMode | None, allow: Sequence[str] | None, used: Iterable[Entry] = ()) -> Policy:
    """The policy of a sandbox: as asked, else as configured, which is the `most` that can be had. `used`: what the host itself uses.

    Raises InvalidArgument for what makes no sense, PolicyRefused for what goes beyond.
    """
    policy = meant(most, mode, allow)
    refused = beyond(most, policy, used)
    if refused:
        configured = f"{most.mode}{': ' if most.mode == 'allowlist' else ''}"
        configured += ", ".join(map(str, most.allow[:20])) if most.mode == "allowlist" else ""
        raise PolicyRefused(
            f"{refused} is more than sandboxes may reach here; configured is {configured}.",
            "Ask for that or for less. Only the operator can allow more: MANYOYO_NETWORK_POLICY, and MANYOYO_NETWORK_ALLOW "
            "(a private address also has to be named there).",
        )
    return policy


def beyond(most: Policy, policy: Policy, used: Iterable[Entry] = ()) -> str:
    """What of a policy goes beyond the most, in words; nothing where it does not."""
    if _STRICTNESS[policy.mode] > _STRICTNESS[most.mode]:
        return f"network_policy={policy.mode!r}"
    named = [*most.allow, *(used if most.mode != "allowlist" else ())]
    for entry in policy.allow:
        listed = most.mode == "allowlist" or entry.closed
        # A wide range on the list does not name the private ones in it.
        if listed and not any(each.covers(entry) and each.closed >= entry.closed for each in named):
            return f"network_allow={str(entry)!r}"
    return ""


def narrowed(most: Policy, had: Policy, used: Iterable[Entry] = ()) -> Policy:
    """What a sandbox had, less what goes beyond the most: never more than either."""
    if _STRICTNESS[had.mode] > _STRICTNESS[most.mode]:
        return most
    if had.mode != "allowlist":
        return Policy(had.mode, most.allow if had.mode != "none" else ())
    used = tuple(used)
    allow = tuple(each for each in had.allow if not beyond(most, Policy(had.mode, (each,)), used))
    return Policy(had.mode, allow) if allow else Policy("none")
