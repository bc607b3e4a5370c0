"""The command line: `manyoyo-mcp`. What each command does lies in a module of its own, loaded when it is called."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from manyoyo_mcp.cli.approvals import app as approvals
from manyoyo_mcp.cli.arguments import command_words, no_option, no_port, no_volume
from manyoyo_mcp.cli.audit import app as audit
from manyoyo_mcp.cli.connect import run_async
from manyoyo_mcp.cli.image import app as image
from manyoyo_mcp.cli.mirror import app as mirror
from manyoyo_mcp.cli.tokens import app as tokens

app = typer.Typer(
    name="manyoyo-mcp",
    help="A container host of its own for an AI agent. Without a command: serve.",
    epilog="Exit codes: 0 done; 1 a check failed or the answer was no; 2 wrong use; run and exec: the command's own, "
    "124 timeout, 125 the sandbox or its host failed, 126 and 127 the command can't be started, 137 out of memory; "
    "130 interrupted.",
    pretty_exceptions_enable=False,
    no_args_is_help=False,
)
app.add_typer(image, name="image")
app.add_typer(mirror, name="mirror")
app.add_typer(audit, name="audit")
app.add_typer(approvals, name="approvals")
app.add_typer(tokens, name="token")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]
Sandbox = Annotated[
    str, typer.Argument(metavar="SANDBOX", help="Its name, its id, or the beginning of that (`ps` lists them).")
]
Words = {"allow_interspersed_args": False}
"""For commands whose last argument is a command: what follows our first argument is no option of ours."""
EXEC_USAGE = "exec [OPTIONS] SANDBOX CONTAINER [--] COMMAND…"
SHELL_USAGE = "shell [--image IMAGE] SANDBOX [CONTAINER] [--] [COMMAND…]"


def _version(wanted: bool) -> None:
    if wanted:
        from manyoyo_mcp import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    warm: Annotated[
        int | None, typer.Option(min=0, max=20, metavar="N", help="Sandboxes kept ready; default 0.")
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="[HOST:PORT]", help="Over HTTP, for several clients; default 127.0.0.1:8765."),
    ] = None,
) -> None:
    """Serve MCP over stdio, until the client closes it (the default); or over HTTP, until a signal comes."""
    from manyoyo_mcp.cli.serve import serve as run

    run(warm, http)


@app.command(context_settings=Words)
def run(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND…", help="Default: the image's own.")
    ] = None,
    build: Annotated[Path | None, typer.Option(metavar="DIR", help="Build this directory's image and run it.")] = None,
    image: Annotated[str | None, typer.Option(help="Run this image instead.")] = None,
    dockerfile: Annotated[str, typer.Option(help="Path in DIR.")] = "Dockerfile",
    target: Annotated[str | None, typer.Option(help="Stage to stop at.")] = None,
    build_arg: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Value for an ARG.")] = None,
    engine: Annotated[Literal["podman", "docker"] | None, typer.Option(help="The nested engine.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Cap of the command, e.g. 512m; default: half the sandbox's.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(help="Cap of the command, and of each build step.")] = None,
    pids_limit: Annotated[int | None, typer.Option(help="Processes and threads of the command.")] = None,
    network: Annotated[str, typer.Option(help="default, none.")] = "default",
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="K[=V]", help="Without V: this environment's.")
    ] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Working directory.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Name, or uid[:gid].")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds, then the command is killed.")] = None,
    file: Annotated[list[str] | None, typer.Option(metavar="SRC:DST", help="Put a file in.")] = None,
    output: Annotated[
        list[str] | None, typer.Option(metavar="PATH[:DST]", help="Bring a file out (4 MiB at most) when it has ended.")
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Hand stdin on; it is read to its end first.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="How it ended, as JSON on stdout; the output goes to stderr.")
    ] = False,
    quiet: Quiet = False,
    _volume: Annotated[list[str] | None, typer.Option("--volume", "-v", hidden=True, callback=no_volume)] = None,
    _publish: Annotated[list[str] | None, typer.Option("--publish", "-p", hidden=True, callback=no_port)] = None,
) -> None:
    """One shot, for CI: start a sandbox, build, run, bring files out, remove it all; exit with the command's exit code.

    What the command writes, to stdout and stderr, comes out on stdout as it is written; all else goes to stderr.
    """
    from manyoyo_mcp.cli import oneshot
    from manyoyo_mcp.cli.screen import Screen
    from manyoyo_mcp.values import check_cpus, check_image, check_pids, parse_memory

    if (build is None) == (image is None):
        raise typer.BadParameter("give one of the two: --build DIR or --image IMAGE", param_hint="--build / --image")
    order = oneshot.Order(
        command=command or [],
        build=build.expanduser().resolve() if build is not None else None,
        image=check_image(image) if image is not None else None,
        dockerfile=dockerfile,
        target=target,
        build_args=oneshot.pairs(build_arg or [], "--build-arg"),
        engine=engine,
        memory=parse_memory(memory, "--memory") if memory is not None else None,
        cpus=check_cpus(cpus) if cpus is not None else None,
        pids=check_pids(pids_limit) if pids_limit is not None else None,
        network=network,
        env=oneshot.pairs(env or [], "--env"),
        workdir=workdir,
        user=user,
        timeout_s=timeout,
        files=oneshot.files_in(file or []),
        outputs=oneshot.files_out(output or []),
        stdin=stdin,
    )
    raise typer.Exit(run_async(lambda: oneshot.run(order, Screen(quiet=quiet), as_json=as_json)))


@app.command()
def ps(
    sandbox: Annotated[str | None, typer.Argument(metavar="[SANDBOX]", help="List the containers in this one.")] = None,
    as_json: Json = False,
) -> None:
    """List your sandboxes on this host: engine, state, age, caps, and whether a server still holds each."""
    from manyoyo_mcp.cli import sandboxes

    if sandbox is None:
        run_async(lambda: sandboxes.ps(as_json=as_json))
    else:
        run_async(lambda: sandboxes.ps_nested(sandbox, as_json=as_json))


@app.command()
def logs(
    sandbox: Sandbox,
    container: Annotated[str | None, typer.Argument(help="A nested container; default: the sandbox's own log.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=1, help="Only so many lines from the end.")] = None,
) -> None:
    """Print what a nested container wrote; without CONTAINER, what the sandbox's engine wrote."""
    from manyoyo_mcp.cli import sandboxes

    run_async(lambda: sandboxes.logs(sandbox, container, tail))


