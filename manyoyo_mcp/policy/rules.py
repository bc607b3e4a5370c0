"""What may be asked of a nested engine: a pure function from a request to a decision.

An allow-list: an endpoint, query parameter or field that is not named here is refused, so that a newer engine's API opens no
hole. The paths are those of Docker's Engine API (up to v1.45), which both engines speak; the version prefix is taken off first.
"""

import re
from dataclasses import dataclass
from typing import Literal

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy import building, containers, things
from manyoyo_mcp.policy.base import NAME, Allowed, Limits, Request, Rule, named, passed

__all__ = ["Allowed", "Endpoint", "Limits", "Request", "decide", "endpoint"]

_IMAGE = r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*"

Takes = Literal["nothing", "json", "archive"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is asked of an engine by these methods at such a path: the parameters that may be named (`lists` of them several
    times), what body it takes, whether the connection is no longer HTTP afterwards, and the rule for the rest."""

    methods: frozenset[str]
    path: re.Pattern[str]
    query: frozenset[str]
    takes: Takes
    rule: Rule
    hijacks: bool = False
    lists: frozenset[str] = frozenset()


def _endpoint(
    methods: str, path: str, query: str = "", takes: Takes = "nothing", rule: Rule = passed, hijacks: bool = False
) -> Endpoint:
    """Parameters that may come several times are written with a +."""
    names = query.split()
    lists = frozenset(each.rstrip("+") for each in names if each.endswith("+"))
    return Endpoint(
        frozenset(methods.split()),
        re.compile(path),
        frozenset(each.rstrip("+") for each in names),
        takes,
        rule,
        hijacks,
        lists,
    )


_ENDPOINTS = (
    _endpoint("GET HEAD", r"/_ping"),
    _endpoint("GET", r"/version|/info"),
    _endpoint("GET", r"/system/df", "type+"),
    _endpoint("GET", r"/events", "since until filters"),
    _endpoint("POST", r"/auth", takes="json", rule=things.login),
    # containers
    _endpoint("GET", r"/containers/json", "all limit size filters trunc_cmd since before"),
    _endpoint("POST", r"/containers/create", "name platform", "json", containers.create),
    _endpoint("GET", rf"/containers/{NAME}/json", "size"),
    _endpoint("GET", rf"/containers/{NAME}/logs", "follow stdout stderr since until timestamps tail details"),
    _endpoint("GET", rf"/containers/{NAME}/top"),
    _endpoint("GET", rf"/containers/{NAME}/stats", "stream one-shot"),
    _endpoint("GET", rf"/containers/{NAME}/(?:changes|export)"),
    _endpoint("POST", rf"/containers/{NAME}/start", "detachKeys"),
    _endpoint("POST", rf"/containers/{NAME}/(?:stop|restart)", "t signal"),
    _endpoint("POST", rf"/containers/{NAME}/kill", "signal"),
    _endpoint("POST", rf"/containers/{NAME}/(?:pause|unpause)"),
    _endpoint("POST", rf"/containers/{NAME}/wait", "condition"),
    _endpoint("POST", rf"/containers/{NAME}/attach", "detachKeys logs stream stdin stdout stderr", hijacks=True),
    _endpoint("POST", rf"/containers/{NAME}/resize", "h w"),
    _endpoint("POST", rf"/containers/{NAME}/rename", "name"),
    _endpoint("POST", rf"/containers/{NAME}/update", "", "json", containers.update),
    _endpoint("DELETE", rf"/containers/{NAME}", "v force link"),
    _endpoint("GET HEAD", rf"/containers/{NAME}/archive", "path"),
    _endpoint("PUT", rf"/containers/{NAME}/archive", "path noOverwriteDirNonDir copyUIDGID", "archive"),
    _endpoint("POST", r"/containers/prune", "filters"),
    _endpoint("POST", rf"/containers/{NAME}/exec", "", "json", containers.execute),
    _endpoint("POST", rf"/exec/{NAME}/start", "", "json", containers.execute, hijacks=True),
    _endpoint("POST", rf"/exec/{NAME}/resize", "h w"),
    _endpoint("GET", rf"/exec/{NAME}/json"),
    # images
    _endpoint("POST", r"/build", building.QUERY, "archive", building.build),
    _endpoint("POST", r"/build/prune", "all keep-storage filters"),
    _endpoint("GET", r"/images/json", "all filters filter digests shared-size only_ids"),
    _endpoint("GET", rf"/images/{_IMAGE}/(?:json|history|get)"),
    _endpoint("GET", r"/images/get", "names+"),
    _endpoint("POST", r"/images/create", "fromImage tag platform fromSrc repo message", "archive", things.image_create),
    _endpoint("POST", r"/images/load", "quiet", "archive"),
    _endpoint("POST", r"/images/prune", "filters"),
    _endpoint("POST", rf"/images/{_IMAGE}/tag", "repo tag force", rule=named),
    _endpoint("DELETE", rf"/images/{_IMAGE}", "force noprune"),
    _endpoint("GET", rf"/distribution/{_IMAGE}/json"),
    _endpoint("POST", r"/commit", "container repo tag comment author pause changes+", "json", containers.commit),
    # networks and volumes
    _endpoint("GET", r"/networks", "filters"),
    _endpoint("GET", rf"/networks/{NAME}", "verbose scope"),
    _endpoint("POST", r"/networks/create", "", "json", things.network_create),
    _endpoint("POST", rf"/networks/{NAME}/(?:connect|disconnect)", "", "json", things.network_connect),
    _endpoint("POST", r"/networks/prune", "filters"),
    _endpoint("DELETE", rf"/networks/{NAME}"),
    _endpoint("GET", r"/volumes", "filters"),
    _endpoint("GET", rf"/volumes/{NAME}"),
    _endpoint("POST", r"/volumes/create", "", "json", things.volume_create),
    _endpoint("POST", r"/volumes/prune", "filters all"),
    _endpoint("DELETE", rf"/volumes/{NAME}", "force"),
)


def endpoint(method: str, path: str) -> Endpoint:
    """What such a request asks for. Raises PolicyRefused where that is not offered."""
    odd = ".." in path or "//" in path or "%" in path
    for each in () if odd else _ENDPOINTS:
        if method in each.methods and each.path.fullmatch(path):
            return each
    raise PolicyRefused(
        f"{method} {path[:100]} is not among the engine calls that a sandbox allows.",
        "What is not offered by the tools, or by Docker's API for containers, images, networks and volumes, is not offered.",
    )


def decide(request: Request, limits: Limits) -> Allowed:
    """The decision for one request.

    Raises PolicyRefused with the reason, or CapExceeded with the largest value that is granted.
    """
    found = endpoint(request.method, request.path)
    for name, value in request.query.items():
        if name not in found.query:
            raise PolicyRefused(
                f"{request.method} {request.path[:100]} may not have the parameter {name[:60]}.",
                f"Allowed: {', '.join(sorted(found.query)) or 'none'}.",
            )
        if isinstance(value, list) and name not in found.lists:
            raise PolicyRefused(f"the parameter {name} is given {len(value)} times.", "Give it once.")
    if request.body is not None and found.takes != "json":
        raise PolicyRefused(f"{request.method} {request.path[:100]} takes no JSON.", "Send no body.")
    try:
        return found.rule(request, limits)
    except (ValueError, TypeError, OverflowError) as error:  # no number, where one belongs
        raise InvalidArgument(f"{request.path[:100]}: {str(error)[:200]}", "Correct the value.") from error
