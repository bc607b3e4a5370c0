"""Podman's own API (libpod), up to v5.4: what of it is offered. `podman --remote` speaks it, to a podman engine. Podman
reads the names of parameters in whatever case they come; here they are in lower case, as `rules` makes them."""

import json
import re
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy import building, containers, libpod, libpod_things
from manyoyo_mcp.policy.base import IMAGE, NAME, Allowed, Limits, Request, named, passed, reference
from manyoyo_mcp.policy.table import row

_C, _I, _N, _V = (f"/libpod/{each}" for each in ("containers", "images", "networks", "volumes"))


def _pull(request: Request, limits: Limits) -> Allowed:
    reference("the image", request.query.get("reference", ""))
    if request.query.get("authfile"):
        raise PolicyRefused("a file of credentials would be the outer container's.", "Log in: the client sends them.")
    return passed(request, limits)


def _load(request: Request, limits: Limits) -> Allowed:
    """An import: of the body, not of what a URL names."""
    if request.query.get("url"):
        raise PolicyRefused("an image may be imported from the request alone, not from a URL.", "Use a registry.")
    if request.query.get("reference"):
        reference("the image's name", request.query["reference"])
    return passed(request, limits)


_COLUMNS = frozenset(
    [
        "args",
        "capamb",
        "capbnd",
        "capeff",
        "capinh",
        "capprm",
        "comm",
        "etime",
        "gid",
        "group",
        "groups",
        "nice",
        "pcpu",
        "pgid",
        "pid",
        "ppid",
        "rgroup",
        "rss",
        "ruser",
        "seccomp",
        "state",
        "stime",
        "time",
        "tty",
        "uid",
        "user",
        "vsz",
    ]
)
"""Of podman-top(1), but those that tell the outer container's own users and processes."""


def _columns(request: Request, limits: Limits) -> Allowed:
    """Podman takes what is no column of its own for arguments of ps, which it runs itself."""
    given: Any = request.query.get("ps_args", [])
    for each in given if isinstance(given, list) else [given]:
        if not _COLUMNS.issuperset(each.split(",")):
            raise PolicyRefused(
                f"top may not be asked for {each[:60]!r}, which is no column of podman's.",
                f"Allowed: {', '.join(sorted(_COLUMNS))}.",
            )
    return passed(request, limits)


def _unpack(request: Request, limits: Limits) -> Allowed:
    """An archive into a container; what is renamed of it stays in its place."""
    try:
        renamed = json.loads(str(request.query.get("rename") or "{}"))
    except ValueError:
        renamed = None
    if not isinstance(renamed, dict) or not all(
        isinstance(new, str) and re.fullmatch(r"[^/\0]+", new) and new not in (".", "..") for new in renamed.values()
    ):
        raise PolicyRefused("rename is no mapping of names to names.", 'Write {"name": "other"}, without / and "..".')
    return passed(request, limits)


