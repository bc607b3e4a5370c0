"""What of the host's own engine belongs to a sandbox that has no engine of its own: what carries its label, and nothing else.

Pure, as `rules` is, by which a request has been judged before. `bounded` asks the engine what a name in a request stands for; what these functions
do not find to be the sandbox's is answered as if it were not there.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import (
    IMAGE,
    NAME,
    Allowed,
    Request,
    Within,
)
from manyoyo_mcp.policy.fields import OURS

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
    return any(_fits(name, pattern) for pattern in within.images)


def _fits(name: str, pattern: str) -> bool:
    """Both as the engine means them. What has no / names no registry, unless it is for all."""
    pattern = pattern.replace("@", ":").removeprefix("docker.io/").removeprefix("library/")
    if "/" in name and "/" not in pattern and pattern not in ("*", "*:*"):
        return False
    return all(map(fnmatchcase, _halves(name), _halves(pattern)))


def _halves(name: str) -> tuple[str, str]:
    """Repository and tag, or digest: else `name:*` would mean a registry's port too. What ends with * has any."""
    repository, digest, of = name.partition(":sha256:")
    if digest:
        return repository, digest + of
    if ":" in name.rsplit("/", 1)[-1]:
        repository, _, tag = name.rpartition(":")
        return repository, tag
    return name, "*" if name.endswith("*") else "latest"


def as_given(name: str) -> str:
    return name if name.startswith(OURS) else GIVEN + name


def _shown_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    given = {name.removeprefix(GIVEN): value for name, value in (labels or {}).items() if name.startswith(GIVEN)}
    return {name: value for name, value in (labels or {}).items() if not name.startswith(GIVEN)} | given


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
        given["label"] = [*(as_given(str(each)) for each in given.get("label", [])), f"{LABEL}={within.sandbox}"]
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
