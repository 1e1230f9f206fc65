"""Growth: a message that is shown in the projection's model, told as chunks of the AI SDK's UI message stream.

`ui_message` says what a message has come to; a reader of a stream is told what became of it since. Mostly parts stay,
in their order, and texts only get longer: then what is new in each part is all that there is to tell. Where a format's
message changes otherwise (tool calls out of order, a snapshot that replaces), its current step is told anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from consumer.fold.projection.parts import fields_of, given, text_at
from consumer.plain import JSON, JSONObject

_SPOKEN: Final = frozenset({"text", "reasoning"})
_CALLED: Final = frozenset({"input-available", "approval-requested", "approval-responded", "output-available"})
"""States of a tool call whose input is known to be whole."""
_GOING_ON: Final = frozenset({"streaming", "input-streaming"})


class Growth:
    """What one stream has told of a message so far."""

    __slots__ = ("_told", "behind")

    def __init__(self) -> None:
        self.behind = False
        """Whether a step that is over has changed. Nothing is told until it is again as it was told."""
        self._told: list[dict[str, Any]] = []

    def chunks(self, parts: Sequence[JSON], *, ended: bool = False) -> list[JSONObject]:
        """What brings a reader from the parts of the last call to these; at first, from a message without any.

        All chunks together, folded by the AI SDK's rules, give `parts`, but for what its stream has no words for: the
        name of a file, and a change in a step that is over; the reader is then left `behind`. `ended` as for
        `ui_message`: it ends the texts of formats that do not tell the end of one.
        """
        shown = [_steady(fields_of(part), ended=ended) for part in parts]
        chunks: list[JSONObject] = []
        if not self._grows_to(shown):
            step = self._step()
            self.behind = self._told[:step] != shown[:step]
            if self.behind:
                return []
            chunks.append({"type": "reset-step"})
            del self._told[step:]
        for index, part in enumerate(shown):
            known = self._told[index] if index < len(self._told) else {}
            if known != part:
                chunks += _told_of(index, known, part)
        self._told = shown
        return chunks

    def _grows_to(self, parts: list[dict[str, Any]]) -> bool:
        step = self._step()
        return len(parts) >= len(self._told) and all(
            known == part or (_grows(known, part) and (index >= step or known.get("state") != "input-streaming"))
            for index, (known, part) in enumerate(zip(self._told, parts, strict=False))
        )

    def _step(self) -> int:
        """Where the current step begins."""
        starts = (index for index, part in enumerate(self._told) if part["type"] == "step-start")
        return max(starts, default=-1) + 1


def _steady(part: dict[str, Any], *, ended: bool) -> dict[str, Any]:
    """The part with a state, and without half a character that ends a text: the other half would take its place."""
    if part.get("type") in _SPOKEN and "state" not in part:
        part = {**part, "state": "done" if ended else "streaming"}
    for name in ("text", "rawInput"):
        text = text_at(part, name)
        if part.get("state") in _GOING_ON and text and "\ud800" <= text[-1] <= "\udbff":
            return {**part, name: text[:-1]}
    return part


def _grows(known: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether one part can become the other by what is added to it."""
    if known["type"] != part["type"]:
        return False
    if part["type"] in _SPOKEN:
        return known["state"] == "streaming" and text_at(part, "text").startswith(text_at(known, "text"))
    if part["type"] == "dynamic-tool":
        return _call_grows(known, part)
    return str(part["type"]).startswith("data-")


def _call_grows(known: dict[str, Any], part: dict[str, Any]) -> bool:
    if (known["toolCallId"], known["toolName"]) != (part["toolCallId"], part["toolName"]):
        return False
    before, state = known["state"], part["state"]
    if before == "input-streaming":
        return state != before or text_at(part, "rawInput").startswith(text_at(known, "rawInput"))
    return before in _CALLED and state not in (before, "input-streaming") and known.get("input") == part.get("input")


def _told_of(index: int, known: dict[str, Any], part: dict[str, Any]) -> list[JSONObject]:
    """What to tell of one part; `known` is empty for a new one."""
    kind = part["type"]
    if kind in _SPOKEN:
        return _spoken(kind, text_at(part, "id") or f"part-{index}", known, part)
    if kind == "dynamic-tool":
        return _called(known, part)
    if kind.startswith("data-"):
        return [{"type": kind, "id": part.get("id") or f"part-{index}", "data": part.get("data")}]
    if known:
        return []
    return [{"type": "start-step"}] if kind == "step-start" else [{**part}]


def _spoken(kind: str, part_id: str, known: dict[str, Any], part: dict[str, Any]) -> list[JSONObject]:
    chunks: list[JSONObject] = []
    said, more = text_at(known, "text"), given(part, "providerMetadata")
    if not known:
        chunks.append({"type": f"{kind}-start", "id": part_id, **more})
    if len(part["text"]) > len(said):
        chunks.append({"type": f"{kind}-delta", "id": part_id, "delta": part["text"][len(said) :], **more})
    if part["state"] == "done":
        chunks.append({"type": f"{kind}-end", "id": part_id, **more})
    return chunks


def _called(known: dict[str, Any], part: dict[str, Any]) -> list[JSONObject]:
    call: JSONObject = {"toolCallId": part["toolCallId"], "dynamic": True, **given(part, "providerExecuted")}
    named: JSONObject = {**call, "toolName": part["toolName"]}
    state, before = part["state"], known.get("state")
    if state == "input-streaming":
        return _typed(call, named, known, part)
    chunks: list[JSONObject] = []
    if before not in _CALLED and state in _CALLED:
        chunks.append({"type": "tool-input-available", **named, "input": part.get("input")})
    if state == before:
        return chunks
    if state.startswith("approval"):
        chunks += _approval(call, fields_of(part.get("approval")), requested=before != "approval-requested")
    elif state == "output-available":
        chunks.append({"type": "tool-output-available", **call, "output": part["output"]})
    elif state == "output-error" and before in _CALLED:
        chunks.append({"type": "tool-output-error", **call, "errorText": part["errorText"]})
    elif state == "output-error":
        chunks.append({"type": "tool-input-error", **named, "input": part.get("input"), "errorText": part["errorText"]})
    return chunks


def _typed(call: JSONObject, named: JSONObject, known: dict[str, Any], part: dict[str, Any]) -> list[JSONObject]:
    """An input that is still being written."""
    begun: list[JSONObject] = [{"type": "tool-input-start", **named, **given(part, "inputEncoding")}]
    said = text_at(known, "rawInput")
    delta = text_at(part, "rawInput")[len(said) :]
    typed: list[JSONObject] = [{"type": "tool-input-delta", "toolCallId": call["toolCallId"], "inputTextDelta": delta}]
    return ([] if known else begun) + (typed if delta else [])


def _approval(call: JSONObject, approval: dict[str, Any], *, requested: bool) -> list[JSONObject]:
    chunks: list[JSONObject] = []
    if requested:
        asked = {"type": "tool-approval-request", "toolCallId": call["toolCallId"], "approvalId": approval.get("id")}
        chunks.append(asked)
    if "approved" in approval:
        told = {"type": "tool-approval-response", "approvalId": approval.get("id"), "approved": approval["approved"]}
        chunks.append(told)
    return chunks
