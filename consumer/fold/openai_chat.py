"""OpenAI's `chat.completion.chunk`, folded as `ChatCompletionStream` of `openai` 7 does (FOLDS section 6).

The message is the completion as accumulated so far, `{id, model, …, choices: [{index, finish_reason, logprobs,
message}]}`, and `{}` before the first chunk; `final` is the finished completion. Left out is what only the package
itself adds: `parsed`, `parsed_arguments`, and the random id of a tool call that came without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import msgspec

from consumer.fold.draft import BadMessage, ChunkFault, FatalChunk, chunk_object
from consumer.fold.tree import Items, Object, array_index, fill_to, grow, own_list, own_object, plain, text_at
from consumer.plain import JSON, JSONObject

CHOICES_MAX: Final = 128
"""Indexes from here on are an error in the reference, of choices and of a choice's tool calls."""


# The fields that the fold itself reads, checked before anything changes. Null counts as absent.


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Custom(msgspec.Struct):
    name: str | None = None
    input: str | None = None


class _ToolCall(msgspec.Struct):
    index: Any = None
    function: _Function | None = None
    custom: _Custom | None = None


class _Audio(msgspec.Struct):
    data: str | None = None
    transcript: str | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    audio: _Audio | None = None
    function_call: _Function | None = None
    tool_calls: list[_ToolCall] | None = None


class _LogProbs(msgspec.Struct):
    content: list[Any] | None = None
    refusal: list[Any] | None = None


class _Choice(msgspec.Struct):
    index: Any = None
    delta: _Delta | None = None
    logprobs: _LogProbs | None = None
    message: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


class _Calls(msgspec.Struct, forbid_unknown_fields=True):
    """Which tool call of a choice is streaming, and which ones have been reported as done."""

    current: int | None = None
    done: list[int] = msgspec.field(default_factory=list)


class _State(msgspec.Struct, forbid_unknown_fields=True):
    completion: dict[str, Any] | None
    calls: dict[str, _Calls]
    audio_done: list[int]


class ChatCompletionDraft:
    """One completion with its choices."""

    __slots__ = ("_audio_done", "_calls", "_completion")

    def __init__(self) -> None:
        self._completion: Object | None = None
        self._calls: dict[int, _Calls] = {}
        self._audio_done: set[int] = set()
        """Choices whose last delta told only when their audio expires: that ends them without a finish reason."""

    @classmethod
    def start(cls, initial: JSONObject | None) -> Self:
        if initial is not None:
            raise BadMessage("a completion cannot be continued")
        return cls()

    @classmethod
    def restore(cls, state: JSON) -> Self:
        stored = msgspec.convert(state, _State)
        draft = cls()
        draft._completion = None if stored.completion is None else Object(stored.completion)
        draft._calls = {int(index): calls for index, calls in stored.calls.items()}
        draft._audio_done = set(stored.audio_done)
        return draft

    def state(self) -> JSONObject:
        return {
            "completion": plain(self._completion),
            "calls": {str(index): msgspec.to_builtins(calls) for index, calls in self._calls.items()},
            "audio_done": [*sorted(self._audio_done)],
        }

    def message(self) -> JSONObject:
        message: JSONObject = plain(self._completion) or {}
        return message

    def emitted(self) -> JSONObject | None:
        return None if self._completion is None else self.message()

    @property
    def finish_reason(self) -> str | None:
        choices = self._completion["choices"] if self._completion else []
        return text_at(choices[0], "finish_reason") if choices and isinstance(choices[0], dict) else None

    def apply(self, chunk: JSON) -> bool:
        given = chunk_object(chunk)
        if given.get("error"):
            raise FatalChunk("reported", _error_text(given["error"]))
        choices = _checked(given)
        completion = self._take_head(given)
        for choice in choices:
            self._add_choice(completion, choice)
        for choice in choices:
            self._report_calls(completion, choice)
        return True

    def _take_head(self, chunk: JSONObject) -> Object:
        if self._completion is None:
            self._completion = Object(choices=Items())
            _assign_others(self._completion, chunk, _NOT_OF_HEAD)
        elif chunk.get("id"):
            _assign_others(self._completion, chunk, _NOT_OF_HEAD)
        return self._completion

    # -- accumulating --------------------------------------------------------------------------------------------

    def _add_choice(self, completion: Object, given: JSONObject) -> None:
        index = array_index(given.get("index")) or 0
        choices = own_list(completion, "choices")
        if index >= len(choices):
            fill_to(choices, index + 1)
        if not isinstance(choices[index], dict):
            choices[index] = Object(finish_reason=None, index=given["index"], message={}, logprobs=None)
        choice = own_object(choices, index)
        _add_logprobs(choice, given.get("logprobs"))
        if given.get("finish_reason"):
            choice["finish_reason"] = given["finish_reason"]
        _assign_others(choice, given, _READ_OF_CHOICE)
        delta = given.get("delta")
        if isinstance(delta, dict):
            self._audio_done.discard(index)
            if _tells_only_expiry(delta):
                self._audio_done.add(index)
            _add_delta(own_object(choice, "message"), delta)

    # -- what the reference reports on the way, where it may fail --------------------------------------------------

    def _report_calls(self, completion: Object, given: JSONObject) -> None:
        index = array_index(given.get("index")) or 0
        choice = completion["choices"][index]
        calls = self._calls.get(index)
        if calls is not None and choice.get("finish_reason"):
            _call_done(choice, calls)
        delta: Any = given.get("delta") or {}
        if delta.get("tool_calls"):
            self._report_streaming(choice, index, [array_index(call["index"]) for call in delta["tool_calls"]])

    def _report_streaming(self, choice: Any, index: int, call_indexes: list[int | None]) -> None:
        calls = self._calls.setdefault(index, _Calls())
        for call_index in call_indexes:
            if calls.current != call_index:
                _call_done(choice, calls)
            calls.current = call_index
        for call_index in call_indexes:
            call = choice["message"]["tool_calls"][call_index]
            if call.get("type") == "function":
                _check_function(call)

    # -- the end ---------------------------------------------------------------------------------------------------

    def final(self) -> JSONObject | None:
        choices = self.message().get("choices")
        if not isinstance(choices, list) or not choices:
            return None
        finished = [self._finished(choice) for choice in choices]
        if None in finished:
            return None
        completion = {**self.message(), "choices": finished, "object": "chat.completion"}
        if not completion.get("system_fingerprint"):
            completion.pop("system_fingerprint", None)
        return completion

    def _finished(self, choice: Any) -> JSON:
        """The choice as the finished completion has it; None if something is missing for that."""
        if not isinstance(choice, dict):
            return None
        reason = choice.get("finish_reason")
        if reason is None and choice.get("index") in self._audio_done and _audio_is_complete(choice["message"]):
            reason = "stop"
        message = _finished_message(choice["message"])
        return {**choice, "finish_reason": reason, "message": message} if reason and message is not None else None


