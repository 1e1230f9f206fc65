"""Messages that have UI parts already, and messages that were posted whole, in the shape that their writer uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from consumer.fold.projection.ag_ui import add_tanstack_parts
from consumer.fold.projection.anthropic import add_block
from consumer.fold.projection.openai import add_call, add_chat_message
from consumer.fold.projection.parts import UIParts, fields_of, objects, text_at
from consumer.fold.tanstack_snapshot import parsed_or_text
from consumer.plain import JSON, JSONObject

_SPOKEN: Final = frozenset({"text", "reasoning"})
_TANSTACK: Final = frozenset({"thinking", "tool-call", "tool-result", "structured-output", "ui-resource"})


def ui_parts(message: JSONObject, ended: bool) -> list[JSON]:  # noqa: FBT001  by the table of projections
    """The parts of the AI SDK's own messages, as they are. `ended` ends the texts that nobody has ended."""
    parts = [part for part in objects(message.get("parts")) if text_at(part, "type")]
    return [_ended(part) if ended else part for part in parts]


def _ended(part: dict[str, Any]) -> JSONObject:
    is_left_open = part["type"] in _SPOKEN and part.get("state") == "streaming"
    return {**part, "state": "done"} if is_left_open else part


def whole_parts(message: JSONObject, _ended: bool) -> list[JSON]:  # noqa: FBT001  by the table of projections
    """What was posted whole has ended."""
    told = objects(message.get("parts"))
    if told and not any(map(_is_tanstack, told)):
        return ui_parts(message, True)  # noqa: FBT003  as above
    parts = UIParts(ended=True)
    add_tanstack_parts(parts, told)
    parts.text(message.get("text"))
    if text_at(message, "role") == "tool":
        call_id = message.get("tool_call_id") or message.get("toolCallId")
        parts.output(call_id, parsed_or_text(message.get("content")), name=message.get("name"))
        return parts.told()
    for block in objects(message.get("content")):
        _add_block(parts, block)
    add_chat_message(parts, message)
    for call in objects(message.get("toolCalls")):
        add_call(parts, call)
    return parts.told()


def _is_tanstack(part: dict[str, Any]) -> bool:
    kind = text_at(part, "type")
    return kind in _TANSTACK or (kind == "text" and "content" in part)


def _add_block(parts: UIParts, block: dict[str, Any]) -> None:
    """One piece of `content`: OpenAI's have types of their own, the others are Anthropic's or nearly."""
    rule = _BLOCKS.get(text_at(block, "type"), add_block)
    rule(parts, block)


def _text(parts: UIParts, block: dict[str, Any]) -> None:
    parts.text(block.get("text"))


def _image_url(parts: UIParts, block: dict[str, Any]) -> None:
    image = block.get("image_url")
    parts.file(image if isinstance(image, str) else fields_of(image).get("url"), "image/*")


def _file(parts: UIParts, block: dict[str, Any]) -> None:
    told = {**block, **fields_of(block.get("file"))}
    url = told.get("file_url") or told.get("file_data") or told.get("url")
    parts.file(url, told.get("mediaType"), told.get("filename"))


_BLOCKS: Final[Mapping[str, Callable[[UIParts, dict[str, Any]], None]]] = {
    **dict.fromkeys(("input_text", "output_text"), _text),
    **dict.fromkeys(("image_url", "input_image"), _image_url),
    **dict.fromkeys(("file", "input_file"), _file),
}
"""By type of block."""
