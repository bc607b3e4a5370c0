"""How much a sandbox may have of the host's own engine at a time, for no cap of a container's holds what that engine keeps for it, and no cgroup of the host's holds
a sandbox's containers together."""

import json
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from manyoyo_mcp.errors import BudgetExceeded, PolicyRefused
from manyoyo_mcp.policy.base import Allowed, Limits
from manyoyo_mcp.policy.labelled import GRANTS
from manyoyo_mcp.values import Caps, docker_size

MOST_CONTAINERS = 64
"""Of a sandbox at a time, whatever they do: outside their caps each costs the host a process and a place in everybody's lists."""
MOST_EXECS = 64
"""Of a container that have not ended; those that are never started dockerd keeps as long as the container."""
MOST_IMAGES = 5000
"""With those between a build's instructions."""
IMAGES_OF_A_BUILD = 1000
"""As many as one makes at most, or nearly."""
_MOST_SAID = 128 << 10
"""Bytes of a container or an exec that is to be made, which dockerd keeps in memory."""
_MOST_KEPT, _KEPT_FOR = 64 << 20, 600
"""Bytes of execs within so many seconds: dockerd forgets one that has ended after five to ten minutes."""


def check_count(what: str, there: int, most: int) -> None:
    """Raises BudgetExceeded where there are as many as may be at a time."""
    if there >= most:
        raise BudgetExceeded(
            f"The sandbox has {there} {what} on the host's engine, as many as it may.",
            "Remove or end some (nested_stop with action=remove; docker rm); cleanup, and another start_sandbox, leave all behind.",
        )


def check_size(allowed: Allowed) -> int:
    """The bytes of it. Raises PolicyRefused for more than is to be kept of one container or exec."""
    size = len(json.dumps(allowed.body, ensure_ascii=False).encode("utf-8", "replace"))
    if size > _MOST_SAID:
        raise PolicyRefused(
            f"Command, environment and labels are more than {_MOST_SAID >> 10} KiB together.",
            "Bring what is long in by stdin or by files.",
        )
    return size


def check_execs(said: deque[tuple[float, int]], now: float, size: int) -> None:
    """Takes an exec of `size` bytes to those that were made before. Raises BudgetExceeded where it is too much, for dockerd keeps them for some minutes."""
    while said and said[0][0] < now - _KEPT_FOR:
        said.popleft()
    if sum(each for _, each in said) + size > _MOST_KEPT:
        raise BudgetExceeded(
            f"The execs of the last {_KEPT_FOR // 60} minutes were given {_MOST_KEPT >> 20} MiB of commands and environment, which the host's engine keeps.",
            "Wait a while, or bring what is long in by stdin or by files.",
        )
    said.append((now, size))


def check_patience(seconds: Any) -> None:
    """Raises PolicyRefused for a stop that waits without end, in the engine and here."""
    if seconds and not re.fullmatch(r"[0-9]{1,2}|[1-5][0-9]{2}|600", str(seconds)):
        raise PolicyRefused(f"t={str(seconds)[:20]}: the engine would wait too long.", "0 to 600 seconds.")


def granted(labels: Mapping[str, str] | None) -> Caps:
    """A container's caps, by its label; none where it says nothing."""
    memory, nano, pids = (
        [int(each) for each in (labels or {}).get(GRANTS, "").split() if each.isdecimal()] + [0, 0, 0]
    )[:3]
    return Caps(nano / 1e9, memory, pids)


def check_room(limits: Limits, running: list[Caps], asked: Caps) -> None:
    """What runs at a time has no more than the sandbox, for no cgroup of the host's holds them together. Raises BudgetExceeded."""
    largest = limits.largest
    for name, most, parts, shown in (
        (
            "memory",
            largest.memory,
            [asked.memory, *(each.memory for each in running)],
            lambda size: docker_size(int(size)),
        ),
        ("cpus", largest.cpus, [asked.cpus, *(each.cpus for each in running)], "{:g}".format),
        ("pids_limit", largest.pids, [asked.pids, *(each.pids for each in running)], str),
    ):
        if round(sum(parts), 6) > most:
            taken = sum(parts) - parts[0]
            raise BudgetExceeded(
                f"The sandbox has {name} {shown(most)}, of which what runs in it has {shown(taken)}: there is no room for {shown(parts[0])} more.",
                f"Ask for less {name}, wait for what runs (nested_list) or stop it, or grow the sandbox: start_sandbox with its sandbox_id.",
            )
