"""Published ports of nested containers, in both dialects: what a client may say of them, and who is told of those that are to reach outside.

A gate that leads outside ("outside") has them published on loopback alone; that is how its containers are known ever after, for any other
gate's ("inside") are published on no address of their own. Nobody else publishes any.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import Limits, a, matching, only

LOOPBACK = "127.0.0.1"
MOST = 32
"""Ports of one container."""
_LEAST = 1024
"""The first port that may be published outside."""
_NAME_SERVER = (53, 1053)
"""Ports of the outer container's own name server (`egress` in the outer image): who has one could answer in its place."""
_ANY = ("", "0.0.0.0", "::", "::1", "localhost", LOOPBACK)  # noqa: S104 - what clients write; nobody listens there
"""Addresses that mean this machine, whichever of them."""
_STARTING = re.compile(r"(?:/libpod)?/containers/([^/]+)/(?:start|restart)")
_EXPOSED = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/([a-z]+))?")
_PORT = matching(r"[0-9]{1,5}(/(tcp|udp|sctp))?", "a port, as 80/tcp")
_ON_HOST = matching(r"|[0-9]{1,5}(-[0-9]{1,5})?", "a port, FIRST-LAST, or none for any that is free")
_PROTOCOL = matching(r"|tcp|udp|sctp", "tcp, udp, sctp")
_NUMBER = a(int)


@dataclass(frozen=True, slots=True)
class Binding:
    """A port of a container's, and where it is published: at one from `first` to `last`, any that is free where they are 0."""

    port: int
    first: int = 0
    last: int = 0
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class Published:
    """What a container publishes; `every`: what its image exposes too."""

    bindings: tuple[Binding, ...] = ()
    every: bool = False


class Publisher:
    """Told from the threads of a gate's connections of what is to be published outside. This one publishes nothing."""

    def settle(self, image: str, published: Published) -> Published:
        """The same with every port chosen. Raises ManyoyoError where there is none."""
        return published

    def starting(self, container: str) -> Callable[[int | None], None]:
        """A container is about to be started; what this gives is told of the answer's status. Raises ManyoyoError where it may not be, for a port
        of it is taken."""
        return lambda status: None


def started_by(method: str, path: str) -> str | None:
    """The container that such a request starts."""
    found = _STARTING.fullmatch(path) if method == "POST" else None
    return found[1] if found else None


def docker_taken(body: Mapping[str, Any], limits: Limits) -> tuple[Published, dict[str, Any]]:
    """What a request publishes, and the request without it. Where nothing may be published it stays in, to be refused."""
    host = body.get("HostConfig")
    if limits.ports == "none" or not isinstance(host, dict):
        return Published(), dict(body)
    rest = {name: value for name, value in host.items() if name not in ("PortBindings", "PublishAllPorts")}
    bindings = []
    for exposed, rows in a(dict)("PortBindings", host.get("PortBindings") or {}).items():
        number, _, protocol = _PORT("a published port", exposed).partition("/")
        for row in a(list)("PortBindings", rows or []):
            kept = only("a published port", a(dict)("a published port", row), _ROW)
            first, _, last = (kept.get("HostPort") or "0").partition("-")
            _judge_address(kept.get("HostIp") or "")
            bindings.append(Binding(int(number), int(first), int(last or first), protocol or "tcp"))
            _judge_count(bindings)
    every = a(bool)("PublishAllPorts", host.get("PublishAllPorts") or False)
    exposed = _exposed(body.get("ExposedPorts")) if every else []
    return _judged(bindings, exposed, every, limits), {**body, "HostConfig": rest}


def libpod_taken(body: Mapping[str, Any], limits: Limits) -> tuple[Published, dict[str, Any]]:
    """The same of podman's own dialect."""
    if limits.ports == "none":
        return Published(), dict(body)
    rest = {name: value for name, value in body.items() if name not in ("portmappings", "publish_image_ports")}
    bindings = []
    for row in a(list)("portmappings", body.get("portmappings") or []):
        kept = only("a published port", a(dict)("a published port", row), _MAPPING)
        _judge_address(kept.get("host_ip") or "")
        inner, outer = kept.get("container_port") or 0, kept.get("host_port") or 0
        for protocol in dict.fromkeys((kept.get("protocol") or "tcp").split(",")):
            for number in range(min(max(kept.get("range") or 1, 1), MOST + 1)):
                at = outer + number if outer else 0
                bindings.append(Binding(inner + number, at, at, _PROTOCOL("a published port", protocol) or "tcp"))
            _judge_count(bindings)
    every = a(bool)("publish_image_ports", body.get("publish_image_ports") or False)
    expose = body.get("expose") if every else None
    named: dict[str, Any] = (
        {f"{number}/{protocol}": {} for number, protocol in expose.items()} if isinstance(expose, dict) else {}
    )
    return _judged(bindings, _exposed(named), every, limits), rest


