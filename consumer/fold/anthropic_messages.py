"""Anthropic's message stream events, folded as `MessageStream` of `@anthropic-ai/sdk` 1 does (FOLDS section 8).

The message is the one of `message_start` with its `content` blocks as far as they have come, and `{}` before it. The
input of a tool call is the value of the JSON text that has arrived; a block has none while that text is wrong.
`final` is the message as it was at `message_stop`. `parsed_output`, which only the package adds, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Self

import msgspec
from msgspec import UNSET

from consumer.fold.draft import BadMessage, ChunkFault, FatalChunk, chunk_object, string
from consumer.fold.growing import Growing
from consumer.fold.partial_json_tokens import AnthropicParser
from consumer.fold.tree import Items, Object, array_index, grow, own_list, own_object, plain, text_at
from consumer.plain import JSON, JSONObject

_TOOL_USES: Final = frozenset({"tool_use", "server_tool_use"})
_USAGE_IF_GIVEN: Final = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "server_tool_use",
    "output_tokens_details",
)


class _Input:
    """The input of a tool call: its text, which grows, and the value of that."""

    __slots__ = ("_parsed_text", "_parser", "_value", "text")

    def __init__(self, text: str = "") -> None:
        self.text = Growing(-1, text)
        self._parser = AnthropicParser()
        self._parsed_text = ""
        self._value: JSON | msgspec.UnsetType = {}

    def value(self) -> JSON | msgspec.UnsetType:
        """UNSET while the text is wrong. Costs the length of the text once after each time that it has grown."""
        text = self.text.text()
        if text != self._parsed_text:
            self._parsed_text, self._value = text, self._parser.parse(text).value
        return self._value


class _State(msgspec.Struct, forbid_unknown_fields=True):
    message: dict[str, Any] | None
    inputs: dict[str, str]
    final: dict[str, Any] | None


class MessageDraft:
    """One message. Its blocks are found by their place in `content`."""

    __slots__ = ("_final", "_inputs", "_message")

    def __init__(self) -> None:
        self._message: Object | None = None
        self._inputs: dict[int, _Input] = {}
        """Of the blocks that have been sent input in pieces; it takes the place of the `input` they began with."""
        self._final: JSONObject | None = None

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        if initial is not None:
            raise BadMessage("a message of this format cannot be continued")
        return cls()

    @classmethod
    def restore(cls, state: JSON) -> Self:
        stored = msgspec.convert(state, _State)
        draft = cls()
        draft._message = None if stored.message is None else Object(stored.message)
        draft._inputs = {int(index): _Input(text) for index, text in stored.inputs.items()}
        content = (stored.message or {}).get("content")
        if any(_place(content if isinstance(content, list) else [], index) is None for index in draft._inputs):
            raise ValueError("input of a block that is not there")
        draft._final = stored.final
        return draft

    def state(self) -> JSONObject:
        return {
            "message": plain(self._message),
            "inputs": {str(index): given.text.text() for index, given in self._inputs.items()},
            "final": self._final,
        }

    def message(self) -> JSONObject:
        message: JSONObject = plain(self._message) or {}
        content: Any = message.get("content")
        if self._inputs:
            message["content"] = content = [*content]
        for index, given in self._inputs.items():
            content[index] = _with_input(content[index], given.value())
        return message

    def emitted(self) -> JSONObject | None:
        return None if self._message is None else self.message()

    def final(self) -> JSONObject | None:
        if self._final is None or self._message is None:
            return None
        return {**self._final, "usage": plain(self._message["usage"])}  # which the reference shares with its snapshot

    @property
    def finish_reason(self) -> str | None:
        return None if self._message is None else text_at(self._message, "stop_reason")

    def apply(self, chunk: JSON) -> bool:
        event = chunk_object(chunk)
        kind = string(event, "type")
        if kind == "error":
            raise FatalChunk("reported", _error_text(event.get("error")))
        if kind == "message_start":
            return self._start(event)
        if self._message is None or kind not in self._rules:
            return False
        return self._rules[kind](self, self._message, event)

    def _start(self, event: JSONObject) -> bool:
        if self._message is not None:
            raise FatalChunk("out-of-place", "a second `message_start`")
        message = _object(event, "message")
        if not isinstance(message.get("content"), list) or not isinstance(message.get("usage"), dict):
            raise ChunkFault("malformed", "a message has a list `content` and an object `usage`")
        self._message = Object(message)
        return True

    def _message_delta(self, message: Object, event: JSONObject) -> bool:
        delta, given = _object(event, "delta"), _object(event, "usage")
        for field in ("stop_reason", "stop_sequence", "stop_details"):
            _assign(message, field, delta)
        if delta.get("container") is not None:
            message["container"] = delta["container"]
        usage = own_object(message, "usage")
        _assign(usage, "output_tokens", given)
        usage.update({field: given[field] for field in _USAGE_IF_GIVEN if given.get(field) is not None})
        return True

    def _message_stop(self, _message: Object, _event: JSONObject) -> bool:
        self._final = self.message()
        return False

    # -- blocks ----------------------------------------------------------------------------------------------------

    def _block_start(self, message: Object, event: JSONObject) -> bool:
        own_list(message, "content").append({**_object(event, "content_block")})
        return True

    def _block_delta(self, message: Object, event: JSONObject) -> bool:
        delta = _object(event, "delta")
        kind = string(delta, "type")
        if kind not in self._delta_rules:
            return False
        content = own_list(message, "content")
        block_types, rule = self._delta_rules[kind]
        index = _place(content, event.get("index"))
        if index is not None and text_at(content[index], "type") in block_types:
            rule(self, own_object(content, index), index, delta)
            return True
        if not content:
            raise FatalChunk("no-such-part", "a delta before the first block")
        return False

    def _text_delta(self, block: Object, _index: int, delta: JSONObject) -> None:
        grow(block, "text", string(delta, "text"))

    def _citations_delta(self, block: Object, _index: int, delta: JSONObject) -> None:
        own_list(block, "citations").append(delta.get("citation"))

    def _thinking_delta(self, block: Object, _index: int, delta: JSONObject) -> None:
        grow(block, "thinking", string(delta, "thinking"))

    def _signature_delta(self, block: Object, _index: int, delta: JSONObject) -> None:
        _assign(block, "signature", delta)

    def _input_delta(self, _block: Object, index: int, delta: JSONObject) -> None:
        piece = string(delta, "partial_json")
        self._inputs.setdefault(index, _Input()).text.pieces.append(piece)

    def _block_stop(self, message: Object, event: JSONObject) -> bool:
        index = _place(message["content"], event.get("index"))
        given = None if index is None else self._inputs.get(index)
        if given is not None and given.value() is UNSET:
            raise FatalChunk("malformed", "the input of a tool call is not JSON")
        return False

    _rules: ClassVar[Mapping[str, Callable[[MessageDraft, Object, JSONObject], bool]]] = {
        "message_delta": _message_delta,
        "message_stop": _message_stop,
        "content_block_start": _block_start,
        "content_block_delta": _block_delta,
        "content_block_stop": _block_stop,
    }
    """`ping` and types that nobody knows are not here: they have no effect on the message."""

    _delta_rules: ClassVar[
        Mapping[str, tuple[frozenset[str], Callable[[MessageDraft, Object, int, JSONObject], None]]]
    ] = {
        "text_delta": (frozenset({"text"}), _text_delta),
        "citations_delta": (frozenset({"text"}), _citations_delta),
        "thinking_delta": (frozenset({"thinking"}), _thinking_delta),
        "signature_delta": (frozenset({"thinking"}), _signature_delta),
        "input_json_delta": (_TOOL_USES, _input_delta),
    }
    """By type of delta: the types of block that it is for, and what it does to one."""


def _place(content: Items | list[Any], index: JSON) -> int | None:
    """The place of a block in the content; None if there is no block with this index."""
    place = array_index(index)
    return place if place is not None and place < len(content) and isinstance(content[place], dict) else None


def _with_input(block: JSONObject, value: JSON | msgspec.UnsetType) -> JSONObject:
    if isinstance(value, msgspec.UnsetType):
        return {field: kept for field, kept in block.items() if field != "input"}
    return {**block, "input": value}


def _assign(holder: Object, field: str, source: JSONObject) -> None:
    """What an assignment does in JavaScript: what is absent there is absent here."""
    if field in source:
        holder[field] = source[field]
    else:
        holder.pop(field, None)


def _object(event: JSONObject, field: str) -> JSONObject:
    value = event.get(field)
    if isinstance(value, dict):
        return value
    raise ChunkFault("malformed", f"`{field}` is not an object")


def _error_text(error: JSON) -> str:
    text = error.get("message") if isinstance(error, dict) else error
    return text if isinstance(text, str) else ""
