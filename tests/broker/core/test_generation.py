"""broker/core/generation.py: how a generation is opened, written and finished, and how another goes on with it."""

import pytest

from broker.core.entry import NEXT_SEQ, Entry
from broker.core.events import time_ms_of, timestamp
from broker.core.outcome import Result
from consumer.wire import Code, Reason, Status
from tests.broker.core.entries import (
    SESSION,
    chunks,
    create_session,
    delete_session,
    expire_lease,
    finish,
    message,
    open_generation,
    record,
    reset_session,
    stop,
    stop_session,
)
from tests.broker.core.replica import Replica
from tests.broker.core.sessions import NOW, last_value, replica, said, shapes, statuses

# -- the life of a generation ----------------------------------------------------------------------------------------


def test_first_batch_opens_a_generation_and_the_finish_ends_it() -> None:
    made = Replica()
    made.do(create_session())
    first = made.do(chunks("g", 0, b'"a"', b'"b"', message_id="m"))
    assert (first.result, first.epoch, first.seq, first.next_position) == (Result.ACCEPTED, 1, 0, 3)
    second = made.do(chunks("g", 1, b'"c"'))
    assert (second.seq, second.next_position) == (1, 4)
    last = made.do(finish("g", 2))
    assert (last.result, last.seq, last.next_position) == (Result.ACCEPTED, 2, 5)
    assert last.generation is not None
    assert last.generation.status == Status.COMPLETE
    assert shapes(made) == [
        "generation g insert streaming",
        "chunk g:0 insert",
        "chunk g:1 insert",
        "chunk g:2 insert",
        "generation g update complete",
    ]
    assert made.session(SESSION).open == ()


def test_finish_alone_opens_and_ends_at_once() -> None:
    made = replica(finish("g", 0, status="failed"))
    assert shapes(made) == ["generation g insert streaming", "generation g update failed"]


def test_chunks_of_one_generation_are_numbered_through() -> None:
    """CORE 7: n is the count of chunks so far, not of batches."""
    made = replica(chunks("g", 0, b"1", b"2"), chunks("g", 1, b"3"), chunks("other", 0, b"1", lane="side"))
    made.do(chunks("g", 2, b"4"))
    numbers = [shape for shape in shapes(made) if shape.startswith("chunk")]
    assert numbers == [f"chunk {key} insert" for key in ("g:0", "g:1", "g:2", "other:0", "g:3")]


@pytest.mark.parametrize("entry", [chunks("g", 1, b"1"), finish("g", 1)])
def test_generation_never_seen_begins_with_seq_zero(entry: Entry) -> None:
    """CORE 7: only seq 0 of a gid never seen opens one."""
    outcome = replica().do(entry)
    assert (outcome.code, outcome.expected_seq) == (Code.SEQ_GAP, 0)


def test_resent_batch_is_a_duplicate_that_is_told_the_originals_position() -> None:
    made = replica(chunks("g", 0, b"1"), chunks("g", 1, b"2"))
    outcome = made.do(chunks("g", 0, b"1"))
    assert (outcome.result, outcome.next_position, outcome.seq, outcome.epoch) == (Result.DUPLICATE, 2, 1, 1)


def test_resent_batch_with_other_bytes_is_a_mismatch() -> None:
    made = replica(chunks("g", 0, b"1"))
    assert said(made.do(chunks("g", 0, b"2"))) is Code.PAYLOAD_MISMATCH


def test_finish_in_place_of_an_accepted_batch_is_a_mismatch() -> None:
    made = replica(chunks("g", 0, b"1"), chunks("g", 1, b"2"))
    assert said(made.do(finish("g", 1))) is Code.PAYLOAD_MISMATCH
    assert made.session(SESSION).open


def test_batch_ahead_of_its_predecessor_is_a_gap() -> None:
    made = replica(chunks("g", 0, b"1"))
    outcome = made.do(chunks("g", 2, b"3"))
    assert (outcome.code, outcome.expected_seq, outcome.seq) == (Code.SEQ_GAP, 1, 0)


def test_finish_over_a_hole_is_a_gap_and_never_complete() -> None:
    """CORE 7: batch 9 was lost in a crash, and finish must not record `complete` over it."""
    made = replica(chunks("g", 0, b"1"))
    outcome = made.do(finish("g", 2))
    assert (outcome.code, outcome.expected_seq) == (Code.SEQ_GAP, 1)
    assert [generation.status for generation in made.session(SESSION).open] == [Status.STREAMING]
    made.do(chunks("g", 1, b"2"))
    assert said(made.do(finish("g", 2))) is Result.ACCEPTED


def test_resent_finish_is_a_duplicate() -> None:
    made = replica(chunks("g", 0, b"1"), finish("g", 1))
    outcome = made.do(finish("g", 1))
    assert (outcome.result, outcome.next_position) == (Result.DUPLICATE, 3)
    assert outcome.generation is not None
    assert outcome.generation.status == Status.COMPLETE


