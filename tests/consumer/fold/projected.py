"""Formats that are projected to the AI SDK's model, and the parts that come out."""

from typing import Any

from consumer.fold.projection import ui_message

ANTHROPIC = "anthropic-messages"
CHAT = "openai-chat"
RESPONSES = "openai-responses"
CLIENT = "ag-ui-client"
TANSTACK = "ag-ui-tanstack"


def parts(format_name: str | None, message: Any, *, ended: bool = False) -> Any:
    return ui_message(format_name, message, ended=ended)["parts"]


def text(said: str, state: str = "done", **more: Any) -> Any:
    return {"type": "text", **more, "text": said, "state": state}


def reasoning(said: str, state: str = "done", **more: Any) -> Any:
    return {"type": "reasoning", **more, "text": said, "state": state}


def tool(state: str, call_id: str = "c", name: str = "search", **more: Any) -> Any:
    return {"type": "dynamic-tool", "toolName": name, "toolCallId": call_id, "state": state, **more}


def function(arguments: str, call_id: str = "c") -> Any:
    """A call of a tool, as OpenAI chat has it."""
    return {"id": call_id, "type": "function", "function": {"name": "search", "arguments": arguments}}
