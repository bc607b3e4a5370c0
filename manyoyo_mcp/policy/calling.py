"""`POST /grpc` of a gate: the way to the engine's BuildKit, and what each call over it is judged by."""

from collections.abc import Callable
from typing import Any

from manyoyo_mcp.dialled import Dial, SocketLike
from manyoyo_mcp.errors import EngineFailed, ManyoyoError, NotSupported
from manyoyo_mcp.policy.base import Limits, Request
from manyoyo_mcp.policy.buildkit_api import CHANGING, MESSAGES, METHOD
from manyoyo_mcp.policy.grpc import Ended, Judge
from manyoyo_mcp.policy.protobuf import read, write
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.policy.witness import Witness

_PATIENCE = 30.0
"""Seconds for an engine to say whether it speaks gRPC."""
_MAX_HEAD = 1 << 16
_UNHEARD = frozenset(
    {"/opentelemetry.proto.collector.trace.v1.TraceService/Export", "/moby.buildkit.v1.Control/ListenBuildHistory"}
)
"""What clients ask for of their own accord with every build, and do without: refused, and not worth a record."""
UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
NO_BUILDKIT = (
    "This sandbox's engine, podman, has no BuildKit. Build with DOCKER_BUILDKIT=0 (docker's classic way, which podman's own builder "
    'answers), or start a sandbox with engine="docker".'
)


def dial(way: Dial, prefix: str) -> tuple[SocketLike | None, bytes]:
    """A connection to the engine that carries gRPC, and what came of it already; none where the engine has none. Raises OSError and
    EngineFailed where it does not answer."""
    engine = way()
    try:
        engine.settimeout(_PATIENCE)
        engine.sendall(
            f"POST {prefix}/grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = engine.recv(_MAX_HEAD)
            if not piece or len(answer) > _MAX_HEAD:
                raise EngineFailed("The sandbox's engine did not answer.", "Try again.")
            answer += piece
        if answer.startswith(b"HTTP/1.1 101 "):
            engine.settimeout(None)
            return engine, answer.partition(b"\r\n\r\n")[2]
    except BaseException:
        engine.close()
        raise
    engine.close()
    return None, b""


def judge(limits: Callable[[], Limits], witness: Witness) -> Judge:
    """What a gate asks of each call."""

    def check(path: str, raw: bytes) -> tuple[bytes, Ended]:
        try:
            if path not in MESSAGES:
                raise NotSupported(
                    f"{path[:100]} is not among the calls of BuildKit that a sandbox allows.",
                    "Build from a Dockerfile with docker build or docker buildx build; other uses of BuildKit are not offered.",
                )
            asked = read(raw, MESSAGES[path], path.rpartition("/")[2])
            allowed = decide(Request(METHOD, path, {}, asked), limits()).body or {}
        except ManyoyoError as error:
            if path not in _UNHEARD:
                witness.refused(METHOD, path, error.instance_code, error.message)
            raise
        message = write(allowed, MESSAGES[path])
        if path not in CHANGING:
            return message, lambda status: None
        return message, witness.asked(METHOD, path, _shown(asked), allowed != asked)

    return check


def _shown(asked: dict[str, Any]) -> dict[str, str]:
    """What a record says of a build: the names that its image gets."""
    told = [*(each.get("Attrs", {}) for each in asked.get("Exporters", [])), asked.get("ExporterAttrsDeprecated", {})]
    names = list(dict.fromkeys(str(each.get("name", "")) for each in told))
    return {"name": ",".join(filter(None, names))} if any(names) else {}