def test_finish_carries_its_facts_into_the_terminal_record() -> None:
    made = replica(chunks("g", 0, b"1"))
    made.do(
        finish("g", 1, status="failed", reason="timeout", error=b'{"x":[1]}', usage=b'{"u":1}', metadata=b'{"m":2}'),
        after_ms=5,
    )
    value = last_value(made)
    facts = {name: value[name] for name in ("status", "reason", "error", "usage", "metadata", "createdAt", "endedAt")}
    assert facts == {
        "status": "failed",
        "reason": "timeout",
        "error": {"x": [1]},
        "usage": {"u": 1},
        "metadata": {"m": 2},
        "createdAt": NOW,
        "endedAt": "2023-11-14T22:13:20.005Z",
    }


# -- opened ahead ----------------------------------------------------------------------------------------------------


def test_generation_is_pending_until_its_first_chunk_and_its_first_batch_has_seq_zero() -> None:
    made = replica(open_generation("g"))
    assert made.generation(SESSION, "g").status == Status.PENDING
    assert said(made.do(chunks("g", 1, b"1"))) is Code.SEQ_GAP
    assert made.do(chunks("g", 0, b"1")).seq == 0
    made.do(chunks("g", 1, b"2"))
    made.do(finish("g", 2))
    assert statuses(made) == ["g insert pending", "g update streaming", "g update complete"]


def test_pending_generation_that_ends_was_never_streaming() -> None:
    made = replica(open_generation("g"), finish("g", 0))
    assert statuses(made) == ["g insert pending", "g update complete"]


def test_lease_of_a_pending_generation_runs() -> None:
    made = replica(open_generation("g"))
    renewed = made.generation(SESSION, "g").renewed_index
    assert said(made.do(expire_lease("g", 1, renewed))) is Result.ACCEPTED
    assert made.generation(SESSION, "g").reason == Reason.LEASE_EXPIRED


def test_metadata_of_the_opening_stays_unless_the_finish_has_some() -> None:
    made = replica(open_generation("g", metadata=b'{"a":1}'), finish("g", 0))
    made.do(open_generation("h", metadata=b'{"a":1}'))
    made.do(finish("h", 0, metadata=b'{"b":2}'))
    kept, replaced = made.generation(SESSION, "g").metadata, made.generation(SESSION, "h").metadata
    assert (kept, replaced) == (b'{"a":1}', b'{"b":2}')


def test_bytes_of_the_records_of_a_generation_that_is_opened_ahead_and_continues() -> None:
    made = replica(open_generation("g", message_id="m", metadata=b'{"k":1}', txid="t"), stop("g"))
    made.do(chunks("h", 0, b"1", continues="g"), after_ms=5)
    assert made.records(SESSION)[0] == (
        b'{"type":"generation","key":"g","value":{"messageId":"m","lane":"main","fence":1,"role":"assistant",'
        b'"format":"text","status":"pending","metadata":{"k":1},"createdAt":"2023-11-14T22:13:20.000Z"},'
        b'"headers":{"operation":"insert","txid":"t"}}'
    )
    assert made.records(SESSION)[3] == (
        b'{"type":"generation","key":"h","value":{"messageId":"m","lane":"main","fence":3,"role":"assistant",'
        b'"format":"text","status":"streaming","continues":"g","createdAt":"2023-11-14T22:13:20.005Z"},'
        b'"headers":{"operation":"insert"}}'
    )


def test_bytes_of_an_upsert() -> None:
    made = replica(record("a@b", b'{ "n":1.0 }'))
    assert made.records(SESSION) == [
        (
            b'{"type":"presence","key":"a@b","value":{ "n":1.0 },"headers":{"operation":"upsert",'
            b'"timestamp":"2023-11-14T22:13:20.000Z"}}'
        )
    ]


# -- going on with another one's message -----------------------------------------------------------------------------


