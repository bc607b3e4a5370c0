"""What sandboxes may reach: what the host itself uses, the policy that is granted, and what was refused."""

import os
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from manyoyo_mcp.config import NetworkMode, Settings
from manyoyo_mcp.errors import EgressUnenforced, InvalidArgument, PolicyRefused
from manyoyo_mcp.hosts import firewall
from manyoyo_mcp.hosts.base import Host, Outer
from manyoyo_mcp.policy.egress import Entry, Policy, entries, grant, meant, narrowed
from manyoyo_mcp.sessions import registries
from manyoyo_mcp.sessions.sandbox import Sandbox
from manyoyo_mcp.workers import in_thread

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}
_REMEMBERED = 60.0
"""Seconds for which the addresses of a name are not asked for again."""
_UNKNOWN_WORD = 2
"""`ctl`'s exit code for what it does not know."""
_known: dict[str, tuple[float, list[str]]] = {}


def configured(settings: Settings) -> Policy:
    """The most that sandboxes may reach. Raises InvalidArgument, which names the setting."""
    try:
        allow = entries(settings.network_allow)
    except InvalidArgument as error:
        raise InvalidArgument(f"MANYOYO_NETWORK_ALLOW: {error.message}", error.hint) from error
    if settings.network_policy == "allowlist" and not allow:
        raise InvalidArgument(
            "MANYOYO_NETWORK_POLICY is allowlist, and there is no list.",
            "Set MANYOYO_NETWORK_ALLOW, e.g. example.org:443,*.example.net; or MANYOYO_NETWORK_POLICY=none.",
        )
    return Policy(settings.network_policy, allow if settings.network_policy != "none" else ())


async def granted(
    settings: Settings, host: Host, mode: NetworkMode | None, allow: Sequence[str] | None, *, approved: bool = False
) -> Policy | None:
    """The policy that is asked for, None where none is. `approved`: also where it goes beyond what is configured. Raises InvalidArgument,
    PolicyRefused."""
    if mode is None and allow is None:
        return None
    most = configured(settings)
    if approved:
        return meant(most, mode, allow)
    return grant(most, mode, allow, await used(settings, await registries.mirrors(settings, host)))


async def beyond(
    settings: Settings, host: Host, mode: NetworkMode | None, allow: Sequence[str] | None
) -> tuple[Policy, PolicyRefused] | None:
    """What is asked for and why it would be refused, where it goes beyond what is configured. Raises InvalidArgument."""
    try:
        await granted(settings, host, mode, allow)
    except PolicyRefused as refusal:
        return meant(configured(settings), mode, allow), refusal
    return None


async def used(settings: Settings, mirrors: Sequence[registries.Source]) -> list[Entry]:
    """What the host itself uses, by address: its proxies, its mirrors, and the registries of the settings."""
    asked: list[tuple[str, int | None]] = []
    for variable in _PROXIES:
        for value in {os.environ.get(variable), os.environ.get(variable.upper())} - {None, ""}:
            asked += _of_url(str(value) if "://" in str(value) else f"http://{value}")
    for source in mirrors:
        asked += _of_url(f"{'http' if source.plain else 'https'}://{source.address}")
    for registry in settings.insecure_registries:
        if "/" in registry:
            asked.append((registry, None))
        else:
            asked += [(name, port) for name, _ in _of_url(f"http://{registry}") for port in _ports(registry)]
    found: list[Entry] = []
    for name, port in asked:
        found += await in_thread(_addresses, name, port)
    return list(dict.fromkeys(found))


def _ports(registry: str) -> list[int]:
    port = urlsplit(f"http://{registry}").port
    return [port] if port is not None else [80, 443]


def _of_url(url: str) -> list[tuple[str, int | None]]:
    try:
        parts = urlsplit(url)
        return [(parts.hostname, parts.port or _PORTS.get(parts.scheme, 80))] if parts.hostname else []
    except ValueError:
        return []


