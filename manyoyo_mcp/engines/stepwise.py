"""A Dockerfile taken apart, for a builder that is to run no commands: batches of instructions, and between them those of RUN."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from manyoyo_mcp.engines.buildlog import Instruction, instructions, is_backtick
from manyoyo_mcp.engines.dockerfile import UNSET, flags_of, rest_of, values
from manyoyo_mcp.errors import InvalidArgument, PolicyRefused
from manyoyo_mcp.policy.hostbuilds import COPIED

_DIRECTIVE = "# escape=`\n"
_AT_LINE = re.compile(r"(parse )?error (?:on )?line (\d+)", re.IGNORECASE)
_OF_KEYWORD = re.compile(r"(failed to parse \S+: )([A-Z]+)\b")
_STEP = re.compile(r"Step (\d+)/\d+ : (.*?)\s*\Z", re.DOTALL)
_ENDS = re.compile(r"Successfully built|\[Warning\] One or more build-args")
"""What the builder says of a Dockerfile as a whole."""
_PROXIES = re.compile(r"(?:https?|ftp|no|all)_proxy", re.IGNORECASE)
"""Arguments that RUN has without their being declared (docs.docker.com, Dockerfile reference: predefined ARGs)."""
ARGUMENT = "org.manyoyo.argument."
"""How the label begins by which the builder is asked for an ARG's value."""


Numbered = tuple[int, Instruction]
"""An instruction, and which of its Dockerfile's it is, from 1."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A Dockerfile for the builder. `meant`: what each of its lines stands for, None where it is ours."""

    lines: list[str]
    meant: list[Numbered | None]
    backtick: bool = False
    total: int = 0

    @property
    def text(self) -> str:
        return (_DIRECTIVE if self.backtick else "") + "\n".join(self.lines) + "\n"

    @property
    def reads_context(self) -> bool:
        return any(line.startswith("COPY ") and "--from=" not in flags_of(rest_of(line)) for line in self.lines)

    def complaint(self, words: str) -> str:
        """What the builder says of a line, by the line of the Dockerfile that was given."""

        def line(found: re.Match[str]) -> str:
            at = int(found[2]) - 1 - self.backtick
            meant = self.meant[at] if 0 <= at < len(self.meant) else None
            return f"error on line {meant[1].line}" if meant is not None else found[0]

        keyword = _OF_KEYWORD.match(words)
        of = [each[1].line for each in self.meant if each and keyword and each[1].keyword == keyword[2]]
        if keyword and len(of) == 1:
            return f"error on line {of[0]}: {words.removeprefix(keyword[1])}"
        return _AT_LINE.sub(line, words)

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
                meant = self.meant[at]
                shown = meant is not None
                if meant is not None:
                    yield {"stream": f"Step {meant[0]}/{self.total} : {meant[1].raw}"}
            elif "aux" in event or "error" in event or (shown and not _ENDS.match(str(event.get("stream")))):
                yield event


