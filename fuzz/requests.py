"""Requests to a gate, as bytes: the policy's own tables as the grammar, with what they must not let through among the values."""

import json
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

from fuzz.values import anything, mostly, some, texts
from manyoyo_mcp.policy.base import IMAGE, NAME
from manyoyo_mcp.policy.rules import ENDPOINTS
from manyoyo_mcp.policy.table import Endpoint
from tests.escape.roads import IMAGE as PRESENT
from tests.escape.roads import entry, tar
from tests.unit.test_policy_rules import EVIL, TABLES

SERVICES = ("kept", "other")
"""Containers that are made anew whenever they are gone."""
_NAMES = (*SERVICES, "made", "bridge", "podman", "volume-one", "0123456789ab")
_IMAGES = (PRESENT, "localhost/fuzz:1", "busybox", "nothing/of-the-kind:1")
_FILTERS = ('{"label":["a=b"]}', '{"dangling":{"true":true}}', "{}", "{", "[]", '{"status":["exited"]}')
_VERSIONS = ("/v1.41", "/v1.44", "", "/v1.12", "/v99.1", "/v5.4.2", "/v4.0.0")
_USUAL_QUERY: dict[str, tuple[str, ...]] = {
    "filters": _FILTERS[:3], "t": ("0",), "signal": ("KILL", "SIGUSR1"), "path": ("/", "/etc/passwd", "/etc"), "name": ("made", "volume-one"),
    "fromimage": ("busybox", "localhost/fuzz"), "tag": ("1", "latest"), "repo": ("localhost/fuzz",), "container": SERVICES, "condition": ("removed", "next-exit"),
    "since": ("0",), "until": ("1",), "tail": ("3", "all"), "h": ("24",), "w": ("80",), "dockerfile": ("Dockerfile",), "networkmode": ("none", "default"),
    "memory": ("67108864",), "buildargs": ('{"A": "b"}',), "labels": ('{"a": "b"}',), "reference": _IMAGES[:2], "limit": ("2",),
}  # fmt: skip
_USUAL_FIELDS: dict[str, tuple[Any, ...]] = {
    "Memory": (64 << 20, 0), "NanoCpus": (500_000_000,), "PidsLimit": (50, None), "Binds": (["volume-one:/x"], []), "NetworkMode": ("bridge", "none", "default"),
    "AutoRemove": (True, False), "ReadonlyRootfs": (True,), "Tmpfs": ({"/t": "size=1m"},), "CapDrop": (["ALL"],), "CapAdd": (["CHOWN"],),
    "RestartPolicy": ({"Name": "no"}, {"Name": "on-failure", "MaximumRetryCount": 1}), "Init": (True,), "ShmSize": (1 << 20,), "Env": (["A=b"],),
    "WorkingDir": ("/root",), "Tty": (True, False), "OpenStdin": (True, False), "User": ("0", "1000:1000"), "Labels": ({"a": "b"},), "Hostname": ("h",),
    "Cmd": (["true"], ["sh", "-c", "echo hi"]), "Name": ("volume-one", "made"), "Driver": ("local", "bridge"), "AttachStdout": (True,), "Detach": (True, False),
    "Container": SERVICES, "Mounts": ([{"Type": "volume", "Source": "volume-one", "Target": "/y"}], [{"Type": "tmpfs", "Target": "/z"}]),
    "command": (["true"], ["sleep", "1"]), "env": ({"A": "b"},), "labels": ({"a": "b"},), "terminal": (True, False), "name": ("made",), "container": SERVICES,
    "resource_limits": ({"memory": {"limit": 64 << 20}}, {"pids": {"limit": 30}}), "netns": ({"nsmode": "bridge"}, {"nsmode": "none"}), "remove": (True,),
    "volumes": ([{"Name": "volume-one", "Dest": "/x"}],), "user": ("0",), "memory": ({"limit": 64 << 20},), "pids": ({"limit": 20},), "read_only_filesystem": (True,),
}  # fmt: skip
"""What clients send every day: else hardly a request would come as far as an engine."""


@st.composite
def _path(draw: st.DrawFn, row: Endpoint) -> str:
    pattern = row.path.pattern.replace(NAME, "=").replace(IMAGE, "~")
    path: str = draw(st.from_regex(pattern, fullmatch=True))
    return path.replace("=", draw(some(_NAMES))).replace("~", draw(some(_IMAGES)))


def _fields(method: str, path: str) -> list[str]:
    """The tables whose fields a body of such a request may have."""
    like = path.removeprefix("/libpod")
    return [
        name
        for name, (_, (its_method, its_path), place) in TABLES.items()
        if its_method == method
        and not place
        and its_path.removeprefix("/libpod").rpartition("/")[2] == like.rpartition("/")[2]
    ]


@st.composite
def _body(draw: st.DrawFn, method: str, path: str) -> Any:
    tables = _fields(method, path)
    if not tables or not draw(st.integers(0, 9)):
        return draw(mostly(st.just({}), anything, 5))
    body: dict[str, Any] = _table(draw, draw(st.sampled_from(tables)))
    if path.endswith("/containers/create"):
        body["image" if "libpod" in path else "Image"] = draw(some(_IMAGES))
        if "libpod" not in path:
            body["Cmd"] = draw(st.sampled_from([["true"], ["sleep", "1"], ["sh", "-c", "id"]]))
            if draw(st.booleans()):
                body["HostConfig"] = _table(draw, "HostConfig")
    return body


