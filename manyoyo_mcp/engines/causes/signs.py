"""What a known cause of a failed build is made of, and the words that more than one table looks for."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sign:
    """One look of a cause. Named groups of `pattern` and `instruction` go into the cause's words.

    `exits` None: the engine refused, and `pattern` is sought in its message. Else the command ended with one of these
    codes, `pattern` is its last complaint, and `trailer` what the same tool writes after that. `instruction` is sought
    in the failed instruction.
    """

    pattern: re.Pattern[str]
    exits: Collection[int] | None = None
    trailer: re.Pattern[str] | None = None
    instruction: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A cause. `default` has words for names that a sign does not tell; `network` says whether a build without any
    network would look the same."""

    code: str
    cause: str
    mend: str
    signs: tuple[Sign, ...] = ()
    default: dict[str, str] = field(default_factory=dict)
    network: bool = False


def engine(pattern: str, instruction: str = "") -> Sign:
    return Sign(re.compile(pattern, re.MULTILINE), None, None, _compile(instruction))


def said(exits: Collection[int], pattern: str, trailer: str = "", instruction: str = "") -> Sign:
    return Sign(re.compile(pattern, re.MULTILINE), exits, _compile(trailer), _compile(instruction))


def _compile(pattern: str) -> re.Pattern[str] | None:
    return re.compile(pattern) if pattern else None


Q = "['\u2018\u2019]"
SHELL = r"^(?:/\S+|\w*sh): (?:line )?(?:\d+: )?"
TRACED = r"^ +\S.*\n(?:\w+\.)*"  # the line before the last of a traceback, and the exception's module