ENDINGS = {
    "finished": finish("g", 1, status="failed"),
    "stopped": stop("g"),
    "lease expired": expire_lease("g", 1, 2),
    "all stopped": stop_session(),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_lane_that_has_begun_nothing_since_is_gone_on_in(ending: Entry) -> None:
    made = replica(chunks("g", 0, b"1"), ending)
    outcome = made.do(open_generation("h", continues="g"))
    assert outcome.generation is not None
    assert (outcome.generation.lane, outcome.generation.message_id) == ("main", "g")


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("newer", [(chunks("n", 0, b"1"),), (chunks("n", 0, b"1"), finish("n", 1))])
def test_lane_that_has_moved_on_is_left_for_one_of_its_own(ending: Entry, newer: tuple[Entry, ...]) -> None:
    """DESIGN 5, late is not lost: whether the newer generation still runs or not."""
    made = replica(chunks("g", 0, b"1"), ending, *newer)
    outcome = made.do(open_generation("h", continues="g"))
    assert outcome.generation is not None
    assert outcome.generation.lane == "h"


def test_chain_of_generations_goes_on_with_one_message() -> None:
    made = replica(chunks("a", 0, b"1", message_id="m"))
    for before, after in (("a", "b"), ("b", "c"), ("c", "d")):
        made.do(chunks(after, 0, b"1", continues=before))
    assert {made.generation(SESSION, each).message_id for each in "abcd"} == {"m"}
    assert [made.generation(SESSION, each).continued_by for each in "abcd"] == ["b", "c", "d", ""]
    assert said(made.do(message("m"))) is Code.MESSAGE_EXISTS


def test_late_batches_of_what_is_continued_are_what_they_were() -> None:
    made = replica(chunks("g", 0, b"1"), chunks("h", 0, b"2", continues="g"))
    assert said(made.do(chunks("g", 0, b"1"))) is Result.DUPLICATE
    assert said(made.do(chunks("g", 1, b"3"))) is Code.FENCED
    assert said(made.do(chunks("h", 0, b"2", continues="g"))) is Result.DUPLICATE


# -- batches without a number ----------------------------------------------------------------------------------------


def test_batch_without_a_number_is_the_next_one() -> None:
    made = replica()
    assert [made.do(chunks("g", NEXT_SEQ, b"1")).seq for _ in range(3)] == [0, 1, 2]
    assert made.do(finish("g", NEXT_SEQ)).seq == 3


def test_finish_without_a_number_ends_nothing_that_was_never_there() -> None:
    assert said(replica().do(finish("g", NEXT_SEQ))) is Code.GENERATION_NOT_FOUND


def test_finish_without_a_number_is_known_again_by_what_it_says() -> None:
    made = replica(chunks("g", NEXT_SEQ, b"1"), finish("g", NEXT_SEQ))
    assert said(made.do(finish("g", NEXT_SEQ))) is Result.DUPLICATE
    assert said(made.do(finish("g", NEXT_SEQ, status="failed"))) is Code.FENCED


# -- lanes -----------------------------------------------------------------------------------------------------------


def test_idle_lane_makes_room_and_its_fence_is_never_undercut() -> None:
    made = replica()
    for number in range(3):
        made.do(chunks(f"a{number}", 0, b"1", lane="a"))
    made.do(stop("a2"))
    highest = made.session(SESSION).lanes[0].epoch
    made.do(chunks("b", 0, b"1", lane="b", lanes_max=1, frees_lanes=True))
    assert [lane.name for lane in made.session(SESSION).lanes] == ["b"]
    made.do(stop("b"))
    again = made.do(chunks("a9", 0, b"1", lane="a", lanes_max=1, frees_lanes=True))
    assert again.epoch is not None
    assert again.epoch > highest


def test_lane_in_which_somebody_writes_makes_no_room() -> None:
    made = replica(chunks("a", 0, b"1", lane="a"))
    refused = made.do(chunks("b", 0, b"1", lane="b", lanes_max=1, frees_lanes=True))
    assert said(refused) is Code.TOO_MANY_LANES


# -- reset -----------------------------------------------------------------------------------------------------------


def test_reset_begins_a_life_and_keeps_fences_and_ids() -> None:
    """CORE 7."""
    made = replica(message("m"), chunks("g", 0, b"1"), chunks("s", 0, b"1", lane="side"), finish("s", 1))
    before, fences = made.stream(SESSION).incarnation, {each.name: each.epoch for each in made.session(SESSION).lanes}
    outcome = made.do(reset_session(reason="why"))
    assert (outcome.result, outcome.next_position) == (Result.ACCEPTED, 0)
    session = made.session(SESSION)
    assert {each.name: each.epoch for each in session.lanes} == {name: epoch + 1 for name, epoch in fences.items()}
    assert (session.open, session.reset_reason) == ((), "why")
    assert (SESSION, before) in made.ended
    assert made.records(SESSION) == []
    assert made.generation(SESSION, "g").reason == Reason.RESET
    assert said(made.do(chunks("g", 1, b"2"))) is Code.FENCED
    assert said(made.do(message("m", b"{}"))) is Result.ACCEPTED


def test_what_is_not_there_is_not_reset() -> None:
    made = replica(delete_session())
    assert said(made.do(reset_session())) is Code.SESSION_NOT_FOUND


@pytest.mark.parametrize("time_ms", [0, 1_700_000_000_007, 253_402_300_799_999])
def test_time_is_read_back_from_its_text(time_ms: int) -> None:
    assert time_ms_of(timestamp(time_ms)) == time_ms
