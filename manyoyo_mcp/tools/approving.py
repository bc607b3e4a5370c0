"""Asking the person, by MCP's elicitation, about what reaches outside. Where the protocol is 2026-07-28 or later the question is the call's
answer, and the client makes the call again with what the person said; before that it is a request of its own within the call."""

import hashlib
import json
from typing import Any

import anyio
from mcp.server.elicitation import render_elicitation_schema
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel, Field

from manyoyo_mcp.audit.redacted import scrubbed
from manyoyo_mcp.errors import NotApproved, PolicyRefused
from manyoyo_mcp.sessions.approvals import EACH_SESSION, Wish
from manyoyo_mcp.sessions.manager import Manager
from manyoyo_mcp.workers import in_thread

_KEY = "approval"
_BY_ANSWER = "2026-07-28"
"""The protocol from which on a question is an answer."""
_PATIENCE = 600.0
"""Seconds that the person has; the SDK's own limit in the later protocol."""


class Answer(BaseModel):
    """The form that the person fills in."""

    remember: bool = Field(
        False,
        title="Always allow this in this project",
        description="`manyoyo-mcp approvals list` shows what is always allowed, `approvals forget` takes it back.",
    )


class Once(BaseModel):
    """The same, for what is asked in each session."""


class Pending(Exception):
    """The call's answer is a question for now."""

    def __init__(self, question: InputRequiredResult) -> None:
        super().__init__("the person is being asked")
        self.question = question


async def approve(manager: Manager, context: Context[Any, Any], call_id: str, *wishes: Wish) -> None:
    """Returns where all of it is allowed. To be called before anything is done: the call may be made again.

    Raises PolicyRefused where it is denied or nobody can be asked, NotApproved where the person says no; Pending.
    """
    asked = []
    for wish in wishes:
        how = manager.settings.approval(wish.kind)
        if how == "deny" or (how == "ask" and manager.principal):  # who could be asked there is not the operator
            await _note(manager, call_id, wish, "refused", "setting")
            raise _hinted(
                wish.refusal,
                f"MANYOYO_APPROVE says {wish.kind}=deny."
                if how == "deny"
                else f"The operator of this server decides on it: MANYOYO_APPROVE={wish.kind}=allow.",
            )
        if how == "allow":
            await _note(manager, call_id, wish, "allowed", "setting")
        elif wish.kind in manager.approvals.given:
            await _note(manager, call_id, wish, "allowed", "said in this session")
        elif wish.kind not in EACH_SESSION and (known := await in_thread(manager.approvals.covering, wish)) is not None:
            await _note(manager, call_id, wish, "allowed", f"remembered as {known.id}")
        else:
            asked.append(wish)
    if not asked:
        return
    if not _can_ask(context):
        for wish in asked:
            await _note(manager, call_id, wish, "refused", "the client can't ask")
        kinds = ",".join(f"{each.kind}=allow" for each in asked)
        raise _hinted(
            asked[0].refusal,
            f"A client that can ask its user (MCP elicitation) would; this one can't. MANYOYO_APPROVE={kinds} allows it unasked.",
        )
    answer = await _ask(context, _question(asked))
    accepted = answer.action == "accept"
    for wish in asked:
        await _note(manager, call_id, wish, "allowed" if accepted else "refused", f"the person: {answer.action}")
    if not accepted:
        raise NotApproved(
            f"The user was asked, and did not allow it: {' '.join(each.words for each in asked)}",
            "Do without, or ask the user what they would rather have; don't repeat the call as it is.",
        )
    for wish in asked:
        if wish.kind in EACH_SESSION:
            manager.approvals.given.add(wish.kind)
        elif (answer.content or {}).get("remember") is True:
            await in_thread(manager.approvals.remember, wish)


def _question(wishes: list[Wish]) -> ElicitRequestFormParams:
    words = "\n".join(f"- {each.words}" for each in wishes)
    message = f"The agent asks for what reaches outside of its sandbox:\n{words}\nAllow it?"
    form = Once if all(each.kind in EACH_SESSION for each in wishes) else Answer
    return ElicitRequestFormParams(message=message, requested_schema=render_elicitation_schema(form))


async def _ask(context: Context[Any, Any], question: ElicitRequestFormParams) -> ElicitResult:
    """What the person said; silence is a cancellation. Raises Pending, NotApproved."""
    if context.protocol_version is not None and context.protocol_version >= _BY_ANSWER:
        digest = hashlib.sha256(json.dumps(question.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
        answer = (context.input_responses or {}).get(_KEY)
        if context.request_state == digest and isinstance(answer, ElicitResult):  # the state is sealed by the SDK
            return answer
        requests = {_KEY: ElicitRequest(params=question)}
        raise Pending(InputRequiredResult(input_requests=requests, request_state=digest))
    try:
        with anyio.move_on_after(_PATIENCE):
            answered: ElicitResult = await context.session.elicit_form(
                question.message, question.requested_schema, context.request_id
            )
            return answered
    except MCPError as error:
        raise NotApproved(
            f"The client could not ask its user: {str(error)[:200]}", "Ask the user in words what to do."
        ) from error
    return ElicitResult(action="cancel")


def _can_ask(context: Context[Any, Any]) -> bool:
    """Whether the client shows forms. One that says nothing of modes does."""
    capabilities = context.client_capabilities
    elicitation = capabilities.elicitation if capabilities is not None else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _hinted(refusal: PolicyRefused, more: str) -> PolicyRefused:
    return PolicyRefused(refusal.message, f"{refusal.hint} {more}".strip(), **refusal.details)


async def _note(manager: Manager, call_id: str, wish: Wish, decision: str, by: str) -> None:
    subject = scrubbed(wish.subject, longest=1000)
    record = {
        "kind": "approval",
        "call": call_id,
        "approval": wish.kind,
        "subject": subject,
        "decision": decision,
        "by": by,
    }
    await (manager.journal.before if decision == "allowed" else manager.journal.after)(record)
