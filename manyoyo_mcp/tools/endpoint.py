"""sandbox_endpoint."""

from pydantic import Field

from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import SandboxArgument

_PODMAN = (
    "Its engine is podman, whose Docker API differs in places; a sandbox with engine='docker' answers as Docker does."
)


class EndpointOutput(ToolOutput):
    sandbox_id: str
    engine: str
    docker_host: str = Field(description="What a Docker client takes as DOCKER_HOST.")
    container_host: str | None = Field(
        None, description="What podman's own client takes as CONTAINER_HOST; null where the engine is not podman."
    )
    note: str | None = None

    def words(self) -> str:
        return (
            f"DOCKER_HOST={self.docker_host}\n"
            + (f"CONTAINER_HOST={self.container_host}  (podman --remote)\n" if self.container_host else "")
            + f"A Docker client of this user, on this machine, works in {self.sandbox_id} with it, under the "
            "same policy and caps as the tools: builds with DOCKER_BUILDKIT=0, named volumes but no paths, no published ports. It "
            "is there as long as this session has the sandbox." + (f"\n{self.note}" if self.note else "")
        )


@tool(
    "sandbox_endpoint",
    "A sandbox's Docker endpoint",
    """
A DOCKER_HOST that leads into the sandbox, for programs on the user's machine that speak to Docker themselves: the docker command line,
SDKs, test suites; for podman's own client (podman --remote) a CONTAINER_HOST. Policy and caps are those of the tools. For what a tool does, use the tool.
""",
    SandboxArgument,
    EndpointOutput,
    idempotent=True,
)
async def sandbox_endpoint(call: Call, arguments: SandboxArgument) -> ToolOutput:
    sandbox, _ = await call.sandbox(arguments.sandbox_id)
    path = call.manager.endpoints.open(sandbox)
    return EndpointOutput(
        sandbox_id=sandbox.sandbox_id,
        engine=sandbox.engine_name,
        docker_host=f"unix://{path}",
        container_host=f"unix://{path}" if sandbox.engine_name == "podman" else None,
        note=_PODMAN if sandbox.engine_name == "podman" else None,
    )


TOOLS = [sandbox_endpoint]
