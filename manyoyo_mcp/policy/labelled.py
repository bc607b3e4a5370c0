"""What of the host's own engine belongs to a sandbox that has no engine of its own: what carries its label, and nothing else.

Pure, as `rules` is, by which a request has been judged before. `bounded` asks the engine what a name in a request stands for; what these functions
do not find to be the sandbox's is answered as if it were not there.
"""

import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from manyoyo_mcp.errors import BudgetExceeded, PolicyRefused
from manyoyo_mcp.policy.base import (
    GONE,
    IMAGE,
    NAME,
    Allowed,
    Check,
    Limits,
    Request,
    Within,
    a,
    list_of,
    off,
    one_of,
)
from manyoyo_mcp.policy.fields import OURS, target
from manyoyo_mcp.values import Caps, docker_size

LABEL = f"{OURS}within"
"""Whose a container is. Its name says so too, for a label can be an image's, and with it that of whoever runs the image."""
GRANTS = f"{OURS}grants"
"""Its caps, as `_grants` writes them."""
STEP = f"{OURS}step"
"""Of which build a container is a step, whose caps count once for them all."""
ASKED = f"{OURS}image"
"""The name by which its image was asked for: it is made from the one that was looked at."""
GIVEN = f"{OURS}given."
"""What a client's labels begin with on the host's engine: by their own names other programs there would obey them (compose finds its services by
labels alone)."""
OF = f"{OURS}of"
"""Of which sandbox an image is."""
MOST_CONTAINERS = 64
"""Of a sandbox at a time, whatever they do: outside their caps each costs the host a process and a place in everybody's lists."""
MOST_EXECS = 64
"""Of a container that have not ended; those that are never started dockerd keeps as long as the container."""
MOST_IMAGES = 5000
"""With those between a build's instructions."""
_MOST_SAID = 128 << 10
"""Bytes of a container or an exec that is to be made, which dockerd keeps in memory."""
_MOST_KEPT, _KEPT_FOR = 64 << 20, 600
"""Bytes of execs within so many seconds: dockerd forgets one that has ended after five to ten minutes."""
_MOST_WRITTEN = 8 << 30
"""Bytes of one file of a step's: `engines/hostbuilding.py` counts what they all have, and so many that no sum of them overflows."""
Kind = Literal["container", "exec", "image"]

_CONTAINER = rf"/containers/(?P<container>{NAME})"
_OFFERED = tuple(
    (frozenset(methods.split()), re.compile(path))
    for methods, path in (
        ("GET HEAD", r"/_ping"),
        ("GET", r"/containers/json"),
        ("POST", r"/containers/create"),
        ("GET", rf"{_CONTAINER}/(?:json|logs|stats|archive)"),
        ("PUT", rf"{_CONTAINER}/archive"),
        ("POST", rf"{_CONTAINER}/(?:start|stop|restart|kill|wait|attach|exec)"),
        ("DELETE", _CONTAINER),
        ("POST", rf"/exec/(?P<exec>{NAME})/(?:start|resize)"),
        ("GET", rf"/exec/(?P<exec>{NAME})/json"),
        ("GET", r"/images/json"),
        ("GET", rf"/images/(?P<image>{IMAGE})/json"),
        ("POST", r"/images/create"),
    )
)
"""What the tools ask. Whatever else an engine of its own would answer is not offered on the host's."""
_TO_BUILD = tuple(
    (frozenset([method]), re.compile(path))
    for method, path in (
        ("POST", r"/build|/commit"),
        ("POST", rf"/images/(?P<image>{IMAGE})/tag"),
        ("GET", rf"/images/(?P<image>{IMAGE})/get"),
        ("DELETE", r"/images/(?P<image>sha256:[0-9a-f]{64})"),
    )
)
"""The same, of a sandbox that may build."""
_OF_CLIENTS = tuple(
    (frozenset(methods.split()), re.compile(path))
    for methods, path in (
        ("GET", r"/version|/info"),
        ("GET", rf"{_CONTAINER}/top"),
        ("HEAD", rf"{_CONTAINER}/archive"),
        ("POST", rf"{_CONTAINER}/(?:pause|unpause|resize)"),
    )
)
"""What the user's own clients ask besides."""


