"""OpenAI's chat completions and responses as the parts of a UI message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from consumer.fold.projection.parts import Input, UIParts, fields_of, given, objects, text_at
from consumer.plain import JSON, JSONObject

_Item = dict[str, Any]

_REFUSAL: Final[JSONObject] = {"providerMetadata": {"openai": {"refusal": True}}}
"""What tells a refusal from another text."""

_ENDED: Final = frozenset({"completed", "failed", "incomplete", "cancelled"})
_FAILED: Final = frozenset({"failed", "incomplete", "cancelled"})
_CALL: Final = "_call"
_CALL_OUTPUT: Final = "_call_output"
_OF_RESULTS: Final = ("output", "outputs", "results", "result")
_OF_EVERY_ITEM: Final = frozenset({"id", "type", "status", "call_id", "error", *_OF_RESULTS})


# -- chat completions ----------------------------------------------------------------------------------------------


def chat_parts(completion: JSONObject, ended: bool) -> list[JSON]:  # noqa: FBT001  by the table of projections
    """The first choice: a reader sees one answer. `ended`, or a finish reason, says that no more will come."""
    choice = next(iter(objects(completion.get("choices"))), {})
    parts = UIParts(ended=ended or bool(choice.get("finish_reason")))
    add_chat_message(parts, fields_of(choice.get("message")))
    return parts.told()


def add_chat_message(parts: UIParts, message: _Item) -> None:
    """The text of the message, then its calls. `content` that is a list is left to others."""
    audio = fields_of(message.get("audio"))
    parts.text(message.get("content"))
    parts.text(message.get("refusal"), _REFUSAL)
    parts.text(audio.get("transcript"))
    _add_sources(parts, message)
    if audio.get("data"):
        parts.data("audio", given(audio, "id", "data", "expires_at"))
    if isinstance(message.get("function_call"), dict):
        _add_function(parts, "function_call", message["function_call"])
    for call in objects(message.get("tool_calls")):
        add_call(parts, call)


def add_call(parts: UIParts, call: _Item) -> None:
    """A call as a chat message has it, of a function or of a custom tool."""
    if isinstance(call.get("custom"), dict):
        parts.call(call.get("id"), call["custom"].get("name"), Input.of_text(call["custom"].get("input")))
    else:
        _add_function(parts, call.get("id"), fields_of(call.get("function")))


def _add_function(parts: UIParts, call_id: JSON, function: _Item) -> None:
    parts.call(call_id, function.get("name"), Input.of_json(function.get("arguments")))


def _add_sources(parts: UIParts, holder: _Item) -> None:
    """What a text refers to. A chat nests the fields of an annotation, a response does not."""
    for annotation in objects(holder.get("annotations")):
        told = {**annotation, **fields_of(annotation.get(text_at(annotation, "type")))}
        parts.source(told.get("url"), told.get("title"))
        file_id, filename = text_at(told, "file_id"), told.get("filename")
        if file_id:
            parts.document(file_id, filename, "text/plain", filename)


# -- responses -----------------------------------------------------------------------------------------------------


def response_parts(response: JSONObject, ended: bool) -> list[JSON]:  # noqa: FBT001  by the table of projections
    """All items in order. `ended`, or a final status, says that no more will come; of one item, its own status."""
    parts = UIParts(ended=ended or text_at(response, "status") in _ENDED)
    for item in objects(response.get("output")):
        kind = text_at(item, "type")
        if kind in _ITEMS:
            _ITEMS[kind](parts, item)
        elif kind.endswith(_CALL_OUTPUT):
            parts.output(item.get("call_id"), item.get("output"), name=kind.removesuffix(_CALL_OUTPUT))
        elif kind.endswith(_CALL):
            _hosted_call(parts, item, kind.removesuffix(_CALL))
        else:
            parts.data(kind, item)
    return parts.told()


def _message(parts: UIParts, item: _Item) -> None:
    told, done = _of_item(item), _is_done(item)
    for part in objects(item.get("content")):
        parts.text(part.get("text"), told, done=done)
        parts.text(part.get("refusal"), _REFUSAL, done=done)
        _add_sources(parts, part)


def _of_item(item: _Item) -> JSONObject:
    """As the AI SDK's own provider of these models has it, so that the message can be sent back through that."""
    item_id = text_at(item, "id")
    return {"providerMetadata": {"openai": {"itemId": item_id}}} if item_id else {}


def _reasoning(parts: UIParts, item: _Item) -> None:
    texts = [*objects(item.get("summary")), *objects(item.get("content"))]
    for number, part in enumerate(texts):
        if text_at(part, "text"):
            named: JSONObject = {"id": f"{item['id']}:{number}"} if text_at(item, "id") else {}
            parts.reasoning(part["text"], {**named, **_of_item(item)}, done=_is_done(item))


def _function_call(parts: UIParts, item: _Item) -> None:
    parts.call(item.get("call_id"), item.get("name"), Input.of_json(item.get("arguments")), whole=_is_done(item))


def _custom_tool_call(parts: UIParts, item: _Item) -> None:
    parts.call(item.get("call_id"), item.get("name"), Input.of_text(item.get("input")), whole=_is_done(item))


def _mcp_call(parts: UIParts, item: _Item) -> None:
    given_input = Input.of_json(item.get("arguments"))
    call_id = parts.call(item.get("id"), item.get("name"), given_input, whole=_is_done(item), by_provider=True)
    _add_outcome(parts, call_id, item, item.get("output"))


def _mcp_approval_request(parts: UIParts, item: _Item) -> None:
    call_id = parts.call(item.get("id"), item.get("name"), Input.of_json(item.get("arguments")), whole=True)
    parts.approval(call_id, {"id": call_id})


def _hosted_call(parts: UIParts, item: _Item, name: str) -> None:
    """A tool of OpenAI's. One with a `call_id` is run by the client, which answers; others bring their result along."""
    by_provider = not text_at(item, "call_id")
    given_input = Input.of_value({field: value for field, value in item.items() if field not in _OF_EVERY_ITEM})
    call_id = parts.call(
        item.get("id") if by_provider else item["call_id"],
        name,
        given_input,
        whole=_is_done(item),
        by_provider=by_provider,
    )
    if by_provider:
        _add_outcome(parts, call_id, item, given(item, *(field for field in _OF_RESULTS if field != "result")))
    if name == "image_generation":
        parts.file_of_base64(item.get("result"), f"image/{text_at(item, 'output_format') or 'png'}")


def _add_outcome(parts: UIParts, call_id: str, item: _Item, output: JSON) -> None:
    status, error = text_at(item, "status"), item.get("error")
    if status in _FAILED or error:
        parts.failure(call_id, error if isinstance(error, str) else text_at(error, "message") or status)
    elif status == "completed" or (not status and item.get("output") is not None):
        parts.output(call_id, output)


def _is_done(item: _Item) -> bool:
    return text_at(item, "status") in _ENDED


_ITEMS: Final[Mapping[str, Callable[[UIParts, _Item], None]]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "custom_tool_call": _custom_tool_call,
    "mcp_call": _mcp_call,
    "mcp_approval_request": _mcp_approval_request,
}
