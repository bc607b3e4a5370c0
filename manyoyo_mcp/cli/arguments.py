"""Where options end and a command begins, and docker's options that have no counterpart here."""

from typing import Any

from manyoyo_mcp.errors import InvalidArgument, NotSupported


def command_words(words: list[str], usage: str) -> list[str]:
    """The words of a command, as given after our own arguments; a leading `--` says that they are all the command's.

    Raises InvalidArgument where the first looks like an option of ours that came too late.
    """
    if words[:1] == ["--"]:
        return words[1:]
    if words:
        no_option(words[0], usage)
    return words


def no_option(word: str, usage: str) -> None:
    """Raises InvalidArgument for what looks like an option and stands where none is read any more."""
    if word.startswith("-"):
        raise InvalidArgument(
            f"{word[:40]!r} comes too late: options stand before SANDBOX.",
            f"Write manyoyo-mcp {usage}; after -- every word is the command's.",
        )


def no_volume(value: list[str] | None) -> Any:
    """Typer's callback of an option that docker has and a sandbox can't have."""
    if value:
        raise NotSupported(
            "Volumes are not offered: a sandbox sees none of this machine's directories.",
            "Files go in with the build context (--build DIR) or --file SRC:DST, and come out with --output PATH.",
        )


def no_port(value: list[str] | None) -> Any:
    """The same for ports."""
    if value:
        raise NotSupported(
            "Published ports are not offered here: this sandbox ends with its command.",
            "What talks to a service runs beside it in the same sandbox; through an MCP client sandbox_endpoint with ports=true has them "
            "(docs/endpoint.md).",
        )
