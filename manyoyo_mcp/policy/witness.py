"""Whoever is told of what goes through a gate: of the requests that may change something, and of those that are refused."""

import re
from collections.abc import Callable

from manyoyo_mcp.policy.base import Query

_HARMLESS = re.compile(r"(?:/libpod)?/(?:containers|exec)/[^/]+/(?:wait|resize)")
"""What is asked by POST and changes nothing."""


def changes(method: str, path: str) -> bool:
    """Whether such a request may change something."""
    return method not in ("GET", "HEAD") and not _HARMLESS.fullmatch(path)


class Witness:
    """Told from the threads of a gate's connections. This one keeps nothing."""

    def asked(self, method: str, path: str, query: Query, narrowed: bool) -> Callable[[int | None], None]:
        """A request that may change something is allowed, and about to go on; what this gives is told of the answer's status at its end.
        Raises ManyoyoError where the request may not go on."""
        return lambda status: None

    def refused(self, method: str, path: str, code: str, reason: str) -> None:
        """A request is refused."""

    def close(self) -> None:
        """The gate has ended."""
