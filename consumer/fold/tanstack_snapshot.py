"""What TanStack makes of a MESSAGES_SNAPSHOT: AG-UI's messages become messages with parts (FOLDS section 4).

Results of tools move next to their calls, thinking moves into the answer that it led to, and what had been seen of a
call before the snapshot is kept where the snapshot does not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from consumer.fold.draft import ChunkFault
from consumer.fold.partial_json import parse_strict
from consumer.fold.tanstack_messages import created_at, tanstack_metadata
from consumer.plain import JSON, JSONObject, NotJSON

Message = dict[str, Any]

_STRUCTURED_STATES: Final = frozenset({"streaming", "complete", "error"})
_CONTENT_TYPES: Final = frozenset({"text", "image", "audio", "video", "document"})
_DONE: Final = frozenset({"complete", "error"})
_NOT_DONE: Final = frozenset({"input-complete", "input-streaming", "awaiting-input"})
_RESULTS: Final = frozenset({"tool-result", "ui-resource"})


def messages_of(snapshot: JSON, before: list[Message], new_id: Callable[[], str]) -> list[Message]:
    """The messages that the snapshot stands for; `before` are those it replaces.

    Raises ChunkFault if it cannot be read.
    """
    if not isinstance(snapshot, list) or not all(isinstance(message, dict) for message in snapshot):
        raise ChunkFault("malformed", "`messages` is not a list of objects")
    converted = [_converted(message, new_id) for message in snapshot if isinstance(message, dict)]
    reconciled = _with_outputs(*_with_results_anchored(_with_thinking_merged(converted), _calls_in(before)))
    metadata = {
        message["id"]: message["metadata"]
        for message in before
        if _text(message, "id") and message.get("metadata") is not None
    }
    return [
        {**message, "metadata": metadata[message["id"]]}
        if message.get("metadata") is None and message["id"] in metadata
        else message
        for message in reconciled
    ]


def result_error(output: JSON) -> str:
    """The text of what a tool that failed gave back."""
    error = output.get("error") if isinstance(output, dict) else output
    return error if isinstance(error, str) else "Tool execution failed"


def parsed_or_text(content: JSON) -> JSON:
    """The value of the JSON in a tool's result, or the result as it is."""
    try:
        return parse_strict(content) if isinstance(content, str) else content
    except NotJSON:
        return content


# -- one message -------------------------------------------------------------------------------------------------------


def _converted(message: Message, new_id: Callable[[], str]) -> Message:
    message_id = _text(message, "id") or new_id()
    if "parts" in message:
        return _finished(message, {**message, "id": message_id, "parts": _objects(message["parts"], "parts")})
    role = message.get("role")
    if role == "tool":
        return _converted_result(_with_owned_result(message), message_id)
    parts: list[Any] = []
    if role == "user":
        parts = _user_parts(message.get("content"))
    elif role == "assistant":
        parts = _assistant_parts(message)
    elif role in ("system", "developer"):
        parts = [{"type": "text", "content": message["content"]}] if message.get("content") else []
    elif role == "reasoning":
        parts = _thinking_parts(message)
    ui_role = "system" if role == "developer" else role if role in ("user", "system") else "assistant"
    return _finished(message, {"id": message_id, "role": ui_role, "parts": parts})


def _user_parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}] if content else []
    return [
        {"type": "text", **({"content": part["text"]} if "text" in part else {})}
        if part.get("type") == "text"
        else part
        for part in _objects(content, "content")
        if part.get("type") != "binary"
    ]


def _assistant_parts(message: Message) -> list[Any]:
    told = tanstack_metadata(message)
    structured = _structured_output(told.get("structuredOutput"))
    content = message.get("content")
    parts = _content_parts(content) if structured is None else [*_text_before(content, structured), structured]
    by_call = told.get("toolCallMetadata")
    calls = message.get("toolCalls")
    for call in [] if calls is None else _objects(calls, "toolCalls"):
        parts.append(_call_part(call, by_call if isinstance(by_call, dict) else {}))
    return parts


def _content_parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return [*_objects(content, "content")]
    text = _text_content(content)
    return [{"type": "text", "content": text}] if text else []


def _text_content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    raise ChunkFault("malformed", "`content` is neither text nor parts")


def _structured_output(told: Any) -> JSONObject | None:
    if (
        not isinstance(told, dict)
        or _text(told, "status") not in _STRUCTURED_STATES
        or not isinstance(told.get("raw"), str)
    ):
        return None
    part: JSONObject = {"type": "structured-output", "status": told["status"], "raw": told["raw"]}
    part |= {field: told[field] for field in ("partial", "data", "errorMessage") if field in told}
    return {**part, "reasoning": told["reasoning"]} if told.get("reasoning") else part


