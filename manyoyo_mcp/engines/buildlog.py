"""What a build's event stream says, as steps. Podman and dockerd's classic builder write it differently."""

import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from manyoyo_mcp.engines.base import Step
from manyoyo_mcp.text import sanitise

# Podman counts within a stage, and names it where there are several; dockerd counts through the Dockerfile.
_PODMAN_STEP = re.compile(r"(?:\[(?P<stage>\d+)/\d+\] )?STEP (?P<number>\d+)/(?P<total>\d+): (?P<text>.*)", re.DOTALL)
_DOCKER_STEP = re.compile(r"Step (?P<number>\d+)/(?P<total>\d+) : (?P<text>.*)", re.DOTALL)
_STEPS = (_PODMAN_STEP, _DOCKER_STEP)
_DOCKER_NOTE = re.compile(r" ---> (?:Running in |Removed intermediate container |[0-9a-f]{12}\b)")
_CACHED = re.compile(r"\s*-+> Using cache")
_EXIT = re.compile(r"(?:exit status|returned a non-zero code:) (\d+)\s*\Z")
# Buildah's words for a RUN step that the OCI runtime could not start, and for one that a signal ended; both are
# output here, and the error that follows says "exit status 1" whatever happened.
_STRUCT = re.compile(r" &imagebuilder\.Step\{.*", re.DOTALL)
"""What podman adds of its own insides."""
_NOT_STARTED = re.compile(
    r"(?:\A|\n)error running container: from \S+ creating container for (?P<why>.+?)\s*: exit status \d+\s*\Z",
    re.DOTALL,
)
_SIGNALLED = re.compile(r"(?:\A|\n)container exited on ([a-z ]+)\s*\Z")
_SIGNALS = {(signal.strsignal(each) or "").lower(): each.value for each in signal.Signals}

# Where an error is about an instruction that did not begin: by its line, its keyword, or a FROM with a variable.
_AT_LINE = re.compile(r"\berror on line (\d+)\b|\bStartLine:(\d+)\b")
_AT_KEYWORD = re.compile(r"(?:\A|: )([A-Z]+) (?:requires|must have)\b")
_AT_FROM = re.compile(r"\Acreating build container: parsing reference|\Adetermining starting point for build")
_IMAGE_ID = re.compile(r"\b[0-9a-f]{64}\b")

_OUTPUT_END = 64 << 10
"""How much of a step's output is kept, in characters."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile. `line` is where it begins, from 1; `text` has its white space made single, `raw` as it is;
    `stage` counts the FROMs up to it, 0 before any; `heredoc` is the word that ends its first heredoc, empty for none."""

    line: int
    text: str
    stage: int = 0
    heredoc: str = ""
    raw: str = ""

    @property
    def keyword(self) -> str:
        return self.text.split(" ", 1)[0].upper()


