"""Conversations with a gate's BuildKit: gRPC calls by the policy's own tables, spoilt messages, and frames of HTTP/2 that are none."""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from fuzz.requests import archives
from fuzz.values import mostly, texts
from manyoyo_mcp.policy.buildkit_api import MESSAGES
from manyoyo_mcp.policy.protobuf import Field, write
from tests.unit.test_policy_rules import EVIL
from tests.unit.test_protobuf import values

SOLVE = "/moby.buildkit.v1.Control/Solve"
SESSION = "session000000000"
"""What stands for a session's id, until it is said: two at a time may not have the same."""
_GATEWAY = "/moby.buildkit.v1.frontend.LLBBridge"
_PATHS = (SOLVE, SOLVE, SOLVE, f"{_GATEWAY}/Solve", *sorted(MESSAGES))
_UNKNOWN = (
    "/moby.buildkit.v1.Control/ListenBuildHistory", "/moby.buildkit.v1.Control/Session", "/moby.buildkit.v1.Control/UpdateBuildHistory",
    f"{_GATEWAY}/ExecProcess", f"{_GATEWAY}/ReadFile", "/containerd.services.content.v1.Content/Read", "/", "", "*", SOLVE + "/", SOLVE.lower(),
)  # fmt: skip
_EVIL = {
    SOLVE: "solve",
    f"{_GATEWAY}/Solve": "gateway",
    f"{_GATEWAY}/Return": "return",
    "/moby.buildkit.v1.Control/Status": "status",
}
_USUAL: dict[str, tuple[Any, ...]] = {
    "Frontend": ("dockerfile.v0", ""), "ExporterDeprecated": ("moby", "", "tar"), "ExporterAttrsDeprecated": ({"name": "localhost/fuzz:1"}, {}),
    "Exporters": ([{"Type": "moby", "Attrs": {"name": "localhost/fuzz:2"}}], []), "Cache": ({"Exports": [{"Type": "inline"}]}, {}), "Ref": ("r1", "r2"),
    "all": (True, False), "Internal": (True,), "service": ("",), "filter": (["type==regular"], []), "Evaluate": (True,), "Final": (True,),
    "allowResultReturn": (True,), "keepBytes": (0, 1 << 30),
}  # fmt: skip
_ATTRS: tuple[tuple[str, str], ...] = (
    ("no-cache", ""), ("label:a", "b"), ("build-arg:A", "b"), ("force-network-mode", "none"), ("image-resolve-mode", "local"), ("target", "x"),
    ("platform", "linux/amd64"), ("context:x", "docker-image://localhost/fuzz:1"), ("cache-imports", "[]"), ("attest:provenance", "mode=min"),
    ("requestid", "frontend.outline"), ("requestid", "frontend.targets"), ("frontend.caps", "moby.buildkit.frontend.inputs"), ("filename", "other"),
)  # fmt: skip
_EVIL_ATTRS = (
    *((name, value) for name, found in EVIL["frontend"].items() for value in found),
    ("source", "x/y"), ("cmdline", "x"), ("cgroup-parent", "/"), ("ulimit", "nofile=1"), ("shm-size", "1"), ("hostname", "x"), ("add-hosts", "a=1.2.3.4"),
    ("gateway-devel", "true"), ("contextkey", "x"), ("local-sessionid:context", "a b"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One gRPC call: `pieces` are what its stream carries. `answered`: nothing about it keeps a gate from answering it."""

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    pieces: tuple[bytes, ...]
    ends: bool = True
    resets: bool = False
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Talk:
    """What is said over one connection, `bytes` as they are. `session`: whether one is open beside it, over which the daemon gets
    `upload` as the build's context, and `replies` (a status, a message) to what else it asks."""

    steps: tuple[Call | bytes, ...]
    session: bool
    upload: bytes
    replies: tuple[tuple[int, bytes], ...]

    @property
    def proper(self) -> bool:
        return all(isinstance(each, Call) and each.answered for each in self.steps)


@st.composite
def _attrs(draw: st.DrawFn) -> dict[str, str]:
    pairs = st.one_of(
        st.sampled_from(_ATTRS), st.sampled_from(_ATTRS), st.sampled_from(_EVIL_ATTRS), st.tuples(texts, texts)
    )
    return dict(draw(st.lists(pairs, max_size=2)))


@st.composite
def _field(draw: st.DrawFn, path: str, known: Field) -> Any:
    if known.name in ("FrontendAttrs", "FrontendOpt"):
        return draw(_attrs())
    usual, evil = _USUAL.get(known.name), EVIL.get(_EVIL.get(path, ""), {}).get(known.name)
    odd = st.one_of(st.sampled_from(evil), values(known)) if evil else values(known)
    return draw(mostly(st.sampled_from(usual), odd) if usual else odd)


@st.composite
def _message(draw: st.DrawFn, path: str, session: str) -> bytes:
    schema = MESSAGES.get(path, {})
    message: dict[str, Any] = {}
    if path == SOLVE and draw(st.integers(0, 4)):
        message = {
            "Ref": draw(st.sampled_from(["r1", "r2", "r3"])),
            "Session": session,
            "Frontend": "dockerfile.v0",
            "ExporterDeprecated": "moby",
            "FrontendAttrs": {"filename": "Dockerfile", "context": f"http://buildkit-session/{session or 'none'}"},
        }
    elif "Session" in {each.name for each in schema.values()}:
        message = {"Session": session}
    fields = sorted(schema.values(), key=lambda each: each.name)
    for known in draw(st.lists(st.sampled_from(fields), max_size=2)) if fields else ():
        given = draw(_field(path, known))
        had = message.get(known.name)
        message[known.name] = had | given if isinstance(had, dict) and isinstance(given, dict) else given
    raw = b""
    for name, value in message.items():
        try:
            raw += write({name: value}, schema)
        except (AttributeError, TypeError, ValueError, KeyError):
            continue  # it can't be said in this message
    return raw if draw(st.integers(0, 5)) else draw(_spoilt(raw))


@st.composite
def _spoilt(draw: st.DrawFn, raw: bytes) -> bytes:
    at = draw(st.integers(0, len(raw)))
    match draw(st.integers(0, 5)):
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
        case 2:
            return raw + raw
        case 3:
            return raw + draw(
                st.sampled_from([b"\xfa\x3f\x01x", b"\xf8\xff\xff\xff\x0f\x00", b"\x4a\x0cnetwork.host", b"\x12\x01x"])
            )
        case 4:
            return raw[:at] + draw(st.binary(max_size=20)) + raw[at:]
    return raw + b"\x1a" * draw(st.integers(1, 40))


@st.composite
def _call(draw: st.DrawFn, session: str) -> Call:
    path = draw(mostly(st.sampled_from(_PATHS), st.one_of(st.sampled_from(_UNKNOWN), texts), 9))
    message = draw(_message(path, session))
    framed = b"\0" + len(message).to_bytes(4, "big") + message
    answered = path.isascii() and path.isprintable() and path.startswith("/")
    if not draw(st.integers(0, 9)):
        framed = draw(
            st.sampled_from(
                [
                    b"\1" + framed[1:],
                    framed * 2,
                    framed[:-1],
                    framed[:3],
                    b"",
                    framed + b"\0\0\0\0\0",
                    b"\0\xff\xff\xff\xff" + message,
                ]
            )
        )
    headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    if not draw(st.integers(0, 7)):
        headers += draw(
            st.sampled_from([
                [(b"grpc-encoding", b"gzip")], [(b"grpc-encoding", b"identity")], [(b"grpc-timeout", b"1m")], [(b"grpc-timeout", b"100S\r\nx: y")],
                [(b"grpc-timeout", b"-1S")], [(b"buildkit-controlapi-buildid", b"r1")], [(b"buildkit-controlapi-buildid", b"../x")],
                [(b"content-type", b"text/plain")], [(b"x-odd-bin", b"\xff\0")], [(b"x", b"y" * 60_000)], [(b"user-agent", b"\xc3\xa9")],
                [(b":method", b"GET")], [(b"Upper", b"x")], [(b"connection", b"close")], [(b"content-length", b"7")], [(b"transfer-encoding", b"chunked")],
            ])
        )  # fmt: skip
        answered = answered and all(
            name in (b"grpc-timeout", b"grpc-encoding", b"buildkit-controlapi-buildid") for name, _ in headers[2:]
        )
        answered = answered and b"\n" not in headers[-1][1]
    cut = draw(st.integers(0, len(framed)))
    pieces = draw(st.sampled_from([(framed,), (framed[:cut], framed[cut:]), (b"", framed, b"")]))
    way = draw(st.integers(0, 24))
    return Call(path, tuple(headers), pieces, ends=way > 1, resets=way == 1, answered=answered and way > 1)


_PAYLOADS = {3: 4, 6: 8, 7: 8, 8: 4, 2: 5}
"""Of types of frames whose length is given: RST_STREAM, PING, GOAWAY, WINDOW_UPDATE, PRIORITY."""


@st.composite
def _frame(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 11))
    size = _PAYLOADS.get(kind)
    payload = draw(
        st.binary(min_size=size, max_size=size) if size and draw(st.integers(0, 4)) else st.binary(max_size=60)
    )
    if kind == 4 and draw(st.integers(0, 3)):
        pairs = draw(
            st.lists(
                st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 16384, 65535, (1 << 31) - 1, (1 << 32) - 1])),
                max_size=3,
            )
        )
        payload = b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in pairs)
    stream = draw(st.sampled_from([0, 1, 2, 3, 5, 99, (1 << 31) - 1, 1 << 31]))
    length = draw(mostly(st.just(len(payload)), st.sampled_from([0, 1, 16385, (1 << 24) - 1]), 9))
    return (
        length.to_bytes(3, "big")
        + bytes([kind, draw(st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 255]))])
        + stream.to_bytes(4, "big")
        + payload
    )


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    session = draw(mostly(st.just(SESSION), st.just(""), 7))
    step: st.SearchStrategy[Call | bytes] = _call(session)
    if not draw(st.integers(0, 3)):
        step = st.one_of(step, _frame(), st.binary(min_size=1, max_size=40))
    steps = draw(st.lists(step, min_size=1, max_size=4))
    replies = draw(
        st.lists(
            st.tuples(st.sampled_from([0, 0, 5, 12, 13, 99]), st.one_of(st.just(b""), st.binary(max_size=60))),
            min_size=1,
            max_size=3,
        )
    )
    return Talk(tuple(steps), bool(session), draw(archives()) if session else b"", tuple(replies))
