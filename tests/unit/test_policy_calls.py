"""What may be asked for at all: each endpoint with its methods, its names, its parameters and the body that it takes; and what is made of a
build's parameters."""

import json
import re
from typing import Any

import pytest

from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy import rules
from manyoyo_mcp.policy.base import IMAGE, NAME, Request
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.policy.transport import GuardedClient
from tests.unit.test_policy_rules import LIMITS, _example

JSON = {
    "POST /auth", "POST /containers/create", "POST /containers/abc/update", "POST /containers/abc/exec", "POST /exec/abc/start", "POST /commit",
    "POST /networks/create", "POST /networks/abc/connect", "POST /volumes/create", "POST /libpod/containers/create",
    "POST /libpod/containers/abc/update", "POST /libpod/containers/abc/exec", "POST /libpod/exec/abc/start", "POST /libpod/exec/abc/remove",
    "POST /libpod/networks/create", "POST /libpod/networks/abc/connect", "POST /libpod/networks/abc/disconnect", "POST /libpod/volumes/create",
}  # fmt: skip
"""All that takes a body of JSON."""
LISTS = {
    "/system/df": "type", "/images/get": "names", "/commit": "changes", "/build": "t", "/libpod/build": "t", "/libpod/containers/abc/top": "ps_args",
    "/libpod/containers/stats": "containers", "/libpod/containers/abc/wait": "condition conditions", "/libpod/commit": "changes",
    "/libpod/images/export": "references", "/libpod/images/import": "changes", "/libpod/images/remove": "images",
}  # fmt: skip
"""All parameters that may come several times."""
ROWS = [(each, _example(each.path.pattern)) for each in rules.ENDPOINTS]


@pytest.mark.parametrize(("row", "path"), ROWS, ids=[path for _, path in ROWS])
def test_nothing_but_its_methods_names_and_body_reaches_an_endpoint(row: Any, path: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_./-]+", path), "every part of a path is a word, or a name"
    for method in ("PATCH", "OPTIONS", "CONNECT", "post", "*", ""):
        with pytest.raises(PolicyRefused, match="not among the engine calls"):
            rules.endpoint(method, path)
    pattern = row.path.pattern
    for place in (NAME, IMAGE):
        for odd in ("-x", ".x", "_x", "a b", "a\nb", "a;b", "ß", "") if place in pattern else ():
            asked = _example(pattern.replace(place, "\0")).replace("\0", odd)
            for method in row.methods:
                with pytest.raises(PolicyRefused, match="not among the engine calls"):
                    rules.endpoint(method, asked)
    for method in row.methods:
        if method != "GRPC" and f"{method} {path}" not in JSON:
            with pytest.raises(PolicyRefused, match="takes no JSON"):
                decide(Request(method, path, {}, {}), LIMITS)
        for name in row.query - set(LISTS.get(path, "").split()):
            with pytest.raises(PolicyRefused, match="given 2 times"):
                decide(Request(method, path, {name: ["1", "2"]}), LIMITS)


BUILD = {"cgroupparent": "/manyoyo-builds/0123456789abcdef"}


