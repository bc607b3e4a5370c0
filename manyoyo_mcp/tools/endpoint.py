"""sandbox_endpoint."""

from typing import Annotated

from pydantic import Field

from manyoyo_mcp.errors import PolicyRefused
from manyoyo_mcp.sessions.approvals import Wish
from manyoyo_mcp.tools.base import Call, ToolOutput, tool
from manyoyo_mcp.tools.common import SandboxArgument

_PODMAN = (
    "Build with DOCKER_BUILDKIT=0. For podman --remote the same is CONTAINER_HOST. Its engine is podman, whose Docker API differs in places; a sandbox with "
    "engine='docker' answers as Docker does."
)


_SOCK = "Its engine is the host's own, of which this is the sandbox's part: no volumes, networks or builds."
_PUBLISHED = (
    "Published ports (TCP) listen on this machine's 127.0.0.1 while their container runs; sandbox_status lists them."
)
_UNPUBLISHED = "Ports are not published; the same call with ports=true asks for that."
_WISH = Wish(
    "endpoint",
    "endpoint",
    "A Docker endpoint (a unix socket of yours) into a sandbox, for programs outside of it.",
    PolicyRefused("Sandboxes are given no endpoint here.", "For what a tool does, use the tool."),
)


_PORTS = Wish(
    "port",
    "endpoint",
    "Ports that programs of yours publish through a sandbox's Docker endpoint (docker run -p, Testcontainers): each opens a port of "
    "this machine, on 127.0.0.1 alone, that leads to a service in the sandbox.",
    PolicyRefused("Ports of sandboxes are not opened on this machine.", "Leave ports out."),
)


class EndpointInput(SandboxArgument):
    ports: Annotated[bool, Field(description="Its clients may publish ports on the user's 127.0.0.1.")] = False


class EndpointOutput(ToolOutput):
    sandbox_id: str
    engine: str
    docker_host: str
    note: str | None = None

    def words(self) -> str:
        return (
            f"DOCKER_HOST={self.docker_host}\nA Docker client of this user, on this machine, works in {self.sandbox_id} with it, under the "
            "same policy and caps as the tools: named volumes but no paths. It "
            "is there as long as this session has the sandbox." + (f"\n{self.note}" if self.note else "")
        )


@tool(
    "sandbox_endpoint",
    "A sandbox's Docker endpoint",
    """
A DOCKER_HOST into the sandbox, for programs of the user's own (docker command line, SDKs, test suites); with podman a CONTAINER_HOST too.
Policy and caps are those of the tools. For what a tool does, use the tool.
""",
    EndpointInput,
    EndpointOutput,
    idempotent=True,
    scope="admin",
)
async def sandbox_endpoint(call: Call, arguments: EndpointInput) -> ToolOutput:
    endpoints = call.manager.endpoints
    await call.approve(_WISH, *([_PORTS] if arguments.ports and not _published(call, arguments) else []))
    sandbox, _ = await call.sandbox(arguments.sandbox_id)
    path = endpoints.open(sandbox, ports=arguments.ports)
    notes = [_PUBLISHED if endpoints.publishes(sandbox) else _UNPUBLISHED] if sandbox.isolation != "sock" else []
    notes += [_SOCK] if sandbox.isolation == "sock" else []
    notes += [_PODMAN] if sandbox.engine_name == "podman" else []
    return EndpointOutput(
        sandbox_id=sandbox.sandbox_id,
        engine=sandbox.engine_name,
        docker_host=f"unix://{path}",
        note=" ".join(notes),
    )


def _published(call: Call, arguments: EndpointInput) -> bool:
    """Whether it is granted already, once for as long as the endpoint is there."""
    if arguments.sandbox_id is None and not call.manager.sandboxes():
        return False
    return call.manager.endpoints.publishes(call.manager.get(arguments.sandbox_id))


TOOLS = [sandbox_endpoint]
