"""Tokens, scopes, limits and addresses of the server over HTTP: what needs no sandbox."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from manyoyo_mcp.cli.main import HTTP_ADDRESS, with_address
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument, NameConflict, NotFound, ScopeMissing
from manyoyo_mcp.http import limits
from manyoyo_mcp.http.callers import Callers, Nobody
from manyoyo_mcp.http.limits import Sessions
from manyoyo_mcp.http.serving import address_of, security, tokens_for
from manyoyo_mcp.http.tokens import Tokens
from manyoyo_mcp.sessions import names
from manyoyo_mcp.sessions.budgets import Amount, Budgets
from manyoyo_mcp.sessions.identity import Identity, owner, principal_of
from manyoyo_mcp.sessions.principals import USER, Bucket, Caller
from manyoyo_mcp.tools import TOOLS


def test_a_token_is_known_by_its_hash_alone_until_it_is_revoked(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.add("alice", ["read", "run"])
    assert token not in tokens.path.read_text()
    assert tokens.path.stat().st_mode & 0o777 == 0o600
    caller = tokens.caller(token)
    assert caller == Caller("alice", frozenset({"read", "run"}))
    assert tokens.caller(token[:-1]) is None and tokens.caller("") is None
    Tokens(tokens.path).revoke("alice")  # by another process
    assert tokens.caller(token) is None


def test_a_token_file_that_others_can_read_opens_to_nobody(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    token = tokens.add("alice", ["read"])
    tokens.path.chmod(0o644)
    fresh = Tokens(tokens.path)
    assert fresh.caller(token) is None
    with pytest.raises(InvalidArgument, match="read by others"):
        fresh.all()
    tokens.path.chmod(0o600)
    assert fresh.caller(token) is not None
    tokens.path.unlink()
    assert fresh.caller(token) is None


def test_a_principal_has_one_token_with_scopes_that_there_are(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    tokens.add("alice", ["admin"])
    with pytest.raises(NameConflict):
        tokens.add("alice", ["read"])
    for name, scopes in (("a/b", ["read"]), ("", ["read"]), ("bob", []), ("bob", ["write"])):
        with pytest.raises(InvalidArgument):
            tokens.add(name, scopes)
    with pytest.raises(NotFound, match="TOKEN_NOT_FOUND"):
        tokens.revoke("bob")


def test_scopes() -> None:
    Caller("a", frozenset({"admin"})).need("build")
    with pytest.raises(ScopeMissing):
        Caller("a", frozenset({"read", "run"})).need("build")
    scopes = {tool.name: tool.scope for tool in TOOLS}
    assert {name for name, scope in scopes.items() if scope == "read"} == {
        tool.name for tool in TOOLS if tool.annotations is not None and tool.annotations.read_only_hint
    }
    assert (scopes["nested_build"], scopes["sandbox_endpoint"], scopes["nested_run"]) == ("build", "admin", "run")


def test_a_bucket_says_when_there_is_more() -> None:
    bucket = Bucket(2, 3)
    begun = bucket._since
    assert [bucket.take(begun) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(begun) == pytest.approx(0.5)
    assert bucket.take(begun + 0.5) == 0
    assert bucket.take(begun + 0.5) > 0
    assert [bucket.take(begun + 100) for _ in range(4)][:3] == [0, 0, 0]


@pytest.mark.parametrize("words", ["127.0.0.1", ":80", "host:", "host:0", "host:70000", "host:x", ""])
def test_what_is_no_address(words: str) -> None:
    with pytest.raises(InvalidArgument):
        address_of(words)


def test_addresses() -> None:
    assert address_of("[::1]:8765") == ("::1", 8765)
    assert with_address(["serve", "--http"]) == ["serve", "--http", HTTP_ADDRESS]
    assert with_address(["serve", "--http", "--warm", "1"]) == ["serve", "--http", HTTP_ADDRESS, "--warm", "1"]
    assert with_address(["serve", "--http", "a:1"]) == ["serve", "--http", "a:1"]
    assert with_address(["exec", "--http"]) == ["exec", "--http"]


def test_another_address_than_loopback_needs_tokens_hosts_and_tls(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens_for(Settings(http_tokens=path), "127.0.0.1")
    with pytest.raises(InvalidArgument, match="must have a token"):
        tokens_for(Settings(http_tokens=path), "0.0.0.0")
    Tokens(path).add("alice", ["read"])
    with pytest.raises(InvalidArgument, match="Host headers"):
        tokens_for(Settings(http_tokens=path), "0.0.0.0")
    with pytest.raises(InvalidArgument, match="unencrypted"):
        tokens_for(Settings(http_tokens=path, http_hosts=["a.example"]), "0.0.0.0")
    settings = Settings(http_tokens=path, http_hosts=["a.example"], http_tls="off")
    tokens_for(settings, "0.0.0.0")
    assert security(settings, "0.0.0.0").allowed_hosts == ["a.example"]
    assert security(settings, "0.0.0.0").allowed_origins == []
    with pytest.raises(InvalidArgument, match="certificate and its key"):
        tokens_for(Settings(http_tokens=path, http_certificate=path), "127.0.0.1")
    Tokens(path).revoke("alice")
    with pytest.raises(InvalidArgument, match="must have a token"):
        tokens_for(settings, "0.0.0.0")


@pytest.mark.anyio
async def test_a_server_that_asks_nobody_does_so_from_its_first_token_on(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    callers = Callers(tokens, None)
    assert await callers.find([]) == USER
    token = tokens.add("alice", ["read"])
    assert (await callers.find([(b"authorization", f"Bearer {token}".encode())])).principal == "alice"
    for change in (lambda: None, lambda: tokens.revoke("alice"), tokens.path.unlink):
        change()
        with pytest.raises(Nobody):
            await callers.find([])


def test_a_principal_is_an_owner_of_its_own() -> None:
    labels = Identity(owner("alice")).labels()
    assert labels["owner"] == f"{owner()}/alice" and labels["user"] == owner()
    assert "user" not in Identity().labels()
    assert principal_of(owner("alice")) == "alice" and principal_of(owner()) == ""
    assert len({names.sandbox_id(whose, "web") for whose in (owner(), owner("alice"), owner("bob"))}) == 3


def test_what_one_principal_is_about_to_take_is_not_the_others(tmp_path: Path) -> None:
    settings = Settings(runtime_dir=tmp_path, state_dir=tmp_path)
    alice, bob = (Budgets(settings, None, owner(name)) for name in ("alice", "bob"))  # type: ignore[arg-type]
    alice.count("sb-1", Amount(1, 4.0, 100, 0))
    need = Amount(1, 1.0, 10, 0)
    assert bob.coming("sb-2", need, owner("bob")) == need
    assert bob.coming("sb-2", need) == Amount(2, 5.0, 110, 0)
    assert alice.coming("sb-3", need, owner("alice")) == Amount(2, 5.0, 110, 0)


def test_one_principal_can_not_have_all_sessions() -> None:
    alice, bob = Sessions(2), Sessions(2)
    for session in (b"1", b"1", b"2"):
        assert not alice.full()
        alice.use(session)
    assert alice.full() and not bob.full()
    bob.end(b"1")
    assert alice.full()
    alice.end(b"1")
    assert not alice.full()


def test_sessions_of_long_ago_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(10**6)
    for number in range(100):
        monkeypatch.setattr(time, "monotonic", lambda number=number: number * limits.SESSION_S)
        sessions.use(b"%d" % number)
        assert len(sessions._used) <= 2


def test_nothing_of_it_is_loaded_where_stdio_is_served() -> None:
    look = (
        "import sys, manyoyo_mcp.server; print([name for name in sys.modules if name.startswith('manyoyo_mcp.http')])"
    )
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "[]\n"
