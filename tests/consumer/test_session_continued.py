"""The fold of a session: answers that were cut short, what they lack, and who goes on with them."""

from typing import Any

import pytest

from consumer.fold import Fold
from consumer.session import SessionFold
from tests.consumer.folded import folded, only_item, reloaded, text_of
from tests.consumer.records import answer, chunk, ended, opened

# -- one generation goes on with another one's message ----------------------------------------------------------------


CUT_SHORT = [opened("g", "m"), chunk("g", 0, "m", "\ud83d"), ended("g", "m", "failed", reason="LEASE_EXPIRED")]
GOES_ON = [opened("h", "m", lane="own", continues="g"), chunk("h", 0, "m", "\ude00")]


def test_a_generation_goes_on_where_the_one_before_ended() -> None:
    """DESIGN 5, late is not lost: its chunks fold on, and the message is streaming again, without how it once ended."""
    folding = folded([*CUT_SHORT, *GOES_ON])
    (item,) = folding.items()
    assert text_of(item) == "\N{GRINNING FACE}"
    assert (item["status"], item["generationId"], item["lane"]) == ("streaming", "h", "own")
    assert not {"reason", "endedAt"} & item.keys()
    assert folding.is_running

    folding.add(ended("h", "m"))

    assert (folding.items()[0]["status"], folding.is_running, folding.malformed) == ("complete", False, 0)


def test_an_answer_is_streaming_as_soon_as_somebody_goes_on_with_it() -> None:
    assert only_item([*CUT_SHORT, GOES_ON[0]])["status"] == "streaming"


def test_a_tool_call_that_was_cut_short_goes_on_in_the_midst_of_its_input() -> None:
    ai_sdk = "ai-sdk-ui-message-stream"
    first = [
        {"type": "tool-input-start", "toolCallId": "t", "toolName": "look"},
        {"type": "tool-input-delta", "toolCallId": "t", "inputTextDelta": '{"a":'},
    ]
    rest = [
        {"type": "tool-input-delta", "toolCallId": "t", "inputTextDelta": "1}"},
        {"type": "tool-input-available", "toolCallId": "t", "toolName": "look", "input": {"a": 1}},
    ]
    both = [chunk("g", number, "m", content) for number, content in enumerate([*first, *rest])]
    cut = [
        opened("g", "m", chunk_format=ai_sdk),
        *both[:2],
        ended("g", "m", "aborted", chunk_format=ai_sdk),
        opened("h", "m", chunk_format=ai_sdk, continues="g"),
        *(chunk("h", number, "m", content) for number, content in enumerate(rest)),
    ]
    whole_answer = only_item([opened("g", "m", chunk_format=ai_sdk), *both])

    for before in range(len(cut)):
        folding = reloaded(folded(cut[:before]))
        for record in cut[before:]:
            folding.add(record)
        assert folding.items()[0]["message"] == whole_answer["message"]


def test_a_complete_answer_is_continued_as_its_format_continues_a_message() -> None:
    item = only_item([*answer("g", "m", "a"), opened("h", "m", continues="g"), chunk("h", 0, "m", "b")])

    assert [part["text"] for part in item["message"]["parts"]] == ["ab"]


def test_a_complete_answer_stays_as_it_is_where_its_format_cannot_be_continued() -> None:
    openai = "openai-chat"
    records = [opened("g", "m", chunk_format=openai), ended("g", "m", chunk_format=openai)]
    before = only_item(records)["message"]

    folding = folded([*records, opened("h", "m", chunk_format=openai, continues="g"), chunk("h", 0, "m", {})])

    assert folding.items()[0]["message"] == before
    assert folding.is_whole


def test_chunks_of_every_generation_of_a_message_are_told_from_late_copies() -> None:
    folding = reloaded(folded([*CUT_SHORT, *GOES_ON]))
    before = folding.items()

    for record in [*CUT_SHORT, *GOES_ON]:
        assert folding.add(record) is None
    assert folding.add(chunk("g", 1, "m", "late")) is None

    assert (folding.items(), folding.malformed) == (before, 1)


