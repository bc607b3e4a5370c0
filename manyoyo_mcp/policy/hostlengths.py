"""How long what describes an image may become, and what one instruction may ask, in a build by the host's own engine: that has no bounds of its own, keeps all
that describes its images, and can't be told to stop in the midst of an instruction."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from manyoyo_mcp.policy.hostbuilds import KEY, PAIRS, VALUE, parts, refused
from manyoyo_mcp.policy.hostruns import MOST_PORTS, MOST_VOLUMES

_MOST_INSTRUCTIONS = 500
"""Of each the engine makes an image, whose description has that of all before it; it reads all of these at once where anyone lists images."""
_MOST_BYTES = 128 << 10
"""Of an instruction with what its variables stand for."""
_MOST_DESCRIBED = 256 << 10
"""Bytes of an image's configuration and history."""
_MOST_MADE = 16 << 20
"""Bytes of those of all images that a build makes."""
_MOST_PAIRS = 1000
"""Variables and labels that a Dockerfile sets: for each word the engine goes through all variables."""
_MOST_WORDS, _MOST_PATTERNS = 100, 20
"""Of a COPY: for each pattern the engine goes through the whole context."""
_LONGEST_PATTERN = 4096
"""Bytes of a COPY that has any."""
_AS_WRITTEN = frozenset({"RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK", "SHELL"})
"""Instructions in which the engine replaces no variables."""
_VARIABLE = re.compile(r"\$(\{?)([A-Za-z_]\w*)?(?=(.?))", re.ASCII | re.DOTALL)
_OTHERWISE = re.compile(r"""\$\{[A-Za-z_]\w*:[-+](?:[^{}\\`'"]|"[^{}"\\`]*"|'[^{}'\\`]*')*\}""", re.ASCII)
"""What stands in a variable's place: without another such in it, quoted or not, for the engine copies what is within once more for each, letter by letter."""
_SPECIAL = tuple("@*#?-!$0123456789")
_PAIR = re.compile(rf"({KEY})(?:=({VALUE}))?(?:\s+|\Z)")
_PAIRS = {
    "ENV": PAIRS,
    "ARG": re.compile(rf"(?:{KEY}(?:={VALUE})?(?:\s+|\Z))+"),
}
_ONE = re.compile(rf"({KEY})\s+([^=\s].*)", re.DOTALL)
"""ENV as it was first written."""
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(?:tcp|udp|sctp))?", re.IGNORECASE | re.ASCII)


def written(text: str) -> int:
    """The bytes of a text as Go writes it in JSON."""
    return len(text.encode("utf-8", "replace")) + sum(map(text.count, '"\\')) + 5 * sum(map(text.count, "<>&"))


