"""The projection: one reader's model of a message, whatever format its chunks came in.

A folded message looks as each format's own reference has it, so who shows messages of several formats would have to
know them all. `ui_message` turns any of them into the UI message of the AI SDK: `{id, role, metadata?, parts}`, with
parts of the types text, reasoning, dynamic-tool, file, source-url, source-document, data-* and step-start. A message
whose chunks already were the AI SDK's is given as it is, static `tool-*` parts included.

What becomes which part:

`ai-sdk-ui-message-stream`, `text`
    All parts as they are.
`anthropic-messages`
    text              `text`; its citations are sources behind it
    reasoning         `thinking` and `redacted_thinking`, with signature and data as provider metadata
    dynamic-tool      `tool_use`; `server_tool_use`, `mcp_tool_use` and their results, executed by the provider
    file              `image`, `document`
    data-<type>       all other blocks
`openai-chat`, of its first choice
    text              `content`; `refusal`, marked in its provider metadata; the transcript of `audio`
    dynamic-tool      `tool_calls`, `function_call`
    source-*          `annotations`
    data-audio        `audio`
    nothing           reasoning of whatever name: as the reference, the fold has only its last piece
`openai-responses`
    text              `output_text`, with annotations as sources behind it; `refusal`, marked likewise
    reasoning         summaries and `reasoning_text`
    dynamic-tool      `function_call`, `custom_tool_call`, `mcp_call`, and every other `*_call`; `*_call_output`
    file              the picture of an `image_generation_call`
    data-<type>       all other items
`ag-ui-client`
    text              `content` of the assistant
    reasoning         messages of that role
    dynamic-tool      `toolCalls` with their `tool` messages; one that a pending interrupt names waits for approval
    data-<type>       an activity
    step-start        where the assistant goes on behind a result
`ag-ui-tanstack`
    text, reasoning   `text`, `thinking`
    dynamic-tool      `tool-call` with its `tool-result` and approval
    file              `image`, `audio`, `video`, `document`
    data-<type>       all other parts
    step-start        as above
no format: a message that was posted whole
    its `parts`, of the AI SDK or of TanStack; else its `text` and `content`, a text or blocks as OpenAI or Anthropic
    have them, and its tool calls

- The formats of AG-UI tell a conversation. The answer is what stands behind its last user message: an agent that sends
  the history along does not have it shown twice. Shared state, system and developer messages are no part of it.
- The input of a tool is its value as far as it has arrived, by the AI SDK's rule for unfinished JSON; `rawInput` is its
  text. It is `input-available` when the format says so, or when another part follows and it is whole.
- A text, or reasoning, is `streaming` while it is the last thing in an answer that has not ended, else `done`.
- Empty texts are no parts. Log probabilities, usage, models and the like are left to the format's own message.

A part that is there stays, in its order, and gets no shorter as more chunks are folded, as far as the format's message
does so itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from consumer.fold.projection.ag_ui import client_parts, tanstack_parts
from consumer.fold.projection.anthropic import anthropic_parts
from consumer.fold.projection.openai import chat_parts, response_parts
from consumer.fold.projection.parts import objects, text_at
from consumer.fold.projection.whole import ui_parts, whole_parts
from consumer.plain import JSON, JSONObject

__all__ = ["PROJECTIONS", "ui_message"]

PROJECTIONS: Final[Mapping[str, Callable[[JSONObject, bool], list[JSON]]]] = MappingProxyType(
    {
        "ag-ui-client": client_parts,
        "ag-ui-tanstack": tanstack_parts,
        "ai-sdk-ui-message-stream": ui_parts,
        "anthropic-messages": anthropic_parts,
        "openai-chat": chat_parts,
        "openai-responses": response_parts,
        "text": ui_parts,
    }
)
"""By format: the parts of a folded message, and whether it is certain that nothing more will come."""

_ROLES: Final = {"user": "user", "system": "system", "developer": "system"}


def ui_message(
    format_name: str | None,
    folded: JSON,
    *,
    message_id: str | None = None,
    role: str | None = None,
    ended: bool = False,
) -> JSONObject:
    """A message, folded from chunks of this format or (None) posted whole, as a UI message.

    Never raises: what has no place in the model has no part, and of a format that is not known, or of null, there are
    none. The same message gives the same parts. They share values with `folded`, so neither may be edited.

    `message_id` and `role` are those that the session gives the message; without them, those it has itself ("" and
    assistant if none). `ended` says that the generation has ended: then nothing is shown as streaming, except the input
    of a tool call that was cut off and, in the AI SDK's own format, was never called.
    """
    message: JSONObject = folded if isinstance(folded, dict) else {}
    project = whole_parts if format_name is None else PROJECTIONS.get(format_name, _no_parts)
    metadata: JSONObject = {"metadata": message["metadata"]} if message.get("metadata") is not None else {}
    return {
        "id": _own_id(message) if message_id is None else message_id,
        "role": _ROLES.get(text_at(message, "role") if role is None else role, "assistant"),
        **metadata,
        "parts": project(message, ended),
    }


def _own_id(message: JSONObject) -> str:
    """The id in the message itself; of a conversation, that of the assistant's last message."""
    told = objects(message.get("messages"))
    last = next((one for one in reversed(told) if one.get("role") == "assistant"), message)
    return text_at(last, "id")


def _no_parts(_message: JSONObject, _ended: bool) -> list[JSON]:  # noqa: FBT001  as all in the table above
    return []
