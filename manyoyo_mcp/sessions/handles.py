"""Which sandbox is meant: those of one session by id and name, and why others are no more."""

import time

from manyoyo_mcp.errors import InvalidArgument, NotFound, SandboxAmbiguous
from manyoyo_mcp.sessions.sandbox import Sandbox


class Handles:
    """`explicit`: the id is always to be given, for several clients may have this session."""

    def __init__(self, *, explicit: bool) -> None:
        self.explicit = explicit
        self._live: dict[str, Sandbox] = {}
        self._ended: dict[str, str] = {}  # ids and names of those that ended by themselves, with the reason

    def __contains__(self, sandbox_id: str) -> bool:
        return sandbox_id in self._live

    def all(self) -> list[Sandbox]:
        return list(self._live.values())

    def add(self, sandbox: Sandbox) -> None:
        self._live[sandbox.sandbox_id] = sandbox

    def drop(self, sandbox: Sandbox) -> None:
        self._live.pop(sandbox.sandbox_id, None)

    def end(self, sandbox: Sandbox, why: str) -> None:
        """It ended by itself: who asks for it is told why."""
        self.drop(sandbox)
        self._ended[sandbox.sandbox_id] = why
        if sandbox.name is not None:
            self._ended[sandbox.name] = why + "; start_sandbox with its name finds it again"

    def get(self, sandbox_id: str | None) -> Sandbox:
        """The sandbox that is meant, which is in use by that: the one named, else the only one.

        Raises NotFound (SANDBOX_NOT_FOUND), SandboxAmbiguous or InvalidArgument (SANDBOX_ID_REQUIRED), each listing what there is.
        """
        ids = ", ".join(self._live) or "none"
        if sandbox_id is not None:
            sandbox_id = next((each.sandbox_id for each in self.all() if each.name == sandbox_id), sandbox_id)
            if sandbox_id not in self._live:
                raise NotFound(
                    f"There is no sandbox {sandbox_id[:60]!r}{self._why(sandbox_id)}.",
                    f"This session's sandboxes: {ids}. start_sandbox starts one.",
                    code="SANDBOX_NOT_FOUND",
                )
            return used(self._live[sandbox_id])
        if self.explicit:
            raise InvalidArgument(
                "sandbox_id is missing: over HTTP it is always to be given.",
                f"Yours: {ids}. start_sandbox starts one and returns its id.",
                code="SANDBOX_ID_REQUIRED",
            )
        if not self._live:
            last = next(reversed(self._ended), "")
            why = f" The last, {last}, is no more{self._why(last)}." if last else ""
            raise NotFound(f"This session has no sandbox.{why}", "start_sandbox starts one.", code="SANDBOX_NOT_FOUND")
        if len(self._live) > 1:
            raise SandboxAmbiguous(
                f"This session has {len(self._live)} sandboxes.", f"Say which with sandbox_id: {ids}."
            )
        return used(next(iter(self._live.values())))

    def _why(self, sandbox_id: str) -> str:
        return f": {self._ended[sandbox_id]}" if sandbox_id in self._ended else ""


def used(sandbox: Sandbox) -> Sandbox:
    """It is not idle."""
    sandbox.used = time.monotonic()
    return sandbox
