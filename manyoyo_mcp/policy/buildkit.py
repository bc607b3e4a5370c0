"""What a build by BuildKit may ask for: the calls of its control API and of the gateway that its clients use, as decoded messages.

What a step does comes from a Dockerfile alone, which the daemon's own frontend reads: no definition of another's making (LLB) and no
other frontend, whose definitions nobody would see. Caps reach a step by the name of its cgroup (see `oci-add` in the outer image).
"""

import json
from typing import Any

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import (
    GONE,
    Allowed,
    Check,
    Limits,
    Request,
    Rule,
    a,
    list_of,
    matching,
    off,
    one_of,
    only,
    pairs,
    reference,
    table_of,
    text,
    texts,
    unsent,
)

_LEAVE = "Leave it out."
_ID = matching(r"[A-Za-z0-9]{1,64}", "letters and digits")
_FLAG = one_of("", "true", "false", "0", "1")
_NO_PUSH = "a sandbox pushes nowhere"
_NO_LLB = off(
    "a definition of its own (LLB) is not judged", "Build from a Dockerfile, with the daemon's own frontend.", b""
)
_NO_INPUTS = off(
    "what another build made is no input here", "Write it as a stage of the Dockerfile, or give its image a tag."
)
_NO_POLICY = off("sources are what the sandbox's network policy allows", _LEAVE)
_FRONTEND = one_of("", "dockerfile.v0")


def _references(place: str, value: Any) -> Any:
    """Images' names, with commas between."""
    for each in filter(None, text(place, value).split(",")):
        reference(place, each)
    return value


def _named_context(place: str, value: Any) -> Any:
    """A context beside the main one: the client's own, or an image."""
    if text(place, value).startswith("docker-image://"):
        reference(place, value.removeprefix("docker-image://"))
        return value
    return matching(r"local:[A-Za-z0-9_.:@/-]{1,200}", "local:NAME, docker-image://NAME")(place, value)


def _network(place: str, value: Any) -> Any:
    if value not in ("", "default", "none", "sandbox"):
        raise PolicyRefused(f"network {str(value)[:60]!r} may not be used by a build.", 'Use "default" or "none".')
    return value


def _entry(types: dict[str, dict[str, Check]]) -> Check:
    """A place where a cache is read from or written to; `types` have their attributes."""

    def check(place: str, value: Any) -> Any:
        kept = only(place, a(dict)(place, value), {"Type": one_of(*types), "Attrs": a(dict)})
        return kept | {"Attrs": only(place, kept.get("Attrs", {}), types[kept.get("Type", "")])}

    return check


IMPORT: dict[str, Check] = {"ref": reference}
_IMPORT = _entry({"": {}, "registry": IMPORT})
EXPORT: dict[str, Check] = {"mode": one_of("", "min", "max")}
_EXPORT = _entry({"": {}, "inline": EXPORT})


def _imports(place: str, value: Any) -> Any:
    """The same as JSON."""
    try:
        given = json.loads(text(place, value) or "[]")
    except (ValueError, RecursionError) as error:
        raise PolicyRefused(f"{place} is no JSON.", "Write a list of {Type, Attrs}.") from error
    return json.dumps(list_of(_IMPORT)(place, given))


ATTRS: dict[str, Check] = {
    "attest:provenance": matching(r"[A-Za-z0-9=,.:/_-]{0,200}", "mode=min|max and the like"),
    "build-arg:BUILDKIT_SYNTAX": off("the daemon's own frontend reads every Dockerfile", _LEAVE),
    "cache-from": _references,
    "cache-imports": _imports,
    "context": matching(
        r"|http://buildkit-session/[A-Za-z0-9]{1,64}",
        "the client's directory or archive; clone or download others first",
    ),
    "dockerfilekey": matching(r"[A-Za-z0-9_.-]{1,60}", "a name"),
    "filename": text,
    "force-network-mode": _network,
    "frontend.caps": text,
    "image-resolve-mode": one_of("", "default", "pull", "local"),
    "multi-platform": _FLAG,
    "no-cache": text,
    "platform": text,
    "requestid": matching(r"frontend\.[a-z.]{1,60}", "frontend.outline, frontend.targets, frontend.lint"),
    "target": text,
}
"""What its frontend may be told, by name …"""
PREFIXED: dict[str, Check] = {
    "build-arg:": text,
    "context:": _named_context,
    "label:": text,
    "local-sessionid:": _ID,
    "vcs:": text,
}
"""… and by the beginning of a name, to the first colon."""


def frontend_attrs(place: str, value: Any) -> Any:
    kept = {}
    for name, each in a(dict)(place, value).items():
        check = ATTRS.get(name) or PREFIXED.get(name[: name.find(":") + 1])
        if check is None:
            raise PolicyRefused(
                f"a build may not set {name[:60]}.",
                f"Allowed: {', '.join(sorted([*ATTRS, *(f'{x}…' for x in PREFIXED)]))}.",
            )
        each = check(f"a build's {name[:60]}", each)
        if each is not GONE:
            kept[name] = each
    return kept


