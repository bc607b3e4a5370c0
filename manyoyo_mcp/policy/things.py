"""What may be asked about images, networks and volumes. Docker's Engine API, up to v1.45."""

import ipaddress
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import (
    NAME,
    Allowed,
    Check,
    Limits,
    Request,
    a,
    list_of,
    matching,
    named,
    off,
    one_of,
    only,
    pairs,
    reference,
    table_of,
    text,
)
from manyoyo_mcp.policy.containers import endpoints
from manyoyo_mcp.policy.fields import TMPFS

_NO_OPTIONS = "Leave it out."


def image_create(request: Request, limits: Limits) -> Allowed:
    """A pull, or an import of the body."""
    if request.query.get("fromSrc", "-") not in ("", "-"):
        raise PolicyRefused("an image may be imported from the request alone, not from a URL.", "Use a registry.")
    if request.query.get("fromImage"):
        reference("the image", request.query["fromImage"])
    return named(request, limits)


def volume_options(place: str, value: Any) -> Any:
    """A volume in memory, or none: any other may be a path, a device or a server."""
    options = pairs(place, value)
    if options and not (
        options.keys() <= {"type", "device", "o"}
        and options.get("type") == options.get("device") == "tmpfs"
        and TMPFS.fullmatch(options.get("o", ""))
    ):
        raise PolicyRefused(
            f"{place} may not mount what lies outside the volume.",
            "None, or type=tmpfs, device=tmpfs and o=size=… alone.",
        )
    return value


VOLUME: dict[str, Check] = {
    "Name": matching(rf"|{NAME}", "letters, digits, _ . -"),
    "Driver": one_of("", "local"),
    "DriverOpts": volume_options,
    "Labels": pairs,
    "ClusterVolumeSpec": off("there is no cluster", _NO_OPTIONS),
}


def volume_create(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("a volume", request.body or {}, VOLUME))


_NETWORK_OPTIONS = frozenset({"com.docker.network.driver.mtu", "com.docker.network.bridge.enable_icc", "mtu"})
"""Not the bridge's name: the sandbox's firewall knows bridges by theirs."""


def network_options(place: str, value: Any) -> Any:
    for name in pairs(place, value):
        if name not in _NETWORK_OPTIONS:
            raise PolicyRefused(f"{place} may not set {name[:60]}.", f"Allowed: {', '.join(sorted(_NETWORK_OPTIONS))}.")
    return value


def network_address(place: str, value: Any) -> Any:
    try:
        ipaddress.ip_network(text(place, value), strict=False)
    except ValueError as error:
        raise PolicyRefused(f"{place} is no network's address: {error}.", "Write it as 10.1.0.0/16.") from error
    return value


_SUBNET: dict[str, Check] = {
    "Subnet": network_address,
    "IPRange": network_address,
    "Gateway": network_address,
    "AuxiliaryAddresses": pairs,
    "AuxAddress": pairs,
}
_NETWORK: dict[str, Check] = {
    "Name": matching(NAME, "letters, digits, _ . -"),
    "CheckDuplicate": a(bool),
    "Driver": one_of("", "bridge", "default"),
    "Scope": one_of("", "local"),
    "Internal": a(bool),
    "Attachable": a(bool),
    "Ingress": off("there is no cluster", _NO_OPTIONS),
    "ConfigOnly": off("there is no cluster", _NO_OPTIONS),
    "ConfigFrom": off("there is no cluster", _NO_OPTIONS, {"Network": ""}),
    "EnableIPv6": a(bool),
    "EnableIPv4": a(bool),
    "IPAM": table_of(
        {
            "Driver": one_of("", "default"),
            "Config": list_of(table_of(_SUBNET)),
            "Options": off("an address manager's options may lead out of the sandbox", _NO_OPTIONS),
        }
    ),
    "Options": network_options,
    "Labels": pairs,
}


def network_create(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("a network", request.body or {}, _NETWORK))


def _endpoint(place: str, value: Any) -> Any:
    return endpoints(place, {"default": value})["default"]


_CONNECT: dict[str, Check] = {"Container": matching(NAME, "a container"), "EndpointConfig": _endpoint, "Force": a(bool)}


def network_connect(request: Request, limits: Limits) -> Allowed:
    """A container joined to a network, or taken from it."""
    return Allowed(request.query, only("a network's container", request.body or {}, _CONNECT))


_AUTH: dict[str, Check] = dict.fromkeys(
    ("username", "password", "email", "serveraddress", "auth", "identitytoken", "registrytoken"), text
)


def login(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("a login", request.body or {}, _AUTH))
