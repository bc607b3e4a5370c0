"""BuildKit's API over gRPC, as dockerd has it behind `POST /grpc`: what of it is offered, and what its messages are.

The messages are those of BuildKit 0.13 (`api/services/control/control.proto`, `frontend/gateway/pb/gateway.proto`) and what clients of today say
beside that; any other field is refused.
"""

import re
from collections.abc import Mapping

from manyoyo_mcp.policy import buildkit
from manyoyo_mcp.policy.base import Rule
from manyoyo_mcp.policy.protobuf import Field, Schema, mapping, texts
from manyoyo_mcp.policy.table import row

METHOD = "GRPC"
"""What stands for the HTTP method of such a call: they are all POST."""

_OPAQUE = Field("value", "bytes")
_ENTRY: Schema = {1: Field("Type", "text"), 2: texts("Attrs")}
_SOLVE: Schema = {
    1: Field("Ref", "text"),
    2: Field("Definition", "bytes"),
    3: Field("ExporterDeprecated", "text"),
    4: texts("ExporterAttrsDeprecated"),
    5: Field("Session", "text"),
    6: Field("Frontend", "text"),
    7: texts("FrontendAttrs"),
    8: Field("Cache", "message", of={
        1: Field("ExportRefDeprecated", "text"),
        2: Field("ImportRefsDeprecated", "text", many=True),
        3: texts("ExportAttrsDeprecated"),
        4: Field("Exports", "message", many=True, of=_ENTRY),
        5: Field("Imports", "message", many=True, of=_ENTRY),
    }),
    9: Field("Entitlements", "text", many=True),
    10: mapping("FrontendInputs", _OPAQUE),
    11: Field("Internal", "bool"),
    12: Field("SourcePolicy", "bytes"),
    13: Field("Exporters", "message", many=True, of=_ENTRY),
    14: Field("EnableSessionExporter", "bool"),
    15: Field("SourcePolicySession", "text"),
}  # fmt: skip
_GATEWAY_SOLVE: Schema = {
    1: Field("Definition", "bytes"),
    2: Field("Frontend", "text"),
    3: texts("FrontendOpt"),
    4: Field("ImportCacheRefsDeprecated", "text", many=True),
    5: Field("allowResultReturn", "bool"),
    6: Field("allowResultArrayRef", "bool"),
    10: Field("Final", "bool"),
    11: Field("ExporterAttr", "bytes"),
    12: Field("CacheImports", "message", many=True, of=_ENTRY),
    13: mapping("FrontendInputs", _OPAQUE),
    14: Field("Evaluate", "bool"),
    15: Field("SourcePolicies", "bytes", many=True),
}
_REF: Schema = {1: Field("id", "text"), 2: Field("def", "bytes")}
_RETURN: Schema = {
    1: Field("result", "message", of={
        1: Field("refDeprecated", "text"),
        2: Field("refsDeprecated", "message", of={1: texts("refs")}),
        3: Field("ref", "message", of=_REF),
        4: Field("refs", "message", of={1: mapping("refs", Field("value", "message", of=_REF))}),
        10: mapping("metadata", _OPAQUE),
        11: mapping("attestations", _OPAQUE),
    }),
    2: Field("error", "message", of={
        1: Field("code", "int"), 2: Field("message", "text"), 3: Field("details", "bytes", many=True),
    }),
}  # fmt: skip
_FILTER: Schema = {1: Field("filter", "text", many=True)}
_PRUNE: Schema = {
    **_FILTER,
    2: Field("all", "bool"),
    3: Field("keepDuration", "int"),
    4: Field("keepBytes", "int"),
    5: Field("maxUsedSpace", "int"),
    6: Field("minFreeSpace", "int"),
}

_CONTROL, _GATEWAY = "/moby.buildkit.v1.Control", "/moby.buildkit.v1.frontend.LLBBridge"
_CALLS: Mapping[str, tuple[Schema, Rule]] = {
    f"{_CONTROL}/Info": ({}, buildkit.message("a request", {})),
    f"{_CONTROL}/ListWorkers": (_FILTER, buildkit.message("a request", buildkit.FILTER)),
    f"{_CONTROL}/DiskUsage": (_FILTER, buildkit.message("a request", buildkit.FILTER)),
    f"{_CONTROL}/Prune": (_PRUNE, buildkit.message("a request", buildkit.PRUNE)),
    f"{_CONTROL}/Status": ({1: Field("Ref", "text")}, buildkit.message("a request", buildkit.STATUS)),
    f"{_CONTROL}/Solve": (_SOLVE, buildkit.solve),
    f"{_GATEWAY}/Ping": ({}, buildkit.message("a request", {})),
    f"{_GATEWAY}/Solve": (_GATEWAY_SOLVE, buildkit.gateway_solve),
    f"{_GATEWAY}/Return": (_RETURN, buildkit.message("a build's result", buildkit.RETURN)),
    "/grpc.health.v1.Health/Check": ({1: Field("service", "text")}, buildkit.message("a request", buildkit.HEALTH)),
}
MESSAGES: Mapping[str, Schema] = {path: schema for path, (schema, _) in _CALLS.items()}
"""Each call's message."""
CHANGING = frozenset({f"{_CONTROL}/Prune", f"{_CONTROL}/Solve", f"{_GATEWAY}/Solve", f"{_GATEWAY}/Return"})
"""Calls that may change something."""
ENDPOINTS = tuple(row(METHOD, re.escape(path), takes="message", rule=rule) for path, (_, rule) in _CALLS.items())
