"""The projection of messages, judged by the AI SDK itself."""

import json
from pathlib import Path
from typing import Any

from consumer.fold import FORMATS, Fold
from consumer.fold.projection import ui_message
from tests.consumer.fold.chunks import vectors
from tests.consumer.fold.dictations import AI_SDK
from tests.e2e.clients.node import result
from tests.vectors import initial_of, is_unread


def answers() -> list[tuple[str, Any]]:
    """The message of every vector in the middle and at its end, by format."""
    told = []
    for format_name in sorted(set(FORMATS) - {AI_SDK}):  # what the SDK's own fold may say is not ours to judge
        for vector in vectors(format_name):
            folding = Fold.start(format_name, initial_of(vector))
            chunks = [chunk for chunk in vector["chunks"] if not is_unread(chunk)]
            for at, chunk in enumerate(chunks):
                folding.add(chunk)
                if at == len(chunks) // 2:
                    told.append((format_name, ui_message(format_name, folding.message, message_id="m")))
            ending = folding.final() or folding.message
            told.append((format_name, ui_message(format_name, ending, message_id="m", ended=True)))
    return told


async def test_the_ai_sdk_takes_every_projection_for_a_ui_message(tmp_path: Path) -> None:
    projected = answers()
    file = tmp_path / "messages.jsonl"
    file.write_text("".join(f"{json.dumps(message)}\n" for _, message in projected))

    judged = await result("uimessages.mjs", str(file))

    refused = [
        (*one, verdict["refused"]) for one, verdict in zip(projected, judged, strict=True) if "refused" in verdict
    ]
    assert refused == []


async def test_a_run_of_two_steps_goes_back_to_a_model_in_the_order_it_happened(tmp_path: Path) -> None:
    chunks: list[Any] = [
        {"type": "TEXT_MESSAGE_CHUNK", "messageId": "a", "delta": "Look: "},
        {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "search", "parentMessageId": "a"},
        {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "{}"},
        {"type": "TOOL_CALL_RESULT", "toolCallId": "c", "messageId": "t", "content": "2"},
        {"type": "TEXT_MESSAGE_CHUNK", "messageId": "b", "delta": "Two."},
    ]
    file = tmp_path / "messages.jsonl"
    lines = []
    for format_name in ("ag-ui-client", "ag-ui-tanstack"):
        events = chunks if format_name == "ag-ui-client" else [_content(chunk) for chunk in chunks]
        folding = Fold.start(format_name)
        for chunk in events:
            folding.add(chunk)
        lines.append(json.dumps(ui_message(format_name, folding.message, ended=True)))
    file.write_text("\n".join(lines))

    told = await result("uimessages.mjs", str(file))

    assert told == [{"roles": ["assistant", "tool", "assistant"]}] * 2


def _content(chunk: Any) -> Any:
    """TanStack does not read chunks, but takes content without a start."""
    is_text = chunk["type"] == "TEXT_MESSAGE_CHUNK"
    return {**chunk, "type": "TEXT_MESSAGE_CONTENT", "messageId": "a"} if is_text else chunk
