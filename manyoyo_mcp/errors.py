"""Every error a caller can meet, each with a stable code, what happened, and what to do next.

    ManyoyoError
    ├── RequestError            the request can't be done as asked; asking differently helps (itself: CHECKPOINT_TORN,
    │   │                       IN_USE, TOO_MANY_JOBS)
    │   ├── InvalidArgument     INVALID_ARGUMENT
    │   ├── CapExceeded         CAP_EXCEEDED
    │   ├── BudgetExceeded      BUDGET_EXCEEDED     all sandboxes together have what they may have
    │   ├── NotSupported        NOT_SUPPORTED, DISK_CAP_UNAVAILABLE, POOL_UNAVAILABLE, ISOLATION_UNAVAILABLE, BUILDER_UNAVAILABLE;
    │   │                       where the engine is the host's BUILD_UNAVAILABLE, ENDPOINT_UNAVAILABLE, NETWORK_POLICY_UNAVAILABLE,
    │   │                       NOTHING_KEPT, SECRETS_UNAVAILABLE
    │   ├── PolicyRefused       POLICY_REFUSED
    │   │   └── NotApproved     NOT_APPROVED        the person was asked and did not allow it
    │   ├── ScopeMissing        SCOPE_MISSING       the caller's token does not have the scope of this tool
    │   ├── RateLimited         RATE_LIMITED        too many calls of this principal
    │   ├── ContextRefused      CONTEXT_REFUSED     build context outside the roots, too large, or escaping by a link
    │   ├── NotFound            SANDBOX_NOT_FOUND, CONTAINER_NOT_FOUND, IMAGE_NOT_FOUND, JOB_NOT_FOUND, …
    │   ├── SandboxAmbiguous    SANDBOX_AMBIGUOUS
    │   ├── NameConflict        NAME_CONFLICT
    │   └── NotRunning          CONTAINER_NOT_RUNNING
    ├── AuditUnavailable        AUDIT_UNAVAILABLE   the audit log can't be written, so nothing is done
    └── SandboxError            the sandbox, its engine or its host failed; the command is not to blame
        ├── EngineUnreachable   ENGINE_UNREACHABLE, SANDBOX_ENDING
        ├── EngineFailed        ENGINE_FAILED
        ├── HostUnavailable     HOST_UNAVAILABLE
        ├── ImageUnavailable    OUTER_IMAGE_UNAVAILABLE, BASE_IMAGE_UNAVAILABLE
        ├── CapsUnenforced      CAPS_UNENFORCED
        ├── EgressUnenforced    EGRESS_UNENFORCED   the rules of the network policy can't be made
        └── DiskFull            DISK_FULL           the sandbox's disk has no room for what was asked

How a command that *did* run ended is no exception but a `Reason` in its result (see `Reason`).
"""

from enum import StrEnum
from typing import Any, ClassVar


class Reason(StrEnum):
    """Why a run, exec or build ended as it did; told apart by evidence, never by guessing from the exit code alone."""

    OK = "OK"
    EXIT_NONZERO = "EXIT_NONZERO"
    OOM_KILLED = "OOM_KILLED"
    SANDBOX_OOM = "SANDBOX_OOM"
    PIDS_LIMIT = "PIDS_LIMIT"
    DISK_FULL = "DISK_FULL"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"
    BUILD_FAILED = "BUILD_FAILED"


class ManyoyoError(Exception):
    """The root. `message` says what happened, `hint` what to do next; `details` is data for programs."""

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, hint: str = "", *, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details
        self.instance_code = code or self.code

    def as_dict(self) -> dict[str, Any]:
        """The error as data: `code`, `message`, `hint`, and `details` where there are any."""
        data: dict[str, Any] = {"code": self.instance_code, "message": self.message, "hint": self.hint}
        if self.details:
            data["details"] = self.details
        return data

    def __str__(self) -> str:
        return f"{self.instance_code}: {self.message}" + (f" {self.hint}" if self.hint else "")


class RequestError(ManyoyoError):
    """The request can't be done as asked."""


class InvalidArgument(RequestError):
    code = "INVALID_ARGUMENT"


class CapExceeded(RequestError):
    code = "CAP_EXCEEDED"


class BudgetExceeded(RequestError):
    code = "BUDGET_EXCEEDED"


class NotSupported(RequestError):
    code = "NOT_SUPPORTED"


class PolicyRefused(RequestError):
    code = "POLICY_REFUSED"


class NotApproved(PolicyRefused):
    code = "NOT_APPROVED"


class ScopeMissing(RequestError):
    code = "SCOPE_MISSING"


class RateLimited(RequestError):
    code = "RATE_LIMITED"


class ContextRefused(RequestError):
    code = "CONTEXT_REFUSED"


class NotFound(RequestError):
    code = "NOT_FOUND"


class SandboxAmbiguous(RequestError):
    code = "SANDBOX_AMBIGUOUS"


class NameConflict(RequestError):
    code = "NAME_CONFLICT"


class NotRunning(RequestError):
    code = "CONTAINER_NOT_RUNNING"


class AuditUnavailable(ManyoyoError):
    """What is asked for would change something, and can't be put on record."""

    code = "AUDIT_UNAVAILABLE"


class SandboxError(ManyoyoError):
    """The sandbox, its engine or its host failed."""


class EngineUnreachable(SandboxError):
    code = "ENGINE_UNREACHABLE"


class EngineFailed(SandboxError):
    code = "ENGINE_FAILED"


class HostUnavailable(SandboxError):
    code = "HOST_UNAVAILABLE"


class ImageUnavailable(SandboxError):
    code = "OUTER_IMAGE_UNAVAILABLE"


class CapsUnenforced(SandboxError):
    code = "CAPS_UNENFORCED"


class EgressUnenforced(SandboxError):
    code = "EGRESS_UNENFORCED"


class DiskFull(SandboxError):
    code = "DISK_FULL"
