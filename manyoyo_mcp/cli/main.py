"""Entry point of the console script. MCP clients start `manyoyo-mcp serve`: for that no command line is loaded."""

import sys

from manyoyo_mcp.cli.exits import end_without_reader, flush, reported

HTTP_ADDRESS = "127.0.0.1:8765"


def with_address(words: list[str]) -> list[str]:
    """The same, where `serve --http` names no address with the one that is meant: options of typer's always have a value."""
    if words[:1] == ["serve"] and "--http" in words:
        after = words.index("--http") + 1
        if after == len(words) or words[after].startswith("-"):
            return [*words[:after], HTTP_ADDRESS, *words[after:]]
    return words


def main() -> None:
    """`manyoyo-mcp`, with the arguments of this process."""
    with reported():
        if sys.argv[1:] in ([], ["serve"]):
            from manyoyo_mcp.cli.serve import serve

            serve()
        else:
            from manyoyo_mcp.cli.app import app

            try:
                sys.argv[1:] = with_address(sys.argv[1:])
                app(prog_name="manyoyo-mcp")
            except SystemExit as ended:
                if isinstance(ended.__context__, BrokenPipeError):  # which the library makes a failure
                    end_without_reader()
                flush()
                raise
