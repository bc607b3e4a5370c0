"""`manyoyo-mcp image`: the outer image, and the base images that every new sandbox has."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from manyoyo_mcp.cli.connect import load_settings, run_async
from manyoyo_mcp.cli.exits import reported
from manyoyo_mcp.cli.screen import Report, Screen, age, print_table
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.values import format_bytes

if TYPE_CHECKING:  # imported where they are used, as in the other commands
    from collections.abc import Sequence

    from manyoyo_mcp.image.bases import Base, Maintenance

app = typer.Typer(help="The outer image, and base images made from packages.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]


@app.command()
def build(
    source: Annotated[
        Literal["auto", "registry", "packages"],
        typer.Option("--from", help="Where Debian comes from; auto: a registry, packages where none answers."),
    ] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build the outer image, in which every sandbox's engine runs. The first sandbox would do it otherwise."""
    from manyoyo_mcp.image import outer

    async def work(report: Report) -> str:
        async with open_host(settings) as host:
            return await outer.build(host, settings, report, source)

    with reported():
        settings = load_settings()
        if settings.outer_image:
            raise InvalidArgument(
                f"The outer image is configured to be {settings.outer_image}, which is not ours to build.",
                "Unset MANYOYO_OUTER_IMAGE to build this version's own.",
            )
        with Screen(quiet=quiet).working("building the outer image") as report:
            reference = run_async(lambda: work(report))
        typer.echo(json.dumps({"image": reference}) if as_json else reference)


@app.command()
def show(as_json: Json = False) -> None:
    """Say which outer image this version uses, and whether the host has it."""
    from manyoyo_mcp.image import outer

    async def work() -> bool:
        async with open_host(settings) as host:
            return await host.image_exists(reference)

    with reported():
        settings = load_settings()
        reference = outer.reference(settings)
        there = run_async(work)
        if as_json:
            typer.echo(json.dumps({"image": reference, "present": there, "packages": outer.packages()}))
            return
        typer.echo(reference)
        typer.echo(
            f"  {'on this host' if there else 'not on this host: the first sandbox, or `image build`, makes it'}"
        )
        typer.echo(f"  Debian packages in it: {', '.join(outer.packages())}")


@app.command()
def base(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="debian, python, node, busybox, postgres.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List them, made or not; make none.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Make them anew, with today's packages.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove all of them from this host.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make base images from Debian's packages, for builds where no registry answers.

    Every new sandbox then has them, as localhost/manyoyo/NAME:VERSION and :latest. One that is there is made again only
    if the way it is made has changed.
    """
    from manyoyo_mcp.image import bases

    with reported():
        if sum((bool(names) or everything, listing, remove)) != 1 or (again and (listing or remove)):
            raise InvalidArgument(
                "Name the base images to make, or say --all, --list or --remove.",
                f"There are: {', '.join(bases.RECIPES)}.",
            )
        settings = load_settings()
        if remove:
            gone = run_async(lambda: _remove(settings))
            typer.echo(json.dumps({"removed": gone}) if as_json else "removed" if gone else "there were none")
            return
        wanted = [] if listing else bases.with_parents(list(bases.RECIPES) if everything else names or [])
        with Screen(quiet=quiet).working("looking for base images") as report:
            found = run_async(lambda: make_bases(settings, wanted, report, again=again))
        if as_json:
            typer.echo(json.dumps([{**asdict(each), "current": each.current} for each in found]))
        else:
            _print(found, list(bases.RECIPES) if listing else wanted)


async def make_bases(
    settings: Settings, names: "Sequence[str]", report: Report, *, again: bool = False
) -> "list[Base]":
    """See that the host has these base images; without names, the ones it has. Raises what `bases.make` raises."""
    from manyoyo_mcp.image import bases

    async with open_host(settings) as host, _maintenance(settings) as maintenance:
        if not names:
            return await bases.present(host, settings, maintenance, report)
        return await bases.make(host, settings, names, maintenance, report, again=again)


@asynccontextmanager
async def _maintenance(settings: Settings) -> "AsyncIterator[Maintenance]":
    """This process as the one that answers for what it makes; should it be killed, the reaper removes that."""
    from manyoyo_mcp.image.bases import Maintenance
    from manyoyo_mcp.policy.egress import Policy
    from manyoyo_mcp.sessions import reach, reaper, trust
    from manyoyo_mcp.sessions.identity import Identity
    from manyoyo_mcp.sessions.sweep import sweep

    identity = Identity()
    watcher = reaper.spawn(identity.session)
    try:
        async with open_host(settings) as host:
            rules = await reach.files(settings, host, Policy("open"), "podman")  # what is made there is the user's own
            yield Maintenance(identity.labels(), trust.files(settings) | rules, lambda: sweep(host, settings))
    finally:
        watcher.terminate()
        watcher.wait()


async def _remove(settings: Settings) -> bool:
    from manyoyo_mcp.image import bases

    async with open_host(settings) as host:
        return await bases.remove(host)


def _print(found: "Sequence[Base]", names: "Sequence[str]") -> None:
    from manyoyo_mcp.image.bases import RECIPES

    there = {base.name: base for base in found}
    rows = []
    for name in names:
        base = there.get(name)
        state = "not made" if base is None else "made" if base.current else "made another way than it would be today"
        size = format_bytes(base.size) if base else ""
        made = f"{age(time.time() - base.created)} ago" if base else ""
        tags = ", ".join(base.tags) if base else ""
        rows.append((name, state, size, made, tags, RECIPES[name].summary))
    print_table(("NAME", "STATE", "SIZE", "MADE", "IMAGE", "WHAT"), rows)
