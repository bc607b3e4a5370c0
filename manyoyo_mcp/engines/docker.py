"""dockerd as a nested engine (runc underneath): the whole Docker API, its classic builder for builds."""

from manyoyo_mcp.engines.api import BuildCall, DockerApiEngine
from manyoyo_mcp.engines.base import BuildSpec


class DockerEngine(DockerApiEngine):
    """dockerd 26."""

    name = "docker"

    async def _stop_build(self, spec: BuildSpec, call: BuildCall) -> None:
        # Hanging up ends the build and, after a grace, the step's container; the cgroup needs no grace.
        call.stop()
        await self._maintain("kill-build", spec.build_id)