def _text_before(content: Any, structured: JSONObject) -> list[Any]:
    """The text in front of the structured output, which the content ends with."""
    raw = structured["raw"]
    if not isinstance(content, str) or not isinstance(raw, str) or content == raw:
        return []
    text = content.removesuffix(raw)
    return [{"type": "text", "content": text}] if text else []


def _call_part(call: Message, metadata: JSONObject) -> JSONObject:
    function = call.get("function")
    if not isinstance(function, dict):
        raise ChunkFault("malformed", "a tool call has an object `function`")
    part: JSONObject = {"type": "tool-call", "state": "input-complete"}
    part |= {field: call[field] for field in ("id", "metadata") if field in call}
    part |= {field: function[field] for field in ("name", "arguments") if field in function}
    call_id = _text(call, "id")
    if call_id in metadata:
        part["metadata"] = metadata[call_id]
    try:
        return {**part, "input": parse_strict(_text(function, "arguments"))}
    except NotJSON:
        return part


def _thinking_parts(message: Message) -> list[Any]:
    signature = _text(message, "encryptedValue") or _text(tanstack_metadata(message), "signature")
    content = _text(message, "content")
    if not content and not signature:
        return []
    return [{"type": "thinking", "content": content, **({"signature": signature} if signature else {})}]


def _converted_result(message: Message, message_id: str) -> Message:
    time = created_at(message.get("createdAt")) or created_at(tanstack_metadata(message).get("createdAt"))
    facts: JSONObject = {field: message[field] for field in ("id", "name") if isinstance(message.get(field), str)}
    facts |= {"metadata": message["metadata"]} if message.get("metadata") is not None else {}
    facts |= {"createdAt": time} if time else {}
    content = message.get("content")
    if message.get("toolCallId"):
        told = content if isinstance(content, list) else _text_content(content)
        error: JSONObject = {"error": message["error"]} if "error" in message else {}
        parts: list[Any] = [
            {
                "type": "tool-result",
                "toolCallId": message["toolCallId"],
                "content": told,
                "state": "error" if error else "complete",
                **facts,
                **error,
            }
        ]
    else:
        parts = _content_parts(content)
    of_message = {field: value for field, value in facts.items() if field != "id"}
    return _finished(message, {**of_message, "id": message_id, "role": "assistant", "parts": parts})


def _with_owned_result(message: Message) -> Message:
    """A result as it was before it went over the wire, if its metadata tells."""
    owned = tanstack_metadata(message).get("toolResult")
    if not isinstance(owned, dict) or ("content" in owned and not _are_content_parts(owned["content"])):
        return message
    restored = {**message}
    for field in ("id", "createdAt"):
        if field not in owned:
            restored.pop(field, None)
        elif isinstance(owned[field], str) and (field == "id" or created_at(owned[field])):
            restored[field] = owned[field]
    if "content" in owned:
        restored["content"] = owned["content"]
    metadata = message.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("tanstack"), dict):
        _put_or_drop(restored, "metadata", _without_result(metadata))
    return restored


def _without_result(metadata: Message) -> Message:
    rest = {**metadata}
    _put_or_drop(rest, "tanstack", {key: rest["tanstack"][key] for key in rest["tanstack"] if key != "toolResult"})
    return rest


def _put_or_drop(holder: Message, field: str, value: Message) -> None:
    if value:
        holder[field] = value
    else:
        holder.pop(field, None)


def _are_content_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_content_part, value))


def _is_content_part(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str) or part["type"] not in _CONTENT_TYPES:
        return False
    if part["type"] == "text":
        return isinstance(part.get("content"), str)
    source = part.get("source")
    if not isinstance(source, dict) or not isinstance(source.get("value"), str):
        return False
    return source.get("type") == "url" or (source.get("type") == "data" and isinstance(source.get("mimeType"), str))


def _finished(source: Message, message: Message) -> Message:
    """The message with what its metadata tells of it."""
    message["parts"] = [_with_time(part) if part.get("type") == "tool-result" else part for part in message["parts"]]
    if isinstance(source.get("name"), str):
        message["name"] = source["name"]
    metadata = source.get("metadata")
    told = tanstack_metadata(metadata)
    if isinstance(metadata, dict):
        message["metadata"] = metadata
    time = created_at(message.pop("createdAt", None)) or created_at(told.get("createdAt"))
    if time:
        message["createdAt"] = time
    _append_resources(message["parts"], told.get("uiResources"))
    return message


def _with_time(part: Message) -> Message:
    time = created_at(part.get("createdAt"))
    rest = {field: value for field, value in part.items() if field != "createdAt"}
    return {**rest, "createdAt": time} if time else rest


def _append_resources(parts: list[Any], resources: Any) -> None:
    seen = {_resource_key(part) for part in parts}
    given = resources if isinstance(resources, list) else []
    parts += [part for part in given if _resource_key(part) is not None and _resource_key(part) not in seen]


