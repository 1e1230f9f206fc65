"""Rules of the AI SDK's fold (FOLDS section 2) where the vectors do not go: around dropped steps, and wrong fields."""

from typing import Any

import pytest

from consumer.fold import Fold, fold
from consumer.fold.ai_sdk_metadata import merge
from consumer.fold.draft import FatalChunk
from consumer.fold.tree import Object, plain
from consumer.plain import JSON

AI_SDK = "ai-sdk-ui-message-stream"
STEP: JSON = {"type": "start-step"}
RESET: JSON = {"type": "reset-step"}
STEP_START: JSON = {"type": "step-start"}


def parts_of(*chunks: JSON) -> Any:
    return fold(AI_SDK, chunks)["parts"]


def error_codes(*chunks: JSON) -> list[str]:
    folding = Fold.start(AI_SDK)
    for chunk in chunks:
        folding.add(chunk)
    return [error.code for error in folding.errors]


def data(data_id: str | None, value: JSON) -> JSON:
    return {"type": "data-x", "id": data_id, "data": value}


def tool(move: str, call_id: str = "c", **fields: JSON) -> JSON:
    return {"type": f"tool-{move}", "toolCallId": call_id, "toolName": "t", **fields}


# -- dropped steps -----------------------------------------------------------------------------------------------------


def test_data_of_a_dropped_step_is_not_found_again() -> None:
    assert parts_of(STEP, data("d", 1), RESET, data("d", 2)) == [STEP_START, data("d", 2)]


def test_data_of_an_earlier_step_is_found_after_a_later_one_was_dropped() -> None:
    assert parts_of(data("d", 1), STEP, data("e", 1), RESET, data("d", 2)) == [data("d", 2), STEP_START]


def test_a_call_of_a_dropped_step_is_not_found_again() -> None:
    assert error_codes(tool("input-available"), STEP, RESET, tool("output-available")) == []
    assert error_codes(STEP, tool("input-available"), RESET, tool("output-available")) == ["no-such-part"]


@pytest.mark.parametrize(
    ("start", "delta"),
    [
        ({"type": "text-start", "id": "1"}, {"type": "text-delta", "id": "1", "delta": "x"}),
        ({"type": "reasoning-start", "id": "1"}, {"type": "reasoning-end", "id": "1"}),
        (tool("input-start"), tool("input-delta", inputTextDelta="x")),
    ],
)
def test_what_was_growing_when_a_step_is_dropped_does_not_grow_on(start: JSON, delta: JSON) -> None:
    assert error_codes(start, STEP, delta) == []
    assert error_codes(start, STEP, RESET, delta) == ["no-such-part"]


def test_output_goes_to_the_last_part_that_is_left() -> None:
    parts = parts_of(
        tool("input-available", input=1),
        STEP,
        tool("input-available", input=2),
        STEP,
        tool("input-available", input=3),
        RESET,
        tool("output-available", output="out"),
    )

    assert [(part.get("input"), part.get("output")) for part in parts] == [
        (1, None),
        (None, None),
        (2, "out"),
        (None, None),
    ]


def test_texts_of_earlier_steps_keep_what_they_had_when_a_step_is_dropped() -> None:
    parts = parts_of(
        {"type": "text-start", "id": "1"},
        tool("input-start"),
        tool("input-delta", inputTextDelta="["),
        tool("input-delta", inputTextDelta="1"),
        {"type": "text-delta", "id": "1", "delta": "kept"},
        STEP,
        {"type": "text-start", "id": "2"},
        RESET,
    )

    assert parts[0]["text"] == "kept"
    assert parts[1]["input"] == [1]
    assert parts[2:] == [STEP_START]


def test_a_text_whose_id_is_started_again_keeps_what_it_had() -> None:
    start: JSON = {"type": "text-start", "id": "1"}
    first, second = parts_of(start, {"type": "text-delta", "id": "1", "delta": "a"}, start)

    assert (first["text"], second["text"]) == ("a", "")


# -- input that streams ------------------------------------------------------------------------------------------------


def test_input_that_goes_on_in_a_new_step_leaves_the_old_part_as_it_was() -> None:
    parts = parts_of(
        tool("input-start"),
        tool("input-delta", inputTextDelta="[1,"),
        STEP,
        tool("input-delta", inputTextDelta="2"),
    )

    assert [part.get("rawInput") for part in parts] == ["[1,", None, "[1,2"]