@dataclass(slots=True)
class BuildLog:
    """Fed with events, it keeps the steps and the error, and yields the text for the log.

    `output` is what the step that runs has written, its end only; `exit_code` is that of the command that failed, None
    where none ran.
    """

    dockerfile_text: str
    on_step: Callable[[Step], None]
    steps: list[Step] = field(default_factory=list)
    error: str = ""
    exit_code: int | None = None
    image_id: str | None = None
    output: str = ""
    _started: float = 0.0
    _instructions: list[Instruction] = field(default_factory=list)
    _style: re.Pattern[str] | None = None
    _stage: int = 0
    _first_total: int = 0

    def __post_init__(self) -> None:
        self._instructions = instructions(self.dockerfile_text)

    def feed(self, event: dict[str, Any]) -> str:
        """Take one event; the text it adds to the log."""
        if event.get("error") or event.get("errorDetail"):
            detail = event.get("errorDetail") or {}
            self._fail(str(detail.get("message") or event.get("error")), detail.get("code"))
            return self.error.rstrip() + "\n"
        aux = event.get("aux")
        if isinstance(aux, dict) and aux.get("ID"):
            self.image_id = str(aux["ID"])
        text = str(event.get("stream") or event.get("status") or "")
        if event.get("progress") or (event.get("id") and event.get("status")):
            return f"{event['id']}: {event['status']}\n" if not event.get("progress") else ""
        if self._begins_step(text):
            pass
        elif self.steps and not self.output.strip() and _CACHED.match(text):
            self.steps[-1].cached = True
        elif self._style is not _DOCKER_STEP or not _DOCKER_NOTE.match(text):
            self.heard(text)
        return text

    def heard(self, text: str) -> None:
        """What the step that runs has written, whatever it looks like."""
        self.output = (self.output + text)[-_OUTPUT_END:]

    def _fail(self, message: str, code: Any) -> None:
        self.error = _STRUCT.sub("", message)
        match = _EXIT.search(message)
        self.exit_code = code if isinstance(code, int) else int(match[1]) if match else None
        if self.exit_code != 1 or self._style is not _PODMAN_STEP:
            return
        output = sanitise(self.output)
        if (not_started := _NOT_STARTED.search(output)) is not None:
            self.error = f"the container could not be started: {not_started['why']}"
            self.exit_code = None
        elif (signalled := _SIGNALLED.search(output)) is not None and signalled[1].strip() in _SIGNALS:
            self.exit_code = 128 + _SIGNALS[signalled[1].strip()]

    def _begins_step(self, text: str) -> bool:
        """Whether the text announces a step, which then begins. What only looks so is a RUN step's output."""
        for style in (self._style,) if self._style is not None else _STEPS:
            match = style.match(text)
            if match is not None:
                return self._begins(style, match)
        return False

    def _begins(self, style: re.Pattern[str], match: re.Match[str]) -> bool:
        number, total = int(match["number"]), int(match["total"])
        named = match.groupdict().get("stage")
        stage = int(named or 1) if style is _PODMAN_STEP else 0
        last = self.steps[-1] if self.steps else None
        first_total = self._first_total
        if number == 1 and (last is None or stage > self._stage):
            first_total = total
        elif last is None or stage != self._stage or number != last.number + 1 or number > total:
            return False
        elif total != last.total and not (stage and number == 2):
            return False  # podman counts the triggers (ONBUILD) of a base image once it is known; else totals stay
        triggers = total - first_total
        own = [each for each in self._instructions if each.stage == stage] if stage else self._instructions
        index = max(number - 1 - triggers, 0)
        place = own[index] if index < len(own) else None  # none: the engine added a step
        words = " ".join(match["text"].split())
        if place is not None and not 1 < number <= 1 + triggers and place.keyword != words.split(" ", 1)[0].upper():
            return False
        self._style, self._stage, self._first_total = style, stage, first_total
        # The engine's words are its reading of the Dockerfile, or what another step wrote; of a stage it names the id.
        if place is not None and (place.keyword != "FROM" or (number == 1 and _IMAGE_ID.search(words))):
            words = place.text
        self._begin(Step(number, total, words, int(named) if named else None, place.line if place else None))
        return True

    def _begin(self, step: Step) -> None:
        self.end_step()
        self.output = ""
        self.steps.append(step)
        self._started = time.monotonic()
        self.on_step(step)

    def end_step(self) -> None:
        """The step that runs, if any, ends now."""
        if self.steps and self.steps[-1].seconds is None:
            self.steps[-1].seconds = round(time.monotonic() - self._started, 2)

    @property
    def failed_step(self) -> Step | None:
        """The step that the error is about: the last that began, or one that the engine refused before it could."""
        last = self.steps[-1] if self.steps else None
        refused = self._refused()
        if refused is None:
            return last
        if last is not None and last.line == refused.line:
            return replace(last, instruction=refused.text)
        return Step(self._instructions.index(refused) + 1, len(self._instructions), refused.text, line=refused.line)

    def _refused(self) -> Instruction | None:
        found: list[Instruction] = []
        if self.exit_code is not None or self.error.startswith("building at STEP"):
            return None
        if (match := _AT_LINE.search(self.error)) is not None:
            line = int(match[1] or match[2])
            found = [each for each in self._instructions if each.line <= line][-1:]
        elif not self.steps and (match := _AT_KEYWORD.search(self.error)) is not None:
            found = [each for each in self._instructions if each.keyword == match[1]]
        elif _AT_FROM.search(self.error) is not None:
            found = [each for each in self._instructions if each.keyword == "FROM" and "$" in each.text]
        return found[0] if len(found) == 1 else None


