"""Adjacent deltas of one part as one chunk that folds to the same message. Pure.

A run is a row of chunks that are alike in everything but the text they add: same type, same part, nothing else said. It
is joined into its last chunk, with the texts of all. What may be joined is told below, one table for each format; what
is in no table travels as it was written. That the message stays equal is held by a property test over every vector of
every format (`tests/producer/test_coalesce.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec

from producer.encoding import encode_chunk

__all__ = ["Coalescer", "Delta", "Merging", "Run", "coalesced", "has_no_effect"]

Path: TypeAlias = tuple[str | int, ...]
"""Where in a chunk something is: fields of objects and places in arrays."""

_encode = msgspec.json.Encoder().encode


class Merging(StrEnum):
    """When adjacent deltas of one part become one chunk. Lossless: the folded message is equal."""

    NEVER = "never"  # the log has each chunk as it was written
    PRESSED = "pressed"  # while as much is under way as may be: the log then has fewer chunks, and the buffer more room
    ALWAYS = "always"  # whatever waits in the same batch


@dataclass(frozen=True, slots=True)
class Delta:
    """A chunk that only adds text to something."""

    shell: bytes
    """All of the chunk but its text, and but what may vary: equal shells may be joined."""
    path: Path
    text: str
    text_bytes: int
    """Of its JSON, without the quotes."""
    encoded: bytes
    """The whole chunk."""

    @property
    def shell_bytes(self) -> int:
        return len(self.encoded) - self.text_bytes


class Run:
    """Deltas that become one chunk."""

    __slots__ = ("_last", "_shell_bytes", "_texts", "bytes")

    def __init__(self, first: Delta) -> None:
        self._last = first
        self._texts = [first.text]
        self._shell_bytes = first.shell_bytes
        self.bytes = len(first.encoded)
        """What the chunk takes at most."""

    def cost(self, delta: Delta) -> int | None:
        """How many bytes longer this delta makes it; None if it belongs to something else."""
        if delta.shell != self._last.shell or delta.path != self._last.path:
            return None
        return delta.text_bytes + max(0, delta.shell_bytes - self._shell_bytes)

    def add(self, delta: Delta, cost: int) -> None:
        """Take it. `cost` is what `cost` said."""
        self._texts.append(delta.text)
        self._last = delta
        self._shell_bytes = max(self._shell_bytes, delta.shell_bytes)
        self.bytes += cost

    def encoded(self) -> bytes:
        """The chunk. What may vary is the last one's."""
        if len(self._texts) == 1:
            return self._last.encoded
        whole = _with(json.loads(self._last.encoded), self._last.path, "".join(self._texts))
        try:
            return _encode(whole)
        except OverflowError:  # an integer beyond 64 bits
            return encode_chunk(whole)


class Coalescer:
    """Finds the deltas among the chunks of one generation, in the order in which they are written."""

    def __init__(self, format_name: str) -> None:
        self._find = _FINDERS.get(format_name, _nothing)
        self._varying = _VARYING.get(format_name, frozenset())
        self._ends_at = _ENDS_AT.get(format_name, _never)
        self._ended = False

    def delta(self, chunk: Any, encoded: bytes) -> Delta | None:
        """The chunk as a delta; None if it has to travel as it is."""
        self._ended = self._ended or self._ends_at(chunk)
        path = None if self._ended else self._find(chunk)
        if path is None:
            return None
        text = _at(chunk, path)
        if not isinstance(text, str) or not text:
            return None  # an empty one may be an error, or a start
        try:
            text_bytes = len(_encode(text)) - 2
            shell = _encode(_without(_with(chunk, path, ""), self._varying))
        except (UnicodeEncodeError, OverflowError, TypeError, ValueError):
            return None  # half a surrogate pair: joined, it would be escaped, and every other character with it
        return Delta(shell, path, text, text_bytes, encoded)


def coalesced(format_name: str, chunks: Iterable[Any]) -> Iterator[Any]:
    """The chunks with every run joined."""
    coalescer = Coalescer(format_name)
    run: Run | None = None
    for chunk in chunks:
        delta = coalescer.delta(chunk, encode_chunk(chunk))
        cost = None if run is None or delta is None else run.cost(delta)
        if run is not None and delta is not None and cost is not None:
            run.add(delta, cost)
            continue
        if run is not None:
            yield json.loads(run.encoded())
        run = None if delta is None else Run(delta)
        if run is None:
            yield chunk
    if run is not None:
        yield json.loads(run.encoded())


# -- what may be joined, by format -------------------------------------------------------------------------------------


def _plain_text(chunk: Any) -> Path | None:
    if isinstance(chunk, str):
        return ()
    if isinstance(chunk, dict) and len(chunk) == 1:
        return next(((field,) for field in ("text", "delta") if field in chunk), None)
    return None


_Fields: TypeAlias = Mapping[str, tuple[frozenset[str], str]]
"""By type: the fields that a joinable chunk has, no more and no less, and the one with its text."""


def _delta(*ids: str, text: str = "delta", type: str = "type") -> tuple[frozenset[str], str]:  # noqa: A002  its name
    return frozenset({type, *ids, text}), text