def test_a_dynamic_part_made_by_a_delta_takes_its_raw_input_from_the_next_one() -> None:
    start = tool("input-start", dynamic=True)
    delta = tool("input-delta", inputTextDelta="1")

    assert [part.get("rawInput") for part in parts_of(start, delta, STEP, delta)] == ["1", None, None]
    assert [part.get("rawInput") for part in parts_of(start, delta, STEP, delta, delta)] == ["1", None, "111"]


def test_output_keeps_the_input_as_far_as_it_came() -> None:
    deltas = [tool("input-delta", inputTextDelta=piece) for piece in ('{"a":', '"b')]

    (part,) = parts_of(tool("input-start"), *deltas, tool("output-available"))

    assert part == {"type": "tool-t", "toolCallId": "c", "state": "output-available", "input": {"a": "b"}}


def test_a_second_start_leaves_the_input_of_the_other_kind_as_it_was() -> None:
    static, dynamic = parts_of(
        tool("input-start"),
        tool("input-delta", inputTextDelta="[1"),
        tool("input-start", dynamic=True),
        tool("input-delta", inputTextDelta="[2"),
    )

    assert (static["input"], dynamic["input"]) == ([1], [2])


# -- wrong fields ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunk",
    [
        None,
        "text-delta",
        [],
        {},
        {"type": None},
        {"type": ["text-delta"]},
        {"type": "text-start"},
        {"type": "text-start", "id": 1},
        {"type": "text-delta", "id": "1"},
        {"type": "text-delta", "id": ["1"], "delta": "x"},
        {"type": "text-delta", "id": "1", "delta": None},
        {"type": "reasoning-start", "id": {}},
        {"type": "reasoning-end"},
        {"type": "tool-input-start", "toolCallId": "c"},
        {"type": "tool-input-start", "toolName": "t"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": 1},
        {"type": "tool-input-available", "toolCallId": {}, "toolName": "t"},
        {"type": "tool-output-available"},
        {"type": "tool-output-denied", "toolCallId": None},
        {"type": "tool-approval-request", "toolCallId": "c"},
        {"type": "tool-approval-response", "approvalId": 1},
        {"type": "start", "messageId": 1},
        {"type": "finish", "finishReason": []},
    ],
)
def test_a_field_that_the_fold_reads_must_be_right(chunk: JSON) -> None:
    assert error_codes({"type": "text-start", "id": "1"}, chunk) == ["malformed"]


def test_fields_that_the_fold_does_not_read_are_taken_as_they_come() -> None:
    assert parts_of({"type": "source-url", "sourceId": 1, "url": None}) == [
        {"type": "source-url", "sourceId": 1, "url": None}
    ]


def test_an_error_that_the_stream_reports_changes_nothing() -> None:
    assert error_codes({"type": "error", "errorText": "overloaded"}, {"type": "error"}) == ["reported", "reported"]
    assert parts_of({"type": "error", "errorText": "overloaded"}) == []


# -- metadata ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "more", "result"),
    [
        (None, [1], [1]),
        ({"a": 1}, None, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"b": None, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({}, {"__proto__": 1, "constructor": 2, "prototype": 3}, {}),
        ({}, {"a": {"__proto__": 1}}, {"a": {"__proto__": 1}}),
        ({"a": {}}, {"a": {"__proto__": 1, "b": 2}}, {"a": {"b": 2}}),
        ({"a": 1}, ["x"], {"a": 1, "0": "x"}),
        (["x", "y"], {"1": "z"}, {"0": "x", "1": "z"}),
        ({}, "😀", {"0": "\ud83d", "1": "\ude00"}),
        ("ab", {}, {"0": "a", "1": "b"}),
        ({"a": 1}, 5, {"a": 1}),
        (5, False, {}),
        (0, {"__proto__": 1}, {}),
    ],
)
def test_metadata_is_merged_as_javascript_spreads_it(base: JSON, more: JSON, result: JSON) -> None:
    message = Object(metadata=base)
    merge(message, more)

    assert plain(message)["metadata"] == result


@pytest.mark.parametrize("base", ["", "ab", 0, 5, True, False])
def test_metadata_cannot_be_merged_into_a_scalar(base: JSON) -> None:
    with pytest.raises(FatalChunk):
        merge(Object(metadata=base), {"a": 1})


def test_a_finish_whose_metadata_cannot_be_merged_still_tells_its_reason() -> None:
    folding = Fold.start(AI_SDK)
    folding.add({"type": "start", "messageMetadata": 5})
    folding.add({"type": "finish", "finishReason": "stop", "messageMetadata": {"a": 1}})

    assert folding.failed
    assert folding.finish_reason == "stop"
    assert folding.message["metadata"] == 5
