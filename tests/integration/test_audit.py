"""The audit log of a server, through a real client: calls, refusals, jobs, what goes through the gates; and no secret in it."""

import base64
import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import docker
import pytest
from mcp import Client

from manyoyo_mcp.audit.reading import Wanted, entries
from manyoyo_mcp.audit.verifying import verify
from manyoyo_mcp.tools.base import ERROR_META
from tests.conftest import server_parameters
from tests.support import BUSYBOX, busybox_context
from tests.unit.test_audit import BIG, Files, Journal
from tests.unit.test_audit import call as any_call

pytestmark = pytest.mark.anyio
CANARY = "cAnArY-of-the-audit-5f1c"


class Asker:
    """Calls of one client, and what the log says of them."""

    def __init__(self, client: Client, directory: Path) -> None:
        self.client = client
        self.log = directory / ".state" / "audit"

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result's data, or the error's."""
        result = await self.client.call_tool(tool, arguments)
        if result.is_error:
            return dict((result.meta or {})[ERROR_META])
        return dict(result.structured_content or {})

    def last(self, tool: str) -> dict[str, Any]:
        return entries(self.log, Wanted(tool=tool))[-1]


def files() -> dict[str, Any]:
    return {name: {"base64": base64.b64encode(raw).decode()} for name, raw in busybox_context().items()}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_calls_and_refusals_stand_there_and_no_secret(tmp_path: Path, mode: Any) -> None:
    async with Client(server_parameters(tmp_path), mode=mode) as client:
        call = Asker(client, tmp_path)
        await call("nested_build", files={**files(), "note": CANARY}, tags=[BUSYBOX], build_args={"ARG": CANARY})
        built = call.last("nested_build")
        assert built["result"]["reason"] == "OK" and built["arguments"]["tags"] == [BUSYBOX], built
        assert built["client"].startswith("mcp ") and built["owner"].startswith(f"{os.getuid()}@")
        assert await call("nested_run", image=BUSYBOX, command=["sh", "-c", 'echo "$NAME"; exit 3'], env={"NAME": CANARY},
                          stdin=CANARY, files={"/in": CANARY})  # fmt: skip
        ran = call.last("nested_run")
        assert (ran["decision"], ran["result"]["reason"], ran["result"]["exit_code"]) == ("allowed", "EXIT_NONZERO", 3)
        assert ran["arguments"]["env"] == {"NAME": f"{len(CANARY)} bytes"} and ran["seconds"] > 0
        assert ran["arguments"]["stdin"] == f"{len(CANARY)} bytes"
        refused = await call("nested_run", image=BUSYBOX, memory="900g")
        entry = call.last("nested_run")
        assert (entry["decision"], entry["code"]) == ("refused", "CAP_EXCEEDED") and refused["code"] == "CAP_EXCEEDED"
        await call("nested_run", image=BUSYBOX, privileged=True, env={"NAME": CANARY})
        entry = call.last("nested_run")
        assert (entry["decision"], entry["code"]) == ("refused", "NOT_SUPPORTED")
        assert entry["arguments"]["privileged"] == "bool", "of arguments that were not understood only names and types"
        await call("nested_exec", container="nobody", command=["true"])
        assert call.last("nested_exec")["decision"] == "failed"
        await call("nested_list")
        assert call.last("nested_list")["decision"] == "allowed"
        long = await call("nested_run", image=BUSYBOX, command=["sleep", "1"], wait_s=0)
        await call("job_status", job_id=long["job_id"])
        job = call.last("job")
        assert (job["job_id"], job["result"]["reason"]) == (long["job_id"], "OK"), job
        assert job["call"] == call.last("nested_run")["call"]
        await call("cleanup")
    assert call.last("session")["event"] == "ended"
    assert verify(call.log).broken is None
    assert CANARY not in "".join(path.read_text() for path in call.log.glob("*.jsonl"))


async def test_what_goes_through_a_gate_stands_there(tmp_path: Path) -> None:
    async with Client(server_parameters(tmp_path)) as client:
        call = Asker(client, tmp_path)
        await call("nested_build", files=files(), tags=[BUSYBOX])
        address = (await call("sandbox_endpoint"))["docker_host"]

        def work() -> None:
            with contextlib.closing(docker.DockerClient(base_url=address, version="1.41")) as engine:
                container = engine.containers.create(BUSYBOX, ["true"], environment={"NAME": CANARY}, name="through")
                container.start()
                container.wait()
                container.remove()
                engine.containers.list()
                with pytest.raises(docker.errors.APIError):
                    engine.containers.create(BUSYBOX, ["true"], privileged=True)

        await anyio.to_thread.run_sync(work)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(address.removeprefix("unix://"))
            sock.sendall(b"GET /../../etc HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 403 " in sock.recv(1000)
        with anyio.fail_after(10):
            while len(seen := entries(call.log, Wanted(tool="gate"))) < 5 or any(each.get("open") for each in seen):
                await anyio.sleep(0.05)
    asked = [(each["method"], each["path"], each["decision"], each.get("status")) for each in seen]
    created = asked[0]
    assert created[:2] == ("POST", "/containers/create") and created[2] in ("allowed", "narrowed") and created[3] == 201
    assert seen[0]["query"] == {"name": "through"} and seen[0]["road"] == "user"
    assert [each[:2] for each in asked[1:3]] == [
        ("POST", asked[1][1]),
        ("DELETE", asked[2][1]),
    ], "what only looks or waits is left out"
    assert asked[3][:3] == ("POST", "/containers/create", "refused") and seen[3]["code"] == "POLICY_REFUSED"
    assert (asked[4][0], asked[4][2]) == ("GET", "refused")
    assert CANARY not in "".join(path.read_text() for path in call.log.glob("*.jsonl"))


async def test_what_can_not_be_put_on_record_is_not_done(tmp_path: Path) -> None:
    """But what only looks, or ends something: that is the way out."""
    state = tmp_path / ".state" / "audit"
    async with Client(server_parameters(tmp_path)) as client:
        call = Asker(client, tmp_path)
        await call("start_sandbox")
        (state / "audit.jsonl").rename(state / "kept")
        (state / "audit.jsonl").mkdir()
        refused = await call("start_sandbox")
        assert refused["code"] == "AUDIT_UNAVAILABLE" and str(state / "audit.jsonl") in refused["message"], refused
        assert "MANYOYO_AUDIT" in refused["hint"]
        assert "code" not in await call("sandbox_status")
        assert (await call("cleanup"))["removed"]
        (state / "audit.jsonl").rmdir()
        (state / "kept").rename(state / "audit.jsonl")
        started = await call("start_sandbox")
        assert "sandbox" in started
        lost = [each for each in entries(state, Wanted(tool="log")) if each["event"] == "lost"]
        assert sum(each["records"] for each in lost) >= 3, lost
    assert verify(state).broken is None


async def test_a_killed_servers_calls_stand_there_up_to_its_end(tmp_path: Path) -> None:
    parameters = server_parameters(tmp_path)
    log = tmp_path / ".state" / "audit"
    dockerfile = busybox_context()["Dockerfile"].decode() + '\nRUN ["/bin/busybox", "sleep", "600"]\n'
    lasting = {**files(), "Dockerfile": dockerfile}  # the server's end has to come before the build's
    with pytest.raises(BaseException):  # noqa: B017 - the client's streams end in the middle
        async with Client(parameters) as client:
            await client.call_tool("start_sandbox", {})
            pid = entries(log, Wanted(tool="session"))[0]["pid"]
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "nested_build", {"files": lasting})
                with anyio.fail_after(20):
                    while not entries(log, Wanted(tool="nested_build")):
                        await anyio.sleep(0.005)
                os.kill(pid, signal.SIGKILL)
    entry = entries(log, Wanted(tool="nested_build"))[-1]
    assert entry["arguments"]["files"]["Dockerfile"] == f"{len(dockerfile)} bytes"
    assert entry["open"], entry
    Journal(Files(log, BIG, 3), "required", "0@here", "next").after_now(any_call(1))
    assert verify(log).broken is None
    assert json.loads((log / "audit.jsonl").read_text().splitlines()[-1])["session"] == "next"