def _resource_key(part: Any) -> tuple[str, str, str] | None:
    """What tells a UI resource from others; None if it is none."""
    if not isinstance(part, dict) or part.get("type") != "ui-resource":
        return None
    resource, call_id, tool = part.get("resource"), part.get("toolCallId"), part.get("toolName")
    if not isinstance(resource, dict) or not isinstance(call_id, str) or not isinstance(tool, str):
        return None
    uri, kind = resource.get("uri"), resource.get("mimeType")
    return (call_id, tool, uri) if isinstance(uri, str) and isinstance(kind, str) else None


# -- all of them -------------------------------------------------------------------------------------------------------


def _with_thinking_merged(messages: list[Message]) -> list[Message]:
    """Messages that only think go into the answer behind them."""
    merged: list[Message] = []
    pending: list[Message] = []
    for message in messages:
        if _is_only(message, frozenset({"thinking"})):
            pending.append(message)
            continue
        is_answer = message.get("role") == "assistant" and not _is_result(message)
        if pending and is_answer:
            thoughts = [part for thinking in pending for part in thinking["parts"]]
            merged.append({**message, "parts": [*thoughts, *message["parts"]]})
        else:
            merged += [*pending, message]
        pending = []
    return merged + pending


def _is_only(message: Message, kinds: frozenset[str]) -> bool:
    parts = message["parts"]
    return message.get("role") == "assistant" and bool(parts) and all(_kind(part) in kinds for part in parts)


def _is_result(message: Message) -> bool:
    return _is_only(message, _RESULTS) and any(_kind(part) == "tool-result" for part in message["parts"])


def _with_results_anchored(
    messages: list[Message], seen_calls: dict[str, Message]
) -> tuple[list[Message], dict[str, Message]]:
    """Each message that is one result of a tool goes to the end of the one that made the call."""
    in_snapshot = {*_calls_in(messages)}
    anchored: list[Message] = []
    by_call: dict[str, Message] = {}
    last_answer: Message | None = None
    for message in messages:
        result = _only_result(message)
        call_id = "" if result is None else _text(result, "toolCallId")
        target = None if result is None else by_call.get(call_id, last_answer)
        if target is not None:
            if call_id not in in_snapshot and call_id in seen_calls:
                target["parts"].append(seen_calls[call_id])
                in_snapshot.add(call_id)
                by_call[call_id] = target
            target["parts"] += message["parts"]
            continue
        kept = {**message, "parts": [*message["parts"]]}
        anchored.append(kept)
        by_call |= dict.fromkeys(_calls_in([kept]), kept)
        is_lone_result = len(kept["parts"]) == 1 and _kind(kept["parts"][0]) == "tool-result"
        last_answer = kept if kept.get("role") == "assistant" and not is_lone_result else last_answer
    return anchored, seen_calls


def _only_result(message: Message) -> Message | None:
    results = [part for part in message["parts"] if _kind(part) == "tool-result"]
    return results[0] if len(results) == 1 and _is_only(message, _RESULTS) else None


def _with_outputs(messages: list[Message], seen_calls: dict[str, Message]) -> list[Message]:
    results = {
        _text(part, "toolCallId"): part
        for message in messages
        for part in message["parts"]
        if _kind(part) == "tool-result"
    }
    return [
        {**message, "parts": [_with_output(part, seen_calls, results) for part in message["parts"]]}
        for message in messages
    ]


def _with_output(part: Message, seen_calls: dict[str, Message], results: dict[str, Message]) -> Message:
    if _kind(part) != "tool-call":
        return part
    call_id = _text(part, "id")
    seen, result = seen_calls.get(call_id), results.get(call_id)
    if seen is not None and _is_richer(seen, part):
        part = {**part, "state": seen.get("state"), **_only(seen, "output", "approval", "metadata")}
    if result is None or "output" in part:
        return part
    output = parsed_or_text(result.get("content"))
    failed = result.get("state") == "error"
    error = result_error(output) if failed else ""
    return {**part, "output": {"error": error} if error else output, "state": "error" if failed else "complete"}


def _is_richer(seen: Message, part: Message) -> bool:
    return ("output" in seen or _text(seen, "state") in _DONE) and (
        "output" not in part or _text(part, "state") in _NOT_DONE
    )


def _calls_in(messages: Iterable[Message]) -> dict[str, Message]:
    """The part of each tool call; of two with one id, the last."""
    return {_text(part, "id"): part for message in messages for part in message["parts"] if _kind(part) == "tool-call"}


def _kind(part: Any) -> str:
    return _text(part, "type") if isinstance(part, dict) else ""


def _text(source: Any, field: str) -> str:
    """A text, or an empty one where there is none."""
    value = source.get(field)
    return value if isinstance(value, str) else ""


def _objects(value: Any, field: str) -> list[Message]:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    raise ChunkFault("malformed", f"`{field}` is not a list of objects")


def _only(source: Message, *fields: str) -> Message:
    return {field: source[field] for field in fields if field in source}
