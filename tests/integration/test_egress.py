"""What leaves a sandbox: every mode, by every way, to every kind of destination, in a small internet of the tests' own."""

import http.server
import re
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest
from mcp import Client

from manyoyo_mcp.archive import tar
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import EgressUnenforced
from manyoyo_mcp.hosts import firewall
from manyoyo_mcp.sessions.manager import open_manager
from tests import plugins
from tests.conftest import ROOT, server_parameters
from tests.integration.test_storage import build, call, on_both, refused, run
from tests.support import BUSYBOX, exec_in
from tests.world import ALLOW, IN_RANGE, METADATA, OTHER_RESOLVER, PRIVATE, UNLISTED, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

MODES = ("open", "log", "allowlist", "none")
_OPEN = ("open", "log")
_LISTED = ("open", "log", "allowlist")
FROM_NESTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "a name on the list": ("named allowed.test 80", _LISTED),
    "a name below a wildcard": ("named deep.wild.test 80", _LISTED),
    "a name that is not": ("named other.test 80", _OPEN),
    "a name below one on the list": ("named below.allowed.test 80", _OPEN),
    "another port of it": ("named allowed.test 8080", _OPEN),
    "an address in a CIDR on the list": (f"at {IN_RANGE} 80", _LISTED),
    "an address that is not": (f"at {UNLISTED} 80", _OPEN),
    "DNS: any name, of any server": (f"asked other.test {OTHER_RESOLVER}", _OPEN),
    "DNS: a tunnel (TXT of a name that is not)": (f"asked MODE.tunnel.other.test {OTHER_RESOLVER}", _OPEN),
    "UDP": (f"asked other.test {UNLISTED}:5354", _OPEN),
    "the metadata address": (f"at {METADATA} 80", ()),
    "the metadata address, by a listed name": ("named rebind.wild.test 80", ()),
    "a private address": (f"at {PRIVATE} 80", ()),
    "another sandbox's outer address": ("at WORLD 80", ()),
    "the host, on the bridge": ("at GATEWAY PORT", ()),
}
"""From a run and from a RUN step alike: what is tried, and the modes in which it gets there. IPv6: nested networks have none."""
PULLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a name on the list": ("allowed.test:5000/image", _LISTED),
    "a name that is not": ("other.test:5000/image", _OPEN),
    "an address that is not": (f"{UNLISTED}:5000/image", _OPEN),
    "IPv6, by a name on the list": ("v6.test:5000/image", _LISTED),
    "the metadata address": (f"{METADATA}:5000/image", ()),
}
INSECURE = ",".join(image.partition("/")[0] for image, modes in PULLS.values() if modes)
_TRY = """
at() { printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 1 $1 $2 2>/dev/null | grep -q -e 200 -e hello; }
named() { a=$(nslookup -type=a $1 | sed -n '/^Name:/,$s/^Address: //p' | head -n 1); [ -n "$a" ] && at $a $2; }
asked() { timeout 1 nslookup -type=a $1 $2 2>&1 | grep -q '^Address: 198'; }
try() { n=$1; shift; if "$@" >/dev/null 2>&1; then echo "=$n yes"; else echo "=$n no"; fi; }
"""


def script(mode: str, world: World, port: int) -> str:
    lines = [f"try {number} {words}" for number, (words, _) in enumerate(FROM_NESTED.values())]
    text = _TRY + "\n".join(lines) + "\n"
    return (
        text.replace("WORLD", world.address)
        .replace("GATEWAY", world.gateway)
        .replace("PORT", str(port))
        .replace("MODE", mode)
    )


def seen(output: str) -> dict[str, bool]:
    found = {int(number): said == "yes" for number, said in re.findall(r"=(\d+) (yes|no)", output)}
    return {name: found[number] for number, name in enumerate(FROM_NESTED)}


def expected(table: dict[str, tuple[str, tuple[str, ...]]], mode: str) -> dict[str, bool]:
    return {name: mode in modes for name, (_, modes) in table.items()}


def matrix() -> str:
    """What is declared above, as the table in docs/egress.md."""
    rows = [f"| by | to | {' | '.join(MODES)} |", "|---|---|" + "---|" * len(MODES)]
    for way, table in (("run, RUN step", FROM_NESTED), ("pull", PULLS)):
        for name, (_, modes) in table.items():
            rows.append(f"| {way} | {name} | {' | '.join('yes' if mode in modes else 'no' for mode in MODES)} |")
    return "\n".join(rows)


def test_the_documentation_has_the_matrix() -> None:
    assert matrix() in (ROOT / "docs" / "egress.md").read_text(), f"docs/egress.md is to have this table:\n{matrix()}"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.end()


