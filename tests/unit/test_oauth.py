"""Access tokens: what is taken of an authorization server's, and what a forger, a thief or another server's client can't get in with."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.http import asking, keys
from manyoyo_mcp.http.door import needed
from manyoyo_mcp.http.judging import LONGEST, Asked
from manyoyo_mcp.http.keys import ALGORITHMS
from manyoyo_mcp.http.oauth import OAuth, check, open_oauth, principal
from manyoyo_mcp.http.tokens import Tokens
from tests.authorization import Authorization, jwk, private_key

pytestmark = pytest.mark.anyio
RESOURCE = "https://box.example.org/mcp"


@pytest.fixture
def server() -> Iterator[Authorization]:
    started = Authorization()
    yield started
    started.close()


def _settings(server: Authorization, **more: Any) -> Settings:
    return Settings(oauth_issuer=server.issuer, oauth_resource=RESOURCE, **more)


@pytest.fixture
async def oauth(server: Authorization) -> AsyncIterator[OAuth]:
    async with open_oauth(_settings(server)) as opened:
        assert opened is not None
        yield opened


async def test_a_token_for_this_server_is_taken(server: Authorization, oauth: OAuth) -> None:
    caller = await oauth.caller(server.token(RESOURCE, scope="read admin other"))
    assert caller is not None and caller.scopes == {"read", "admin"}
    assert (caller.issuer, caller.subject) == (server.issuer, "alice")
    assert caller.principal == principal(server.issuer, "alice")
    other = await oauth.caller(server.token(RESOURCE, sub="bob", aud=["https://else.example", RESOURCE]))
    assert other is not None and other.principal != caller.principal
    listed = await oauth.caller(server.token(RESOURCE, scope=None, scp=["read", 7], typ=None))
    assert listed is not None and listed.scopes == {"read"}


@pytest.mark.parametrize(("kind", "algorithm"), [("RSA", "RS512"), ("RSA", "PS256"), ("EC", "ES256"), ("OKP", "EdDSA")])
async def test_what_it_may_be_signed_with(server: Authorization, oauth: OAuth, kind: str, algorithm: str) -> None:
    server.rotate(kind)
    token = server.token(RESOURCE, algorithm=algorithm)
    assert await oauth.caller(token) is not None
    server.keys[0]["alg"] = "RS256" if algorithm != "RS256" else "RS384"  # the key is for something else
    async with open_oauth(_settings(server)) as again:
        assert again is not None and await again.caller(token) is None


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "for another server": {"aud": "https://else.example/mcp"},
    "for several others": {"aud": ["https://else.example/mcp", "https://box.example.org"]},
    "for a part of the address": {"aud": "https://box.example.org/"},
    "for the address and more": {"aud": RESOURCE + "/"},
    "for nobody": {"aud": None},
    "for an empty list": {"aud": []},
    "for a thing": {"aud": {"0": RESOURCE}},
    "of another issuer": {"iss": "https://issuer.example"},
    "of no issuer": {"iss": None},
    "of nobody": {"sub": None},
    "of an empty name": {"sub": ""},
    "of a number": {"sub": 7},
    "of a very long name": {"sub": "a" * 1001},
    "without an end": {"exp": None},
    "over": {"exp": -31},
    "of no time": {"exp": "soon"},
    "of endless time": {"exp": float("inf")},
    "not yet good": {"nbf": 40},
    "of the future": {"iat": 40},
    "bound to a key": {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
}


def _timed(claims: dict[str, Any]) -> dict[str, Any]:
    return {
        name: int(time.time()) + value if name in ("exp", "nbf", "iat") and isinstance(value, int) else value
        for name, value in claims.items()
    }


@pytest.mark.parametrize("how", list(BAD_CLAIMS))
async def test_what_it_says_counts(server: Authorization, oauth: OAuth, how: str) -> None:
    claims = _timed(BAD_CLAIMS[how])
    iss = claims.pop("iss", server.issuer)
    sub = claims.pop("sub", "alice")
    header = {"kid": server.kid, "alg": "RS256"}
    said = {"iss": iss, "aud": RESOURCE, "sub": sub, "scope": "admin", "exp": int(time.time()) + 300, **claims}
    said = {name: value for name, value in said.items() if value is not None}
    assert await oauth.caller(_signed(header, said, server.key)) is None


def _part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _signed(header: dict[str, Any], claims: Any, key: Any) -> str:
    """By hand: the library refuses to make some of these."""
    signed = f"{_part(header)}.{_part(claims)}"
    return f"{signed}.{_part(jwt.get_algorithm_by_name('RS256').sign(signed.encode(), key))}"


@pytest.mark.parametrize("claims", [{"exp": -20}, {"nbf": 20}, {"iat": 20}], ids=["exp", "nbf", "iat"])
async def test_clocks_may_differ_by_half_a_minute(server: Authorization, oauth: OAuth, claims: dict[str, Any]) -> None:
    assert await oauth.caller(server.token(RESOURCE, **_timed(claims))) is not None


async def test_forged_signatures(server: Authorization, oauth: OAuth) -> None:
    good = server.token(RESOURCE, scope="admin")
    head, said, signature = good.split(".")
    public = server.key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = json.loads(base64.urlsafe_b64decode(said + "=="))
    mine = private_key("RSA")
    forged = {
        "none": f"{_part({'alg': 'none', 'kid': server.kid})}.{said}.",
        "None": f"{_part({'alg': 'None', 'kid': server.kid})}.{said}.{signature}",
        "no algorithm": f"{_part({'kid': server.kid})}.{said}.{signature}",
        "a list of them": f"{_part({'alg': ['RS256'], 'kid': server.kid})}.{said}.{signature}",
        "no signature": f"{head}.{said}.",
        "another's signature": server.token(RESOURCE, key=mine, scope="admin"),
        "its own key": server.token(RESOURCE, key=mine, headers={"jwk": jwk(mine, server.kid), "kid": server.kid}),
        "its own key, without a name": server.token(RESOURCE, key=mine, headers={"jwk": jwk(mine, "x"), "kid": None}),
        "an unknown key": server.token(RESOURCE, headers={"kid": "unknown"}),
        "a key that is no name": f"{_part({'alg': 'RS256', 'kid': {'a': 1}})}.{said}.{signature}",
        "other claims": f"{head}.{_part(claims | {'sub': 'root'})}.{signature}",
        "a header that must be understood": _signed({"alg": "RS256", "kid": server.kid, "crit": ["x"], "x": 1}, claims, server.key),
        "a detached payload": _signed({"alg": "RS256", "kid": server.kid, "b64": False, "crit": ["b64"]}, claims, server.key),
        "another kind of token": _signed({"alg": "RS256", "kid": server.kid, "typ": "logout+jwt"}, claims, server.key),
        "claims that are none": _signed({"alg": "RS256", "kid": server.kid}, ["admin"], server.key),
        "deep claims": _signed({"alg": "RS256", "kid": server.kid}, b"[" * 2000, server.key),
        "a deep header": f"{_part(b'[' * 2000)}.{said}.{signature}",
        "too long": server.token(RESOURCE, more="a" * LONGEST),
        "no token": "a.b.c",
        "two parts": "a.b",
        "nothing": "",
        "other letters": good + "é",
        "a space": good + " ",
    }  # fmt: skip
    for secret in (pem, pem.strip(), _part({"n": jwk(server.key, "")["n"]}).encode(), b""):
        for algorithm in ("HS256", "HS512"):
            signed = f"{_part({'alg': algorithm, 'kid': server.kid})}.{said}"
            made = jwt.get_algorithm_by_name(algorithm).sign(signed.encode(), secret)
            forged[f"{algorithm} with {secret[:9]!r} of {len(secret)}"] = f"{signed}.{_part(made)}"
    for how, token in forged.items():
        assert await oauth.caller(token) is None, how
    assert await oauth.caller(good) is not None


async def test_no_token_has_this_server_ask_elsewhere(server: Authorization, oauth: OAuth) -> None:
    attacker = Authorization()
    attacker.rotate()
    try:
        for header in ("jku", "x5u"):
            url = f"{attacker.issuer}/keys"
            token = attacker.token(RESOURCE, iss=server.issuer, headers={header: url, "kid": attacker.kid})
            assert await oauth.caller(token) is None
        token = attacker.token(RESOURCE, iss=attacker.issuer)
        assert await oauth.caller(token) is None
        assert attacker.asked == []
    finally:
        attacker.close()


async def test_keys_that_verify_what_also_signs_are_none(server: Authorization) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).decode()
    server.keys.append({"kty": "oct", "k": secret, "kid": "shared", "alg": "HS256"})
    other = private_key("EC")
    server.keys.append(jwk(other, "enc", use="enc"))
    async with open_oauth(_settings(server)) as oauth:
        assert oauth is not None
        token = server.token(RESOURCE, key=b"s" * 32, algorithm="HS256", headers={"kid": "shared"})
        assert await oauth.caller(token) is None
        token = server.token(RESOURCE, key=other, algorithm="ES256", headers={"kid": "enc"})
        assert await oauth.caller(token) is None  # a key to encrypt with
        assert await oauth.caller(server.token(RESOURCE)) is not None


async def test_a_token_that_names_no_key_has_the_only_one(server: Authorization) -> None:
    token = server.token(RESOURCE, headers={"kid": None})
    async with open_oauth(_settings(server)) as oauth:
        assert oauth is not None and await oauth.caller(token) is not None
    server.rotate("EC", keep=True)
    async with open_oauth(_settings(server)) as oauth:
        assert oauth is not None and await oauth.caller(token) is not None  # of its kind
    server.keys.append(jwk(private_key("RSA"), "another"))
    async with open_oauth(_settings(server)) as oauth:
        assert oauth is not None and await oauth.caller(token) is None


@pytest.mark.parametrize(
    ("more", "good"),
    [
        ({}, True),
        ({"iss": None}, True),
        ({"exp": None}, True),
        ({"aud": ["a", RESOURCE]}, True),
        ({"active": False}, False),
        ({"active": "true"}, False),
        ({"active": None}, False),
        ({"iss": "https://else.example"}, False),
        ({"aud": None}, False),
        ({"aud": {RESOURCE: 1}}, False),
        ({"aud": [[RESOURCE]]}, False),
        ({"sub": None}, False),
        ({"exp": 1}, False),
        ({"nbf": 1e12}, False),
        ({"nbf": "soon"}, False),
        ({"token_type": "DPoP"}, False),
        ({"cnf": {"jkt": "a"}}, False),
    ],
    ids=str,
)
async def test_an_answer_about_a_token(more: dict[str, Any], good: bool) -> None:
    said = {
        "active": True,
        "iss": "https://a.example",
        "aud": RESOURCE,
        "sub": "alice",
        "exp": time.time() + 60,
        **more,
    }
    said = {name: value for name, value in said.items() if value is not None}
    async with asking.client() as http:
        asked = Asked(http, "https://a.example/i", ("box", "secret"), "https://a.example", RESOURCE)
        assert (asked._judged(said) is not None) is good


async def test_keys_change(server: Authorization, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "AGAIN_S", 0.5)
    async with open_oauth(_settings(server)) as oauth:
        assert oauth is not None
        old = server.token(RESOURCE)
        assert await oauth.caller(old) is not None
        server.rotate(keep=True)
        await anyio.sleep(0.6)
        assert await oauth.caller(server.token(RESOURCE)) is not None  # by a name not known before
        assert await oauth.caller(old) is not None
        server.rotate()
        monkeypatch.setattr(keys, "FRESH_S", 0)
        await anyio.sleep(0.6)
        assert await oauth.caller(old) is None  # withdrawn
        assert await oauth.caller(server.token(RESOURCE)) is not None


async def test_made_up_keys_make_no_storm(server: Authorization, oauth: OAuth) -> None:
    tokens = [server.token(RESOURCE, headers={"kid": f"k{number}"}) for number in range(50)]
    found: list[Any] = []

    async def ask(token: str) -> None:
        found.append(await oauth.caller(token))

    async with anyio.create_task_group() as group:
        for token in tokens:
            group.start_soon(ask, token)
    assert found == [None] * 50
    assert server.asked.count("/keys") == 1
    assert await oauth.caller(server.token(RESOURCE)) is not None


async def test_a_server_that_does_not_answer(server: Authorization, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "AGAIN_S", 0)
    server.down = True
    async with open_oauth(_settings(server)) as oauth:
        assert oauth is not None
        token = server.token(RESOURCE)
        with pytest.raises(asking.Unavailable) as raised:
            await oauth.caller(token)
        assert token not in str(raised.value)
        server.down = False
        assert await oauth.caller(token) is not None
        server.down = True
        monkeypatch.setattr(keys, "FRESH_S", 0)
        assert await oauth.caller(token) is not None  # with the keys that it had
        monkeypatch.setattr(keys, "KEPT_S", 0)
        with pytest.raises(asking.Unavailable):
            await oauth.caller(token)


@pytest.mark.parametrize("kind", ["RSA", "EC", "OKP"])
async def test_broken_keys_hinder_no_others(server: Authorization, kind: str) -> None:
    server.keys += [{"kty": kind, "kid": "broken"}, {"kty": kind, "kid": "odd", "n": 7, "x": "?"}, "none", None, {}]  # type: ignore[list-item]
    async with open_oauth(_settings(server)) as oauth:
        assert oauth is not None
        for kid in ("broken", "odd"):
            for algorithm in ALGORITHMS[kind]:
                header, said = {"alg": algorithm, "kid": kid}, {"sub": "a"}
                assert await oauth.caller(f"{_part(header)}.{_part(said)}.AAAA") is None
        assert await oauth.caller(server.token(RESOURCE)) is not None


async def test_what_is_asked_over_http(server: Authorization) -> None:
    import flask

    app = flask.Flask(__name__)
    for path, answer in {
        "moved": lambda: flask.redirect(f"{server.issuer}/keys"),
        "long": lambda: {"keys": ["a" * asking.LARGEST]},
        "list": lambda: [1],
        "text": lambda: "[" * 100_000,
        "slow": lambda: time.sleep(6) or {},
    }.items():
        app.add_url_rule(f"/{path}", path, answer)
    from werkzeug.serving import make_server

    odd = make_server("127.0.0.1", 0, app, threaded=True)
    with anyio.from_thread.start_blocking_portal() as portal:
        portal.start_task_soon(anyio.to_thread.run_sync, odd.serve_forever)
        try:
            async with asking.client() as http:
                for path in ("moved", "long", "list", "text", "slow", "nothing"):
                    with pytest.raises(asking.Unavailable):
                        await asking.ask(http, f"http://127.0.0.1:{odd.server_port}/{path}")
                assert server.asked == []
                for url in (
                    "http://192.0.2.1/keys",
                    "file:///etc/passwd",
                    "https://u:p@127.0.0.1/",
                    "http://127.0.0.1:x/",
                ):
                    with pytest.raises(asking.Unavailable, match="without TLS"):
                        await asking.ask(http, url)
        finally:
            odd.shutdown()
            odd.server_close()


async def test_metadata_of_another_issuer_lead_to_no_keys(server: Authorization) -> None:
    token = server.token(RESOURCE)
    async with open_oauth(Settings(oauth_issuer=server.issuer + "/tenant", oauth_resource=RESOURCE)) as oauth:
        assert oauth is not None
        with pytest.raises(asking.Unavailable):
            await oauth.caller(token)
    real, server.issuer = server.issuer, server.issuer + "/other"
    async with open_oauth(Settings(oauth_issuer=real, oauth_resource=RESOURCE)) as oauth:
        assert oauth is not None
        with pytest.raises(asking.Unavailable):
            await oauth.caller(token)
    assert "/keys" not in server.asked
    server.issuer = real
    async with open_oauth(_settings(server, oauth_jwks=f"{server.issuer}/keys")) as named:
        assert named is not None and await named.caller(token) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"oauth_issuer": "https://a.example"},
        {"oauth_resource": RESOURCE},
        {"oauth_issuer": "http://a.example", "oauth_resource": RESOURCE},
        {"oauth_issuer": "https://a.example?x", "oauth_resource": RESOURCE},
        {"oauth_issuer": "https://a.example", "oauth_resource": "box.example.org/mcp"},
        {"oauth_issuer": "https://a.example", "oauth_resource": RESOURCE, "oauth_jwks": "file:///etc/passwd"},
        {"oauth_issuer": "https://a.example", "oauth_resource": RESOURCE, "oauth_introspection": "https://a.example/i"},
        {"oauth_issuer": "https://a.example", "oauth_resource": RESOURCE, "oauth_scope_prefix": 'a"'},
        {"oauth_issuer": "https://a.example", "oauth_resource": RESOURCE, "oauth_scope_prefix": "a b"},
    ],
    ids=str,
)
def test_what_is_set_wrong(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="INVALID_ARGUMENT"):
        check(Settings(**wrong))


async def test_the_address_counts_as_it_is_published(server: Authorization) -> None:
    settings = Settings(oauth_issuer=server.issuer, oauth_resource="https://BOX.example.org:443/mcp")
    async with open_oauth(settings) as oauth:
        assert oauth is not None
        assert await oauth.caller(server.token(RESOURCE)) is not None
        assert "https://box.example.org/.well-known/oauth-protected-resource/mcp" in oauth.challenge(given=False)
    async with open_oauth(_settings(server, oauth_audience="box")) as other:
        assert other is not None and await other.caller(server.token(RESOURCE)) is None
        assert await other.caller(server.token("box")) is not None


async def test_an_issuer_with_tls_has_no_keys_without(server: Authorization, monkeypatch: pytest.MonkeyPatch) -> None:
    from manyoyo_mcp.http import oauth as module

    issuer = "https://issuer.example"

    async def metadata(_: Any, url: str) -> dict[str, Any]:
        assert url.startswith(issuer), url
        return {"issuer": issuer, "jwks_uri": f"{server.issuer}/keys"}

    monkeypatch.setattr(module.asking, "ask", metadata)
    async with open_oauth(Settings(oauth_issuer=issuer, oauth_resource=RESOURCE)) as oauth:
        assert oauth is not None
        with pytest.raises(asking.Unavailable):
            await oauth.caller(server.token(RESOURCE, iss=issuer))


async def test_scopes_by_another_name(server: Authorization) -> None:
    async with open_oauth(_settings(server, oauth_scope_prefix="manyoyo:")) as oauth:
        assert oauth is not None
        caller = await oauth.caller(server.token(RESOURCE, scope="manyoyo:read admin"))
        assert caller is not None and caller.scopes == {"read"}
        assert 'scope="manyoyo:build"' in oauth.lacking("build")


def test_no_two_have_one_name(tmp_path: Path) -> None:
    pairs = [("https://a", "b"), ("https://a/", "b"), ("https://ab", ""), ("https://a", 'b", "c'), ("https://a", "B")]
    assert len({principal(*pair) for pair in pairs}) == len(pairs)
    with pytest.raises(InvalidArgument):
        Tokens(tmp_path / "tokens.json").add(principal("https://a", "b"), ["admin"])
    path = tmp_path / "by-hand.json"
    path.write_text(
        json.dumps({"tokens": [{"name": principal("https://a", "b"), "scopes": [], "sha256": "", "created": 0}]})
    )
    path.chmod(0o600)
    with pytest.raises(InvalidArgument, match="no name"):
        Tokens(path).all()


@pytest.mark.parametrize(
    ("message", "scope"),
    [
        ({"method": "tools/call", "params": {"name": "nested_build"}}, "build"),
        ({"method": "tools/call", "params": {"name": "job_status"}}, "read"),
        ({"method": "tools/call", "params": {"name": "nothing"}}, None),
        ({"method": "tools/call", "params": {"name": ["nested_build"]}}, None),
        ({"method": "tools/call"}, None),
        ({"method": "resources/read", "params": {}}, "read"),
        ({"method": "tools/list"}, None),
        ([{"method": "tools/call", "params": {"name": "nested_build"}}], None),
    ],
    ids=str,
)
def test_the_scope_that_a_message_needs(message: Any, scope: str | None) -> None:
    assert needed(json.dumps(message).encode()) == scope


def test_what_is_no_message_needs_no_scope() -> None:
    for body in (b"", b"{", b"[" * 100_000, b"\xff", b"7"):
        assert needed(body) is None


async def test_opaque_tokens_are_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    from manyoyo_mcp.http import judging

    monkeypatch.setattr(judging, "REMEMBERED_S", 0.5)
    server = Authorization(opaque=True)
    secret = tmp_path / "secret"
    secret.write_text(server.clients["box"].secret + "\n")
    asked = {
        "oauth_introspection": f"{server.issuer}/introspect",
        "oauth_client": "box",
        "oauth_client_secret": secret,
    }
    try:
        robot = server.clients["robot"]
        async with httpx2.AsyncClient(auth=(robot.client_id, robot.secret)) as http:
            got = [
                (
                    await http.post(
                        f"{server.issuer}/token",
                        data={"grant_type": "client_credentials", "scope": "read run", "resource": resource},
                    )
                ).json()["access_token"]
                for resource in (RESOURCE, "https://else.example/mcp", RESOURCE)
            ]
        async with open_oauth(_settings(server, **asked)) as oauth:
            assert oauth is not None
            caller = await oauth.caller(got[0])
            assert caller is not None and caller.scopes == {"read", "run"} and caller.subject == "robot"
            before = server.asked.count("/introspect")
            assert await oauth.caller(got[0]) == caller
            assert server.asked.count("/introspect") == before
            assert await oauth.caller(got[1]) is None  # for another server
            found: list[Any] = []

            async def ask() -> None:
                found.append(await oauth.caller(got[2]))

            before = server.asked.count("/introspect")
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask)
            assert found == [caller] * 20 and server.asked.count("/introspect") == before + 1
            assert await oauth.caller("made-up") is None
            assert await oauth.caller(server.token(RESOURCE)) is None
            server.opaque[got[0]].revoked = True
            await anyio.sleep(0.6)
            assert await oauth.caller(got[0]) is None
            server.down = True
            failed: list[bool] = []

            async def fail() -> None:
                with pytest.raises(asking.Unavailable):
                    await oauth.caller(got[2])
                failed.append(True)

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(fail)
            assert len(failed) == 20
        server.down = False
        secret.write_text("wrong")
        async with open_oauth(_settings(server, **asked)) as oauth:
            assert oauth is not None
            with pytest.raises(asking.Unavailable):
                await oauth.caller(got[2])
        secret.unlink()
        with pytest.raises(InvalidArgument, match="can't be read"):
            async with open_oauth(_settings(server, **asked)):
                pass
    finally:
        server.close()
