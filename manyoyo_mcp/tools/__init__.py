"""The MCP tools, a module a family."""

from manyoyo_mcp.tools import build, containers, copying, endpoint, jobs, run, sandbox, status

TOOLS = [
    *sandbox.TOOLS,
    *copying.TOOLS,
    *status.TOOLS,
    *build.TOOLS,
    *run.TOOLS,
    *containers.TOOLS,
    *jobs.TOOLS,
    *endpoint.TOOLS,
]
