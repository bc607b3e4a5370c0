"""Entry point of the console script. MCP clients start `manyoyo-mcp serve`: for that no command line is loaded."""

import sys

from manyoyo_mcp.cli.exits import reported


def main() -> None:
    """`manyoyo-mcp`, with the arguments of this process."""
    with reported():
        if sys.argv[1:] in ([], ["serve"]):
            serve()
        else:
            from manyoyo_mcp.cli.app import app

            app(prog_name="manyoyo-mcp")


def serve() -> None:
    """Serve MCP over stdio until the client closes it."""
    from manyoyo_mcp.cli.connect import load_settings

    settings = load_settings()  # said in two lines where one is wrong, before the server is loaded
    from manyoyo_mcp.server import serve as run

    run(settings)