@pytest.mark.parametrize(
    ("method", "path", "query", "body"),
    [
        ("POST", "/auth", {}, {"Tomorrow": 1}),
        ("POST", "/exec/x/start", {}, {"Tomorrow": 1}),
        ("POST", "/libpod/exec/x/start", {}, {"Tomorrow": 1}),
        ("POST", "/libpod/exec/x/start", {}, {"Privileged": True}),
        ("POST", "/libpod/containers/x/exec", {}, {"Privileged": True}),
        ("POST", "/commit", {"tag": "a/b"}, None),
        ("POST", "/commit", {}, {"Tomorrow": 1}),
        ("POST", "/images/create", {"fromImage": "x", "repo": "dir:/x"}, None),
        ("POST", "/images/create", {"fromSrc": "http://x/y"}, None),
        ("POST", "/images/x/tag", {"tag": "-x"}, None),
        ("POST", "/libpod/images/x/tag", {"repo": "dir:/x"}, None),
        ("POST", "/libpod/commit", {"repo": "oci:/x"}, None),
        ("POST", "/libpod/images/pull", {"reference": "dir:/etc"}, None),
        ("POST", "/libpod/images/pull", {}, None),
        ("POST", "/libpod/images/pull", {"reference": "x", "authfile": "/etc/x"}, None),
        ("POST", "/libpod/images/import", {"url": "http://x/y"}, None),
        ("POST", "/libpod/images/import", {"reference": "docker://x"}, None),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '{"a": 5}'}, None),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '{"a": "."}'}, None),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '{"a": ""}'}, None),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": '{"a": "b\\u0000"}'}, None),
        ("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": "{"}, None),
        ("GRPC", "/moby.buildkit.v1.Control/Info", {}, {"x": 1}),
        ("GRPC", "/moby.buildkit.v1.Control/DiskUsage", {}, {"filter": [5]}),
        ("GRPC", "/moby.buildkit.v1.Control/ListWorkers", {}, {"filter": [5]}),
        ("GRPC", "/moby.buildkit.v1.frontend.LLBBridge/Ping", {}, {"x": 1}),
    ],
)
def test_what_an_endpoints_rule_refuses(method: str, path: str, query: dict[str, Any], body: Any) -> None:
    with pytest.raises(PolicyRefused) as caught:
        decide(Request(method, path, query, body), LIMITS)
    assert caught.value.hint


@pytest.mark.parametrize("path", ["/images/a/../../b/json", "/images/a//b/json", "/images/a%b/json"])
def test_a_path_that_engines_would_read_otherwise(path: str) -> None:
    with pytest.raises(PolicyRefused):
        rules.endpoint("GET", path)


def test_json_without_an_end_is_the_clients_fault() -> None:
    """As deep as Python does not read: no answer would be no answer to the client either."""
    deep = "[" * 100_000
    for path, query in (
        ("/build", BUILD | {"buildargs": deep}),
        ("/build", BUILD | {"secrets": deep}),
        ("/libpod/build", BUILD | {"dockerfile": deep}),
    ):
        with pytest.raises((InvalidArgument, PolicyRefused)):
            decide(Request("POST", path, query, ours=True), LIMITS)
    with pytest.raises((InvalidArgument, PolicyRefused)):
        decide(Request("PUT", "/libpod/containers/x/archive", {"path": "/", "rename": deep}), LIMITS)


# -- builds


def build(path: str = "/build", ours: bool = False, **query: str) -> dict[str, Any]:
    return dict(decide(Request("POST", path, {**BUILD, **query}, ours=ours), LIMITS).query)


def test_what_a_build_says_of_caps_and_clearing_up_is_said_for_it() -> None:
    said = build(rm="0", forcerm="0", memory="67108864", memswap="-1", cpuquota="25000", cpuperiod="50000")
    assert {name: said[name] for name in ("rm", "forcerm", "memory", "memswap", "cpuquota", "cpuperiod")} == {
        "rm": "1", "forcerm": "1", "memory": "67108864", "memswap": "67108864", "cpuquota": "25000", "cpuperiod": "50000",
    }  # fmt: skip
    assert build()["cpuperiod"] == "100000" and build(cpuperiod="-1")["cpuperiod"] == "100000"


@pytest.mark.parametrize(
    "query", [{"buildargs": '["A"]'}, {"buildargs": '"A"'}, {"buildargs": '{"A": 5}'}, {"buildargs": "{"}, {"labels": '{"a": ["b"]}'}, {"labels": "5"}]
)  # fmt: skip
def test_arguments_and_labels_of_a_build_are_texts(query: dict[str, str]) -> None:
    with pytest.raises(PolicyRefused, match="no mapping of texts"):
        build(**query)


SECRET = "id=token,src=.manyoyo-secret-0123456789abcdef-1"


def test_secrets_of_a_build_are_the_servers_placeholders_alone() -> None:
    assert build(ours=True, secrets=json.dumps([SECRET]))["secrets"] == json.dumps([SECRET])
    with pytest.raises(PolicyRefused, match="secrets of its own"):
        build(secrets=json.dumps([SECRET]))
    for odd in (
        '{"x": 1}',
        json.dumps(SECRET),
        "[5]",
        "{",
        '["id=x,src=/etc/shadow"]',
        json.dumps([SECRET, "id=x,src=/x"]),
        "null",
    ):
        with pytest.raises(PolicyRefused, match="secrets of its own"):
            build(ours=True, secrets=odd)