EXPORTER_ATTRS: dict[str, Check] = {
    "name": _references,
    "push": off(_NO_PUSH, _LEAVE, "false"),
    "push-by-digest": off(_NO_PUSH, _LEAVE, "false"),
    "unpack": _FLAG,
    "oci-mediatypes": _FLAG,
    "platform-split": _FLAG,
    "load": _FLAG,  # compose's word for what the exporter into the sandbox's store does anyway
}
_EXPORTER_TYPE = one_of("", "moby", "local", "tar")
"""Into the sandbox's own store, or back to the client."""
EXPORTER: dict[str, Check] = {"Type": _EXPORTER_TYPE, "Attrs": table_of(EXPORTER_ATTRS)}
CACHE: dict[str, Check] = {
    "ExportRefDeprecated": off(_NO_PUSH, _LEAVE),
    "ImportRefsDeprecated": list_of(reference),
    "ExportAttrsDeprecated": off(_NO_PUSH, _LEAVE),
    "Exports": list_of(_EXPORT),
    "Imports": list_of(_IMPORT),
}


def _entitlements(place: str, value: Any) -> Any:
    for each in texts(place, value):
        raise PolicyRefused(
            f"a build may not be allowed {each[:60]}: its steps are held like any nested container.",
            "Build without --allow, --network host and RUN --security=insecure.",
        )
    return GONE


SOLVE: dict[str, Check] = {
    "Ref": _ID,
    "Definition": _NO_LLB,
    "ExporterDeprecated": _EXPORTER_TYPE,
    "ExporterAttrsDeprecated": table_of(EXPORTER_ATTRS),
    "Session": _ID,
    "Frontend": _FRONTEND,
    "FrontendAttrs": frontend_attrs,
    "Cache": table_of(CACHE),
    "Entitlements": _entitlements,
    "FrontendInputs": _NO_INPUTS,
    "Internal": a(bool),
    "SourcePolicy": _NO_POLICY,
    "Exporters": list_of(table_of(EXPORTER)),
    "EnableSessionExporter": off("what a build makes goes where its client says", _LEAVE),
    "SourcePolicySession": off("sources are what the sandbox's network policy allows", _LEAVE),
}
GATEWAY_SOLVE: dict[str, Check] = {
    "Definition": _NO_LLB,
    "Frontend": _FRONTEND,
    "FrontendOpt": frontend_attrs,
    "ImportCacheRefsDeprecated": list_of(reference),
    "allowResultReturn": a(bool),
    "allowResultArrayRef": a(bool),
    "Final": a(bool),
    "ExporterAttr": off("an exporter is told by the build", _LEAVE, b""),
    "CacheImports": list_of(_IMPORT),
    "FrontendInputs": _NO_INPUTS,
    "Evaluate": a(bool),
    "SourcePolicies": _NO_POLICY,
}
REF: dict[str, Check] = {"id": text, "def": unsent}


def _refs(place: str, value: Any) -> Any:
    refs = only(place, a(dict)(place, value), {"refs": a(dict)}).get("refs", {})
    return {"refs": {name: table_of(REF)(place, each) for name, each in refs.items()}}


def _blobs(place: str, value: Any) -> Any:
    """Of an image that the daemon has made: its configuration among it, which a client may choose as with `docker load`."""
    for each in a(dict)(place, value).values():
        a(bytes)(place, each)
    return value


RESULT: dict[str, Check] = {
    "refDeprecated": text,
    "refsDeprecated": table_of({"refs": pairs}),
    "ref": table_of(REF),
    "refs": _refs,
    "metadata": _blobs,
    "attestations": off("attestations are the daemon's to make", _LEAVE),
}
ERROR: dict[str, Check] = {"code": a(int), "message": text, "details": a(list)}
RETURN: dict[str, Check] = {"result": table_of(RESULT), "error": table_of(ERROR)}
PRUNE: dict[str, Check] = {
    "filter": texts,
    "all": a(bool),
    "keepDuration": a(int),
    "keepBytes": a(int),
    "maxUsedSpace": a(int),
    "minFreeSpace": a(int),
}
FILTER: dict[str, Check] = {"filter": texts}
STATUS: dict[str, Check] = {"Ref": _ID}
HEALTH: dict[str, Check] = {"service": text}


def message(kind: str, table: dict[str, Check]) -> Rule:
    """The rule of a message that is judged field by field."""
    return lambda request, limits: Allowed({}, only(kind, request.body or {}, table))


def cgroup(limits: Limits) -> str:
    """Where a build's steps run. The name says what caps each of them gets: bytes of memory, µs of CPU in 100 ms, processes."""
    return f"/manyoyo-builds/{limits.default.memory}-{round(limits.default.cpus * 100_000)}-{limits.default.pids}"


def _held(attrs: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """With `cmdline`, which says that a `# syntax=` line was obeyed already, no frontend is fetched."""
    return attrs | {"cgroup-parent": cgroup(limits), "cmdline": "dockerfile.v0"}


def solve(request: Request, limits: Limits) -> Allowed:
    body = only("a build", request.body or {}, SOLVE)
    return Allowed({}, body | {"FrontendAttrs": _held(body.get("FrontendAttrs", {}), limits)})


def gateway_solve(request: Request, limits: Limits) -> Allowed:
    body = only("a build", request.body or {}, GATEWAY_SOLVE)
    return Allowed({}, body | {"FrontendOpt": _held(body.get("FrontendOpt", {}), limits)})
