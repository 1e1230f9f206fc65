"""The messages of a TanStack conversation that are still being told: which of them an event is for, and their text.

Content may come before the start of its message, behind a thought, or for a message that has ended; which one it goes
to is one rule here, and text, structured output and metadata are what needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Self

import msgspec

from consumer.fold.draft import BadMessage, ChunkFault, string
from consumer.fold.growing import Growing
from consumer.fold.tanstack_messages import Conversation, UIMessage, created_at, stringified, tanstack_metadata
from consumer.fold.tanstack_stream import StoredStream, Stream
from consumer.fold.tanstack_structured import grow_structured, raw_of, settle_partial
from consumer.fold.tree import Object, own_object, plain
from consumer.plain import JSON, JSONObject

REPEATED_CHARS_MAX: Final = 8_000_000
"""Text that goes on behind a thought is told again from its start (FOLDS section 4). A stream that alternates between
the two would be told in a length that is the square of its own; what goes beyond this is refused."""


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


class Telling:
    """A conversation, its streams, and how far each is."""

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

    @property
    def finish_reason(self) -> str | None:
        return self._finish_reason if isinstance(self._finish_reason, str) else None

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

    def text_start(self, event: JSONObject) -> bool:
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

    def text_content(self, event: JSONObject) -> bool:
        delta, preferred = text_or_empty(event, "delta"), text_or_empty(event, "messageId")
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

    def text_end(self, event: JSONObject) -> bool:
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

    def structured_start(self, value: JSONObject) -> bool:
        message_id, _ = self._ensure(text_or_empty(value, "messageId") or self._active_assistant())
        self._structured.setdefault(message_id)
        return False

    def structured_complete(self, value: JSONObject) -> bool:
        raw = text_or_empty(value, "raw")
        message_id, _ = self._ensure(text_or_empty(value, "messageId") or self._active_assistant())
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


def _merge_into(fields: Object, given: JSONObject) -> Object:
    """The metadata of a message with these fields, after `given` has been merged into it."""
    metadata = own_object(fields, "metadata")
    told = given.get("tanstack")
    merges = isinstance(told, dict) and isinstance(metadata.get("tanstack"), dict)
    metadata.update({key: value for key, value in given.items() if key != "tanstack" or not merges})
    if merges and isinstance(told, dict):
        own_object(metadata, "tanstack").update(told)
    return metadata


def _has_parts(message: JSONObject) -> bool:
    parts = message.get("parts")
    return isinstance(parts, list) and all(isinstance(part, dict) for part in parts)


def text_or_empty(event: JSONObject, field: str) -> str:
    """A text that may be missing. Raises ChunkFault for what is none."""
    value = event.get(field)
    if value is None:
        return ""
    return string(event, field)