SAID = {
    "compatvolumes": "0", "httpproxy": "1", "identitylabel": "1", "idmappingoptions": '{"HostUIDMapping": true}', "isolation": "0", "jobs": "4",
    "omithistory": "0", "outputformat": "application/vnd.oci.image.manifest.v1+json", "retry": "3", "retry-delay": "2s",
    "seccomp": "/usr/share/containers/seccomp.json", "shmsize": "67108864",
}  # fmt: skip
"""What podman's client always says of a build."""
EMPTY = ("cachefrom", "cpusetcpus", "cpusetmems", "cpushares", "extrahosts", "shmsize", "squash", "ulimits")
"""What Docker's client always says of one, and means nothing by."""
NEVER = {"compatvolumes": "1", "httpproxy": "x", "identitylabel": "x", "isolation": "chroot", "omithistory": "1", "outputformat": "x",
         "seccomp": "unconfined", "shmsize": "1"}  # fmt: skip


def test_what_podmans_client_always_says_of_a_build_is_not_sent() -> None:
    said = build("/libpod/build", **SAID, nsoptions='[{"Name": "pid", "Host": true}]')
    assert not SAID.keys() & said.keys() and said["nsoptions"] == '[{"Name": "network"}]'
    for nothing in ("", "0", "null", "[]", "{}"):
        assert not set(EMPTY) & build(**dict.fromkeys(EMPTY, nothing)).keys()


@pytest.mark.parametrize("name", NEVER)
def test_what_podmans_client_never_says_of_a_build_is_refused(name: str) -> None:
    with pytest.raises(PolicyRefused, match=name):
        build("/libpod/build", **{name: NEVER[name]})


@pytest.mark.parametrize("name", EMPTY)
def test_what_dockers_client_means_nothing_by_may_mean_nothing(name: str) -> None:
    for path in ("/build", "/libpod/build"):
        with pytest.raises(PolicyRefused, match=name):
            build(path, **{name: "7"})


@pytest.mark.parametrize(
    ("said", "sent"), [("0", None), ("2", None), ("", None), ("1", "NetworkDisabled"), ("none", "none")]
)
def test_podmans_words_for_a_builds_network(said: str, sent: str | None) -> None:
    assert build("/libpod/build", networkmode=said).get("networkmode") == sent
    with pytest.raises(PolicyRefused):
        build("/libpod/build", networkmode="host")


def test_podmans_names_of_one_dockerfile_and_a_tag() -> None:
    said = build("/libpod/build", dockerfile='["docker/Dockerfile"]', t="")
    assert said["dockerfile"] == "docker/Dockerfile" and "t" not in said
    for odd in ('["a", "b"]', "[]", "[5]", "[", '["/etc/shadow"]'):
        with pytest.raises(PolicyRefused):
            build("/libpod/build", dockerfile=odd)
    with pytest.raises(PolicyRefused, match="one Dockerfile"):
        build("/libpod/build", dockerfile='["a", "b"]')
    with pytest.raises(PolicyRefused, match="no image's name"):
        build("/libpod/build", output="docker://x")
    with pytest.raises(PolicyRefused, match="pull policy"):
        build("/libpod/build", pullpolicy="odd")


# -- the tools' own way


def test_what_was_decided_on_is_what_is_sent() -> None:
    """Not the text that came: a key that stands there twice would be read in two ways."""
    client = GuardedClient(lambda: pytest.fail("a connection was made"), lambda: LIMITS)
    raw = '{"Image": "x", "HostConfig": {"Privileged": true}, "HostConfig": {}}'
    _, sent = client._outgoing("POST", "/v1.41/containers/create", {}, raw, {"Content-Type": "application/json"})
    assert json.loads(sent)["HostConfig"]["Memory"] == LIMITS.default.memory and b"Privileged" not in sent
