"""sandbox_endpoint."""

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.sessions.approvals import Wish
from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import SandboxArgument

_PODMAN = (
    "Build with DOCKER_BUILDKIT=0. For podman --remote the same is CONTAINER_HOST. Its engine is podman, whose Docker API differs in places; a sandbox with "
    "engine='docker' answers as Docker does."
)


_WISH = Wish(
    "endpoint",
    "endpoint",
    "A Docker endpoint (a unix socket of yours) into a sandbox, for programs outside of it.",
    PolicyRefused("Sandboxes are given no endpoint here.", "For what a tool does, use the tool."),
)


class EndpointOutput(ToolOutput):
    sandbox_id: str
    engine: str
    docker_host: str
    note: str | None = None

    def words(self) -> str:
        return (
            f"DOCKER_HOST={self.docker_host}\nA Docker client of this user, on this machine, works in {self.sandbox_id} with it, under the "
            "same policy and caps as the tools: named volumes but no paths, no published ports. It "
            "is there as long as this session has the sandbox." + (f"\n{self.note}" if self.note else "")
        )


@tool(
    "sandbox_endpoint",
    "A sandbox's Docker endpoint",
    """
A DOCKER_HOST into the sandbox, for programs of the user's own (docker command line, SDKs, test suites); with podman a CONTAINER_HOST too.
Policy and caps are those of the tools. For what a tool does, use the tool.
""",
    SandboxArgument,
    EndpointOutput,
    idempotent=True,
    scope="admin",
)
async def sandbox_endpoint(call: Call, arguments: SandboxArgument) -> ToolOutput:
    await call.approve(_WISH)
    sandbox, _ = await call.sandbox(arguments.sandbox_id)
    path = call.manager.endpoints.open(sandbox)
    return EndpointOutput(
        sandbox_id=sandbox.sandbox_id,
        engine=sandbox.engine_name,
        docker_host=f"unix://{path}",
        note=_PODMAN if sandbox.engine_name == "podman" else None,
    )


TOOLS = [sandbox_endpoint]
