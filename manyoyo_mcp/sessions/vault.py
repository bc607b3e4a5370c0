"""The secrets that a caller may name: had from where the settings say, each time anew, and kept out of what goes back."""

import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import anyio

from manyoyo_mcp import references
from manyoyo_mcp.errors import NotFound, RequestError
from manyoyo_mcp.redaction import LEAST, Redactor, flat
from manyoyo_mcp.references import Reference
from manyoyo_mcp.workers import in_thread

PATIENCE = 30.0
"""Seconds that a command may take."""
AT_ONCE = 4
"""Commands of one caller's secrets that run at a time; the others wait for their turn."""
LARGEST = 64 << 10
"""Bytes of one secret."""
_KEPT = 64
"""Values of one name that are kept out of outputs: a command may have another each time."""


class Vault:
    """One caller's secrets: those of `declared` that are `principal`'s. `redactor` knows all that were given out."""

    def __init__(self, declared: Mapping[str, Reference], principal: str = "", patience: float = PATIENCE) -> None:
        self._references = references.of(declared, principal)
        self._patience = patience
        self._given: dict[str, list[bytes]] = {}
        self._adding = anyio.Lock()
        self._running = anyio.Semaphore(AT_ONCE)
        self.redactor = Redactor()

    @property
    def names(self) -> list[str]:
        return sorted(self._references)

    def current(self) -> Redactor:
        """The redactor as it is now; another takes its place with each value that is new."""
        return self.redactor

    def check(self, names: Iterable[str]) -> None:
        """Raises NotFound (SECRET_NOT_FOUND), with the names that there are; not with one that is none, for it may be a value."""
        for name in names:
            if name not in self._references:
                raise NotFound(
                    "No secret of that name is declared.",
                    f"There are: {', '.join(self.names)}." if self._references else
                    "None is: whoever runs this server declares them (MANYOYO_SECRETS, docs/secrets.md). Never send a value.",
                    code="SECRET_NOT_FOUND",
                )  # fmt: skip

    async def values(self, names: Iterable[str]) -> dict[str, bytes]:
        """The secrets of these names, as they are now. Raises NotFound, RequestError (SECRET_UNAVAILABLE); neither tells a value."""
        names = list(dict.fromkeys(names))
        self.check(names)
        found = {name: await self._value(name) for name in names}
        await self.learn(found)
        return found

    async def learn(self, found: Mapping[str, bytes]) -> None:
        """Keep these out of outputs from now on: nobody has a value before the redactor knows it."""
        async with self._adding:
            await self._add(found)

    async def _add(self, found: Mapping[str, bytes]) -> None:
        new = {name: value for name, value in found.items() if value not in self._given.get(name, [])}
        if not new:
            return
        given = {name: [*values] for name, values in self._given.items()}
        for name, value in new.items():
            given[name] = [*given.get(name, []), value][-_KEPT:]
        self.redactor = await in_thread(Redactor, [(name, value) for name, values in given.items() for value in values])
        self._given = given  # only now: a call that is cut off leaves nothing that counts as known

    async def _value(self, name: str) -> bytes:
        reference = self._references[name]
        match reference.kind:
            case "env":
                value = _variable(name, reference.words[0])
            case "file":
                value = await in_thread(_file, name, reference.words[0])
            case "command":
                async with self._running:
                    value = await self._output(name, reference.words)
        if len(flat(value.strip())) < LEAST:
            raise _unavailable(name, f"it has fewer than {LEAST} bytes, too few to be kept out of what programs print")
        if len(value) > LARGEST:
            raise _unavailable(name, f"it has more than {LARGEST >> 10} KiB")
        return value

    async def _output(self, name: str, argv: tuple[str, ...]) -> bytes:
        """What a command writes, without the line ends that it ends with, as shells have it. What it says beside is not told: it may be
        about the secret."""
        try:
            process = await anyio.open_process(
                argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise _unavailable(name, f"its command can't be started ({error.strerror})") from None
        value = b""
        with anyio.move_on_after(self._patience) as limit:
            try:
                assert process.stdout is not None
                async for piece in process.stdout:
                    value += piece
                    if len(value) > LARGEST:
                        break
                else:
                    await process.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    _end(process)
                    await process.aclose()
        if limit.cancelled_caught:
            raise _unavailable(name, f"its command has not ended after {self._patience:g} s (it can't ask anybody)")
        if len(value) <= LARGEST and process.returncode != 0:
            raise _unavailable(name, f"its command ended with exit code {process.returncode}")
        return value.rstrip(b"\r\n") if len(value) <= LARGEST else value


def _end(process: anyio.abc.Process) -> None:
    """It, and what it has begun, unless it has ended: what such as gpg's agent may stay."""
    if process.returncode is None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()


def _variable(name: str, variable: str) -> bytes:
    value = os.environ.get(variable)
    if value is None:
        raise _unavailable(name, f"the server's environment has no {variable}")
    return os.fsencode(value)


def _file(name: str, path: str) -> bytes:
    try:
        place = Path(path).expanduser()
        if not place.is_file():
            raise _unavailable(name, "its file is not there, or is no file")
        with place.open("rb") as file:
            return file.read(LARGEST + 1)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise _unavailable(name, f"its file can't be read ({why})") from None


def _unavailable(name: str, why: str) -> RequestError:
    return RequestError(
        f"The secret {name} can't be had: {why}.",
        "Whoever runs this server can mend that (MANYOYO_SECRETS, docs/secrets.md); go on without it until then.",
        code="SECRET_UNAVAILABLE",
    )
