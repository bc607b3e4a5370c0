"""`manyoyo-mcp uninstall`: everything of ours on this host and in this user's files, listed, then removed."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import docker
import typer

from manyoyo_mcp.audit import journal
from manyoyo_mcp.cli.connect import load_settings
from manyoyo_mcp.cli.exits import Exit, complain
from manyoyo_mcp.cli.processes import running
from manyoyo_mcp.cli.recorded import on_record
from manyoyo_mcp.cli.screen import Screen, print_table
from manyoyo_mcp.config import CONFIG_FILE, ENGINE_SCRIPT, Settings
from manyoyo_mcp.errors import HostUnavailable, InvalidArgument
from manyoyo_mcp.hosts import sharing
from manyoyo_mcp.hosts.base import LABEL, ours
from manyoyo_mcp.hosts.docker import open_host
from manyoyo_mcp.hosts.mirror import NAME as MIRROR
from manyoyo_mcp.hosts.pool import KEEPER
from manyoyo_mcp.hosts.stores import pooled
from manyoyo_mcp.image.bases import VOLUME
from manyoyo_mcp.sessions.identity import answers_for, owner
from manyoyo_mcp.values import format_bytes
from manyoyo_mcp.workers import in_thread

IMAGES = "localhost/manyoyo/"
"""What the names of our images on a host begin with."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Something of ours: what it is, its name, a word about it, and how it is removed."""

    kind: str
    name: str
    note: str
    remove: Callable[[], object]


async def uninstall(*, yes: bool, dry_run: bool, as_json: bool, screen: Screen) -> int:
    """List everything, ask, remove it; the exit code: 1 where the answer is no, something could not be removed, or the
    host could not be looked at."""
    settings = load_settings()
    async with open_host(settings) as host:
        with screen.working("looking for everything of ours on this host"):
            things = await in_thread(lambda: list(of_processes(settings)))
            unseen = None
            try:
                await host.info()  # the host answers, or this says why not
                things += await in_thread(lambda: list(of_principals(host.client, owner())))
                things += await in_thread(
                    lambda: list(on_host(host.client, owner()))
                )  # last: what the others are made of
            except HostUnavailable as error:
                unseen = error
            things += await in_thread(lambda: list(on_disk(settings)))
        if as_json:
            print(json.dumps([{"kind": each.kind, "name": each.name, "note": each.note} for each in things], indent=2))
        else:
            _show(things, screen)
        if unseen is not None:
            complain(
                f"{unseen.instance_code}: {unseen.message}",
                f"Containers, volumes and images could not be looked at: run this again when it answers. {unseen.hint}",
            )
        if not dry_run and things:
            if not yes and not _agreed(len(things)):
                return Exit.FAILED
            kept = await in_thread(_removed, settings, things, screen)
            screen.say(f"Removed {len(things) - kept} of {len(things)}.")
        else:
            kept = 0
    for line in _further(settings):
        screen.say(line)
    return Exit.FAILED if kept or unseen else Exit.OK


def _further(settings: Settings) -> Iterator[str]:
    """What else there may be, which is not ours to remove."""
    yield "What else there may be, yours to remove:"
    yield "  the server's entry in your client: `claude mcp remove manyoyo`, or the client's own way"
    if ENGINE_SCRIPT.exists():
        yield f"  engines that this checkout's scripts brought up, with their data: `{ENGINE_SCRIPT} purge`"
    if CONFIG_FILE.exists():
        yield f"  your configuration: {CONFIG_FILE}"
    if settings.http_tokens.exists():
        yield f"  tokens of serve --http: {settings.http_tokens}"
    yield "  the program itself: `pip uninstall manyoyo-mcp`, or `uv tool uninstall manyoyo-mcp`, as you installed it"


def of_processes(settings: Settings) -> Iterator[Thing]:
    """The servers and reapers that run; a server removes its sandboxes as it ends."""
    for each in running(settings):
        note = f"its sandboxes end with it, on whichever engine: {each.words}" if each.kind == "server" else each.words
        yield Thing(each.kind, f"process {each.pid}", note, each.end)


def _containers(client: docker.APIClient, mine: dict[str, str]) -> Iterator[Thing]:
    for row in client.containers(all=True, filters=mine):
        labels = {key.removeprefix(LABEL): value for key, value in row["Labels"].items() if key.startswith(LABEL)}
        held = answers_for(labels) and row["State"] == "running"
        note = f"{row['State']}; a server holds it (pid {labels.get('server-pid')})" if held else row["State"]
        remove = partial(client.remove_container, row["Id"], force=True, v=True)
        yield Thing(labels.get("kind", "container"), row["Names"][0].lstrip("/"), note, remove)


def of_principals(client: docker.APIClient, user: str) -> Iterator[Thing]:
    """What the principals of this user's HTTP servers have on the host."""
    theirs = {"label": f"{LABEL}user={user}"}
    yield from _containers(client, theirs)
    for each in client.volumes(filters=theirs)["Volumes"] or []:
        yield Thing("volume", each["Name"], _kept(ours(each["Labels"])), partial(client.remove_volume, each["Name"]))


