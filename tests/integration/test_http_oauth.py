"""OAuth over HTTP: a real server, a real authorization server, and the SDK's client that finds its way to a token by itself."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from manyoyo_mcp.http.oauth import principal
from manyoyo_mcp.sessions.identity import owner
from tests.authorization import Authorization
from tests.served import Server, code, left, words
from tests.support import SLACK

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
BACK = "http://127.0.0.1:1/callback"


class Stored:
    """Where a client keeps its tokens."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@pytest.fixture(scope="module")
def authorization() -> Iterator[Authorization]:
    started = Authorization()
    yield started
    started.close()


@pytest.fixture(scope="module")
def server(authorization: Authorization, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("oauth"), quiet=True)
    started.settings = {"MANYOYO_OAUTH_ISSUER": authorization.issuer, "MANYOYO_OAUTH_RESOURCE": started.url}
    started.add("dave", "read", "run", "build")
    started.start()
    yield started
    started.stop()
    whose = ["dave", *(principal(authorization.issuer, each) for each in ("robot", "alice", "erin"))]
    deadline = time.monotonic() + 30 * SLACK
    while (there := left(*whose)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not there


@contextlib.asynccontextmanager
async def _connected(server: Server, auth: httpx2.Auth, mode: str = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(auth=auth, timeout=300) as http,
        Client(streamable_http_client(server.url, http_client=http), mode=mode) as client,
    ):
        yield client


def _robot(server: Server, authorization: Authorization, stored: Stored, scope: str | None = None) -> httpx2.Auth:
    robot = authorization.clients["robot"]
    return ClientCredentialsOAuthProvider(
        server.url, stored, robot.client_id, robot.secret, scope=scope, issuer=authorization.issuer
    )


def _person(server: Server, asked: list[str]) -> OAuthClientProvider:
    """An authorization code with PKCE, by a client that registers itself; whoever it sends to the authorization server agrees there."""
    answered: list[AuthorizationCodeResult] = []

    async def redirect(url: str) -> None:
        asked.append(url)
        async with httpx2.AsyncClient() as browser:
            back = (await browser.get(url)).headers["Location"]
        found = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
        answered.append(AuthorizationCodeResult(code=found["code"], state=found.get("state")))

    async def callback() -> AuthorizationCodeResult:
        return answered.pop()

    metadata = OAuthClientMetadata(redirect_uris=[BACK], client_name="test")  # type: ignore[list-item]
    return OAuthClientProvider(server.url, metadata, Stored(), redirect, callback)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_program_gets_in_by_itself(server: Server, authorization: Authorization, mode: str) -> None:
    stored = Stored()
    async with _connected(server, _robot(server, authorization, stored), mode) as client:
        assert code(await client.call_tool("job_status", {})) == "OK"
        assert code(await client.call_tool("nested_run", {"image": "a", "command": ["b"]})) == "SANDBOX_ID_REQUIRED"
    assert stored.tokens is not None and stored.tokens.access_token not in server.log.read_text()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_person_gets_in_and_steps_up(server: Server, authorization: Authorization, mode: str) -> None:
    authorization.user = "alice"
    asked: list[str] = []
    async with _connected(server, _person(server, asked), mode) as client:
        assert code(await client.call_tool("job_status", {})) == "OK"
        assert [parse_qs(urlsplit(url).query)["scope"] for url in asked] == [["read run build"]]
        assert parse_qs(urlsplit(asked[0]).query)["resource"] == [server.url]
        stepped = await client.call_tool("sandbox_endpoint", {"sandbox_id": "sb-0123456789abcdef"})
        assert code(stepped) == "SANDBOX_NOT_FOUND", stepped.content
    scopes = parse_qs(urlsplit(asked[1]).query)["scope"][0].split()
    assert set(scopes) == {"read", "run", "build", "admin"}
    records = server.records()
    came = [each for each in records if each["kind"] == "principal" and each["subject"] == "alice"]
    assert came[0]["owner"] == owner(principal(authorization.issuer, "alice"))
    assert came[0]["issuer"] == authorization.issuer
    refused = [each for each in records if each["kind"] == "http" and each["code"] == "SCOPE_MISSING"]
    assert refused and refused[-1]["owner"] == came[0]["owner"] and refused[-1]["decision"] == "refused"


async def test_what_it_publishes(server: Server, authorization: Authorization) -> None:
    async with httpx2.AsyncClient() as http:
        root = server.url.removesuffix("/mcp") + "/.well-known/oauth-protected-resource"
        for url in (root + "/mcp", root):
            answer = await http.get(url)
            assert answer.status_code == 200
            assert answer.json() == {
                "resource": server.url,
                "authorization_servers": [authorization.issuer],
                "scopes_supported": ["read", "run", "build", "admin"],
                "bearer_methods_supported": ["header"],
                "resource_name": "manyoyo-mcp",
            }
            assert (await http.post(url, json={})).status_code == 405
        without = await http.post(server.url, headers=JSON, content=b"{}")
        bad = await http.post(server.url, headers=JSON | {"Authorization": "Bearer a.b.c"}, content=b"{}")
    assert without.status_code == bad.status_code == 401
    end = f'scope="read run build", resource_metadata="{root}/mcp"'
    assert without.headers["WWW-Authenticate"] == f"Bearer {end}"
    told = 'error="invalid_token", error_description="This token is not good here."'
    assert bad.headers["WWW-Authenticate"] == f"Bearer {told}, {end}"


def _call(tool: str) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}, "_meta": meta}}


