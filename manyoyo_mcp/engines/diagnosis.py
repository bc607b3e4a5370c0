"""The known cause of a failed build, by the table in `causes`.

Only evidence counts. Where the engine itself refused, its message is what is read. Where a RUN step's command failed,
its exit code must be one that the tool gives for this cause, and the tool's own words must be the last complaint in the
step's output, and not stand in the instruction itself: what merely prints such words failed for another reason.
"""

import re
from dataclasses import dataclass

from manyoyo_mcp.engines.causes import KNOWN, Known, Sign
from manyoyo_mcp.engines.complaints import last_complaint, unechoed


@dataclass(frozen=True, slots=True)
class Cause:
    """A known cause. `code` is stable; `mend` is the next thing to do."""

    code: str
    cause: str
    mend: str


_NETWORK_OFF = Known(
    "NETWORK_OFF",
    "The step wanted to reach {host}, but this build has no network.",
    'Build with network="default"; or bring what it downloads into the context and COPY it.',
    default={"host": "another host"},
)

_STEP_PREFIX = re.compile(r"\Abuilding at STEP \".*?\": ", re.DOTALL)
_COMMAND_FAILED = re.compile(r"(?:while running runtime: exit status|returned a non-zero code:) \d+\s*\Z")
_MAKE = re.compile(r"make(?:\[\d+\])?: (?:\*\*\* \[.*\] Error (\d+)|\*\*\* Waiting for |Leaving directory )|\s*\Z")
_URL_HOST = re.compile(r"\b(?:https?|ftp|ssh|git)://(?:[^/\s@]*@)?([\w.-]+)")
_LONGEST_NAME = 120


def diagnose(
    output: str, error: str, instruction: str = "", exit_code: int | None = None, *, network: str = "default"
) -> Cause | None:
    """The known cause of a failed build; None where none is known.

    `output` is what the failed step wrote, `error` the engine's message, `instruction` the failed one as far as known,
    `exit_code` that of its command (None where none ran), `network` what the build was given. All text is to be free of
    control characters; names in the cause come from it, shortened.
    """
    if exit_code is None and _COMMAND_FAILED.search(error):
        return None
    error = _STEP_PREFIX.sub("", error.strip())
    output, exit_code = _without_make(unechoed(output, instruction), exit_code)
    for known in KNOWN:
        for sign in known.signs:
            names = _names(sign, output, error, instruction, exit_code)
            if names is not None:
                offline = known.network and network == "none" and exit_code is not None  # ADD is the engine's own work
                return _cause(_NETWORK_OFF if offline else known, names, instruction)
    return None


def _without_make(output: str, exit_code: int | None) -> tuple[str, int | None]:
    """The output without what make adds at its end, and the exit code of the command that make ran."""
    lines = output.split("\n")
    while lines and (match := _MAKE.match(lines[-1])) is not None:
        exit_code = int(match[1]) if match[1] and exit_code is not None else exit_code
        lines.pop()
    return "\n".join(lines), exit_code


def _names(sign: Sign, output: str, error: str, instruction: str, exit_code: int | None) -> dict[str, str] | None:
    """The names that a sign tells; None where it is not there."""
    place = sign.instruction.search(instruction) if sign.instruction is not None else None
    if sign.instruction is not None and place is None:
        return None
    if sign.exits is None:
        match = sign.pattern.search(error) if exit_code is None else None
    else:
        match = last_complaint(output, sign.pattern, sign.trailer) if exit_code in sign.exits else None
    if match is None:
        return None
    found = (place.groupdict() if place is not None else {}) | {k: v for k, v in match.groupdict().items() if v}
    return {key: value for key, value in found.items() if value}


def _cause(known: Known, names: dict[str, str], instruction: str) -> Cause:
    hosts = {names["url"]} if "url" in names else set(_URL_HOST.findall(instruction))
    told = {"host": hosts.pop()} if len(hosts) == 1 and known.code != "PROXY_FAILED" else {}
    words = {key: _short(value) for key, value in (known.default | told | names).items()}
    return Cause(known.code, known.cause.format_map(words), known.mend.format_map(words))


def _short(name: str) -> str:
    words = " ".join(name.split())[:_LONGEST_NAME].rstrip(" .")
    return words.replace("//", "/", 1) if words.startswith("//") else words
