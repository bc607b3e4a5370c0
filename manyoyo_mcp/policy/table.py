"""What an engine is asked for: one row an endpoint, with the parameters and the body that it may have."""

import re
from dataclasses import dataclass
from typing import Literal

from manyoyo_mcp.policy.base import Rule, passed

Takes = Literal["nothing", "json", "archive", "message"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is asked of an engine by these methods at such a path: the parameters that may be named (`lists` of them several
    times), what body it takes (a `message` is gRPC's), whether the connection is no longer HTTP afterwards but another protocol that `upgrade`
    names, and the rule for the rest."""

    methods: frozenset[str]
    path: re.Pattern[str]
    query: frozenset[str]
    takes: Takes
    rule: Rule
    hijacks: bool = False
    lists: frozenset[str] = frozenset()
    upgrade: str = "tcp"


def row(
    methods: str, path: str, query: str = "", takes: Takes = "nothing", rule: Rule = passed, hijacks: bool = False,
    upgrade: str = "tcp",
) -> Endpoint:  # fmt: skip
    """Parameters that may come several times are written with a +."""
    names = query.split()
    lists = frozenset(each.rstrip("+") for each in names if each.endswith("+"))
    return Endpoint(
        frozenset(methods.split()),
        re.compile(path),
        frozenset(each.rstrip("+") for each in names),
        takes,
        rule,
        hijacks,
        lists,
        upgrade,
    )
