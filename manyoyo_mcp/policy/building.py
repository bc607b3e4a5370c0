"""What a build may do."""

import json
import posixpath
import re
from dataclasses import replace
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import Allowed, Limits, Request, check_largest, reference

_DOCKERFILE = re.compile(r"(?!(.*/)?\.\.(/|$))[\w.@+-][\w.@+ -]*(/[\w.@+-][\w.@+ -]*)*")
"""Podman takes one that is a JSON list (with spaces before it, too) for the names of several, on the way to any file."""
_NETWORKS = frozenset({"", "default", "none", "bridge", "NetworkDefault", "NetworkDisabled"})
_EMPTY = frozenset({"", "0", "null", "[]", "{}"})
_SECRET = re.compile(r"id=[A-Za-z0-9][A-Za-z0-9_.-]{0,63},src=\.manyoyo-secret-[0-9a-f]{8,32}-[0-9]{1,3}")
BUILD_CGROUP = re.compile(r"/manyoyo-builds/[0-9a-f]{8,32}")
"""Where a build's RUN steps run: a cgroup of its own below the one whose pids the entrypoint caps."""
QUERY = (
    "dockerfile t+ q nocache rm forcerm pull buildargs target labels networkmode memory memswap cpuperiod cpuquota cgroupparent "
    "layers secrets version platform nsoptions cachefrom cpusetcpus cpusetmems cpushares extrahosts shmsize squash ulimits"
)
_CLIENTS = ("cachefrom", "cpusetcpus", "cpusetmems", "cpushares", "extrahosts", "shmsize", "squash", "ulimits")
"""What Docker's own client always says, and means nothing by."""


def build(request: Request, limits: Limits) -> Allowed:
    query: dict[str, Any] = dict(request.query)
    for name in _CLIENTS:
        if query.pop(name, "") not in _EMPTY:
            raise PolicyRefused(f"a build may not set {name}.", "Leave it out.")
    if query.get("networkmode", "default") not in _NETWORKS:
        raise PolicyRefused(f"network {query['networkmode']!r} may not be used by a build.", 'Use "default" or "none".')
    dockerfile = posixpath.normpath(query.get("dockerfile") or "Dockerfile")
    # What ends in .in goes through a preprocessor in podman's builder: one that reads files.
    if not _DOCKERFILE.fullmatch(dockerfile) or dockerfile.endswith(".in"):
        raise PolicyRefused(
            "the Dockerfile must lie in the build's context, under a plain name.",
            "Write a relative path without '..', not ending in .in.",
        )
    for tag in [tags] if isinstance(tags := query.get("t", []), str) else tags:
        reference("a build's tag", tag)
    if not BUILD_CGROUP.fullmatch(query.get("cgroupparent", "")):
        raise PolicyRefused("a build must run in a cgroup of its own.", "Leave cgroup-parent out.")
    if query.get("version", "1") not in ("", "1"):
        raise PolicyRefused(
            "BuildKit is not reached by POST /build.",
            "Use docker buildx (docker build of a client from 23.0 on does), or the classic builder (DOCKER_BUILDKIT=0).",
        )
    if "secrets" in query:
        _check_secrets(query["secrets"], request)
    for name in ("buildargs", "labels"):
        _check_pairs(name, query.get(name) or "{}")
    memory = max(int(query.get("memory") or 0), 0) or limits.default.memory
    period = max(int(query.get("cpuperiod") or 0), 0) or 100_000
    cpus = max(int(query.get("cpuquota") or 0), 0) / period or limits.default.cpus
    check_largest(memory, cpus, 1, limits)
    query |= {
        "dockerfile": dockerfile,
        "rm": "1",
        "forcerm": "1",  # a build leaves no container, however it ended
        "memory": str(memory),
        "memswap": str(memory),
        "cpuperiod": str(period),
        "cpuquota": str(round(cpus * period)),
        # Podman runs RUN steps in its own (the outer container's) network namespace unless told otherwise; dockerd ignores it.
        "nsoptions": '[{"Name": "network"}]',
    }
    return Allowed(query, request.body)


def stream(request: Request, limits: Limits) -> Allowed:
    """BuildKit's own protocols, which a gate alone reads on."""
    if request.ours:
        raise PolicyRefused(
            "BuildKit is reached through a gate alone.", "Use nested_build, or docker buildx over sandbox_endpoint."
        )
    return Allowed(request.query, request.body)


def _check_secrets(value: str, request: Request) -> None:
    """The server's own placeholders alone: a source leads the builder to any file."""
    try:
        given = json.loads(value)
    except ValueError:
        given = None
    ours = request.ours and isinstance(given, list)
    if not ours or not all(isinstance(each, str) and _SECRET.fullmatch(each) for each in given):
        raise PolicyRefused(
            "a build may not bring secrets of its own.", "The tool nested_build has those that are declared."
        )


def _check_pairs(name: str, value: str) -> None:
    try:
        given = json.loads(value)
    except ValueError:
        given = value
    if not isinstance(given, dict | None) or not all(isinstance(each, str | None) for each in (given or {}).values()):
        raise PolicyRefused(f"{name} is no mapping of texts.", 'Write {"NAME": "value"}.')


_LIBPOD_CLIENTS: dict[str, frozenset[str]] = {
    "compatvolumes": frozenset("0"),
    "httpproxy": frozenset("01"),  # the sandbox hands its own on
    "identitylabel": frozenset("01"),
    "idmappingoptions": frozenset(),
    "isolation": frozenset({"0", "1", "oci", "default"}),
    "jobs": frozenset(),
    "omithistory": frozenset("0"),
    "outputformat": frozenset({"", "application/vnd.oci.image.manifest.v1+json"}),
    "retry": frozenset(),
    "retry-delay": frozenset(),
    "seccomp": frozenset({"", "/usr/share/containers/seccomp.json"}),
    "shmsize": frozenset({"", "0", "67108864"}),
}
"""What podman's own client always says, and what of it means nothing (an empty set: whatever it says): it is not sent on."""
LIBPOD_QUERY = f"{QUERY} output pullpolicy {' '.join(sorted(_LIBPOD_CLIENTS))}"


def libpod_build(request: Request, limits: Limits) -> Allowed:
    """The same in podman's own dialect, which names the Dockerfile in a list, and the tag in two places."""
    query = dict(request.query)
    for name, nothing in _LIBPOD_CLIENTS.items():
        value = query.pop(name, None)
        if value is not None and nothing and value not in nothing:
            raise PolicyRefused(f"a build may not set {name}.", "Leave it out.")
    mode = str(query.pop("networkmode", ""))
    if mode not in ("", "0", "2"):  # default, disabled, enabled
        query["networkmode"] = "NetworkDisabled" if mode == "1" else mode
    if query.get("output"):
        reference("a build's tag", query["output"])
    if query.get("t") == "":
        del query["t"]
    if query.get("pullpolicy", "") not in ("", "always", "missing", "never", "newer"):
        raise PolicyRefused("a build's pull policy may not be that.", "Allowed: always, missing, never, newer.")
    named = str(query.get("dockerfile") or "")
    if named.startswith("["):
        try:
            files = json.loads(named)
        except ValueError:
            files = []
        if len(files) != 1 or not isinstance(files[0], str):
            raise PolicyRefused("a build takes one Dockerfile.", "Name one, in its context.")
        query["dockerfile"] = files[0]
    return build(replace(request, query=query), limits)
