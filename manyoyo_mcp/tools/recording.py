"""A call on record: what was asked before it is done, what was decided and came of it afterwards."""

import time
from collections.abc import Mapping
from typing import Any

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel

from manyoyo_mcp.audit.journal import new_id, since
from manyoyo_mcp.audit.redacted import PLACES, arguments, scrubbed, secrets_of
from manyoyo_mcp.errors import (
    AuditUnavailable,
    BudgetExceeded,
    CapExceeded,
    ContextRefused,
    InvalidArgument,
    ManyoyoError,
    NotSupported,
    PolicyRefused,
    ScopeMissing,
)
from manyoyo_mcp.sessions.manager import Manager

_REFUSALS = (
    AuditUnavailable,
    BudgetExceeded,
    CapExceeded,
    ContextRefused,
    InvalidArgument,
    NotSupported,
    PolicyRefused,
    ScopeMissing,
)
"""What is decided against; all other errors are failures of what was allowed."""
_BEGINS = ("start", "restart")
_NO_NAME = "(not declared)"


class Recorded:
    """One call. What only looks is on record once, when it has ended; what may change something also before it is done, or is not done. What
    only ends something is done in any case: it is the way out of a full disk."""

    def __init__(self, tool: Tool, context: Context[Any, Any], manager: Manager, given: Mapping[str, Any]) -> None:
        self._manager = manager
        self._journal = manager.journal
        self._hints = tool.annotations
        self._begun = time.monotonic()
        self.call_id = new_id()
        self._record: dict[str, Any] = {
            "kind": "call",
            "call": self.call_id,
            "tool": tool.name,
            "client": _client(context),
        }
        self._given = given
        self._parsed: tuple[dict[str, Any], list[str]] | None = None
        self._asked = False

    @property
    def _arguments(self) -> dict[str, Any]:
        """As they go on record; before they are parsed their types alone."""
        return (
            self._parsed[0]
            if self._parsed
            else {name[:60]: type(value).__name__ for name, value in list(self._given.items())[:40]}
        )

    @property
    def _secrets(self) -> list[str]:
        return self._parsed[1] if self._parsed else secrets_of(self._given)

    async def asked(self, parsed: BaseModel) -> None:
        """Raises AuditUnavailable, where the call is not to be done then."""
        told = parsed.model_fields_set
        given = {name: getattr(parsed, name) for name in type(parsed).model_fields if name in told}
        if given.get(PLACES):
            given[PLACES] = self._declared(given[PLACES])
        self._parsed = arguments(given)
        if self._hints is not None and self._hints.read_only_hint:
            return
        record = self._kept({**self._record, "phase": "asked", "arguments": self._arguments})
        ends = self._hints is not None and self._hints.destructive_hint and given.get("action") not in _BEGINS
        await (self._journal.after if ends else self._journal.before)(record)
        self._asked = True

    def _declared(self, named: Any) -> Any:
        """Secrets as they were named; but a name that is none may be a value."""
        known = {name: name for name in self._manager.vault.names}
        if isinstance(named, Mapping):
            return {known.get(name, _NO_NAME): place for name, place in named.items()}
        return [known.get(name, _NO_NAME) for name in named]

    async def ended(self, outcome: Mapping[str, Any]) -> None:
        """It was done, and this is how it ended."""
        await self._end({"decision": "allowed", "result": self._clean(outcome)})
        if outcome.get("state") == "running" and (job_id := outcome.get("job_id")) is not None:
            jobs = self._manager.jobs
            await jobs.outlive(jobs.get(job_id), self.call_id)

    async def waits(self) -> None:
        """The person is asked before it is done; the client makes the call again with the answer."""
        await self._end({"decision": "pending"})

    async def failed(self, error: ManyoyoError) -> None:
        """It was refused, or could not be done."""
        cause = error.__cause__ if isinstance(error.__cause__, ManyoyoError) else error  # a job's error names its log
        refused = isinstance(error, _REFUSALS) or isinstance(cause, _REFUSALS)
        reason = scrubbed(error.message, self._secrets, strict=True)
        await self._end({"decision": "refused" if refused else "failed", "code": error.instance_code, "reason": reason})

    async def broken(self, error: BaseException) -> None:
        """It was cancelled, or the server failed in it."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            code = "CANCELLED" if cancelled else "INTERNAL"
            await self._end({"decision": "failed", "code": code, "reason": type(error).__name__})

    async def _end(self, fields: Mapping[str, Any]) -> None:
        told = {} if self._asked else {"arguments": self._arguments}
        record = {**self._record, "phase": "ended", **told, **fields, "seconds": since(self._begun)}
        await self._journal.after(self._kept(record))

    def _kept(self, record: dict[str, Any]) -> dict[str, Any]:
        """Without the secrets that were given out in this session, should a caller have come to know one."""
        kept: dict[str, Any] = self._manager.vault.redactor.anything(record)
        return kept

    def _clean(self, outcome: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: scrubbed(str(value), self._secrets) if not isinstance(value, bool | int | float | list) else value
            for name, value in outcome.items()
            if value is not None
        }


def _client(context: Context[Any, Any]) -> str | None:
    """What the client calls itself, where it says that: not who it is."""
    params = context.request_context.session.client_params
    return f"{params.client_info.name} {params.client_info.version}"[:80] if params is not None else None