async def _post(server: Server, token: str, tool: str = "job_status") -> httpx2.Response:
    named = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool}
    async with httpx2.AsyncClient(timeout=60) as http:
        return await http.post(
            server.url, headers=JSON | named | {"Authorization": f"Bearer {token}"}, json=_call(tool)
        )


async def test_a_missing_scope_is_named(server: Server, authorization: Authorization) -> None:
    token = authorization.token(server.url, sub="erin", scope="read")
    assert (await _post(server, token)).status_code == 200
    answer = await _post(server, token, "nested_build")
    assert answer.status_code == 403 and "SCOPE_MISSING" in answer.text
    told = answer.headers["WWW-Authenticate"]
    assert 'error="insufficient_scope"' in told and 'scope="build"' in told and "resource_metadata=" in told
    none = authorization.token(server.url, sub="erin", scope="")
    assert (await _post(server, none)).status_code == 403


async def test_what_gets_nobody_in(server: Server, authorization: Authorization) -> None:
    good = authorization.token(server.url, sub="erin")
    for token in (
        authorization.token("https://else.example/mcp", sub="erin"),
        authorization.token(server.url, iss="https://else.example"),
        authorization.token(server.url, exp=int(time.time()) - 60),
        good[:-2],
        good + "." + good,
        "x" * 20_000,
        server.secrets["dave"] + "x",
    ):
        answer = await _post(server, token)
        assert answer.status_code == 401, answer.text
    assert (await _post(server, good)).status_code == 200
    async with httpx2.AsyncClient() as http:
        twice = [*JSON.items(), ("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")]
        assert (await http.post(server.url, headers=twice, json=_call("job_status"))).status_code == 401
        asked = await http.post(f"{server.url}?access_token={good}", headers=JSON, json=_call("job_status"))
        assert asked.status_code == 401
    written = server.log.read_text() + json.dumps(server.records())
    assert good not in written and good.rsplit(".", 1)[1] not in written
    unknown = [each for each in server.records() if each.get("code") == "UNAUTHENTICATED"]
    assert unknown and unknown[0]["address"] == "127.0.0.1"


