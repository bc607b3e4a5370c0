"""What a sandbox without an engine of its own sees of its host's, and what its containers may have there: each check is switched off in turn,
and what it refused must then pass."""

import copy
import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from manyoyo_mcp.errors import BudgetExceeded, CapExceeded, InvalidArgument, PolicyRefused
from manyoyo_mcp.policy import hostroom, hostruns, labelled, rules
from manyoyo_mcp.policy.base import Allowed, Limits, Request, Within
from manyoyo_mcp.policy.rules import decide
from manyoyo_mcp.values import Caps

WITHIN = Within("sb-0123456789abcdef", "keeper", ("localhost/manyoyo/*", "python:3.*", "any:5000/*", "*/any:*"))
LIMITS = Limits(default=Caps(1, 512 << 20, 100), largest=Caps(2, 1 << 30, 200))
REFUSED = (PolicyRefused, CapExceeded, InvalidArgument)
MINE = {labelled.LABEL: WITHIN.sandbox}

TABLES = {"create": hostruns.CREATE, "HostConfig": hostruns.HOST_CONFIG}
EVIL: dict[str, dict[str, list[Any]]] = {
    "create": {"Healthcheck": [{"Test": ["CMD", "x"], "Interval": 10**6}, {"StartInterval": 1}], "StopTimeout": [-1, 61], "Volumes": [{"/x": {}}], "NetworkingConfig": [{"EndpointsConfig": {"bridge": {}}}, {"EndpointsConfig": {"default": {"Aliases": ["x"]}}}]},
    "HostConfig": {
        "Binds": [["v:/x"]],
        "CapAdd": [["NET_RAW"], ["mknod"], ["CAP_NET_RAW"]],
        "CpuShares": [1025],
        "GroupAdd": [["1"] * 101],
        "IpcMode": ["container:abc", "shareable"],
        "LogConfig": [{"Type": "none"}, {"Type": "json-file", "Config": {"max-size": "900g"}}],
        "Mounts": [[{"Type": "volume", "Source": "v", "Target": "/x"}]],
        "NetworkMode": ["container:abc", "bridge", "somebodys"],
        "PidMode": ["container:abc"],
        "RestartPolicy": [{"Name": "always"}, {"Name": "unless-stopped"}],
        "Sysctls": [{"net.core.somaxconn": "1"}],
        "VolumeDriver": ["local"],
        "VolumesFrom": [["abc"]],
    },
}  # fmt: skip
"""What an engine of its own would take, and the host's is not asked for."""


def create(within: Within = WITHIN, name: str = "", image: dict[str, Any] | None = None, **body: Any) -> Allowed:
    given = {"Image": "python:3.13"} | copy.deepcopy(body)
    query = {"name": name} if name else {}
    allowed = decide(Request("POST", "/containers/create", query, given, ours=True), LIMITS)
    return hostruns.created(allowed, within, image or {"Id": "sha256:1234"}, "called")


def ask(table: str, name: str, value: Any) -> Allowed:
    return create(**({"HostConfig": {name: value}} if table == "HostConfig" else {name: value}))


def cases() -> Iterator[tuple[str, str, Any]]:
    for table, checks in TABLES.items():
        for name in checks:
            for value in EVIL[table][name]:
                yield table, name, value


@pytest.mark.parametrize(
    ("table", "name", "value"), list(cases()), ids=[f"{table}-{name}-{value!r:.40}" for table, name, value in cases()]
)
def test_what_would_reach_others_is_refused(table: str, name: str, value: Any) -> None:
    with pytest.raises(REFUSED) as caught:
        ask(table, name, value)
    assert caught.value.hint


@pytest.mark.parametrize(("table", "name", "value"), list(cases()),
                         ids=[f"{table}-{name}-{value!r:.40}" for table, name, value in cases()])  # fmt: skip
def test_each_check_is_what_refuses(table: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES[table], name, lambda place, value: value)
    assert ask(table, name, value)


