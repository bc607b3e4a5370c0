"""What a container may have on the host's own engine, which is less than in an engine of its own: as `labelled`, pure, and after `rules`."""

import posixpath
from collections.abc import Mapping
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import GONE, Allowed, Check, Within, a, list_of, off, one_of
from manyoyo_mcp.policy.fields import OURS, target
from manyoyo_mcp.policy.hostroom import check_size
from manyoyo_mcp.policy.labelled import ASKED, GRANTS, LABEL, OF, STEP, as_given
from manyoyo_mcp.values import format_bytes

_MOST_WRITTEN = 8 << 30
"""Bytes of one file of a step's: `engines/hostbuilding.py` counts what they all have, and so many that no sum of them overflows."""
_MOST_USERS = 128 << 10
"""Bytes of /etc/passwd and of /etc/group."""
_MOST_GROUPS = 100
MOST_VOLUMES, MOST_PORTS = 50, 1000
"""Of an image: each volume that it declares is made for each of its containers."""
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


def _groups(place: str, value: Any) -> Any:
    """Groups of a container's, each of which the engine looks for in each line of its list."""
    if len(value or []) > _MOST_GROUPS:
        raise PolicyRefused(f"{place}: there may be {_MOST_GROUPS} groups.", "Name fewer.")
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
    "GroupAdd": _groups,
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
    if (body.get("User") or (image.get("Config") or {}).get("User")) and _is_checked(body, image):
        body["Healthcheck"] = {
            "Test": ["NONE"]
        }  # the engine would look the user up each time, in what may have grown since
    labels = _blank(image) | {as_given(name): value for name, value in given.items()} | labels
    body |= {"HostConfig": host, "Image": image["Id"], "Labels": labels}
    return Allowed({**allowed.query, "name": within.prefix + str(allowed.query.get("name") or called)}, body)


def _is_checked(body: Mapping[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether its health would be looked at."""
    given = body.get("Healthcheck") or {}
    test = given.get("Test") or ((image.get("Config") or {}).get("Healthcheck") or {}).get("Test") or []
    return test[:1] != ["NONE"] and bool(test)


def _blank(image: Mapping[str, Any]) -> dict[str, str]:
    """The labels that a container would have of an image, which may say as little as a client's where the image is the sandbox's."""
    config = image.get("Config") or {}
    labels = config.get("Labels") or {}
    _check_image(config)
    return dict.fromkeys(labels, "") if labels.get(OF) else {}


def _check_image(config: Mapping[str, Any]) -> None:
    """What an image's configuration may not ask of the engine either. dockerd makes no devices where there is a volume at /dev, and the OCI runtime then
    covers the kernel's files by whatever lies there."""
    for what, there, most in (("Volumes", "volumes", MOST_VOLUMES), ("ExposedPorts", "ports", MOST_PORTS)):
        if len(config.get(what) or {}) > most:
            raise PolicyRefused(f"The image declares more than {most} {there}.", "Run another image.")
    for path in config.get("Volumes") or {}:
        target("the image's VOLUME", path)
        if posixpath.normpath(f"/{path}").lstrip("/") in (
            "etc",
            "etc/passwd",
            "etc/group",
        ):  # dockerd reads what is below
            raise PolicyRefused(f"The image declares a volume at {path[:100]}.", "Run another image.")
    _checked_health("the image's HEALTHCHECK", config.get("Healthcheck"))


def check_users(path: str, found: Mapping[str, Any], target: Mapping[str, Any], *, volumes: bool) -> None:
    """Raises PolicyRefused for a list of users that is too long to be one, or of which that can't be told. `found`: what lies at `path`, as the engine describes
    it; `target`: what a link there leads to; `volumes`: of which the engine sees what lies below them when it reads, and else what is in them."""
    aim = str(found.get("linkTarget") or "")
    if aim and ("\ufffd" in aim or target.get("linkTarget") or volumes):
        raise PolicyRefused(
            f"{path} is a link, of which can't be told what is read there.", "Put the file itself there."
        )
    if int((target if aim else found).get("size") or 0) > _MOST_USERS:
        raise PolicyRefused(
            f"{path} is larger than {format_bytes(_MOST_USERS)}: the host's engine would read all of it into its memory.",
            "Make it shorter.",
        )


def _grants(host: Mapping[str, Any]) -> str:
    return f"{host['Memory']} {host['NanoCpus']} {host['PidsLimit']}"
