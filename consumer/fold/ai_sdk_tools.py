"""Tool calls in an AI SDK message: their input as it streams, their approval, their output (FOLDS section 2.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Any, ClassVar, Final

import msgspec

from consumer.fold.ai_sdk_parts import Parts
from consumer.fold.draft import BadMessage, FatalChunk, string
from consumer.fold.growing import Growing
from consumer.fold.partial_json import AISDKParser
from consumer.plain import JSONObject

_DYNAMIC: Final = "dynamic-tool"
_STATIC_PREFIX: Final = "tool-"

_PER_STATE: Final = ("input", "output", "errorText", "rawInput", "preliminary", "inputEncoding")
"""What a part holds only as long as the chunk that set it was the last to update the part."""
_RESULT_STATES: Final = ("output-available", "output-error")
_STICKY: Final = ("title", "toolMetadata")

_START: Final = ("inputEncoding", "providerExecuted", "providerMetadata", "title", "toolMetadata")
_INPUT: Final = ("input", "providerExecuted", "providerMetadata", "title", "toolMetadata")
_INPUT_ERROR: Final = ("input", "errorText", "providerExecuted", "providerMetadata", "toolMetadata")
_OUTPUT: Final = ("output", "preliminary", "providerExecuted", "providerMetadata")
_OUTPUT_ERROR: Final = ("errorText", "providerExecuted", "providerMetadata")


class _Call:
    """A call whose input is arriving. It outlives its input: a late delta makes its part stream again."""

    __slots__ = ("dynamic", "given", "name", "parser", "raw", "shown")

    def __init__(self, name: str, *, dynamic: bool, given: JSONObject, raw: str = "", shown: int | None = None) -> None:
        self.name = name
        self.dynamic = dynamic
        self.given = given
        """`inputEncoding`, `title` and `toolMetadata` of its start, where given; each delta carries them again."""
        self.raw = Growing(-1, raw)
        self.parser = AISDKParser()
        self.shown = shown
        """Index of the part that shows this input and was last updated by a delta of it: more deltas only make the
        input longer, so that part is brought up to date when somebody looks. None: the next delta updates a part."""

    def input(self) -> JSONObject:
        """`input` and `rawInput` as far as they have arrived; no `input` while the text has no value."""
        raw = self.raw.text()
        if self.given.get("inputEncoding") == "text":
            return {"input": raw, "rawInput": raw}
        parsed = self.parser.parse(raw).value
        return {"rawInput": raw} if isinstance(parsed, msgspec.UnsetType) else {"input": parsed, "rawInput": raw}


class CallState(msgspec.Struct, forbid_unknown_fields=True):
    """A call as it is stored."""

    name: str
    dynamic: bool
    given: dict[str, Any]
    raw: str
    shown: int | None


class ToolParts:
    """The tool parts of one message. A part is found by its tool call id: first in the current step, then anywhere."""

    __slots__ = ("_by_approval_id", "_by_id", "_calls", "_parts")

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._calls: dict[str, _Call] = {}
        self._by_id: dict[str, list[int]] = {}
        """Indexes of the tool parts with an id, in order."""
        self._by_approval_id: dict[str, list[int]] = {}
        """Indexes of the tool parts that asked by an id, as heaps. What one of them is now may have another id."""
        for index in range(len(parts)):
            self._index(parts[index], index)

    def _index(self, part: JSONObject, index: int) -> None:
        call_id = part.get("toolCallId")
        if _is_tool(part) and isinstance(call_id, str):
            self._by_id.setdefault(call_id, []).append(index)
        approval_id = _approval_id(part)
        if approval_id is not None:
            heappush(self._by_approval_id.setdefault(approval_id, []), index)

    def resume_calls(self) -> None:
        """Of a message that is continued, calls of the last step whose input was streaming go on (FOLDS 2.6)."""
        for index in range(self._parts.step_start, len(self._parts)):
            part = self._parts[index]
            call_id = part.get("toolCallId")
            if _is_tool(part) and isinstance(call_id, str) and part.get("state") == "input-streaming":
                raw, given = part.get("rawInput"), _pick(part, ("inputEncoding", *_STICKY))
                self._calls[call_id] = _Call(
                    _name(part),
                    dynamic=part["type"] == _DYNAMIC,
                    given=given,
                    raw=raw if isinstance(raw, str) else "",
                )

    def restore_calls(self, calls: Mapping[str, CallState]) -> None:
        """Raises ValueError if a call is shown by a part that is not there."""
        for call_id, call in calls.items():
            if call.shown is not None and call.shown not in self._by_id.get(call_id, ()):
                raise ValueError(f"call {call_id!r} is shown by no part of its")
            self._calls[call_id] = _Call(
                call.name, dynamic=call.dynamic, given=call.given, raw=call.raw, shown=call.shown
            )

    def state(self) -> JSONObject:
        return {
            call_id: {
                "name": call.name,
                "dynamic": call.dynamic,
                "given": call.given,
                "raw": call.raw.text(),
                "shown": call.shown,
            }
            for call_id, call in self._calls.items()
        }

    def settle(self) -> None:
        """Bring all parts up to date."""
        for call in self._calls.values():
            self._settle(call)

    def _settle(self, call: _Call) -> None:
        if call.shown is not None and call.raw.behind:
            part = self._parts[call.shown]
            self._parts[call.shown] = {**_without(part, ("input", "rawInput")), **call.input()}

    def _detach(self, call_id: str) -> None:
        """The call's part is about to change for another reason than a delta."""
        call = self._calls.get(call_id)
        if call is not None:
            self._settle(call)
            call.shown = None

    def drop(self, dropped: list[JSONObject]) -> None:
        """Forget all calls, and these parts, which were the last of the message."""
        self._calls.clear()
        for part in dropped:
            call_id = part.get("toolCallId")
            if _is_tool(part) and isinstance(call_id, str):
                self._by_id[call_id].pop()
                if not self._by_id[call_id]:
                    del self._by_id[call_id]

    # -- finding a part ------------------------------------------------------------------------------------------

    def _in_step(self, call_id: str, *, dynamic: bool | None = None) -> int | None:
        """The first part of this call in the current step, of this kind if one is asked for."""
        found = None
        for index in reversed(self._by_id.get(call_id, ())):
            if index < self._parts.step_start:
                break
            if dynamic is None or dynamic == (self._parts[index]["type"] == _DYNAMIC):
                found = index
        return found

    def _anywhere(self, call_id: str) -> int:
        found = self._in_step(call_id)
        if found is not None:
            return found
        if call_id in self._by_id:
            return self._by_id[call_id][-1]
        raise FatalChunk("no-such-part", f"no tool part for tool call {call_id!r}")

    def _by_approval(self, approval_id: str) -> int:
        """The first part in the whole message that waits for this approval."""
        indexes = self._by_approval_id.get(approval_id, [])
        while indexes:
            if indexes[0] < len(self._parts) and _approval_id(self._parts[indexes[0]]) == approval_id:
                return indexes[0]
            heappop(indexes)
        raise FatalChunk("no-such-part", f"no tool part waits for approval {approval_id!r}")

    # -- one method for each chunk type ----------------------------------------------------------------------------

    def input_delta(self, chunk: JSONObject) -> None:
        """The hot path: while one part shows one call, a delta is only remembered."""
        call_id, delta = string(chunk, "toolCallId"), string(chunk, "inputTextDelta")
        call = self._calls.get(call_id)
        if call is None:
            raise FatalChunk("no-such-part", f"tool-input-delta for tool call {call_id!r}, which has not started")
        if call.shown is None or call.shown < self._parts.step_start:
            self._stream(call_id, call, delta)
        else:
            call.raw.pieces.append(delta)

    def _stream(self, call_id: str, call: _Call, delta: str) -> None:
        self._detach(call_id)
        call.raw.pieces.append(delta)
        given: JSONObject = {**call.given, "state": "input-streaming", **call.input()}
        call.shown = self._put(call_id, call.name, dynamic=call.dynamic, given=given)

    def _input_start(self, chunk: JSONObject) -> None:
        call_id, name = string(chunk, "toolCallId"), string(chunk, "toolName")
        self._detach(call_id)
        dynamic = chunk.get("dynamic") is True
        self._calls[call_id] = _Call(name, dynamic=dynamic, given=_pick(chunk, ("inputEncoding", *_STICKY)))
        self._put(call_id, name, dynamic=dynamic, given={**_pick(chunk, _START), "state": "input-streaming"})

    def _input_available(self, chunk: JSONObject) -> None:
        call_id, name = string(chunk, "toolCallId"), string(chunk, "toolName")
        self._detach(call_id)
        given: JSONObject = {**_pick(chunk, _INPUT), "state": "input-available"}
        self._put(call_id, name, dynamic=chunk.get("dynamic") is True, given=given)

    def _input_error(self, chunk: JSONObject) -> None:
        call_id, name = string(chunk, "toolCallId"), string(chunk, "toolName")
        self._detach(call_id)
        found = self._in_step(call_id)
        dynamic = chunk.get("dynamic") is True if found is None else self._parts[found]["type"] == _DYNAMIC
        self._put(call_id, name, dynamic=dynamic, given={**_pick(chunk, _INPUT_ERROR), "state": "output-error"})

    def _output_available(self, chunk: JSONObject) -> None:
        index = self._to_change(chunk)
        kept = _pick(self._parts[index], ("input",))
        self._finish(index, chunk, {**kept, **_pick(chunk, _OUTPUT), "state": "output-available"})

    def _output_error(self, chunk: JSONObject) -> None:
        index = self._to_change(chunk)
        part = self._parts[index]
        kept = _pick(part, ("input",) if part["type"] == _DYNAMIC else ("input", "rawInput"))
        self._finish(index, chunk, {**kept, **_pick(chunk, _OUTPUT_ERROR), "state": "output-error"})

    def _finish(self, index: int, chunk: JSONObject, given: JSONObject) -> None:
        if chunk.get("toolMetadata") is not None:
            given["toolMetadata"] = chunk["toolMetadata"]
        self._parts[index] = _updated(self._parts[index], given)

    def _output_denied(self, chunk: JSONObject) -> None:
        index = self._to_change(chunk)
        self._parts[index] = {**self._parts[index], "state": "output-denied"}

    def _approval_request(self, chunk: JSONObject) -> None:
        approval: JSONObject = {"id": string(chunk, "approvalId")}
        index = self._to_change(chunk)
        if chunk.get("approvalDescriptor") is not None:
            approval["descriptor"] = chunk["approvalDescriptor"]
        if "inputSchemaInput" in chunk:
            approval["inputSchemaInput"] = chunk["inputSchemaInput"]
        if chunk.get("reason") is not None:
            approval["requestReason"] = chunk["reason"]
        if chunk.get("isAutomatic") is True:
            approval["isAutomatic"] = True
        if chunk.get("signature") is not None:
            approval["signature"] = chunk["signature"]
        self._parts[index] = {**self._parts[index], "state": "approval-requested", "approval": approval}
        heappush(self._by_approval_id.setdefault(string(chunk, "approvalId"), []), index)

    def _approval_response(self, chunk: JSONObject) -> None:
        index = self._by_approval(string(chunk, "approvalId"))
        call_id = self._parts[index].get("toolCallId")
        if isinstance(call_id, str):
            self._detach(call_id)
        part = self._parts[index]
        old = part["approval"]
        approval = {**_without(old, ("approved",)), **_pick(chunk, ("approved",))} if isinstance(old, dict) else {}
        if chunk.get("reason") is not None:
            approval["reason"] = chunk["reason"]
        changed: JSONObject = {**part, "state": "approval-responded", "approval": approval}
        if chunk.get("providerExecuted") is not None:
            changed["providerExecuted"] = chunk["providerExecuted"]
        if chunk.get("providerMetadata") is not None:
            changed["callProviderMetadata"] = chunk["providerMetadata"]
        self._parts[index] = changed

    rules: ClassVar[Mapping[str, Callable[[ToolParts, JSONObject], None]]] = {
        "tool-input-start": _input_start,
        "tool-input-available": _input_available,
        "tool-input-error": _input_error,
        "tool-approval-request": _approval_request,
        "tool-approval-response": _approval_response,
        "tool-output-available": _output_available,
        "tool-output-error": _output_error,
        "tool-output-denied": _output_denied,
    }

    # -- changing a part ---------------------------------------------------------------------------------------------

    def _to_change(self, chunk: JSONObject) -> int:
        call_id = string(chunk, "toolCallId")
        index = self._anywhere(call_id)
        self._detach(call_id)
        return index

    def _put(self, call_id: str, name: str, *, dynamic: bool, given: JSONObject) -> int:
        """Update the part of this kind in the current step, or push one. Its index."""
        naming: JSONObject = {"type": _DYNAMIC, "toolName": name} if dynamic else {"type": _STATIC_PREFIX + name}
        index = self._in_step(call_id, dynamic=dynamic)
        if index is not None:
            self._parts[index] = {**_updated(self._parts[index], given), **naming}
            return index
        if dynamic:
            given = _without(given, ("rawInput",))  # the next delta brings it
        index = self._parts.push(_updated({**naming, "toolCallId": call_id}, given))
        self._index(self._parts[index], index)
        return index


