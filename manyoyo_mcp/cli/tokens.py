"""`manyoyo-mcp token`: who may call a server over HTTP."""

import json
import time
from typing import Annotated

import typer

app = typer.Typer(help="Bearer tokens of `serve --http`: one a principal.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The principal: whose the sandboxes are that are started with it.")],
    scopes: Annotated[
        str, typer.Option(help="Of read, run, build and admin (everything), with commas between.")
    ] = "read,run,build",
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    from manyoyo_mcp.cli.connect import load_settings
    from manyoyo_mcp.cli.recorded import on_record
    from manyoyo_mcp.http.tokens import Tokens

    settings = load_settings()
    wanted = [each.strip() for each in scopes.split(",") if each.strip()]
    with on_record(settings, "token add", ends=False, name=name[:70], scopes=wanted):
        token = Tokens(settings.http_tokens).add(name, wanted)
    typer.echo(token)


@app.command("list")
def show(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """List the principals, with the scopes of each."""
    from manyoyo_mcp.cli.connect import load_settings
    from manyoyo_mcp.http.tokens import Tokens

    known = Tokens(load_settings().http_tokens).all()
    if as_json:
        print(json.dumps([{"name": each.name, "scopes": each.scopes, "created": each.created} for each in known]))
        return
    for each in known:
        made = time.strftime("%Y-%m-%d", time.localtime(each.created))
        typer.echo(f"{each.name}  {','.join(each.scopes)}  {made}")


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="The principal.")]) -> None:
    """Make a principal's token worthless from the next request on. What it has stays until it ends by itself."""
    from manyoyo_mcp.cli.connect import load_settings
    from manyoyo_mcp.cli.recorded import on_record
    from manyoyo_mcp.http.tokens import Tokens

    settings = load_settings()
    with on_record(settings, "token revoke", name=name[:70]):
        Tokens(settings.http_tokens).revoke(name)
