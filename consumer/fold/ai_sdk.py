"""The AI SDK's UI message stream, folded as `readUIMessageStream` of `ai` 7 does (FOLDS section 2).

The fields that the fold reads (ids, names, deltas) are checked; all others are taken as they come, as the reference
takes them. What it would trip over in a way of its own, such as a chunk that is no object, is malformed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Self

import msgspec

from consumer.fold.ai_sdk_metadata import merge
from consumer.fold.ai_sdk_parts import Parts
from consumer.fold.ai_sdk_tools import CallState, ToolParts
from consumer.fold.draft import (
    ChunkFault,
    FatalChunk,
    check_depth,
    empty_message,
    parts_of,
    start_message,
    string,
)
from consumer.fold.growing import Growing
from consumer.fold.tree import Object, plain
from consumer.plain import JSON, JSONObject

_DATA_PREFIX: Final = "data-"


class _State(msgspec.Struct, forbid_unknown_fields=True):
    message: dict[str, Any]
    texts: dict[str, int]
    reasonings: dict[str, int]
    calls: dict[str, CallState]
    finish_reason: str | None
    emitted_part_count: int | None


class AISDKDraft:
    """One assistant message, with the parts that may still grow found by the ids their chunks carry."""

    __slots__ = (
        "_data",
        "_emitted_part_count",
        "_finish_reason",
        "_head",
        "_parts",
        "_reasonings",
        "_texts",
        "_tools",
    )

    def __init__(self, message: JSONObject) -> None:
        self._emitted_part_count: int | None = None
        """How many parts readers were last shown. All that changes without an emission is that `step-start` parts are
        added at the end, so this tells what they see."""
        self._reset(message)

    def _reset(self, message: JSONObject) -> None:
        self._head = Object({**message, "parts": []})
        self._parts = Parts(parts_of(message))
        self._tools = ToolParts(self._parts)
        self._texts: dict[str, Growing] = {}
        self._reasonings: dict[str, Growing] = {}
        self._data: dict[tuple[str, str], int] = {}
        """Index of the first data part of a type and id in the whole message."""
        for index in range(len(self._parts)):
            self._index_data(index)
        self._finish_reason: str | None = None

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        draft = cls(start_message(initial))
        draft._tools.resume_calls()
        return draft

    @classmethod
    def restore(cls, state: JSON) -> Self:
        stored = msgspec.convert(state, _State)
        draft = cls(stored.message)
        draft._texts = {text_id: draft._grow_on(index) for text_id, index in stored.texts.items()}
        draft._reasonings = {text_id: draft._grow_on(index) for text_id, index in stored.reasonings.items()}
        draft._tools.restore_calls(stored.calls)
        draft._finish_reason = stored.finish_reason
        draft._emitted_part_count = stored.emitted_part_count
        return draft

    def _grow_on(self, index: int) -> Growing:
        text = self._parts[index].get("text") if 0 <= index < len(self._parts) else None
        if not isinstance(text, str):
            raise ValueError(f"part {index} has no text to go on with")  # noqa: TRY004  a bad value, not a bad call
        return Growing(index, text)

    def state(self) -> JSONObject:
        return {
            "message": self.message(),
            "texts": {text_id: text.index for text_id, text in self._texts.items()},
            "reasonings": {text_id: text.index for text_id, text in self._reasonings.items()},
            "calls": self._tools.state(),
            "finish_reason": self._finish_reason,
            "emitted_part_count": self._emitted_part_count,
        }

    @property
    def finish_reason(self) -> str | None:
        return self._finish_reason

    def message(self) -> JSONObject:
        self._tools.settle()
        for active in (self._texts, self._reasonings):
            for text in active.values():
                self._settle(text)
        return {**plain(self._head), "parts": self._parts.copy()}

    def emitted(self) -> JSONObject | None:
        if self._emitted_part_count is None:
            return None
        return {**self.message(), "parts": self._parts.copy()[: self._emitted_part_count]}

    def final(self) -> JSONObject:
        return self.message()

    def _settle(self, text: Growing) -> None:
        if text.behind:
            self._parts[text.index] = {**self._parts[text.index], "text": text.text()}

    def apply(self, chunk: JSON) -> bool:
        if not isinstance(chunk, dict):
            raise ChunkFault("malformed", "a chunk is an object")
        kind = chunk.get("type")
        if kind == "text-delta":
            emits = self._grow(self._texts, chunk)
        elif kind == "reasoning-delta":
            emits = self._grow(self._reasonings, chunk)
        elif kind == "tool-input-delta":
            self._tools.input_delta(chunk)
            emits = True
        else:
            emits = self._apply_rare(chunk)
        if emits:
            self._emitted_part_count = len(self._parts)
        return emits

    def _apply_rare(self, chunk: JSONObject) -> bool:
        kind = string(chunk, "type")
        check_depth(chunk)
        if kind in self._rules:
            return self._rules[kind](self, chunk)
        if kind in ToolParts.rules:
            ToolParts.rules[kind](self._tools, chunk)
            return True
        return kind.startswith(_DATA_PREFIX) and self._data_part(chunk)

    # -- text and reasoning --------------------------------------------------------------------------------------------

    def _grow(self, active: dict[str, Growing], chunk: JSONObject) -> bool:
        text_id = chunk.get("id")
        delta = chunk.get("delta")
        if not isinstance(text_id, str) or not isinstance(delta, str):
            raise ChunkFault("malformed", "a delta has a string `id` and `delta`")
        text = active.get(text_id)
        if text is None:
            raise FatalChunk("no-such-part", f"{chunk['type']} for part {text_id!r}, which has not started")
        if chunk.get("providerMetadata") is not None:
            check_depth(chunk)
            self._parts[text.index] = {**self._parts[text.index], "providerMetadata": chunk["providerMetadata"]}
        text.pieces.append(delta)
        return True

    def _text_start(self, chunk: JSONObject) -> bool:
        return self._begin(self._texts, chunk, {"type": "text"})

    def _reasoning_start(self, chunk: JSONObject) -> bool:
        return self._begin(self._reasonings, chunk, {"type": "reasoning", "id": chunk.get("id")})

    def _begin(self, active: dict[str, Growing], chunk: JSONObject, part: JSONObject) -> bool:
        text_id = string(chunk, "id")
        if text_id in active:
            self._settle(active[text_id])  # it stays as it is from now on
        index = self._parts.push({**part, "text": "", **_given(chunk, "providerMetadata"), "state": "streaming"})
        active[text_id] = Growing(index)
        return True

    def _text_end(self, chunk: JSONObject) -> bool:
        return self._end(self._texts, chunk, _given_not_null(chunk, "citations", "providerMetadata"))

    def _reasoning_end(self, chunk: JSONObject) -> bool:
        return self._end(self._reasonings, chunk, _given_not_null(chunk, "providerMetadata"))

    def _end(self, active: dict[str, Growing], chunk: JSONObject, given: JSONObject) -> bool:
        text_id = string(chunk, "id")
        text = active.pop(text_id, None)
        if text is None:
            raise FatalChunk("no-such-part", f"{chunk['type']} for part {text_id!r}, which has not started")
        self._settle(text)
        self._parts[text.index] = {**self._parts[text.index], "state": "done", **given}
        return True

    # -- parts that come whole -----------------------------------------------------------------------------------------

    def _file(self, chunk: JSONObject) -> bool:
        return self._push({**_given(chunk, "type", "mediaType", "url"), **_given_not_null(chunk, "providerMetadata")})

    def _source_url(self, chunk: JSONObject) -> bool:
        return self._push(_given(chunk, "type", "sourceId", "url", "title", "providerMetadata"))

    def _source_document(self, chunk: JSONObject) -> bool:
        return self._push(_given(chunk, "type", "sourceId", "mediaType", "title", "filename", "providerMetadata"))

    def _custom(self, chunk: JSONObject) -> bool:
        return self._push(_given(chunk, "type", "kind", "providerMetadata"))

    def _steering_message(self, chunk: JSONObject) -> bool:
        return self._push(_given(chunk, "type", "id", "parts"))

    def _data_part(self, chunk: JSONObject) -> bool:
        if chunk.get("transient") is True:
            return False
        data_id = chunk.get("id")
        known = self._data.get((string(chunk, "type"), data_id)) if isinstance(data_id, str) else None
        if known is None:
            self._push(chunk)
            self._index_data(len(self._parts) - 1)
        else:
            part = self._parts.editable(known)
            part.pop("data", None)
            part.update(_given(chunk, "data"))
        return True

    def _index_data(self, index: int) -> None:
        part = self._parts[index]
        kind, data_id = part["type"], part.get("id")
        if isinstance(kind, str) and kind.startswith(_DATA_PREFIX) and isinstance(data_id, str):
            self._data.setdefault((kind, data_id), index)

    def _push(self, part: JSONObject) -> bool:
        self._parts.push(part)
        return True

    # -- the message and its steps ---------------------------------------------------------------------------------

    def _start(self, chunk: JSONObject) -> bool:
        message_id = chunk.get("messageId")
        if message_id is not None:
            message_id = string(chunk, "messageId")
            if message_id != self._head["id"]:
                self._reset(empty_message(message_id))
        return self._merge_metadata(chunk) or message_id is not None

    def _finish(self, chunk: JSONObject) -> bool:
        if chunk.get("finishReason") is not None:
            self._finish_reason = string(chunk, "finishReason")
        return self._merge_metadata(chunk)

    def _merge_metadata(self, chunk: JSONObject) -> bool:
        more = chunk.get("messageMetadata")
        if more is None:
            return False
        merge(self._head, more)
        return True

    def _start_step(self, _chunk: JSONObject) -> bool:
        self._parts.start_step()
        return False

    def _reset_step(self, _chunk: JSONObject) -> bool:
        step_start = self._parts.step_start
        for active in (self._texts, self._reasonings):
            for text in active.values():
                self._settle(text)
            active.clear()
        self._tools.settle()
        dropped = self._parts.drop_step()
        self._tools.drop(dropped)
        for part in dropped:
            kind, data_id = part["type"], part.get("id")
            if isinstance(kind, str) and isinstance(data_id, str) and self._data.get((kind, data_id), -1) >= step_start:
                del self._data[kind, data_id]
        return bool(dropped)

    def _error(self, chunk: JSONObject) -> bool:
        text = chunk.get("errorText")
        raise ChunkFault("reported", text if isinstance(text, str) else "")

    _rules: ClassVar[Mapping[str, Callable[[AISDKDraft, JSONObject], bool]]] = {
        "start": _start,
        "finish": _finish,
        "message-metadata": _merge_metadata,
        "start-step": _start_step,
        "reset-step": _reset_step,
        "text-start": _text_start,
        "text-end": _text_end,
        "reasoning-start": _reasoning_start,
        "reasoning-end": _reasoning_end,
        "source-url": _source_url,
        "source-document": _source_document,
        "file": _file,
        "reasoning-file": _file,
        "custom": _custom,
        "steering-message": _steering_message,
        "error": _error,
    }
    """`finish-step`, `abort` and types that nobody knows are not here: they have no effect on the message."""


def _given(chunk: JSONObject, *fields: str) -> JSONObject:
    return {field: chunk[field] for field in fields if field in chunk}


def _given_not_null(chunk: JSONObject, *fields: str) -> JSONObject:
    return {field: chunk[field] for field in fields if chunk.get(field) is not None}
