"""What runs nested containers: one API, two engines."""

from manyoyo_mcp.engines.api import DockerApiEngine
from manyoyo_mcp.engines.docker import DockerEngine
from manyoyo_mcp.engines.host import HostEngine
from manyoyo_mcp.engines.podman import PodmanEngine

__all__ = ["ENGINES", "DockerApiEngine", "DockerEngine", "HostEngine", "PodmanEngine"]

ENGINES: dict[str, type[DockerApiEngine]] = {"podman": PodmanEngine, "docker": DockerEngine}
"""The engines by the name that `engine=` takes."""
