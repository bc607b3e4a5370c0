"""`manyoyo-mcp mirror`: a cache of a registry for all sandboxes of this host."""

import json
from typing import Annotated

import anyio
import docker
import typer

from manyoyo_mcp.cli.connect import load_settings, run_async
from manyoyo_mcp.cli.exits import reported
from manyoyo_mcp.cli.screen import Report, Screen
from manyoyo_mcp.errors import HostUnavailable, InvalidArgument
from manyoyo_mcp.hosts.base import Mirror
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.workers import in_thread

app = typer.Typer(help="A cache of a registry, from which all sandboxes of this host pull.", no_args_is_help=True)

_DOCKER_IO = "https://registry-1.docker.io"
_PATIENCE = 10.0
"""Seconds that it may take until it runs."""


@app.command()
def up(
    registry: Annotated[str, typer.Option(help="Which registry, as in an image's name.")] = "docker.io",
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="Where that is; default: https://REGISTRY.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False,
) -> None:
    """Start it, or start it anew. It pulls with this user's credentials (`docker login`): sandboxes never see them, but all of
    this host may then pull what they open."""
    from manyoyo_mcp.image import outer
    from manyoyo_mcp.sessions import trust

    url = upstream or (_DOCKER_IO if registry == "docker.io" else f"https://{registry}")

    async def work(report: Report) -> Mirror:
        settings = load_settings()
        async with open_host(settings) as host:
            image = await outer.ensure(host, settings, report)
            credentials = await in_thread(_credentials, registry)
            certificates = {path: content for path, content in trust.files(settings).items() if path.endswith(".crt")}
            await host.start_mirror(image, registry, url, credentials, certificates)
            with anyio.move_on_after(_PATIENCE):
                while (found := await host.mirror()) is None:  # noqa: ASYNC110 - nothing tells
                    await anyio.sleep(0.1)
                return found
            raise HostUnavailable("The mirror does not run.", "`docker logs manyoyo-mirror` says why.")

    with reported():
        if "://" not in url:
            raise InvalidArgument(f"--upstream {url[:80]!r} is no URL.", "Write e.g. https://registry.example.")
        with Screen(quiet=quiet).working("starting the mirror") as report:
            found = run_async(lambda: work(report))
        which = "sandboxes" if found.registry == "docker.io" else "podman sandboxes (dockerd mirrors docker.io alone)"
        typer.echo(f"{found.registry} is mirrored at {found.address}; {which} that start from now on pull through it.")


@app.command()
def down(
    data: Annotated[bool, typer.Option("--data", help="Also what it has pulled.")] = False,
) -> None:
    """Remove it. Sandboxes pull from the registry itself again."""

    async def work() -> bool:
        async with open_host(load_settings()) as host:
            return await host.stop_mirror(data=data)

    with reported():
        typer.echo("Removed." if run_async(work) else "There is no mirror.")


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False) -> None:
    """Say what is mirrored, and where."""

    async def work() -> Mirror | None:
        async with open_host(load_settings()) as host:
            return await host.mirror()

    with reported():
        found = run_async(work)
        if as_json:
            fields = ("registry", "upstream", "address")
            typer.echo(json.dumps({name: getattr(found, name) for name in fields} if found else None))
        else:
            typer.echo(f"{found.registry} ({found.upstream}) at {found.address}" if found else "No mirror runs.")


def _credentials(registry: str) -> dict[str, str]:
    try:
        known = docker.auth.load_config().resolve_authconfig(None if registry == "docker.io" else registry) or {}
    except docker.errors.DockerException:
        return {}
    return {"username": known.get("username") or known.get("Username") or "",
            "password": known.get("password") or known.get("Password") or ""}  # fmt: skip
