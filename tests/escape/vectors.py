"""What an escape attempt is: a name, a source, and a function that tries it over a road and says how it ended."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.escape.roads import Answer, Road
    from tests.escape.world import World

OWN = "own"
ENGINES = ("podman", "docker")
TIERS = {
    "privileged": ENGINES, "hardened": ENGINES, "userns": ("docker",), "gvisor": ("podman",), "rootless": ("podman",),
    "sock": ("docker",), "common": ("docker",),
}  # fmt: skip
"""Each with the engines that it can have."""
ON_HOST = ("sock", "common")
"""Tiers without an engine of their own: what is run are containers of this machine's own engine, so what is around them is the machine."""
ROADS = ("tool", "gate", "nested")
GATES = ("gate", "nested")
"""Where requests come from programs that we don't trust."""
BUILDS = (*ROADS, "buildkit")
"""Where Dockerfiles do: also Docker's own client with buildx, at the gate of a dockerd."""
_LED_TO = {"rootless": ("tool", "gate"), "sock": ("tool", "gate"), "common": ("tool",)}
"""The roads that there are in a tier that does not have all."""


class Out(AssertionError):
    """An attempt got out, or was let through where it should have been refused."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`refused`, with the code; `contained`, with what held it; or `pointless`, with why it makes no sense there. `asked`: an
    engine or the kernel was reached, so that it takes a look at the canaries to know."""

    kind: str
    why: str
    asked: bool = True


Attempt = Callable[["World", "Road"], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Vector:
    """`roads`, `engines`, `tiers` (all where it names none): where it makes sense. `last`: it leaves a sandbox tired, so it comes after the others."""

    name: str
    source: str
    theme: str
    attempt: Attempt
    roads: Sequence[str] = ROADS
    last: bool = False
    smoke: bool = False
    engines: Sequence[str] = ENGINES
    tiers: Sequence[str] = ()

    def goes(self, tier: str, engine: str, road: str) -> bool:
        """Whether it can be tried there."""
        return (
            road in self.roads
            and road in _LED_TO.get(tier, BUILDS)
            and engine in self.engines
            and tier in (self.tiers or TIERS)
            and (road != "buildkit" or engine == "docker")
        )


VECTORS: dict[str, Vector] = {}


def add(vector: Vector) -> None:
    assert vector.name not in VECTORS, vector.name
    VECTORS[vector.name] = vector


def vector(
    name: str,
    source: str,
    *,
    roads: Sequence[str] = ROADS,
    last: bool = False,
    smoke: bool = False,
    engines: Sequence[str] = ENGINES,
    tiers: Sequence[str] = (),
) -> Callable[[Attempt], Attempt]:
    """Its function is `attempt`; the theme is the module's name."""

    def register(attempt: Attempt) -> Attempt:
        theme = attempt.__module__.rpartition(".")[2]
        add(Vector(name, source, theme, attempt, roads, last, smoke, engines, tiers))
        return attempt

    return register


_STATUS = {"POLICY_REFUSED": "403", "CAP_EXCEEDED": "403"}
"""What a gate answers where the tools raise that; 400 for every other refusal of a request."""
_GRPC = {"POLICY_REFUSED": "7", "CAP_EXCEEDED": "7", "NOT_SUPPORTED": "12"}
"""The same of gRPC; 3 for every other."""


def refused(answer: "Answer", code: str = "POLICY_REFUSED", words: str = "") -> Outcome:
    """Refused on the way to the engine, with this very code and, where given, these words. Raises Out where it was let through."""
    if answer.ok:
        raise Out(f"let through: {answer.text[:500]}")
    wanted = (code, _GRPC.get(code, "3") if answer.grpc else _STATUS.get(code, "400"))
    assert answer.code in wanted, f"refused with {answer.code}, not {' or '.join(wanted)}: {answer.text[:500]}"
    assert words in answer.text, f"refused, but not for that: {answer.text[:500]}"
    return Outcome("refused", code, asked=False)


def withheld(answer: "Answer") -> Outcome:
    """Refused where the engine is the machine's own: what is not offered there, or is not the sandbox's and so as if it were not there. Raises Out where it was let through."""
    if answer.ok:
        raise Out(f"let through: {answer.text[:500]}")
    absent = answer.code == "404" or answer.code.endswith("_NOT_FOUND")
    assert absent or answer.code in ("403", "POLICY_REFUSED", "CAP_EXCEEDED"), answer
    return Outcome("refused", "POLICY_REFUSED" if answer.code == "403" else answer.code, asked=False)


def declined(world: "World", answer: "Answer", code: str, words: str = "") -> Outcome:
    """As `refused`; where the engine is the machine's own, what the policy refuses may also not be offered at all."""
    if world.tier in ON_HOST and code in ("POLICY_REFUSED", "CAP_EXCEEDED"):
        return withheld(answer)
    return refused(answer, code, words)


_BROKEN = re.compile(r"@INC|at -e line|[Ss]yntax error|: not found|unterminated")
"""What a script says that was not tried at all."""


def contained(why: str) -> Outcome:
    return Outcome("contained", why)


def pointless(why: str) -> Outcome:
    return Outcome("pointless", why, asked=False)


def nothing_out(text: str) -> str:
    """The text of an attempt that says OUT where it got out, and TRIED where it came to its end. Raises Out."""
    if "OUT " in text:
        raise Out(text[-2000:])
    assert "TRIED" in text and not _BROKEN.search(text), f"the attempt did not come to its end: {text[-1000:]!r}"
    return text
