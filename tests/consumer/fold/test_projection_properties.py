"""What holds for the projection of every format, whatever was folded and however far it has come."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from consumer.fold import FORMATS, Fold, fold
from consumer.fold.projection import ui_message
from consumer.plain import JSON, decode, encode
from tests.consumer.fold.chunks import any_json, format_and_chunks, plain_data, vectors
from tests.consumer.fold.dictations import AI_SDK, DICTATIONS, TEXT
from tests.consumer.fold.projected import ANTHROPIC, CHAT, CLIENT, RESPONSES, TANSTACK, parts
from tests.vectors import initial_of, is_unread


def runs() -> Iterator[tuple[str, list[JSON], Any]]:
    """The chunks of every vector."""
    for format_name in sorted(FORMATS):
        for vector in vectors(format_name):
            chunks = [chunk for chunk in vector["chunks"] if not is_unread(chunk)]
            yield format_name, chunks, initial_of(vector)


KINDS = frozenset({"text", "reasoning", "dynamic-tool", "file", "source-url", "source-document", "step-start"})
STATES = frozenset(
    {
        *("input-streaming", "input-available", "approval-requested", "approval-responded"),
        *("output-available", "output-error"),
    }
)


def assert_in_the_model(part: Any) -> None:
    kind = part["type"]
    assert kind in KINDS or kind.startswith("data-")
    if kind in ("text", "reasoning"):
        assert isinstance(part["text"], str)
        assert part["state"] in ("streaming", "done")
    if kind == "dynamic-tool":
        assert part["state"] in STATES
        assert isinstance(part["toolName"], str)
        assert isinstance(part["toolCallId"], str)
        assert ("errorText" in part) == (part["state"] == "output-error")
        assert ("output" in part) == (part["state"] == "output-available")
        assert ("approval" in part) == part["state"].startswith("approval")


@settings(max_examples=200)
@given(given_=format_and_chunks(20), ended=st.booleans())
def test_whatever_was_folded_is_projected_into_the_model(given_: tuple[str, list[JSON]], *, ended: bool) -> None:
    name, chunks = given_
    message = fold(name, chunks)
    before = encode(message)
    projected = ui_message(name, message, ended=ended)

    if name not in (AI_SDK, TEXT):
        for part in parts(name, message, ended=ended):
            assert_in_the_model(part)
    assert encode(projected) == encode(ui_message(name, decode(before), ended=ended))
    assert encode(message) == before


_FIELDS = (
    *(
        "content",
        "choices",
        "output",
        "messages",
        "parts",
        "message",
        "tool_calls",
        "toolCalls",
        "type",
        "text",
        "role",
    ),
    *(
        "annotations",
        "citations",
        "function",
        "arguments",
        "input",
        "id",
        "status",
        "audio",
        "source",
        "action",
        "state",
    ),
)
_SHAPES: Any = st.recursive(
    plain_data | st.sampled_from(["assistant", "user", "tool", "message", "function_call", "tool_use", "tool-call"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=300)
@given(st.sampled_from([*sorted(FORMATS), None]), _SHAPES | any_json)
def test_whatever_is_taken_for_a_message_is_projected(format_name: str | None, message: JSON) -> None:
    assert decode(encode(ui_message(format_name, message)))


def stages(format_name: str, chunks: list[JSON], initial: Any) -> list[Any]:
    folding = Fold.start(format_name, initial)
    seen = []
    for chunk in chunks:
        folding.add(chunk)
        seen.append(parts(format_name, folding.message))
    return seen


_ORDER = {state: rank for rank, states in enumerate(
    (
        ("streaming", "input-streaming"),
        ("done", "input-available"),
        ("approval-requested",),
        ("approval-responded",),
        ("output-available", "output-error"),
    )
) for state in states}  # fmt: skip


def is_prefix_of(before: Any, after: Any) -> bool:
    """Whether the parts are those of an earlier moment: the same ones or fewer, as far or less far."""
    if len(before) > len(after):
        return False
    return all(
        one["type"] == other["type"]
        and str(other.get("text", "")).startswith(str(one.get("text", "")))
        and _ORDER.get(one.get("state"), 0) <= _ORDER.get(other.get("state"), 0)
        for one, other in zip(before, after, strict=False)
    )


STORIES: dict[str, list[Any]] = {
    ANTHROPIC: [
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [], "usage": {}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "so"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Lo"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "ok"}},
        {
            "type": "content_block_start",
            "index": 2,
            "content_block": {"type": "tool_use", "id": "c", "name": "search", "input": {}},
        },
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"q":'}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
    ],
    CHAT: [
        {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in (
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Lo"}, None),
            ({"content": "ok"}, None),
            ({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "search"}}]}, None),
            ({"tool_calls": [{"index": 0, "function": {"arguments": '{"q":'}}]}, None),
            ({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}, None),
            ({"tool_calls": [{"index": 1, "id": "d", "type": "function", "function": {"name": "search"}}]}, None),
            ({}, "tool_calls"),
        )
    ],
    CLIENT: [
        {"type": "RUN_STARTED", "runId": "r", "input": {"messages": [{"id": "u", "role": "user", "content": "?"}]}},
        {"type": "TEXT_MESSAGE_START", "messageId": "a"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "Lo"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "ok"},
        {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "search", "parentMessageId": "a"},
        {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": '{"q":'},
        {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "1}"},
        {"type": "TOOL_CALL_RESULT", "toolCallId": "c", "messageId": "t", "content": "2"},
        {"type": "TEXT_MESSAGE_CHUNK", "messageId": "b", "delta": "Two"},
    ],
    TANSTACK: [
        {"type": "TEXT_MESSAGE_START", "messageId": "a"},
        {"type": "REASONING_MESSAGE_CONTENT", "messageId": "a", "delta": "so"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "Lo"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "ok"},
        {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "search"},
        {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": '{"q":'},
        {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "1}"},
        {"type": "TOOL_CALL_END", "toolCallId": "c"},
        {"type": "TOOL_CALL_RESULT", "toolCallId": "c", "messageId": "t", "content": "2"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "Two"},
    ],
    RESPONSES: [
        {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {"type": "message", "id": "m", "status": "in_progress", "content": []},
        },
        {
            "type": "response.content_part.added",
            "item_id": "m",
            "output_index": 0,
            "content_index": 0,
            "part": {"type": "output_text", "text": "", "annotations": []},
        },
        *(
            {
                "type": "response.output_text.delta",
                "item_id": "m",
                "output_index": 0,
                "content_index": 0,
                "delta": delta,
            }
            for delta in ("Lo", "ok")
        ),
        {
            "type": "response.output_item.added",
            "output_index": 1,
            "item": {
                "type": "function_call",
                "id": "f",
                "call_id": "c",
                "name": "search",
                "arguments": "",
                "status": "in_progress",
            },
        },
        *(
            {"type": "response.function_call_arguments.delta", "item_id": "f", "output_index": 1, "delta": delta}
            for delta in ('{"q":', "1}")
        ),
        {
            "type": "response.output_item.done",
            "output_index": 1,
            "item": {
                "type": "function_call",
                "id": "f",
                "call_id": "c",
                "name": "search",
                "arguments": '{"q":1}',
                "status": "completed",
            },
        },
    ],
}


@pytest.mark.parametrize("format_name", sorted(STORIES))
def test_as_chunks_come_parts_are_added_and_grow_and_none_goes_back(format_name: str) -> None:
    seen = stages(format_name, STORIES[format_name], None)

    for before, after in itertools.pairwise(seen):
        assert is_prefix_of(before, after), (before, after)
    spoken = "".join(part["text"] for part in seen[-1] if part["type"] == "text")
    assert spoken in {"Look", "LookTwo"}
    (call,) = [part for part in seen[-1] if part.get("toolCallId") == "c"]
    assert call["state"] == ("output-available" if "Two" in spoken else "input-available")
    assert call["input"] == {"q": 1}


@pytest.mark.parametrize("format_name", sorted(FORMATS))
@given(texts=st.lists(st.text(max_size=3), max_size=6))
def test_the_text_of_the_projection_is_the_text_of_the_fold(format_name: str, texts: list[str]) -> None:
    opening, piece, _ = DICTATIONS[format_name]
    for count in range(len(texts) + 1):
        message = fold(format_name, [*opening, *map(piece, texts[:count])])
        said = "".join(part["text"] for part in parts(format_name, message) if part["type"] == "text")
        assert said == "".join(texts[:count])


def test_the_answers_of_all_vectors_are_projected_into_the_model() -> None:
    """And nothing that their formats share is edited on the way."""
    for format_name, chunks, initial in runs():
        if format_name == AI_SDK:
            continue
        folding = Fold.start(format_name, initial)
        for chunk in chunks:
            folding.add(chunk)
            message = folding.message
            before = copy.deepcopy(message)
            for part in parts(format_name, message):
                assert_in_the_model(part)
            assert message == before