def test_a_container_is_the_sandboxs_whatever_it_says() -> None:
    labels = {labelled.LABEL: "sb-another", labelled.GRANTS: "0 0 0", "mine": "kept"}
    made = create(name="svc", Labels=labels, HostConfig={"Memory": 64 << 20, "CapDrop": ["KILL"]})
    body: Any = made.body
    assert made.query["name"] == "manyoyo-sb-0123456789abcdef.svc" and body["Image"] == "sha256:1234"
    assert body["Labels"] == {
        "org.manyoyo.given.mine": "kept", labelled.LABEL: WITHIN.sandbox, "org.manyoyo.kind": "within", labelled.ASKED: "python:3.13",
        labelled.GRANTS: f"{64 << 20} 1000000000 100",
    }  # fmt: skip
    assert hostroom.granted(body["Labels"]) == Caps(1, 64 << 20, 100)
    host = body["HostConfig"]
    assert host["NetworkMode"] == "container:keeper" and host["CapDrop"] == ["KILL", "MKNOD", "NET_RAW"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"] and host["LogConfig"]["Config"]["max-size"]
    assert create().query["name"].endswith(".called") and "Ulimits" not in host
    step: Any = create(Labels={labelled.STEP: "0123456789abcdef"}).body
    assert [each["Hard"] for each in step["HostConfig"]["Ulimits"] if each["Name"] == "fsize"] == [8 << 30]
    assert hostroom.granted(step["Labels"]) == Caps(0, 0, 0), "its build has room for it"
    name = f"/{WITHIN.prefix}x"
    assert not labelled.is_to_use(WITHIN, step["Labels"], name) and labelled.belongs(WITHIN, step["Labels"], name)
    assert labelled.is_to_use(WITHIN, step["Labels"] | {labelled.STEP: ""}, name), "of an image that a step became"
    alone = Within(WITHIN.sandbox, "", WITHIN.images)
    for each in (
        create(HostConfig={"NetworkMode": "none"}),
        create(alone),
        create(alone, HostConfig={"NetworkMode": "default"}),
    ):
        assert (each.body or {})["HostConfig"]["NetworkMode"] == "none"


@pytest.mark.parametrize(
    ("labels", "name", "is_its_own"),
    [
        (MINE, "/manyoyo-sb-0123456789abcdef.svc", True),
        (MINE, "/svc", False),  # of an image that says so, run by somebody else
        (MINE, "/manyoyo-sb-0123456789abcdef", False),  # its keeper
        (MINE, "/manyoyo-sb-0123456789abcdeff.svc", False),
        ({labelled.LABEL: "sb-another"}, "/manyoyo-sb-0123456789abcdef.svc", False),
        ({}, "/manyoyo-sb-0123456789abcdef.svc", False),
        (None, "/x", False),
    ],
)
def test_what_is_the_sandboxs(labels: dict[str, str] | None, name: str, is_its_own: bool) -> None:
    assert labelled.belongs(WITHIN, labels, name) is is_its_own
    rows = labelled.containers(WITHIN, [{"Names": [name], "Labels": labels, "Image": "x"}])
    assert bool(rows) is is_its_own
    assert not rows or rows[0]["Names"] == ["/svc"]
    for mode, state, address in (
        ("container:keeper", "running", "127.0.0.1"),
        ("container:keeper", "exited", ""),
        ("none", "running", ""),
    ):
        row = {"Names": [name], "Labels": labels, "State": state, "HostConfig": {"NetworkMode": mode}}
        for each in labelled.containers(WITHIN, [row]):
            networks = each["NetworkSettings"]["Networks"]
            assert [found["IPAddress"] for found in networks.values()] == ([address] if address else [])


def test_labels_mean_nothing_to_other_programs_of_the_host() -> None:
    compose = {"com.docker.compose.project": "theirs", "com.docker.compose.service": "db"}
    body: Any = create(
        Labels=compose, image={"Id": "x", "Config": {"Labels": {"traefik.enable": "true", "a": "b"}}}
    ).body
    assert (
        not compose.keys() & body["Labels"].keys() and "traefik.enable" not in body["Labels"]
    )  # whose image it is may say so
    own = {"Id": "x", "Config": {"Labels": {labelled.OF: WITHIN.sandbox, "traefik.enable": "true"}}}
    body = create(Labels=compose, image=own).body
    assert not compose.keys() & body["Labels"].keys() and body["Labels"]["traefik.enable"] == ""
    row = {"Names": [f"/{WITHIN.prefix}x"], "Labels": body["Labels"]}
    for shown in (
        labelled.containers(WITHIN, [row])[0]["Labels"],
        labelled.inspected(WITHIN, {"Id": "1", "Config": {"Image": "x", "Labels": body["Labels"]}})["Config"]["Labels"],
    ):
        assert shown.items() >= compose.items() and shown[labelled.LABEL] == WITHIN.sandbox
        assert not any(name.startswith(labelled.GIVEN) for name in shown)
    for labels in ({f"{labelled.GIVEN}a": "given", "a": ""}, {"a": "", f"{labelled.GIVEN}a": "given"}):
        assert labelled._shown_labels(labels) == {"a": "given"}, "over an image's"
    assert labelled.inspected(WITHIN, {"Id": "1", "Config": {"Image": "x"}}) == {
        "Id": "1",
        "Config": {"Image": "x", "Labels": {}},
    }


@pytest.mark.parametrize(
    "config",
    [
        {
            "Volumes": {"/dev": {}}
        },  # where dockerd then makes no devices, and runc covers /proc/keys by what the image has as /dev/null
        {"Volumes": {"/data": {}, "/dev/": {}}},
        {"Volumes": {"/": {}}},
        {"Volumes": {"/proc/x": {}}},
        {"Volumes": {"/x/../dev": {}}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Interval": 10**6}},
    ],
)
def test_what_an_image_may_not_ask(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused) as caught:
        create(image={"Id": "x", "Config": config})
    assert "the image's" in caught.value.message and caught.value.hint


def test_what_an_image_may_ask() -> None:
    config = {
        "Volumes": {"/var/lib/postgresql/data": {}, "/dev/shm/x": {}},
        "Healthcheck": {"Test": ["NONE"], "Interval": 0},
    }
    assert create(image={"Id": "x", "Config": config}) and create(image={"Id": "x", "Config": None})


def test_what_is_kept_of_a_container_is_bounded() -> None:
    long = "A=" + "x" * (60 << 10)
    assert create(Env=[long, long])
    for body in ({"Env": [long] * 3}, {"Cmd": ["x"] * 40_000}, {"Labels": {"a": long, "b": long, "c": long}}):
        with pytest.raises(PolicyRefused, match="128 KiB"):
            create(**body)
    said: deque[tuple[float, int]] = deque()
    for at in range(1024):
        hostroom.check_execs(said, float(at) / 10, 64 << 10)
    with pytest.raises(BudgetExceeded, match="64 MiB"):
        hostroom.check_execs(said, 103.0, 64 << 10)
    hostroom.check_execs(said, 601.0, 64 << 10)
    for seconds in (None, "", "0", 0, "10", "600", 599):
        hostroom.check_patience(seconds)
    for seconds in ("-1", -1, "601", "1000", "1e9", "x"):
        with pytest.raises(PolicyRefused, match="too long"):
            hostroom.check_patience(seconds)
    hostroom.check_count("containers", 63, 64)
    with pytest.raises(BudgetExceeded, match="64 containers"):
        hostroom.check_count("containers", 64, 64)


def test_lists_are_of_what_is_the_sandboxs() -> None:
    asked = {"label": ["a=b", "org.manyoyo.kind=within"], "status": ["running"]}
    request = Request("GET", "/containers/json", {"filters": json.dumps(asked)})
    narrowed = labelled.narrowed(decide(request, LIMITS), request, WITHIN)
    assert json.loads(str(narrowed.query["filters"])) == {
        "label": ["org.manyoyo.given.a=b", "org.manyoyo.kind=within", f"{labelled.LABEL}={WITHIN.sandbox}"],
        "status": ["running"],
    }
    asked = Request("GET", "/images/json", {"filters": json.dumps({"reference": {"python": True}})})
    assert json.loads(str(labelled.narrowed(decide(asked, LIMITS), asked, WITHIN).query["filters"])) == {
        "reference": ["python"]
    }
    # Each would tell whether there is such a thing.
    for path, query in (
        ("/containers/json", {"since": "somebodys"}), ("/containers/json", {"before": "somebodys"}), ("/images/json", {"filter": "x"}),
        ("/containers/json", {"filters": '{"since": ["x"]}'}), ("/containers/json", {"filters": '{"ancestor": ["x"]}'}),
        ("/containers/json", {"filters": '{"volume": ["x"]}'}), ("/containers/json", {"filters": '{"network": ["x"]}'}),
        ("/images/json", {"filters": '{"before": ["x"]}'}), ("/images/json", {"filters": '{"since": ["x"]}'}),
    ):  # fmt: skip
        asked = Request("GET", path, query)
        with pytest.raises(PolicyRefused):
            labelled.narrowed(decide(asked, LIMITS), asked, WITHIN)
    for odd in ("[1]", "{", '{"label": {"a=b": true}}x', '{"label": 1}', '"x"'):
        with pytest.raises(PolicyRefused):
            asked = Request("GET", "/containers/json", {"filters": odd})
            labelled.narrowed(decide(asked, LIMITS), asked, WITHIN)


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        ({"RepoTags": ["python:3.13"]}, ["python:3.13"]),
        ({"RepoTags": ["python:3.13", "private/app:1"]}, ["python:3.13"]),
        ({"RepoTags": [], "RepoDigests": ["python@sha256:12"]}, []),
        ({"RepoTags": ["localhost/manyoyo/debian:latest"]}, ["localhost/manyoyo/debian:latest"]),
        ({"RepoTags": ["private/python:3.13"]}, []),
        ({"RepoTags": ["python:2.7"]}, []),
        ({"RepoTags": None}, []),
        ({}, []),
    ],
)
def test_which_images_are_seen(image: dict[str, Any], seen: list[str]) -> None:
    assert labelled.may_run(WITHIN, image) is bool(seen)
    assert [row["RepoTags"] for row in labelled.images(WITHIN, [image])] == ([seen] if seen else [])


