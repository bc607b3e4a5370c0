"""Bearer tokens: one a principal, known by their hash alone, in a file that is its owner's."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from manyoyo_mcp.errors import InvalidArgument, NameConflict, NotFound
from manyoyo_mcp.sessions.principals import SCOPES, Caller

_PREFIX = "manyoyo_"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token: the principal's name, its scopes, SHA-256 of the token (256 random bits: no salt, no slow hash)."""

    name: str
    scopes: list[str]
    sha256: str
    created: float


class Tokens:
    """The tokens in a file; a change of it counts from the next request on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._callers: dict[str, Caller] = {}

    def caller(self, token: str) -> Caller | None:
        """Whose token this is; None where it is nobody's, or the file can't be trusted."""
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                self._callers = {each.sha256: Caller(each.name, frozenset(each.scopes)) for each in self.all()}
                self._seen = seen
        except (OSError, InvalidArgument):  # as when it is gone: no token is good
            self._seen = None
            return None
        return self._callers.get(_hash(token))

    def all(self) -> list[Token]:
        """Raises InvalidArgument where the file is not its owner's alone, or is none of ours."""
        try:
            with self.path.open(encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                if hasattr(os, "getuid") and (status.st_mode & 0o077 or status.st_uid != os.getuid()):
                    raise InvalidArgument(
                        f"{self.path} can be read by others, or is another user's.", f"chown and chmod 600 {self.path}."
                    )
                tokens = [Token(**each) for each in json.load(file)["tokens"]]
                if wrong := [each.name for each in tokens if not _NAME.fullmatch(each.name)]:
                    raise ValueError(f"{wrong[0][:70]!r} is no name for a principal")
                return tokens
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidArgument(
                f"{self.path} can't be read: {error}.", "Mend it, or remove it and add the tokens anew."
            ) from error

    def add(self, name: str, scopes: list[str]) -> str:
        """A new token for a new principal; it is told here and never again. Raises InvalidArgument, NameConflict."""
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"{name[:70]!r} is no name for a principal.",
                "Lower-case letters, digits, _ . -, at most 63, first a letter or digit.",
            )
        wrong = [scope for scope in scopes if scope not in SCOPES]
        if wrong or not scopes:
            raise InvalidArgument(
                f"There is no scope {', '.join(map(repr, wrong)) or chr(39) * 2}.", f"Scopes: {', '.join(SCOPES)}."
            )
        token = _PREFIX + secrets.token_urlsafe(32)
        with self._changing() as tokens:
            if any(each.name == name for each in tokens):
                raise NameConflict(f"{name} has a token already.", f"`manyoyo-mcp token revoke {name}` first.")
            tokens.append(Token(name, list(dict.fromkeys(scopes)), _hash(token), time.time()))
        return token

    def revoke(self, name: str) -> None:
        """Raises NotFound."""
        with self._changing() as tokens:
            left = [each for each in tokens if each.name != name]
            if len(left) == len(tokens):
                known = ", ".join(each.name for each in tokens) or "none"
                raise NotFound(f"There is no token of {name[:70]!r}.", f"There are: {known}.", code="TOKEN_NOT_FOUND")
            tokens[:] = left

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(self.path.with_name(self.path.name + ".lock"), mode=0o600):
            tokens = self.all()
            yield tokens
            new = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
                json.dump({"tokens": [asdict(each) for each in tokens]}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
