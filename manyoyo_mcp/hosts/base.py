"""Seam 1, where a sandbox lives. A host makes outer containers and dials the engines in them; it knows no engine's API."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Protocol

from manyoyo_mcp.dialled import Dial, SocketLike
from manyoyo_mcp.values import Caps

LABEL = "org.manyoyo."
"""Prefix of our labels. Labels can't change after creation: they say whose and what a thing is, never its state."""


ENDING = "SANDBOX_ENDING"
"""What it is called that a sandbox is being stopped: too late to renew its lease."""


def ours(labels: dict[str, str] | None) -> dict[str, str]:
    """Of labels those that are ours, without the prefix."""
    return {key.removeprefix(LABEL): value for key, value in (labels or {}).items() if key.startswith(LABEL)}


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What a host is and has. `identity` tells hosts apart; memory is bytes; `runtimes`: the OCI runtimes of its engine."""

    identity: str
    name: str
    cpus: int
    memory: int
    kernel: str
    cgroup_version: str
    runtimes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class OuterSpec:
    """An outer container to be made. `files` (absolute path → content) are laid in before it starts. `labels` has its
    `sandbox`; a `name` of its own makes it the only one of that name on the host. `lease`: seconds after which it ends
    itself unless it is renewed. `disk`: cap of its store in bytes. `origin`: the store that its own begins as a copy of.
    `keep`: its store outlives it, and is used again by the next one of the same `sandbox_id`. `isolation`: its tier
    (`hosts.isolation`)."""

    sandbox_id: str
    image: str
    engine: str
    caps: Caps
    build_pids: int
    lease: int
    labels: dict[str, str]
    files: dict[str, bytes] = field(default_factory=dict)
    bases_volume: str | None = None
    bases_writable: bool = False
    name: str | None = None
    disk: int | None = None
    origin: str | None = None
    keep: bool = False
    isolation: str = "privileged"


@dataclass(frozen=True, slots=True)
class Outer:
    """An outer container that exists. `running` as of when it was looked at; `socket_dir` is the directory of this machine
    that it shares with its server, where it shares one."""

    container_id: str
    sandbox_id: str
    labels: dict[str, str]
    running: bool
    created: float
    caps: Caps
    socket_dir: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """What a sandbox keeps, or kept: images, containers, volumes. A volume of the host's; `size` is the bytes that are its
    own, where it was asked for and the host can tell."""

    name: str
    labels: dict[str, str]
    created: float
    pooled: bool
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """How a store was copied: its blocks shared ("snapshot"), or one by one ("copy", so many bytes of them)."""

    how: str
    copied: int


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a host keeps stores. In a pool ("pool") they can be capped, and are copied at once; else ("plain") neither, and
    `words` says why. Bytes."""

    kind: str
    words: str
    size: int = 0
    free: int = 0


@dataclass(frozen=True, slots=True)
class Mirror:
    """A cache of a registry that runs: of which ("docker.io"), and where sandboxes reach it (host:port, plain HTTP)."""

    registry: str
    upstream: str
    address: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a sandbox may take of its host: caps, in CPUs and bytes. One that does not run takes disk alone; so does a checkpoint,
    whose id is its store's name."""

    sandbox_id: str
    owner: str
    running: bool
    cpus: float
    memory: int
    disk: int


def store_of(sandbox_id: str) -> str:
    """The name of a sandbox's store."""
    return f"manyoyo-{sandbox_id}"


@dataclass(frozen=True, slots=True)
class Completed:
    """How a maintenance program ended; output is stdout and stderr together."""

    exit_code: int
    output: str


class Hop(SocketLike, Protocol):
    """A connection into a sandbox's network; `cut` ends what carries it there, where its other side does not."""

    def cut(self) -> None: ...


