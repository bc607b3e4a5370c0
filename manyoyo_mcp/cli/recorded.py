"""What people do on the command line that changes something, in the same audit log as what clients do (docs/audit.md)."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manyoyo_mcp.audit.journal import directory, new_id, since
from manyoyo_mcp.audit.redacted import scrubbed
from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import InvalidArgument, ManyoyoError, NameConflict
from manyoyo_mcp.sessions.identity import Identity
from manyoyo_mcp.sessions.witness import open_journal

_NOBODY = 0xFFFFFFFF


@contextlib.contextmanager
def on_record(settings: Settings, command: str, *, ends: bool = True, **arguments: Any) -> Iterator[dict[str, Any]]:
    """One command, with what it is asked for; what comes of it is put into what this yields. One that only `ends` something is done also where
    it can't be put on record: it may be the way out of a full disk. Raises AuditUnavailable where another can't."""
    journal = open_journal(settings, Identity())
    record = {"kind": "command", "command": command, "call": new_id(), "client": "cli", **_login()}
    begun = time.monotonic()
    note = journal.after_now if ends else journal.before_now
    note({**record, "phase": "asked", "arguments": _kept(arguments)})
    there = directory(settings.state_dir).exists
    result: dict[str, Any] = {}
    ended: dict[str, Any] = {"decision": "allowed"}
    try:
        yield result
    except ManyoyoError as error:
        refused = isinstance(error, InvalidArgument | NameConflict)
        reason = scrubbed(error.message, strict=True)
        ended = {"decision": "refused" if refused else "failed", "code": error.instance_code, "reason": reason}
        raise
    except BaseException as error:
        ended = {"decision": "failed", "code": "INTERNAL", "reason": type(error).__name__}
        raise
    finally:
        if there():  # else it was removed by this very command, and is not to come back
            kept = {"result": _kept(result)} if result else {}
            journal.after_now({**record, "phase": "ended", **ended, **kept, "seconds": since(begun)})
        journal.close(told=there())


def _kept(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [scrubbed(str(each)) for each in value[:100]] if isinstance(value, list) else value
        for name, value in values.items()
    }


def _login() -> dict[str, int]:
    """As whom somebody logged in to this machine, whoever they became since (Linux, where that is kept)."""
    with contextlib.suppress(OSError, ValueError):
        uid = int(Path("/proc/self/loginuid").read_text())
        if uid != _NOBODY:
            return {"login_uid": uid}
    return {}
