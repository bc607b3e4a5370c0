"""Who calls, by what a request brings: one of our tokens, or one of the authorization server's; and what is answered to who brings none."""

from collections.abc import Iterable

from starlette.responses import JSONResponse, Response

from manyoyo_mcp.http.asking import Unavailable
from manyoyo_mcp.http.oauth import OAuth
from manyoyo_mcp.http.tokens import Tokens
from manyoyo_mcp.sessions.principals import USER, Caller

_AGAIN_S = 5


class Nobody(Exception):
    """It is not known who calls. `given`: a token was, which is worth nothing."""

    def __init__(self, answer: Response, given: bool) -> None:
        super().__init__()
        self.answer = answer
        self.given = given


class Callers:
    """`oauth` is None where no authorization server is named. As long as there is no file of tokens either, whoever reaches this
    server calls as its user; once there was one, nobody does."""

    def __init__(self, tokens: Tokens, oauth: OAuth | None) -> None:
        self._tokens = tokens
        self._oauth = oauth
        self._asks = oauth is not None

    async def find(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Raises Nobody."""
        self._asks = self._asks or self._tokens.path.exists()
        if not self._asks:
            return USER
        given = [value for key, value in headers if key == b"authorization"]
        scheme, _, token = given[0].decode("latin-1").partition(" ") if len(given) == 1 else ("", "", "")
        token = token.strip()
        found = None
        if scheme.lower() == "bearer" and token:
            found = self._tokens.caller(token)
            if found is None and self._oauth is not None:
                try:
                    found = await self._oauth.caller(token)
                except Unavailable as error:
                    raise Nobody(_without_its_server(error), given=False) from None
        if found is None:
            raise Nobody(self._unknown(bool(given)), bool(given))
        return found

    def _unknown(self, given: bool) -> Response:
        answer = refusal(401, "A bearer token is needed, and this is none that is good here.")
        answer.headers["WWW-Authenticate"] = (
            self._oauth.challenge(given) if self._oauth is not None else 'Bearer realm="manyoyo-mcp"'
        )
        return answer


def _without_its_server(error: Unavailable) -> Response:
    answer = refusal(503, f"The authorization server can't be asked about that token: {error}.")
    answer.headers["Retry-After"] = str(_AGAIN_S)
    return answer


def refusal(status: int, words: str) -> Response:
    """An answer in the place of MCP's."""
    told = {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": words}}
    return JSONResponse(told, status_code=status, headers={"Connection": "close"})
