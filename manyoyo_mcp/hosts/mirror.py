"""The mirror: a pull-through cache of one registry in one container of the host's, from which all its sandboxes pull."""

import posixpath
from typing import Any

import docker

from manyoyo_mcp.archive import tar
from manyoyo_mcp.errors import HostUnavailable
from manyoyo_mcp.hosts.base import LABEL, Mirror

NAME = "manyoyo-mirror"
"""Of its container, and of the volume with what it has pulled."""
PORT = 5000


def find(client: docker.APIClient) -> Mirror | None:
    """The mirror of this host; None where none runs."""
    try:
        raw = client.inspect_container(NAME)
    except docker.errors.NotFound:
        return None
    address = raw["NetworkSettings"].get("IPAddress") or ""
    if not raw["State"]["Running"] or not address:
        return None
    labels = raw["Config"]["Labels"] or {}
    return Mirror(labels.get(f"{LABEL}registry", ""), labels.get(f"{LABEL}upstream", ""), f"{address}:{PORT}")


def start(
    client: docker.APIClient,
    image: str,
    registry: str,
    upstream: str,
    credentials: dict[str, str],
    files: dict[str, bytes],
) -> None:
    """Start one, in place of one that there is; what that has pulled stays. Raises HostUnavailable with its last words."""
    stop(client, data=False)
    labels = {f"{LABEL}kind": "mirror", f"{LABEL}registry": registry, f"{LABEL}upstream": upstream}
    volume: dict[str, Any] = {"Type": "volume", "Source": NAME, "Target": "/var/lib/manyoyo-mirror"}
    volume["VolumeOptions"] = {"Labels": {f"{LABEL}kind": "mirror"}}
    environment = {
        "UPSTREAM": upstream,
        "USERNAME": credentials.get("username", ""),
        "PASSWORD": credentials.get("password", ""),
    }
    body = {
        "Image": image,
        "Labels": labels,
        "Entrypoint": ["/usr/bin/catatonit", "--", "/usr/lib/manyoyo/mirror"],
        "Env": [f"{key}={value}" for key, value in environment.items() if value],
        "HostConfig": {
            "Mounts": [volume],
            "Tmpfs": {"/run": "mode=700"},
            "Memory": 1 << 30,
            "PidsLimit": 512,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "RestartPolicy": {"Name": "unless-stopped"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
        },
    }
    client.create_container_from_config(body, NAME)
    try:
        if files:
            client.put_archive(NAME, "/", tar({path.lstrip(posixpath.sep): content for path, content in files.items()}))
        client.start(NAME)
    except docker.errors.APIError as error:
        client.remove_container(NAME, force=True)
        raise HostUnavailable(
            f"The mirror could not be started: {error.explanation}",
            "`docker logs manyoyo-mirror` and the host engine's own log say more.",
        ) from error


def stop(client: docker.APIClient, *, data: bool) -> bool:
    """Remove the mirror, with `data` also what it has pulled; whether there was one."""
    there = True
    try:
        client.remove_container(NAME, force=True)
    except docker.errors.NotFound:
        there = False
    if data:
        try:
            client.remove_volume(NAME)
            there = True
        except docker.errors.NotFound:
            pass
    return there
