"""A message of Anthropic's as the parts of a UI message. Its blocks are in reading order already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from consumer.fold.projection.parts import Input, UIParts, given, input_at, objects, text_at
from consumer.plain import JSON, JSONObject

_Block = dict[str, Any]

_RESULT: Final = "_tool_result"
_ERROR: Final = "_error"


def anthropic_parts(message: JSONObject, ended: bool) -> list[JSON]:  # noqa: FBT001  by the table of projections
    """`ended`, or a stop reason, says that no more will come."""
    parts = UIParts(ended=ended or message.get("stop_reason") is not None)
    for block in objects(message.get("content")):
        add_block(parts, block)
    return parts.told()


def add_block(parts: UIParts, block: _Block) -> None:
    """One block of a message."""
    kind = text_at(block, "type")
    if kind in _BLOCKS:
        _BLOCKS[kind](parts, block)
    elif kind.endswith(_RESULT):
        _result(parts, block)
    else:
        parts.data(kind, block)


def _text(parts: UIParts, block: _Block) -> None:
    parts.text(block.get("text"))
    for citation in objects(block.get("citations")):
        if "url" in citation:
            parts.source(citation["url"], citation.get("title"))
        elif "document_index" in citation:
            media_type = "application/pdf" if citation.get("type") == "page_location" else "text/plain"
            parts.document(f"document-{citation['document_index']}", citation.get("document_title"), media_type)
        else:
            parts.source(citation.get("source"), citation.get("title"))


def _thinking(parts: UIParts, block: _Block) -> None:
    parts.reasoning(block.get("thinking"), _metadata(given(block, "signature")))


def _redacted_thinking(parts: UIParts, block: _Block) -> None:
    parts.reasoning("", _metadata({"redactedData": block["data"]} if "data" in block else {}))


def _metadata(told: JSONObject) -> JSONObject:
    """As the AI SDK's own provider of these models has it, so that the message can be sent back through that."""
    return {"providerMetadata": {"anthropic": told}} if told else {}


def _tool_use(parts: UIParts, block: _Block) -> None:
    parts.call(block.get("id"), block.get("name"), Input.of_value(input_at(block, "input")))


def _server_tool_use(parts: UIParts, block: _Block) -> None:
    parts.call(block.get("id"), block.get("name"), Input.of_value(input_at(block, "input")), by_provider=True)


def _result(parts: UIParts, block: _Block) -> None:
    content, name = block.get("content"), text_at(block, "type").removesuffix(_RESULT)
    if block.get("is_error") is True or text_at(content, "type").endswith(f"{_RESULT}{_ERROR}"):
        parts.failure(block.get("tool_use_id"), _error_text(content), name=name)
    else:
        parts.output(block.get("tool_use_id"), content, name=name)


def _error_text(content: JSON) -> str:
    if isinstance(content, str):
        return content
    return text_at(content, "error_code") or "\n".join(text_at(block, "text") for block in objects(content))


def _media(parts: UIParts, block: _Block) -> None:
    parts.media(block.get("source"), block["type"], block.get("title"))


_BLOCKS: Final[Mapping[str, Callable[[UIParts, _Block], None]]] = {
    "text": _text,
    "thinking": _thinking,
    "redacted_thinking": _redacted_thinking,
    "tool_use": _tool_use,
    "server_tool_use": _server_tool_use,
    "mcp_tool_use": _server_tool_use,
    "tool_result": _result,
    "image": _media,
    "document": _media,
}