@dataclass(slots=True)
class Stage:
    """One of a Dockerfile's, as it is built: `image` is what there is of it, `names` are how others call it."""

    recipe: "Recipe"
    names: list[str]
    first: Numbered
    rest: list[Numbered]
    image: str = ""
    bare: bool = False
    """Whether `image` has a command of RUN's as its own, for want of another."""
    values: dict[str, str] = field(default_factory=dict)
    """Those of the arguments, as they were at the last RUN."""
    _declared: list[Instruction] = field(default_factory=list)
    _fresh: list[Instruction] = field(default_factory=list)
    """Of the ARGs that were declared, those of the batch that was made last."""
    _valued: list[str] = field(default_factory=list)
    """That batch, of what has to do with values, and what asks for them."""
    _has_command: bool = False
    _maintainer: str = ""

    def parts(self) -> Iterator[tuple[list[Numbered], Numbered | None]]:
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

    def batch(self, instructions: list[Numbered], command: list[str] | None = None) -> Batch:
        """The Dockerfile for the next of them. `command`: that of the image so far."""
        recipe = self.recipe
        begins = self.first[0] == len(recipe.arguments) + 1 and not self.image
        lines = [each.raw for _, each in recipe.arguments]
        meant: list[Numbered | None] = [each if begins else None for each in recipe.arguments]

        def ours(*added: str) -> None:
            lines.extend(added)
            meant.extend([None] * len(added))

        if self.image:
            ours(f"FROM {self.image}", *self._again(command))
            self.bare = False
        self._fresh = [each for _, each in instructions if each.keyword == "ARG"]
        self._valued = list(lines)
        for number, each in instructions:
            line = recipe.line(each)
            lines.append(line)
            meant.append((number, each))
            if each.keyword in ("FROM", "ARG", "ENV"):
                self._valued.append(line)
            if each.keyword == "ARG":
                self._valued.append("LABEL " + " ".join(f'{ARGUMENT}{name}="${{{name}}}"' for name in values(each)))
            elif each.keyword == "FROM":
                ours(recipe.mark)
                self._valued.append(recipe.mark)
            self._has_command = self._has_command or each.keyword == "CMD"
            self._maintainer = line if each.keyword == "MAINTAINER" else self._maintainer
        self._declared += self._fresh
        return Batch(lines, meant, recipe.backtick, recipe.total)

    def asking(self) -> Batch:
        """A Dockerfile of which nothing is kept but what its labels say of arguments: their values are what they are where they are declared."""
        return Batch(self._valued, [None] * len(self._valued), self.recipe.backtick)

    def arguments(self) -> dict[str, str | None]:
        """Those that RUN has at this place; None for a value that the builder has to be asked for."""
        given = self.recipe.given
        known = {name: value for _, each in self.recipe.arguments for name, value in values(each).items()}
        result: dict[str, str | None] = {name: value for name, value in given.items() if _PROXIES.fullmatch(name)}
        result |= self.values
        for each in self._fresh:
            for name, value in values(each).items():
                value = known.get(name, UNSET) if value == UNSET else value
                value = given.get(name, value)
                if value != UNSET:
                    result[name] = value
                else:
                    result.pop(name, None)
        return result

    def _again(self, command: list[str] | None) -> list[str]:
        """What the builder remembers beside the image, as it is by now: that there is a CMD, which else an ENTRYPOINT takes away, who
        made it, and ARGs."""
        lines = ["CMD []"] if self.bare else [f"CMD {json.dumps(command)}"] if self._has_command and command else []
        lines += [self._maintainer] if self._maintainer else []
        names = dict.fromkeys(name for each in self._declared for name in values(each))
        # One that is given comes with the build: its value would stay in the image's history.
        known = {name: self.values[name] for name in names if name in self.values and name not in self.recipe.given}
        words = [f"{name}={self._quoted(known[name])}" if name in known else name for name in names]
        return [*lines, f"ARG {' '.join(words)}"] if words else lines

    def _quoted(self, value: str) -> str:
        escape = "`" if self.recipe.backtick else "\\"
        return '"' + re.sub(rf'["${re.escape(escape)}]', lambda found: escape + found[0], value) + '"'


class Recipe:
    """A Dockerfile, its stages in their order. `given`: the values of its arguments. `mark`: the line that says whose an image is. `images`: the ids of
    those that it names, for a name may be another's by then."""

    def __init__(self, text: str, given: Mapping[str, str], mark: str, images: Mapping[str, str]) -> None:
        found = list(enumerate(instructions(text), 1))
        self.given = given
        self.mark = mark
        self.total = len(found)
        self.backtick = is_backtick(text)
        self.arguments = [each for each in found if each[1].stage == 0]
        self._found = [each for each in found if each[1].stage > 0]
        self._images = {"scratch": "scratch", **images}
        self._made: dict[str, str] = {}
        escape = "`" if self.backtick else r"\\"
        goes_on = re.compile(rf"(?<!{escape}){escape}[ \t]*\Z")
        for _, each in found:
            if each.stage == 0 and each.keyword != "ARG":
                raise InvalidArgument(f"error on line {each.line}: {each.keyword[:20]} stands before the first FROM")
            if goes_on.search(each.raw):  # in a line of ours
                raise InvalidArgument(f"error on line {each.line}: it goes on in the next line, and there is none")

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
                rest = rest_of(each.raw)
                flags = flags_of(rest)
                return f"COPY {COPIED.sub(lambda found: f'--from={self._named(found[1])}', flags)}{rest[len(flags) :]}"
        return each.raw

    def unused(self) -> list[str]:
        """Arguments that were given, and that no ARG declares."""
        declared = {
            name for _, each in [*self.arguments, *self._found] if each.keyword == "ARG" for name in values(each)
        }
        return [name for name in self.given if name not in declared and not _PROXIES.fullmatch(name)]

    def _named(self, name: str, *, indices: bool = True) -> str:
        made = self._made.get(name.lower()) if indices or not name.isdigit() else None
        if (image := made or self._images.get(name) or self._images.get(name.lower())) is None:
            raise PolicyRefused(
                f"{name[:100]} is none of the stages before it, nor an image that was looked at.",
                "Write it as it is named elsewhere.",
            )
        return image
