"""One reader's model of the messages of every format."""

from typing import Any

import pytest

from consumer.fold import FORMATS, Fold, fold
from consumer.fold.projection import PROJECTIONS, ui_message
from consumer.plain import JSON
from tests.consumer.fold.chunks import vectors
from tests.consumer.fold.dictations import AI_SDK
from tests.consumer.fold.projected import (
    ANTHROPIC,
    CHAT,
    CLIENT,
    TANSTACK,
    function,
    parts,
    reasoning,
    text,
    tool,
)
from tests.vectors import initial_of

# -- who it is ---------------------------------------------------------------------------------------------------------


def test_every_format_that_can_be_folded_can_be_projected() -> None:
    assert PROJECTIONS.keys() == FORMATS.keys()


def test_the_session_names_the_message_and_its_role() -> None:
    message = ui_message("text", fold("text", ["Hi"]), message_id="m", role="user")

    assert message == {"id": "m", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}


@pytest.mark.parametrize(
    ("format_name", "message", "expected"),
    [
        (AI_SDK, {"id": "m", "role": "assistant", "parts": []}, "m"),
        (ANTHROPIC, {"id": "msg_1", "content": []}, "msg_1"),
        (CLIENT, {"messages": [{"id": "u", "role": "user"}, {"id": "a", "role": "assistant"}, {"id": "t"}]}, "a"),
        (CHAT, {}, ""),
    ],
)
def test_without_a_session_the_message_names_itself(format_name: str, message: Any, expected: str) -> None:
    assert ui_message(format_name, message)["id"] == expected


@pytest.mark.parametrize(("role", "expected"), [("developer", "system"), ("tool", "assistant"), ("user", "user")])
def test_a_role_that_the_model_does_not_know_becomes_the_nearest(role: str, expected: str) -> None:
    assert ui_message(None, {"id": "m", "role": role, "content": "x"})["role"] == expected


@pytest.mark.parametrize("message", [None, 5, [], "text", {}])
@pytest.mark.parametrize("format_name", [*sorted(FORMATS), "of-tomorrow", None])
def test_what_is_no_message_has_no_parts(format_name: str | None, message: Any) -> None:
    assert ui_message(format_name, message, message_id="m") == {"id": "m", "role": "assistant", "parts": []}


# -- the AI SDK --------------------------------------------------------------------------------------------------------


def test_a_message_of_the_ai_sdk_is_given_as_it_is() -> None:
    for vector in vectors(AI_SDK):
        folding = Fold.start(AI_SDK, initial_of(vector))
        for chunk in vector["chunks"]:
            folding.add(chunk)
            message = folding.message
            if message.get("metadata", "") is not None:
                assert ui_message(AI_SDK, message) == message


def test_when_the_generation_has_ended_no_text_is_left_streaming() -> None:
    chunks: list[JSON] = [
        {"type": "reasoning-start", "id": "r"},
        {"type": "text-start", "id": "t"},
        {"type": "text-delta", "id": "t", "delta": "Hel"},
    ]
    message = fold(AI_SDK, chunks)

    assert [part["state"] for part in parts(AI_SDK, message)] == ["streaming", "streaming"]
    assert [part["state"] for part in parts(AI_SDK, message, ended=True)] == ["done", "done"]


# -- AG-UI -------------------------------------------------------------------------------------------------------------


def test_an_ag_ui_run_of_two_steps_is_one_message() -> None:
    messages = [
        {"id": "u", "role": "user", "content": "old question"},
        {"id": "a", "role": "assistant", "content": "old answer"},
        {"id": "v", "role": "user", "content": "question"},
        {"id": "s", "role": "system", "content": "be brief"},
        {"id": "r", "role": "reasoning", "content": "so"},
        {"id": "b", "role": "assistant", "content": "Look: ", "toolCalls": [function('{"q":1}'), function("{}", "d")]},
        {"id": "t", "role": "tool", "toolCallId": "c", "content": '{"found":2}'},
        {"id": "o", "role": "tool", "toolCallId": "d", "content": "", "error": "no"},
        {"id": "p", "role": "activity", "activityType": "PLAN", "content": {"steps": 1}},
        {"id": "e", "role": "assistant", "content": "Two."},
    ]

    assert parts(CLIENT, {"messages": messages, "state": {}}) == [
        reasoning("so", id="r"),
        text("Look: "),
        tool("output-available", input={"q": 1}, output={"found": 2}),
        tool("output-error", "d", input={}, errorText="no"),
        {"type": "data-PLAN", "id": "p", "data": {"steps": 1}},
        {"type": "step-start"},
        text("Two.", "streaming"),
    ]


