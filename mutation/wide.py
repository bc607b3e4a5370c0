"""Endpoints with one of their rules switched off."""

import re
from dataclasses import replace
from typing import Any

from manyoyo_mcp.policy.base import IMAGE, NAME, passed
from manyoyo_mcp.policy.table import Endpoint


class _All(frozenset[str]):
    """Has whatever is asked for, and shows what it was made of."""

    def __contains__(self, name: object) -> bool:
        return True


def methods(row: Endpoint) -> Endpoint:
    return replace(row, methods=_All(row.methods))


def names(row: Endpoint) -> Endpoint:
    return replace(row, path=re.compile(row.path.pattern.replace(NAME, ".*").replace(IMAGE, ".*")))


def parameters(row: Endpoint) -> Endpoint:
    return replace(row, query=_All(row.query))


def lists(row: Endpoint) -> Endpoint:
    return replace(row, lists=_All(row.lists))


def body(row: Endpoint) -> Endpoint:
    kind: Any = "json"
    return replace(row, takes=kind)


def rule(row: Endpoint) -> Endpoint:
    return replace(row, rule=passed)
