"""AG-UI events, folded as `defaultApplyEvents` of `@ag-ui/client` 1 does, with chunks expanded (FOLDS section 5).

The result is not one message but a conversation and the state beside it, so that is what the message is here:
`{"messages": [{id, role, content, toolCalls, …}], "state": …}`, with `pendingInterrupts` as long as a run that was
interrupted waits for answers. A fold can be started from the same. Before anything came, it is no messages and an
empty state.

Where the reference warns and drops an event, that is an error on record here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Self

import msgspec

from consumer.fold.ag_ui_chunks import Lanes, OpenMessage
from consumer.fold.draft import BadMessage, ChunkFault, chunk_object, string
from consumer.fold.json_patch import BadPatch, patched
from consumer.fold.tree import Items, Object, grow, own_list, own_object, plain
from consumer.plain import JSON, JSONObject

_ACTIVITY_HISTORY: Final = "@ag-ui/client"
"""Where the metadata of a snapshot says which types of activity it has all of."""


class _State(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[dict[str, Any]]
    state: Any
    interrupts: list[Any]
    lanes: dict[str, OpenMessage]
    finish_reason: str | None
    has_emitted: bool


class ClientDraft:
    """A conversation. Of messages and of tool calls that share an id, the first one is meant, as in the reference."""

    __slots__ = (
        "_by_id",
        "_calls",
        "_finish_reason",
        "_has_emitted",
        "_interrupts",
        "_lanes",
        "_last_result",
        "_messages",
        "_state",
    )

    def __init__(self, messages: list[Any], state: JSON) -> None:
        self._state = state
        self._interrupts: list[JSON] = []
        self._lanes = Lanes()
        self._finish_reason: str | None = None
        self._has_emitted = False
        self._take(messages)

    def _take(self, messages: list[Any]) -> None:
        self._messages = Items(message if type(message) is Object else Object(message) for message in messages)
        self._index()

    def _index(self) -> None:
        self._by_id: dict[str, Object] = {}
        self._calls: dict[str, tuple[Object, int]] = {}
        """The message that holds a tool call, and the place of the call in it."""
        self._last_result: tuple[Object | None, int] = (None, 0)
        """Whose call the last result was for, and its place: up to there only results follow that message."""
        for message in self._messages:
            self._index_message(message)

    def _index_message(self, message: Object) -> None:
        if _has_id(message):
            self._by_id.setdefault(message["id"], message)
        calls = message.get("toolCalls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict) and isinstance(call.get("id"), str):
                self._calls.setdefault(call["id"], (message, place))

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        if initial is None:
            return cls([], {})
        messages = initial.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise BadMessage("`messages` is a list of objects")
        return cls(messages, initial.get("state", {}))

    @classmethod
    def restore(cls, state: JSON) -> Self:
        stored = msgspec.convert(state, _State)
        draft = cls(stored.messages, stored.state)
        draft._interrupts = stored.interrupts
        draft._lanes = Lanes.restore(stored.lanes)
        draft._finish_reason = stored.finish_reason
        draft._has_emitted = stored.has_emitted
        return draft

    def state(self) -> JSONObject:
        return {
            "messages": plain(self._messages),
            "state": self._state,
            "interrupts": self._interrupts,
            "lanes": self._lanes.state(),
            "finish_reason": self._finish_reason,
            "has_emitted": self._has_emitted,
        }

    def message(self) -> JSONObject:
        interrupts: JSONObject = {"pendingInterrupts": self._interrupts} if self._interrupts else {}
        return {"messages": plain(self._messages), "state": self._state, **interrupts}

    def emitted(self) -> JSONObject | None:
        return self.message() if self._has_emitted else None

    def final(self) -> JSONObject | None:
        return self.message()

    @property
    def finish_reason(self) -> str | None:
        return self._finish_reason

    def apply(self, chunk: JSON) -> bool:
        event = chunk_object(chunk)
        string(event, "type")
        emits = [self._apply_event(one) for one in self._lanes.expanded(event)]
        self._has_emitted = self._has_emitted or any(emits)
        return any(emits)

    def _apply_event(self, event: JSONObject) -> bool:
        rule = self._rules.get(str(event["type"]))
        return rule is not None and rule(self, event)

    # -- texts -----------------------------------------------------------------------------------------------------

    def _text_start(self, event: JSONObject) -> bool:
        role = event.get("role", "assistant")
        name: JSONObject = {"name": event["name"]} if "name" in event else {}
        return self._start_message(event, {"role": role, "content": "", **name})

    def _reasoning_start(self, event: JSONObject) -> bool:
        return self._start_message(event, {"role": "reasoning", "content": ""})

    def _start_message(self, event: JSONObject, fields: JSONObject) -> bool:
        message_id = string(event, "messageId")
        known = self._by_id.get(message_id)
        if known is None:
            known = self._push({"id": message_id, **fields, **_owner(event)})
            _merge_metadata(known, event)
            return True
        return _merge_metadata(_no_activity(known), event)

    def _text_content(self, event: JSONObject) -> bool:
        delta = string(event, "delta")
        message = self._text_message(event)
        grow(message, "content", delta)
        _merge_metadata(message, event)
        return True

    def _text_end(self, event: JSONObject) -> bool:
        return _merge_metadata(self._text_message(event), event)

    def _text_message(self, event: JSONObject) -> Object:
        message = self._by_id.get(string(event, "messageId"))
        if message is None:
            raise ChunkFault("no-such-part", "no message with this id")
        return _no_activity(message)

    def _push(self, message: JSONObject) -> Object:
        pushed = Object(message)
        self._messages.append(pushed)
        self._index_message(pushed)
        return pushed

    # -- tool calls ------------------------------------------------------------------------------------------------

    def _call_start(self, event: JSONObject) -> bool:
        call_id, name = string(event, "toolCallId"), event.get("toolCallName")
        if call_id in self._calls:
            return self._call_started_again(call_id, name, event)
        message = self._caller(call_id, event)
        calls = own_list(message, "toolCalls")
        calls.append(Object(id=call_id, type="function", function=Object(name=name, arguments="")))
        self._calls[call_id] = (message, len(calls) - 1)
        _merge_metadata(calls[-1], event)
        return True

    def _call_started_again(self, call_id: str, name: JSON, event: JSONObject) -> bool:
        function = own_object(self._call(call_id), "function")
        renamed = function.get("name") != name
        function["name"] = name
        return _merge_metadata(self._call(call_id), event) or renamed

    def _caller(self, call_id: str, event: JSONObject) -> Object:
        """The message that a new call belongs to, made if need be."""
        parent_id = event.get("parentMessageId")
        known = self._by_id.get(parent_id) if isinstance(parent_id, str) else None
        if known is not None and known.get("role") == "assistant":
            return known
        message_id = parent_id if isinstance(parent_id, str) and parent_id and known is None else call_id
        owner = {} if message_id in self._by_id else _owner(event)
        return self._push({"id": message_id, "role": "assistant", "toolCalls": [], **owner})

    def _call(self, call_id: str) -> Object:
        """Raises ChunkFault if there is no call with this id."""
        if call_id not in self._calls:
            raise ChunkFault("no-such-part", "no tool call with this id")
        message, place = self._calls[call_id]
        return own_object(own_list(message, "toolCalls"), place)

    def _call_args(self, event: JSONObject) -> bool:
        delta = string(event, "delta")
        call = self._call(string(event, "toolCallId"))
        grow(own_object(call, "function"), "arguments", delta)
        _merge_metadata(call, event)
        return True

    def _call_end(self, event: JSONObject) -> bool:
        return _merge_metadata(self._call(string(event, "toolCallId")), event)

    def _call_result(self, event: JSONObject) -> bool:
        call_id, message_id = string(event, "toolCallId"), string(event, "messageId")
        result = Object(
            {
                "id": message_id,
                "toolCallId": call_id,
                "role": event.get("role") or "tool",
                **{field: event[field] for field in ("content",) if field in event},
                **_owner(event),
            }
        )
        _merge_metadata(result, event)
        place = self._place_of_result(call_id)
        self._messages.insert(place, result)
        if message_id not in self._by_id:
            self._by_id[message_id] = result
        elif place < len(self._messages) - 1:
            self._index()  # it may stand before the one that had the id
        return True

    def _place_of_result(self, call_id: str) -> int:
        """Behind the assistant's message that made the call and the results that are there; else at the end."""
        end = len(self._messages)
        if call_id not in self._calls:
            return end  # where it is behind every place that is remembered
        owner: Object | None = self._calls[call_id][0]
        if owner is not None and owner.get("role") != "assistant":
            owner = next((message for message in self._messages if _has_made(message, call_id)), None)
        if owner is None:
            return end
        known_owner, place = self._last_result
        if known_owner is not owner:
            behind = (place for place in range(end, 0, -1) if self._messages[place - 1] is owner)  # most often the last
            place = next(behind, end)
        while place < end and self._messages[place].get("role") == "tool":
            place += 1
        self._last_result = (owner, place)
        return place

    def _encrypted_value(self, event: JSONObject) -> bool:
        entity_id = string(event, "entityId")
        of_call = event.get("subtype") == "tool-call"
        target = self._call(entity_id) if of_call else self._by_id.get(entity_id)
        if target is None or target.get("role") == "activity":
            raise ChunkFault("no-such-part", "no message with this id")
        target["encryptedValue"] = event.get("encryptedValue")
        return True

    # -- the state, and what comes whole -----------------------------------------------------------------------------

    def _state_snapshot(self, event: JSONObject) -> bool:
        if "snapshot" not in event:
            raise ChunkFault("malformed", "a STATE_SNAPSHOT has a `snapshot`")
        self._state = event["snapshot"]
        return True

    def _state_delta(self, event: JSONObject) -> bool:
        try:
            self._state = patched(self._state, event.get("delta"))
        except BadPatch as error:
            raise ChunkFault("bad-patch", str(error)) from error
        return True

    def _messages_snapshot(self, event: JSONObject) -> bool:
        given = _messages(event.get("messages"))
        by_id = {message["id"]: message for message in given if _has_id(message)}
        keeps = _kept_without(event, given)
        kept: list[Any] = []
        for message in self._messages:
            if _has_id(message) and message["id"] in by_id:
                kept.append(by_id[message["id"]])
            elif keeps(message):
                kept.append(message)
        known = {message["id"] for message in kept if _has_id(message)}
        self._take([*kept, *(message for message in given if not _has_id(message) or message["id"] not in known)])
        return True

    def _activity_snapshot(self, event: JSONObject) -> bool:
        message_id = string(event, "messageId")
        known = self._by_id.get(message_id)
        fields = {"role": "activity", **_given(event, "activityType", "content"), **_owner(event)}
        replaces = event.get("replace", True) not in (False, 0, "")
        if known is None:
            known = self._push({"id": message_id, **fields})
        elif replaces:
            loses_calls = "toolCalls" in known and known.get("role") != "activity"
            kept = {**known} if known.get("role") == "activity" else {"id": message_id}
            kept.pop("subagentRunId", None)
            known.clear()
            known.update({**kept, **fields})
            self._last_result = (None, 0)
            if loses_calls:
                self._index()
        if known.get("role") == "activity":
            _merge_metadata(known, event)
        return True

    def _activity_delta(self, event: JSONObject) -> bool:
        known = self._by_id.get(string(event, "messageId"))
        if known is None or known.get("role") != "activity":
            raise ChunkFault("no-such-part", "no activity with this id")
        merged = _merge_metadata(known, event)
        try:
            content = plain(known.get("content"))
            known["content"] = patched({} if content is None else content, event.get("patch") or [])
        except BadPatch as error:
            if merged:
                return True
            raise ChunkFault("bad-patch", str(error)) from error
        known.update(_given(event, "activityType"))
        return True

    def _run_started(self, event: JSONObject) -> bool:
        given = event.get("input")
        if not isinstance(given, dict) or not given.get("messages"):
            return False
        for message in _messages(given["messages"]):
            if not _has_id(message) or message["id"] not in self._by_id:
                self._push(message)
        return True

    def _run_finished(self, event: JSONObject) -> bool:
        outcome = event.get("outcome")
        kind = outcome.get("type") if isinstance(outcome, dict) else None
        interrupts = outcome.get("interrupts") if isinstance(outcome, dict) and kind == "interrupt" else []
        if not isinstance(interrupts, list):
            raise ChunkFault("malformed", "`interrupts` is not a list")
        changed = interrupts != self._interrupts
        self._interrupts = [_without_null_owner(one) if isinstance(one, dict) else one for one in interrupts]
        self._finish_reason = kind if isinstance(kind, str) else "success"
        return changed

    def _run_error(self, event: JSONObject) -> bool:
        text = event.get("message")
        raise ChunkFault("reported", text if isinstance(text, str) else "")

    _rules: ClassVar[Mapping[str, Callable[[ClientDraft, JSONObject], bool]]] = {
        "TEXT_MESSAGE_START": _text_start,
        "TEXT_MESSAGE_CONTENT": _text_content,
        "TEXT_MESSAGE_END": _text_end,
        "REASONING_MESSAGE_START": _reasoning_start,
        "REASONING_MESSAGE_CONTENT": _text_content,
        "REASONING_MESSAGE_END": _text_end,
        "REASONING_ENCRYPTED_VALUE": _encrypted_value,
        "TOOL_CALL_START": _call_start,
        "TOOL_CALL_ARGS": _call_args,
        "TOOL_CALL_END": _call_end,
        "TOOL_CALL_RESULT": _call_result,
        "STATE_SNAPSHOT": _state_snapshot,
        "STATE_DELTA": _state_delta,
        "MESSAGES_SNAPSHOT": _messages_snapshot,
        "ACTIVITY_SNAPSHOT": _activity_snapshot,
        "ACTIVITY_DELTA": _activity_delta,
        "RUN_STARTED": _run_started,
        "RUN_FINISHED": _run_finished,
        "RUN_ERROR": _run_error,
    }
    """Steps, raw and custom events, subagents and types that nobody knows change neither messages nor state."""


