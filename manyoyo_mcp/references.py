"""Where secrets are to be had: references to them, as the settings write them. Never values."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args

Kind = Literal["env", "file", "command"]
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_DECLARED = re.compile(rf"(?:{NAME}/)?{NAME}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NEXT = re.compile(rf",(?=\s*(?:(?:{NAME}/)?{NAME}\s*=\s*(?:{'|'.join(get_args(Kind))}):|$))")
"""Other commas are a command's or path's own."""
_ANOTHER = re.compile(rf",\s*(?:{NAME}/)?{NAME}\s*=")
_HOW = "write env:VARIABLE, file:/PATH or command:PROGRAM ARGUMENTS (never the value itself)"


@dataclass(frozen=True, slots=True)
class Reference:
    """`words`: a variable's name, an absolute path (~ for the home directory), or a program with its arguments."""

    kind: Kind
    words: tuple[str, ...]


def parse(given: Any) -> dict[str, Reference]:
    """References by name, from `NAME=KIND:…,NAME=KIND:…`, the same as JSON object, or a table of the settings file. Raises ValueError,
    which quotes nothing that may be a value."""
    if isinstance(given, str):
        given = _table(given)
    if not isinstance(given, Mapping):
        raise ValueError(f"no mapping of names to references: {_HOW}")
    found = {}
    for name, written in given.items():
        if not isinstance(name, str) or not _DECLARED.fullmatch(name):
            raise ValueError("a name is letters, digits, _ . -, at most 64 of them; for one principal PRINCIPAL/NAME")
        found[name] = written if isinstance(written, Reference) else _reference(name, written)
    return found


def _table(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except ValueError as error:
            raise ValueError(f"it begins as JSON does, and is none: {error.args[0].partition(':')[0]}") from None
    else:
        parts = [each.partition("=") for each in _NEXT.split(text) if each.strip()]
        if not all(equals for _, equals, _ in parts):
            raise ValueError(f"no NAME=…: {_HOW}")
        pairs = [(name.strip(), written.strip()) for name, _, written in parts]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name is declared twice")
    return dict(pairs)


def _reference(name: str, written: Any) -> Reference:
    if isinstance(written, list) and written and all(isinstance(each, str) for each in written):
        return Reference("command", tuple(written))
    kind, colon, rest = written.partition(":") if isinstance(written, str) else ("", "", "")
    if not colon or not rest.strip():
        raise ValueError(f"{name} is no reference: {_HOW}")
    match kind:
        case "env":
            if not _VARIABLE.fullmatch(rest):
                raise ValueError(f"{name}: env: takes the name of a variable of the server's environment")
            return Reference("env", (rest,))
        case "file":
            if _ANOTHER.search(rest):
                raise ValueError(
                    f"what follows {name} is no reference: {_HOW}; a path with ,…= in it as JSON or in the settings file"
                )
            if not (rest.startswith("~") or PurePath(rest).is_absolute()):
                raise ValueError(f"{name}: file: takes an absolute path, or one from ~")
            return Reference("file", (rest,))
        case "command":
            try:
                words = shlex.split(rest)
            except ValueError as error:
                raise ValueError(f"{name}: command: {error.args[0].lower()}; quote words as a shell does") from None
            return Reference("command", tuple(words))
    raise ValueError(f"{name} is no reference: {_HOW}")


def of(references: Mapping[str, Reference], principal: str) -> dict[str, Reference]:
    """Those that are one principal's, by their own names; the server's user ("") has those that name nobody."""
    prefix = f"{principal}/" if principal else ""
    return {
        name.removeprefix(prefix): reference
        for name, reference in references.items()
        if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }
