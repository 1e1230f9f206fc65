"""The fold of a session: from records to the items of `GET /messages`."""

import json
from typing import Any

import pytest

from consumer.plain import DEPTH_MAX
from consumer.session import BadSessionState, SessionFold
from tests.consumer.folded import folded, only_item, reloaded, text_of
from tests.consumer.records import answer, chunk, ended, opened, stop, whole

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
