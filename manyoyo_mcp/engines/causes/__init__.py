"""The table of known causes of failed builds: what each looks like, why that is, and how to mend it.

Order matters: the first cause whose sign is there is the one, so the most specific stand first. docs/build-failures.md
lists the codes; tests/integration/test_build_causes.py provokes them.
"""

from manyoyo_mcp.engines.causes.dockerfile import DOCKERFILE
from manyoyo_mcp.engines.causes.signs import Known, Sign
from manyoyo_mcp.engines.causes.steps import STEPS

KNOWN: tuple[Known, ...] = (*DOCKERFILE, *STEPS)

__all__ = ["KNOWN", "Known", "Sign"]
