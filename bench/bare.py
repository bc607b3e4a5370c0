"""A server of one tool that runs a container by the packages `mcp` and `docker` alone: no policy, caps, jobs, logs or checks. What it
spends beside waiting for the engine is what those two take of any server's time."""

import sys

import anyio
import anyio.to_thread
import docker
from mcp.server import MCPServer
from pydantic import BaseModel

from bench import stopwatch
from manyoyo_mcp import stdio


class Ended(BaseModel):
    """A run's result."""

    exit_code: int
    output: str


def build_server(client: docker.APIClient) -> MCPServer:
    server = MCPServer(name="bare")

    def work(image: str, command: list[str]) -> Ended:
        container = client.create_container(image, command, host_config=client.create_host_config(mem_limit="64m"))[
            "Id"
        ]
        output = client.attach(container, stream=True, logs=True)
        client.start(container)
        printed = b"".join(output)
        code = client.wait(container)["StatusCode"]
        return Ended(exit_code=code, output=printed.decode())

    @server.tool()
    async def run(image: str, command: list[str]) -> Ended:
        return await anyio.to_thread.run_sync(work, image, command)

    @server.tool()
    async def remove() -> int:
        """Every container that ended."""
        ended = client.containers(all=True, filters={"status": "exited"})
        for each in ended:
            await anyio.to_thread.run_sync(client.remove_container, each["Id"])
        return len(ended)

    return server


if __name__ == "__main__":
    stopwatch.install()
    anyio.run(stdio.run, build_server(docker.APIClient(f"unix://{sys.argv[1]}", version="1.41")))
