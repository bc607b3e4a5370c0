"""A host's own addresses, which are closed to its sandboxes."""

import contextlib
import ipaddress
import re
import socket
from pathlib import Path

_LOCAL4 = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")


def addresses(name: str | None) -> list[str]:
    """Those of the machine of that name, as it is resolved here; without one, this machine's."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        if name is not None:
            found = {str(each[4][0]) for each in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        else:
            found = set(local(Path("/proc/net")))
    return sorted(each for each in found if "%" not in each)


def local(net: Path) -> list[str]:
    """What Linux has in /proc/net: local routes of IPv4, interfaces of IPv6; nothing elsewhere."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        found += _LOCAL4.findall((net / "fib_trie").read_text())
    with contextlib.suppress(OSError):
        found += [
            str(ipaddress.IPv6Address(int(line.split()[0], 16))) for line in (net / "if_inet6").read_text().splitlines()
        ]
    return sorted(set(found))
