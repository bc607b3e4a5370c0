"""Single instructions of a Dockerfile: what they say, and what is to be run for a RUN that no builder runs."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from posixpath import normpath

from manyoyo_mcp.engines.buildlog import Instruction
from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy.hostbuilds import COPIED

_REST = re.compile(r"[A-Za-z]+[\t\v\f\r ]*(.*)", re.DOTALL)
_FLAGS = re.compile(r"(?:--\S+[\t ]+)*")
_DECLARED = re.compile(r"(?:^|(?<=[\t ]))([A-Za-z_]\w*)(?:=((?:\"[^\"]*\"|'[^']*'|\S)*))?")
_PLAIN = re.compile(r"[\w@%+:,./-]*", re.ASCII)
_OWNER = re.compile(r"--chown=(\S+)")
_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "zsh"})
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
UNSET = "\0"
"""The value of an argument that has none, not even an empty one."""
_READ = (
    "case $- in *x*) TRACED=1; set +x;; esac; "
    'while IFS= read -r ARGUMENT; do (export "$ARGUMENT") 2>/dev/null && export "$ARGUMENT"; done; unset ARGUMENT; '
    '[ -z "${TRACED-}" ] || { unset TRACED; set -x; }; '
)
"""In a shell, what takes arguments from standard input, untold; one of a name that is the shell's own (UID, in bash) would end it."""
_SIMPLE = re.compile(r"[\w@%+=:,./~ -]+", re.ASCII)
"""A path that means no other to the builder, who takes ".." for less than the file system does."""


def command(run: Instruction, shell: list[str], given: Mapping[str, str]) -> list[str]:
    """The command of a RUN, which has these arguments as `exported` on its standard input, so that no image and no history keeps them. Raises
    PolicyRefused where its shell knows no export."""
    rest = rest_of(run.raw)
    words = _words(rest)
    if words is not None:
        return ["/bin/sh", "-c", f'{_READ}exec "$@"', "sh", *words] if given else words
    if given and not any(word.rpartition("/")[2] in _SHELLS for word in shell):
        raise PolicyRefused(
            f"{shell[0][:60]} is no shell that can be given the arguments of a build (ARG) in this isolation.",
            "Use ENV, or a shell as /bin/sh; or build in a sandbox with an engine of its own.",
        )
    return [*shell, (_READ if given else "") + rest]


def exported(given: Mapping[str, str]) -> bytes:
    """Arguments as `command` reads them. Raises InvalidArgument for one of several lines."""
    for name, value in given.items():
        if "\n" in value or not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"The build argument {name[:60]!r} can't be given to a RUN in this isolation: it is a name, and one line.",
                "Write it without line breaks, or COPY a file that has it.",
            )
    return "".join(f"{name}={value}\n" for name, value in given.items()).encode()


def sources(copy: str) -> tuple[str, list[str]] | None:
    """The image that a COPY, as the builder is given it, copies from, and its paths there, "/" for what is no plain word; None for the context."""
    rest = rest_of(copy)
    found = COPIED.search(flags_of(rest)) if copy.startswith("COPY ") else None
    if found is None:
        return None
    rest = rest[len(flags_of(rest)) :]
    words = _words(rest) or re.split(r"[\t ]+", rest.strip())
    return found[1], ["/" + each if _SIMPLE.fullmatch(each) and ".." not in each else "/" for each in words[:-1]]


def owner_of(copy: str) -> str:
    """The names, of --chown, of a COPY or ADD; nothing for numbers. The builder looks names up in the image that there is by then."""
    rest = rest_of(copy)
    found = _OWNER.search(flags_of(rest)) if re.match(r"(?:COPY|ADD)\b", copy, re.IGNORECASE) else None
    return "" if found is None or all(map(str.isdecimal, found[1].split(":"))) else found[1]


def by_owners(batch: Sequence[tuple[int, Instruction]]) -> Iterator[list[tuple[int, Instruction]]]:
    """The same in parts, each of which begins with the first of instructions that look a name up."""
    part: list[tuple[int, Instruction]] = []
    for each in batch:
        if part and owner_of(each[1].raw):
            yield part
            part = []
        part.append(each)
    if part or not batch:
        yield part


def unpacked(add: Instruction, archives: set[str]) -> str | None:
    """Of these files of a context, one that an ADD would unpack."""
    rest = rest_of(add.raw)
    rest = rest[len(flags_of(rest)) :]
    try:
        words = _words(rest) or shlex.split(rest)
    except ValueError:
        words = rest.split()
    named = sorted(archives)
    for source in words[:-1]:
        pattern = normpath("/" + source).lstrip("/")
        for each in named:
            if fnmatchcase(each, pattern.replace("[^", "[!")):
                return each
    return None


def values(argument: Instruction) -> dict[str, str | None]:
    """What an ARG declares, each with the value that it has by itself: None for one that is not plain."""
    found: dict[str, str | None] = {}
    for match in _DECLARED.finditer(rest_of(argument.raw)):
        name, value = match[1], match[2]
        found[name] = UNSET if value is None else value if _PLAIN.fullmatch(value) else None
    return found


def rest_of(raw: str) -> str:
    found = _REST.match(raw)
    return found[1] if found else ""


def flags_of(rest: str) -> str:
    """Those that an instruction begins with, after its keyword."""
    found = _FLAGS.match(rest)
    return found[0] if found else ""


def _words(rest: str) -> list[str] | None:
    """The words of an instruction that is written as a JSON list; None of any other."""
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    return words if isinstance(words, list) and words and all(isinstance(each, str) for each in words) else None