def _addresses(name: str, port: int | None) -> list[Entry]:
    """A host's addresses, each as an entry; none where nobody knows it."""
    try:
        entry = Entry.parse(name)
        if entry.network is not None:
            return [Entry(network=entry.network, port=port)]
    except InvalidArgument:
        return []
    asked, found = _known.get(name, (0.0, []))
    if time.monotonic() - asked > _REMEMBERED or not asked:
        try:
            found = sorted({str(each[4][0]) for each in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
        except OSError:
            found = []
        _known[name] = (time.monotonic(), found)
    return [Entry(network=Entry.parse(each).network, port=port) for each in found if "%" not in each]


async def files(
    settings: Settings,
    host: Host,
    policy: Policy,
    engine: str,
    mirrors: Sequence[registries.Source] | None = None,
    *,
    shared: bool = False,
) -> dict[str, bytes]:
    """What a sandbox's rules are made of (path in the outer container → content). `mirrors`: where they are known already; `shared`: what
    is run has the sandbox's very network."""
    if mirrors is None:
        mirrors = await registries.mirrors(settings, host)
    return firewall.files(policy, engine, await used(settings, mirrors), await host.addresses(), shared=shared)


async def change(settings: Settings, host: Host, outer: Outer, policy: Policy) -> None:
    """Put another policy into force in a sandbox that runs, also for what is under way. Raises EgressUnenforced; the old one holds then."""
    wanted = await files(settings, host, policy, outer.labels["engine"])
    await host.lay(
        outer, {f"{firewall.NEXT}{path.removeprefix(firewall.DIRECTORY)}": each for path, each in wanted.items()}
    )
    completed = await host.maintain(outer, "egress-change")
    if completed.exit_code != 0:
        raise EgressUnenforced(
            f"{outer.sandbox_id} could not be given another network policy: {completed.output[-400:].strip()}",
            "sandbox_status shows which one holds; start a new sandbox with the one that is wanted.",
        )


async def policy_of(host: Host, outer: Outer) -> Policy:
    """The policy that holds in a sandbox that runs, whoever gave it. Raises EgressUnenforced where it can't be told."""
    completed = await host.maintain(outer, "egress-policy")
    if completed.exit_code == _UNKNOWN_WORD:
        return Policy("open")  # of a version that had no other
    if completed.exit_code != 0:
        raise EgressUnenforced(
            f"{outer.sandbox_id} does not tell its network policy: {completed.output[-400:].strip()}",
            "End it with cleanup (keep_data for a named one, which then keeps what it holds) and start it anew.",
        )
    return Policy.of_label(completed.output)


class Networks:
    """The policies of one session's sandboxes. What named ones were given since they were made is noted for their next start: labels do
    not change."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self._settings = settings
        self._host = host
        self._directory = settings.state_dir / "networks"

    async def set(self, sandbox: Sandbox, policy: Policy) -> None:
        """Another one for a live sandbox, in force when this returns. Raises EgressUnenforced; the old one holds then."""
        await change(self._settings, self._host, sandbox.outer, policy)
        sandbox.network = policy
        if sandbox.name:
            self.note(sandbox.sandbox_id, policy)

    async def kept(self, sandbox_id: str, labels: dict[str, str]) -> Policy:
        """What a sandbox had last, by its note or else its store's labels, less what may not be had any more."""
        return await self._narrowed(Policy.of_label(self._noted(sandbox_id) or labels.get("network", "")))

    async def narrow(self, sandbox: Sandbox) -> None:
        """One that another session started gets no more than is configured here."""
        sandbox.network = await policy_of(self._host, sandbox.outer)
        may = await self._narrowed(sandbox.network)
        if may != sandbox.network:
            await self.set(sandbox, may)

    async def _narrowed(self, had: Policy) -> Policy:
        mirrors = await registries.mirrors(self._settings, self._host)
        return narrowed(configured(self._settings), had, await used(self._settings, mirrors))

    def _noted(self, sandbox_id: str) -> str | None:
        try:
            return (self._directory / sandbox_id).read_text() if sandbox_id else None
        except OSError:
            return None

    def note(self, sandbox_id: str, policy: Policy | None) -> None:
        """None forgets it."""
        path = self._directory / sandbox_id
        if policy is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(policy.label)
        new.replace(path)
