"""The base images, for tests that build on them: made once for the whole suite, and by whoever needs them first."""

from collections.abc import Sequence

from manyoyo_mcp.cli.image import make_bases
from manyoyo_mcp.config import Settings
from manyoyo_mcp.image.bases import Base


async def ensure_bases(names: Sequence[str] = ("debian", "python", "node", "busybox")) -> dict[str, Base]:
    """See that new sandboxes have these base images, by name. Quick where they were made before."""
    return {base.name: base for base in await make_bases(Settings(), names, lambda done, total, words: None)}