ENDPOINTS = (
    row("GET HEAD", r"/libpod/_ping"),
    row("GET", r"/libpod/(?:version|info)"),
    row("GET", r"/libpod/system/df"),
    row("POST", r"/libpod/system/prune", "all build external filters volumes"),
    row("GET", r"/libpod/events", "stream since until filters"),
    # containers
    row("GET", rf"{_C}/json", "all external filters last limit namespace pod size sync"),
    row("POST", rf"{_C}/create", "", "json", libpod.create),
    row("GET", rf"{_C}/{NAME}/json", "size"),
    row("GET", rf"{_C}/{NAME}/(?:exists|changes|export)", "external difftype"),
    row("POST", rf"{_C}/{NAME}/shouldrestart"),
    row("GET", rf"{_C}/{NAME}/logs", "follow stdout stderr since until timestamps tail details"),
    row("GET", rf"{_C}/{NAME}/top", "ps_args+ stream delay", rule=_columns),
    row("GET", rf"{_C}/stats", "containers+ stream interval all"),
    row("POST", rf"{_C}/{NAME}/init"),
    row("POST", rf"{_C}/{NAME}/start", "detachkeys recursive filters"),
    row("POST", rf"{_C}/{NAME}/stop", "timeout t ignore all"),
    row("POST", rf"{_C}/{NAME}/restart", "timeout t"),
    row("POST", rf"{_C}/{NAME}/kill", "signal all"),
    row("POST", rf"{_C}/{NAME}/(?:pause|unpause)"),
    row("POST", rf"{_C}/{NAME}/wait", "condition+ conditions+ interval"),
    row("POST", rf"{_C}/{NAME}/attach", "detachkeys logs stream stdin stdout stderr", hijacks=True),
    row("POST", rf"{_C}/{NAME}/resize", "h w running"),
    row("POST", rf"{_C}/{NAME}/rename", "name"),
    row("POST", rf"{_C}/{NAME}/update", "restartpolicy restartretries", "json", libpod.update),
    row("DELETE", rf"{_C}/{NAME}", "v volumes force timeout ignore depend"),
    row("GET HEAD", rf"{_C}/{NAME}/archive", "path"),
    row("PUT", rf"{_C}/{NAME}/archive", "path pause rename copyuidgid nooverwritedirnondir chown", "archive", _unpack),
    row("POST", rf"{_C}/prune", "filters"),
    row("POST", rf"{_C}/{NAME}/exec", "", "json", containers.execute),
    row("POST", rf"/libpod/exec/{NAME}/start", "", "json", libpod.start_exec, hijacks=True),
    row("POST", rf"/libpod/exec/{NAME}/resize", "h w running"),
    row("GET", rf"/libpod/exec/{NAME}/json"),
    row("POST", rf"/libpod/exec/{NAME}/remove", "", "json", libpod.remove_exec),
    row("POST", r"/libpod/commit", "author changes+ comment container format pause repo squash stream tag", rule=named),
    # images
    row("POST", r"/libpod/build", building.LIBPOD_QUERY, "archive", building.libpod_build),
    row("GET", rf"{_I}/json", "all filters"),
    row("GET", rf"{_I}/{IMAGE}/(?:json|history|exists|resolve)", "size"),
    row("GET", rf"{_I}/{IMAGE}/tree", "whatrequires"),
    row("GET", rf"{_I}/{IMAGE}/get", "format compress"),
    row("GET", rf"{_I}/export", "references+ format compress ociacceptuncompressedlayers"),
    row("POST", rf"{_I}/load", "", "archive"),
    row("POST", rf"{_I}/import", "changes+ message reference url os architecture variant", "archive", _load),
    row("POST", rf"{_I}/pull", "reference alltags arch authfile os variant policy quiet tlsverify retry retrydelay compatmode pullprogress", rule=_pull),
    row("POST", rf"{_I}/prune", "all external filters buildcache"),
    row("POST", rf"{_I}/{IMAGE}/(?:tag|untag)", "repo tag", rule=named),
    row("DELETE", rf"{_I}/remove", "images+ all force ignore lookupmanifest noprune"),
    row("DELETE", rf"{_I}/{IMAGE}", "force ignore lookupmanifest"),
    # networks and volumes
    row("GET", rf"{_N}/json", "filters"),
    row("GET", rf"{_N}/{NAME}/(?:json|exists)"),
    row("POST", rf"{_N}/create", "ignoreifexists", "json", libpod_things.network_create),
    row("POST", rf"{_N}/{NAME}/connect", "", "json", libpod_things.network_connect),
    row("POST", rf"{_N}/{NAME}/disconnect", "", "json", libpod_things.network_disconnect),
    row("POST", rf"{_N}/prune", "filters"),
    row("DELETE", rf"{_N}/{NAME}", "force timeout"),
    row("GET", rf"{_V}/json", "filters"),
    row("GET", rf"{_V}/{NAME}/(?:json|exists)"),
    row("POST", rf"{_V}/create", "", "json", libpod_things.volume_create),
    row("POST", rf"{_V}/prune", "filters"),
    row("DELETE", rf"{_V}/{NAME}", "force timeout"),
)  # fmt: skip