def named(method: str, path: str, *, builds: bool = False, clients: bool = False) -> tuple[Kind, str] | None:
    """What a request is about, None where it names nothing. Raises PolicyRefused for what is not offered on the host's engine."""
    for methods, pattern in (*_OFFERED, *(_TO_BUILD if builds else ()), *(_OF_CLIENTS if clients else ())):
        if method in methods and (found := pattern.fullmatch(path)):
            for kind, name in found.groupdict().items():
                return kind, name  # type: ignore[return-value]
            return None
    raise PolicyRefused(
        f"{method} {path[:100]} is not offered in this isolation: the engine is the host's own.",
        "Containers can be run, entered and removed here. A sandbox with an engine of its own has the rest: start_sandbox with another isolation.",
    )


def belongs(within: Within, labels: Mapping[str, str] | None, *names: str) -> bool:
    """Whether a container with these labels and names is the sandbox's."""
    return (labels or {}).get(LABEL) == within.sandbox and any(
        name.removeprefix("/").startswith(within.prefix) for name in names
    )


def is_to_use(within: Within, labels: Mapping[str, str] | None, *names: str) -> bool:
    """Whether it is, and no step of a build, which is the build's alone."""
    return belongs(within, labels, *names) and not (labels or {}).get(STEP)


def may_run(within: Within, image: Mapping[str, Any]) -> bool:
    """Whether an image, as the engine describes it, has a name that the sandbox may run."""
    return bool(_names(within, image))


def _names(within: Within, image: Mapping[str, Any]) -> list[str]:
    """Those of an image's names that the sandbox may see."""
    names = [*(image.get("RepoTags") or []), *(image.get("RepoDigests") or [])]
    return [each for each in names if matches(within, each)]


def matches(within: Within, name: str) -> bool:
    """Whether an image of that name, as one writes it, is one that the sandbox may have."""
    repository, at, _ = name.partition("@")
    if at and ":" in repository.rsplit("/", 1)[-1]:  # the engine takes the digest, and looks at no tag
        return False
    name = name.replace("@", ":").removeprefix("docker.io/").removeprefix("library/")
    name = name if ":" in name.rsplit("/", 1)[-1] or ":sha256:" in name else f"{name}:latest"
    return any(fnmatchcase(name, pattern) for pattern in within.images)


# -- what a container may have here, which is less than in an engine of its own

_NO_STORE = off(
    "it would lie on the host, beside everybody else's", "files and outputs of nested_run bring files in and out."
)
_WITHHELD = frozenset({"NET_RAW", "MKNOD"})
"""Capabilities that Docker gives by default: one speaks for other addresses on the host's bridge."""


def _mount(place: str, value: Any) -> Any:
    if a(dict)(place, value).get("Type") != "tmpfs":
        raise PolicyRefused(
            f"{place}: of mounts there are tmpfs alone in this isolation.", "Say type=tmpfs, or leave it out."
        )
    return value


def _capability(place: str, value: Any) -> Any:
    if str(value).upper().removeprefix("CAP_") in _WITHHELD:
        raise PolicyRefused(f"{place}: {value} is not given in this isolation.", "Leave it out.")
    return value


def _networks(place: str, value: Any) -> Any:
    """What a client says of the network that it takes for the default."""
    settings = a(dict)(place, value).get("EndpointsConfig") or {}
    if value.keys() - {"EndpointsConfig"} or settings.keys() - {"default"} or any(settings.get("default", {}).values()):
        raise PolicyRefused(f"{place} may not be set: the sandbox has one network.", "Leave it out.")
    return GONE


def _shares(place: str, value: Any) -> Any:
    if value > 1024:
        raise PolicyRefused(f"{place}: {value} would be more than everybody else's.", "1024 at most; cpus caps them.")
    return value


def _patience(place: str, value: Any) -> Any:
    """Seconds that the host's engine waits for a container when it is to end itself."""
    if not 0 <= value <= 60:
        raise PolicyRefused(f"{place}: the host's engine would wait {value} s at its own end.", "0 to 60 seconds.")
    return value


def _checked_health(place: str, value: Any) -> Any:
    """How often it is looked at: each time costs the host a few processes beside its caps."""
    for name, every in (value or {}).items():
        if name.endswith("Interval") and 0 < every < 1e9:
            raise PolicyRefused(f"{place}: every {every / 1e6:g} ms is too often.", "Once a second at most.")
    return value