def _updated(part: JSONObject, given: JSONObject) -> JSONObject:
    """The part as the update rule of FOLDS 2.4 leaves it."""
    updated = {**_without(part, _PER_STATE), **_pick(given, (*_PER_STATE, *_STICKY)), "state": given["state"]}
    if given.get("inputEncoding") is None:
        updated.pop("inputEncoding", None)
    if given.get("providerExecuted") is not None:
        updated["providerExecuted"] = given["providerExecuted"]
    if given.get("providerMetadata") is not None:
        of_result = given["state"] in _RESULT_STATES
        updated["resultProviderMetadata" if of_result else "callProviderMetadata"] = given["providerMetadata"]
    return updated


def _is_tool(part: JSONObject) -> bool:
    kind = part["type"]
    return kind == _DYNAMIC or (isinstance(kind, str) and kind.startswith(_STATIC_PREFIX))


def _approval_id(part: JSONObject) -> str | None:
    approval = part.get("approval")
    approval_id = approval.get("id") if isinstance(approval, dict) and _is_tool(part) else None
    return approval_id if isinstance(approval_id, str) else None


def _name(part: JSONObject) -> str:
    name = part.get("toolName") if part["type"] == _DYNAMIC else str(part["type"]).removeprefix(_STATIC_PREFIX)
    if isinstance(name, str):
        return name
    raise BadMessage("a dynamic tool part has a string `toolName`")


def _pick(source: JSONObject, fields: tuple[str, ...]) -> JSONObject:
    return {field: source[field] for field in fields if field in source}


def _without(source: JSONObject, fields: tuple[str, ...]) -> JSONObject:
    return {field: value for field, value in source.items() if field not in fields}
