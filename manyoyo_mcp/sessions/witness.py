"""What a session puts on record beside its calls: jobs that went on after the call that began them, and what goes through its gates."""

import threading
import time
from collections.abc import Callable

from manyoyo_mcp.audit.files import Files
from manyoyo_mcp.audit.journal import Journal, directory, new_id, since
from manyoyo_mcp.audit.redacted import scrubbed
from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import Built, Ended
from manyoyo_mcp.policy.base import Query
from manyoyo_mcp.policy.witness import Witness
from manyoyo_mcp.sessions.identity import Identity
from manyoyo_mcp.sessions.jobs import Job

_AT_ONCE, _A_SECOND = 100.0, 5.0
"""Refusals of one gate that are each on record: who repeats one in a loop is not to drive older records out of the log."""
_SHOWN = ("name", "fromImage", "reference", "repo", "tag", "t", "signal")
"""Parameters that say what is meant, and never hold a secret."""


async def job_over(journal: Journal, job: Job) -> None:
    """A job's end, of which its call's own record could not tell."""
    ended = job.result if isinstance(job.result, Ended | Built) else None
    outcome = {
        "reason": ended.reason.value if ended else None,
        "exit_code": ended.exit_code if ended else None,
        "code": job.error.instance_code if job.error else None,
    }
    await journal.after(
        {
            "kind": "job", "call": job.outlives, "job_id": job.job_id, "sandbox_id": job.sandbox_id, "seconds": job.seconds,
            "result": {"state": job.state} | {key: value for key, value in outcome.items() if value is not None},
        }
    )  # fmt: skip


class GateWitness(Witness):
    """Of one gate. `road`: who comes this way."""

    def __init__(self, journal: Journal, sandbox_id: str, road: str) -> None:
        self._journal = journal
        self._where = {"kind": "gate", "sandbox_id": sandbox_id, "road": road}
        self._left, self._counted = _AT_ONCE, time.monotonic()
        self._more = 0
        self._lock = threading.Lock()

    def asked(self, method: str, path: str, query: Query, narrowed: bool) -> Callable[[int | None], None]:
        request = {**self._where, "call": new_id(), "method": method[:10], "path": scrubbed(path)}
        shown = {name: scrubbed(str(query[name]), longest=100) for name in _SHOWN if name in query}
        self._journal.before_now(
            {
                **request,
                "phase": "asked",
                "decision": "narrowed" if narrowed else "allowed",
                **({"query": shown} if shown else {}),
            }
        )
        begun = time.monotonic()

        def ended(status: int | None) -> None:
            self._journal.after_now({**request, "phase": "ended", "status": status, "seconds": since(begun)})

        return ended

    def refused(self, method: str, path: str, code: str, reason: str) -> None:
        with self._lock:
            now = time.monotonic()
            self._left = min(_AT_ONCE, self._left + (now - self._counted) * _A_SECOND)
            self._counted = now
            if self._left < 1:
                self._more += 1
                return
            self._left -= 1
            more, self._more = self._more, 0
        self._journal.after_now(
            {
                **self._where, "phase": "ended", "method": method[:10], "path": scrubbed(path), "decision": "refused", "code": code,
                "reason": scrubbed(reason, strict=True), **({"more": more} if more else {}),
            }
        )  # fmt: skip

    def close(self) -> None:
        """The gate ends: what was only counted is told."""
        if self._more:
            self._journal.after_now({**self._where, "phase": "ended", "decision": "refused", "more": self._more})
            self._more = 0


def port_on_record(journal: Journal, sandbox_id: str, event: str, port: int, whither: str) -> None:
    """A port of this machine that leads into a sandbox is opened, or closed."""
    journal.after_now(
        {"kind": "port", "event": event, "sandbox_id": sandbox_id, "port": port, "to": scrubbed(whither, longest=100)}
    )


def open_journal(settings: Settings, identity: Identity) -> Journal:
    """A session's, with what the configuration allows at most."""
    files = Files(directory(settings.state_dir), settings.audit_max_bytes, settings.audit_files)
    facts = {
        "isolation": settings.isolation, "network_policy": settings.network_policy, "network_allow": settings.network_allow[:40],
        "roots": [str(each) for each in settings.roots[:40]],
    }  # fmt: skip
    return Journal(files, settings.audit, identity.owner, identity.session, facts)
