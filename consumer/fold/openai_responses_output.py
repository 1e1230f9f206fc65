"""The output of an OpenAI response in the making: its items, and what each kind of event does to one (FOLDS section 7).

Every method raises FatalChunk where the reference raises: an index that is not there, an item of another id or type.
What the fold could not read at all is a ChunkFault. Both come before anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from consumer.fold.draft import FatalChunk, string
from consumer.fold.tree import Items, Object, array_index, grow, own_list, own_object
from consumer.plain import JSON, JSONObject, encode

Rule = Callable[[Object, JSONObject, Items], None]

_CALLS_WITHOUT_ID: Final = frozenset({"function_call", "custom_tool_call"})
_ROUTED_BY_CALL: Final = frozenset({"function_call", "custom_tool_call", "shell_call", "shell_call_output"})


# -- who an item is ------------------------------------------------------------------------------------------------


def identity(item: Mapping[str, Any]) -> str:
    """One text for all that tells an item from others, wherever it stands."""
    item_id = None if item.get("type") in _ROUTED_BY_CALL else item.get("id")
    return encode([item.get("type"), item_id, item.get("call_id")]).decode()


def identity_keys(item: Any) -> list[str]:
    """What no two items of a response may share. Raises FatalChunk if the item does not say who it is."""
    if not isinstance(item, dict) or not isinstance(item.get("type"), str):
        raise FatalChunk("malformed", "an output item has a string `type`")
    kind, keys = item["type"], []
    if "id" in item or kind not in _CALLS_WITHOUT_ID:
        keys.append(f"id:{_named(item, 'id', may_be_empty=kind == 'computer_call')}")
    if kind in _ROUTED_BY_CALL:
        keys.append(f"call:{kind}:{_named(item, 'call_id', may_be_empty=kind == 'function_call')}")
    return keys


def _named(item: Mapping[str, Any], field: str, *, may_be_empty: bool) -> str:
    value = item.get(field)
    if isinstance(value, str) and (value or may_be_empty):
        return value
    raise FatalChunk("malformed", f"an output item has a string `{field}`")


def check_replaceable(item: Mapping[str, Any], replacement: Any) -> None:
    """Raises FatalChunk if the second one is another item than the first."""
    identity_keys(item)
    identity_keys(replacement)
    kind = item["type"]
    gains_id = "id" not in item and kind in _CALLS_WITHOUT_ID
    if replacement["type"] != kind or (item.get("id") != replacement.get("id") and not gains_id):
        raise FatalChunk("out-of-place", "an output item changed its type or id")
    if kind in _ROUTED_BY_CALL and item.get("call_id") != replacement.get("call_id"):
        raise FatalChunk("out-of-place", "an output item changed its call id")


def element(items: Any, index: JSON, *, may_append: bool = False) -> int:
    """An index that is in the list, or at its end if that is allowed. Raises FatalChunk if there is no such."""
    at = array_index(index)
    if isinstance(items, list) and at is not None and at < len(items) + may_append:
        return at
    raise FatalChunk("no-such-part", "no part of the output at this index")


def check_target(item: Mapping[str, Any], event: JSONObject) -> None:
    """Raises FatalChunk if the event is for another item than the one at its index."""
    kind = str(event["type"])
    expected = _item_type(kind, event)
    if expected is None:
        return
    if not kind.startswith(_SHELL_COMMAND) and item.get("id") != _named(event, "item_id", may_be_empty=False):
        raise FatalChunk("no-such-part", "the item at this index has another id")
    if item.get("type") != expected:
        raise FatalChunk("no-such-part", f"the item at this index is no {expected}")


def _item_type(kind: str, event: JSONObject) -> str | None:
    if kind not in _CONTENT_PARTS:
        return ITEM_TYPES.get(kind)
    part = event.get("part")
    if not isinstance(part, dict):
        raise FatalChunk("malformed", "`part` is not an object")
    return "reasoning" if part.get("type") == "reasoning_text" else "message"


# -- what an event does to its item ------------------------------------------------------------------------------------


def _content(
    item: Object, event: JSONObject, *, of: str, field: str = "content", index: str = "content_index"
) -> Object:
    """The part that the event is for, to be edited. `of` is the type it must have; empty if any will do."""
    at = element(item.get(field), event.get(index))
    part = item[field][at]
    if not isinstance(part, dict) or (of and part.get("type") != of):
        raise FatalChunk("no-such-part", f"the part at this index is no {of or 'object'}")
    return own_object(own_list(item, field), at)


def _part_added(item: Object, event: JSONObject, _output: Items) -> None:
    made_here = item["type"] == "reasoning" and item.get("content") is None
    _append(item, "content", event.get("content_index"), event["part"], to=[] if made_here else item.get("content"))


def _append(item: Object, field: str, index: JSON, part: JSON, *, to: Any) -> None:
    if element(to, index, may_append=True) != len(to):
        raise FatalChunk("no-such-part", "a part is added at the end")
    own_list(item, field).append(part)


def _part_done(item: Object, event: JSONObject, _output: Items) -> None:
    _content(item, event, of="")
    at = element(item["content"], event.get("content_index"))
    item["content"][at] = event["part"]


def _text_delta(item: Object, event: JSONObject, _output: Items) -> None:
    delta = string(event, "delta")
    part = _content(item, event, of="output_text")
    logprobs: Any = event.get("logprobs")
    if logprobs and _are_logprobs(logprobs):
        own_list(part, "logprobs").extend(logprobs)
    grow(part, "text", delta)


def _text_done(item: Object, event: JSONObject, _output: Items) -> None:
    text = string(event, "text")
    part = _content(item, event, of="output_text")
    logprobs = event.get("logprobs")
    if _are_logprobs(logprobs) and (logprobs or part.get("logprobs")):
        part["logprobs"] = logprobs
    part["text"] = text


def _annotation_added(item: Object, event: JSONObject, _output: Items) -> None:
    part = _content(item, event, of="output_text")
    at = element(part.get("annotations"), event.get("annotation_index"), may_append=True)
    _put(own_list(part, "annotations"), at, event.get("annotation"))


def _summary_added(item: Object, event: JSONObject, _output: Items) -> None:
    _append(item, "summary", event.get("summary_index"), event.get("part"), to=item.get("summary"))


def _summary_done(item: Object, event: JSONObject, _output: Items) -> None:
    at = element(item.get("summary"), event.get("summary_index"))
    own_list(item, "summary")[at] = event.get("part")


def _grows(field: str, *, of: str = "", where: str = "", index: str = "content_index") -> Rule:
    """The delta is appended to a text of the item, or to one of the part at `index` in its list `where`."""

    def rule(item: Object, event: JSONObject, _output: Items) -> None:
        delta = string(event, "delta")
        grow(_content(item, event, of=of, field=where, index=index) if where else item, field, delta)

    return rule


def _set_to(field: str, *, of: str = "", where: str = "", index: str = "content_index") -> Rule:
    """The text is replaced by what the event has under the same name."""

    def rule(item: Object, event: JSONObject, _output: Items) -> None:
        text = string(event, field)
        holder = _content(item, event, of=of, field=where, index=index) if where else item
        holder[field] = text

    return rule


def _status(status: str) -> Rule:
    def rule(item: Object, _event: JSONObject, _output: Items) -> None:
        item["status"] = status

    return rule


def _no_effect(_item: Object, _event: JSONObject, _output: Items) -> None:
    pass


def _commands(item: Any) -> Any:
    action = item.get("action")
    return action.get("commands") if isinstance(action, dict) else None


def _command_added(item: Object, event: JSONObject, _output: Items) -> None:
    command = string(event, "command")
    at = element(_commands(item), event.get("command_index"), may_append=event["type"] == f"{_SHELL_COMMAND}added")
    _put(own_list(own_object(item, "action"), "commands"), at, command)


def _command_delta(item: Object, event: JSONObject, _output: Items) -> None:
    delta = string(event, "delta")
    at = element(_commands(item), event.get("command_index"))
    grow(own_list(own_object(item, "action"), "commands"), at, delta)


def _shell_output_delta(item: Object, event: JSONObject, output: Items) -> None:
    delta = event.get("delta")
    given = delta if isinstance(delta, dict) else {}
    texts = {field: string(given, field) for field in ("stdout", "stderr") if given.get(field) is not None}
    contents, at = _shell_output(item, event, output)
    for field, text in texts.items():
        grow(own_object(contents, at), field, text)


def _shell_output_done(item: Object, event: JSONObject, output: Items) -> None:
    given = event.get("output")
    element(given, 0)
    contents, at = _shell_output(item, event, output)
    contents[at] = given[0] if isinstance(given, list) else None


def _shell_output(item: Object, event: JSONObject, output: Items) -> tuple[Items, int]:
    """The output of one command, and its place; those of earlier commands are made up where they are missing."""
    of_call = (other for other in output if other.get("type") == "shell_call")
    call = next((other for other in of_call if other.get("call_id") == item.get("call_id")), None)
    if call is None:
        at = element(item.get("output"), event.get("command_index"), may_append=True)
    else:
        at = element(_commands(call), event.get("command_index"))
    if not isinstance(item.get("output"), list):
        raise FatalChunk("malformed", "the output of a shell call is a list")
    contents = own_list(item, "output")
    while len(contents) <= at:
        contents.append({"stdout": "", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}})
    return contents, at


def _put(items: Items, at: int, value: JSON) -> None:
    items[at : at + 1] = [value]


def _are_logprobs(value: Any) -> bool:
    return isinstance(value, list) and all(
        _is_logprob(one) and isinstance(one.get("top_logprobs"), list) and all(map(_is_logprob, one["top_logprobs"]))
        for one in value
    )


def _is_logprob(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("token"), str)
        and _is_number(value.get("logprob"))
        and isinstance(value.get("bytes"), list)
        and all(map(_is_number, value["bytes"]))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_SHELL_COMMAND: Final = "response.shell_call_command."
_CONTENT_PARTS: Final = frozenset({"response.content_part.added", "response.content_part.done"})

_RULES_BY_ITEM: Final[Mapping[str, Mapping[str, Rule]]] = {
    "message": {
        "response.output_text.delta": _text_delta,
        "response.output_text.done": _text_done,
        "response.output_text.annotation.added": _annotation_added,
        "response.refusal.delta": _grows("refusal", of="refusal", where="content"),
        "response.refusal.done": _set_to("refusal", of="refusal", where="content"),
    },
    "reasoning": {
        "response.reasoning_text.delta": _grows("text", of="reasoning_text", where="content"),
        "response.reasoning_text.done": _set_to("text", of="reasoning_text", where="content"),
        "response.reasoning_summary_part.added": _summary_added,
        "response.reasoning_summary_part.done": _summary_done,
        "response.reasoning_summary_text.delta": _grows("text", where="summary", index="summary_index"),
        "response.reasoning_summary_text.done": _set_to("text", where="summary", index="summary_index"),
    },
    "function_call": {
        "response.function_call_arguments.delta": _grows("arguments"),
        "response.function_call_arguments.done": _set_to("arguments"),
    },
    "custom_tool_call": {
        "response.custom_tool_call_input.delta": _grows("input"),
        "response.custom_tool_call_input.done": _set_to("input"),
    },
    "mcp_call": {
        "response.mcp_call_arguments.delta": _grows("arguments"),
        "response.mcp_call_arguments.done": _set_to("arguments"),
        **{f"response.mcp_call.{status}": _status(status) for status in ("in_progress", "completed", "failed")},
    },
    "mcp_list_tools": {
        f"response.mcp_list_tools.{status}": _no_effect for status in ("in_progress", "completed", "failed")
    },
    "shell_call": {
        f"{_SHELL_COMMAND}added": _command_added,
        f"{_SHELL_COMMAND}delta": _command_delta,
        f"{_SHELL_COMMAND}done": _command_added,
    },
    "shell_call_output": {
        "response.shell_call_output_content.delta": _shell_output_delta,
        "response.shell_call_output_content.done": _shell_output_done,
    },
    "code_interpreter_call": {
        "response.code_interpreter_call_code.delta": _grows("code"),
        "response.code_interpreter_call_code.done": _set_to("code"),
        **{
            f"response.code_interpreter_call.{status}": _status(status)
            for status in ("in_progress", "interpreting", "completed")
        },
    },
    "image_generation_call": {
        "response.image_generation_call.partial_image": _no_effect,
        **{
            f"response.image_generation_call.{status}": _status(status)
            for status in ("in_progress", "generating", "completed")
        },
    },
    **{
        search: {f"response.{search}.{status}": _status(status) for status in ("in_progress", "searching", "completed")}
        for search in ("file_search_call", "web_search_call")
    },
    "compaction": {"response.compaction.compacting": _no_effect},
}

ITEM_TYPES: Final = {
    **{kind: item_type for item_type, rules in _RULES_BY_ITEM.items() for kind in rules},
}
"""The type of item that each type of event is for."""

RULES: Final[Mapping[str, Rule]] = {
    **{kind: rule for rules in _RULES_BY_ITEM.values() for kind, rule in rules.items()},
    "response.content_part.added": _part_added,
    "response.content_part.done": _part_done,
}
"""By type of event, which is for one item that is there: the item, the event, and all items."""

CHANGE_TEXT: Final = frozenset({*_CONTENT_PARTS, "response.output_text.delta", "response.output_text.done"})
"""After these the text of the response is that of its parts, even if the server had said something else."""


def text_of(output: Any) -> str:
    """The text of all messages in an output of plain data, one after the other."""
    return "".join(
        str(part.get("text", ""))
        for item in output
        if isinstance(item, dict) and item.get("type") == "message" and isinstance(item.get("content"), list)
        for part in item["content"]
        if isinstance(part, dict) and part.get("type") == "output_text"
    )


def item_at(output: Items, position: int) -> Object:
    """The item at this place, to be edited."""
    return own_object(output, element(output, position))
