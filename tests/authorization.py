"""An authorization server on loopback, made with Authlib and Flask: where the tests of OAuth get their tokens, over real HTTP."""

import json
import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import flask
import jwt
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import grants
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from werkzeug.serving import make_server

SCOPES = ["read", "run", "build", "admin"]
METHODS = ["client_secret_basic", "client_secret_post", "none"]


def private_key(kind: str) -> Any:
    match kind:
        case "EC":
            return ec.generate_private_key(ec.SECP256R1())
        case "OKP":
            return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def _first_key() -> Any:
    """Of all of them: to make one takes a second."""
    return private_key("RSA")


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public half of a key, as it stands in a JWKS."""
    names = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
    kind = (
        "RSA" if isinstance(key, rsa.RSAPrivateKey) else "EC" if isinstance(key, ec.EllipticCurvePrivateKey) else "OKP"
    )
    algorithm = jwt.get_algorithm_by_name(names[kind])
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", **more}


@dataclass
class Known:
    """A client, as Authlib asks about one."""

    client_id: str
    secret: str = ""
    redirects: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=lambda: list(SCOPES))

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        return self.redirects[0] if self.redirects else None

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(each for each in (scope or "").split() if each in self.scopes)

    def check_redirect_uri(self, uri: str) -> bool:
        return uri in self.redirects

    def check_client_secret(self, given: str) -> bool:
        return secrets.compare_digest(given, self.secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in METHODS

    def check_response_type(self, kind: str) -> bool:
        return kind == "code"

    def check_grant_type(self, kind: str) -> bool:
        return True


@dataclass
class User:
    name: str

    def get_user_id(self) -> str:
        return self.name


@dataclass
class Code:
    code: str
    client_id: str
    redirect_uri: str
    scope: str
    code_challenge: str
    code_challenge_method: str
    user: str

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass
class Opaque:
    """A token that says nothing: what it is worth is asked."""

    client_id: str
    subject: str
    scope: str
    audience: str
    expires: float
    revoked: bool = False

    def is_expired(self) -> bool:
        return self.expires < time.time()

    def is_revoked(self) -> bool:
        return self.revoked


class Authorization:
    """`user` is who agrees to whatever a client asks for; `asked` are the paths that were requested. `opaque`: of its tokens is asked."""

    def __init__(self, *, opaque: bool = False) -> None:
        self.user = "alice"
        self.asked: list[str] = []
        self.down = False
        self.clients = {"robot": Known("robot", "robot's secret/%"), "box": Known("box", "box+secret")}
        self.opaque: dict[str, Opaque] = {}
        self._codes: dict[str, Code] = {}
        self.kid, self.key = "first", _first_key()
        self.keys: list[dict[str, Any]] = [jwk(self.key, self.kid)]
        app = self._app(opaque)
        os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # on loopback
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        os.environ.pop("AUTHLIB_INSECURE_TRANSPORT", None)

    def rotate(self, kind: str = "RSA", *, keep: bool = False) -> None:
        """Sign with another key from now on; `keep`: the ones before stay good."""
        self.key, self.kid = private_key(kind), secrets.token_hex(4)
        self.keys = [jwk(self.key, self.kid), *(self.keys if keep else [])]

    def token(
        self,
        resource: str,
        *,
        key: Any = None,
        algorithm: str = "RS256",
        headers: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A token as this server makes them, or as a faulty one or a forger would: what is None is left out."""
        now = int(time.time())
        said = {
            "iss": self.issuer, "aud": resource, "sub": "alice", "client_id": "robot", "scope": "read run build",
            "iat": now, "exp": now + 300, **claims,
        }  # fmt: skip
        header = {"kid": self.kid, "typ": "at+jwt", **(headers or {})}
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None},
            self.key if key is None else key,
            algorithm,
            {name: value for name, value in header.items() if value is not None},
        )

    def _app(self, opaque: bool) -> flask.Flask:
        app = flask.Flask(__name__)
        server = AuthorizationServer(app, self.clients.get, self._keep)
        server.register_token_generator("default", self._opaque() if opaque else self._signed())
        server.register_grant(self._code_grant(), [CodeChallenge(required=True)])
        server.register_grant(grants.ClientCredentialsGrant)
        server.register_endpoint(self._introspection())

        @app.before_request
        def note() -> Any:
            self.asked.append(flask.request.path)
            return ("", 500) if self.down else None

        @app.get("/.well-known/oauth-authorization-server")
        def metadata() -> Any:
            return {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "registration_endpoint": f"{self.issuer}/register",
                "introspection_endpoint": f"{self.issuer}/introspect",
                "jwks_uri": f"{self.issuer}/keys",
                "scopes_supported": SCOPES,
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "client_credentials"],
                "token_endpoint_auth_methods_supported": METHODS,
                "code_challenge_methods_supported": ["S256"],
            }

        @app.get("/keys")
        def keys() -> Any:
            return {"keys": self.keys}

        @app.post("/register")
        def register() -> Any:
            wanted = flask.request.get_json()
            client = Known(secrets.token_hex(8), secrets.token_hex(8), wanted["redirect_uris"])
            self.clients[client.client_id] = client
            return {
                **wanted, "client_id": client.client_id, "client_secret": client.secret,
                "token_endpoint_auth_method": "client_secret_post",
            }, 201  # fmt: skip

        @app.get("/authorize")
        def authorize() -> Any:
            user = User(self.user)
            grant = server.get_consent_grant(end_user=user)
            return server.create_authorization_response(grant_user=user, grant=grant)

        @app.post("/token")
        def token() -> Any:
            return server.create_token_response()

        @app.post("/introspect")
        def introspect() -> Any:
            return server.create_endpoint_response("introspection")

        return app

    def _keep(self, token: dict[str, Any], request: Any) -> None:
        user = request.user.get_user_id() if request.user else request.client.client_id
        self.opaque[token["access_token"]] = Opaque(
            request.client.client_id, user, token.get("scope") or "", flask.request.form.get("resource", ""), time.time() + token["expires_in"],
        )  # fmt: skip

    def _signed(self) -> JWTBearerTokenGenerator:
        outer = self

        class Generator(JWTBearerTokenGenerator):  # type: ignore[misc]
            def access_token_generator(self, client: Any, grant_type: str, user: Any, scope: str) -> str:
                self.issuer = outer.issuer
                return outer.token(
                    flask.request.form["resource"],
                    sub=user.get_user_id() if user else client.get_client_id(),
                    client_id=client.get_client_id(),
                    scope=scope,
                )

        return Generator(issuer="")

    def _opaque(self) -> BearerTokenGenerator:
        return BearerTokenGenerator(lambda **_: secrets.token_urlsafe(24))

    def _code_grant(self) -> type[grants.AuthorizationCodeGrant]:
        outer = self

        class Grant(grants.AuthorizationCodeGrant):  # type: ignore[misc]
            TOKEN_ENDPOINT_AUTH_METHODS = METHODS

            def save_authorization_code(self, code: str, request: Any) -> None:
                asked = flask.request.args
                outer._codes[code] = Code(
                    code, request.client.client_id, asked["redirect_uri"], asked.get("scope", ""), asked["code_challenge"],
                    asked["code_challenge_method"], request.user.get_user_id(),
                )  # fmt: skip

            def query_authorization_code(self, code: str, client: Any) -> Code | None:
                found = outer._codes.get(code)
                return found if found is not None and found.client_id == client.client_id else None

            def delete_authorization_code(self, code: Code) -> None:
                outer._codes.pop(code.code, None)

            def authenticate_user(self, code: Code) -> User:
                return User(code.user)

        return Grant

    def _introspection(self) -> type[IntrospectionEndpoint]:
        outer = self

        class Endpoint(IntrospectionEndpoint):  # type: ignore[misc]
            CLIENT_AUTH_METHODS = ["client_secret_basic"]  # noqa: RUF012

            def query_token(self, token: str, hint: str) -> Opaque | None:
                return outer.opaque.get(token)

            def check_permission(self, token: Opaque, client: Known, request: Any) -> bool:
                return client.client_id == "box"

            def introspect_token(self, token: Opaque) -> dict[str, Any]:
                return {
                    "active": True, "iss": outer.issuer, "client_id": token.client_id, "sub": token.subject, "scope": token.scope,
                    "aud": token.audience, "exp": int(token.expires), "token_type": "Bearer",
                }  # fmt: skip

        return Endpoint
