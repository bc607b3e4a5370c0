"""`doctor isolation`: a sandbox of each tier, started for real, with a nested run that shows what its wall is; all removed after it."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence

import anyio

from manyoyo_mcp.cli.doctor.check import Check, fail, ok, warn
from manyoyo_mcp.cli.screen import Report, Screen
from manyoyo_mcp.cli.wording import in_options
from manyoyo_mcp.config import EngineName, Settings
from manyoyo_mcp.engines.base import RunSpec
from manyoyo_mcp.errors import EngineFailed, ManyoyoError
from manyoyo_mcp.hosts.base import Completed
from manyoyo_mcp.hosts.isolation import ON_HOST, RUNTIME, TIERS, engine_of, tier
from manyoyo_mcp.image import outer
from manyoyo_mcp.sessions.manager import Manager, open_manager
from manyoyo_mcp.sessions.sandbox import Sandbox

LONGEST = 90.0
"""Seconds for one tier: its sandbox's start, its proof, its end."""
_MEMORY = 512 << 20
_SYS_MODULE = 1 << 16
_DEFAULT = 0xA80425FB
"""Docker's default capabilities."""
_PLAIN = frozenset({"runc", "crun", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"})
"""Runtimes of the host's that are no wall of their own."""


async def walls(settings: Settings, names: Sequence[str], screen: Screen) -> AsyncGenerator[Check]:
    """Of the tiers with these `names`, of all that there may be without: one check a tier and engine that can have it; a failure where it is the one that is configured, else a warning."""
    settings = settings.model_copy(update={"warm": 0})
    async with open_manager(settings, sweep_first=False) as manager:
        with screen.working("the sandbox image") as progress:
            try:
                await outer.ensure(manager.host, settings, progress)  # its building is no part of a tier's time
            except ManyoyoError as error:
                yield fail("isolation", in_options(error.message), in_options(error.hint))
                return
        registered = (await manager.host.info()).runtimes - _PLAIN - {settings.host_runtime}
        for name in names or (*TIERS, *(RUNTIME + each for each in sorted(registered))):
            for engine in sorted(tier(name).engines, key=lambda each: (each != settings.engine, each)):
                with screen.working(f"trying isolation {name} with {engine}") as progress:
                    yield await _try(manager, name, engine, progress)


async def _try(manager: Manager, name: str, engine: EngineName, progress: Report) -> Check:
    settings = manager.settings
    row = f"isolation {name}, {engine}"
    meant = (name, engine) == (settings.isolation, engine_of(name, settings))
    failed = fail if meant else warn
    begun = time.monotonic()
    try:
        with anyio.fail_after(LONGEST):
            sandbox = await manager.start(engine, memory=_MEMORY, progress=progress, isolation=name)
            try:
                found = await _proof(manager, sandbox)
            finally:
                with anyio.CancelScope(shield=True):
                    await manager.remove(sandbox)
        shown, words = proof(name, found)
    except ManyoyoError as error:
        return failed(row, f"can not be had: {in_options(error.message)}", in_options(error.hint) or _OTHER)
    except TimeoutError:
        return failed(row, f"can not be had: not started, proven and removed within {LONGEST:g} s", _OTHER)
    if not shown:
        return failed(row, f"can not be had: {words}", _OTHER)
    return ok(row, f"can be had: {words} ({time.monotonic() - begun:.1f} s)")


_SHOW = """
echo "run_kernel=$(cat /proc/version)"
echo "run_capabilities=$(sed -n 's/^CapBnd:[[:space:]]*//p' /proc/self/status)"
echo "run_gains=$(sed -n 's/^NoNewPrivs:[[:space:]]*//p' /proc/self/status)"
echo "run_disks=$(find /dev -type b | wc -l)"
"""


async def _proof(manager: Manager, sandbox: Sandbox) -> Completed:
    """What shows the wall of a sandbox: by `ctl prove`; where its engine is the host's, what a run sees, and what is seen of others."""
    if sandbox.isolation not in ON_HOST:
        return await manager.host.maintain(sandbox.outer, "prove", timeout=LONGEST)
    output = bytearray()
    spec = RunSpec(outer.reference(manager.settings), ["-c", _SHOW], sandbox.limits.default, entrypoint=["/bin/sh"])
    ended = await sandbox.engine.run(spec, output.extend)
    others = [each for each in await sandbox.engine.containers() if each.container_id != ended.container]
    return Completed(0, f"{output.decode(errors='replace')}\nexit={ended.exit_code}\nothers={len(others)}\n")


_OTHER = "Use another tier: docs/security.md says what each holds back."


def proof(name: str, completed: Completed) -> tuple[bool, str]:
    """Whether a tier is what it says, by `ctl prove` in a sandbox of it, and by what that is told. Raises EngineFailed where it did not run."""
    facts = dict(line.split("=", 1) for line in completed.output.splitlines() if "=" in line)
    if completed.exit_code != 0 or facts.get("exit") != "0":
        raise EngineFailed(f"A nested run did not go well: {completed.output.strip()[-400:]}", "`manyoyo-mcp doctor`.")
    return _OF.get(name, _runtime)(facts)


def _privileged(facts: Mapping[str, str]) -> tuple[bool, str]:
    return True, f"the outer container is privileged and sees {facts['outer_disks']} block devices"


def _hardened(facts: Mapping[str, str]) -> tuple[bool, str]:
    modules = int(facts["outer_capabilities"], 16) & _SYS_MODULE
    disks = int(facts["outer_disks"])
    if modules or disks:
        return False, f"the outer container sees {disks} block devices, and may{'' if modules else ' not'} load modules"
    return True, "the outer container sees no block device, and may not load modules"


def _userns(facts: Mapping[str, str]) -> tuple[bool, str]:
    held, words = _hardened(facts)
    _, outside, count = (int(number) for number in facts["nested_ids"].split())
    if outside == 0:
        return False, "root of a nested run is root outside it"
    return held, f"{words}; root of a nested run is {outside} outside it, of {count} ids"


def _gvisor(facts: Mapping[str, str]) -> tuple[bool, str]:
    held, words = _hardened(facts)
    nested, host = (" ".join(facts[key].split()[:3]) for key in ("nested_kernel", "outer_kernel"))
    if facts["nested_kernel"] == facts["outer_kernel"]:
        return False, f"a nested run sees the host's kernel ({nested})"
    return held, f"{words}; a nested run sees {nested}, the host's kernel is {host}"


def _common(facts: Mapping[str, str]) -> tuple[bool, str]:
    beyond = int(facts["run_capabilities"], 16) & ~_DEFAULT
    disks, others = int(facts["run_disks"]), int(facts["others"])
    words = f"a run sees {disks} block devices, and {others} containers of others'"
    if beyond or disks or others or facts["run_gains"] != "1":
        return (
            False,
            f"{words}; it {'has more' if beyond else 'has no more'} capabilities than Docker's own, and {'can' if facts['run_gains'] != '1' else 'can not'} gain others",
        )
    return True, f"{words}; it has fewer capabilities than Docker's own, and gains no other"


def _runtime(facts: Mapping[str, str]) -> tuple[bool, str]:
    return (
        True,
        f"the outer container sees {facts['outer_disks']} block devices and {' '.join(facts['outer_kernel'].split()[:3])}",
    )


_OF = {
    "privileged": _privileged,
    "hardened": _hardened,
    "userns": _userns,
    "rootless": _userns,
    "gvisor": _gvisor,
    "common": _common,
    "sock": _common,
}
