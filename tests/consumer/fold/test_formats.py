"""Rules of the formats beside the AI SDK's (FOLDS sections 4 to 8) where the vectors do not go."""

from typing import Any

import pytest

from consumer.fold import BadMessage, Fold, fold
from consumer.fold.tanstack_telling import REPEATED_CHARS_MAX
from consumer.plain import DEPTH_MAX, JSON, encode


def folded(name: str, *chunks: JSON) -> Fold:
    folding = Fold.start(name)
    for chunk in chunks:
        folding.add(chunk)
    return folding


def text_start() -> JSON:
    return {"type": "TEXT_MESSAGE_START", "messageId": "m"}


def text(delta: str) -> JSON:
    return {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": delta}


def codes(folding: Fold) -> list[tuple[str, bool]]:
    return [(error.code, error.fatal) for error in folding.errors]


# -- what a stream that ends is worth ----------------------------------------------------------------------------------


def test_a_completion_that_was_cut_short_has_a_message_and_no_result() -> None:
    chunk: Any = {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}]}
    folding = folded("openai-chat", chunk)

    assert folding.final() is None
    folding.add({"id": "1", "choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}]})
    final: Any = folding.final()
    assert final["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert folding.finish_reason == "stop"


def test_the_end_of_a_stream_does_not_end_the_fold() -> None:
    folding = folded("ag-ui-tanstack", text_start(), text("\n"))

    assert folding.final() == {"messages": []}  # only blanks: it is taken away
    folding.add(text("x"))
    assert folding.final() == folding.message


def test_after_a_fatal_chunk_there_is_no_result() -> None:
    folding = folded("anthropic-messages", {"type": "error", "error": {"message": "Overloaded"}})

    assert codes(folding) == [("reported", True)]
    assert folding.errors[0].message == "Overloaded"
    assert folding.final() is None


# -- starting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai-chat", "openai-responses", "anthropic-messages"])
def test_formats_that_tell_one_answer_cannot_be_continued(name: str) -> None:
    with pytest.raises(BadMessage, match="continued"):
        Fold.start(name, {"id": "m", "role": "assistant", "parts": []})


@pytest.mark.parametrize("name", ["ag-ui-client", "ag-ui-tanstack"])
def test_a_conversation_is_continued_from_its_own_message(name: str) -> None:
    continued = Fold.start(name, fold(name, [text_start(), text("a")]))
    continued.add(text("b"))

    assert continued.message == fold(name, [text_start(), text("a"), text("b")])


# -- OpenAI ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [-1, 128, 1.5, None, "0"])
def test_an_index_out_of_bounds_ends_a_completion_as_it_was(index: JSON) -> None:
    good: JSON = {"id": "1", "choices": [{"index": 0, "delta": {"content": "a"}}]}
    call: JSON = {"index": index, "function": {"name": "f"}}
    bad: JSON = {"id": "1", "choices": [{"index": 0, "delta": {"content": "b", "tool_calls": [call]}}]}
    folding = folded("openai-chat", good, bad, good)

    assert codes(folding) == [("malformed", True)]
    assert folding.message == folded("openai-chat", good).message


def item(number: int, **fields: JSON) -> JSON:
    return {"type": "message", "id": f"m{number}", "content": [{"type": "output_text", "text": f"{number}"}], **fields}


CREATED: JSON = {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}}


def added(number: int) -> JSON:
    return {"type": "response.output_item.added", "output_index": number, "item": item(number)}


def test_items_that_come_out_of_order_are_told_in_the_order_of_their_indexes() -> None:
    message: Any = fold("openai-responses", [CREATED, added(2), added(0), added(1)])

    assert [one["id"] for one in message["output"]] == ["m0", "m1", "m2"]
    assert message["output_text"] == "012"


def test_a_response_that_is_told_again_keeps_the_items_it_does_not_repeat() -> None:
    again: JSON = {"type": "response.in_progress", "response": {"id": "r", "model": "x", "output": [item(1, more=1)]}}
    message: Any = fold("openai-responses", [CREATED, added(0), added(1), again])

    assert message["output"] == [item(0), item(1, more=1)]
    assert (message["model"], message.get("status")) == ("x", None)


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (added(0), "out-of-place"),
        ({"type": "response.output_item.added", "output_index": 1, "item": item(0)}, "out-of-place"),
        ({"type": "response.output_item.done", "output_index": 0, "item": item(5)}, "out-of-place"),
        ({"type": "response.output_item.done", "output_index": 4, "item": item(4)}, "no-such-part"),
        ({"type": "response.completed", "response": {"id": "r", "output": []}}, "out-of-place"),
        ({"type": "response.completed", "response": {"id": "other", "output": []}}, "out-of-place"),
        ({"type": "response.of-tomorrow"}, "malformed"),
        ({"type": "error", "message": "overloaded"}, "reported"),
    ],
)
def test_what_contradicts_the_response_so_far_ends_it_as_it_was(event: JSON, code: str) -> None:
    folding = folded("openai-responses", CREATED, added(0), event)

    assert codes(folding) == [(code, True)]
    assert folding.message == fold("openai-responses", [CREATED, added(0)])


