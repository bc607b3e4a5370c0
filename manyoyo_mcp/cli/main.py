"""The command line: `manyoyo-mcp`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="manyoyo-mcp", help="A container host of its own for an AI agent.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        serve()


@app.command()
def serve() -> None:
    """Serve MCP over stdio (the default)."""
    from manyoyo_mcp.server import serve as run

    run()


@app.command()
def schemas(directory: Annotated[Path, typer.Argument(help="Where to write NAME.json.")] = Path("tool_schemas")) -> None:
    """Write one JSON file a tool: name, description, annotations, input and output schema."""
    from manyoyo_mcp.cli.schemas import write

    for path in write(directory):
        typer.echo(path)


def main() -> None:
    """Entry point of the console script."""
    app()
