"""What may be asked of a nested engine: a pure function from a request to a decision.

An allow-list: an endpoint, query parameter or field that is not named here is refused, so that a newer engine's API opens no
hole. The paths are those of Docker's Engine API (v1.41), which both engines speak; the version prefix is taken off first.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from manyoyo_mcp.errors import CapExceeded, PolicyRefused
from manyoyo_mcp.values import Caps, docker_size, format_bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox grants: `default` where a request names no cap, `largest` (the sandbox's own size) at most."""

    default: Caps
    largest: Caps


@dataclass(frozen=True, slots=True)
class Request:
    """A request to an engine. `path` has no API version; `body` is the parsed JSON body, None where there is none."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """The request may pass. `query` and `body` are what goes to the engine: the request's, narrowed."""

    query: Mapping[str, str]
    body: dict[str, Any] | None


_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"

Rule = Callable[[Request, Limits], Allowed]


def decide(request: Request, limits: Limits) -> Allowed:
    """The decision for one request.

    Raises PolicyRefused with the reason, or CapExceeded with the largest value that is granted.
    """
    odd = ".." in request.path or "//" in request.path or "%" in request.path
    for methods, pattern, rule in () if odd else _ENDPOINTS:
        if request.method in methods and pattern.fullmatch(request.path):
            return rule(request, limits)
    raise PolicyRefused(
        f"{request.method} {request.path} is not among the engine calls that a sandbox allows.",
        "Use the tools' own arguments; what none of them offers is not offered.",
    )


def _pass(request: Request, limits: Limits) -> Allowed:
    return Allowed(request.query, request.body)


def _only(kind: str, given: Mapping[str, Any], allowed: frozenset[str]) -> None:
    # Null alone says nothing: an empty list can mean much (no MaskedPaths, no ReadonlyPaths).
    for name, value in given.items():
        if name not in allowed and value is not None:
            raise PolicyRefused(f"{kind} may not set {name}.", f"Allowed: {', '.join(sorted(allowed))}.")


_CREATE = frozenset(
    {
        "Image", "Cmd", "Entrypoint", "Env", "WorkingDir", "User", "Labels", "Tty", "OpenStdin", "StdinOnce",
        "AttachStdin", "AttachStdout", "AttachStderr", "HostConfig", "StopSignal", "StopTimeout", "Hostname",
        "ExposedPorts",
    }
)  # fmt: skip
_HOST_CONFIG = frozenset(
    {
        "NetworkMode", "Memory", "MemorySwap", "NanoCpus", "PidsLimit", "ReadonlyRootfs", "CapDrop", "AutoRemove",
        "Init", "LogConfig", "Tmpfs", "ShmSize", "RestartPolicy",
    }
)  # fmt: skip
_OUTER_NETWORKS = frozenset({"host", "pasta", "slirp4netns"})
_LOG_DRIVERS = frozenset({"none", "json-file", "k8s-file", "local"})
_LOG_OPTIONS = frozenset({"max-size", "max-file"})
"""No path among them: it would be one in the outer container."""
_RESTARTS = frozenset({"", "no", "on-failure", "unless-stopped", "always"})


def _container_create(request: Request, limits: Limits) -> Allowed:
    _only("creating a container", request.query, frozenset({"name", "platform"}))
    body = dict(request.body or {})
    _only("a nested container", body, _CREATE)
    host = dict(body.get("HostConfig") or {})
    _only("a nested container's HostConfig", host, _HOST_CONFIG)
    mode = str(host.get("NetworkMode") or "default")
    if mode in _OUTER_NETWORKS or not re.fullmatch(_NAME, mode):
        raise PolicyRefused(
            f"network {mode!r} would join a network namespace outside the nested container.",
            'Use "default", "none", or a nested network\'s name.',
        )
    log = host.get("LogConfig") or {}
    _only("a nested container's LogConfig", log, frozenset({"Type", "Config"}))
    _only("a log driver", log.get("Config") or {}, _LOG_OPTIONS)
    driver = log.get("Type", "")
    if driver and driver not in _LOG_DRIVERS:
        raise PolicyRefused(f"log driver {driver!r} may not be set.", f"Allowed: {', '.join(sorted(_LOG_DRIVERS))}.")
    if str((host.get("RestartPolicy") or {}).get("Name", "")) not in _RESTARTS:
        raise PolicyRefused("that restart policy does not exist.", "Allowed: no, on-failure, unless-stopped, always.")
    for target, options in (host.get("Tmpfs") or {}).items():
        if not str(target).startswith("/") or re.search(r"(^|,)(dev|suid|bind|rbind)(,|$)", str(options)):
            raise PolicyRefused(f"tmpfs {target}:{options} may not be set.", "A plain absolute path, e.g. /tmp.")
    host.update(_grant(host, limits))
    body["HostConfig"] = host
    return Allowed(request.query, body)


def _grant(host: Mapping[str, Any], limits: Limits) -> dict[str, int]:
    """HostConfig's caps: the request's or the default, never above the sandbox's own."""
    memory = int(host.get("Memory") or 0)
    memory = memory if memory > 0 else limits.default.memory  # to an engine, -1 is no cap at all
    cpus = int(host.get("NanoCpus") or 0) / 1e9
    cpus = cpus if cpus > 0 else limits.default.cpus
    pids = int(host.get("PidsLimit") or 0)
    pids = pids if pids > 0 else limits.default.pids
    _check_largest(memory, cpus, pids, limits)
    return Caps(cpus=cpus, memory=memory, pids=pids).host_config()