@app.command("exec", context_settings=Words)
def execute(
    sandbox: Sandbox,
    container: Annotated[str, typer.Argument(help="Name or id of a nested container that runs.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND…")],
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="K[=V]", help="Without V: this environment's.")
    ] = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Working directory.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Name, or uid[:gid].")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds, then the command is killed.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Hand stdin on; it is read to its end first.")] = False,
) -> None:
    """Run a command in a nested container; exit with its exit code. Options come before SANDBOX."""
    from manyoyo_mcp.cli import oneshot, sandboxes
    from manyoyo_mcp.engines.base import ExecSpec

    no_option(container, EXEC_USAGE)
    words = command_words(command, EXEC_USAGE)
    if not words:
        raise typer.BadParameter("the command is missing", param_hint="COMMAND…")

    async def work() -> int:
        spec = ExecSpec(
            container=container,
            command=words,
            env=oneshot.pairs(env or [], "--env"),
            stdin=await sandboxes.read_stdin(stdin),
            workdir=workdir,
            user=user,
            timeout_s=timeout,
        )
        return await sandboxes.execute(sandbox, spec)

    raise typer.Exit(run_async(work))


@app.command(context_settings=Words)
def shell(
    sandbox: Sandbox,
    container: Annotated[str | None, typer.Argument(help="A nested container that runs.")] = None,
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND…", help="Default: bash, else sh.")] = None,
    image: Annotated[
        str | None, typer.Option(help="Without CONTAINER: a throw-away container of this image, which has a sh.")
    ] = None,
) -> None:
    """A terminal in a nested container: one that runs, or with --image a new one that goes when you leave. Options come
    before SANDBOX.

    There is no shell in the sandbox's outer container: that is privileged, and root in it is root on the host. What
    runs in the nested ones is held by the sandbox's caps and policy, and so are you.
    """
    from manyoyo_mcp.cli import shell as terminal
    from manyoyo_mcp.cli.screen import Screen

    words = command or []
    if image is not None and container is not None:  # without CONTAINER the words are all COMMAND's
        words, container = [container, *words], None
    if container is not None:
        no_option(container, SHELL_USAGE)
    words = command_words(words, SHELL_USAGE)
    raise typer.Exit(run_async(lambda: terminal.shell(sandbox, container, image, words, Screen())))


