"""Entry point of the console script. MCP clients start `manyoyo-mcp serve`: for that no command line is loaded."""

import sys

from manyoyo_mcp.cli.exits import end_without_reader, flush, reported


def main() -> None:
    """`manyoyo-mcp`, with the arguments of this process."""
    with reported():
        if sys.argv[1:] in ([], ["serve"]):
            from manyoyo_mcp.cli.serve import serve

            serve()
        else:
            from manyoyo_mcp.cli.app import app

            try:
                app(prog_name="manyoyo-mcp")
            except SystemExit as ended:
                if isinstance(ended.__context__, BrokenPipeError):  # which the library makes a failure
                    end_without_reader()
                flush()
                raise
