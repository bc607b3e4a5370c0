"""Secrets on their way into a nested container: as an archive for the outer container's memory, from where its OCI runtime hands them on
(`ctl give-secrets`, `oci-add` in the outer image). No engine is told of them, so none can show, keep or store them."""

import contextlib
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from manyoyo_mcp.archive import tar
from manyoyo_mcp.engines.asking import Asking
from manyoyo_mcp.engines.base import Given, Secret
from manyoyo_mcp.errors import EngineFailed, ManyoyoError, NotSupported
from manyoyo_mcp.policy.fields import OURS

HELD = "/run/manyoyo-secrets"
"""Where they lie in the outer container: its /run is memory."""
LABEL = f"{OURS}secrets"
"""Of a container that was given some: their names."""
_MARK = "manyoyo-secret:"
"""How what an engine's builder takes for a secret begins; its name follows."""
_KEEP = 20.0
"""Seconds after which a build's secrets are said to be needed still: without that they go, for a server that has died takes nothing away."""
_READ_ONLY = ("bind", "ro", "nosuid", "nodev", "noexec")


def for_run(
    container: str, secrets: Sequence[Secret], values: Mapping[str, bytes], given: Sequence[Given] = ()
) -> bytes:
    """The archive for a container: files, and in the OCI runtime's words the mounts and variables to be added. Raises NotSupported for
    a variable that can't be."""
    files: dict[str, bytes] = {}
    mounts: list[dict[str, Any]] = []
    variables: list[str] = []
    for number, secret in enumerate(secrets):
        if secret.variable:
            variables.append(variable(secret, values))
            continue
        files[f"files/{number}"] = values[secret.name]
        source = f"{HELD}/{container}/files/{number}"
        mounts.append({"destination": secret.path, "type": "bind", "source": source, "options": list(_READ_ONLY)})
    for each in given:
        options = ["bind", "rw" if each.writable else "ro", "nosuid", "nodev"]
        mounts.append({"destination": each.target, "type": "bind", "source": each.source, "options": options})
    if given:
        files["namespaces"] = b""
    for name, parts in (("mounts", mounts), ("env", variables)):
        files[f"{name}.json"] = ",".join(json.dumps(each) for each in parts).encode()
    return tar(files)


def variable(secret: Secret, values: Mapping[str, bytes]) -> str:
    """As environments have it. Raises NotSupported for what is no text."""
    try:
        text = values[secret.name].decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise NotSupported(f"The secret {secret.name} is no text, and no variable can hold it.", "Have it as a file.")
    value = text.removesuffix("\n").removesuffix("\r")
    return f"{secret.variable}={value}"


def for_build(values: Mapping[str, bytes]) -> bytes:
    """The archive for a build, whose steps have the files by their secrets' names."""
    return tar({f"files/{name}": value for name, value in values.items()})


def placeholders(build_id: str, names: Sequence[str]) -> tuple[str, bytes]:
    """What podman's builder is told instead: the parameter that names a file of the context for each secret, and the beginning of a context
    with these files, which hold no more than the names. (Podman takes them out of the context before the build begins.)"""
    files = {f".manyoyo-secret-{build_id}-{number}": name for number, name in enumerate(names)}
    told = [f"id={name},src={file}" for file, name in files.items()]
    return json.dumps(told), b"".join(_entry(file, f"{_MARK}{name}".encode()) for file, name in files.items())


def _entry(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


class Giving(Asking):
    """Secrets laid where a container's or build's OCI runtime finds them, and taken away."""

    async def _give(self, id_: str, archive: bytes) -> None:
        self._given.add(id_)  # whatever comes of it
        done = await self._maintain("give-secrets", id_, str(len(archive)), stdin=archive)
        if done.exit_code:
            raise EngineFailed(
                f"The secrets could not be laid into the sandbox: {str(done.output).strip()[:200]}", "Try once more."
            )

    def _keep(self, id_: str) -> Callable[[], None]:
        """Keep what a build was given until what is returned is called."""
        over = anyio.Event()

        async def keep() -> None:
            while not over.is_set():
                with anyio.move_on_after(_KEEP):
                    await over.wait()
                    return
                with contextlib.suppress(ManyoyoError):
                    await self._maintain("keep-secrets", id_)

        self._later(f"keep the secrets of {id_}", keep)
        return over.set

    async def _take_away(self, id_: str) -> None:
        """No error, and no question, where none were given."""
        if id_ in self._given and (await self._maintain("drop-secrets", id_)).exit_code == 0:
            self._given.discard(id_)

    async def _still_has(self, container: str) -> None:
        """Raises NotSupported where a container that is to be started was given secrets that are not there any more."""
        raw = await self._inspect(container)
        if not (raw["Config"].get("Labels") or {}).get(LABEL):
            return
        if (await self._maintain("has-secrets", raw["Id"])).exit_code:
            raise NotSupported(
                f"{container} was given secrets, and they are gone: they live no longer than the sandbox runs.",
                "Start it anew with nested_run and secrets; nested_stop with action=remove takes this one away.",
                code="SECRETS_GONE",
            )
