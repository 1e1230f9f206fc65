"""The fold of a session: from records to the items of `GET /messages`."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from consumer.fold import Fold
from consumer.plain import DEPTH_MAX, encode
from consumer.session import BadSessionState, SessionFold
from tests.consumer.fold.chunks import format_and_chunks
from tests.consumer.records import answer, chunk, ended, opened, stop, whole


def folded(records: Iterable[Any]) -> SessionFold:
    folding = SessionFold()
    for record in records:
        folding.add(record)
    return folding


def only_item(records: Iterable[Any]) -> dict[str, Any]:
    (item,) = folded(records).items()
    return item


def text_of(item: dict[str, Any]) -> str:
    return "".join(part["text"] for part in item["message"]["parts"])


def reloaded(folding: SessionFold) -> SessionFold:
    copy = SessionFold()
    for item in reversed(folding.items()):
        message_id: Any = item["id"]
        copy.load(folding.ordinal(message_id), message_id, folding.dump(message_id))
    return copy


# -- the life of a message -----------------------------------------------------------------------------------------


def test_a_generation_without_chunks_is_pending() -> None:
    item = only_item([opened("g", "m")])

    assert item == {
        "id": "m",
        "role": "assistant",
        "status": "pending",
        "generationId": "g",
        "lane": "main",
        "format": "text",
        "message": {"id": "", "role": "assistant", "parts": []},
        "createdAt": "2026-01-01T00:00:00.000Z",
    }


def test_the_first_chunk_makes_it_streaming() -> None:
    item = only_item([opened("g", "m"), chunk("g", 0, "m", "Hel")])

    assert item["status"] == "streaming"
    assert text_of(item) == "Hel"


def test_the_terminal_record_ends_it_with_its_facts_and_keeps_the_text() -> None:
    facts: dict[str, Any] = {"reason": "superseded", "error": {"a": 1}, "usage": {"tokens": 3}, "metadata": {"b": [2]}}
    records = [opened("g", "m"), chunk("g", 0, "m", "Hel"), ended("g", "m", "aborted", **facts)]

    item = only_item(records)

    assert item["status"] == "aborted"
    assert text_of(item) == "Hel"
    assert item["endedAt"] == "2026-01-01T00:00:09.000Z"
    assert {name: item[name] for name in facts} == facts


def test_facts_that_are_null_are_left_out() -> None:
    item = only_item([opened("g", "m"), ended("g", "m", error=None, usage=None)])

    assert not {"error", "usage"} & item.keys()


def test_a_generation_whose_end_is_all_that_is_seen_is_one_that_ended() -> None:
    item = only_item([ended("g", "m", "failed")])

    assert (item["status"], item["generationId"]) == ("failed", "g")


def test_a_whole_message_is_complete_at_once() -> None:
    item = only_item([whole("m", text="hi", extra=[1])])

    assert item == {
        "id": "m",
        "role": "user",
        "status": "complete",
        "message": {"id": "m", "role": "user", "text": "hi", "extra": [1]},
    }


def test_a_whole_message_has_the_time_of_its_record() -> None:
    record = whole("m")
    record["headers"]["timestamp"] = "2026-01-01T00:00:01.000Z"

    assert only_item([record])["createdAt"] == "2026-01-01T00:00:01.000Z"


def test_an_upsert_replaces_a_whole_message_in_its_place() -> None:
    items = folded([whole("m", text="old", more=1), whole("n"), whole("m", "upsert", text="new")]).items()

    assert [item["id"] for item in items] == ["m", "n"]
    assert items[0]["message"] == {"id": "m", "role": "user", "text": "new"}


def test_a_format_that_is_not_known_leaves_the_message_null_and_the_status_right() -> None:
    records = [opened("g", "m", chunk_format="morse"), chunk("g", 0, "m", "-"), chunk("g", 1, "m", ".")]
    folding = folded(records)
    assert (folding.items()[0]["message"], folding.items()[0]["status"]) == (None, "streaming")

    folding = reloaded(folding)
    folding.add(chunk("g", 1, "m", "."))
    folding.add(ended("g", "m", chunk_format="morse"))

    assert (folding.items()[0]["message"], folding.items()[0]["status"]) == (None, "complete")
    assert folding.malformed == 0


def test_messages_come_in_the_order_of_their_first_appearance() -> None:
    records = [whole("z"), opened("g2", "b"), opened("g1", "a"), chunk("g1", 0, "a", "1"), ended("g2", "b"), whole("c")]

    assert [item["id"] for item in folded(records).items()] == ["z", "b", "a", "c"]


def test_answers_that_are_written_at_once_are_kept_apart() -> None:
    first, second = answer("g:1", "m1", "a", "b"), answer("g:1:2", "m2", "x", "y")
    folding = folded(record for pair in zip(first, second, strict=True) for record in pair)

    assert [text_of(item) for item in folding.items()] == ["ab", "xy"]


def test_add_names_the_message_that_changed() -> None:
    folding = SessionFold()
    records = [whole("u"), opened("g", "m"), chunk("g", 0, "m", "a"), stop("g", "m"), ended("g", "m", "aborted")]

    assert [folding.add(record) for record in records] == ["u", "m", "m", None, "m"]


def test_it_runs_while_a_generation_is_open() -> None:
    folding = folded([whole("u"), opened("g", "m")])
    assert folding.is_running

    folding.add(ended("g", "m"))

    assert not folding.is_running


def test_an_item_that_was_given_out_does_not_change_later() -> None:
    folding = folded([opened("g", "m"), chunk("g", 0, "m", "a")])
    before = folding.items()
    text = json.dumps(before)

    folding.add(chunk("g", 1, "m", "b"))
    folding.add(ended("g", "m"))

    assert json.dumps(before) == text


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


# -- what is seen again, or should not be there --------------------------------------------------------------------


def test_records_seen_twice_change_nothing() -> None:
    log = [whole("u"), *answer("g", "m", "a", "b"), opened("h", "n"), chunk("h", 0, "n", "c")]
    folding = folded(log)
    once = folding.items()

    assert [folding.add(record) for record in log] == [None] * len(log)
    assert folding.items() == once
    assert folding.malformed == 0


@pytest.mark.parametrize(
    "record",
    [
        chunk("g", 2, "m", "hole before it"),
        chunk("h", 0, "m", "of no generation"),
        chunk("g", 0, "m", "x") | {"key": "g"},
        chunk("g", 0, "m", "x") | {"key": "g:00"},
        chunk("g", 0, "m", "x") | {"key": "g:-1"},
        chunk("g", 0, "m", "x") | {"key": "g:\u0661"},
        chunk("g", 0, "m", "x") | {"key": "g:" + "9" * 5000},
        chunk("g", 0, "m", "x") | {"key": 7},
        chunk("g", 0, "m", "x") | {"value": {"messageId": "m"}},
        chunk("g", 0, "m", "x") | {"value": None},
        opened("h", "m"),
        opened("g", "n"),
        opened("h", "n") | {"value": {"messageId": "n"}},
        ended("h", "n", "paused"),
        ended("h", "n", "\ud83d"),
        whole("m"),
        whole("n") | {"value": "text"},
        whole("n") | {"value": {"role": 1}},
        whole("n") | {"headers": None},
        {"type": ["chunk"]},
        {},
        [],
        None,
        "text",
        b"",
        b"\xff",
        b"{} {}",
        b"[" * 100_000,
    ],
)
def test_a_record_that_no_broker_wrote_is_counted_and_changes_nothing(record: Any) -> None:
    folding = folded([opened("g", "m"), chunk("g", 0, "m", "a")])
    before = folding.items()

    assert folding.add(record) is None
    assert folding.malformed == 1
    assert folding.items() == before
    assert text_of(folding.items()[0]) == "a"


@pytest.mark.parametrize(
    "record",
    [
        {"type": "presence", "key": "ann", "value": {}, "headers": {"operation": "upsert"}},
        {"headers": {"control": "snapshot-start"}},
        stop("g", "m"),
    ],
)
def test_a_record_of_another_kind_is_passed_over(record: Any) -> None:
    folding = SessionFold()

    assert folding.add(record) is None
    assert (folding.malformed, folding.items()) == (0, [])


def test_a_chunk_after_the_end_is_not_folded() -> None:
    folding = folded([*answer("g", "m", "a"), chunk("g", 1, "m", "late")])

    assert text_of(folding.items()[0]) == "a"
    assert folding.malformed == 1


def test_a_chunk_that_nests_too_deeply_is_refused_alike_as_text_and_as_data() -> None:
    deep: Any = "x"
    as_data = SessionFold()
    for depth in range(DEPTH_MAX + 5):
        deep = [deep]
        record = chunk("g", 0, "m", deep)
        as_data, as_text = folded([opened("g", "m"), record]), folded([opened("g", "m"), json.dumps(record).encode()])
        assert as_data.malformed == as_text.malformed, depth

    assert as_data.malformed == 1


def test_halves_of_a_surrogate_pair_in_two_chunks_make_the_character() -> None:
    halves = [json.dumps(chunk("g", number, "m", half)).encode() for number, half in enumerate("\ud83d\ude00")]

    assert text_of(only_item([opened("g", "m"), *halves])) == "\N{GRINNING FACE}"


# -- storing and taking over ---------------------------------------------------------------------------------------


def test_a_message_goes_on_after_load_as_if_nothing_had_happened() -> None:
    folding = reloaded(folded([whole("u"), opened("g", "m"), chunk("g", 0, "m", "\ud83d")]))

    folding.add(chunk("g", 1, "m", "\ude00"))
    folding.add(whole("last"))

    assert [item["id"] for item in folding.items()] == ["u", "m", "last"]
    assert text_of(folding.items()[1]) == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{}",
        b'{"version":1,"facts":{"status":"complete"},"chunks":0,"fold":null}',
        b'{"version":3,"facts":{"status":"complete"},"chunks":[],"fold":null}',
        b'{"version":2,"facts":{},"chunks":[],"fold":null}',
        b'{"version":2,"facts":{"status":"streaming"},"chunks":[],"fold":{}}',
        b'{"version":2,"facts":{"status":"streaming"},"chunks":[],"fold":{"version":1,"format":"morse"}}',
        b'{"version":2,"facts":{"status":"streaming"},"chunks":[["g",-1]],"fold":null}',
        b'{"version":2,"facts":{"status":[]},"chunks":[],"fold":null}',
    ],
)
def test_what_dump_did_not_tell_is_refused(stored: bytes) -> None:
    with pytest.raises(BadSessionState, match="'m'"):
        SessionFold().load(0, "m", stored)


def test_ended_items_can_be_taken_over_and_added_to() -> None:
    before, after = [whole("u"), *answer("g", "m", "a")], answer("h", "n", "b")

    folding = SessionFold.of_items(folded(before).items())
    for record in [*before, *after]:
        folding.add(record)

    assert folding.items() == folded([*before, *after]).items()


def test_an_item_that_runs_cannot_be_taken_over() -> None:
    with pytest.raises(ValueError, match="streaming"):
        SessionFold.of_items(folded([opened("g", "m"), chunk("g", 0, "m", "a")]).items())


# -- properties ----------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
few_ids = st.sampled_from(["a", "b", "a:0"])
texts = st.text(st.characters(), max_size=3)
plausible_records = st.one_of(
    st.builds(opened, few_ids, few_ids, chunk_format=st.sampled_from(["text", "ai-sdk-ui-message-stream", "?"])),
    st.builds(opened, few_ids, few_ids, continues=few_ids),
    st.builds(ended, few_ids, few_ids, st.sampled_from(["complete", "failed", "aborted", "streaming"])),
    st.builds(chunk, few_ids, st.integers(0, 4), few_ids, texts | json_values),
    st.builds(whole, few_ids, st.sampled_from(["insert", "upsert"]), text=texts),
    st.builds(stop, few_ids, few_ids),
    st.builds(lambda kind, rest: {"type": kind, **rest}, st.sampled_from(["chunk", "message"]), st.just({}))
    | json_values,
)
logs = st.lists(plausible_records, max_size=30)


@given(logs, st.data())
def test_stopping_anywhere_and_going_on_equals_folding_all(log: list[Any], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    first = reloaded(folded(log[:cut]))
    for record in log[cut:]:
        first.add(record)

    assert first.items() == folded(log).items()


@given(logs)
def test_text_and_data_fold_alike(log: list[Any]) -> None:
    as_data, as_text = SessionFold(), SessionFold()
    for record in log:
        assert as_data.add(record) == as_text.add(encode(record))
    assert as_data.malformed == as_text.malformed
    assert encode([*as_data.items()]) == encode([*as_text.items()])


@given(st.lists(plausible_records | st.binary(), max_size=30))
def test_nothing_that_comes_makes_it_raise(log: list[Any]) -> None:
    folding = folded(log)

    assert len({item["id"] for item in folding.items()}) == len(folding.items())


@settings(max_examples=100)
@given(format_and_chunks(12), st.data())
def test_in_every_format_records_seen_again_and_a_snapshot_in_between_change_nothing(
    given_: tuple[str, list[Any]], data: st.DataObject
) -> None:
    name, chunks = given_
    log = [opened("g", "m", chunk_format=name)]
    log += [chunk("g", number, "m", content) for number, content in enumerate(chunks)]
    log += [ended("g", "m", data.draw(st.sampled_from(["complete", "failed"])), chunk_format=name)]
    cut = data.draw(st.integers(0, len(log)))

    folding = reloaded(folded(log[:cut]))
    for number in range(len(log)):
        folding.add(log[number])
        folding.add(log[data.draw(st.integers(0, number))])

    assert encode([*folding.items()]) == encode([*folded(log).items()])


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
