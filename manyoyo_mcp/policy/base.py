"""What the policy's rules are made of: a request, the limits it is held against, the decision, and checks of single fields."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from manyoyo_mcp.errors import CapExceeded, PolicyRefused
from manyoyo_mcp.values import Caps, docker_size, format_bytes


@dataclass(frozen=True, slots=True)
class Within:
    """The part of the host's own engine that is a sandbox's which has no engine of its own (`labelled`): what is made there has `sandbox` in its
    label and its name. `joins`: the container whose network it has, "" where it has none. `images`: what it may run, as patterns of NAME:TAG. `builds`: whether
    it may make others."""

    sandbox: str
    joins: str
    images: tuple[str, ...]
    builds: bool = False

    @property
    def images_prefix(self) -> str:
        """How the names of the images begin that are built for it."""
        return f"localhost/{self.sandbox}/"

    @property
    def prefix(self) -> str:
        """How the names of its containers begin."""
        return f"manyoyo-{self.sandbox}."


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox grants: `default` where a request names no cap, `largest` (the sandbox's own size) at most. `socket`: where in
    the outer container the socket of a gate is that nested containers may have as their Docker socket, "" where there is none.
    `by_quota`: whether the engine takes a change of CPUs as a quota alone, as podman does, and not as NanoCpus. `ports`: whether ports may be
    published, and how far that reaches (`policy.ports`). `own`: the path of the socket that the client speaks to, which it may take for an engine's."""

    default: Caps
    largest: Caps
    socket: str = ""
    by_quota: bool = False
    ports: Literal["none", "inside", "outside"] = "none"
    own: str = ""


Query = Mapping[str, str | list[str]]
"""Parameters of a request; a list where one is given several times."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to an engine. `path` has no API version; `body` is the parsed JSON body, None where there is none. `ours`: a tool
    asks; else it is a client that we don't trust."""

    method: str
    path: str
    query: Query = field(default_factory=dict)
    body: dict[str, Any] | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Allowed:
    """The request may pass. `query` and `body` are what goes to the engine: the request's, narrowed."""

    query: Query
    body: dict[str, Any] | None


Rule = Callable[[Request, Limits], Allowed]
Check = Callable[[str, Any], Any]
"""`check(place, value)`: what goes on of a field's value, GONE for nothing. Raises PolicyRefused."""

GONE = object()
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
IMAGE = r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*"
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,500}")
_TRANSPORT = re.compile(
    r":/|//|^(?:dir|oci|oci-archive|docker-archive|docker-daemon|ostree|sif|tarball|containers-storage):"
)
_LONGEST = 64 << 10
"""Characters of one text at most; engines have limits of their own below that, programs' arguments above it."""


def passed(request: Request, limits: Limits) -> Allowed:
    """The rule for what harms nobody."""
    return Allowed(request.query, request.body)


def only(kind: str, given: Mapping[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    """What the checks of `table` leave of `given`. Raises PolicyRefused for a name that is not in it.

    Null says nothing; an empty list can mean much (no MaskedPaths, no ReadonlyPaths), so it is judged.
    """
    kept = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in table:
            raise PolicyRefused(f"{kind} may not set {name[:60]}.", f"Allowed: {', '.join(sorted(table))}.")
        value = table[name](f"{kind}'s {name}", value)
        if value is not GONE:
            kept[name] = value
    return kept


def a(*kinds: type) -> Check:
    """A value of one of these types; not of one that Python takes for it, as a bool for an int."""

    def check(place: str, value: Any) -> Any:
        if type(value) not in kinds:
            raise PolicyRefused(f"{place} is no {' or '.join(kind.__name__ for kind in kinds)}.", "Correct its type.")
        return value

    return check


def unsent(place: str, value: Any) -> Any:
    """Left out, whatever it says: it is of use to the client alone."""
    return GONE


def text(place: str, value: Any) -> Any:
    a(str)(place, value)
    if "\0" in value or len(value) > _LONGEST:
        raise PolicyRefused(f"{place} has a null byte, or is too long.", "Write plain text.")
    return value


def environment(place: str, value: Any) -> Any:
    """Variables. A name alone would be given the value that it has for the engine (podman), and is left out; so would `*` be."""
    for each in texts(place, value):
        if not re.fullmatch(r"[^=*]+(=.*)?", each, re.DOTALL):
            raise PolicyRefused(f"{place}: {each[:60]!r} is no variable.", "Write NAME=value.")
    return [each for each in value if "=" in each]


def texts(place: str, value: Any) -> Any:
    """A list of texts."""
    for each in a(list)(place, value):
        text(place, each)
    return value


def words(place: str, value: Any) -> Any:
    """A command: a list, or one text."""
    return text(place, value) if isinstance(value, str) else texts(place, value)


def pairs(place: str, value: Any) -> Any:
    """A mapping of texts to texts."""
    for key, each in a(dict)(place, value).items():
        text(place, key)
        text(place, each)
    return value


def off(why: str, hint: str, *nothing: Any) -> Check:
    """A field that may only say nothing: empty, or one of `nothing`. It is left out then."""

    def check(place: str, value: Any) -> Any:
        if value in ("", 0, False, [], {}) or value in nothing:
            return GONE
        raise PolicyRefused(f"{place} may not be set: {why}.", hint)

    return check


def one_of(*allowed: str) -> Check:
    def check(place: str, value: Any) -> Any:
        if value not in allowed:
            raise PolicyRefused(
                f"{place} may not be {str(value)[:60]!r}.", f"Allowed: {', '.join(each for each in allowed if each)}."
            )
        return value

    return check


def list_of(check: Check) -> Check:
    """A list, every item of which passes `check`."""

    def judge(place: str, value: Any) -> Any:
        return [check(place, item) for item in a(list)(place, value)]

    return judge


def table_of(table: Mapping[str, Check]) -> Check:
    """An object whose fields are in `table`."""
    return lambda place, value: only(place, a(dict)(place, value), table)


def matching(pattern: str, shown: str) -> Check:
    """A text that is a match of `pattern` from end to end; `shown` says what is allowed."""
    compiled = re.compile(pattern)

    def check(place: str, value: Any) -> Any:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise PolicyRefused(f"{place} may not be {str(value)[:60]!r}.", f"Allowed: {shown}.")
        return value

    return check


def reference(place: str, value: Any) -> Any:
    """An image's name or id, and no transport's (`dir:/…`, `docker://…`): those read what lies outside the store."""
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value) or _TRANSPORT.search(value):
        raise PolicyRefused(f"{place} {str(value)[:60]!r} is no image's name.", "Write [registry/]name[:tag] or an id.")
    return value


_TAG = matching(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,200}", "letters, digits, _ . -")


def named(request: Request, limits: Limits) -> Allowed:
    """An image that is given a name by parameters."""
    if request.query.get("repo"):
        reference("the image's name", request.query["repo"])
    if request.query.get("tag"):
        _TAG("the image's tag", request.query["tag"])
    return Allowed(request.query, request.body)


def check_largest(memory: int, cpus: float, pids: int, limits: Limits) -> None:
    """Raises CapExceeded for what is more than the sandbox itself has."""
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