def _checked(chunk: JSONObject) -> list[Any]:
    """The chunk's choices. Raises ChunkFault if the fold cannot read it, FatalChunk if an index is out of bounds."""
    try:
        read = msgspec.convert(chunk, _Chunk)
    except (msgspec.ValidationError, UnicodeError) as error:  # it cannot quote half a surrogate pair
        raise ChunkFault("malformed", str(error)) from error
    for choice in read.choices:
        _check_index(choice.index, "choice")
        for call in (choice.delta and choice.delta.tool_calls) or ():
            _check_index(call.index, "tool call")
    choices: Any = chunk["choices"]
    return [*choices]


def _check_index(value: JSON, of: str) -> None:
    index = array_index(value)
    if index is None or index >= CHOICES_MAX:
        raise FatalChunk("malformed", f"the index of a {of} is a number from 0 to {CHOICES_MAX - 1}")


def _add_logprobs(choice: Object, given: Any) -> None:
    if not isinstance(given, dict):
        return
    if not isinstance(choice.get("logprobs"), dict):
        choice["logprobs"] = Object(given)
        return
    logprobs = own_object(choice, "logprobs")
    _assign_others(logprobs, given, frozenset(_GROWING_LOGPROBS))
    for field in _GROWING_LOGPROBS:
        if given.get(field) is not None:
            own_list(logprobs, field).extend(given[field])


def _add_delta(message: Object, delta: Mapping[str, Any]) -> None:
    for field, value in delta.items():
        if field not in _READ:
            message[field] = value
        elif value is not None:
            _DELTA_RULES[field](message, value)


def _add_content(message: Object, text: str) -> None:
    grow(message, "content", text)


def _add_refusal(message: Object, text: str) -> None:
    if text:
        grow(message, "refusal", text)


def _set_role(message: Object, role: Any) -> None:
    if role:
        message["role"] = role


def _add_audio(message: Object, given: Mapping[str, Any]) -> None:
    audio = own_object(message, "audio")
    for field in ("id", "expires_at"):
        if given.get(field) is not None:
            audio[field] = given[field]
    for field in ("data", "transcript"):
        if given.get(field) is not None:
            grow(audio, field, given[field])


def _add_function_call(message: Object, given: Mapping[str, Any]) -> None:
    if not isinstance(message.get("function_call"), dict):
        message["function_call"] = given
        return
    call = own_object(message, "function_call")
    if given.get("name"):
        call["name"] = given["name"]
    if given.get("arguments"):
        grow(call, "arguments", given["arguments"])


