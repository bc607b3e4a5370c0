"""What a check is."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what was found, and how to mend it where it is not well."""

    name: str
    state: State
    found: str
    mend: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name, State.OK, found)


def warn(name: str, found: str, mend: str) -> Check:
    """Works, yet not as well as it could."""
    return Check(name, State.WARN, found, mend)


def fail(name: str, found: str, mend: str) -> Check:
    """Does not work until it is mended."""
    return Check(name, State.FAIL, found, mend)