def _judged(bindings: list[Binding], exposed: list[Binding], every: bool, limits: Limits) -> Published:
    known = {(each.port, each.protocol) for each in bindings}
    bindings += [each for each in exposed if (each.port, each.protocol) not in known]
    _judge_count(bindings)
    for each in bindings:
        if not 1 <= each.port <= 65535 or not 0 <= each.first <= each.last <= 65535:
            raise PolicyRefused(f"{each.first}-{each.last}:{each.port} is no port.", "Ports are 1 to 65535.")
        if any(each.first <= taken <= each.last for taken in _NAME_SERVER):
            raise PolicyRefused(
                f"port {each.first} may not be published: the sandbox's own name server has 53 and 1053.",
                "Publish another one.",
            )
        if limits.ports == "outside" and 0 < each.first < _LEAST:
            raise PolicyRefused(
                f"port {each.first} may not be published: below {_LEAST} are the machine's own services.",
                f"Publish another one (-p {each.first + 8000}:{each.port}), or none in particular (-p {each.port}).",
            )
        if limits.ports == "outside" and each.protocol != "tcp":
            raise PolicyRefused(
                f"port {each.port}/{each.protocol} can't be published: what reaches outside is TCP.",
                "Publish TCP ports; another nested container reaches the others at its address or name.",
            )
    return Published(tuple(dict.fromkeys(bindings)), every)


def _judge_count(bindings: list[Binding]) -> None:
    """Asked while they are read: what is written in a few bytes may be very many."""
    if len(bindings) > 2 * MOST or len(set(bindings)) > MOST:
        raise PolicyRefused(f"a container may publish {MOST} ports, not more.", "Publish those that are used.")


def _judge_address(address: str) -> None:
    if address not in _ANY:
        raise PolicyRefused(
            f"a port may not be published on {address[:60]!r}.",
            f"Leave the address out, or write {LOOPBACK}: ports reach this machine's loopback, and nothing beyond.",
        )


def _exposed(given: Any) -> list[Binding]:
    """The TCP ports that an image, or a request, says are listened at."""
    found = []
    for words in given if isinstance(given, dict) else ():
        parts = _EXPOSED.fullmatch(str(words))
        if parts and (parts[3] or "tcp") == "tcp":
            first = int(parts[1])
            found += [Binding(each) for each in range(first, min(int(parts[2] or first), first + MOST) + 1)]
        if len(found) > MOST:
            break  # too many already
    return found


def with_exposed(published: Published, exposed: Any) -> Published:
    """With what an image exposes, as its configuration says it."""
    known = {each.port for each in published.bindings if each.protocol == "tcp"}
    more = tuple(each for each in _exposed(exposed) if each.port not in known)
    return replace(published, bindings=(published.bindings + more)[:MOST])


def docker_written(body: dict[str, Any], published: Published, limits: Limits) -> dict[str, Any]:
    """A request with what it publishes."""
    if published == Published():
        return body
    bindings: dict[str, list[dict[str, str]]] = {}
    for each in published.bindings:
        at = "" if not each.first else str(each.first) + (f"-{each.last}" if each.last != each.first else "")
        row = {"HostIp": LOOPBACK if limits.ports == "outside" else "", "HostPort": at}
        bindings.setdefault(f"{each.port}/{each.protocol}", []).append(row)
    exposed = dict(body.get("ExposedPorts") or {}) | {name: {} for name in bindings}
    host = {**body["HostConfig"], "PortBindings": bindings, "PublishAllPorts": published.every}
    return {**body, "HostConfig": host, "ExposedPorts": exposed}


def libpod_written(body: dict[str, Any], published: Published, limits: Limits) -> dict[str, Any]:
    if published == Published():
        return body
    rows = [
        {
            "container_port": each.port,
            "host_port": each.first,
            "protocol": each.protocol,
            **({"host_ip": LOOPBACK} if limits.ports == "outside" else {}),
        }
        for each in published.bindings
    ]
    return {**body, "portmappings": rows, "publish_image_ports": published.every}


def settled(path: str, body: dict[str, Any], limits: Limits, publisher: Publisher) -> dict[str, Any]:
    """A request that was judged, with every port chosen that is to reach outside."""
    if limits.ports != "outside":
        return body
    if path == "/containers/create":
        published, rest = docker_taken(body, limits)
        written, image = docker_written, body.get("Image")
    elif path == "/libpod/containers/create":
        published, rest = libpod_taken(body, limits)
        written, image = libpod_written, body.get("image")
    else:
        return body
    if published == Published():
        return body
    return written(rest, replace(publisher.settle(str(image or ""), published), every=False), limits)


_ROW = {"HostIp": matching(r"[0-9A-Za-z.:]{0,45}", "an address"), "HostPort": _ON_HOST}
_MAPPING = {
    "host_ip": _ROW["HostIp"],
    "container_port": _NUMBER,
    "host_port": _NUMBER,
    "range": _NUMBER,
    "protocol": matching(r"[a-z,]{0,30}", "tcp, udp, sctp"),
}