# -- AG-UI -------------------------------------------------------------------------------------------------------------


def test_what_is_dropped_with_a_warning_is_on_record() -> None:
    folding = folded(
        "ag-ui-client",
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "x"},
        {"type": "STATE_DELTA", "delta": [{"op": "remove", "path": "/a"}]},
        {"type": "RUN_ERROR", "message": "broken"},
    )

    assert codes(folding) == [("no-such-part", False), ("bad-patch", False), ("reported", False)]
    assert folding.message == {"messages": [], "state": {}}


def test_interrupts_are_told_until_the_next_run_ends() -> None:
    interrupts: JSON = [{"id": "i", "reason": "approval_required"}]
    folding = folded(
        "ag-ui-client", {"type": "RUN_FINISHED", "outcome": {"type": "interrupt", "interrupts": interrupts}}
    )

    assert folding.message["pendingInterrupts"] == interrupts
    assert folding.finish_reason == "interrupt"
    folding.add({"type": "RUN_FINISHED"})
    assert "pendingInterrupts" not in folding.message


def text_chunk(subagent: str | None, **fields: JSON) -> JSON:
    return {"type": "TEXT_MESSAGE_CHUNK", **({"subagentRunId": subagent} if subagent else {}), **fields}


def test_chunks_of_subagents_do_not_end_each_others_messages() -> None:
    message: Any = fold(
        "ag-ui-client",
        [
            text_chunk("a", messageId="m1", delta="1"),
            text_chunk("b", messageId="m2", delta="2"),
            text_chunk("a", delta="1"),
            text_chunk("b", delta="2"),
        ],
    )

    assert [one["content"] for one in message["messages"]] == ["11", "22"]


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        (text_chunk(None, delta="?"), "out-of-place"),
        (text_chunk("c", delta="?"), "no-such-part"),
        (text_chunk("b", messageId="m1", delta="?"), "out-of-place"),
        (text_chunk("a", role="user", delta="?"), "out-of-place"),
        ({"type": "TOOL_CALL_CHUNK", "toolCallId": "c"}, "no-such-part"),
    ],
)
def test_a_chunk_that_may_not_continue_its_message_ends_the_run(chunk: JSON, code: str) -> None:
    opened = (text_chunk("a", messageId="m1", delta="1"), text_chunk("b", messageId="m2", delta="2"))

    assert codes(folded("ag-ui-client", *opened, chunk)) == [(code, True)]


def test_a_message_without_an_id_has_the_same_one_each_time() -> None:
    call: JSON = {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "t"}
    message: Any = fold("ag-ui-tanstack", [call])

    assert message["messages"][0]["id"] == "<generated-1>"
    assert "createdAt" not in message["messages"][0]


def test_text_that_goes_on_behind_thoughts_is_told_again_but_not_without_end() -> None:
    folding = Fold.start("ag-ui-tanstack")
    for step in range(30):
        folding.add({"type": "STEP_STARTED", "stepName": str(step)})
        folding.add({"type": "REASONING_MESSAGE_CONTENT", "messageId": "r", "delta": "so"})
        folding.add(text("x" * 100_000))

    messages: Any = folding.message["messages"]
    parts = messages[0]["parts"]
    assert [len(part["content"]) for part in parts if part["type"] == "text"][:3] == [100_000, 200_000, 300_000]
    assert {code for code, _ in codes(folding)} == {"malformed"}
    assert len(encode(folding.message)) < 2 * REPEATED_CHARS_MAX


def test_structured_output_that_nests_too_deeply_has_no_value_however_often_one_looks() -> None:
    start: JSON = {"type": "CUSTOM", "name": "structured-output.start", "value": {"messageId": "m"}}
    delta = text("[" * DEPTH_MAX)
    looked_at = folded("ag-ui-tanstack", start, delta)
    before: Any = looked_at.message["messages"]
    looked_at.add(delta)
    after: Any = looked_at.message["messages"]

    assert ("partial" in before[0]["parts"][0], "partial" in after[0]["parts"][0]) == (True, False)
    assert looked_at.message == fold("ag-ui-tanstack", [start, delta, delta])