@pytest.mark.parametrize(
    "record", [opened("h", "m", continues="f"), opened("h", "m"), opened("h", "m", continues=7)], ids=repr
)
def test_a_message_is_not_taken_by_a_generation_that_does_not_continue_its_last(record: Any) -> None:
    folding = folded(CUT_SHORT)

    assert folding.add(record) is None
    assert folding.malformed == 1


def test_a_message_that_is_being_written_is_not_taken_by_another_generation() -> None:
    folding = folded([*CUT_SHORT, *GOES_ON])

    assert folding.add(opened("i", "m", continues="h")) is None
    assert folding.malformed == 1


def test_what_was_taken_over_as_an_item_tells_that_it_cannot_go_on_with_it() -> None:
    folding = SessionFold.of_items(folded([*CUT_SHORT, *answer("c", "n", "a")]).items())
    folding.add(opened("d", "n", continues="c"))
    assert folding.is_whole

    folding.add(GOES_ON[0])

    assert not folding.is_whole


def test_a_format_that_finishes_its_message_does_so_at_a_complete_end_only() -> None:
    openai = "openai-chat"
    delta: Any = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    records = [opened("g", "m", chunk_format=openai), chunk("g", 0, "m", delta)]
    fold = Fold.start(openai)
    fold.add(delta)
    assert fold.final() not in (None, fold.message)

    assert only_item([*records, ended("g", "m", chunk_format=openai)])["message"] == fold.final()
    assert only_item([*records, ended("g", "m", "aborted", chunk_format=openai)])["message"] == fold.message


# -- what a run that failed has left out -----------------------------------------------------------------------------


TOOL = [
    {"type": "tool-input-available", "toolCallId": "c", "toolName": "t", "input": {}},
    {"type": "tool-output-available", "toolCallId": "c", "output": 1},
]
SDK = "ai-sdk-ui-message-stream"


def ended_after(*chunks: Any, status: str, **facts: Any) -> dict[str, Any]:
    records = [opened("g", "m", chunk_format=SDK), *(chunk("g", number, "m", one) for number, one in enumerate(chunks))]
    return only_item([*records, ended("g", "m", status, chunk_format=SDK, **facts)])


@pytest.mark.parametrize("status", ["failed", "aborted"])
def test_a_run_that_fails_keeps_its_metadata_and_tool_results(status: str) -> None:
    """F8."""
    told = {"type": "message-metadata", "messageMetadata": {"model": "x"}}
    item = ended_after({"type": "start"}, told, *TOOL, status=status)
    assert item["message"]["metadata"] == {"model": "x"}
    assert item["message"]["parts"][-1]["output"] == 1
    assert "missing" not in item
    assert "missing" not in ended_after(*TOOL, status=status, usage={"tokens": 1})


@pytest.mark.parametrize("status", ["failed", "aborted"])
def test_a_message_that_a_failed_run_left_without_them_is_marked(status: str) -> None:
    """F8."""
    assert ended_after(*TOOL, status=status)["missing"] == ["metadata"]
    assert ended_after(TOOL[0], status=status, metadata={"model": "x"})["missing"] == ["toolResults"]
    assert ended_after(TOOL[0], status=status)["missing"] == ["metadata", "toolResults"]
    assert ended_after(status=status)["missing"] == ["metadata"]


def test_a_complete_message_is_not_marked_and_a_continued_one_no_longer() -> None:
    assert "missing" not in ended_after(TOOL[0], status="complete")
    going_on = opened("h", "m", chunk_format=SDK)
    going_on["value"]["continues"] = "g"
    log = [opened("g", "m", chunk_format=SDK), chunk("g", 0, "m", TOOL[0]), ended("g", "m", "failed", chunk_format=SDK)]
    assert "missing" in only_item(log)
    assert "missing" not in only_item([*log, going_on])
    assert only_item([*log, going_on, ended("h", "m", "aborted", chunk_format=SDK)])["missing"]
