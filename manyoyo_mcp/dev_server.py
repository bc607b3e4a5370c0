"""The file to point `mcp dev` and `mcp run` at: `mcp dev path/to/manyoyo_mcp/dev_server.py`."""

from manyoyo_mcp.server import build_server

mcp = build_server()
