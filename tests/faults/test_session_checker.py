"""The checker of sessions finds what it is there for: each of these sessions is right but for one thing."""

from collections.abc import Callable
from typing import Any

import pytest

from consumer.session import SessionFold
from tests.consumer import records
from tests.faults.checker import violations
from tests.faults.history import Generation, History, Log, SessionState, Told
from tests.faults.session_checker import canonical

PATH = "sessions/s"
LIFE = 0xA


def offset(position: int) -> str:
    return f"{position:016x}_{LIFE:016x}"


def good_log() -> list[Any]:
    """A question, an answer that was finished, and one that was superseded by the next."""
    opened, ended = records.opened, records.ended
    return [
        records.whole("q", parts=[]),
        *records.answer("g", "m", "one", "two"),
        fenced(opened("old", "m-old"), 2),
        records.chunk("old", 0, "m-old", "three"),
        fenced(ended("old", "m-old", "aborted", reason="superseded"), 2),
        fenced(opened("new", "m-new"), 3),
        records.chunk("new", 0, "m-new", "four"),
        fenced(ended("new", "m-new"), 3),
    ]


def fenced(record: Any, fence: int) -> Any:
    record["value"]["fence"] = fence
    return record


def history_of(log: list[Any]) -> History:
    """What writers and the broker would say of this log."""
    history = History(session_paths={PATH})
    history.write(PATH, [canonical(log[0]["value"])]).told.append(Told.ACKED)
    generation = Generation(PATH, "g", "m", "main", finish_status="complete", finish_offsets={offset(5)})
    for seq, text in enumerate(("one", "two")):
        batch = history.write(PATH, [canonical(text)], "g", 0, seq)
        batch.told.append(Told.ACKED)
        batch.offsets.add(offset(3 + seq))
        generation.batches.append(batch)
    history.generations.append(generation)
    for producer, text in (("old", "three"), ("new", "four")):
        history.write(PATH, [canonical(text)], producer).told.append(Told.UNKNOWN)
    fold = SessionFold()
    for record in log:
        fold.add(record)
    statuses = {"g": "complete", "old": "aborted", "new": "complete"}
    history.sessions.append(SessionState(PATH, offset(len(log)), list(fold.items()), statuses=statuses))
    history.logs.append(Log(PATH, LIFE, [canonical(record) for record in log]))
    return history


def test_session_without_a_fault_has_no_violation() -> None:
    assert violations(history_of(good_log())) == []


def without(at: int) -> Callable[[list[Any]], None]:
    return lambda log: log.__delitem__(at)


def twice(at: int) -> Callable[[list[Any]], None]:
    return lambda log: log.insert(at, log[at])


def moved(start: int, to: int) -> Callable[[list[Any]], None]:
    return lambda log: log.insert(to, log.pop(start))


def with_fence(at: int, fence: int) -> Callable[[list[Any]], None]:
    def spoil(log: list[Any]) -> None:
        fenced(log[at], fence)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (without(1), "g is opened 0 times"),
        (without(10), "new has 0 ends"),
        (without(4), "g has 0 ends"),
        (twice(4), "g has 2 ends"),
        (twice(1), "g is opened 2 times"),
        (moved(3, 4), "g has chunks outside its life"),
        (without(2), "g has chunks numbered ['1']"),
        (without(3), "g was finished over 1 chunks of 2"),
        (moved(7, 8), "new began in lane main while old ran"),
        (with_fence(8, 2), "new has fence 2 in lane main after 2"),
    ],
    ids=[
        "never_opened",
        "never_ended",
        "finish_lost",
        "ended_twice",
        "opened_twice",
        "chunk_after_the_end",
        "hole_in_chunks",
        "finish_over_a_hole",
        "two_writers_in_a_lane",
        "fence_not_raised",
    ],
)
def test_log_with_one_fault_is_found_out(spoil: Callable[[list[Any]], None], expected: str) -> None:
    log = good_log()
    spoil(log)
    assert expected in "\n".join(violations(history_of(log)))


def test_messages_that_are_not_the_fold_of_the_log_are_found_out() -> None:
    history = history_of(good_log())
    history.sessions[0].items.pop()
    assert "3 messages, 4 folded" in "\n".join(violations(history))


def test_messages_that_stand_elsewhere_than_their_log_are_found_out() -> None:
    history = history_of(good_log())
    history.sessions[0].offset = offset(4)
    assert "its messages stand at" in "\n".join(violations(history))


def test_generation_told_to_be_streaming_for_ever_is_found_out() -> None:
    history = history_of(good_log())
    history.sessions[0].statuses["old"] = "streaming"
    assert "old is streaming; the log says aborted" in "\n".join(violations(history))


def test_finish_that_became_another_end_is_found_out() -> None:
    history = history_of(good_log())
    history.generations[0].finish_status = "failed"
    assert "g was finished as failed and is complete" in "\n".join(violations(history))


def test_finish_told_another_offset_is_found_out() -> None:
    history = history_of(good_log())
    history.generations[0].finish_offsets = {offset(4)}
    assert "g was told its end is" in "\n".join(violations(history))


def test_stopped_generation_that_was_lost_is_found_out() -> None:
    history = history_of(good_log())
    history.generations.append(Generation(PATH, "gone", "m-gone", "main", stop_acked=True))
    assert "gone was stopped and runs" in "\n".join(violations(history))


def test_chunk_that_was_fenced_and_is_visible_is_found_out() -> None:
    history = history_of(good_log())
    write = next(write for write in history.writes if write.producer == "old")
    write.absent = True
    assert "was refused and is visible" in "\n".join(violations(history))
