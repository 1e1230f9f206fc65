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