@pytest.fixture(scope="module")
def on_host(world: World) -> Iterator[int]:
    """Something that listens on the host's end of the bridge; its port."""
    server = http.server.ThreadingHTTPServer((world.gateway, 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(server_parameters(tmp_path, MANYOYO_INSECURE_REGISTRIES=INSECURE)) as connected:
        yield connected


async def started(client: Client, world: World, engine: str, **arguments: Any) -> str:
    begun = await call(client, "start_sandbox", engine=engine, memory="512m", **arguments)
    sandbox = str(begun["sandbox"]["sandbox_id"])
    await anyio.to_thread.run_sync(world.lead, sandbox)
    await build(client, sandbox)
    return sandbox


async def switch(client: Client, sandbox: str, mode: str) -> float:
    """Another mode; how long that took."""
    begun = time.monotonic()
    allow = {"network_allow": ALLOW} if mode == "allowlist" else {}
    changed = await call(client, "start_sandbox", sandbox_id=sandbox, network_policy=mode, **allow)
    assert changed["sandbox"]["network"].startswith(mode), changed
    return time.monotonic() - begun


def by_buildkit(docker_host: str, directory: Path, dockerfile: str, text: str = "") -> str:
    """What Docker's own client says of such a build; what the build wrote to /tried, where it ended well."""
    context = directory / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(f"{dockerfile}FROM scratch\nCOPY --from=tried /tried /\n")
    (context / "try").write_text(text)
    done = subprocess.run(
        ["docker", "buildx", "build", "-o", "type=local,dest=out", str(context)], cwd=directory, capture_output=True, text=True,
        env=plugins.environment(docker_host, directory), timeout=100,
    )  # fmt: skip
    return (directory / "out" / "tried").read_text() if done.returncode == 0 else done.stderr


@on_both
async def test_the_matrix(client: Client, world: World, on_host: int, engine: str, tmp_path: Path) -> None:
    sandbox = await started(client, world, engine)
    for mode in MODES:
        await switch(client, sandbox, mode)
        text = script(f"{mode}-{engine}", world, on_host)
        ran = await run(client, sandbox, text, max_tokens=5000)
        assert seen(ran["output"]) == expected(FROM_NESTED, mode), (mode, ran)
        files = {"Dockerfile": f"FROM {BUSYBOX}\nCOPY try /\nRUN sh /try > /tried\n", "try": text}
        built = await call(client, "nested_build", sandbox_id=sandbox, files=files, tags=["localhost/tried"])
        assert built["reason"] == "OK", built
        tried = await run(client, sandbox, "cat /tried", image="localhost/tried", max_tokens=5000)
        assert seen(tried["output"]) == expected(FROM_NESTED, mode), (mode, tried)
        if engine == "docker" and mode == "allowlist":
            host = (await call(client, "sandbox_endpoint", sandbox_id=sandbox))["docker_host"]
            step = f"FROM {BUSYBOX} AS tried\nCOPY try /\nRUN sh /try > /tried\n"
            by_it = await anyio.to_thread.run_sync(by_buildkit, host, tmp_path, step, text)
            assert seen(by_it) == expected(FROM_NESTED, mode), by_it
            pull = "FROM other.test:5000/image AS tried\n"
            assert "other.test" in (said := await anyio.to_thread.run_sync(by_buildkit, host, tmp_path, pull)), said
        for name, (image, modes) in PULLS.items():
            result = await client.call_tool(
                "nested_run", {"sandbox_id": sandbox, "image": image, "command": ["true"], "pull": "always"}
            )
            assert (not result.is_error) == (mode in modes), (mode, name, result.meta)
            if mode not in modes:
                error = (result.meta or {})["org.manyoyo/error"]
                assert "efused" in error["hint"], (mode, name, error)
        status = (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]
        gone = {each.partition(" ")[0] for each in status.get("refused", [])}
        assert f"{METADATA}:80" in gone and f"{METADATA}:5000" in gone, (mode, status)
        if mode in ("allowlist", "none"):
            assert {"other.test", "below.allowed.test"} <= gone
        reached = {each.partition(" ")[0] for each in status.get("reached", [])}
        if mode == "log":
            assert {"other.test", "allowed.test", f"{UNLISTED}:80"} <= reached, status
    asked = await anyio.to_thread.run_sync(world.asked)
    assert f"open-{engine}.tunnel" in asked and f"log-{engine}.tunnel" in asked
    assert f"allowlist-{engine}.tunnel" not in asked and f"none-{engine}.tunnel" not in asked


@on_both
async def test_a_change_is_felt_within_a_second_and_cuts_what_is_under_way(
    client: Client, world: World, engine: str
) -> None:
    sandbox = await started(client, world, engine)
    await run(client, sandbox, f"nc {UNLISTED} 7000 | while read -r t; do echo $t; done", detach=True, name="streaming")

    async def ticks() -> int:
        logged = await call(client, "nested_logs", sandbox_id=sandbox, container="streaming", max_tokens=20000)
        return int(str(logged).count("tick"))

    with anyio.fail_after(20):
        while await ticks() < 3:
            await anyio.sleep(0.1)
    assert await switch(client, sandbox, "allowlist") < 1
    before = await ticks()
    await anyio.sleep(0.5)
    assert await ticks() - before <= 1, "nothing comes through any more"
    failed = await run(client, sandbox, f"nc -w 2 {UNLISTED} 80 || {{ echo connection failed; exit 1; }}")
    assert "Refused by the allow-list" in failed["hint"] and f"{UNLISTED}:80" in failed["hint"], failed
    built = await build(client, sandbox, f"FROM {BUSYBOX}\nRUN nslookup other.test\n")
    assert built["cause_code"] == "NETWORK_REFUSED", built
    assert "other.test" in built["cause"] and "network_allow" in built["mend"]
    if engine == "docker":  # podman gives no NET_RAW
        assert (await run(client, sandbox, f"ping -c 1 -W 1 {UNLISTED}"))["exit_code"] != 0
        assert (await run(client, sandbox, f"ping -c 1 -W 1 {IN_RANGE}"))["exit_code"] == 0
    fork = (await call(client, "fork_sandbox", sandbox_id=sandbox))["forks"][0]
    assert fork["network"].startswith("allowlist")
    assert await switch(client, sandbox, "open") < 1
    assert (await run(client, sandbox, f"nc -w 2 {UNLISTED} 80 < /dev/null"))["exit_code"] == 0


async def test_no_more_than_is_configured(tmp_path: Path) -> None:
    environment = {"MANYOYO_NETWORK_POLICY": "allowlist", "MANYOYO_NETWORK_ALLOW": "*.example.org:443,10.1.0.0/16"}
    async with Client(server_parameters(tmp_path, MANYOYO_WARM="1", **environment)) as client:
        for wanted in ({"network_policy": "open"}, {"network_policy": "log"}, {"network_allow": ["example.com"]},
                       {"network_allow": ["example.org"]}, {"network_allow": ["169.254.169.254"]}):  # fmt: skip
            error = await refused(client, "start_sandbox", **wanted)
            assert error["code"] == "POLICY_REFUSED" and "MANYOYO_NETWORK_POLICY" in error["hint"], error
        first = (await call(client, "start_sandbox"))["sandbox"]
        assert "*.example.org:443, 10.1.0.0/16" in first["network"]
        less = ["www.example.org:443", "10.1.2.3:80"]
        named = (await call(client, "start_sandbox", name="narrow", network_allow=less))["sandbox"]
        assert "www.example.org:443, 10.1.2.3:80" in named["network"]
        await call(client, "start_sandbox", sandbox_id="narrow", network_policy="none")
        await call(client, "cleanup", sandbox_id="narrow", keep_data=True)
        again = (await call(client, "start_sandbox", name="narrow"))["sandbox"]
        assert again["network"].startswith("none"), "a name keeps what it was given last"
        await call(client, "cleanup", sandbox_id="narrow")


@on_both
async def test_a_change_that_fails_leaves_what_held(client: Client, engine: str) -> None:
    sandbox = (await call(client, "start_sandbox", engine=engine, network_policy="none"))["sandbox"]["sandbox_id"]
    host = docker.from_env()
    try:
        (outer,) = host.containers.list(filters={"label": f"org.manyoyo.sandbox={sandbox}"})
        once = "#!/bin/sh\nrm /usr/local/sbin/nft\necho no room for rules\nexit 1\n"
        assert outer.put_archive("/usr/local/sbin", tar({"nft": once.encode()}))
        error = await refused(client, "start_sandbox", sandbox_id=sandbox, network_policy="log")
        assert error["code"] == "EGRESS_UNENFORCED" and "no room for rules" in error["message"], error
        rules, policy = (
            exec_in(outer, words).output.decode()
            for words in (["nft", "list", "chain", "inet", "manyoyo", "judge"], ["cat", f"{firewall.DIRECTORY}/policy"])
        )
        assert policy.strip() == "none" and "goto refuse" in rules, (policy, rules)
    finally:
        host.close()
    assert (await call(client, "sandbox_status", sandbox_id=sandbox))["sandboxes"][0]["network"].startswith("none")
    changed = await call(client, "start_sandbox", sandbox_id=sandbox, network_policy="log")
    assert changed["sandbox"]["network"].startswith("log"), "and the next one is taken"


@on_both
async def test_without_rules_there_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(firewall, "rules", lambda *_, **__: "table inet manyoyo { nonsense }\n")
    async with open_manager(Settings(state_dir=tmp_path / "state", runtime_dir=tmp_path / "run")) as manager:
        with pytest.raises(EgressUnenforced) as failed:
            await manager.start(engine)  # type: ignore[arg-type]
    assert "could not be made" in failed.value.message
