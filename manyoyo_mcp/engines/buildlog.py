"""What a build's event stream says, as steps. Podman and dockerd's classic builder write it differently."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from manyoyo_mcp.engines.base import Step

_PODMAN_STEP = re.compile(r"(?:\[(\d+)/\d+\] )?STEP (\d+)/(\d+): (.*)", re.DOTALL)
_DOCKER_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)", re.DOTALL)
_CACHED = re.compile(r"\s*-+> Using cache")
_EXIT = re.compile(r"exit status (\d+)|non-zero code: (\d+)")
_HEREDOC = re.compile(r"<<-?\s*[\"']?([A-Za-z_][A-Za-z0-9_]*)[\"']?")


@dataclass(slots=True)
class BuildLog:
    """Fed with events, it keeps the steps and the error, and yields the text for the log."""

    dockerfile_text: str
    on_step: Callable[[Step], None]
    steps: list[Step] = field(default_factory=list)
    error: str = ""
    exit_code: int | None = None
    image_id: str | None = None
    killed: bool = False
    _started: float = 0.0
    _places: list[tuple[int, str]] = field(default_factory=list)
    _cursor: int = 0
    _last_output: str = ""

    def __post_init__(self) -> None:
        self._places = instructions(self.dockerfile_text)

    def feed(self, event: dict[str, Any]) -> str:
        """Take one event; the text it adds to the log."""
        text = str(event.get("stream") or event.get("status") or "")
        if event.get("error") or event.get("errorDetail"):
            detail = event.get("errorDetail") or {}
            self.error = str(detail.get("message") or event.get("error"))
            match = _EXIT.search(self.error)
            if isinstance(detail.get("code"), int):
                self.exit_code = detail["code"]
            elif match:
                self.exit_code = int(match[1] or match[2])
            if self.killed:
                self.exit_code = 137
            return self.error.rstrip() + "\n"
        aux = event.get("aux")
        if isinstance(aux, dict) and aux.get("ID"):
            self.image_id = str(aux["ID"])
        if event.get("progress") or (event.get("id") and event.get("status")):
            return f"{event['id']}: {event['status']}\n" if not event.get("progress") else ""
        match = _PODMAN_STEP.match(text) or _DOCKER_STEP.match(text)
        if match:
            self._begin(*(match.groups() if len(match.groups()) == 4 else (None, *match.groups())))
        elif _CACHED.match(text) and self.steps:
            self.steps[-1].cached = True
        elif text.strip() == "container exited on killed":
            self.killed = True
        return text

    def _begin(self, stage: str | None, number: str, total: str, instruction: str) -> None:
        self.end_step()
        step = Step(int(number), int(total), " ".join(instruction.split()), stage=int(stage) if stage else None)
        step.line = self._line(step.instruction)
        self.steps.append(step)
        self._started = time.monotonic()
        self.on_step(step)

    def end_step(self) -> None:
        """The step that runs, if any, ends now."""
        if self.steps and self.steps[-1].seconds is None:
            self.steps[-1].seconds = round(time.monotonic() - self._started, 2)

    def _line(self, instruction: str) -> int | None:
        keyword = instruction.split(" ", 1)[0].upper()
        for exact in (True, False):
            for index in range(self._cursor, len(self._places)):
                line, text = self._places[index]
                if text == instruction if exact else text.split(" ", 1)[0].upper() == keyword:
                    self._cursor = index + 1
                    return line
        return None


def instructions(dockerfile: str) -> list[tuple[int, str]]:
    """The instructions of a Dockerfile with the line each begins on, from 1; continuation lines joined, heredoc bodies
    and comments left out."""
    found: list[tuple[int, str]] = []
    lines = dockerfile.splitlines()
    index = 0
    while index < len(lines):
        begin, parts = index, []
        while index < len(lines):
            line = lines[index].strip()
            index += 1
            if not line or line.startswith("#"):
                if not parts:
                    begin = index
                continue
            parts.append(line.removesuffix("\\").strip())
            if not line.endswith("\\"):
                break
        if not parts:
            break
        text = " ".join(" ".join(parts).split())
        found.append((begin + 1, text))
        if text.split(" ", 1)[0].upper() in ("RUN", "COPY", "ADD"):
            for word in _HEREDOC.findall(text):
                while index < len(lines) and lines[index].strip() != word:
                    index += 1
                index += 1
    return found