def test_a_call_that_an_interrupt_names_waits_for_approval() -> None:
    told = {
        "messages": [{"id": "a", "role": "assistant", "toolCalls": [function("{}")]}],
        "pendingInterrupts": [{"id": "i", "toolCallId": "c"}, {"id": "j"}],
    }

    assert parts(CLIENT, told) == [tool("approval-requested", input={}, approval={"id": "i"})]


def test_tanstack_parts_become_parts() -> None:
    call = {"type": "tool-call", "id": "c", "name": "search", "arguments": '{"q":1}', "state": "complete"}
    told = [
        {"type": "thinking", "content": "so", "stepId": "s"},
        {"type": "text", "content": "Look: "},
        {**call, "input": {"q": 1}, "output": {"found": 2}},
        {"type": "tool-result", "toolCallId": "c", "content": '{"found":2}', "state": "complete"},
        {"type": "structured-output", "status": "complete", "raw": "{}", "data": {}},
        {"type": "image", "source": {"type": "url", "value": "https://a.example/i"}},
        {"type": "text", "content": "Two."},
    ]
    messages = [{"id": "u", "role": "user", "parts": []}, {"id": "a", "role": "assistant", "parts": told}]

    assert parts(TANSTACK, {"messages": messages}) == [
        reasoning("so", id="s"),
        text("Look: "),
        tool("output-available", input={"q": 1}, output={"found": 2}),
        {"type": "step-start"},
        {"type": "data-structured-output", "data": {"status": "complete", "raw": "{}", "data": {}}},
        {"type": "file", "mediaType": "image/*", "url": "https://a.example/i"},
        text("Two.", "streaming"),
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"state": "awaiting-input", "arguments": ""}, tool("input-streaming", rawInput="")),
        ({"state": "input-streaming", "arguments": '{"q'}, tool("input-streaming", input={}, rawInput='{"q')),
        ({"state": "input-complete", "arguments": "{}", "input": {}}, tool("input-available", input={})),
        (
            {"state": "approval-requested", "arguments": "{}", "approval": {"id": "p", "needsApproval": True}},
            tool("approval-requested", input={}, approval={"id": "p"}),
        ),
        (
            {"state": "approval-responded", "arguments": "{}", "approval": {"id": "p", "approved": True}},
            tool("approval-responded", input={}, approval={"id": "p", "approved": True}),
        ),
        (
            {"state": "error", "arguments": "{}", "output": {"error": "no"}},
            tool("output-error", input={}, errorText="no"),
        ),
    ],
)
def test_a_tanstack_call_is_as_far_as_its_state_says(told: Any, expected: Any) -> None:
    call = {"type": "tool-call", "id": "c", "name": "search", **told}

    assert parts(TANSTACK, {"messages": [{"id": "a", "role": "assistant", "parts": [call]}]}) == [expected]


# -- posted whole ------------------------------------------------------------------------------------------------------


HELLO = text("Hello")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "Hello"}, [HELLO]),
        ({"text": "Hello"}, [HELLO]),
        ({"parts": [{"type": "text", "text": "Hello"}]}, [{"type": "text", "text": "Hello"}]),
        ({"parts": [{"type": "text", "content": "Hello"}]}, [HELLO]),
        ({"content": [{"type": "input_text", "text": "Hello"}, {"type": "text", "text": "Hello"}]}, [HELLO, HELLO]),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "https://a.example/i"}}]},
            [{"type": "file", "mediaType": "image/*", "url": "https://a.example/i"}],
        ),
        (
            {"content": [{"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0"}}]},
            [{"type": "file", "mediaType": "image/gif", "url": "data:image/gif;base64,R0"}],
        ),
        (
            {"content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:a/pdf;base64,A"}}]},
            [
                {
                    "type": "file",
                    "mediaType": "application/octet-stream",
                    "filename": "a.pdf",
                    "url": "data:a/pdf;base64,A",
                }
            ],
        ),
        (
            {"role": "tool", "tool_call_id": "c", "name": "search", "content": "[1]"},
            [tool("output-available", input=None, output=[1])],
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [function("{}")]},
            [tool("input-available", input={})],
        ),
        ({"title": "no shape that is known"}, []),
    ],
)
def test_a_message_that_was_posted_whole_is_read_by_its_shape(message: Any, expected: Any) -> None:
    assert parts(None, {"id": "m", "role": "user", **message}) == expected
