"""`manyoyo-mcp audit`: what stands in the audit log, and whether it is as it was written."""

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyoyo_mcp.cli.exits import Exit, complain, reported
from manyoyo_mcp.errors import InvalidArgument

if TYPE_CHECKING:  # imported where it is used: a server's start does without
    from manyoyo_mcp.audit.verifying import Verdict

app = typer.Typer(help="What sandboxes were asked for, what was decided, and what came of it.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Directory = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the log lies, e.g. a copy; default: your own.")
]
_AGO = re.compile(r"([0-9]{1,6})\s*(s|min|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@app.command()
def verify(
    contains: Annotated[
        str, typer.Option(metavar="HASH", help="The chain must hold this one, which an earlier verify told.")
    ] = "",
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Read the whole log; say where it was first edited, removed from, inserted into, reordered or torn. Exit code 1 if it was."""
    from manyoyo_mcp.audit.verifying import verify as read

    with reported():
        where = _where(directory)
        verdict = read(where, contains)
        fails = verdict.broken is not None or verdict.records == 0 or bool(contains and not verdict.contains)
        if as_json:
            print(json.dumps({"sound": not fails, "directory": str(where), **asdict(verdict)}, indent=2))
        else:
            _tell(where, verdict, contains)
    raise typer.Exit(Exit.FAILED if fails else Exit.OK)


def _tell(where: Path, verdict: "Verdict", contains: str) -> None:
    if broken := verdict.broken:
        place = f"{broken.file}, line {broken.line}" if broken.line else broken.file
        complain(
            f"the log in {where} is not as it was written: {broken.how} at {place}: {broken.words}.",
            f"{verdict.records:,} records before that are sound. Keep a copy of the directory before anything else is written there.",
        )
        return
    if not verdict.records:
        complain(f"there is no audit log in {where}.", "A server begins it with the first call that it gets.")
        return
    typer.echo(f"{verdict.records:,} records in {verdict.files} file{'s' * (verdict.files != 1)}, from {verdict.begins} on: sound.")  # fmt: skip
    if verdict.torn:
        typer.echo(f"{verdict.torn} times a write was cut short (its process was killed); the next record says so.")
    typer.echo(f"The last: {verdict.last}")
    if contains and not verdict.contains:
        complain(f"the log does not hold {contains[:80]}.", "It was replaced, or its end was cut off; or rotation has removed it by now.")  # fmt: skip


@app.command()
def show(
    session: Annotated[str, typer.Option(help="Only this session's, or those that begin so.")] = "",
    tool: Annotated[
        str,
        typer.Option(help="Only this tool's; also command, http, principal, gate, port, job, approval, session, log."),
    ] = "",
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    since: Annotated[str, typer.Option(metavar="TIME", help="2h, 7d …, or a time such as 2026-02-03T10:00.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="The newest so many.")] = 50,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Print the log, the newest last. What it quotes comes from clients and is made harmless; it is not verified here."""
    from manyoyo_mcp.audit.reading import Wanted, entries
    from manyoyo_mcp.cli.screen import Screen, print_table

    with reported():
        where = _where(directory)
        found = entries(where, Wanted(session, tool, refused, _since(since), limit))
        if as_json:
            print(json.dumps(found, indent=2))
        elif not found:
            Screen().say(f"Nothing of that kind in {where}.")
        else:
            print_table(
                ("WHEN (UTC)", "SESSION", "WHAT", "DECISION", "SECONDS", "RESULT", "ASKED"), list(map(_row, found))
            )


def _where(directory: Path | None) -> Path:
    from manyoyo_mcp.audit.journal import directory as of_owner
    from manyoyo_mcp.cli.connect import load_settings

    return directory if directory is not None else of_owner(load_settings().state_dir)


def _since(text: str) -> str:
    """A time as records have it. Raises InvalidArgument."""
    if not text:
        return ""
    if ago := _AGO.fullmatch(text.strip()):
        moment = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    else:
        try:
            moment = datetime.fromisoformat(text).astimezone(UTC)
        except ValueError as error:
            raise InvalidArgument(f"--since {text[:40]!r} is no time.", "Write 30m, 2h, 7d, or 2026-02-03T10:00.") from error  # fmt: skip
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _row(entry: dict[str, Any]) -> list[str]:
    from manyoyo_mcp.audit.reading import outlined

    kind = entry["kind"]
    match kind:
        case "call":
            what, asked = str(entry.get("tool", "")), outlined(entry.get("arguments"))
        case "gate":
            what = f"gate ({entry.get('road', '')})"
            asked = f"{entry.get('method', '')} {entry.get('path', '')} {outlined(entry.get('query'))}"
        case "command":
            what, asked = f"cli {entry.get('command', '')}", outlined(entry.get("arguments"))
        case "http":
            what, asked = "http", str(entry.get("address", entry.get("owner", "")))
        case "job":
            what, asked = "job", str(entry.get("job_id", ""))
        case "approval":
            what, asked = f"approval ({entry.get('approval', '')})", str(entry.get("subject", ""))
        case _:
            left = ("kind", "event", "at", "owner", "session", "client")
            what, asked = f"{kind} {entry.get('event', '')}", outlined({key: value for key, value in entry.items() if key not in left})  # fmt: skip
    result = " ".join(
        filter(
            None,
            [
                str(entry.get("by", "")),
                str(entry.get("code", "")),
                outlined(entry.get("result")),
                str(entry.get("reason", "")),
            ],
        )
    )
    if kind == "gate" and "status" in entry:
        result = f"status {entry['status']}"
    if entry.get("more"):
        result += f" (and {entry['more']} more)"
    if entry.get("open"):
        result = "(no end on record)"
    return [
        str(entry.get("at", ""))[:19].replace("T", " "), str(entry.get("session", ""))[:8], what, str(entry.get("decision", "")),
        str(entry.get("seconds", "")), _cut(result, 60), _cut(asked.strip(), 90),
    ]  # fmt: skip


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
