"""AG-UI's `*_CHUNK` events, which say start, content and end of a message in one (FOLDS section 5).

A chunk with a new id opens a message, one without an id continues the open one. There is one lane for each subagent,
and one for the parent agent; in each at most one message is open.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Self

import msgspec

from consumer.fold.draft import ChunkFault, FatalChunk
from consumer.plain import JSON, JSONObject

PARENT: Final = ""
"""The lane of the parent agent. A subagent whose id is empty shares it; it has none to be told by."""


class _Kind(NamedTuple):
    """What a type of chunk opens and continues."""

    id_field: str
    start: str
    content: str
    required: tuple[str, ...]
    """Fields that the first chunk must have, besides its id."""
    kept: tuple[str, ...]
    """Fields that later chunks may repeat but not change."""


_KINDS: Final = {
    "TEXT_MESSAGE_CHUNK": _Kind("messageId", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", (), ("role", "name")),
    "TOOL_CALL_CHUNK": _Kind(
        "toolCallId", "TOOL_CALL_START", "TOOL_CALL_ARGS", ("toolCallName",), ("toolCallName", "parentMessageId")
    ),
    "REASONING_MESSAGE_CHUNK": _Kind(
        "messageId", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", (), ()
    ),
}  # fmt: skip

_CLOSES_ITS_LANE: Final = frozenset(
    {
        *(f"TEXT_MESSAGE_{move}" for move in ("START", "CONTENT", "END")),
        *(f"REASONING_MESSAGE_{move}" for move in ("START", "CONTENT", "END")),
        *(f"TOOL_CALL_{move}" for move in ("START", "ARGS", "END", "RESULT")),
        *("STATE_SNAPSHOT", "STATE_DELTA", "CUSTOM", "STEP_STARTED", "STEP_FINISHED"),
        *("REASONING_START", "REASONING_END", "SUBAGENT_FINISHED", "SUBAGENT_ERROR"),
    }
)
_CLOSES_ALL: Final = frozenset({"RUN_STARTED", "RUN_FINISHED", "RUN_ERROR", "MESSAGES_SNAPSHOT"})
_OF_SUBAGENTS: Final = frozenset({"SUBAGENT_FINISHED", "SUBAGENT_ERROR"})


class OpenMessage(msgspec.Struct, forbid_unknown_fields=True):
    """What a lane is putting together."""

    kind: str
    id: str
    kept: dict[str, Any]


class Lanes:
    """The messages that chunks have opened, by lane and in the order of their opening."""

    __slots__ = ("_holders", "_open")

    def __init__(self) -> None:
        self._open: dict[str, OpenMessage] = {}
        self._holders: dict[str, dict[str, str]] = {kind: {} for kind in _KINDS}
        """By kind and id of an open message, its lane."""

    @classmethod
    def restore(cls, stored: dict[str, OpenMessage]) -> Self:
        lanes = cls()
        for lane, message in stored.items():
            lanes._hold(lane, message)
        return lanes

    def _hold(self, lane: str, message: OpenMessage) -> None:
        self._release(lane)
        self._open[lane] = message
        self._holders.setdefault(message.kind, {})[message.id] = lane

    def _release(self, lane: str) -> None:
        message = self._open.pop(lane, None)
        if message is not None:
            self._holders[message.kind].pop(message.id, None)

    def state(self) -> JSONObject:
        return {lane: msgspec.to_builtins(message) for lane, message in self._open.items()}

    def expanded(self, event: JSONObject) -> list[JSONObject]:
        """The events that this one stands for: itself, if it is no chunk.

        Raises FatalChunk if it says nothing about which message it is for, or contradicts what that one began with;
        ChunkFault if it cannot be read.
        """
        kind = event["type"]
        if kind in _KINDS:
            return self._expanded_chunk(str(kind), event)
        if kind in _CLOSES_ALL:
            for lane in [*self._open]:
                self._release(lane)
        elif kind in _CLOSES_ITS_LANE:
            tag = event.get("subagentRunId")
            if tag is not None or kind not in _OF_SUBAGENTS:
                self._release(_lane(tag))
        return [event]

    def _expanded_chunk(self, kind: str, chunk: JSONObject) -> list[JSONObject]:
        rule = _KINDS[kind]
        chunk_id = _text_or_none(chunk, rule.id_field)
        if chunk.get("delta") is not None:
            _text_or_none(chunk, "delta")
        lane = self._lane_of(kind, chunk_id, chunk.get("subagentRunId"))
        message = self._open.get(lane)
        if message is None or message.kind != kind or chunk_id not in {None, message.id}:
            return self._opened(kind, lane, chunk_id, chunk)
        for field in rule.kept:
            if chunk.get(field) is not None and chunk[field] != message.kept.get(field):
                raise FatalChunk("out-of-place", f"a chunk with another `{field}` than its message")
        return [_content(rule, message.id, chunk)]

    def _opened(self, kind: str, lane: str, chunk_id: str | None, chunk: JSONObject) -> list[JSONObject]:
        rule = _KINDS[kind]
        if chunk_id is None or any(chunk.get(field) is None for field in rule.required):
            raise FatalChunk("no-such-part", f"the first {kind} of a message says which one it is")
        kept = {field: chunk[field] for field in rule.kept if chunk.get(field) is not None}
        if "role" in rule.kept:
            kept.setdefault("role", "assistant")
        self._hold(lane, OpenMessage(kind=kind, id=chunk_id, kept=kept))
        start: JSONObject = {
            **kept, **_given(chunk, "subagentRunId", "metadata"), "type": rule.start, rule.id_field: chunk_id
        }  # fmt: skip
        has_content = "delta" in chunk or "rawEvent" in chunk
        return [start, _content(rule, chunk_id, chunk)] if has_content else [start]

    def _lane_of(self, kind: str, chunk_id: str | None, tag: JSON) -> str:
        if chunk_id is not None:
            return self._lane_of_id(kind, chunk_id, tag)
        if tag is not None:
            return _lane(tag)
        parent = self._open.get(PARENT)
        if parent is not None and parent.kind == kind:
            return PARENT
        candidates = self._holders[kind].values()
        if len(candidates) > 1:
            raise FatalChunk("out-of-place", f"a {kind} that may be for more than one message")
        return next(iter(candidates), PARENT)

    def _lane_of_id(self, kind: str, chunk_id: str, tag: JSON) -> str:
        holder = self._holders[kind].get(chunk_id)
        if holder is None:
            return _lane(tag)
        if tag is not None and _lane(tag) != holder:
            raise FatalChunk("out-of-place", "a chunk of another subagent than its message")
        return holder


def _content(rule: _Kind, message_id: str, chunk: JSONObject) -> JSONObject:
    delta = chunk.get("delta")
    return {
        "type": rule.content,
        rule.id_field: message_id,
        "delta": "" if delta is None else delta,
        **_given(chunk, "metadata"),
    }


def _lane(tag: JSON) -> str:
    if tag is None:
        return PARENT
    if isinstance(tag, str):
        return tag
    raise ChunkFault("malformed", "`subagentRunId` is not a string")


def _text_or_none(chunk: JSONObject, field: str) -> str | None:
    value = chunk.get(field)
    if value is None or isinstance(value, str):
        return value
    raise ChunkFault("malformed", f"`{field}` is not a string")


def _given(chunk: JSONObject, *fields: str) -> JSONObject:
    return {field: chunk[field] for field in fields if field in chunk}