@pytest.mark.parametrize(
    ("query", "may"),
    [
        ({"fromImage": "python", "tag": "3.13"}, True),
        ({"fromImage": "docker.io/library/python", "tag": "3.13"}, True),
        ({"fromImage": "python", "tag": "latest"}, False),
        ({"fromImage": "python"}, False),
        ({"fromImage": "python:3.13"}, True),
        ({"fromImage": "python:3.13", "tag": "2.7"}, False),
        ({"fromImage": "python:3.13", "tag": "sha256:01"}, False),
        ({"fromImage": "python:3.13@sha256:01"}, False),
        ({"fromImage": "python@sha256:01", "tag": "3.13"}, False),
        ({"fromImage": "python", "tag": "3.13", "platform": "linux/arm64"}, False),
        ({"fromImage": "localhost/manyoyo/x", "tag": "1"}, False),
        ({"fromImage": "any:5000/x", "tag": "1"}, True),
        ({"fromImage": "any:5000/x@sha256:01"}, True),
        ({"fromImage": "127.0.0.1:5000/any", "tag": "1"}, False),
        ({"fromImage": "0.0.0.0/any", "tag": "1"}, False),
        ({"fromImage": "Any:5000/x", "tag": "1"}, False),
        ({"fromImage": "private/python", "tag": "3.13"}, False),
        ({"fromImage": "python:3.0/evil", "tag": "1"}, False),  # a registry called python
        ({"fromImage": "x/any:5000/evil", "tag": "1"}, False),
        ({"fromImage": "pythonx:80/evil", "tag": "1"}, False),
        ({"fromImage": "UPPER/any", "tag": "1"}, False),
        ({"fromSrc": "-", "repo": "python", "tag": "3.13"}, False),
        ({"fromImage": "python", "tag": "3.13", "fromSrc": "-"}, False),
        ({}, False),
    ],
)
def test_which_images_come_to_the_host(query: dict[str, str], may: bool) -> None:
    request = Request("POST", "/images/create", query)
    if may:
        allowed, named = labelled.pulled(request, WITHIN)
        assert named == allowed.query["fromImage"] + ("@" if "sha256" in named else ":") + str(allowed.query["tag"])
        return
    with pytest.raises(PolicyRefused) as refused:
        labelled.pulled(request, WITHIN)
    assert "MANYOYO_HOST_IMAGES" in refused.value.hint


