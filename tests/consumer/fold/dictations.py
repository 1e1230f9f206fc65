"""How each format says a text, and the input of a tool, in pieces: what most of every answer consists of."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from consumer.plain import JSON

AI_SDK: Final = "ai-sdk-ui-message-stream"
TEXT: Final = "text"


_CALL_OF_CHAT: Final[JSON] = {"index": 0, "id": "c", "type": "function", "function": {"name": "search"}}


class Dictation(NamedTuple):
    """How one format says a text in pieces."""

    opening: list[JSON]
    piece: Callable[[str], JSON]
    heard: Callable[[Any], Any]
    """The text as it is found in the message."""


DICTATIONS: Final[dict[str, Dictation]] = {
    AI_SDK: Dictation(
        [{"type": "text-start", "id": "1"}],
        lambda text: {"type": "text-delta", "id": "1", "delta": text},
        lambda message: message["parts"][0]["text"],
    ),
    TEXT: Dictation([], lambda text: text, lambda message: message["parts"][0]["text"]),
    "openai-chat": Dictation(
        [],
        lambda text: {"id": "1", "choices": [{"index": 0, "delta": {"content": text}}]},
        lambda message: message["choices"][0]["message"]["content"],
    ),
    "openai-responses": Dictation(
        [
            {"type": "response.created", "response": {"id": "r", "output": []}},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {"type": "message", "id": "m", "content": [{"type": "output_text", "text": ""}]},
            },
        ],
        lambda text: {
            "type": "response.output_text.delta",
            "item_id": "m",
            "output_index": 0,
            "content_index": 0,
            "delta": text,
        },
        lambda message: message["output_text"],
    ),
    "anthropic-messages": Dictation(
        [
            {"type": "message_start", "message": {"content": [], "usage": {}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ],
        lambda text: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        lambda message: message["content"][0]["text"],
    ),
    "ag-ui-client": Dictation(
        [{"type": "TEXT_MESSAGE_START", "messageId": "m"}],
        lambda text: {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": text},
        lambda message: message["messages"][0]["content"],
    ),
    "ag-ui-tanstack": Dictation(
        [{"type": "TEXT_MESSAGE_START", "messageId": "m"}],
        lambda text: {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": text},
        lambda message: message["messages"][0]["parts"][0]["content"],
    ),
}

TOOL_DICTATIONS: Final[dict[str, Dictation]] = {
    AI_SDK: Dictation(
        [{"type": "tool-input-start", "toolCallId": "c", "toolName": "search"}],
        lambda text: {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": text},
        lambda message: message["parts"][0]["rawInput"],
    ),
    "openai-chat": Dictation(
        [{"id": "1", "choices": [{"index": 0, "delta": {"tool_calls": [_CALL_OF_CHAT]}}]}],
        lambda text: {
            "id": "1",
            "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}],
        },
        lambda message: message["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
    ),
    "openai-responses": Dictation(
        [
            {"type": "response.created", "response": {"id": "r", "output": []}},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {"type": "function_call", "id": "f", "call_id": "c", "name": "search", "arguments": ""},
            },
        ],
        lambda text: {
            "type": "response.function_call_arguments.delta",
            "item_id": "f",
            "output_index": 0,
            "delta": text,
        },
        lambda message: message["output"][0]["arguments"],
    ),
    "anthropic-messages": Dictation(
        [
            {"type": "message_start", "message": {"content": [], "usage": {}}},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "tool_use", "id": "c", "name": "search", "input": {}},
            },
        ],
        lambda text: {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": text},
        },
        lambda message: message["content"][0].get("input"),
    ),
    "ag-ui-client": Dictation(
        [{"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "search"}],
        lambda text: {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": text},
        lambda message: message["messages"][0]["toolCalls"][0]["function"]["arguments"],
    ),
    "ag-ui-tanstack": Dictation(
        [{"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "search"}],
        lambda text: {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": text},
        lambda message: message["messages"][0]["parts"][0]["arguments"],
    ),
}
"""The text of an input; of Anthropic's messages, which do not keep it, the value. Plain text calls no tools."""