_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
_USED = re.compile(r"(?:--from=|[ ,]from=)([^\s,]+)")


def images(dockerfile: str, build_args: Mapping[str, str], target: str | None = None) -> list[str]:
    """The images that a Dockerfile begins with, and copies from or mounts: what is no stage of it. An ARG counts before the first FROM, as it
    does for FROM lines. What comes after the stage `target` is not looked at."""
    known: dict[str, str] = {}
    stages: set[str] = {"scratch"}
    found: list[str] = []

    def meant(word: str) -> str:
        return _VARIABLE.sub(lambda part: known.get(part[1] or part[3]) or part[2] or "", word)

    def use(word: str) -> None:
        name = meant(word.strip("\"'"))
        if name and name.lower() not in stages and not name.isdigit() and name not in found:
            found.append(name)

    stage = ""
    for each in instructions(dockerfile):
        words = each.text.split()
        if each.keyword == "FROM" and target and stage == target.lower():
            break
        if each.keyword == "ARG" and each.stage == 0:
            for word in words[1:]:
                name, _, default = word.partition("=")
                known[name] = build_args.get(name, meant(default.strip("\"'")))
        elif each.keyword == "FROM":
            plain = [word for word in words[1:] if not word.startswith("--")]
            if plain:
                use(plain[0])
            stage = plain[2].lower() if len(plain) == 3 and plain[1].upper() == "AS" else ""
            stages.add(stage)
        elif each.keyword in ("COPY", "ADD", "RUN"):
            for word in _USED.findall(each.text):
                use(word)
    return found


_DIRECTIVE = re.compile(r"#\s*([a-z][a-z0-9]*)\s*=\s*(.+?)\s*\Z", re.IGNORECASE)
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:\\.|[^"\\])*"|'[^']*'|["'\\])+""")
_HEREDOC = re.compile(r"\d*<<(-?)([\"']?)([^<\s\"']+)\2\Z")
_TAKES_HEREDOCS = re.compile(r"(?:ONBUILD )?(?:RUN|COPY|ADD) ", re.IGNORECASE)
_FROM = re.compile(r"FROM(?: |\Z)", re.IGNORECASE)


def instructions(dockerfile: str) -> list[Instruction]:
    """The instructions of a Dockerfile as both engines read it: continuation lines joined (the `escape` directive says
    by what), white space made single, comments and heredoc bodies left out."""
    lines = [line.removesuffix("\r") for line in dockerfile.removeprefix("\ufeff").split("\n")]
    escape = _escape(lines)
    continued = re.compile(rf"(?<!{escape}){escape}[ \t]*\Z")
    found: list[Instruction] = []
    stage = index = 0
    while index < len(lines):
        line = lines[index].strip()
        index += 1
        if not line or line.startswith("#"):
            continue
        begin, parts = index, [line]
        while (end := continued.search(parts[-1])) is not None and index < len(lines):
            parts[-1] = parts[-1][: end.start()]
            while index < len(lines) and (not lines[index].strip() or lines[index].lstrip().startswith("#")):
                index += 1
            if index < len(lines):
                parts.append(lines[index])
                index += 1
        raw = "".join(parts)
        text = " ".join(raw.split())
        stage += _FROM.match(text) is not None
        takes = _TAKES_HEREDOCS.match(text) is not None
        heredocs = [match for word in _WORD.findall(text) if (match := _HEREDOC.match(word))] if takes else []
        for match in heredocs:
            while index < len(lines) and (lines[index].lstrip("\t") if match[1] else lines[index]) != match[3]:
                index += 1
            index += 1
        found.append(Instruction(begin, text, stage, heredocs[0][3] if heredocs else "", raw.strip()))
    return found


def is_backtick(dockerfile: str) -> bool:
    """Whether lines of a Dockerfile are continued by a backtick."""
    return _escape(dockerfile.removeprefix("\ufeff").split("\n")) == "`"


def _escape(lines: list[str]) -> str:
    """The escape character, for a pattern: a backslash unless a directive at the top says a backtick."""
    for line in lines:
        match = _DIRECTIVE.match(line.strip())
        if match is None:
            break
        if match[1].lower() == "escape":
            return "`" if match[2] == "`" else r"\\"
    return r"\\"
