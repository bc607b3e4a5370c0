"""A connection to a host's engine: any endpoint that speaks Docker's API."""

import os
from collections.abc import Callable
from typing import TypeVar

import docker
import requests
from docker.context import ContextAPI

from manyoyo_mcp.errors import HostUnavailable
from manyoyo_mcp.hosts.base import HostInfo
from manyoyo_mcp.workers import in_thread

T = TypeVar("T")


class Endpoint:
    """One endpoint. Calls go out from worker threads; the client keeps its connections."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._client: docker.APIClient | None = None
        self._info: HostInfo | None = None

    @property
    def client(self) -> docker.APIClient:
        """The docker-py client of the endpoint. Raises HostUnavailable."""
        if self._client is None:
            self._client = _connect(self._address)
        return self._client

    async def _call(self, fn: Callable[[docker.APIClient], T]) -> T:
        def call() -> T:
            try:
                return fn(self.client)
            except docker.errors.APIError:
                raise  # the host's engine answered: the caller knows what that means
            except requests.exceptions.RequestException as error:
                raise _unavailable(error) from error

        return await in_thread(call)

    async def info(self) -> HostInfo:
        if self._info is None:
            raw = await self._call(lambda client: client.info())
            self._info = HostInfo(
                identity=str(raw.get("ID") or raw.get("Name")),
                name=raw.get("Name", ""),
                cpus=int(raw.get("NCPU", 1)),
                memory=int(raw.get("MemTotal", 0)),
                kernel=raw.get("KernelVersion", ""),
                architecture=raw.get("Architecture", ""),
                cgroup_version=str(raw.get("CgroupVersion", "1")),
                engine_version=raw.get("ServerVersion", ""),
            )
        return self._info

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _connect(endpoint: str | None) -> docker.APIClient:
    """A client for `endpoint`, else DOCKER_HOST's (with its TLS settings), else the current docker context's."""
    try:
        if endpoint is None and not os.environ.get("DOCKER_HOST"):
            context = ContextAPI.get_current_context()
            if context is not None and context.Name != "default" and context.Host:
                return docker.APIClient(
                    base_url=context.Host, tls=context.TLSConfig, version="auto", use_ssh_client=True, timeout=60
                )
        kwargs = docker.utils.kwargs_from_env()
        if endpoint is not None:
            kwargs["base_url"] = endpoint
        return docker.APIClient(version="auto", use_ssh_client=True, timeout=60, **kwargs)
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> HostUnavailable:
    return HostUnavailable(
        f"The host's container engine does not answer: {error}",
        "Start it (e.g. `systemctl start docker`), or name its endpoint in DOCKER_HOST or MANYOYO_DOCKER_HOST (in the "
        "`env` of this server's entry in the client's configuration: some clients hand on nothing else); "
        "`manyoyo-mcp doctor` says what was tried.",
    )
