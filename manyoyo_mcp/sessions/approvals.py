"""What reaches outside, and who decides on it: a setting, the person, or what the person has said before."""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from manyoyo_mcp.audit.chain import now
from manyoyo_mcp.config import ApprovalKind, Settings
from manyoyo_mcp.errors import InvalidArgument, NotFound, PolicyRefused
from manyoyo_mcp.policy.egress import Policy, beyond

_log = logging.getLogger(__name__)


EACH_SESSION = frozenset({"sock"})
"""Kinds of which no yes outlives its session."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Something that needs approval. `subject` says for programs what it is, `words` for the person; `refusal` is what is said where nobody
    can be asked."""

    kind: ApprovalKind
    subject: str
    words: str
    refusal: PolicyRefused


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person has said is always allowed, to whoever works in a project."""

    kind: str
    subject: str
    project: str
    at: str = field(default_factory=now)
    id: str = field(default_factory=lambda: secrets.token_hex(4))

    def covers(self, wish: Wish, project: str) -> bool:
        """The same, or less of it."""
        if (self.kind, self.project) != (wish.kind, project):
            return False
        if self.kind != "network" or self.subject == wish.subject:
            return self.subject == wish.subject
        try:
            return not beyond(Policy.of_label(self.subject), Policy.of_label(wish.subject))
        except InvalidArgument:  # no version wrote that
            return False


class Approvals:
    """The file in which a person's lasting approvals stand, for the command line to show and forget."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.state_dir / "approvals.json"
        self._roots = settings.roots
        self.given: set[str] = set()
        """Kinds that the person allowed for this session, of those that are asked for in each (`EACH_SESSION`)."""

    @property
    def project(self) -> str:
        """What is always allowed is so for whoever works in these directories."""
        return os.pathsep.join(map(str, self._roots or [Path.cwd().resolve()]))

    def all(self) -> list[Approval]:
        """None of them where the file can't be read: then the person is asked."""
        try:
            return [
                Approval(**{name: str(each[name]) for name in _FIELDS}) for each in json.loads(self.path.read_text())
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warning("%s can't be read: %s", self.path, error)
            return []

    def remember(self, wish: Wish) -> Approval:
        approval = Approval(wish.kind, wish.subject, self.project)
        with self._locked():
            self._write([*self.all(), approval])
        return approval

    def covering(self, wish: Wish) -> Approval | None:
        return next((each for each in self.all() if each.covers(wish, self.project)), None)

    def forget(self, approval_id: str | None) -> list[Approval]:
        """Forget one, or all; what was forgotten. Raises NotFound."""
        with self._locked():
            had = self.all()
            gone = [each for each in had if approval_id in (None, each.id)]
            if not gone and approval_id is not None:
                raise NotFound(
                    f"There is no approval {approval_id[:40]!r}.", "`manyoyo-mcp approvals list` shows what there is."
                )
            self._write([each for each in had if each not in gone])
        return gone

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock: Any = FileLock(self.path.with_suffix(".lock"), timeout=10)
        with lock:
            yield

    def _write(self, approvals: list[Approval]) -> None:
        new = self.path.with_suffix(f".{os.getpid()}")
        new.touch(mode=0o600)
        new.write_text(json.dumps([asdict(each) for each in approvals], indent=2) + "\n")
        new.replace(self.path)


_FIELDS = ("kind", "subject", "project", "at", "id")
