"""A request of Docker's API as it comes over a connection, and as it goes on to an engine: read by h11, written anew."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import h11

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy.table import Endpoint
from manyoyo_mcp.policy.transport import API_VERSION

_OLDEST, _NEWEST = (1, 24), (1, 45)
"""Versions of Docker's Engine API that the rules know: newer clients agree on an older one with the engine."""
_LIBPOD_OLDEST, _LIBPOD_NEWEST = (4, 0, 0), (5, 4, 2)
"""The same of podman's own."""
_VERSION = re.compile(r"/v([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,3}))?(?=/)")
_ESCAPED = {"%2F": "/", "%2f": "/", "%3A": ":", "%3a": ":", "%40": "@"}
"""What an image's name holds, as podman's client writes it in a path; anything else that is escaped is refused."""
STREAM = re.compile(
    rb"HTTP/1\.1 (?:101 |200 (?=.*^Content-Type: application/vnd\.docker\.(?:raw|multiplexed)-stream\r$))",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
"""How an answer begins after which the connection is no longer HTTP."""
STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_FORWARDED = {b"accept", b"user-agent", b"x-registry-auth", b"x-registry-config"}

_SESSION = b"x-docker-expose-session-"
"""Headers that say what a client of BuildKit lets the daemon ask of it."""
_SESSION_ID = re.compile(rb"[A-Za-z0-9]{1,64}")
_SESSION_CALLS = re.compile(
    rb"/(?:moby\.filesync\.v1\.(?:FileSync/(?:DiffCopy|TarStream)|FileSend/DiffCopy|Auth/[A-Za-z]{1,40})"
    rb"|moby\.buildkit\.secrets\.v1\.Secrets/GetSecret|moby\.sshforward\.v1\.SSH/[A-Za-z]{1,40}|moby\.upload\.v1\.Upload/Pull"
    rb"|grpc\.health\.v1\.Health/(?:Check|Watch))"
)
"""Of these, calls by which it gives files, credentials, secrets and an agent's signatures; the daemon hears of no others."""


class Body(io.RawIOBase):
    """A request's body as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = piece
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def target(head: h11.Request) -> tuple[str, str, dict[str, Any]]:
    """A request's target: what goes before the path to the engine, the path without its version, the parameters."""
    try:
        path, _, raw = head.target.decode("ascii").partition("?")
        query: dict[str, Any] = {}
        for name, value in parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=500):
            if name in query:
                had = query[name]
                query[name] = [*had, value] if isinstance(had, list) else [had, value]
            else:
                query[name] = value
    except ValueError as error:
        raise InvalidArgument("The request's target is not text in UTF-8.", "Encode it.") from error
    prefix = f"/v{API_VERSION}"
    if found := _VERSION.match(path):
        path = path[found.end() :]
        prefix = _libpod_prefix(found) if path.startswith("/libpod/") else _docker_prefix(found)
    elif path.startswith("/libpod/"):
        prefix = _prefix(_LIBPOD_NEWEST)
    for escaped, plain in _ESCAPED.items():
        path = path.replace(escaped, plain)
    return prefix, path, query


def _docker_prefix(found: re.Match[str]) -> str:
    version = (int(found[1]), int(found[2]))
    if not _OLDEST <= version <= _NEWEST or found[3]:
        raise InvalidArgument(
            f"client version {version[0]}.{version[1]} is not served: minimum supported API version is {_OLDEST[0]}.{_OLDEST[1]}, "
            f"maximum supported API version is {_NEWEST[0]}.{_NEWEST[1]}.",
            "Let the client negotiate, or set DOCKER_API_VERSION.",
        )
    return found[0]


def _libpod_prefix(found: re.Match[str]) -> str:
    """A newer client's requests go on as the newest that the rules know: it does not negotiate, and says no more than older ones."""
    version = (int(found[1]), int(found[2]), int(found[3] or 0))
    if version < _LIBPOD_OLDEST:
        raise InvalidArgument(f"podman {found[1]}.{found[2]} is not served, 4.0 and later are.", "Use a newer podman.")
    return _prefix(min(version, _LIBPOD_NEWEST))


def _prefix(version: tuple[int, ...]) -> str:
    return "/v" + ".".join(map(str, version))


def length(head: h11.Request) -> int | None:
    """The body's, where it was told; h11 has read the number already. Raises InvalidArgument where its end is told in two ways."""
    given = dict(head.headers)
    told = given.get(b"content-length")
    if told is not None and b"transfer-encoding" in given:
        raise InvalidArgument("The request tells its length in two ways.", "Send Content-Length or Transfer-Encoding.")
    return int(told) if told is not None else None


def headers(head: h11.Request, asked: Endpoint, length: int | None) -> list[tuple[bytes, bytes]]:
    """Of a request's headers those that an engine knows, and our own: of the body's end, and of the connection's."""
    given = dict(head.headers)
    kept = [(name, value) for name, value in head.headers if name in _FORWARDED]
    if asked.upgrade == "h2c":
        kept += _session(head)
    kind = (
        b"application/json" if asked.takes == "json" else b"application/x-tar"
    )  # never a form's, which engines read as parameters
    kept += [(b"host", b"docker"), (b"content-type", kind)]
    if length is not None:
        kept.append((b"content-length", str(length).encode()))
    else:
        kept.append((b"transfer-encoding", b"chunked") if b"transfer-encoding" in given else (b"content-length", b"0"))
    upgrades = asked.hijacks and given.get(b"upgrade", b"").lower() == asked.upgrade.encode()
    return [
        *kept,
        # Two: podman looks whether the first says Upgrade and nothing else, and Go hangs up where any says close.
        *([(b"upgrade", asked.upgrade.encode()), (b"connection", b"Upgrade")] if upgrades else []),
        (b"connection", b"close"),
    ]


def upgrades(head: h11.Request, protocol: bytes) -> bool:
    """Whether the connection is to be `protocol` from there on."""
    return dict(head.headers).get(b"upgrade", b"").lower() == protocol


def _session(head: h11.Request) -> list[tuple[bytes, bytes]]:
    given = [(name, value) for name, value in head.headers if name.startswith(_SESSION)]
    for name, value in given:
        if name == _SESSION + b"uuid" and not _SESSION_ID.fullmatch(value):
            raise PolicyRefused("a session's id may not be that.", "Letters and digits, 64 at most.")
    known = {_SESSION + each for each in (b"uuid", b"name", b"sharedkey")}
    return [
        (name, value)
        for name, value in given
        if name in known or (name == _SESSION + b"grpc-method" and _SESSION_CALLS.fullmatch(value))
    ]


def refusal(status: int, message: str) -> bytes:
    """An answer that says why not, as engines say it."""
    body = json.dumps({"message": message.strip()}).encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def answer(body: bytes) -> bytes:
    """An answer that the engine did not give in these words."""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def sent(data: bytes | None) -> bytes:
    """What h11 gives to be sent: nothing, for some events."""
    return data or b""