def _table(draw: st.DrawFn, name: str) -> dict[str, Any]:
    fields = sorted(TABLES[name][0])
    evil = EVIL.get(name, {})
    given: dict[str, Any] = {}
    for field in draw(
        st.lists(
            mostly(
                st.sampled_from([each for each in fields if each in _USUAL_FIELDS] or fields),
                st.sampled_from(fields),
                6,
            ),
            max_size=4,
        )
    ):
        odd = st.one_of(st.sampled_from(evil[field]), anything) if field in evil else anything
        usual = _USUAL_FIELDS.get(field)
        given[field] = draw(mostly(st.sampled_from(usual), odd, 9) if usual else mostly(st.none(), odd, 7))
    if not draw(st.integers(0, 9)):
        given[draw(texts)] = draw(anything)
    return given


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    lines = draw(
        st.lists(
            st.one_of(
                st.sampled_from(
                    ["RUN true", "COPY . /x", "RUN --mount=type=bind,source=/,target=/x true", "ADD http://127.0.0.1/ /x", "USER x",
                     "RUN --device=/dev/mem true", "# syntax=x", "FROM scratch", "COPY --from=docker://x / /", "VOLUME /proc"]
                ),
                texts,
            ),
            max_size=4,
        )
    )  # fmt: skip
    files = {"Dockerfile": "\n".join([f"FROM {draw(some(_IMAGES))}", *lines]).encode()}
    members = []
    if draw(st.booleans()):
        kind = draw(st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"S"]))
        members.append(
            entry(
                draw(some(["../x", "/x", "a/../../x", "Dockerfile"])) or "x", kind, draw(some(["/etc/passwd", "../.."]))
            )
        )
    whole = tar(files, *members)
    return whole if draw(st.integers(0, 4)) else whole[: draw(st.integers(0, len(whole)))]


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A request as it goes over the socket, and whether it is HTTP as it should be: then there must be an answer."""
    row = draw(st.sampled_from(ENDPOINTS))
    method = draw(
        mostly(
            st.sampled_from(sorted(row.methods)), st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"]), 9
        )
    )
    path = draw(_path(row))
    names = sorted(row.query) or ["x"]
    query = {
        name: draw(
            mostly(
                st.sampled_from(_USUAL_QUERY.get(name.lower(), ("0", "1", "true"))),
                st.one_of(st.sampled_from([*_FILTERS, *_NAMES]), texts),
            )
        )
        for name in draw(st.lists(st.sampled_from(names), max_size=3))
    }
    if not draw(st.integers(0, 19)):
        query[draw(texts)] = draw(texts)
    if "t" in query and method == "POST" and path.endswith(("stop", "restart")):
        query["t"] = "0"
    headers = {"Host": "docker"}
    body = b""
    if row.takes == "json":
        headers["Content-Type"] = "application/json"
        body = json.dumps(draw(_body(method, path))).encode()
    elif row.takes == "archive":
        headers["Content-Type"] = "application/x-tar"
        body = draw(archives())
    if row.hijacks or row.upgrade != "tcp":
        headers |= {"Connection": "Upgrade", "Upgrade": row.upgrade}
    headers["Content-Length"] = str(len(body))
    version = draw(
        mostly(st.just("/v5.4.2" if path.startswith("/libpod") else "/v1.41"), st.sampled_from(_VERSIONS), 9)
    )
    target = version + quote(path, safe="/:@~%") + ("?" + urlencode(query) if query else "")
    proper = True
    if not draw(st.integers(0, 9)):
        proper = False
        method, target, headers, body = draw(_spoilt(method, target, headers, body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body, proper


_SMUGGLED = (
    b"POST /v1.41/containers/create?name=smuggled HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 78\r\n\r\n"
    b'{"Image": "' + PRESENT.encode() + b'", "HostConfig": {"Privileged": true}}'
)


@st.composite
def _spoilt(
    draw: st.DrawFn, method: str, target: str, headers: dict[str, str], body: bytes
) -> tuple[str, str, dict[str, str], bytes]:
    way = draw(st.integers(0, 8))
    if way == 0:
        headers = headers | {
            "Transfer-Encoding": draw(st.sampled_from(["chunked", "identity", "chunked, chunked", " chunked"]))
        }
    elif way == 1:
        headers = headers | {
            "Content-Length": draw(st.sampled_from(["-1", "0x10", "99999999999999999999", "1, 2", "", "+1", "0"]))
        }
    elif way == 2:
        body += _SMUGGLED
    elif way == 3:
        headers = headers | {"Expect": "100-continue", "Content-Encoding": "gzip"}
    elif way == 4:
        method = draw(st.sampled_from(["get", "PoSt", "CONNECT", "PRI", "", "G\tET"]))
    elif way == 5:
        target = draw(
            st.sampled_from(
                ["*", "http://x" + target, "//" + target, target.replace("/", "/./"), "", target + "#x", "\\" + target]
            )
        )
    elif way == 6:
        headers = {name.lower(): value for name, value in headers.items()} | {
            "Connection": "Upgrade, close",
            "Upgrade": "h2c",
        }
    elif way == 7:
        headers = headers | {draw(texts).replace("\n", "\r\n") or "x": draw(texts)}
    else:
        body = body[: len(body) // 2]
    return method, target, headers, body
