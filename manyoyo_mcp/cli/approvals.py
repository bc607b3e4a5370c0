"""`manyoyo-mcp approvals`: what a person has said is always allowed, and how to take it back."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from manyoyo_mcp.cli.exits import reported
from manyoyo_mcp.errors import InvalidArgument

app = typer.Typer(help="What you have said is always allowed.", no_args_is_help=True)


@app.command("list")
def show(as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """List it: what is allowed, in which project, since when."""
    from manyoyo_mcp.cli.connect import load_settings
    from manyoyo_mcp.cli.screen import Screen, print_table
    from manyoyo_mcp.sessions.approvals import Approvals

    with reported():
        found = Approvals(load_settings()).all()
        if as_json:
            print(json.dumps([asdict(each) for each in found], indent=2))
        elif not found:
            Screen().say("Nothing is always allowed.")
        else:
            rows = [(each.id, each.kind, each.subject, each.project, each.at[:16].replace("T", " ")) for each in found]
            print_table(("ID", "KIND", "WHAT", "PROJECT", "SINCE (UTC)"), rows)


@app.command()
def forget(
    approval: Annotated[str | None, typer.Argument(metavar="ID", help="Which (`approvals list`).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Ask again from the next time on. What runs already stays as it is: `manyoyo-mcp rm` removes it."""
    from manyoyo_mcp.cli.connect import load_settings
    from manyoyo_mcp.cli.recorded import on_record
    from manyoyo_mcp.sessions.approvals import Approvals

    with reported():
        if (approval is None) != everything:
            raise InvalidArgument("Which?", "Give an ID, or --all.")
        settings = load_settings()
        with on_record(settings, "approvals forget", which=(approval or "all")[:40]) as result:
            gone = Approvals(settings).forget(approval)
            result["forgotten"] = [f"{each.kind} {each.subject}" for each in gone]
        for each in gone:
            typer.echo(f"Forgotten: {each.kind} {each.subject}")