class Host(Protocol):
    """Every method raises HostUnavailable where the host's engine does not answer."""

    async def info(self) -> HostInfo:
        """What the host is; asked once, then remembered."""

    async def image_exists(self, reference: str) -> bool: ...

    async def pull(self, reference: str, say: Callable[[str], None]) -> None:
        """Pull an image; `say` gets a line now and then. Raises ImageUnavailable with what the registry said."""

    async def build_image(
        self, context: bytes, reference: str, build_args: dict[str, str], say: Callable[[str], None]
    ) -> None:
        """Build from a tar; `say` gets a line a step. Raises ImageUnavailable."""

    async def import_image(self, tar: IO[bytes], reference: str) -> None:
        """An image of a root file system, from the beginning of the file `tar`. Raises ImageUnavailable."""

    async def volume_exists(self, name: str) -> bool: ...

    async def create_volume(self, name: str, labels: dict[str, str]) -> None:
        """Make a volume; one that exists already is left as it is."""

    async def remove_volume(self, name: str) -> bool:
        """Remove a volume; whether there was one. Raises RequestError (IN_USE), naming them, while containers have it."""

    async def read_volume(self, name: str, path: str, image: str, labels: dict[str, str]) -> bytes | None:
        """A small file in a volume, None where it is missing; through a container of `image`, with `labels`, that is
        never started."""

    async def storage(self, image: str) -> Storage:
        """Where stores are kept here; the pool is made, its keeper of the outer image `image`, where there is none."""

    async def stores(self, labels: dict[str, str]) -> list[Store]:
        """The stores that carry all of `labels`, without their sizes."""

    async def sized(self, stores: Iterable[Store]) -> list[Store]:
        """The same with their sizes, where the host can tell them: it takes a look at each."""

    async def copy_store(self, source: str, name: str, labels: dict[str, str], cap: int | None, image: str) -> Copied:
        """A store `name` as `source` is now, even while that is in use. Nothing of it is left where this raises."""

    async def cap_store(self, name: str, cap: int) -> None:
        """Another cap, in bytes, for a store in the pool."""

    async def remove_store(self, name: str) -> int:
        """Remove a store; idempotent. The bytes that were its own, where known."""

    async def create(self, spec: OuterSpec) -> Outer:
        """Make an outer container and start it. Nothing of it is left where this raises or is cancelled.

        Raises NameConflict, and leaves that one alone, where another has its name; NotSupported where the disk can't be
        capped.
        """

    async def dialer(self, outer: Outer) -> tuple[str, Dial]:
        """How the nested engine is reached ("socket" or "relay") and a function that connects to it; returns when it
        listens. Raises EngineFailed with the engine's last words where it ends instead."""

    def execs(self, outer: Outer) -> Dial | None:
        """How what runs execs without the engine is reached (`ctl serve-execs` starts it); None where it can't be, as over a
        relay. Once `dialer` has returned."""

    def reach(self, outer: Outer, address: str, port: int) -> Hop:
        """Connect to what listens at an address in a sandbox's own network: a nested container's, for nothing of ours is to be reached so. An
        exec on the host, some 0.1 s; from any thread. Raises EngineUnreachable, also later, where nothing listens."""

    async def maintain(self, outer: Outer, *argv: str, timeout: float = 30, stdin: bytes | None = None) -> Completed:
        """Run `ctl argv…` in the outer container, which knows how much of `stdin` it reads. Never with a value that a client chose.
        Raises EngineUnreachable where it does not answer for `timeout` seconds and a few."""

    async def lay(self, outer: Outer, files: dict[str, bytes]) -> None:
        """Put files (absolute path → content) into an outer container that runs. Raises EngineUnreachable where it does not."""

    async def addresses(self) -> list[str]:
        """The host's own addresses, as far as they are known here."""

    async def renew(self, outer: Outer, patience: float = 30) -> None:
        """Begin its lease anew, or give up after `patience` seconds. Without that it ends itself after the seconds of its
        `OuterSpec.lease`. Raises EngineUnreachable, with the code ENDING where it is ending already."""

    async def find(
        self, labels: dict[str, str], sandbox_id: str | None = None, *, remains: bool = False
    ) -> list[Outer]:
        """The outer containers that carry all of `labels`; with `remains` also those that are gone but for what `remove`
        has not yet removed of them."""

    async def claims(self) -> list[Claim]:
        """What the sandboxes of all owners may take, by their labels, without a look at each."""

    async def mirror(self) -> Mirror | None:
        """The cache of a registry that runs on this host, if one does."""

    async def tidy(self) -> None:
        """Remove what this machine keeps for sandboxes that are gone."""

    async def inspect(self, outer: Outer) -> Outer | None:
        """The same container as it is now, or None where it is gone."""

    async def last_words(self, outer: Outer, lines: int = 20) -> str:
        """The end of what the entrypoint and the nested engine wrote."""

    async def grow(self, outer: Outer, caps: Caps) -> Outer: ...

    async def remove(self, outer: Outer, *, keep_store: bool = False) -> int:
        """Remove the container, its socket directory and, but for `keep_store`, its store; idempotent. Returns bytes freed
        where known."""

    async def close(self) -> None: ...