HOST_CONFIG: dict[str, Check] = {
    "Binds": _NO_STORE,
    "CapAdd": list_of(_capability),
    "CpuShares": _shares,
    "IpcMode": one_of("", "private", "none"),
    "LogConfig": off("what containers write is kept within bounds", "Leave it out.", {"Type": "", "Config": {}}),
    "Mounts": list_of(_mount),
    "NetworkMode": one_of("", "default", "none"),
    "PidMode": one_of("", "private"),
    "RestartPolicy": off(
        "nothing is to start again on the host by itself",
        "Leave it out.",
        {"Name": ""},
        {"Name": "no"},
        {"Name": "no", "MaximumRetryCount": 0},
    ),
    "Sysctls": off("its network is that of all containers of its sandbox", "Leave it out."),
    "VolumeDriver": _NO_STORE,
    "VolumesFrom": _NO_STORE,
}
CREATE: dict[str, Check] = {
    "Healthcheck": _checked_health,
    "NetworkingConfig": _networks,
    "StopTimeout": _patience,
    "Volumes": _NO_STORE,
}
AS_THEY_ARE = frozenset(
    [
        "AutoRemove",
        "CapDrop",
        "CpuPeriod",
        "CpuQuota",
        "CpusetCpus",
        "CpusetMems",
        "Dns",
        "DnsOptions",
        "DnsSearch",
        "ExtraHosts",
        "GroupAdd",
        "Init",
        "Memory",
        "MemoryReservation",
        "MemorySwap",
        "NanoCpus",
        "PidsLimit",
        "ReadonlyRootfs",
        "SecurityOpt",
        "ShmSize",
        "Tmpfs",
        "Ulimits",
        "ArgsEscaped",
        "AttachStderr",
        "AttachStdin",
        "AttachStdout",
        "Cmd",
        "Domainname",
        "Entrypoint",
        "Env",
        "ExposedPorts",
        "HostConfig",
        "Hostname",
        "Image",
        "Labels",
        "MacAddress",
        "NetworkDisabled",
        "OnBuild",
        "OpenStdin",
        "Shell",
        "StdinOnce",
        "StopSignal",
        "Tty",
        "User",
        "WorkingDir",
    ]
)
"""Fields that mean no more on the host's engine than in one of the sandbox's own: within the container, or within its caps."""
_LOG = {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "1"}}


