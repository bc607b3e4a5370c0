"""What may be asked of a nested engine: a pure function from a request to a decision.

An allow-list: an endpoint, query parameter or field that is not named is refused, so that a newer engine's API opens no hole.
The paths are those of Docker's Engine API (`docker_api`), which both engines speak, and below /libpod those of podman's own
(`libpod_api`); the version prefix is taken off first. Calls of BuildKit's gRPC (`buildkit_api`) have the method GRPC, and
their decoded message as body.
"""

from dataclasses import replace

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy import buildkit_api, docker_api, libpod_api
from manyoyo_mcp.policy.base import Allowed, Limits, Query, Request
from manyoyo_mcp.policy.table import Endpoint

__all__ = ["Allowed", "Limits", "Request", "decide", "endpoint"]

ENDPOINTS = (*docker_api.ENDPOINTS, *libpod_api.ENDPOINTS, *buildkit_api.ENDPOINTS)


def endpoint(method: str, path: str) -> Endpoint:
    """What such a request asks for. Raises PolicyRefused where that is not offered."""
    odd = ".." in path or "//" in path or "%" in path
    for each in () if odd else ENDPOINTS:
        if method in each.methods and each.path.fullmatch(path):
            return each
    raise PolicyRefused(
        f"{method} {path[:100]} is not among the engine calls that a sandbox allows.",
        "Containers, images, networks, volumes and builds are; push, plugins and swarm are not. docs/endpoint.md lists what goes through.",
    )


def decide(request: Request, limits: Limits) -> Allowed:
    """The decision for one request.

    Raises PolicyRefused with the reason, or CapExceeded with the largest value that is granted.
    """
    found = endpoint(request.method, request.path)
    if request.path.startswith("/libpod/"):
        request = replace(request, query=_folded(request.query))
    for name, value in request.query.items():
        if name not in found.query:
            raise PolicyRefused(
                f"{request.method} {request.path[:100]} may not have the parameter {name[:60]}.",
                f"Allowed: {', '.join(sorted(found.query)) or 'none'}.",
            )
        if isinstance(value, list) and name not in found.lists:
            raise PolicyRefused(f"the parameter {name} is given {len(value)} times.", "Give it once.")
    if request.body is not None and found.takes not in ("json", "message"):
        raise PolicyRefused(f"{request.method} {request.path[:100]} takes no JSON.", "Send no body.")
    try:
        return found.rule(request, limits)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # no number or JSON, where one belongs
        raise InvalidArgument(f"{request.path[:100]}: {str(error)[:200]}", "Correct the value.") from error


def _folded(query: Query) -> Query:
    """Names in lower case: podman takes them in any, and its client says some in two."""
    folded: dict[str, str | list[str]] = {}
    for name, value in query.items():
        if folded.setdefault(name.lower(), value) != value:
            raise PolicyRefused(f"the parameter {name.lower()[:60]} is given twice.", "Give it once.")
    return folded
