"""dockerd as a nested engine (runc underneath): the whole Docker API, its classic builder for builds."""

import anyio

from manyoyo_mcp.engines.api import DockerApiEngine
from manyoyo_mcp.engines.base import BuildSpec
from manyoyo_mcp.engines.buildlog import instructions
from manyoyo_mcp.engines.streams import Streaming
from manyoyo_mcp.errors import InvalidArgument


class DockerEngine(DockerApiEngine):
    """dockerd 26."""

    name = "docker"

    def _check_dockerfile(self, text: str) -> None:
        # The classic builder takes `RUN <<EOF` for an empty command and reports success; ARGs alone make it hang up.
        found = instructions(text)
        for each in found:
            if each.heredoc:
                raise InvalidArgument(f"error on line {each.line}: the heredoc <<{each.heredoc} requires BuildKit")
        if not any(each.keyword == "FROM" for each in found):
            raise InvalidArgument("no build stage in current context")

    async def _stop_build(self, spec: BuildSpec, call: Streaming) -> None:
        # Hanging up ends the build and, after a grace, the step's container; the cgroup needs no grace.
        call.stop()
        with anyio.move_on_after(4):
            while True:
                await self._maintain("kill-build", spec.build_id)
                if call.over:
                    break
                await anyio.sleep(0.05)