def _check_largest(memory: int, cpus: float, pids: int, limits: Limits) -> None:
    largest = limits.largest
    for name, asked, most, shown in (
        ("memory", memory, largest.memory, f"{docker_size(largest.memory)} ({format_bytes(largest.memory)})"),
        ("cpus", cpus, largest.cpus, f"{largest.cpus:g}"),
        ("pids_limit", pids, largest.pids, str(largest.pids)),
    ):
        if asked > most:
            raise CapExceeded(
                f"{name} is more than the sandbox itself has: the most is {shown}.",
                f"Ask for less, or grow the sandbox first: start_sandbox with its sandbox_id and a larger {name}.",
                cap=name,
                maximum=most,
            )


def _container_update(request: Request, limits: Limits) -> Allowed:
    body = dict(request.body or {})
    _only("an update", body, frozenset({"Memory", "MemorySwap", "NanoCpus", "PidsLimit"}))
    return Allowed(request.query, body | _grant(body, limits))


_EXEC = frozenset({"Cmd", "Env", "WorkingDir", "User", "AttachStdin", "AttachStdout", "AttachStderr", "Tty"})


def _exec_create(request: Request, limits: Limits) -> Allowed:
    _only("an exec", request.body or {}, _EXEC)
    return Allowed(request.query, request.body)


_BUILD = frozenset(
    {
        "dockerfile", "t", "q", "nocache", "rm", "forcerm", "pull", "buildargs", "target", "labels", "networkmode",
        "memory", "memswap", "cpuperiod", "cpuquota", "cgroupparent", "layers", "version", "platform", "nsoptions",
    }
)  # fmt: skip
_BUILD_NETWORKS = frozenset({"", "default", "none", "bridge", "NetworkDefault", "NetworkDisabled"})
BUILD_CGROUP = re.compile(r"/manyoyo-builds/[0-9a-f]{8,32}")
"""Where a build's RUN steps run: a cgroup of its own below the one whose pids the entrypoint caps."""


def _build(request: Request, limits: Limits) -> Allowed:
    query = dict(request.query)
    _only("a build", query, _BUILD)
    if query.get("networkmode", "default") not in _BUILD_NETWORKS:
        raise PolicyRefused(f"network {query['networkmode']!r} may not be used by a build.", 'Use "default" or "none".')
    dockerfile = query.get("dockerfile", "Dockerfile")
    if dockerfile.startswith(("/", "[")) or ".." in dockerfile.split("/"):
        raise PolicyRefused("the Dockerfile must lie in the build's context.", "Write a relative path without '..'.")
    if not BUILD_CGROUP.fullmatch(query.get("cgroupparent", "")):
        raise PolicyRefused(
            "a build must run in a cgroup of its own.", "This is the server's fault, not the request's."
        )
    if query.get("version", "1") not in ("", "1"):
        raise PolicyRefused("BuildKit ignores a build's caps.", "The classic builder is used.")
    memory = max(int(query.get("memory") or 0), 0) or limits.default.memory
    period = max(int(query.get("cpuperiod") or 0), 0) or 100_000
    cpus = max(int(query.get("cpuquota") or 0), 0) / period or limits.default.cpus
    _check_largest(memory, cpus, 1, limits)
    query |= {
        "memory": str(memory),
        "memswap": str(memory),
        "cpuperiod": str(period),
        "cpuquota": str(round(cpus * period)),
        # Podman runs RUN steps in its own (the outer container's) network namespace unless told otherwise; dockerd ignores it.
        "nsoptions": '[{"Name": "network"}]',
    }
    return Allowed(query, request.body)


def _image_create(request: Request, limits: Limits) -> Allowed:
    _only("a pull", request.query, frozenset({"fromImage", "tag", "platform", "fromSrc", "repo"}))
    if request.query.get("fromSrc", "-") not in ("", "-"):
        raise PolicyRefused("an image may be imported from the request alone, not from a URL.", "Use a registry.")
    return Allowed(request.query, request.body)


_IMAGE = r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*"

_ENDPOINTS: list[tuple[frozenset[str], re.Pattern[str], Rule]] = [
    (frozenset(methods.split()), re.compile(pattern), rule)
    for methods, pattern, rule in (
        ("GET HEAD", r"/_ping", _pass),
        ("GET", r"/version|/info|/system/df", _pass),
        ("GET", r"/containers/json", _pass),
        ("POST", r"/containers/create", _container_create),
        ("GET", rf"/containers/{_NAME}/(json|logs|top|stats|changes)", _pass),
        ("POST", rf"/containers/{_NAME}/(start|stop|restart|kill|pause|unpause|wait|attach|rename)", _pass),
        ("POST", rf"/containers/{_NAME}/update", _container_update),
        ("DELETE", rf"/containers/{_NAME}", _pass),
        ("GET PUT HEAD", rf"/containers/{_NAME}/archive", _pass),
        ("POST", rf"/containers/{_NAME}/exec", _exec_create),
        ("POST", rf"/exec/{_NAME}/(start|resize)", _pass),
        ("GET", rf"/exec/{_NAME}/json", _pass),
        ("POST", r"/build", _build),
        ("GET", r"/images/json", _pass),
        ("GET", rf"/images/{_IMAGE}/(json|history)", _pass),
        ("POST", r"/images/create", _image_create),
        ("POST", r"/images/load", _pass),
        ("POST", rf"/images/{_IMAGE}/tag", _pass),
        ("DELETE", rf"/images/{_IMAGE}", _pass),
        ("GET", r"/networks|/volumes", _pass),
    )
]