def on_host(client: docker.APIClient, whose: str) -> Iterator[Thing]:
    """What `whose` has on the host, and what all users of it share (images, the volume of base images)."""
    mine = {"label": f"{LABEL}owner={whose}"}
    yield from _containers(client, mine)
    volumes = {each["Name"]: _kept(ours(each["Labels"])) for each in client.volumes(filters=mine)["Volumes"] or []}
    every = client.volumes()["Volumes"] or []
    for name, note in volumes.items():
        yield Thing("volume", name, note, partial(client.remove_volume, name))
    for row in client.containers(all=True, filters={"name": f"^/{MIRROR}$"}):
        yield Thing("mirror", MIRROR, row["State"], partial(client.remove_container, row["Id"], force=True))
    if any(each["Name"] == MIRROR for each in every):
        yield Thing("volume", MIRROR, "what the mirror has pulled", partial(client.remove_volume, MIRROR))
    theirs = client.volumes(filters={"label": f"{LABEL}user={whose}"})["Volumes"] or []
    mine_all = {*volumes, *(each["Name"] for each in theirs)}
    if all(each["Name"] in mine_all for each in every if pooled(each)):  # else other users have stores in it
        for row in client.containers(all=True, filters={"name": f"^/{KEEPER}$"}):
            yield Thing("pool", KEEPER, "its keeper", partial(client.remove_container, row["Id"], force=True))
        if any(each["Name"] == KEEPER for each in every):
            yield Thing("volume", KEEPER, "the pool", partial(client.remove_volume, KEEPER))
        if any(each["Name"] == VOLUME for each in every):  # the keeper holds them
            yield Thing("volume", VOLUME, "base images", partial(client.remove_volume, VOLUME))
    for row in client.networks(filters=mine):
        yield Thing("network", row["Name"], "", partial(client.remove_network, row["Id"]))
    labelled = {row["Id"] for row in client.images(filters={"label": f"{LABEL}kind=image"})}
    for row in client.images():
        tags = [tag for tag in row.get("RepoTags") or [] if tag != "<none>:<none>"]
        names = [tag for tag in tags if tag.startswith(IMAGES)] or (
            [row["Id"]] if row["Id"] in labelled and not tags else []
        )
        for name in names:
            yield Thing("image", name, format_bytes(row["Size"]), partial(client.remove_image, name))


def _kept(labels: dict[str, str]) -> str:
    if "checkpoint" in labels:
        return f"the checkpoint {labels['checkpoint']}"
    return f"all that the sandbox {labels['name']} holds" if "name" in labels else ""


def on_disk(settings: Settings) -> Iterator[Thing]:
    """What the servers keep in files: nothing but the entries that they make, whatever the directories are set to."""
    for path in (
        settings.state_dir / "sessions",
        settings.state_dir / "disks",
        settings.state_dir / "networks",
        journal.directory(settings.state_dir),
        settings.state_dir / "probes.json",
        settings.state_dir / "approvals.json",
        settings.state_dir / "approvals.lock",
        settings.lock_dir,
        settings.runtime_dir / "gates",
    ):
        if path.is_dir() and not path.is_symlink():
            yield Thing("directory", str(path), "", partial(_remove_directory, path))
        elif path.exists():
            yield Thing("file", str(path), "", partial(_remove_file, path))

    sockets = settings.runtime_dir / "sandboxes"
    if sockets.is_dir() and not sockets.is_symlink():
        yield Thing("directory", str(sockets), "", partial(_remove_sockets, sockets))


def _remove_sockets(path: Path) -> None:
    """Raises OSError where sandboxes of another engine have theirs in it."""
    for each in path.iterdir():
        if not sharing.listens(each / "engine.sock"):
            shutil.rmtree(each)
    if live := [each.name for each in path.iterdir()]:
        raise OSError(f"sandboxes on another engine listen there: {', '.join(live)}")
    _remove_directory(path)


def _remove_directory(path: Path) -> None:
    shutil.rmtree(path)
    _remove_if_empty(path.parent)


def _remove_file(path: Path) -> None:
    path.unlink()
    _remove_if_empty(path.parent)


def _remove_if_empty(directory: Path) -> None:
    if not any(directory.iterdir()):
        directory.rmdir()


def _show(things: list[Thing], screen: Screen) -> None:
    if not things:
        screen.say("Nothing of ours found.")
    else:
        print_table(("KIND", "NAME", "NOTE"), [(each.kind, each.name, each.note) for each in things])


def _agreed(count: int) -> bool:
    if not sys.stdin.isatty():
        raise InvalidArgument("Nobody is there to say yes: nothing was removed.", "Add --yes to remove what is listed.")
    return typer.confirm(f"Remove these {count}? They can't be brought back.", default=False, err=True)


def _removed(settings: Settings, things: list[Thing], screen: Screen) -> int:
    """The same on record, where there is a log: who has none is not left one by this, and the log goes too."""
    if not journal.directory(settings.state_dir).exists():
        return _remove(things, screen)
    with on_record(settings, "uninstall", things=[f"{each.kind} {each.name}" for each in things]) as result:
        kept = _remove(things, screen)
        result["removed"], result["kept"] = len(things) - kept, kept
    return kept


def _remove(things: list[Thing], screen: Screen) -> int:
    """Remove them in order; how many had to stay, each said with the reason."""
    kept = 0
    for index, each in enumerate(things):
        with screen.working(f"removing {each.name}") as progress:
            progress(index, len(things), f"removing {each.name}")
            try:
                each.remove()
            except (docker.errors.NotFound, FileNotFoundError):
                continue  # it went with another thing
            except (docker.errors.APIError, OSError) as error:
                kept += 1
                reason = error.explanation if isinstance(error, docker.errors.APIError) else str(error)
                complain(f"{each.kind} {each.name} stays: {reason}", "Another user of this host may be using it.")
    return kept
