"""Secrets that one nested container was given: who else can have them, and what can be named."""

import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from tests.escape.roads import IMAGE, Road
from tests.escape.vectors import OWN, Out, Outcome, contained, refused, vector
from tests.escape.world import World

VALUES = {name: f"canary/{name}+{secrets.token_hex(12)}" for name in ("token", "key")}
DECLARED = {name: ["printf", "%s", value] for name, value in VALUES.items()}
"""What the attempts' server may give."""
_RUN = {"image": IMAGE, "command": ["true"]}
_CWE = "exposure of secrets (CWE-200, CWE-522)"


def _without(text: str) -> None:
    """Raises Out where a value stands in a text: as it is, or reversed."""
    for name, value in VALUES.items():
        for each in (value, value[::-1]):
            if each in text:
                at = text.index(each)
                raise Out(f"the secret {name}: …{text[max(0, at - 200) : at]}")


@vector("secret-that-is-not-declared", "path traversal (CWE-22)", roads=("tool",), smoke=True)
async def secret_that_is_not_declared(world: World, road: Road) -> Outcome:
    """Names that would be references, were they read as such."""
    outcome = None
    for name in (
        "nosuch",
        "../../etc/shadow",
        "/etc/shadow",
        "file:/etc/shadow",
        "env:HOME",
        "command:id",
        "another/token",
    ):
        for tool, given in (("nested_run", {"secrets": {name: ""}}), ("nested_build", {"secrets": [name]})):
            arguments = _RUN if tool == "nested_run" else {"files": {"Dockerfile": f"FROM {IMAGE}\n"}}
            outcome = refused(await world.tool.call(tool, **arguments, **given), "SECRET_NOT_FOUND")
    assert outcome is not None
    return outcome


@vector("secret-to-a-place-of-the-kernels", "CVE-2019-16884's kin", roads=("tool",))
async def secret_to_a_place(world: World, road: Road) -> Outcome:
    outcome = None
    for place in (
        "/proc/1/environ",
        "/dev/null",
        "/sys/x",
        "/run/../etc/passwd",
        "/",
        "../x",
        "A=B",
        "/x\n/y",
        "LD_PRELOAD=/x",
    ):
        answer = await world.tool.call("nested_run", **_RUN, secrets={"key": place})
        outcome = refused(answer, "INVALID_ARGUMENT", "no place")
    assert outcome is not None
    return outcome


def _has_both(said: str) -> bool:
    return all(hashlib.sha256(value.encode()).hexdigest() in said for value in VALUES.values())


@asynccontextmanager
async def _service(world: World) -> AsyncIterator[str]:
    """A container that was given both, and shows that it has them; its id."""
    name = f"given-{secrets.token_hex(4)}"
    command = [
        "sh",
        "-c",
        'printf %s "$TOKEN" | sha256sum; sha256sum < /run/secrets/key; trap "exit 0" TERM; sleep 300 & wait',
    ]
    started = await world.tool.call(
        "nested_run", image=IMAGE, command=command, detach=True, name=name, secrets={"token": "TOKEN", "key": ""}
    )
    assert started.ok, started
    gate = world.roads["gate"]
    try:
        with anyio.fail_after(20):
            while not _has_both(await gate.logs(name)):
                await anyio.sleep(0.1)
        yield str((await gate.request("GET", f"/containers/{name}/json")).json()["Id"])
    finally:
        with anyio.CancelScope(shield=True):
            await world.tool.call("nested_stop", container=name, action="remove")


@vector("secret-in-what-the-engine-tells", _CWE)
async def secret_in_what_the_engine_tells(world: World, road: Road) -> Outcome:
    """inspect, list, top, changes, logs, the container exported, committed, its image with its history, saved."""
    asked = 0
    async with _service(world) as container:
        tag = f"given-{secrets.token_hex(4)}"
        for method, path, query in (
            ("GET", f"/containers/{container}/json", {}),
            ("GET", "/containers/json", {"all": "1"}),
            ("GET", f"/containers/{container}/top", {}),
            ("GET", f"/containers/{container}/changes", {}),
            ("GET", f"/containers/{container}/logs", {"stdout": "1", "stderr": "1"}),
            ("GET", f"/containers/{container}/export", {}),
            ("POST", "/commit", {"container": container, "repo": f"localhost/{tag}", "tag": "1"}),
            ("GET", f"/images/localhost/{tag}:1/json", {}),
            ("GET", f"/images/localhost/{tag}:1/history", {}),
            ("GET", f"/images/localhost/{tag}:1/get", {}),
            ("GET", "/info", {}),
        ):
            answer = await road.request(method, path, query)
            _without(answer.text)
            asked += answer.ok
        await world.control.request("DELETE", f"/images/localhost/{tag}:1", {"force": "1"})
    assert asked >= 5, "hardly anything was told, so this shows nothing"
    return contained(f"{asked} of 11 answers, none with a value")


_SEARCH = """for each in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr '\\0' '\\n' < $each; done 2>/dev/null
find /run /tmp /etc /var /mnt /v -xdev -type f -size -64k -exec cat {} + 2>/dev/null; cat /proc/mounts; ls -lR /run; echo TRIED"""


@vector("secret-seen-from-another-container", _CWE)
async def secret_seen_from_another_container(world: World, road: Road) -> Outcome:
    """Root in a container beside it: every environment and file that it can read; with the volumes of that container too."""
    async with _service(world) as container:
        _, said = await road.run(_SEARCH)
        assert "TRIED" in said, said[-300:]
        _without(said)
        _, more = await road.run(f"cat /run/secrets/key; {_SEARCH}", HostConfig={"VolumesFrom": [container]})
        _without(more)
    return contained("nothing of it is there")


