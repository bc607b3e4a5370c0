"""An MCP server that gives an AI agent a container host of its own."""

from importlib.metadata import version

__version__ = version("manyoyo-mcp")
