"""The user's own logins at registries (`docker login`, with its helpers), where the settings allow them: each goes to the nested engine with the one
request that pulls, which it needs for no longer, and is stored nowhere."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import anyio
import docker

from manyoyo_mcp.errors import RequestError
from manyoyo_mcp.redaction import LEAST
from manyoyo_mcp.workers import wait_in_thread

PATIENCE = 30.0
"""Seconds that a helper may take."""
_SECRET = ("password", "identitytoken", "registrytoken", "auth")


class Logins:
    """Those at `registries`. `learn` is told each secret before anybody has it."""

    def __init__(
        self,
        registries: Collection[str],
        learn: Callable[[Mapping[str, bytes]], Awaitable[None]],
        patience: float = PATIENCE,
    ) -> None:
        self._registries = frozenset(map(docker.auth.resolve_index_name, registries))
        self._learn = learn
        self._patience = patience
        self._asking = anyio.Lock()  # a helper may ask the user
        self._hangs = False

    async def header(self, image: str) -> str:
        """What the pull of an image is sent with (X-Registry-Auth); "" where it may have no login, or there is none. Raises RequestError
        (REGISTRY_LOGIN_UNAVAILABLE)."""
        registry = registry_of(image)
        if registry not in self._registries:
            return ""
        async with self._asking:
            if self._hangs:
                raise _unavailable(registry, "its helper has not answered yet")
            with anyio.move_on_after(self._patience):
                try:
                    known = await wait_in_thread(self._login, registry)
                except docker.errors.DockerException as error:
                    raise _unavailable(registry, type(error).__name__) from None  # its words may hold the login
                if not known:
                    return ""
                words = {key: value for key, value in known.items() if key.lower() in _SECRET}
                secrets = [str(value).encode() for value in words.values() if value]
                for secret in secrets:
                    if len(secret) >= LEAST:
                        await self._learn({f"login at {registry}": secret})
                return str(docker.auth.encode_header(known).decode())
        raise _unavailable(registry, f"its helper has not answered after {self._patience:g} s")

    def _login(self, registry: str) -> dict[str, Any] | None:
        self._hangs = True
        try:
            found: dict[str, Any] | None = docker.auth.load_config().resolve_authconfig(registry)
            return found
        finally:
            self._hangs = False


def registry_of(image: str) -> str:
    """The registry in an image's name, as engines understand it; "" in what is no name, or means another to docker-py than to them: they take a
    first part with a capital letter for a host."""
    if (first := image.partition("/")[0]) != first.lower():
        return ""
    try:
        return str(docker.auth.resolve_repository_name(image)[0])
    except (docker.errors.DockerException, IndexError):
        return ""


def _unavailable(registry: str, why: str) -> RequestError:
    return RequestError(
        f"The login at {registry} can't be had: {why}.",
        f"Whoever runs this server can mend that (`docker login {registry}`, docs/secrets.md).",
        code="REGISTRY_LOGIN_UNAVAILABLE",
    )
