"""Chunks out of the body of a UI message stream response (FOLDS section 3)."""

import json
from typing import Any

import pytest

from consumer.fold import BadUIMessageStream, UIMessageStreamReader, read_ui_message_stream

START = {"type": "start", "messageId": "m"}
URL_SOURCE = {"type": "source", "sourceType": "url", "id": "s", "url": "u"}


def event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def read(*chunks: Any) -> list[Any]:
    return list(read_ui_message_stream(map(event, chunks)))


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "text-start", "id": "1", "providerMetadata": {"p": {"x": None}}},
        {"type": "text-end", "id": "1", "citations": [{"source": URL_SOURCE, "startIndex": 0, "citedText": "x"}]},
        {"type": "reasoning-delta", "id": "1", "delta": "\ud83d", "of-tomorrow": [1]},
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "t", "inputEncoding": "text", "dynamic": True},
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "t", "input": None},
        {"type": "tool-approval-request", "approvalId": "a", "toolCallId": "c", "inputSchemaInput": None},
        {"type": "tool-approval-response", "approvalId": "a", "approved": False, "reason": "no"},
        {"type": "tool-output-available", "toolCallId": "c", "output": 0, "preliminary": True},
        {"type": "source-document", "sourceId": "s", "mediaType": "m", "title": "t"},
        {"type": "steering-message", "id": "s", "parts": [{"type": "text", "text": "x"}]},
        {"type": "steering-message", "id": "s", "parts": [{"type": "file", "mediaType": "m", "url": "u"}]},
        {"type": "data-", "data": None},
        {"type": "finish", "finishReason": "interrupted", "messageMetadata": None},
        {"type": "message-metadata", "messageMetadata": 5},
        {"type": "data-x", "data": {"constructor": 1}},
    ],
)
def test_a_chunk_of_the_union_is_handed_out_as_it_came(chunk: dict[str, Any]) -> None:
    assert read(chunk) == [chunk]


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "\ud83d"},
        {"type": "finish", "finishReason": "\ud83d"},
        5,
        None,
        [],
        {},
        {"type": 5},
        {"type": "of-tomorrow"},
        {"type": "text-start"},
        {"type": "text-start", "id": "1", "providerMetadata": None},
        {"type": "text-start", "id": "1", "providerMetadata": {"p": 1}},
        {"type": "text-end", "id": "1", "citations": [{"source": {**URL_SOURCE, "sourceType": "book"}}]},
        {"type": "text-end", "id": "1", "citations": [{"source": URL_SOURCE, "startIndex": -1}]},
        {"type": "text-end", "id": "1", "citations": [{"source": URL_SOURCE, "endIndex": 1.5}]},
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "t", "inputEncoding": "xml"},
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "t", "dynamic": 1},
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "t"},
        {"type": "tool-input-error", "toolCallId": "c", "toolName": "t", "input": 1},
        {"type": "tool-approval-response", "approvalId": "a"},
        {"type": "tool-output-available", "toolCallId": "c"},
        {"type": "steering-message", "id": "s", "parts": [{"type": "image", "url": "u"}]},
        {"type": "data-x"},
        {"type": "data-x", "data": 1, "id": 5},
        {"type": "finish", "finishReason": "unknown"},
        {"type": "message-metadata"},
        {"type": "start", "messageId": None},
    ],
)
def test_what_is_not_in_the_union_ends_the_stream(chunk: Any) -> None:
    chunks = read_ui_message_stream(map(event, [START, chunk, START]))

    assert next(chunks) == START
    with pytest.raises(BadUIMessageStream) as caught:
        next(chunks)
    assert caught.value.code == "not-a-chunk"


@pytest.mark.parametrize(
    "data",
    ["", "{oops", "NaN", '{"type":"start"} x', '{"type":"data-x","data":{"constructor":{"prototype":1}}}', "[DONE] "],
)
def test_what_is_no_safe_json_ends_the_stream(data: str) -> None:
    with pytest.raises(BadUIMessageStream) as caught:
        list(read_ui_message_stream([b"data: " + data.encode() + b"\n\n"]))

    assert caught.value.code == "not-json"
    assert caught.value.excerpt == data


def test_a_citation_loses_fields_that_are_not_its_own() -> None:
    citation = {"source": {**URL_SOURCE, "mediaType": "m"}, "startIndex": 1, "more": 2}

    assert read({"type": "text-end", "id": "1", "citations": [citation], "more": 3}) == [
        {"type": "text-end", "id": "1", "citations": [{"source": URL_SOURCE, "startIndex": 1}], "more": 3}
    ]


def test_done_is_passed_over_wherever_it_is() -> None:
    body = b"data: [DONE]\n\ndata: [DONE]\n\n" + event(START) + b"data: [DONE]\n\n" + event(START)

    assert list(read_ui_message_stream([body])) == [START, START]


def test_once_failed_a_reader_stays_failed() -> None:
    reader = UIMessageStreamReader()
    reader.receive(event(5) + event(START))

    for _ in range(2):
        with pytest.raises(BadUIMessageStream):
            reader.next_chunk()


def test_an_event_without_end_is_refused_after_those_before_it() -> None:
    reader = UIMessageStreamReader(event_chars_max=100)
    reader.receive(event(START) + b"data: " + b"x" * 200)

    assert reader.next_chunk() == START
    with pytest.raises(BadUIMessageStream) as caught:
        reader.next_chunk()
    assert caught.value.code == "too-long"
