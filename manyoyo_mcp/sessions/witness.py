"""What is put on record beside calls: jobs that went on after the call that began them, what goes through gates, what is refused over HTTP
before it is a call."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from manyoyo_mcp.audit.files import Files
from manyoyo_mcp.audit.journal import Journal, directory, new_id, since
from manyoyo_mcp.audit.redacted import scrubbed
from manyoyo_mcp.config import Settings
from manyoyo_mcp.engines.base import Built, Ended
from manyoyo_mcp.policy.base import Query
from manyoyo_mcp.policy.witness import Witness
from manyoyo_mcp.sessions.identity import Identity, owner
from manyoyo_mcp.sessions.jobs import Job

_SHOWN = ("name", "fromImage", "reference", "repo", "tag", "t", "signal")
"""Parameters that say what is meant, and never hold a secret."""
_KINDS = 1000
"""Kinds of refusals over HTTP, each a principal's, that are counted at a time."""


class Sparing:
    """Refusals of one kind, each on record as long as they are few: who repeats one in a loop is not to drive older records out of the log.
    The rest is counted."""

    def __init__(self, at_once: float, a_second: float) -> None:
        self._most, self._rate = at_once, a_second
        self._left, self._counted = at_once, time.monotonic()
        self._more = 0
        self._lock = threading.Lock()

    def take(self) -> dict[str, int] | None:
        """None where this one is only counted; else what its record says of those that were before it."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._most, self._left + (now - self._counted) * self._rate)
            self._counted = now
            if self._left < 1:
                self._more += 1
                return None
            self._left -= 1
            return self._counted_only()

    def rest(self) -> dict[str, int]:
        """What was only counted, at the end."""
        with self._lock:
            return self._counted_only()

    def _counted_only(self) -> dict[str, int]:
        more, self._more = self._more, 0
        return {"more": more} if more else {}


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
        self._refusals = Sparing(100, 5)

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
        more = self._refusals.take()
        if more is None:
            return
        self._journal.after_now(
            {
                **self._where, "phase": "ended", "method": method[:10], "path": scrubbed(path), "decision": "refused", "code": code,
                "reason": scrubbed(reason, strict=True), **more,
            }
        )  # fmt: skip

    def close(self) -> None:
        """The gate ends: what was only counted is told."""
        if more := self._refusals.rest():
            self._journal.after_now({**self._where, "phase": "ended", "decision": "refused", **more})


class HttpWitness:
    """Of what a server over HTTP decides before a call comes to its principal's session."""

    def __init__(self, settings: Settings) -> None:
        self._journal = open_journal(settings, Identity())
        self._refusals: OrderedDict[tuple[str, str], Sparing] = OrderedDict()

    async def came(self, principal: str, issuer: str, subject: str) -> None:
        """Somebody's first call, of whom an authorization server says who it is: from here on records have the principal's name alone.
        Raises AuditUnavailable."""
        if issuer:
            who = {"issuer": scrubbed(issuer), "subject": scrubbed(subject)}
            await self._journal.before({"kind": "principal", "event": "came", "owner": owner(principal), **who})

    async def refused(self, principal: str, code: str, reason: str) -> None:
        """A request of a principal's."""
        await self._note(principal, code, {"owner": owner(principal), "reason": reason})

    async def unknown(self, address: str) -> None:
        """A request with a token that is worth nothing. Those of all addresses are counted as one."""
        await self._note("", "UNAUTHENTICATED", {"address": address[:60], "reason": "a token that is not good here"})

    async def _note(self, principal: str, code: str, fields: dict[str, str]) -> None:
        kind = (principal, code)
        sparing = self._refusals.pop(kind, None) or Sparing(20, 0.2)
        self._refusals[kind] = sparing
        if len(self._refusals) > _KINDS:
            self._refusals.popitem(last=False)
        more = sparing.take()
        if more is not None:
            await self._journal.after({"kind": "http", "decision": "refused", "code": code, **fields, **more})

    def close(self) -> None:
        """The server ends."""
        for (principal, code), sparing in self._refusals.items():
            if more := sparing.rest():
                self._journal.after_now(
                    {"kind": "http", "decision": "refused", "code": code, "owner": owner(principal), **more}
                )
        self._journal.close()


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