def test_an_engine_tells_a_client_nothing_of_others() -> None:
    told = labelled.info(
        WITHIN,
        {"NCPU": 2, "Containers": 7, "Name": "host", "Labels": ["a"], "DockerRootDir": "/x", "RegistryConfig": {}},
    )
    assert told == {"NCPU": 2, "Name": WITHIN.sandbox}


def test_what_dockers_client_always_says_says_nothing() -> None:
    host = {"Binds": None, "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default", "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "VolumeDriver": "", "VolumesFrom": None, "CapAdd": None, "IpcMode": "", "PidMode": "", "Mounts": None, "Sysctls": {}}  # fmt: skip
    default = {"IPAMConfig": None, "Aliases": None, "MacAddress": "", "DriverOpts": None}
    for networks in ({}, {"default": default}, {"default": None}):
        body = create(HostConfig=host, NetworkingConfig={"EndpointsConfig": networks}, Volumes={}).body or {}
        assert "NetworkingConfig" not in body and body["HostConfig"]["LogConfig"] == hostruns._LOG


def test_a_field_that_nobody_has_thought_about_is_refused() -> None:
    for body in ({"HostConfig": {"Memory": 6 << 20, "Novel": 1}}, {"Novel": 1, "HostConfig": {}}):
        with pytest.raises(PolicyRefused, match="Novel"):
            hostruns.created(Allowed({}, body), WITHIN, {"Id": "sha256:1234"}, "called")


def test_caps_that_are_no_numbers_are_none() -> None:
    for said in ("", "-1000 -5 -7", "x"):
        assert hostroom.granted({labelled.GRANTS: said}) == Caps(0, 0, 0)


def test_what_runs_at_a_time_is_no_more_than_the_sandbox() -> None:
    half = Caps(1, 512 << 20, 100)
    hostroom.check_room(LIMITS, [], LIMITS.largest)
    hostroom.check_room(LIMITS, [half], half)
    for running, asked, cap in (
        ([half, half], Caps(0.1, 6 << 20, 1), "memory"),
        ([half], Caps(0.1, 513 << 20, 1), "memory"),
        ([Caps(1.5, 6 << 20, 1)], Caps(0.6, 6 << 20, 1), "cpus"),
        ([Caps(0.1, 6 << 20, 200)], Caps(0.1, 6 << 20, 1), "pids_limit"),
    ):
        with pytest.raises(BudgetExceeded, match=cap):
            hostroom.check_room(LIMITS, running, asked)
    hostroom.check_room(LIMITS, [Caps(0.1, 6 << 20, 1)] * 19, Caps(0.1, 6 << 20, 1))  # 20 tenths are 2


def test_what_is_not_named_is_not_offered() -> None:
    """Of what an engine of its own would be asked; and nothing that the rules themselves refuse."""
    offered = set()
    for each in rules.ENDPOINTS:
        path = _example(each.path.pattern)
        for method in each.methods:
            try:
                labelled.named(method, path)
                offered.add((method, path))
            except PolicyRefused as refused:
                assert "isolation" in refused.hint
    assert offered == {
        ("GET", "/_ping"), ("HEAD", "/_ping"), ("GET", "/containers/json"), ("POST", "/containers/create"), ("GET", "/containers/abc/json"),
        ("GET", "/containers/abc/logs"), ("GET", "/containers/abc/stats"), ("GET", "/containers/abc/archive"), ("PUT", "/containers/abc/archive"),
        ("POST", "/containers/abc/start"), ("POST", "/containers/abc/stop"), ("POST", "/containers/abc/kill"), ("POST", "/containers/abc/wait"),
        ("POST", "/containers/abc/attach"), ("POST", "/containers/abc/exec"), ("DELETE", "/containers/abc"), ("POST", "/exec/abc/start"), ("POST", "/exec/abc/resize"),
        ("GET", "/exec/abc/json"), ("GET", "/images/json"), ("GET", "/images/abc/json"), ("POST", "/images/create"),
    }, offered  # fmt: skip
    of_clients = {("GET", "/version"), ("GET", "/info"), ("GET", "/containers/abc/top"), ("HEAD", "/containers/abc/archive"),
                  ("POST", "/containers/abc/unpause"), ("POST", "/containers/abc/resize")}  # fmt: skip
    for method, path in of_clients:
        labelled.named(method, path, clients=True)
        with pytest.raises(PolicyRefused):
            labelled.named(method, path)
    assert labelled.named("POST", "/build", builds=True) is None
    with pytest.raises(PolicyRefused):
        labelled.named("POST", "/build", clients=True)
    assert labelled.named("POST", "/containers/abc/restart") == ("container", "abc")
    assert labelled.named("GET", "/images/localhost/a/b:1/json") == ("image", "localhost/a/b:1")
    for method, path in (("POST", "/containers/prune"), ("POST", "/build"), ("GET", "/info"), ("GET", "/system/df"), ("POST", "/containers/abc/update"),
                         ("GET", "/volumes"), ("GET", "/networks"), ("POST", "/commit"), ("GET", "/events"), ("DELETE", "/images/abc")):  # fmt: skip
        with pytest.raises(PolicyRefused):
            labelled.named(method, path)


def _example(pattern: str) -> str:
    import re

    path = re.sub(r"\(\?:([a-z_]+)[^)]*\)", r"\1", pattern).replace("\\.", ".")
    path = re.sub(r"\[A-Za-z0-9\]\[[^\]]*\]\*", "abc", path)
    return path.split("|")[0]


def test_what_is_no_object_is_refused_as_that() -> None:
    """Also where the rules before these ones should come to let it pass."""
    for check, value in (
        (hostruns.HOST_CONFIG["Mounts"], ["x"]),
        (hostruns.CREATE["NetworkingConfig"], "x"),
        (hostruns.CREATE["NetworkingConfig"], ["x"]),
    ):
        with pytest.raises(REFUSED):
            check("a container's", value)
    with pytest.raises(PolicyRefused):
        hostruns.CREATE["NetworkingConfig"]("a container's", {"EndpointsConfig": {}, "Another": {}})


def test_what_is_shown_says_what_was_asked_for_and_no_name_that_is_not_the_sandboxs() -> None:
    row = {"Names": ["/manyoyo-sb-0123456789abcdef.svc"], "Labels": MINE | {labelled.ASKED: "python:3.13"}, "Image": "sha256:1234"}  # fmt: skip
    assert labelled.containers(WITHIN, [row])[0]["Image"] == "python:3.13"
    image = {"RepoTags": ["python:3.13"], "RepoDigests": ["private/app@sha256:12"]}
    assert labelled.images(WITHIN, [image])[0]["RepoDigests"] == []


@pytest.mark.parametrize(
    "config",
    [
        {"Volumes": {f"/{each}": {} for each in range(51)}},
        {"ExposedPorts": {f"{each}/tcp": {} for each in range(1001)}},
    ],
)
def test_what_an_image_declares_has_an_end(config: dict[str, Any]) -> None:
    hostruns._check_image({name: dict(list(there.items())[1:]) for name, there in config.items()})
    with pytest.raises(PolicyRefused, match="declares more than"):
        hostruns._check_image(config)


def test_how_many_users_there_may_be() -> None:
    small, large, link = {"size": 128 << 10}, {"size": (128 << 10) + 1}, {"size": 4, "linkTarget": "/x"}
    for found, target, volumes in (({}, {}, False), (small, {}, True), (link, small, False), (link, {}, False)):
        hostruns.check_users("/etc/passwd", found, target, volumes=volumes)
    for found, target, volumes, why in (
        (large, {}, False, "larger than 128 KiB"),
        (link, large, False, "larger than 128 KiB"),
        (link, small, True, "a link"),
        (link, link, False, "a link"),
        ({"linkTarget": "/\ufffd"}, small, False, "a link"),
    ):
        with pytest.raises(PolicyRefused, match=f"/etc/passwd is .*{why}"):
            hostruns.check_users("/etc/passwd", found, target, volumes=volumes)


@pytest.mark.parametrize(
    ("body", "image", "looked_at"),
    [
        ({"User": "1", "Healthcheck": {"Test": ["CMD", "x"]}}, {}, False),
        ({"User": "1"}, {"Healthcheck": {"Test": ["CMD", "x"]}}, False),
        ({"Healthcheck": {"Interval": 10**10}}, {"User": "1", "Healthcheck": {"Test": ["CMD", "x"]}}, False),
        ({"Healthcheck": {"Test": ["CMD", "x"]}}, {"User": ""}, True),
        ({}, {"Healthcheck": {"Test": ["CMD", "x"]}}, True),
    ],
)
def test_no_health_is_looked_at_by_a_user(body: dict[str, Any], image: dict[str, Any], looked_at: bool) -> None:
    made = create(image={"Id": "sha256:1", "Config": image}, **body).body or {}
    assert (made.get("Healthcheck", {}).get("Test") != ["NONE"]) is looked_at


def test_how_many_groups_a_container_may_have() -> None:
    assert hostruns.HOST_CONFIG["GroupAdd"]("GroupAdd", ["1"] * 100)
    with pytest.raises(PolicyRefused, match="100 groups"):
        hostruns.HOST_CONFIG["GroupAdd"]("GroupAdd", ["1"] * 101)


@pytest.mark.parametrize("path", ["/etc", "/etc/", "//etc", "/x/../etc", "etc", "/etc/passwd", "/etc/group"])
def test_no_volume_covers_the_list_of_users(path: str) -> None:
    hostruns._check_image({"Volumes": {"/etc/nginx": {}}})
    with pytest.raises(PolicyRefused, match=r"declares a volume at|no place to mount"):
        hostruns._check_image({"Volumes": {path: {}}})
