"""Secrets through a client: what is named arrives, and its value stands nowhere else, on neither engine."""

import base64
import hashlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from mcp import Client

from manyoyo_mcp.audit.reading import Wanted, entries
from tests.conftest import server_parameters
from tests.integration.test_bad_input import Caller
from tests.support import BUSYBOX, busybox_context, exec_in

pytestmark = pytest.mark.anyio

CANARIES = {name: f"canary/{name}+{secrets.token_hex(12)}" for name in ("token", "key", "printed", "loud")}
KEY = f"-----BEGIN\n{CANARIES['key']}\n{CANARIES['key'][::-1]}\n-----END\n"
QUIET = ("token", "key", "printed")
"""Those that no service writes into its log, which is on the disk."""


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Listening(Caller):
    """One that notes all that it is told."""

    sandbox_id = ""
    told = ""

    async def hear(self, tool: str, arguments: dict[str, Any]) -> Any:
        result = await self.client.call_tool(tool, arguments)
        self.told += result.model_dump_json()
        return result

    async def ok(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.hear(tool, arguments)
        assert not result.is_error, result.content
        return dict(result.structured_content or {})

    async def refused(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.hear(tool, arguments)
        assert result.is_error, result.structured_content
        return dict((result.meta or {})["org.manyoyo/error"])

    def outer(self, *command: str) -> tuple[int, str]:
        host = docker.from_env()
        try:
            code, said = exec_in(host.containers.get(f"manyoyo-{self.sandbox_id}"), command)
        finally:
            host.close()
        return code, said.decode(errors="replace")

    async def gate(self) -> docker.APIClient:
        endpoint = await self.ok("sandbox_endpoint")
        return docker.APIClient(base_url=str(endpoint["docker_host"]), version="1.41")


def without(canary: str, text: str) -> bool:
    """Whether a text has a value in no form: not as it is, nor in base64 at any place."""
    cores = [base64.b64encode(bytes(before) + canary.encode())[4:-4].decode() for before in range(3)]
    flat = text.replace("\\n", "").replace("\n", "")
    return not any(each in flat for each in (canary, canary[::-1], *cores))


@pytest.fixture(scope="module", params=["podman", "docker"])
async def caller(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Listening]:
    directory = tmp_path_factory.mktemp("project")
    (directory / "key").write_text(KEY)
    declared = {
        "token": "env:HA_TOKEN", "loud": "env:HA_LOUD", "key": f"file:{directory}/key", "gone": "env:HA_GONE",
        "printed": [sys.executable, "-c", "import os; print(os.environ['HA_PRINTED'])"],
    }  # fmt: skip
    environment = {f"HA_{name.upper()}": CANARIES[name] for name in ("token", "printed", "loud")}
    async with Client(
        server_parameters(directory, MANYOYO_ENGINE=request.param, MANYOYO_SECRETS=json.dumps(declared), **environment)
    ) as client:
        caller = Listening(client, directory, request.param)
        caller.sandbox_id = (await caller.ok("start_sandbox", memory="1g"))["sandbox"]["sandbox_id"]
        files = {name: {"base64": base64.b64encode(data).decode()} for name, data in busybox_context().items()}
        built = await caller.ok("nested_build", files=files, tags=[BUSYBOX])
        assert built["reason"] == "OK", built
        yield caller


GIVEN = {"token": "TOKEN", "key": "", "printed": "/opt/deep/printed"}


async def test_what_is_named_arrives(caller: Listening) -> None:
    look = (
        "sha256sum < /run/secrets/key; sha256sum < /opt/deep/printed; printf %s \"$TOKEN\" | sha256sum; stat -c '%a %u %s' "
        "/run/secrets/key; touch /run/secrets/key 2>&- && echo written; grep -c ' /run/secrets/key tmpfs ro' /proc/mounts"
    )
    for user, uid in ((None, 0), ("1000", 1000), ("guest", 1000)):
        ended = await caller.run(
            "sh", "-c", look, secrets=GIVEN, read_only=user is None, **({"user": user} if user else {})
        )
        for value in (KEY, CANARIES["printed"], CANARIES["token"]):
            assert sha256(value) in ended["output"], ended
        assert f"400 {uid} {len(KEY)}" in ended["output"] and "written" not in ended["output"], ended
        assert ended["output"].rstrip().splitlines()[-2] == "1", ended


async def test_a_variable_is_set_instead_of_the_images_own(caller: Listening) -> None:
    dockerfile = f"FROM {BUSYBOX}\nENV TOKEN=the-images OTHER=kept\n"
    await caller.ok("nested_build", files={"Dockerfile": dockerfile}, tags=["localhost/with-token:1"])
    ended = await caller.ok(
        "nested_run", image="localhost/with-token:1", secrets={"token": "TOKEN"},
        command=["sh", "-c", 'printf %s "$TOKEN" | sha256sum; env | grep -c ^TOKEN=; echo $OTHER'],
    )  # fmt: skip
    assert sha256(CANARIES["token"]) in ended["output"] and "\n1\nkept" in ended["output"], ended


async def test_outputs_are_without_them(caller: Listening) -> None:
    script = """
        cat /run/secrets/key; echo "token=$TOKEN"; printf %s "$TOKEN" | cut -c1-9 | tr -d '\\n'; sleep 0.3; printf %s "$TOKEN" | cut -c10-
        for before in '' x xy; do printf %s "$before$TOKEN;" | base64; cat /run/secrets/key | base64 -w 20; done
        cp /run/secrets/key /tmp/key; printf 'a\\000%s' "$TOKEN" > /tmp/binary; echo the end"""
    ended = await caller.run("sh", "-c", script, secrets=GIVEN, outputs=["/tmp/key", "/tmp/binary"])
    assert ended["output"].count("[secret token]") == 5 and "[secret key]" in ended["output"], ended
    assert "the end" in ended["output"]
    text, binary = ended["outputs"]
    assert "[secret key]" in text["text"] and "taken out" in text["note"]
    assert base64.b64decode(binary["base64"]) == b"a\0[secret token]"
    read = await caller.ok("read_log", job_id=ended["job_id"])
    resource = await caller.client.read_resource(f"manyoyo://jobs/{ended['job_id']}/log")
    for said in (read["output"], resource.model_dump_json()):
        assert "[secret token]" in said and all(without(CANARIES[name], said) for name in QUIET)


async def test_a_service(caller: Listening) -> None:
    started = await caller.run("sh", "-c", 'echo "with $LOUD"; exec sleep 600', detach=True, name="serving",
                               secrets={"loud": "LOUD", "key": "", "token": "TOKEN"})  # fmt: skip
    assert started["state"] == "started", started
    assert "with [secret loud]" in (await caller.ok("nested_logs", container="serving"))["output"]
    inside = await caller.ok("nested_exec", container="serving", command=["sh", "-c", "cat /run/secrets/key; env"])
    assert "[secret key]" in inside["output"] and "TOKEN" not in inside["output"]
    look = ["sh", "-c", 'printf %s "$PRINTED" | sha256sum; env']
    inside = await caller.ok("nested_exec", container="serving", command=look, secrets={"printed": "PRINTED"})
    assert sha256(CANARIES["printed"]) in inside["output"] and "PRINTED=[secret printed]" in inside["output"]
    gate = await caller.gate()
    try:
        shown = json.dumps(gate.inspect_container("serving"))
        exported = b"".join(gate.export("serving"))
        gate.commit("serving", "localhost/committed", "1")
    finally:
        gate.close()
    for value in CANARIES.values():
        assert without(value, shown) and value.encode() not in exported
    await caller.ok("nested_stop", container="serving", action="restart", timeout_s=0)
    again = await caller.ok("nested_exec", container="serving", command=["sha256sum", "/run/secrets/key"])
    assert sha256(KEY) in again["output"]


async def test_a_build(caller: Listening) -> None:
    dockerfile = f"""FROM {BUSYBOX}
RUN --mount=type=secret,id=token sha256sum /run/secrets/token && cat /run/secrets/token && stat -c %a:%u /run/secrets/token
RUN --mount=type=secret,id=key,target=/opt/key,required=true,mode=0440,uid=1000 sha256sum /opt/key && stat -c %a:%u /opt/key && base64 /opt/key
RUN ls -a / /run /run/secrets /opt || true
COPY . /context
"""
    arguments: dict[str, Any] = {
        "files": {"Dockerfile": dockerfile, "beside": "x"},
        "tags": ["localhost/with-secrets:1"],
    }
    error = await caller.refused("nested_build", secrets=["token"], builder="daemonless", **arguments)
    assert error["code"] == "BUILD_SECRETS_UNAVAILABLE" and "Leave builder out" in error["hint"]
    if caller.engine == "docker":
        error = await caller.refused("nested_build", secrets=["token", "key"], **arguments)
        assert error["code"] == "BUILD_SECRETS_UNAVAILABLE" and 'engine="podman"' in error["hint"]
        return
    failed = await caller.ok("nested_build", secrets=["token"], **arguments)
    assert failed["cause_code"] == "BUILD_SECRET_NOT_GIVEN" and "secrets of nested_build" in failed["mend"], failed
    built = await caller.ok("nested_build", secrets=["token", "key"], no_cache=True, **arguments)
    assert built["reason"] == "OK", built
    log = (await caller.ok("read_log", job_id=built["job_id"], max_tokens=8000))["output"]
    assert sha256(CANARIES["token"]) in log and sha256(KEY) in log and "400:0" in log and "440:1000" in log, log
    assert "[secret token]" in log and "[secret key]" in log
    ended = await caller.ok(
        "nested_run",
        image="localhost/with-secrets:1",
        command=["sh", "-c", "ls -a /context; cat /run/secrets/token /opt/key"],
    )
    assert "beside" in ended["output"] and "manyoyo-secret" not in ended["output"], ended


async def test_images_hold_none(caller: Listening) -> None:
    gate = await caller.gate()
    try:
        for image in ("localhost/committed:1", *(["localhost/with-secrets:1"] if caller.engine == "podman" else [])):
            told = json.dumps([gate.inspect_image(image), gate.history(image)])
            saved = b"".join(gate.get_image(image))
            for value in CANARIES.values():
                assert without(value, told) and value.encode() not in saved and b"manyoyo-secret:" not in saved
    finally:
        gate.close()


async def test_an_exec_that_would_store_them_is_refused(caller: Listening) -> None:
    """Over a relay podman itself has to be asked, which keeps an exec's variables on the disk; dockerd keeps them in memory."""
    if caller.engine == "docker":
        return
    settings = {"MANYOYO_SECRETS": "token=env:HA_TOKEN", "HA_TOKEN": CANARIES["token"], "MANYOYO_TRANSPORT": "relay"}
    (directory := caller.directory / "relayed").mkdir()
    async with Client(server_parameters(directory, **settings)) as client:
        over = Listening(client, caller.directory, "podman")
        over.sandbox_id = (await over.ok("start_sandbox", memory="512m"))["sandbox"]["sandbox_id"]
        files = {name: {"base64": base64.b64encode(data).decode()} for name, data in busybox_context().items()}
        assert (await over.ok("nested_build", files=files, tags=[BUSYBOX]))["reason"] == "OK"
        await over.run("sleep", "600", detach=True, name="serving", secrets={"token": "TOKEN"})
        asked = {"container": "serving", "command": ["sh", "-c", 'printf %s "$TOKEN" | wc -c']}
        error = await over.refused("nested_exec", secrets={"token": "TOKEN"}, **asked)
        assert error["code"] == "EXEC_SECRETS_UNAVAILABLE" and 'engine="docker"' in error["hint"], error
        assert "\n0\n" in (await over.ok("nested_exec", **asked))["output"], "without them it goes"
        code, said = over.outer("grep", "-rlaF", CANARIES["token"], "/var", "/tmp", "/root")
        assert code == 1, said


async def test_a_builds_secrets_go_where_its_server_has_died(tmp_path: Path) -> None:
    """They are needed for as long as a server says so; the sandbox goes on, as one with a name does."""
    name = f"secrets-{secrets.token_hex(4)}"
    settings = {"MANYOYO_SECRETS": "token=env:HA_TOKEN", "HA_TOKEN": CANARIES["token"]}
    count = "ls /run/manyoyo-secrets | wc -l; cat /run/manyoyo-secrets/.[!.]* 2>/dev/null || echo 0"
    async with Client(server_parameters(tmp_path, **settings)) as client:
        caller = Listening(client, tmp_path, "podman")
        caller.sandbox_id = (await caller.ok("start_sandbox", memory="512m", name=name))["sandbox"]["sandbox_id"]
        files = {each: {"base64": base64.b64encode(data).decode()} for each, data in busybox_context().items()}
        assert (await caller.ok("nested_build", files=files, tags=[BUSYBOX]))["reason"] == "OK"
        step = f"FROM {BUSYBOX}\nRUN --mount=type=secret,id=token sleep 7601\n"
        await caller.ok("nested_build", files={"Dockerfile": step}, secrets=["token"], wait_s=1)

        def held(seconds: int) -> tuple[int, int]:
            """How many there are, and since when nobody has asked for them to be kept."""
            code, said = caller.outer("sh", "-c", f"/usr/lib/manyoyo/ctl sweep-secrets {seconds}; {count}")
            assert code == 0, said
            there, age = said.split()
            return int(there), int(age)

        with anyio.fail_after(60):
            while held(0) == (0, 0):
                await anyio.sleep(0.2)
        assert held(60)[1] >= 60
        with anyio.fail_after(60):
            while held(0)[1] >= 60:  # its server says that it goes on
                await anyio.sleep(0.5)
        os.kill(entries(tmp_path / ".state" / "audit", Wanted(tool="session"))[0]["pid"], signal.SIGKILL)
        assert held(30)[0] == 1 and held(120)[0] == 0
    async with Client(server_parameters(tmp_path)) as client:
        await Listening(client, tmp_path, "podman").ok("cleanup", sandbox_id=name)


async def test_a_command_is_not_run_for_what_is_refused(tmp_path: Path) -> None:
    """A program of the user's, which may ask for a finger or cost a call, runs once all else is in order."""
    ran = tmp_path / "ran"
    command = json.dumps({"slow": ["sh", "-c", f"echo >> {ran}; echo {CANARIES['token']}"]})
    async with Client(server_parameters(tmp_path, MANYOYO_SECRETS=command)) as client:
        caller = Listening(client, tmp_path, "podman")
        caller.sandbox_id = (await caller.ok("start_sandbox", memory="512m"))["sandbox"]["sandbox_id"]
        files = {name: {"base64": base64.b64encode(data).decode()} for name, data in busybox_context().items()}
        assert (await caller.ok("nested_build", files=files, tags=[BUSYBOX]))["reason"] == "OK"
        asked: dict[str, Any] = {"image": BUSYBOX, "command": ["true"], "secrets": {"slow": ""}}
        assert (await caller.refused("nested_run", **asked, memory="900g"))["code"] == "CAP_EXCEEDED"
        assert (await caller.refused("nested_run", **asked | {"image": "localhost/nosuch:1"}))[
            "code"
        ] == "IMAGE_NOT_FOUND"
        error = await caller.refused("nested_exec", container="nobody", command=["true"], secrets={"slow": "SLOW"})
        assert error["code"] == "CONTAINER_NOT_FOUND" and not ran.exists()
        assert (await caller.ok("nested_run", **asked))["reason"] == "OK" and ran.read_text() == "\n"


async def test_what_can_not_be_had(caller: Listening) -> None:
    unknown = await caller.refused(
        "nested_run", image=BUSYBOX, command=["true"], secrets={CANARIES["token"]: "", "key": ""}
    )
    assert unknown["code"] == "SECRET_NOT_FOUND" and "gone, key, loud, printed, token" in unknown["hint"], unknown
    assert (await caller.ok("sandbox_status"))["secrets"] == ["gone", "key", "loud", "printed", "token"]
    gone = await caller.refused("nested_build", files={"Dockerfile": f"FROM {BUSYBOX}"}, secrets=["gone"])
    expected = "SECRET_UNAVAILABLE" if caller.engine == "podman" else "BUILD_SECRETS_UNAVAILABLE"
    assert gone["code"] == expected, gone
    missing = await caller.refused("nested_run", image="localhost/nosuch:1", command=["true"], secrets=GIVEN)
    assert missing["code"] == "IMAGE_NOT_FOUND"
    quoted = await caller.refused(
        "nested_exec", container="serving", command=["true"], workdir="x\0" + CANARIES["token"]
    )
    assert quoted["code"] == "INVALID_ARGUMENT"


async def test_a_value_that_came_to_be_known_is_not_on_record(caller: Listening) -> None:
    ended = await caller.run("echo", "told", CANARIES["token"], env={"X": "y"})
    assert "told [secret token]" in ended["output"]


async def test_a_container_that_has_lost_them_is_not_started(caller: Listening) -> None:
    caller.outer("sh", "-c", "rm -rf /run/manyoyo-secrets/*")
    error = await caller.refused("nested_stop", container="serving", action="restart", timeout_s=0)
    assert error["code"] == "SECRETS_GONE" and "nested_run" in error["hint"], error


async def test_nothing_of_them_is_left(caller: Listening) -> None:
    """On the sandbox's disk, in its memory, in what the server keeps, in all that the client was told."""
    await caller.run("sh", "-c", "echo decoy-of-$((40 + 2)) > /tmp/decoy; exec sleep 600", detach=True, name="decoy")
    with anyio.fail_after(20):
        while len((await caller.ok("nested_list", what="containers"))["containers"]) > 2:
            await anyio.sleep(0.1)
    places = ["/var", "/etc", "/tmp", "/root"]
    code, said = caller.outer("grep", "-rlaF", "decoy-of-42", *places)
    assert code == 0 and "/var/lib/manyoyo" in said, said  # it would be found
    for name in QUIET:
        code, said = caller.outer("grep", "-rlaF", CANARIES[name], *places)
        assert code == 1, said
    await caller.ok("nested_stop", container="serving", action="remove")
    code, said = caller.outer("sh", "-c", "ls -A /run/manyoyo-secrets")
    assert said.strip() == "", said
    kept = {
        path: path.read_bytes().decode(errors="replace")
        for path in (caller.directory / ".state").rglob("*")
        if path.is_file()
    }
    log = "".join(text for path, text in kept.items() if "audit" in path.parts)
    told = {"token": "(a variable)", "key": "", "printed": "/opt/deep/printed"}
    records = [json.loads(line) for line in log.splitlines()]
    assert any(record.get("arguments", {}).get("secrets") == told for record in records), log[-3000:]
    assert "[secret token]" in log
    for value in CANARIES.values():
        assert without(value, caller.told), "told"
        assert all(without(value, text) for text in kept.values()), [
            str(path) for path, text in kept.items() if not without(value, text)
        ]
    assert Path(caller.directory / "key").exists()
