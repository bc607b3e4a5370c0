"""What may be asked about networks and volumes in podman's own dialect, up to podman 5.4."""

from manyoyo_mcp.policy import libpod, things
from manyoyo_mcp.policy.base import (
    NAME,
    Allowed,
    Check,
    Limits,
    Request,
    a,
    list_of,
    matching,
    off,
    one_of,
    only,
    pairs,
    table_of,
    unsent,
)
from manyoyo_mcp.policy.fields import address

_CONTAINER = matching(NAME, "a container")
_VOLUME: dict[str, Check] = {
    "Name": things.VOLUME["Name"],
    "Driver": things.VOLUME["Driver"],
    "Options": things.volume_options,
    "Labels": pairs,
    "Label": pairs,
    "IgnoreIfExists": a(bool),
    "UID": a(int),
    "GID": a(int),
}


def volume_create(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("a volume", request.body or {}, _VOLUME))


_SUBNET: dict[str, Check] = {
    "subnet": things.network_address,
    "gateway": things.network_address,
    "lease_range": table_of({"start_ip": things.network_address, "end_ip": things.network_address}),
}
_NETWORK: dict[str, Check] = {
    "name": matching(rf"|{NAME}", "letters, digits, _ . -"),
    "id": unsent,
    "created": unsent,
    "driver": one_of("", "bridge", "default"),
    "network_interface": off("the sandbox's firewall knows bridges by their names", "Leave it out."),
    "subnets": list_of(table_of(_SUBNET)),
    "routes": off("a route leads past the sandbox's own", "Leave it out."),
    "ipv6_enabled": a(bool),
    "internal": a(bool),
    "dns_enabled": a(bool),
    "network_dns_servers": list_of(address),
    "labels": pairs,
    "options": things.network_options,
    "ipam_options": table_of({"driver": one_of("", "host-local")}),
}


def network_create(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("a network", request.body or {}, _NETWORK))


_CONNECT: dict[str, Check] = libpod.NETWORK | {"container": _CONTAINER}


def network_connect(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, only("a network's container", request.body or {}, _CONNECT))


def network_disconnect(request: Request, limits: Limits) -> Allowed:
    table = {"Container": _CONTAINER, "Force": a(bool)}
    return Allowed(request.query, only("a network's container", request.body or {}, table))