@vector("secret-by-a-path", "CIS Docker Benchmark 5.5")
async def secret_by_a_path(world: World, road: Road) -> Outcome:
    """Where the outer container has them."""
    binds = ["/run/manyoyo-secrets:/x", "/run/manyoyo-secrets:/run/secrets:ro"]
    outcomes = [refused(await road.create(HostConfig={"Binds": [each]}), words="") for each in binds]
    async with _service(world):
        held = await world.outer("find /run/manyoyo-secrets -type f | wc -l; stat -c %a /run/manyoyo-secrets")
        assert held.split()[0] != "0", "nothing lies there, so this shows nothing"
        script = (
            "cat /run/manyoyo-secrets/*/files/* /proc/[0-9]*/root/run/manyoyo-secrets/*/files/* 2>/dev/null; echo TRIED"
        )
        _, said = await road.run(script)
        _without(said)
    return outcomes[0]


_STEP = "RUN --mount=type=bind,source=p,target=/p sha256sum < /p; cat /p; echo LOO''KED"


@vector(
    "secret-by-a-placeholder", "decision 12: files that hold no more than a name", roads=("tool",), engines=("podman",)
)
async def secret_by_a_placeholder(world: World, road: Road) -> Outcome:
    """A step mounts a file of its own that looks like what the builder is told instead of a secret, one that its build was not given."""
    dockerfile = f"FROM {IMAGE}\n{_STEP}\n"
    real = f"FROM {IMAGE}\nRUN --mount=type=secret,id=key sha256sum < /run/secrets/key\n"
    digest = hashlib.sha256(VALUES["key"].encode()).hexdigest()

    async def built(dockerfile: str, names: list[str]) -> str:
        files = {"Dockerfile": dockerfile, "p": "manyoyo-secret:key"}
        answer = await world.tool.call("nested_build", files=files, secrets=names, no_cache=True)
        assert answer.ok, answer
        return (await world.tool.call_plain("read_log", job_id=answer.json_part()["job_id"], max_tokens=8000)).text

    assert digest in await built(real, ["key"]), "a build that is given it has it not either"
    for names in ([], ["token"]):
        said = await built(dockerfile, names)
        if digest in said or "[secret key]" in said:
            raise Out(said[-500:])
        assert names or "LOOKED" in said, said[-500:]
    return contained("it stays what it is")


@vector("secret-in-an-image", _CWE, roads=("tool",), engines=("podman",))
async def secret_in_an_image(world: World, road: Road) -> Outcome:
    """What a build with secrets leaves: layers, history, the cache, which the next build begins with."""
    tag = f"localhost/manyoyo-test/given:{secrets.token_hex(4)}"
    dockerfile = f"FROM {IMAGE}\nRUN --mount=type=secret,id=key --mount=type=secret,id=token,target=/t sha256sum /run/secrets/key /t\n"
    files = {"Dockerfile": dockerfile}
    answer = await world.tool.call("nested_build", files=files, secrets=["key", "token"], tags=[tag], no_cache=True)
    assert answer.json_part()["reason"] == "OK", answer
    gate = world.roads["gate"]
    for path in (f"/images/{tag}/json", f"/images/{tag}/history", f"/images/{tag}/get"):
        told = await gate.request("GET", path)
        assert told.ok, told
        _without(told.text)
    _, said = await gate.run(
        "find / -xdev -type f -path '*secret*' -exec cat {} +; ls -l /t /run/secrets; echo TRIED", Image=tag
    )
    _without(said)
    await gate.request("DELETE", f"/images/{tag}", {"force": "1"})
    return contained("nothing is left in it")


@vector("secret-on-the-disk", OWN, roads=("tool",))
async def secret_on_the_disk(world: World, road: Road) -> Outcome:
    """The sandbox's, which forks and checkpoints copy. What a container writes is found there."""
    decoy = secrets.token_hex(12)
    places = "/var/lib/manyoyo /etc /tmp /root"
    async with (
        _service(world),
        world.roads["gate"].service("sh", "-c", f"echo {decoy} > /decoy; trap 'exit 0' TERM; sleep 300 & wait"),
    ):
        await anyio.sleep(1)
        found = await world.outer(f"grep -rlaF {decoy} {places}")
        assert "/var/lib/manyoyo" in found, f"nothing would be found: {found}"
        for name, value in VALUES.items():
            if where := (await world.outer(f"grep -rlaF '{value}' {places}")).strip():
                raise Out(f"the secret {name}: {where}")
    return contained("memory alone has them")


@vector("secret-in-the-record", _CWE, roads=("tool",))
async def secret_in_the_record(world: World, road: Road) -> Outcome:
    """The audit log, logs of jobs, whatever the server keeps; a value that came to be known is sent back to it."""
    answer = await world.tool.call(
        "nested_run", image=IMAGE, command=["sh", "-c", "echo said; cat /run/secrets/key"], secrets={"key": ""}
    )
    _without(answer.text)
    assert "[secret key]" in answer.text, answer
    await world.tool.call("nested_run", image=IMAGE, command=["echo", VALUES["key"]], env={"X": VALUES["key"]})
    kept = [path for path in world.box.manager.settings.state_dir.rglob("*") if path.is_file()]
    assert any("audit" in path.parts for path in kept), kept
    for path in kept:
        _without(path.read_text(errors="replace"))
    return contained(json.dumps(f"{len(kept)} files, none with a value").strip('"'))