def _add_tool_calls(message: Object, given: list[Any]) -> None:
    calls = own_list(message, "tool_calls")
    for call in given:
        _add_tool_call(calls, call)


def _add_tool_call(calls: Items, given: Mapping[str, Any]) -> None:
    index = array_index(given["index"]) or 0
    if index >= len(calls):
        fill_to(calls, index + 1)
    call = own_object(calls, index)
    _assign_others(call, given, _READ_OF_CALL)
    for field in ("id", "type"):
        if given.get(field):
            call[field] = given[field]
    for kind, text in (("custom", "input"), ("function", "arguments")):
        if given.get(kind) is not None:
            _add_named(call, kind, text, given[kind])


def _add_named(call: Object, kind: str, text: str, given: Mapping[str, Any]) -> None:
    if not isinstance(call.get(kind), dict):
        call[kind] = Object({"name": "", text: ""})
    named = own_object(call, kind)
    if given.get("name"):
        named["name"] = given["name"]
    if given.get(text):
        grow(named, text, given[text])


def _call_done(choice: Any, calls: _Calls) -> None:
    """The call that was streaming is complete. The reference fails here if it cannot tell what kind of call it is."""
    if calls.current is None or calls.current in calls.done:
        return
    tool_calls = choice["message"].get("tool_calls") or []
    call = tool_calls[calls.current] if calls.current < len(tool_calls) else None
    if not isinstance(call, dict) or not call.get("type"):
        raise FatalChunk("malformed", "a tool call without `type` is done")
    if call["type"] == "function":
        _check_function(call)
        if choice.get("finish_reason"):
            calls.done.append(calls.current)


def _check_function(call: Mapping[str, Any]) -> None:
    if not isinstance(call.get("function"), dict):
        raise FatalChunk("malformed", "a tool call of type `function` has no `function`")


def _tells_only_expiry(delta: Mapping[str, Any]) -> bool:
    audio: Any = delta.get("audio")
    if audio is None or audio.get("expires_at") is None:
        return False
    told = {field for field, value in delta.items() if value is not None or field not in _READ}
    return told == {"audio"} and all(audio.get(field) is None for field in ("id", "data", "transcript"))


def _audio_is_complete(message: Mapping[str, Any]) -> bool:
    audio = message.get("audio")
    fields = ("id", "data", "transcript", "expires_at")
    return isinstance(audio, dict) and all(audio.get(field) is not None for field in fields)


def _finished_message(message: Mapping[str, Any]) -> JSONObject | None:
    if not message.get("role"):
        return None
    finished = {**message, "content": message.get("content"), "refusal": message.get("refusal")}
    call, calls = message.get("function_call"), message.get("tool_calls")
    if isinstance(call, dict):
        return _with_function_call(finished, call)
    if not isinstance(calls, list):
        return finished
    tool_calls = [_finished_call(call) for call in calls]
    return None if None in tool_calls else {**finished, "tool_calls": tool_calls}


def _with_function_call(finished: JSONObject, call: Any) -> JSONObject | None:
    if call.get("arguments") is None or not call.get("name"):
        return None
    kept: JSONObject = {
        field: finished[field] for field in ("audio", "content", "role", "refusal") if field in finished
    }
    return {**kept, "function_call": {"arguments": call["arguments"], "name": call["name"]}}


def _finished_call(call: Any) -> JSON:
    if not isinstance(call, dict) or call.get("type") is None:
        return None
    if call["type"] == "custom":
        custom = call.get("custom") or {}
        if custom.get("name") is None:
            return None
        return {**call, "custom": {"input": "", **custom}}
    function = call.get("function") or {}
    if function.get("name") is None or function.get("arguments") is None:
        return None
    return {**call}


def _assign_others(target: Object, source: Mapping[str, Any], fields: frozenset[str]) -> None:
    """What the fold does not read itself is as the last chunk had it."""
    for field, value in source.items():
        if field not in fields:
            target[field] = value


def _error_text(error: Any) -> str:
    text = error.get("message") if isinstance(error, dict) else error
    return text if isinstance(text, str) else ""


_NOT_OF_HEAD: Final = frozenset({"choices", "obfuscation"})
_READ_OF_CHOICE: Final = frozenset({"delta", "finish_reason", "index", "logprobs"})
_READ_OF_CALL: Final = frozenset({"index", "id", "type", "function", "custom"})
_GROWING_LOGPROBS: Final = ("content", "refusal")
_DELTA_RULES: Final[Mapping[str, Callable[[Object, Any], None]]] = {
    "audio": _add_audio,
    "content": _add_content,
    "refusal": _add_refusal,
    "function_call": _add_function_call,
    "role": _set_role,
    "tool_calls": _add_tool_calls,
}
"""By field of a delta, where it is not null. Others are assigned."""
_READ: Final = frozenset(_DELTA_RULES)
