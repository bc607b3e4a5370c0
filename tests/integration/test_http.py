"""Several principals over HTTP: a real server, the SDK's client in both eras of the protocol, live sandboxes."""

import asyncio
import base64
import contextlib
import secrets
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ElicitRequestParams, ElicitResult

from tests.served import Server, code, left, words
from tests.support import BUSYBOX, SLACK, busybox_context

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("http"))
    for name in ("alice", "bob"):
        started.add(name, "read", "run", "build", "admin")
    started.add("reader", "read")
    started.start()
    yield started
    started.stop()
    deadline = time.monotonic() + 30 * SLACK
    while (there := left("alice", "bob", "reader")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not there


async def _start(client: Client, **arguments: Any) -> str:
    started = await client.call_tool("start_sandbox", arguments)
    assert not started.is_error, started.content
    return str(started.structured_content["sandbox"]["sandbox_id"])


async def _busybox(client: Client, sandbox_id: str) -> None:
    files = {name: {"base64": base64.b64encode(data).decode()} for name, data in busybox_context().items()}
    built = await client.call_tool("nested_build", {"sandbox_id": sandbox_id, "files": files, "tags": [BUSYBOX]})
    assert built.structured_content["reason"] == "OK", built.content


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_main_job(server: Server, mode: str) -> None:
    async with server.client("alice", mode) as client:
        sandbox_id = await _start(client)
        missing = await client.call_tool("nested_run", {"image": BUSYBOX, "command": ["true"]})
        assert code(missing) == "SANDBOX_ID_REQUIRED"
        await _busybox(client, sandbox_id)
    async with server.client("alice", mode) as client:  # that one went away; what it began is there
        killed = await client.call_tool(
            "nested_run",
            {"sandbox_id": sandbox_id, "image": BUSYBOX, "command": ["tail", "/dev/zero"], "memory": "32m"},
        )
        assert killed.structured_content["reason"] == "OOM_KILLED"
        assert code(await client.call_tool("cleanup", {})) == "SANDBOX_ID_REQUIRED"
        cleaned = await client.call_tool("cleanup", {"sandbox_id": sandbox_id})
        assert cleaned.structured_content["removed"] == [sandbox_id]


async def test_who_may_come_in(server: Server) -> None:
    server.add("gone", "read")
    json = {"Content-Type": "application/json"}
    async with httpx2.AsyncClient(timeout=60) as http:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic YTpi"}):
            answer = await http.post(server.url, headers=json | headers, content=b"{}")
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer")
        good = json | server.headers("gone")
        assert (await http.post(server.url, headers=good | {"Host": "evil.example"}, content=b"{}")).status_code == 421
        for origin in ("http://evil.example", "null"):
            answer = await http.post(server.url, headers=good | {"Origin": origin}, content=b"{}")
            assert answer.status_code == 403
        large = b" " * ((8 << 20) + 1)
        assert (await http.post(server.url, headers=good, content=large)).status_code == 413
        async with server.client("gone") as client:
            assert not (await client.call_tool("sandbox_status", {})).is_error
        server.tokens.revoke("gone")
        assert (await http.post(server.url, headers=good, content=b"{}")).status_code == 401


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_without_its_scope_is_refused_by_name(server: Server, mode: str) -> None:
    async with server.client("reader", mode) as client:
        assert not (await client.call_tool("sandbox_status", {})).is_error
        for tool, scope in (("start_sandbox", "run"), ("nested_build", "build"), ("sandbox_endpoint", "admin")):
            refused = await client.call_tool(tool, {})
            assert code(refused) == "SCOPE_MISSING" and repr(scope) in words(refused)
    on_record = (server.directory / "state" / "audit" / "audit.jsonl").read_text().splitlines()[-3:]
    assert all('"SCOPE_MISSING"' in line and '/reader"' in line for line in on_record), on_record


async def test_a_session_is_that_of_who_began_it(server: Server) -> None:
    begin = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18",
             "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
    accepted = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(timeout=60) as http:
        begun = await http.post(server.url, headers=accepted | server.headers("alice"), json=begin)
        session = {"Mcp-Session-Id": begun.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-06-18"}
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        for name, status in (("bob", 404), ("alice", 200)):
            answer = await http.post(server.url, headers=accepted | session | server.headers(name), json=ping)
            assert answer.status_code == status


UNKNOWN = {"sandbox": "sb-0123456789abcdef", "job": "run-01234567", "container": "0123456789ab", "checkpoint": "nope"}
ByHandle = Callable[[dict[str, str], str], list[dict[str, Any]]]
ASKED: dict[str, ByHandle] = {
    "start_sandbox": lambda h, own: [{"sandbox_id": h["sandbox"]}, {"from_checkpoint": h["checkpoint"]}],
    "fork_sandbox": lambda h, own: [{"sandbox_id": h["sandbox"]}],
    "checkpoint": lambda h, own: [{"sandbox_id": h["sandbox"], "name": "stolen"}],
    "sandbox_status": lambda h, own: [{"sandbox_id": h["sandbox"]}],
    "sandbox_endpoint": lambda h, own: [{"sandbox_id": h["sandbox"]}],
    "nested_build": lambda h, own: [{"sandbox_id": h["sandbox"], "files": {"Dockerfile": "FROM scratch"}}],
    "nested_run": lambda h, own: [{"sandbox_id": h["sandbox"], "image": BUSYBOX, "command": ["true"]}],
    "nested_exec": lambda h, own: [
        {"sandbox_id": each, "container": h["container"], "command": ["true"]} for each in (h["sandbox"], own)
    ],
    "nested_logs": lambda h, own: [{"sandbox_id": each, "container": h["container"]} for each in (h["sandbox"], own)],
    "nested_list": lambda h, own: [{"sandbox_id": h["sandbox"]}],
    "nested_stop": lambda h, own: [{"sandbox_id": each, "container": h["container"]} for each in (h["sandbox"], own)],
    "job_status": lambda h, own: [{"job_id": h["job"]}],
    "job_cancel": lambda h, own: [{"job_id": h["job"]}],
    "read_log": lambda h, own: [{"job_id": h["job"]}],
    "cleanup": lambda h, own: [
        {"sandbox_id": h["sandbox"]},
        {"sandbox_id": h["sandbox"], "keep_data": True},
        {"checkpoint": h["checkpoint"]},
    ],
}
"""What each tool is asked by somebody whose sandbox is `own`, with the handles `h` of somebody else, or of nobody."""


@pytest.mark.timeout(900)
async def test_what_is_anothers_is_answered_as_what_is_not_there(server: Server) -> None:
    async with server.client("alice") as alice, server.client("bob") as bob:
        tools = {tool.name for tool in (await alice.list_tools()).tools}
        assert tools == set(ASKED), "each tool has a line in ASKED"
        hers, his = await _start(alice, name="web"), await _start(bob, name="web")
        assert hers != his
        await _busybox(alice, hers)
        run = {"sandbox_id": hers, "image": BUSYBOX, "command": ["sleep", "1000"], "detach": True}
        container = (await alice.call_tool("nested_run", run)).structured_content["container"]
        run = {"sandbox_id": hers, "image": BUSYBOX, "command": ["sh", "-c", "echo private; sleep 1000"], "wait_s": 1}
        job = (await alice.call_tool("nested_run", run)).structured_content["job_id"]
        kept = await alice.call_tool("checkpoint", {"sandbox_id": hers, "name": "hers"})
        assert not kept.is_error, kept.content
        handles = {"sandbox": hers, "job": job, "container": container, "checkpoint": "hers"}

        for tool, asked in ASKED.items():
            for forbidden, unknown in zip(asked(handles, his), asked(UNKNOWN, his), strict=True):
                answers = []
                for arguments, of in ((forbidden, handles), (unknown, UNKNOWN)):
                    answer = await bob.call_tool(tool, arguments)
                    told = words(answer)
                    for handle in of.values():
                        told = told.replace(handle, "…")
                    answers.append((code(answer), answer.is_error, told))
                assert answers[0] == answers[1], (tool, forbidden)
                assert answers[0][1] or tool == "cleanup", (tool, answers)
        for uri in (f"manyoyo://jobs/{job}/log", f"manyoyo://jobs/{UNKNOWN['job']}/log"):
            with pytest.raises(Exception, match="JOB_NOT_FOUND"):
                await bob.read_resource(uri)

        listed = words(await bob.call_tool("sandbox_status", {})) + words(await bob.call_tool("job_status", {}))
        assert hers not in listed and job not in listed and "hers" not in listed
        state = (await alice.call_tool("job_status", {"job_id": job, "wait_s": 0})).structured_content["jobs"][0]
        assert state["state"] == "running"
        assert "private" in words(await alice.call_tool("read_log", {"job_id": job}))
        looked = await alice.call_tool("nested_exec", {"sandbox_id": hers, "container": container, "command": ["true"]})
        assert looked.structured_content["reason"] == "OK"

        await bob.call_tool("cleanup", {"scope": "mine"})
        await bob.call_tool("cleanup", {"sandbox_id": "web"})
        assert not (await alice.call_tool("sandbox_status", {"sandbox_id": "web"})).is_error
        for arguments in ({"sandbox_id": hers}, {"checkpoint": "hers"}):
            assert not (await alice.call_tool("cleanup", arguments)).is_error


async def test_slow_and_idle_connections_keep_nobody_from_calling(server: Server) -> None:
    writers = []
    try:
        for number in range(500):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            if number % 2:
                writer.write(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            writers.append(writer)
        async with server.client("alice") as client:
            for _ in range(20):
                assert not (await client.call_tool("job_status", {})).is_error
        slow = {
            b"POST /mcp HTTP/1.1\r\n": b"HTTP/1.1 408 ",
            b"": b"",  # who says nothing is told nothing
            b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\nAuthorization: Bearer "
            + server.secrets["alice"].encode()
            + b"\r\n\r\n{}": b"HTTP/1.1 408 ",
        }
        readers = []
        for said in slow:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writers.append(writer)
            writer.write(said)
            readers.append(reader)
        for reader, answer in zip(readers, slow.values(), strict=True):
            with anyio.fail_after(60 * SLACK):  # 10 s for headers, 30 for the body
                told = await reader.read()
            assert told.startswith(answer) and bool(told) == bool(answer), told
    finally:
        for writer in writers:
            writer.close()


def _certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def test_tls(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    server = Server(tmp_path, {"MANYOYO_HTTP_CERTIFICATE": str(certificate), "MANYOYO_HTTP_KEY": str(key)})
    server.add("alice", "read")
    server.start()
    try:
        url = server.url.replace("http:", "https:")
        trusted = ssl.create_default_context(cafile=str(certificate))
        async with (
            httpx2.AsyncClient(headers=server.headers("alice"), timeout=60, verify=trusted) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            assert not (await client.call_tool("sandbox_status", {})).is_error
        async with httpx2.AsyncClient(timeout=60) as http:
            with pytest.raises(httpx2.HTTPError):
                await http.post(server.url, json={})
    finally:
        server.stop()


async def test_more_calls_than_are_allowed_are_told_when_to_come_again(tmp_path: Path) -> None:
    server = Server(tmp_path, {"MANYOYO_HTTP_RATE": "2"})
    server.add("carol", "read")
    server.start()
    try:
        async with server.client("carol") as client:
            limited = [await client.call_tool("job_status", {}) for _ in range(10)]
        (first, *_) = [each for each in limited if each.is_error]
        assert code(first) == "RATE_LIMITED" and first.meta["org.manyoyo/error"]["details"]["retry_after_s"] > 0
        assert any(each["kind"] == "http" and each["code"] == "RATE_LIMITED" for each in server.records())
    finally:
        server.stop()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
async def test_a_restart_under_load_loses_no_named_sandbox(tmp_path: Path, number: int) -> None:
    """Twenty clients call all the time, before, meanwhile and after; what runs in the named sandbox goes on."""
    server = Server(tmp_path)
    server.add("carol", "read", "run", "build")
    name = f"kept-{secrets.token_hex(4)}"
    answered = [0, 0]
    restarted = over = False
    server.start()
    try:
        async with server.client("carol") as client:
            named, unnamed = await _start(client, name=name), await _start(client)
            await _busybox(client, named)
            run = {"sandbox_id": named, "image": BUSYBOX, "command": ["sleep", "1000"], "detach": True, "name": "web"}
            started = await client.call_tool("nested_run", run)
            assert not started.is_error, started.content

        async def load(tool: str) -> None:
            while not over:
                with contextlib.suppress(Exception):  # the server is gone for a while
                    async with server.client("carol") as one:
                        while not over:
                            if not (await one.call_tool(tool, {"sandbox_id": name})).is_error:
                                answered[restarted] += 1
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as group:
            for index in range(20):
                group.start_soon(load, ("sandbox_status", "nested_list")[index % 2])
            with anyio.fail_after(60 * SLACK):
                while answered[0] < 40:
                    await anyio.sleep(0.1)
            await anyio.to_thread.run_sync(server.stop, number)
            await anyio.to_thread.run_sync(server.start)
            restarted = True
            async with server.client("carol") as client:
                again = await client.call_tool("start_sandbox", {"name": name})
                assert again.structured_content["sandbox"]["sandbox_id"] == named, again.content
                run = {"sandbox_id": named, "container": "web", "command": ["echo", "goes on"]}
                assert "goes on" in words(await client.call_tool("nested_exec", run))
                assert code(await client.call_tool("sandbox_status", {"sandbox_id": unnamed})) == "SANDBOX_NOT_FOUND"
                with anyio.fail_after(60 * SLACK):
                    while answered[1] < 40:
                        await anyio.sleep(0.1)
                over = True
                assert not (await client.call_tool("cleanup", {"sandbox_id": name})).is_error
    finally:
        over = True
        server.stop()
    deadline = time.monotonic() + 60 * SLACK
    while (
        there := [each for each in left("carol") if named in each or unnamed in each]
    ) and time.monotonic() < deadline:
        await anyio.sleep(0.5)
    assert not there


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_no_principal_allows_itself_what_the_operator_did_not(server: Server, mode: str) -> None:
    asked = []

    async def says_yes(context: Any, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params)
        return ElicitResult(action="accept", content={"remember": True})

    async with server.client("alice", mode, elicitation_callback=says_yes) as client:
        result = await client.call_tool("start_sandbox", {"network_allow": ["10.1.2.3:80"]})
    error = (result.meta or {})["org.manyoyo/error"]
    assert error["code"] == "POLICY_REFUSED" and "MANYOYO_APPROVE=network=allow" in error["hint"], error
    assert not asked
