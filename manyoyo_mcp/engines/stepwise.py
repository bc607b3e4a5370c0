"""A Dockerfile taken apart, for a builder that is to run no commands: batches of instructions, and between them those of RUN."""

import json
import re
import shlex
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import BufferedReader
from posixpath import normpath
from typing import Any

from manyoyo_mcp.engines.buildlog import Instruction, instructions, is_backtick
from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy.hostbuilds import COPIED
from manyoyo_mcp.policy.wire import Body

_DIRECTIVE = "# escape=`\n"
_REST = re.compile(r"[A-Za-z]+[\t\v\f\r ]*(.*)", re.DOTALL)
_FLAGS = re.compile(r"(?:--\S+[\t ]+)*")
_STEP = re.compile(r"Step (\d+)/\d+ : (.*?)\s*\Z", re.DOTALL)
_ENDS = re.compile(r"Successfully built|\[Warning\] One or more build-args")
"""What the builder says of a Dockerfile as a whole."""
_DECLARED = re.compile(r"(?:^|(?<=[\t ]))([A-Za-z_]\w*)(?:=((?:\"[^\"]*\"|'[^']*'|\S)*))?")
_PLAIN = re.compile(r"[\w@%+:,./-]*", re.ASCII)
_PROXIES = re.compile(r"(?:https?|ftp|no|all)_proxy", re.IGNORECASE)
"""Arguments that RUN has without their being declared (docs.docker.com, Dockerfile reference: predefined ARGs)."""
_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "zsh"})
ARGUMENT = "org.manyoyo.argument."
"""How the label begins by which the builder is asked for an ARG's value."""
_PACKED = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Batch:
    """A Dockerfile for the builder. `numbers`: of its lines, which of the whole Dockerfile's instructions each is, from 1; None for those of ours."""

    lines: list[str]
    numbers: list[int | None]
    backtick: bool = False
    total: int = 0

    @property
    def text(self) -> str:
        return (_DIRECTIVE if self.backtick else "") + "\n".join(self.lines) + "\n"

    @property
    def reads_context(self) -> bool:
        return any(line.startswith("COPY ") and "--from=" not in _flags(line) for line in self.lines)

    def told(self, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What the builder says, less what it says of lines of ours. Raises PolicyRefused where it reads another line than was written."""
        shown = True
        for event in events:
            if step := _STEP.fullmatch(str(event.get("stream") or "")):
                at = int(step[1]) - 1
                if at >= len(self.lines) or step[2] != self.lines[at].strip():
                    raise PolicyRefused(
                        f"The host's engine reads {step[2][:100]!r} in this Dockerfile, where {self.lines[min(at, len(self.lines) - 1)][:100]!r} was meant.",
                        "Write it more plainly.",
                    )
                number = self.numbers[at]
                shown = number is not None
                if number is not None:
                    yield {"stream": f"Step {number}/{self.total} : {step[2]}"}
            elif "aux" in event or "error" in event or (shown and not _ENDS.match(str(event.get("stream")))):
                yield event


@dataclass(slots=True)
class Stage:
    """One of a Dockerfile's, as it is built: `image` is what there is of it, `names` are how others call it."""

    recipe: "Recipe"
    names: list[str]
    first: tuple[int, Instruction]
    rest: list[tuple[int, Instruction]]
    image: str = ""
    bare: bool = False
    """Whether `image` has a command of RUN's as its own, for want of another."""
    _declared: list[Instruction] = field(default_factory=list)
    _again: list[str] = field(default_factory=list)
    """Lines that the builder would remember beside the image."""

    def parts(self) -> Iterator[tuple[list[tuple[int, Instruction]], tuple[int, Instruction] | None]]:
        """Instructions for the builder, and the RUN after them."""
        batch = [self.first]
        for each in self.rest:
            if each[1].keyword == "RUN":
                yield batch, each
                batch = []
            else:
                batch.append(each)
        if batch:
            yield batch, None

    def batch(self, given: list[tuple[int, Instruction]]) -> Batch:
        """The Dockerfile for the next of them."""
        recipe = self.recipe
        lines: list[str] = []
        numbers: list[int | None] = []

        def ours(*added: str) -> None:
            lines.extend(added)
            numbers.extend([None] * len(added))

        for number, each in recipe.arguments:
            lines.append(each.raw)
            numbers.append(number if self.first[0] == len(recipe.arguments) + 1 and not self.image else None)
        if self.image:
            ours(f"FROM {self.image}", *(["CMD []"] if self.bare else []), *self._again)
            self.bare = False
        for number, each in given:
            line = recipe.line(each)
            lines.append(line)
            numbers.append(number)
            if each.keyword == "FROM":
                ours(recipe.mark)
            elif each.keyword in ("ARG", "CMD"):  # an ENTRYPOINT takes away a CMD that is not of the same stage
                self._again.append(line)
                self._declared += [each] if each.keyword == "ARG" else []
        return Batch(lines, numbers, recipe.backtick, recipe.total)

    def asking(self, names: list[str]) -> Batch:
        """A Dockerfile of which nothing is kept but what it says of the arguments."""
        lines = [each.raw for _, each in self.recipe.arguments]
        lines += [f"FROM {self.image}", *self._again, *(f'LABEL {ARGUMENT}{name}="${{{name}}}"' for name in names)]
        return Batch(lines, [None] * len(lines), self.recipe.backtick)

    def arguments(self) -> dict[str, str | None]:
        """Those that RUN has at this place; None for a value that the builder has to be asked for."""
        known: dict[str, str | None] = {}
        for _, each in self.recipe.arguments:
            known |= _values(each)
        found = {name: value for name, value in self.recipe.given.items() if _PROXIES.fullmatch(name)}
        result: dict[str, str | None] = dict(found)
        for each in self._declared:
            for name, value in _values(each, unset=True).items():
                if name in self.recipe.given:
                    result[name] = self.recipe.given[name]
                elif value != "" or "=" in each.raw:
                    result[name] = value
                elif name in known:
                    result[name] = known[name]
        return result


class Recipe:
    """A Dockerfile, its stages in their order. `given`: the values of its arguments. `mark`: the line that says whose an image is."""

    def __init__(self, text: str, given: Mapping[str, str], mark: str) -> None:
        found = list(enumerate(instructions(text), 1))
        self.given = given
        self.mark = mark
        self.total = len(found)
        self.backtick = is_backtick(text)
        self.arguments = [each for each in found if each[1].stage == 0]
        self._found = [each for each in found if each[1].stage > 0]
        self._made: dict[str, str] = {}
        escape = "`" if self.backtick else "\\"
        for _, each in found:
            if each.stage == 0 and each.keyword != "ARG":
                raise InvalidArgument(f"error on line {each.line}: {each.keyword[:20]} stands before the first FROM")
            if each.raw.rstrip().endswith(escape):  # it would go on in a line of ours
                raise InvalidArgument(f"error on line {each.line}: it ends with {escape}, and there is no next line")

    def stages(self, target: str | None) -> Iterator[Stage]:
        """Up to `target`, as each is to be built. Raises InvalidArgument where there is none of that name."""
        firsts = [at for at, (_, each) in enumerate(self._found) if each.keyword == "FROM"]
        stages = []
        for index, (begin, end) in enumerate(zip(firsts, [*firsts[1:], len(self._found)], strict=True)):
            words = self._found[begin][1].raw.split()
            names = [words[3].lower()] if len(words) > 3 else []
            stages.append(Stage(self, [*names, str(index)], self._found[begin], self._found[begin + 1 : end]))
        wanted = [at for at, each in enumerate(stages) if target is not None and target.lower() in each.names]
        if target and not wanted:
            raise InvalidArgument(f"failed to reach build target {target} in Dockerfile")
        for stage in stages[: wanted[0] + 1] if wanted else stages:
            yield stage
            self._made |= dict.fromkeys(stage.names, stage.image)

    def line(self, each: Instruction) -> str:
        """An instruction as the builder is given it: what names a stage names its image, and nothing is unpacked."""
        match each.keyword:
            case "FROM":
                _, name, *_ = each.raw.split()
                return f"FROM {self._named(name, indices=False)}"
            case "COPY" | "ADD":
                rest = _rest(each.raw)
                flags = COPIED.sub(lambda found: f"--from={self._named(found[1])}", _flags(f"COPY {rest}"))
                return f"COPY {flags}{rest[len(_flags(f'COPY {rest}')) :]}"
        return each.raw

    def unused(self) -> list[str]:
        """Arguments that were given, and that no ARG declares."""
        declared = {
            name
            for _, each in [*self.arguments, *self._found]
            if each.keyword == "ARG"
            for name in _values(each, unset=True)
        }
        return [name for name in self.given if name not in declared and not _PROXIES.fullmatch(name)]

    def _named(self, name: str, *, indices: bool = True) -> str:
        return name if name.isdigit() and not indices else self._made.get(name.lower(), name)


def command(run: Instruction, shell: list[str], given: Mapping[str, str]) -> list[str]:
    """The command of a RUN, with these arguments in its environment and not in its image's. Raises PolicyRefused where its shell knows no export."""
    rest = _rest(run.raw)
    exported = "".join(f"export {name}={shlex.quote(value)}; " for name, value in given.items())
    words = _words(rest)
    if words is not None:
        return ["/bin/sh", "-c", f'{exported}exec "$@"', "sh", *words] if given else words
    if given and shell[0].rpartition("/")[2] not in _SHELLS:
        raise PolicyRefused(
            f"{shell[0][:60]} is no shell that can be given the arguments of a build (ARG) in this isolation.",
            "Use ENV, or a shell as /bin/sh; or build in a sandbox with an engine of its own.",
        )
    return [*shell, exported + rest]


def unpacked(add: Instruction, archives: set[str]) -> str | None:
    """Of these files of a context, one that an ADD would unpack."""
    rest = _rest(add.raw)
    rest = rest[len(_flags(f"ADD {rest}")) :]
    try:
        words = _words(rest) or shlex.split(rest)
    except ValueError:
        words = rest.split()
    for source in words[:-1]:
        pattern = normpath("/" + source).lstrip("/")
        for each in sorted(archives):
            if fnmatchcase(each, pattern):
                return each
    return None


def archives(context: Iterator[bytes]) -> set[str]:
    """Those files of a build context that dockerd takes for archives."""
    found = set()
    with tarfile.open(fileobj=BufferedReader(Body(context)), mode="r|") as given:
        for member in given:
            content = given.extractfile(member) if member.isreg() else None
            if content is not None and _is_archive(content.read(tarfile.BLOCKSIZE)):
                found.add(normpath(member.name).lstrip("/"))
    return found


def _is_archive(head: bytes) -> bool:
    if head.startswith(_PACKED) or (head[1:4] == b"\x2a\x4d\x18" and head[:1] and head[0] & 0xF0 == 0x50):
        return True
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _values(argument: Instruction, *, unset: bool = False) -> dict[str, str | None]:
    """What an ARG declares: the value that it has by itself, None for one that is not plain; what has none is left out, or `unset`, empty."""
    found: dict[str, str | None] = {}
    for match in _DECLARED.finditer(_rest(argument.raw)):
        name, value = match[1], match[2]
        if value is None and not unset:
            continue
        found[name] = (value or "") if _PLAIN.fullmatch(value or "") else None
    return found


def _rest(raw: str) -> str:
    found = _REST.match(raw)
    return found[1] if found else ""


def _flags(line: str) -> str:
    """Those of a COPY."""
    found = _FLAGS.match(_rest(line))
    return found[0] if found else ""


def _words(rest: str) -> list[str] | None:
    """The words of an instruction that is written as a JSON list; None of any other."""
    try:
        words = json.loads(rest)
    except ValueError:
        return None
    return words if isinstance(words, list) and words and all(isinstance(each, str) for each in words) else None
