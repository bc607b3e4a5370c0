"""Known causes of failed builds: what the log's end looks like, why that is, and how to mend it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """A known cause. `code` is stable; `mend` is the next thing to do."""

    code: str
    cause: str
    mend: str


@dataclass(frozen=True, slots=True)
class _Known:
    code: str
    pattern: re.Pattern[str]
    cause: str
    mend: str


_KNOWN: list[_Known] = []


def diagnose(log_end: str, error: str, instruction: str = "") -> Cause | None:
    """The known cause that `error` (the engine's message) or `log_end` (the last lines of output) shows; None for none."""
    for known in _KNOWN:
        match = known.pattern.search(error) or known.pattern.search(log_end)
        if match is not None:
            found = {key: value or "" for key, value in match.groupdict().items()}
            return Cause(known.code, known.cause.format_map(found), known.mend.format_map(found))
    return None