def _messages(value: Any) -> list[JSONObject]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ChunkFault("malformed", "`messages` is not a list of objects")
    return [_without_null_owner(message) for message in value]


def _without_null_owner(value: JSONObject) -> JSONObject:
    """A null `subagentRunId` reads as none."""
    if "subagentRunId" in value and value["subagentRunId"] is None:
        return {field: kept for field, kept in value.items() if field != "subagentRunId"}
    return value


def _has_id(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("id"), str)


def _kept_without(event: JSONObject, given: list[JSONObject]) -> Callable[[Object], bool]:
    """Which messages outlast a snapshot that does not have them: those of kinds that it says nothing about."""
    types = _activity_types(event)
    roles = {message.get("role") for message in given if isinstance(message.get("role"), str)}

    def keeps(message: Object) -> bool:
        if message.get("role") == "reasoning":
            return "reasoning" not in roles
        if message.get("role") != "activity":
            return False
        if isinstance(types, list):
            return message.get("activityType") not in types
        return types is not None and "activity" not in roles

    return keeps


def _activity_types(event: JSONObject) -> list[JSON] | msgspec.UnsetType | None:
    """The types of activity that the snapshot has all of; None for every type, UNSET where it does not say."""
    metadata = event.get("metadata")
    if not isinstance(metadata, dict) or _ACTIVITY_HISTORY not in metadata:
        return msgspec.UNSET
    history = metadata[_ACTIVITY_HISTORY]
    if not isinstance(history, dict):
        return []
    types = history.get("authoritativeActivityTypes", msgspec.UNSET)
    if types is None or types is msgspec.UNSET:
        return types
    return types if isinstance(types, list) and all(isinstance(one, str) for one in types) else []


def _has_made(message: Object, call_id: str) -> bool:
    calls = message.get("toolCalls")
    return (
        message.get("role") == "assistant"
        and isinstance(calls, list)
        and any(isinstance(call, dict) and call.get("id") == call_id for call in calls)
    )


def _no_activity(message: Object) -> Object:
    """Raises ChunkFault for an activity: its content is no text."""
    if message.get("role") == "activity":
        raise ChunkFault("no-such-part", "the message with this id is an activity")
    return message


def _merge_metadata(target: Object, event: JSONObject) -> bool:
    metadata = event.get("metadata")
    if not isinstance(metadata, dict):
        return False
    own_object(target, "metadata").update(metadata)
    return True


def _owner(event: JSONObject) -> JSONObject:
    return {"subagentRunId": event["subagentRunId"]} if event.get("subagentRunId") is not None else {}


def _given(event: JSONObject, *fields: str) -> JSONObject:
    return {field: event[field] for field in fields if field in event}
