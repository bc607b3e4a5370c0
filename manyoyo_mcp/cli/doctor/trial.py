"""`doctor --try`: a sandbox of each engine that the configured isolation can have, started for real, its caps probed, and removed."""

import time
from collections.abc import AsyncGenerator

from manyoyo_mcp.cli.doctor.check import Check, fail, ok
from manyoyo_mcp.cli.screen import Report, Screen
from manyoyo_mcp.cli.wording import in_options
from manyoyo_mcp.config import EngineName, Settings
from manyoyo_mcp.errors import ManyoyoError
from manyoyo_mcp.hosts.isolation import tier
from manyoyo_mcp.image import outer as outer_image
from manyoyo_mcp.sessions.manager import Manager, open_manager
from manyoyo_mcp.sessions.probe import prove


async def trial(settings: Settings, screen: Screen) -> AsyncGenerator[Check]:
    """One check an engine."""
    settings = settings.model_copy(update={"allow_unenforced_caps": True})  # a probe that fails is what is to be shown
    async with open_manager(settings, sweep_first=False) as manager:
        for engine in sorted(tier(settings.isolation).engines, reverse=True):  # the default first
            with screen.working(f"trying a {engine} sandbox") as progress:
                try:
                    check = await _try(manager, engine, progress)
                except ManyoyoError as error:
                    check = fail(f"sandbox {engine}", in_options(error.message), in_options(error.hint))
            yield check


async def _try(manager: Manager, engine: EngineName, progress: Report) -> Check:
    name = f"sandbox {engine}"
    sandbox = await manager.start(engine, progress=progress)
    progress(0, None, f"probing the caps of a {engine} sandbox")
    evidence = await prove(manager.host, sandbox.outer, sandbox.engine, outer_image.reference(manager.settings))
    begun = time.monotonic()
    await manager.remove(sandbox)
    words = (
        f"started in {sandbox.start_seconds:.2f} s ({sandbox.transport}), removed in {time.monotonic() - begun:.2f} s; "
        f"{evidence.words}"
    )
    if not evidence.enforced:
        return fail(name, words, "Mend the host's cgroups; until then sandboxes need MANYOYO_ALLOW_UNENFORCED_CAPS=1.")
    return ok(name, words)
