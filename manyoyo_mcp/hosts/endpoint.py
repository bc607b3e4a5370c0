"""A connection to a host's engine: any endpoint that speaks Docker's API."""

import http.client
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import docker
import requests
import urllib3
from docker.context import ContextAPI

from manyoyo_mcp.dialled import DialledClient
from manyoyo_mcp.errors import HostUnavailable
from manyoyo_mcp.hosts import ssh, tls
from manyoyo_mcp.hosts.base import HostInfo
from manyoyo_mcp.workers import in_thread

T = TypeVar("T")
_SILENCE = (
    requests.exceptions.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, ConnectionError, TimeoutError
)  # fmt: skip
"""What clients raise where an engine does not answer."""


class Endpoint:
    """One endpoint. Calls go out from worker threads; the client keeps its connections."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._client: docker.APIClient | None = None
        self._connecting = threading.Lock()
        self._info: HostInfo | None = None

    @property
    def client(self) -> docker.APIClient:
        """The docker-py client of the endpoint. Raises HostUnavailable."""
        with self._connecting:
            if self._client is None:
                self._client = _connect(self._address)
            return self._client

    @property
    def _by_unix_socket(self) -> bool:
        return str(self.client.base_url) == "http+docker://localhost" and not isinstance(self.client, DialledClient)

    def _written(self) -> str | None:
        """The endpoint's address, as it is written; None where none is."""
        kwargs = docker.utils.kwargs_from_env()
        context = ContextAPI.get_current_context() if not (self._address or os.environ.get("DOCKER_HOST")) else None
        address = self._address or (context.Host if context is not None else None) or kwargs.get("base_url")
        return str(address) if address else None

    def _host_name(self) -> str | None:
        """The machine of an endpoint that is reached over a network, as it is written."""
        address = self._written()
        return urlsplit(address).hostname if address else None

    async def _call(self, fn: Callable[[docker.APIClient], T]) -> T:
        def call() -> T:
            try:
                return fn(self.client)
            except docker.errors.APIError:
                raise  # the host's engine answered: the caller knows what that means
            except _SILENCE as error:
                raise _unavailable(error, self._written() or "") from error

        return await in_thread(call)

    async def _look_up(self, fn: Callable[[docker.APIClient], T]) -> T:
        """A call whose refusal means no more than that the engine is in no state to serve it; but for NotFound."""
        try:
            return await self._call(fn)
        except docker.errors.NotFound:
            raise
        except docker.errors.APIError as error:
            raise HostUnavailable(
                f"The host's engine refused: {error.explanation or error}",
                "Try again; `manyoyo-mcp doctor` looks for the cause.",
            ) from error

    async def info(self) -> HostInfo:
        if self._info is None:
            raw = await self._look_up(lambda client: client.info())
            self._info = HostInfo(
                identity=str(raw.get("ID") or raw.get("Name")),
                name=raw.get("Name", ""),
                cpus=int(raw.get("NCPU", 1)),
                memory=int(raw.get("MemTotal", 0)),
                kernel=raw.get("KernelVersion", ""),
                cgroup_version=str(raw.get("CgroupVersion", "1")),
                runtimes=frozenset(raw.get("Runtimes") or {}),
            )
        return self._info

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _connect(endpoint: str | None) -> docker.APIClient:
    """A client for `endpoint`, else DOCKER_HOST's (with its TLS settings), else the current docker context's."""
    kwargs: dict[str, Any] = {}
    try:
        kwargs = docker.utils.kwargs_from_env()
        if endpoint is not None:
            kwargs["base_url"] = endpoint
        elif not os.environ.get("DOCKER_HOST"):
            context = ContextAPI.get_current_context()
            if context is not None and context.Name != "default" and context.Host:
                kwargs = {"base_url": context.Host, "tls": context.TLSConfig}
        address, certificates = str(kwargs.get("base_url", "")), kwargs.get("tls")
        if address.startswith("ssh://"):
            return ssh.connect(address)
        if certificates and address.startswith(("tcp://", "https://")):
            return tls.connect(address, certificates)
        return docker.APIClient(version="auto", timeout=60, **kwargs)
    except (docker.errors.DockerException, *_SILENCE, OSError, ValueError) as error:
        raise _unavailable(error, str(kwargs.get("base_url") or "")) from error


def _unavailable(error: Exception, address: str) -> HostUnavailable:
    asked = address or "the default socket"
    if "PermissionError" in repr(error):
        return HostUnavailable(
            f"This user may not use the host's container engine at {asked}: {error}",
            "Join the group that may (`sudo usermod -aG docker USER`, then log in anew), or name an engine of your own in DOCKER_HOST or "
            "MANYOYO_DOCKER_HOST; `manyoyo-mcp doctor` says which group that is.",
        )
    ours = next(Path("/run").glob("manyoyo-engine-*/docker.sock"), None)
    return HostUnavailable(
        f"The host's container engine does not answer at {asked}: {error}",
        (
            f'`eval "$(scripts/engine env)"` names the one that scripts/engine started (unix://{ours}). Else: start'
            if ours
            else "Start"
        )
        + " it (e.g. `systemctl start docker`), or name its endpoint in DOCKER_HOST or MANYOYO_DOCKER_HOST (in the "
        "`env` of this server's entry in the client's configuration: some clients hand on nothing else); "
        "`manyoyo-mcp doctor` says what was tried.",
    )