def described(image: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> int:
    """The bytes of an image's configuration and history, whose author stands in each part of it."""
    return written(json.dumps([image.get("Config") or {}, history], ensure_ascii=False)) + len(history) * written(
        _author(image)
    )


def check(
    instructions: Sequence[str], given: Mapping[str, str], bases: Sequence[Mapping[str, Any]], begun: int
) -> None:
    """Raises PolicyRefused where images could be described by more than the engine is to hold. `given`: build arguments; `bases`: the images that are named, as
    the engine describes them; `begun`: the bytes of the longest of their descriptions."""
    if len(instructions) > _MOST_INSTRUCTIONS:
        raise refused(
            f"{len(instructions)} instructions",
            f"there may be {_MOST_INSTRUCTIONS}; join some (RUN … && …; ENV A=1 B=2).",
        )
    lengths = _Lengths(given, [base["Config"].get("Env") or [] for base in bases])
    standing, counts, made = _Standing(bases), _Counts(bases), 0
    for instruction in instructions:
        keyword, rest = parts(instruction)
        rest = rest.strip()
        length = written(rest) if keyword in _AS_WRITTEN else lengths.of(instruction, rest)
        if keyword in _PAIRS:
            lengths.sets(keyword, instruction, rest)
        counts.take(keyword, instruction, rest, length)
        standing.take(keyword, rest, length)
        begun += length + standing.bytes
        made += begun
        if length > _MOST_BYTES or begun > _MOST_DESCRIBED or made > _MOST_MADE:
            raise refused(
                instruction,
                "with its variables, as long as they can be, the image has too long a description, or all that are made before it have.",
            )


class _Lengths:
    """How long variables can become, by their names. `hidden`: those whose names are not known."""

    def __init__(self, given: Mapping[str, str], environments: Sequence[Sequence[str]]) -> None:
        self._longest: dict[str, int] = {}
        self._hidden = 0
        named = [each.partition("=") for environment in environments for each in environment]
        for name, value in [*given.items(), *((name, value) for name, _, value in named)]:
            if re.fullmatch(KEY, name):
                self._set(name, written(value))
            else:
                self._hidden = max(self._hidden, written(value))

    def of(self, instruction: str, words: str) -> int:
        named = _variables(instruction, words)
        return written(words) + sum(max(self._hidden, self._longest.get(name, 0)) for name in named)

    def sets(self, keyword: str, instruction: str, rest: str) -> None:
        """An ENV or an ARG."""
        if one := _ONE.fullmatch(rest) if keyword == "ENV" else None:
            self._set(one[1], self.of(instruction, one[2]))
        elif _PAIRS[keyword].fullmatch(rest):
            for name, value in [(name, self.of(instruction, value)) for name, value in _PAIR.findall(rest)]:
                self._set(name, value)
        elif _variables(instruction, rest):
            raise refused(
                instruction, 'with variables it is NAME=value or NAME="value", without other quotes and escapes.'
            )
        else:
            self._hidden = max(self._hidden, written(rest))

    def _set(self, name: str, length: int) -> None:
        self._longest[name] = max(self._longest.get(name, 0), length)


def _variables(instruction: str, words: str) -> list[str]:
    """The variables in it, as the engine finds them; "" for one that no instruction can set. Raises PolicyRefused for what it could read in another way."""
    names = []
    for found in _VARIABLE.finditer(words):
        brace, name, after = found.groups()
        if not after.isascii() or (brace and (not name or after not in ("}", ":"))):
            raise refused(instruction, "a variable is $NAME, ${NAME}, ${NAME:-…} or ${NAME:+…} in this isolation.")
        if brace and after == ":" and _OTHERWISE.match(words, found.start()) is None:
            raise refused(
                instruction, "in ${NAME:-…} and ${NAME:+…} stand no braces and backslashes in this isolation."
            )
        if name or after in _SPECIAL:
            names.append(name)
    return names


class _Standing:
    """What stands in the description of each instruction from where it was said on: shell, author and working directory."""

    def __init__(self, bases: Sequence[Mapping[str, Any]]) -> None:
        self._shell = max((written(json.dumps(base["Config"].get("Shell") or [])) for base in bases), default=0)
        self._author = max((written(_author(base)) for base in bases), default=0)
        self._place = max((written(base["Config"].get("WorkingDir") or "") for base in bases), default=0)

    def take(self, keyword: str, rest: str, length: int) -> None:
        match keyword:
            case "SHELL":
                self._shell = max(self._shell, length)
            case "MAINTAINER":
                self._author = max(self._author, length)
            case "WORKDIR":
                self._place = max(self._place, length) if rest.startswith("/") else self._place + 1 + length

    @property
    def bytes(self) -> int:
        return self._shell + self._author + self._place


class _Counts:
    """How many ports, volumes and variables there are."""

    def __init__(self, bases: Sequence[Mapping[str, Any]]) -> None:
        self._ports = max((len(base["Config"].get("ExposedPorts") or {}) for base in bases), default=0)
        self._volumes = max((len(base["Config"].get("Volumes") or {}) for base in bases), default=0)
        self._pairs = max(
            (len(base["Config"].get("Env") or []) + len(base["Config"].get("Labels") or {}) for base in bases),
            default=0,
        )

    def take(self, keyword: str, instruction: str, rest: str, length: int) -> None:
        """Raises PolicyRefused where it is too many."""
        words = re.split(r"[\s,]+", rest)
        match keyword:
            case "EXPOSE":
                self._ports += sum(_ports(instruction, each) for each in rest.split())
            case "VOLUME":
                self._volumes += len(words)
            case "ENV" | "LABEL":
                self._pairs += max(rest.count("="), 1)
            case "ARG":
                self._pairs += len(rest.split())
            case "ADD" | "COPY":
                patterns = sum(1 for each in words if re.search(r"[*?[$\\]", each))
                if len(words) > _MOST_WORDS or patterns > _MOST_PATTERNS or (patterns and length > _LONGEST_PATTERN):
                    raise refused(
                        instruction,
                        f"it may name {_MOST_WORDS} files, and {_MOST_PATTERNS} patterns in {_LONGEST_PATTERN} letters: name directories.",
                    )
                if len(words[:-1]) > len(set(words[:-1])):
                    raise refused(instruction, "it names one file twice.")
        if self._ports > MOST_PORTS or self._volumes > MOST_VOLUMES or self._pairs > _MOST_PAIRS:
            raise refused(
                instruction,
                f"there may be {MOST_PORTS} ports, {MOST_VOLUMES} volumes, and {_MOST_PAIRS} variables and labels, with those of the image that it begins with.",
            )


def _ports(instruction: str, word: str) -> int:
    found = _PORTS.fullmatch(word)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise refused(instruction, "ports are numbers in this isolation, as 80, 80/udp or 8000-8010.")
    return int(found[2] or found[1]) - int(found[1]) + 1


def _author(image: Mapping[str, Any]) -> str:
    return str(image.get("Author") or "")
