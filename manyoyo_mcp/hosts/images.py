"""Images on a host."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import IO

import anyio.from_thread
import docker

from manyoyo_mcp.errors import ImageUnavailable
from manyoyo_mcp.hosts.base import LABEL
from manyoyo_mcp.hosts.endpoint import Endpoint
from manyoyo_mcp.values import format_bytes

_SAY_INTERVAL = 0.5
"""Seconds between two words about a pull."""


@contextlib.contextmanager
def _unavailable(what: str, hint: str) -> Iterator[None]:
    """The host's engine said no to what concerns an image."""
    try:
        yield
    except docker.errors.APIError as error:
        raise ImageUnavailable(f"{what}: {error}", hint) from error


class Images(Endpoint):
    """A host's images."""

    async def image_exists(self, reference: str) -> bool:
        try:
            await self._look_up(lambda client: client.inspect_image(reference))
        except docker.errors.ImageNotFound:
            return False
        return True

    async def pull(self, reference: str, say: Callable[[str], None]) -> None:
        repository, tag = docker.utils.parse_repository_tag(reference)

        def pull(client: docker.APIClient) -> None:
            layers: dict[str, tuple[int, int]] = {}
            said = 0.0
            for event in client.pull(repository, tag=tag or "latest", stream=True, decode=True):
                if event.get("error"):
                    raise docker.errors.ImageNotFound(event["error"])
                detail = event.get("progressDetail") or {}
                if event.get("status") == "Downloading" and detail.get("total"):
                    layers[event["id"]] = (detail.get("current", 0), detail["total"])
                if layers and time.monotonic() - said > _SAY_INTERVAL:
                    said = time.monotonic()
                    here, whole = (sum(sizes) for sizes in zip(*layers.values(), strict=True))
                    words = f"pulling {reference}: {format_bytes(here)} of {format_bytes(whole)}, {len(layers)} layers"
                    anyio.from_thread.run_sync(say, words)

        with _unavailable(f"{reference} can't be pulled", "Check the name and the network."):
            await self._call(pull)

    async def build_image(
        self, context: bytes, reference: str, build_args: dict[str, str], say: Callable[[str], None]
    ) -> None:
        def build(client: docker.APIClient) -> None:
            events = client.build(
                fileobj=io.BytesIO(context),
                custom_context=True,
                tag=reference,
                buildargs=build_args,
                rm=True,
                forcerm=True,
                labels={f"{LABEL}kind": "image"},
                decode=True,
            )
            last = ""
            for event in events:
                if event.get("error"):
                    raise ImageUnavailable(f"The outer image's build failed: {event['error']}\n{last}", "See above.")
                line = str(event.get("stream", "")).strip()
                if line:
                    last = line
                    if line.startswith("Step "):
                        anyio.from_thread.run_sync(say, line)

        with _unavailable(f"The host could not build {reference}", "See the host engine's log."):
            await self._call(build)

    async def import_image(self, tar: IO[bytes], reference: str) -> None:
        repository, _, tag = reference.rpartition(":")

        def load(client: docker.APIClient) -> None:
            tar.seek(0)
            answer = client.post(
                client._url("/images/create"),
                params={"fromSrc": "-", "repo": repository, "tag": tag},
                data=tar,
                headers={"Content-Type": "application/x-tar"},
                timeout=600,
            )
            client._raise_for_status(answer)

        with _unavailable(f"The host could not import {reference}", "Is its disk full?"):
            await self._call(load)