_AI_SDK: Final[_Fields] = {
    "text-delta": _delta("id"),
    "reasoning-delta": _delta("id"),
    "tool-input-delta": _delta("toolCallId", text="inputTextDelta"),
}
_AG_UI: Final[_Fields] = {
    "TEXT_MESSAGE_CONTENT": _delta("messageId"),
    "REASONING_MESSAGE_CONTENT": _delta("messageId"),
    "TOOL_CALL_ARGS": _delta("toolCallId"),
}
_ITEM: Final = ("item_id", "output_index")
_OPENAI_RESPONSES: Final[_Fields] = {
    "response.output_text.delta": _delta(*_ITEM, "content_index"),
    "response.refusal.delta": _delta(*_ITEM, "content_index"),
    "response.reasoning_text.delta": _delta(*_ITEM, "content_index"),
    "response.reasoning_summary_text.delta": _delta(*_ITEM, "summary_index"),
    "response.function_call_arguments.delta": _delta(*_ITEM),
    "response.custom_tool_call_input.delta": _delta(*_ITEM),
    "response.mcp_call_arguments.delta": _delta(*_ITEM),
    "response.code_interpreter_call_code.delta": _delta(*_ITEM),
}
_EMPTY_LISTS: Final = frozenset({"logprobs"})
"""Fields that say nothing while they are an empty list."""


def _typed(rules: _Fields, varying: frozenset[str]) -> Callable[[Any], Path | None]:
    def find(chunk: Any) -> Path | None:
        rule = rules.get(chunk["type"]) if isinstance(chunk, dict) and isinstance(chunk.get("type"), str) else None
        if rule is None:
            return None
        fields, text = rule
        said = {field for field in chunk if not (field in varying or (field in _EMPTY_LISTS and chunk[field] == []))}
        return (text,) if said == fields else None

    return find


_ANTHROPIC: Final = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def _anthropic(chunk: Any) -> Path | None:
    if not isinstance(chunk, dict) or chunk.keys() != {"type", "index", "delta"}:
        return None
    delta = chunk["delta"]
    if chunk["type"] != "content_block_delta" or not isinstance(delta, dict):
        return None
    kind = delta.get("type")
    text = _ANTHROPIC.get(kind) if isinstance(kind, str) else None
    return ("delta", text) if text is not None and delta.keys() == {"type", text} else None


def _openai_chat(chunk: Any) -> Path | None:
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or chunk.get("usage") is not None or "error" in chunk:
        return None
    choice = choices[0]
    if not isinstance(choice, dict) or any(choice.get(field) is not None for field in ("finish_reason", "logprobs")):
        return None
    delta = choice.get("delta")
    if not isinstance(delta, dict) or len(delta) != 1:
        return None
    inside = next(((field,) for field in ("content", "refusal") if field in delta), None) or _arguments(delta)
    return None if inside is None else ("choices", 0, "delta", *inside)


def _arguments(delta: Mapping[str, Any]) -> Path | None:
    calls = delta.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and len(calls) == 1 else None
    if not isinstance(call, dict) or call.keys() != {"index", "function"}:
        return None
    function = call["function"]
    if not isinstance(function, dict) or function.keys() != {"arguments"}:
        return None
    return ("tool_calls", 0, "function", "arguments")


def _nothing(_: Any) -> None:
    return None


_VARYING: Final[Mapping[str, frozenset[str]]] = {
    "ag-ui-client": frozenset({"timestamp"}),
    "ag-ui-tanstack": frozenset({"timestamp"}),
    "openai-chat": frozenset({"obfuscation"}),  # padding of random length against listeners
    "openai-responses": frozenset({"sequence_number", "obfuscation"}),
}
"""Fields that differ from delta to delta and that no message has, or has of the last one only."""

_FINDERS: Final[Mapping[str, Callable[[Any], Path | None]]] = {
    "text": _plain_text,
    "ai-sdk-ui-message-stream": _typed(_AI_SDK, frozenset()),
    "ag-ui-client": _typed(_AG_UI, _VARYING["ag-ui-client"]),
    "ag-ui-tanstack": _typed(_AG_UI, _VARYING["ag-ui-tanstack"]),
    "anthropic-messages": _anthropic,
    "openai-chat": _openai_chat,
    "openai-responses": _typed(_OPENAI_RESPONSES, _VARYING["openai-responses"]),
}


def _begins_structured_output(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and event.get("type") == "CUSTOM"
        and str(event.get("name")).startswith("structured-output")
    )


def _never(_: Any) -> bool:
    return False


_ENDS_AT: Final[Mapping[str, Callable[[Any], bool]]] = {"ag-ui-tanstack": _begins_structured_output}
"""What ends all joining: TanStack shows the value of a structured number as of the last delta that had one, so which
value stays depends on where the deltas were cut."""


# -- what may be dropped -----------------------------------------------------------------------------------------------


def has_no_effect(format_name: str, chunk: Any) -> bool:
    """Whether the chunk leaves the folded message as it is: what may be dropped first when there is no room.

    Progress that only readers of that moment see (the AI SDK's `transient` data), and signs of life. A policy for
    `drop` of `Producer.generation`.
    """
    if not isinstance(chunk, dict):
        return False
    kind = chunk.get("type")
    if format_name == "ai-sdk-ui-message-stream":
        return isinstance(kind, str) and kind.startswith("data-") and chunk.get("transient") is True
    return kind == _SIGNS_OF_LIFE.get(format_name, ...)


_SIGNS_OF_LIFE: Final = {"anthropic-messages": "ping", "openai-responses": "keepalive"}


# -- places in chunks --------------------------------------------------------------------------------------------------


def _at(chunk: Any, path: Path) -> Any:
    for step in path:
        chunk = chunk[step]
    return chunk


def _with(chunk: Any, path: Path, value: Any) -> Any:
    """A copy with another value there."""
    if not path:
        return value
    step, *rest = path
    if isinstance(chunk, list):
        copy: Any = [*chunk]
    else:
        copy = {**chunk}
    copy[step] = _with(chunk[step], tuple(rest), value)
    return copy


def _without(chunk: Any, fields: frozenset[str]) -> Any:
    if not fields or not isinstance(chunk, dict):
        return chunk
    return {field: value for field, value in chunk.items() if field not in fields}
