"""The conversations of AG-UI's two folds as the parts of one UI message: the answer to the last thing a user said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from consumer.fold.projection.openai import add_call
from consumer.fold.projection.parts import Input, UIParts, fields_of, input_at, objects, text_at
from consumer.fold.tanstack_snapshot import parsed_or_text, result_error
from consumer.plain import JSON, JSONObject

_Message = dict[str, Any]


def _answer(conversation: JSONObject) -> list[_Message]:
    """The messages behind the last one of a user."""
    messages = objects(conversation.get("messages"))
    behind = next((at for at in range(len(messages), 0, -1) if messages[at - 1].get("role") == "user"), 0)
    return messages[behind:]


# -- as the official client has it -----------------------------------------------------------------------------------


def client_parts(conversation: JSONObject, ended: bool) -> list[JSON]:  # noqa: FBT001  by the table of projections
    """The conversation does not say whether its run has ended."""
    parts = UIParts(ended=ended)
    is_answered = False
    for message in _answer(conversation):
        role = text_at(message, "role")
        if is_answered and role in ("assistant", "reasoning"):
            parts.step()
        is_answered = role == "tool" or (is_answered and role not in ("assistant", "reasoning"))
        if role in _ROLES:
            _ROLES[role](parts, message)
    for interrupt in objects(conversation.get("pendingInterrupts")):
        parts.approval(interrupt.get("toolCallId"), {"id": text_at(interrupt, "id")})
    return parts.told()


def _assistant(parts: UIParts, message: _Message) -> None:
    parts.text(message.get("content"))
    for call in objects(message.get("toolCalls")):
        add_call(parts, call)


def _reasoning(parts: UIParts, message: _Message) -> None:
    parts.reasoning(message.get("content"), _named(message, "id"))


def _tool(parts: UIParts, message: _Message) -> None:
    if text_at(message, "error"):
        parts.failure(message.get("toolCallId"), message["error"])
    else:
        parts.output(message.get("toolCallId"), parsed_or_text(message.get("content")))


def _activity(parts: UIParts, message: _Message) -> None:
    parts.data(message.get("activityType"), message.get("content"), _named(message, "id"))


_ROLES: Final[Mapping[str, Callable[[UIParts, _Message], None]]] = {
    "assistant": _assistant,
    "reasoning": _reasoning,
    "tool": _tool,
    "activity": _activity,
}


# -- as TanStack has it ------------------------------------------------------------------------------------------------


def tanstack_parts(conversation: JSONObject, ended: bool) -> list[JSON]:  # noqa: FBT001  by the table of projections
    """The conversation says of tool calls alone how far they are."""
    parts = UIParts(ended=ended)
    told = [message for message in _answer(conversation) if message.get("role") != "system"]
    add_tanstack_parts(parts, [part for message in told for part in objects(message.get("parts"))])
    return parts.told()


def add_tanstack_parts(parts: UIParts, told: list[_Message]) -> None:
    """Parts of TanStack messages that follow each other."""
    is_answered = False
    for part in told:
        kind = text_at(part, "type")
        if is_answered and kind in _STEPS:
            parts.step()
        is_answered = kind == "tool-result" or (is_answered and kind not in _STEPS)
        if kind in _PARTS:
            _PARTS[kind](parts, part)
        else:
            parts.data(kind, {field: value for field, value in part.items() if field != "type"})


def _text(parts: UIParts, part: _Message) -> None:
    parts.text(part.get("content"))


def _thinking(parts: UIParts, part: _Message) -> None:
    parts.reasoning(part.get("content"), _named(part, "stepId"))


def _call(parts: UIParts, part: _Message) -> None:
    state = text_at(part, "state")
    has_input = "input" in part
    given = Input.of_value(input_at(part, "input")) if has_input else Input.of_json(part.get("arguments"))
    call_id = parts.call(part.get("id"), part.get("name"), given, whole=has_input or state not in _ARRIVING)
    approval = fields_of(part.get("approval"))
    if state == "error":
        parts.failure(call_id, result_error(part.get("output")))
    elif "output" in part:
        parts.output(call_id, part["output"])
    elif state in ("approval-requested", "approval-responded"):
        answer: JSONObject = {"approved": approval.get("approved") is True} if state.endswith("responded") else {}
        parts.approval(call_id, {"id": text_at(approval, "id"), **answer})


def _result(parts: UIParts, part: _Message) -> None:
    call_id = part.get("toolCallId")
    if parts.has_result(call_id):
        return
    if part.get("state") == "error":
        parts.failure(call_id, text_at(part, "error"))
    else:
        parts.output(call_id, parsed_or_text(part.get("content")))


def _media(parts: UIParts, part: _Message) -> None:
    parts.media(part.get("source"), part["type"])


def _named(holder: _Message, field: str) -> JSONObject:
    return {"id": holder[field]} if text_at(holder, field) else {}


_ARRIVING: Final = frozenset({"awaiting-input", "input-streaming"})
_STEPS: Final = frozenset({"text", "thinking", "tool-call", "structured-output"})
_PARTS: Final[Mapping[str, Callable[[UIParts, _Message], None]]] = {
    "text": _text,
    "thinking": _thinking,
    "tool-call": _call,
    "tool-result": _result,
    "image": _media,
    "audio": _media,
    "video": _media,
    "document": _media,
}