@pytest.mark.timeout(600)
async def test_users_of_both_kinds_see_nothing_of_each_other(server: Server, authorization: Authorization) -> None:
    stored, asked = Stored(), list[str]()
    authorization.user = "erin"
    async with (
        _connected(server, _robot(server, authorization, stored)) as robot,
        _connected(server, _person(server, asked)) as erin,
        server.client("dave") as dave,
    ):
        started = await robot.call_tool("start_sandbox", {"name": "web"})
        assert not started.is_error, started.content
        box = started.structured_content["sandbox"]["sandbox_id"]
        for other in (erin, dave):
            for tool in ("sandbox_status", "nested_list", "fork_sandbox", "cleanup"):
                answers = []
                for handle in (box, "sb-0123456789abcdef"):
                    answer = await other.call_tool(tool, {"sandbox_id": handle})
                    answers.append((code(answer), words(answer).replace(handle, "…")))
                assert answers[0] == answers[1]
            assert box not in words(await other.call_tool("sandbox_status", {}))
            assert code(await other.call_tool("sandbox_status", {"sandbox_id": "web"})) == "SANDBOX_NOT_FOUND"
        assert code(await robot.call_tool("sandbox_status", {"sandbox_id": "web"})) == "OK"
        assert not (await robot.call_tool("cleanup", {"sandbox_id": "web"})).is_error


async def test_a_session_goes_on_with_a_new_token_and_with_no_others(
    server: Server, authorization: Authorization
) -> None:
    begin = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18",
             "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
    async with httpx2.AsyncClient(timeout=60) as http:

        async def ask(subject: str, message: Any, **more: str) -> httpx2.Response:
            token = authorization.token(server.url, sub=subject, jti=str(time.monotonic_ns()))
            return await http.post(server.url, headers=JSON | more | {"Authorization": f"Bearer {token}"}, json=message)

        begun = await ask("alice", begin)
        session = {"Mcp-Session-Id": begun.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-06-18"}
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        assert (await ask("erin", ping, **session)).status_code == 404
        assert (await ask("alice", ping, **session)).status_code == 200


async def test_without_its_authorization_server(tmp_path: Path) -> None:
    authorization = Authorization()
    server = Server(tmp_path)
    server.settings = {"MANYOYO_OAUTH_ISSUER": authorization.issuer, "MANYOYO_OAUTH_RESOURCE": server.url}
    try:
        authorization.down = True
        server.start()  # which asks it for nothing yet
        answer = await _post(server, authorization.token(server.url, scope="read"))
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert "WWW-Authenticate" not in answer.headers  # for it is no fault of the token's
    finally:
        server.stop()
        authorization.close()


async def test_as_many_users_as_are_served_at_a_time(tmp_path: Path) -> None:
    authorization = Authorization()
    server = Server(tmp_path, {"MANYOYO_HTTP_PRINCIPALS": "2", "MANYOYO_HTTP_RATE": "3"})
    server.settings |= {"MANYOYO_OAUTH_ISSUER": authorization.issuer, "MANYOYO_OAUTH_RESOURCE": server.url}
    whose = [principal(authorization.issuer, f"u{number}") for number in range(5)]
    try:
        server.start()
        tokens = [authorization.token(server.url, sub=f"u{number}") for number in range(5)]
        for token in tokens[:4]:  # who has nothing makes room
            assert '"isError":true' not in (await _post(server, token)).text.replace(" ", "")
        for token in tokens[:2]:
            async with (
                httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=300) as http,
                Client(streamable_http_client(server.url, http_client=http)) as client,
            ):
                started = await client.call_tool("start_sandbox", {})
                assert not started.is_error, started.content
        assert "RATE_LIMITED" in (await _post(server, tokens[4])).text
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {tokens[0]}"}, timeout=300) as http,
            Client(streamable_http_client(server.url, http_client=http)) as client,
        ):
            await anyio.sleep(1)
            assert not (await client.call_tool("cleanup", {"scope": "mine"})).is_error
        assert "RATE_LIMITED" not in (await _post(server, tokens[4])).text
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(_post, server, tokens[4])
        server.stop()
        limited = [each for each in server.records() if each.get("code") == "RATE_LIMITED"]
        assert {each["owner"] for each in limited} == {owner(whose[4])}
        assert all(each["kind"] == "http" and each["decision"] == "refused" for each in limited)
        assert 2 <= len(limited) <= 24 and limited[-1]["more"] > 10  # what was only counted is told at the end
    finally:
        server.stop()
        authorization.close()
    deadline = time.monotonic() + 60 * SLACK
    while (there := left(*whose)) and time.monotonic() < deadline:
        await anyio.sleep(0.5)
    assert not there