@app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="SANDBOX…",
            help="Names, ids or the beginnings of those; checkpoint:NAME or sandbox:NAME where both have a name.",
        ),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove sandboxes and checkpoints of yours with all that is in them, whether or not a server holds them."""
    from manyoyo_mcp.cli import sandboxes
    from manyoyo_mcp.cli.screen import Screen

    run_async(lambda: sandboxes.rm(names, as_json=as_json, screen=Screen(quiet=quiet)))


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove your sandboxes whose server has ended without removing them."""
    from manyoyo_mcp.cli import sandboxes
    from manyoyo_mcp.cli.screen import Screen

    run_async(lambda: sandboxes.gc(dry_run=dry_run, as_json=as_json, screen=Screen(quiet=quiet)))


@app.command()
def doctor(
    what: Annotated[
        Literal["isolation"] | None,
        typer.Argument(
            metavar="isolation", help="Start a sandbox of each tier of isolation instead; say which can be had."
        ),
    ] = None,
    tiers: Annotated[list[str] | None, typer.Argument(metavar="TIER…", help="Of these tiers alone.")] = None,
    try_sandboxes: Annotated[
        bool, typer.Option("--try", help="Start a sandbox of each engine, probe its caps, remove it.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check this machine and its container engine; say how to mend what is amiss. Exit code 1 if a check fails."""
    from manyoyo_mcp.cli import doctor as surgery
    from manyoyo_mcp.cli.screen import Screen

    screen = Screen(quiet=quiet)
    if what is not None:
        raise typer.Exit(run_async(lambda: surgery.isolation(tiers or [], as_json=as_json, screen=screen)))
    raise typer.Exit(run_async(lambda: surgery.doctor(try_sandboxes=try_sandboxes, as_json=as_json, screen=screen)))


@app.command()
def demo(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the closing line, and errors.")] = False,
) -> None:
    """Watch the main job over MCP: a sandbox, a build, its tests, a run killed at its memory cap, all removed."""
    from manyoyo_mcp.cli import demo as show

    raise typer.Exit(run_async(lambda: show.demo(quiet=quiet)))


@app.command()
def uninstall(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove everything of ours on this host, after listing it: your sandboxes and volumes, our images, our files."""
    from manyoyo_mcp.cli import uninstall as removal
    from manyoyo_mcp.cli.screen import Screen

    raise typer.Exit(
        run_async(lambda: removal.uninstall(yes=yes, dry_run=dry_run, as_json=as_json, screen=Screen(quiet=quiet)))
    )


@app.command()
def schemas(
    directory: Annotated[Path, typer.Argument(help="Where to write NAME.json.")] = Path("tool_schemas"),
) -> None:
    """Write one JSON file a tool: name, description, annotations, input and output schema."""
    from manyoyo_mcp.cli.schemas import write

    for path in write(directory):
        typer.echo(path)
