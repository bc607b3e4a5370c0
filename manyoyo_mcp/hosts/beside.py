"""Sandboxes without an engine of their own: what they run are containers of the host's engine, beside everybody else's.

Their outer container is a *keeper*, in which no engine runs and nothing of a client's. It is the sandbox's network, which the others join; its lease;
and, when that ends or it is told to, what removes them: for that it has the host's socket, as the server does. Its caps are a record of the sandbox's.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker

from manyoyo_mcp.errors import NotSupported
from manyoyo_mcp.policy import labelled
from manyoyo_mcp.policy.base import Within

SOCKET = "/run/manyoyo-host.sock"
"""Where the keeper has the host's."""
USUAL = "/var/run/docker.sock"
"""Where an engine has its socket that we can't look at."""


def within(sandbox_id: str, joins: str = "", images: tuple[str, ...] = (), *, builds: bool = False) -> Within:
    """A sandbox's part of its host's engine."""
    part = Within(sandbox_id, joins, images, builds)
    return replace(part, images=(*images, f"{part.images_prefix}*")) if builds else part


def mount(socket: str) -> dict[str, Any]:
    """What the keeper has of the host: its engine's socket."""
    return {"Type": "bind", "Source": socket, "Target": SOCKET}


def socket_of(address: str | None) -> str:
    """The path of an engine's socket on its own machine, as far as its address tells."""
    return address.removeprefix("unix://") if address is not None and address.startswith("unix:///") else USUAL


def listens(shared: Path) -> bool:
    """Whether the keeper holds its sandbox's network: it then says where the engine is, by a link that leads nowhere here."""
    return (shared / "engine.sock").is_symlink()


def check(client: docker.APIClient) -> None:
    """Raises NotSupported where the host's engine is none that this was made for."""
    check_told(client.version(), client.info())


def check_told(version: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """The same, by what an engine tells of itself."""
    hint = "Take another isolation (hardened, privileged), which has an engine of its own on any host."
    if any("Podman" in str(each.get("Name", "")) for each in version.get("Components") or []):
        raise NotSupported(
            "The host's engine is podman: its API differs from Docker's where this isolation relies on it.",
            hint,
            code="ISOLATION_UNAVAILABLE",
        )
    runtime = str(info.get("DefaultRuntime", ""))
    if "nvidia" in f"{runtime} {(info.get('Runtimes') or {}).get(runtime)}".lower():
        raise NotSupported(
            "The host's engine runs containers by NVIDIA's runtime unless told otherwise: it gives the host's devices and libraries to whoever sets a variable.",
            f"{hint} The user can take default-runtime out of the engine's daemon.json, and name it where a GPU is wanted (--runtime=nvidia).",
            code="ISOLATION_UNAVAILABLE",
        )


def remove_all(client: docker.APIClient, sandbox_id: str) -> None:
    """Remove what a sandbox has on its host's engine, whatever it does."""
    theirs = within(sandbox_id)
    for row in client.containers(all=True, filters={"label": f"{labelled.LABEL}={sandbox_id}"}):
        if labelled.belongs(theirs, row["Labels"], *row["Names"]):
            try:
                client.remove_container(row["Id"], force=True, v=True)
            except docker.errors.NotFound:
                pass
            except docker.errors.APIError as error:
                if error.status_code != 409:  # another is removing it
                    raise
    _remove_images(client, theirs)


def _remove_images(client: docker.APIClient, theirs: Within) -> None:
    """Images, but what others have named or use."""
    label = f"{labelled.OF}={theirs.sandbox}"
    for _ in range(2):  # an image that others stand on goes after them
        for row in sorted(client.images(all=True, filters={"label": label}), key=lambda each: -int(each["Created"])):
            names = [each for each in row.get("RepoTags") or [] if each != "<none>:<none>"]
            for name in [each for each in names if each.startswith(theirs.images_prefix)] or (
                [] if names else [row["Id"]]
            ):
                with contextlib.suppress(docker.errors.APIError):
                    client.remove_image(name)