def _tightened(place: str, given: Mapping[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    """What the checks of `table` leave of `given`, whose other fields are among those that may stay."""
    kept = {}
    for name, value in given.items():
        if name not in table and name not in AS_THEY_ARE:
            raise PolicyRefused(f"{place}'s {name} is not given in this isolation.", "Leave it out.")
        value = table[name](f"{place}'s {name}", value) if name in table else value
        if value is not GONE:
            kept[name] = value
    return kept


def created(allowed: Allowed, within: Within, image: Mapping[str, Any], called: str) -> Allowed:
    """A container to be made: with what makes it the sandbox's. `image`: as the engine describes the one that was looked at. `called`: its name, where
    it is given none."""
    check_size(allowed)
    body = _tightened("a container", allowed.body or {}, CREATE)
    host = _tightened("a container", body.get("HostConfig") or {}, HOST_CONFIG)
    alone = host.get("NetworkMode") == "none" or not within.joins
    host |= {
        "NetworkMode": "none" if alone else f"container:{within.joins}",
        "CapDrop": sorted({*(host.get("CapDrop") or []), *_WITHHELD}),
        "SecurityOpt": [
            "no-new-privileges:true"
        ],  # root here is the host's: nothing is to give it more than it begins with
        "LogConfig": _LOG,
    }
    given = body.get("Labels") or {}
    grants = _grants(host)
    if STEP in given:
        grants = ""
        host["Ulimits"] = [{"Name": "fsize", "Soft": _MOST_WRITTEN, "Hard": _MOST_WRITTEN}]
    labels = {LABEL: within.sandbox, f"{OURS}kind": "within", GRANTS: grants, ASKED: str(body.get("Image", ""))}
    labels = _blank(image) | {_as_given(name): value for name, value in given.items()} | labels
    body |= {"HostConfig": host, "Image": image["Id"], "Labels": labels}
    return Allowed({**allowed.query, "name": within.prefix + str(allowed.query.get("name") or called)}, body)


def check_count(what: str, there: int, most: int) -> None:
    """Raises BudgetExceeded where there are as many as may be at a time."""
    if there >= most:
        raise BudgetExceeded(
            f"The sandbox has {there} {what} on the host's engine, as many as it may.",
            "Remove or end some (nested_stop with action=remove; docker rm), or work in a sandbox with an engine of its own.",
        )


def check_size(allowed: Allowed) -> int:
    """The bytes of it. Raises PolicyRefused for more than is to be kept of one container or exec."""
    size = len(json.dumps(allowed.body, ensure_ascii=False).encode())
    if size > _MOST_SAID:
        raise PolicyRefused(
            f"Command, environment and labels are more than {_MOST_SAID >> 10} KiB together.",
            "Bring what is long in by stdin or by files.",
        )
    return size


def check_execs(said: deque[tuple[float, int]], now: float, size: int) -> None:
    """Takes an exec of `size` bytes to those that were made before. Raises BudgetExceeded where it is too much, for dockerd keeps them for some minutes."""
    while said and said[0][0] < now - _KEPT_FOR:
        said.popleft()
    if sum(each for _, each in said) + size > _MOST_KEPT:
        raise BudgetExceeded(
            f"The execs of the last {_KEPT_FOR // 60} minutes were given {_MOST_KEPT >> 20} MiB of commands and environment, which the host's engine keeps.",
            "Wait a while, or bring what is long in by stdin or by files.",
        )
    said.append((now, size))


def check_patience(seconds: Any) -> None:
    """Raises PolicyRefused for a stop that waits without end, in the engine and here."""
    if seconds and not re.fullmatch(r"[0-9]{1,2}|[1-5][0-9]{2}|600", str(seconds)):
        raise PolicyRefused(f"t={str(seconds)[:20]}: the engine would wait too long.", "0 to 600 seconds.")


def _blank(image: Mapping[str, Any]) -> dict[str, str]:
    """The labels that a container would have of an image, which may say as little as a client's where the image is the sandbox's."""
    config = image.get("Config") or {}
    labels = config.get("Labels") or {}
    _check_image(config)
    return dict.fromkeys(labels, "") if labels.get(OF) else {}


def _check_image(config: Mapping[str, Any]) -> None:
    """What an image's configuration may not ask of the engine either. dockerd makes no devices where there is a volume at /dev, and the OCI runtime then
    covers the kernel's files by whatever lies there."""
    for path in config.get("Volumes") or {}:
        target("the image's VOLUME", path)
    _checked_health("the image's HEALTHCHECK", config.get("Healthcheck"))


def _as_given(name: str) -> str:
    return name if name.startswith(OURS) else GIVEN + name


def _shown_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    given = {name.removeprefix(GIVEN): value for name, value in (labels or {}).items() if name.startswith(GIVEN)}
    return {name: value for name, value in (labels or {}).items() if not name.startswith(GIVEN)} | given


def _grants(host: Mapping[str, Any]) -> str:
    return f"{host['Memory']} {host['NanoCpus']} {host['PidsLimit']}"


def granted(labels: Mapping[str, str] | None) -> Caps:
    """A container's caps, by its label; none where it says nothing."""
    memory, nano, pids = (
        [int(each) for each in (labels or {}).get(GRANTS, "").split() if each.isdecimal()] + [0, 0, 0]
    )[:3]
    return Caps(nano / 1e9, memory, pids)


def check_room(limits: Limits, running: list[Caps], asked: Caps) -> None:
    """What runs at a time has no more than the sandbox, for no cgroup of the host's holds them together. Raises BudgetExceeded."""
    largest = limits.largest
    for name, most, parts, shown in (
        (
            "memory",
            largest.memory,
            [asked.memory, *(each.memory for each in running)],
            lambda size: docker_size(int(size)),
        ),
        ("cpus", largest.cpus, [asked.cpus, *(each.cpus for each in running)], "{:g}".format),
        ("pids_limit", largest.pids, [asked.pids, *(each.pids for each in running)], str),
    ):
        if round(sum(parts), 6) > most:
            taken = sum(parts) - parts[0]
            raise BudgetExceeded(
                f"The sandbox has {name} {shown(most)}, of which what runs in it has {shown(taken)}: there is no room for {shown(parts[0])} more.",
                f"Ask for less {name}, wait for what runs (nested_list) or stop it, or grow the sandbox: start_sandbox with its sandbox_id.",
            )


_PULLED = re.compile(r"(?:([a-z0-9.-]+(?::[0-9]+)?)/)?[a-z0-9._/-]+", re.ASCII)
_LOOPBACK = re.compile(r"localhost|0\..*|127\..*|.*\.localhost", re.ASCII)


def pulled(request: Request, within: Within) -> tuple[Allowed, str]:
    """The request for an image that may come to the host's engine, and what it names. Raises PolicyRefused for one that is not to."""
    query = request.query
    name, tag = str(query.get("fromImage") or ""), str(query.get("tag") or "")
    repository, last = name.rpartition("/")[0::2]
    if not tag and "@" not in last and ":" in last:  # the tag may stand in the name, but in one place
        last, _, tag = last.partition(":")
        name = f"{repository}/{last}" if repository else last
    elif not tag and "@" in last:
        name, _, tag = name.partition("@")
    tag = tag or "latest"
    whole = f"{name}{'@' if tag.startswith('sha256:') else ':'}{tag}"
    found = _PULLED.fullmatch(name)
    loopback = found is not None and _LOOPBACK.fullmatch((found[1] or "").partition(":")[0]) is not None
    if found is None or loopback or query.get("fromSrc") or query.get("platform") or not matches(within, whole):
        raise PolicyRefused(
            f"The image {whole[:100]} is not among those that may be brought to the host's own engine: {', '.join(within.images)}; none by a platform, "
            "and none from a registry on the host's loopback.",
            "nested_list shows those that are there. The operator can name others in MANYOYO_HOST_IMAGES; a sandbox with an engine of its own "
            "(another isolation) may have any.",
        )
    return Allowed({"fromImage": name, "tag": tag}, None), whole


def there_already(image: str) -> PolicyRefused:
    """Why an image is not fetched anew."""
    return PolicyRefused(
        f"The image {image} is on the host's engine already, where its name is everybody's: it is not fetched anew.",
        "Leave pull out. Whoever runs the host can fetch a newer one there.",
    )


_FILTERS = {
    "/containers/json": frozenset({"exited", "health", "id", "label", "name", "status"}),
    "/images/json": frozenset({"dangling", "label", "reference"}),
}
"""None that names another thing: an engine says whether there is one."""


def narrowed(allowed: Allowed, request: Request, within: Within) -> Allowed:
    """A list, of what is the sandbox's alone."""
    for name in ("since", "before", "filter"):
        if request.query.get(name):
            raise PolicyRefused(f"a list may not have the parameter {name} in this isolation.", "Leave it out.")
    try:
        given = {name: list(each) for name, each in json.loads(str(request.query.get("filters") or "{}")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise PolicyRefused(
            "the parameter filters is no object of lists.", 'Write {"label": ["NAME=value"]}.'
        ) from error
    if odd := given.keys() - _FILTERS[request.path]:
        raise PolicyRefused(
            f"a list may not be filtered by {min(odd)[:60]} in this isolation.",
            f"Allowed: {', '.join(sorted(_FILTERS[request.path]))}.",
        )
    if request.path == "/containers/json":
        given["label"] = [*(_as_given(str(each)) for each in given.get("label", [])), f"{LABEL}={within.sandbox}"]
    return replace(allowed, query={**allowed.query, "filters": json.dumps(given)})


def containers(within: Within, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a list's containers that are the sandbox's, by the names that they have there."""
    return [
        row
        | _network(row)
        | {"Labels": _shown_labels(row.get("Labels"))}
        | {"Names": [f"/{each.removeprefix('/').removeprefix(within.prefix)}" for each in row["Names"]]}
        | {"Image": (row.get("Labels") or {}).get(ASKED) or row.get("Image", "")}
        for row in rows
        if is_to_use(within, row.get("Labels"), *(row.get("Names") or []))
    ]


def inspected(within: Within, told: dict[str, Any]) -> dict[str, Any]:
    """One of them, as it is described."""
    return told | {"Config": told["Config"] | {"Labels": _shown_labels(told["Config"].get("Labels"))}}


def _network(row: Mapping[str, Any]) -> dict[str, Any]:
    """A container's, as a list has it: of those that have the sandbox's, at localhost."""
    joined = str((row.get("HostConfig") or {}).get("NetworkMode", "")).startswith("container:")
    networks = {"sandbox": {"IPAddress": "127.0.0.1"}} if joined and row.get("State") == "running" else {}
    return {"NetworkSettings": {"Networks": networks}}


def images(within: Within, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a list's images that the sandbox may run, by those of their names that it may see."""
    return [row | {"RepoTags": _names(within, row), "RepoDigests": []} for row in rows if may_run(within, row)]


_INFO = frozenset(
    {"Architecture", "CgroupDriver", "CgroupVersion", "ID", "KernelVersion", "MemTotal", "NCPU", "OSType", "OperatingSystem", "ServerVersion"}
)  # fmt: skip


def info(within: Within, told: dict[str, Any]) -> dict[str, Any]:
    """Of what an engine tells of itself what says nothing of others'."""
    return {name: value for name, value in told.items() if name in _INFO} | {"Name": within.sandbox}
