"""AG-UI events, folded as `StreamProcessor` of `@tanstack/ai` does (FOLDS section 4).

The result is a conversation, so the message is `{"messages": [{id, role, parts, metadata?, createdAt?}]}` here, and a
fold can be started from the same. `final` is what is left of it when the stream ends.

The reference names messages that have no id by chance and dates them by its clock. Here the first of them is
`<generated-1>`, and a message has a date only if an event brought one, so that the same events make the same messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, Self

import msgspec
from msgspec import UNSET

from consumer.fold.draft import BadMessage, ChunkFault, chunk_object, string
from consumer.fold.growing import Growing
from consumer.fold.partial_json import parse_strict
from consumer.fold.tanstack_messages import Conversation, UIMessage, created_at, stringified, tanstack_metadata
from consumer.fold.tanstack_snapshot import messages_of, parsed_or_text, result_error
from consumer.fold.tanstack_stream import Call, StoredStream, Stream
from consumer.fold.tanstack_structured import grow_structured, raw_of, settle_partial
from consumer.fold.tree import Object, own_object, plain
from consumer.plain import JSON, JSONObject, NotJSON

REPEATED_CHARS_MAX: Final = 8_000_000
"""Text that goes on behind a thought is told again from its start (FOLDS section 4). A stream that alternates between
the two would be told in a length that is the square of its own; what goes beyond this is refused."""

_WAITING: Final = frozenset({"approval-requested", "approval-responded"})


class _State(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[dict[str, Any]]
    streams: dict[str, StoredStream]
    active: list[str]
    runs: list[str]
    routes: dict[str, str]
    pending_message: str | None
    pending_step: str | None
    structured: list[str]
    finish_reason: Any
    has_error: bool
    is_done: bool
    repeated_chars: int
    generated_count: int
    has_emitted: bool


class TanStackDraft:
    """A conversation, and the messages in it that are still being told."""

    __slots__ = (
        "_active",
        "_finish_reason",
        "_generated_count",
        "_has_emitted",
        "_has_error",
        "_is_done",
        "_messages",
        "_pending_message",
        "_pending_step",
        "_repeated_chars",
        "_routes",
        "_runs",
        "_speakers",
        "_speaking",
        "_streams",
        "_structured",
    )

    def __init__(self, messages: Iterable[JSONObject]) -> None:
        self._messages = Conversation(messages)
        self._repeated_chars = 0
        self._generated_count = 0
        self._has_emitted = False
        self._reset_streams()

    def _reset_streams(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._active: dict[str, None] = {}
        """Ids of the messages that events go to, the latest last."""
        self._speakers: dict[str, None] = {}
        """Those among the streams that are the assistant's, in the same order."""
        self._speaking: dict[str, None] = {}
        """Those among the active ones."""
        self._runs: dict[str, None] = {}
        self._routes: dict[str, str] = {}
        """The message that each tool call belongs to."""
        self._pending_message: str | None = None
        """A message that was made up for content that came before its start, which will name it."""
        self._pending_step: str | None = None
        """A step of thinking that began before there was a message."""
        self._structured: dict[str, None] = {}
        """Messages whose text is structured output for the time being."""
        self._finish_reason: JSON = None
        self._has_error = False
        self._is_done = False

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        messages = [] if initial is None else initial.get("messages")
        if not isinstance(messages, list):
            raise BadMessage("`messages` is a list")
        checked = [message for message in messages if isinstance(message, dict) and _has_parts(message)]
        if len(checked) != len(messages):
            raise BadMessage("a message is an object with a list of objects as `parts`")
        return cls(checked)

    @classmethod
    def restore(cls, state: JSON) -> Self:
        stored = msgspec.convert(state, _State)
        draft = cls(stored.messages)
        draft._streams = {message_id: Stream.restore(stream) for message_id, stream in stored.streams.items()}
        draft._active = dict.fromkeys(stored.active)
        draft._runs = dict.fromkeys(stored.runs)
        draft._routes = stored.routes
        draft._pending_message = stored.pending_message
        draft._pending_step = stored.pending_step
        draft._structured = dict.fromkeys(stored.structured)
        draft._finish_reason = stored.finish_reason
        draft._has_error = stored.has_error
        draft._is_done = stored.is_done
        draft._repeated_chars = stored.repeated_chars
        draft._generated_count = stored.generated_count
        draft._has_emitted = stored.has_emitted
        draft._find_speakers()
        return draft

    def state(self) -> JSONObject:
        return {
            "messages": self.message()["messages"],
            "streams": {message_id: stream.state() for message_id, stream in self._streams.items()},
            "active": [*self._active],
            "runs": [*self._runs],
            "routes": {**self._routes},
            "pending_message": self._pending_message,
            "pending_step": self._pending_step,
            "structured": [*self._structured],
            "finish_reason": self._finish_reason,
            "has_error": self._has_error,
            "is_done": self._is_done,
            "repeated_chars": self._repeated_chars,
            "generated_count": self._generated_count,
            "has_emitted": self._has_emitted,
        }

    def message(self) -> JSONObject:
        for message_id in self._structured:
            for message in self._messages.all_with(message_id):
                settle_partial(message)
        return {"messages": self._messages.told()}

    def emitted(self) -> JSONObject | None:
        return self.message() if self._has_emitted else None

    def final(self) -> JSONObject | None:
        ending = type(self).restore(self.state())
        ending.finalize()
        return ending.message()

    @property
    def finish_reason(self) -> str | None:
        return self._finish_reason if isinstance(self._finish_reason, str) else None

    def apply(self, chunk: JSON) -> bool:
        event = chunk_object(chunk)
        rule = self._rules.get(string(event, "type"))
        count = len(self._messages)
        emits = (rule is not None and rule(self, event)) or len(self._messages) != count
        self._has_emitted = self._has_emitted or emits
        return emits

    # -- which message ---------------------------------------------------------------------------------------------

    def _active_assistant(self) -> str | None:
        return next(reversed(self._speaking or self._speakers), None)

    def _find_speakers(self) -> None:
        self._speakers = {known: None for known, stream in self._streams.items() if stream.role == "assistant"}
        self._speaking = {known: None for known in self._active if known in self._speakers}

    def _activate(self, message_id: str) -> None:
        self._active.setdefault(message_id)
        if self._streams[message_id].role == "assistant":
            self._speaking.setdefault(message_id)

    def _ensure(self, preferred: str | None) -> tuple[str, Stream]:
        """The message that content goes to: this one if it is known, else the active one, else a new one."""
        for message_id in (preferred, self._active_assistant()):
            if message_id and message_id in self._streams:
                return message_id, self._resumed(message_id)
        known = self._messages.first(preferred) if preferred else None
        if preferred and known is not None:
            return preferred, self._continued(preferred, known)
        message_id = preferred or self._new_id()
        self._messages.add({"id": message_id, "role": "assistant", "parts": []})
        self._has_emitted = True
        self._pending_message = message_id
        return message_id, self._open(message_id, "assistant")

    def _resumed(self, message_id: str) -> Stream:
        stream = self._streams[message_id]
        self._activate(message_id)
        if stream.complete or self._is_done:
            stream.complete = self._is_done = False
        return stream

    def _continued(self, message_id: str, message: UIMessage) -> Stream:
        stream = self._open(message_id, message.fields.get("role"))
        last = message.parts[-1] if message.parts else {}
        content = plain(last.get("content"))
        if last.get("type") == "text" and isinstance(content, str):
            stream.segment, stream.total = Growing(-1, content), Growing(-1, content)
        return stream

    def _open(self, message_id: str, role: JSON) -> Stream:
        known = self._streams.get(message_id)
        stream = self._streams[message_id] = Stream(role)
        if known is not None and known.role != role:
            self._find_speakers()
        elif role == "assistant":
            self._speakers.setdefault(message_id)
        self._activate(message_id)
        return stream

    def _new_id(self) -> str:
        self._generated_count += 1
        return f"<generated-{self._generated_count}>"

    # -- text --------------------------------------------------------------------------------------------------------

    def _text_start(self, event: JSONObject) -> bool:
        message_id = string(event, "messageId")
        role = event.get("role") if event.get("role") in ("user", "system") else "assistant"
        pending, self._pending_message = self._pending_message, None
        is_known = bool(pending) or self._messages.first(message_id) is not None
        if pending and pending != message_id:
            self._rename(pending, message_id)
        if not is_known:
            self._messages.add({"id": message_id, "role": role, "parts": []})
        if not is_known or message_id not in self._streams:
            self._open(message_id, role)
        elif self._streams[message_id].called:
            self._streams[message_id].end_segment()
        if not pending:
            self._activate(message_id)
        merged = self._merge_metadata(message_id, event.get("metadata"))
        return merged or bool(pending) or not is_known

    def _rename(self, old_id: str, new_id: str) -> None:
        self._messages.rename(old_id, new_id)
        if old_id in self._streams:
            self._streams[new_id] = self._streams.pop(old_id)
        self._active.pop(old_id, None)
        self._active.setdefault(new_id)
        self._find_speakers()
        self._routes = {call: new_id if to == old_id else to for call, to in self._routes.items()}

    def _text_content(self, event: JSONObject) -> bool:
        delta, preferred = _text_or_empty(event, "delta"), _text_or_empty(event, "messageId")
        if delta:
            self._count_repetition(preferred)
        message_id, stream = self._ensure(preferred)
        merged = self._merge_metadata(message_id, event.get("metadata"))
        if message_id in self._structured:
            return self._structured_delta(message_id, stream, delta) or merged
        if stream.called and stream.segment.text():
            stream.end_segment()
        stream.called = False
        if delta:
            stream.show(self._messages.all_with(message_id))
            stream.segment.pieces.append(delta)
            stream.total.pieces.append(delta)
        return merged or bool(delta)

    def _count_repetition(self, preferred: str) -> None:
        """Raises ChunkFault if more text would be repeated than is allowed."""
        message_id = preferred if preferred in self._streams else self._active_assistant()
        stream = None if message_id is None else self._streams[message_id]
        if message_id is None or stream is None or stream.called or message_id in self._structured:
            return
        repeated = stream.repeated_by(self._messages.all_with(message_id))
        if repeated and self._repeated_chars + repeated > REPEATED_CHARS_MAX:
            raise ChunkFault("malformed", "text and thoughts alternate too often")
        self._repeated_chars += repeated

    def _text_end(self, event: JSONObject) -> bool:
        return self._merge_metadata(string(event, "messageId"), event.get("metadata"))

    def _merge_metadata(self, message_id: str, given: JSON) -> bool:
        if not isinstance(given, dict):
            return False
        first = self._messages.first(message_id)
        if first is None:
            return False
        told = tanstack_metadata(given)
        if "content" in told or "args" in told:
            kept = {key: value for key, value in told.items() if key not in ("content", "args")}
            given = {**given, "tanstack": kept}
        metadata = _merge_into(first.fields, given)
        time = created_at(told.get("createdAt"))
        for message in self._messages.all_with(message_id):
            message.fields["metadata"] = metadata
            if time:
                message.fields["createdAt"] = time
        return True

    # -- structured output -----------------------------------------------------------------------------------------

    def _structured_delta(self, message_id: str, stream: Stream, delta: str) -> bool:
        if not delta:
            return False
        stream.total.pieces.append(delta)
        for message in self._messages.all_with(message_id):
            grow_structured(message, delta)
        return True

    def _structured_start(self, value: JSONObject) -> bool:
        message_id, _ = self._ensure(_text_or_empty(value, "messageId") or self._active_assistant())
        self._structured.setdefault(message_id)
        return False

    def _structured_complete(self, value: JSONObject) -> bool:
        raw = _text_or_empty(value, "raw")
        message_id, _ = self._ensure(_text_or_empty(value, "messageId") or self._active_assistant())
        data: JSONObject = {"data": value["object"], "partial": value["object"]} if "object" in value else {}
        reasoning: JSONObject = {"reasoning": value["reasoning"]} if "reasoning" in value else {}
        for message in self._messages.all_with(message_id):
            told = raw or raw_of(message) or (stringified(value["object"]) if data else "")
            message.put({"type": "structured-output", "status": "complete", "raw": told, **data, **reasoning})
        self._structured.pop(message_id, None)
        return True

    def _fail_structured(self, message_id: str, text: str) -> None:
        for message in self._messages.all_with(message_id):
            settle_partial(message)
            part = message.structured or message.push({"type": "structured-output", "raw": ""})
            if part.get("status") != "complete":
                part.update({"status": "error", "errorMessage": text})

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
        delta = _text_or_empty(event, "delta")
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
        step = _text_or_empty(event, "stepName") or self._new_id()
        active = self._active_assistant()
        if active is None:
            self._pending_step = step
        else:
            self._streams[active].begin_step(step)
            self._pending_step = None
        return False

    def _step_finished(self, event: JSONObject) -> bool:
        signature, named = _text_or_empty(event, "signature"), _text_or_empty(event, "stepId")
        if not signature:
            return False
        message_id, stream = self._ensure(self._active_assistant())
        step = named if stream.step is None else stream.step
        if step not in stream.steps or not step:
            return False
        stream.signatures[step] = signature
        return self._show_step(message_id, stream, step)

    def _thinking(self, event: JSONObject) -> bool:
        delta, named = _text_or_empty(event, "delta"), string(event, "messageId")
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
        self._runs.setdefault(_text_or_empty(event, "runId"))
        return False

    def _run_finished(self, event: JSONObject) -> bool:
        run_id, outcome = _text_or_empty(event, "runId"), event.get("outcome")
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
        message_id = self._routes.get(_text_or_empty(value, "toolCallId")) or self._active_assistant()
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
        "TEXT_MESSAGE_START": _text_start,
        "TEXT_MESSAGE_CONTENT": _text_content,
        "TEXT_MESSAGE_END": _text_end,
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
        "structured-output.start": _structured_start,
        "structured-output.complete": _structured_complete,
        "approval-requested": _approval_requested,
        "ui-resource": _ui_resource,
    }


def _parsed_input(call: Call) -> JSONObject:
    try:
        return {"input": parse_strict(call.arguments.text())}
    except NotJSON:
        return {}


def _merge_into(fields: Object, given: JSONObject) -> Object:
    """The metadata of a message with these fields, after `given` has been merged into it."""
    metadata = own_object(fields, "metadata")
    told = given.get("tanstack")
    merges = isinstance(told, dict) and isinstance(metadata.get("tanstack"), dict)
    metadata.update({key: value for key, value in given.items() if key != "tanstack" or not merges})
    if merges and isinstance(told, dict):
        own_object(metadata, "tanstack").update(told)
    return metadata


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


def _has_parts(message: JSONObject) -> bool:
    parts = message.get("parts")
    return isinstance(parts, list) and all(isinstance(part, dict) for part in parts)


def _text_or_empty(event: JSONObject, field: str) -> str:
    value = event.get(field)
    if value is None:
        return ""
    return string(event, field)


def _only(source: Mapping[str, Any], *fields: str) -> JSONObject:
    return {field: source[field] for field in fields if field in source}
