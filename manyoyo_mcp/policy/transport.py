"""The tools' way to a nested engine: a docker-py client whose every request passes `rules.decide` first. (The other way in, for
clients that we don't trust, is `gate.py`.)"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from manyoyo_mcp.dialled import Dial, DialledClient
from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.policy.base import Allowed, Limits, Request
from manyoyo_mcp.policy.rules import decide, endpoint

API_VERSION = "1.41"
"""The version of Docker's Engine API that the tools speak; podman 5 and dockerd 26 both do."""

VERSION_PREFIX = f"/v{API_VERSION}"


class GuardedClient(DialledClient):
    """A client whose requests are judged before they go out. `limits` is read at each of them: a sandbox that grew grants
    more at once. Beside what the client raises, a request raises PolicyRefused or CapExceeded."""

    def __init__(self, dial: Dial, limits: Callable[[], Limits]) -> None:
        super().__init__(dial, API_VERSION)
        self._limits = limits

    def _outgoing(self, method: str, path: str, query: Mapping[str, Any], data: Any, headers: Any) -> tuple[str, Any]:
        is_json = str(headers.get("Content-Type", "")).startswith("application/json")
        bare = path.removeprefix(VERSION_PREFIX)
        if data and not is_json and endpoint(method, bare).takes != "archive":
            raise PolicyRefused("a body that is not JSON can't be judged.", "This is the server's fault.")
        allowed = self._decided(Request(method, bare, query, json.loads(data) if is_json and data else None, ours=True))
        if allowed.body is not None:  # written anew: what was decided on is what is sent, repeated keys and all
            data = json.dumps(allowed.body).encode()
        return super()._outgoing(method, path, allowed.query, data, headers)

    def _decided(self, request: Request) -> Allowed:
        return decide(request, self._limits())
