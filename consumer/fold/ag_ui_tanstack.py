"""AG-UI events, folded as `StreamProcessor` of `@tanstack/ai` does (FOLDS section 4).

The result is a conversation, so the message is `{"messages": [{id, role, parts, metadata?, createdAt?}]}` here, and a
fold can be started from the same. `final` is what is left of it when the stream ends.

The reference names messages that have no id by chance and dates them by its clock. Here the first of them is
`<generated-1>`, and a message has a date only if an event brought one, so that the same events make the same messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec
from msgspec import UNSET

from consumer.fold.draft import ChunkFault, chunk_object, string
from consumer.fold.growing import Growing
from consumer.fold.partial_json import parse_strict
from consumer.fold.tanstack_messages import Conversation, UIMessage, stringified, tanstack_metadata
from consumer.fold.tanstack_snapshot import messages_of, parsed_or_text, result_error
from consumer.fold.tanstack_stream import Call, Stream
from consumer.fold.tanstack_telling import Telling, text_or_empty
from consumer.plain import JSON, JSONObject, NotJSON

_WAITING: Final = frozenset({"approval-requested", "approval-responded"})


class TanStackDraft(Telling):
    """What events do to it: tool calls, thoughts, runs, and what custom events ask for."""

    __slots__ = ()

    def apply(self, chunk: JSON) -> bool:
        event = chunk_object(chunk)
        rule = self._rules.get(string(event, "type"))
        count = len(self._messages)
        emits = (rule is not None and rule(self, event)) or len(self._messages) != count
        self._has_emitted = self._has_emitted or emits
        return emits

    def final(self) -> JSONObject | None:
        ending = type(self).restore(self.state())
        ending.finalize()
        return ending.message()

    # -- tool calls ------------------------------------------------------------------------------------------------

    def _call_start(self, event: JSONObject) -> bool:
        call_id = string(event, "toolCallId")
        parent = event.get("parentMessageId")
        if parent is not None and not isinstance(parent, str):
            raise ChunkFault("malformed", "`parentMessageId` is not a string")
        message_id, stream = self._ensure(self._active_assistant() if parent is None else parent)
        stream.called = True
        if call_id in stream.calls:
            return False
        call = Call(event.get("toolCallName"), "awaiting-input", metadata=event.get("metadata", UNSET))
        stream.calls[call_id] = call
        self._routes[call_id] = message_id
        self._messages.put_call(message_id, call_id, call.part(with_metadata=True))
        return True

    def _routed(self, event: JSONObject) -> tuple[str, Call]:
        """The message and the call that an event is for. Raises ChunkFault if it has not started."""
        call_id = string(event, "toolCallId")
        message_id = self._routes.get(call_id, "")
        if message_id not in self._streams or call_id not in self._streams[message_id].calls:
            raise ChunkFault("no-such-part", "no tool call with this id has started")
        return message_id, self._streams[message_id].calls[call_id]

    def _call_args(self, event: JSONObject) -> bool:
        delta = text_or_empty(event, "delta")
        message_id, call = self._routed(event)
        call.arguments.pieces.append(delta)
        if delta and call.state == "awaiting-input":
            call.state = "input-streaming"
        self._messages.put_call(message_id, string(event, "toolCallId"), call.part(with_metadata=False))
        return True

    def _call_end(self, event: JSONObject) -> bool:
        message_id, call = self._routed(event)
        call_id = string(event, "toolCallId")
        if call.state == "input-complete":
            return False
        told = tanstack_metadata(event)
        given: JSONObject = {"input": event["input"]} if "input" in event else _only(told, "input")
        if given and not call.arguments.text():
            call.arguments.pieces.append(stringified(given["input"]))
        emits = self._complete_call(message_id, call_id, call)
        if given:
            self._messages.put_call(message_id, call_id, {**call.part(with_metadata=True), **given})
        return emits or bool(given)

    def _complete_call(self, message_id: str, call_id: str, call: Call) -> bool:
        call.state = "input-complete"
        states = self._messages.call_states(call_id)
        if "error" in states or not states.isdisjoint(_WAITING):
            return False
        self._messages.put_call(message_id, call_id, {**call.part(with_metadata=True), **_parsed_input(call)})
        return True

    def _complete_calls(self, message_id: str) -> bool:
        stream = self._streams.get(message_id)
        if stream is None:
            return False
        emits = False
        for call_id, call in stream.calls.items():
            if call.state != "input-complete":
                emits = self._complete_call(message_id, call_id, call) or emits
        return emits

    def _call_result(self, event: JSONObject) -> bool:
        call_id = string(event, "toolCallId")
        content = event.get("content")
        shown = self._messages.all_with_call(call_id)
        message_id = self._routes.get(call_id) or (shown[0].id if shown else "")
        if not message_id:
            raise ChunkFault("no-such-part", "no tool call with this id")
        failed = "output-error" in (event.get("state"), tanstack_metadata(event).get("state"))
        state, output = "error" if failed else "complete", parsed_or_text(content)
        for message in shown:
            part = message.call(call_id)
            if part is not None:
                part.update({"output": output, "state": state})
        result: JSONObject = {"type": "tool-result", "toolCallId": call_id, "content": content, "state": state}
        error = result_error(output) if failed else ""
        for message in self._messages.all_with(message_id):
            message.put({**result, **({"error": error} if error else {})})
        return True

    def _request_approval(self, message_id: str | None, call_id: str, approval_id: JSON) -> bool:
        for message in self._messages.all_with(message_id) if message_id else ():
            part = message.call(call_id)
            if part is not None:
                part.update({"state": "approval-requested", "approval": {"id": approval_id, "needsApproval": True}})
        return bool(message_id)

    # -- thinking --------------------------------------------------------------------------------------------------

    def _step_started(self, event: JSONObject) -> bool:
        step = text_or_empty(event, "stepName") or self._new_id()
        active = self._active_assistant()
        if active is None:
            self._pending_step = step
        else:
            self._streams[active].begin_step(step)
            self._pending_step = None
        return False

    def _step_finished(self, event: JSONObject) -> bool:
        signature, named = text_or_empty(event, "signature"), text_or_empty(event, "stepId")
        if not signature:
            return False
        message_id, stream = self._ensure(self._active_assistant())
        step = named if stream.step is None else stream.step
        if step not in stream.steps or not step:
            return False
        stream.signatures[step] = signature
        return self._show_step(message_id, stream, step)

    def _thinking(self, event: JSONObject) -> bool:
        delta, named = text_or_empty(event, "delta"), string(event, "messageId")
        message_id, stream = self._ensure(self._active_assistant())
        if self._pending_step:
            stream.begin_step(self._pending_step)
            self._pending_step = None
        step = named if stream.step is None else stream.step
        if step not in stream.steps:
            stream.begin_step(step)
        stream.steps[step].pieces.append(delta)
        return self._show_step(message_id, stream, step)

    def _encrypted_value(self, event: JSONObject) -> bool:
        value = event.get("encryptedValue")
        if not isinstance(value, str) or not value:
            return False
        entity_id = string(event, "entityId")
        if event.get("subtype") == "tool-call":
            return self._sign_call(entity_id, value)
        message_id, stream = self._ensure(self._active_assistant())
        step = entity_id if stream.step is None else stream.step
        stream.signatures[step] = value
        stream.steps.setdefault(step, Growing(-1))
        return self._show_step(message_id, stream, step)

    def _show_step(self, message_id: str, stream: Stream, step: str) -> bool:
        content: Any = stream.steps[step]
        part: JSONObject = {"type": "thinking", "content": content, "stepId": step}
        if stream.signatures.get(step):
            part["signature"] = stream.signatures[step]
        for message in self._messages.all_with(message_id):
            message.put(part)
        return True

    def _sign_call(self, call_id: str, signature: str) -> bool:
        for message in self._messages.all_with_call(call_id):
            part = message.call(call_id)
            if part is not None:
                part["metadata"] = _signed(part.get("metadata"), signature)
        for stream in self._streams.values() if call_id in self._routes else ():
            if call_id in stream.calls:
                stream.calls[call_id].metadata = _signed(stream.calls[call_id].metadata, signature)
        return True

    # -- runs --------------------------------------------------------------------------------------------------------

    def _run_started(self, event: JSONObject) -> bool:
        self._runs.setdefault(text_or_empty(event, "runId"))
        return False

    def _run_finished(self, event: JSONObject) -> bool:
        run_id, outcome = text_or_empty(event, "runId"), event.get("outcome")
        interrupts = _interrupts(outcome)
        told = tanstack_metadata(event).get("finishReason")
        self._finish_reason = event.get("finishReason", told)
        self._runs.pop(run_id, None)
        emits = False
        for interrupt in interrupts or ():
            emits = self._interrupt(interrupt) or emits
        if self._runs:
            return emits
        for message_id in self._active:
            emits = self._complete_calls(message_id) or emits
        if self._finish_reason == "tool_calls" and interrupts is None:
            return emits
        return self.finalize() or emits

    def _interrupt(self, interrupt: JSONObject) -> bool:
        metadata, call_id = interrupt.get("metadata"), interrupt.get("toolCallId")
        kind = metadata.get("kind") if isinstance(metadata, dict) else None
        needs_approval = kind == "approval" or interrupt.get("reason") == "approval_required"
        if not isinstance(call_id, str) or not call_id or not needs_approval:
            return False
        asking = (message.id for message in self._messages.all_with_call(call_id) if message.is_assistant)
        message_id = self._active_assistant() or self._routes.get(call_id) or next(asking, None)
        return self._request_approval(message_id, call_id, interrupt.get("id"))

    def _run_error(self, event: JSONObject) -> bool:
        run_id = event.get("runId") or tanstack_metadata(event).get("runId")
        text, error = event.get("message"), event.get("error")
        self._has_error = True
        if isinstance(run_id, str):
            self._runs.pop(run_id, None)
        else:
            self._runs.clear()
        message_id, _ = self._ensure(None)
        if message_id in self._structured:
            self._fail_structured(message_id, text if isinstance(text, str) and text else "An error occurred")
            del self._structured[message_id]
        told = text or (error.get("message") if isinstance(error, dict) else None)
        raise ChunkFault("reported", told if isinstance(told, str) else "")

    def finalize(self) -> bool:
        """The stream is at its end: everything open is ended. Whether that changed a message."""
        self._is_done = True
        last: UIMessage | None = None
        emits = False
        for message_id in self._active:
            if message_id not in self._streams:
                continue
            emits = self._complete_calls(message_id) or emits
            self._streams[message_id].complete = True
            message = self._messages.first(message_id)
            last = message if message is not None and message.is_assistant else last
        for message_id in self._structured:
            self._fail_structured(message_id, "Stream ended without structured-output.complete")
            emits = True
        self._structured.clear()
        self._active.clear()
        self._speaking.clear()
        if last is None or self._has_error or not last.is_blank():
            return emits
        self._messages.remove(last.id)
        return True

    # -- the rest ----------------------------------------------------------------------------------------------------

    def _custom(self, event: JSONObject) -> bool:
        name, value = event.get("name"), event.get("value")
        rule = self._custom_rules.get(name) if isinstance(name, str) else None
        return rule is not None and isinstance(value, dict) and rule(self, value)

    def _approval_requested(self, value: JSONObject) -> bool:
        approval = value.get("approval")
        if not isinstance(approval, dict):
            raise ChunkFault("malformed", "`approval` is not an object")
        call_id = string(value, "toolCallId")
        return self._request_approval(
            self._active_assistant() or self._routes.get(call_id), call_id, approval.get("id")
        )

    def _ui_resource(self, value: JSONObject) -> bool:
        message_id = self._routes.get(text_or_empty(value, "toolCallId")) or self._active_assistant()
        if message_id is None:
            raise ChunkFault("no-such-part", "no message that a resource could be for")
        part = _only(value, "resource", "toolCallId", "toolName", "serverId", "meta")
        for message in self._messages.all_with(message_id):
            message.push({"type": "ui-resource", **part})
        return True

    def _messages_snapshot(self, event: JSONObject) -> bool:
        before: Any = self.message()["messages"]
        after = messages_of(event.get("messages"), before, self._new_id)
        self._reset_streams()
        self._messages = Conversation(after)
        return True

    _rules: ClassVar[Mapping[str, Callable[[TanStackDraft, JSONObject], bool]]] = {
        "TEXT_MESSAGE_START": Telling.text_start,
        "TEXT_MESSAGE_CONTENT": Telling.text_content,
        "TEXT_MESSAGE_END": Telling.text_end,
        "TOOL_CALL_START": _call_start,
        "TOOL_CALL_ARGS": _call_args,
        "TOOL_CALL_END": _call_end,
        "TOOL_CALL_RESULT": _call_result,
        "STEP_STARTED": _step_started,
        "STEP_FINISHED": _step_finished,
        "REASONING_MESSAGE_CONTENT": _thinking,
        "REASONING_ENCRYPTED_VALUE": _encrypted_value,
        "RUN_STARTED": _run_started,
        "RUN_FINISHED": _run_finished,
        "RUN_ERROR": _run_error,
        "CUSTOM": _custom,
        "MESSAGES_SNAPSHOT": _messages_snapshot,
    }
    """States, activities, raw events, subagents, chunks and types that nobody knows are not read."""

    _custom_rules: ClassVar[Mapping[str, Callable[[TanStackDraft, JSONObject], bool]]] = {
        "structured-output.start": Telling.structured_start,
        "structured-output.complete": Telling.structured_complete,
        "approval-requested": _approval_requested,
        "ui-resource": _ui_resource,
    }


def _parsed_input(call: Call) -> JSONObject:
    try:
        return {"input": parse_strict(call.arguments.text())}
    except NotJSON:
        return {}


def _signed(metadata: JSON | msgspec.UnsetType, signature: str) -> JSONObject:
    return {**(metadata if isinstance(metadata, dict) else {}), "thoughtSignature": signature}


def _interrupts(outcome: JSON) -> list[JSONObject] | None:
    """What the run waits for; None if it was not interrupted."""
    if not isinstance(outcome, dict) or outcome.get("type") != "interrupt":
        return None
    interrupts = outcome.get("interrupts")
    if not isinstance(interrupts, list):
        raise ChunkFault("malformed", "`interrupts` is not a list")
    return [interrupt for interrupt in interrupts if isinstance(interrupt, dict)]


def _only(source: Mapping[str, Any], *fields: str) -> JSONObject:
    return {field: source[field] for field in fields if field in source}
