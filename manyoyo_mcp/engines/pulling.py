"""Images pulled into a nested engine, and what to do where there is nowhere to pull them from."""

import difflib
import re
import time

import anyio
import docker

from manyoyo_mcp.engines.asking import Asking
from manyoyo_mcp.engines.streams import Streaming, json_lines, since
from manyoyo_mcp.errors import EngineFailed, NotFound
from manyoyo_mcp.policy.transport import GuardedClient
from manyoyo_mcp.text import sanitise

_NO_REGISTRY = "localhost/"
"""How the names of images begin that are made here and in no registry; one on this machine has a port."""

_BASE = re.compile(r"localhost/manyoyo/(debian|python|node|busybox|postgres)(?::.*)?")
_DENIED = re.compile(r"unauthorized|authentication required|access denied|no basic auth|\bdenied\b", re.IGNORECASE)
_NO_LOGIN = (
    "Check the name; or the registry wants a login: whoever runs this server can let pulls have theirs (`docker login`, "
    "MANYOYO_REGISTRY_LOGINS)."
)


class Pulling(Asking):
    """Images that come from a registry."""

    async def pull(self, image: str, login: str = "") -> None:
        """Pull `image` from its registry, with that login. Raises NotFound with what the registry (or the lack of one) said."""
        if image.startswith(_NO_REGISTRY):
            raise NotFound(f"The image {image} is not in the sandbox, and no registry has it.", await self._image_hint(image),
                           code="IMAGE_NOT_FOUND")  # fmt: skip
        repository, _, tag = image.rpartition(":") if ":" in image.rsplit("/", 1)[-1] else (image, "", "latest")
        if "@" in image:
            repository, tag = image.split("@", 1)

        call = Streaming()

        def pull(client: GuardedClient) -> None:
            with call.on(client):
                url = client._url("/images/create")
                response = client._post(url, params={"fromImage": repository, "tag": tag}, stream=True, timeout=None,
                                        headers={"X-Registry-Auth": login} if login else {})  # fmt: skip
                client._raise_for_status(response)
                for event in json_lines(response):
                    if event.get("error"):
                        raise docker.errors.ImageNotFound(str(event["error"]))

        begun = time.monotonic()
        try:
            await self._await(pull)
        except anyio.get_cancelled_exc_class():
            call.stop()
            raise
        except (NotFound, EngineFailed) as error:
            hint = _NO_LOGIN if not login and _DENIED.search(error.message) else await self._image_hint(image)
            raise NotFound(
                f"The image {image} is not in the sandbox, and it could not be pulled: {sanitise(error.message)[:600]}",
                await self._refused(since(begun), b"") or hint,
                code="IMAGE_NOT_FOUND",
            ) from error

    async def _image_hint(self, image: str) -> str:
        tags = [tag for row in await self._ask(lambda client: client.images()) for tag in row.get("RepoTags") or []]
        if meant := _meant(image, tags):
            return f"Did you mean {meant}? nested_list shows the images there are."
        base = _BASE.fullmatch(image)
        made = f"`manyoyo-mcp image base {base[1] if base else 'NAME'}`"
        return (
            f"Check the name and tag; nested_list shows the images there are. Where no registry is reachable, {made} makes "
            "base images from packages (debian, python, node, busybox, postgres): sandboxes started after that have them as "
            "localhost/manyoyo/NAME, so cleanup and start_sandbox once more."
        )


def _meant(image: str, tags: list[str]) -> str | None:
    """Which of the images that there are may have been meant: a base image by its bare name, or one written nearly so."""
    base = f"localhost/manyoyo/{image.removesuffix(':latest')}"
    for tag in tags:
        if tag in (base, f"{base}:latest"):
            return tag.removesuffix(":latest")
    close = difflib.get_close_matches(image if ":" in image.rsplit("/", 1)[-1] else f"{image}:latest", tags, 1, 0.85)
    return close[0].removesuffix(":latest") if close else None
