"""The MCP tools, a module a family."""

from manyoyo_mcp.tools import build, containers, jobs, run, sandbox

TOOLS = [*sandbox.TOOLS, *build.TOOLS, *run.TOOLS, *containers.TOOLS, *jobs.TOOLS]
