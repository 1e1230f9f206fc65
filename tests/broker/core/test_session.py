"""broker/core/session.py: DESIGN 5 and CORE 7: what a session's entries do, and the bytes of its records."""

import json
from typing import Any

import pytest

from broker.core.entry import Entry, Kind
from broker.core.events import timestamp
from broker.core.outcome import Outcome, Result
from broker.core.state import Session, generation_key, session_key, stream_key
from consumer.wire import Code, Reason, Status
from tests.broker.core.entries import (
    SESSION,
    append,
    chunks,
    create_session,
    delete_session,
    expire_lease,
    expire_session,
    finish,
    fork_ref,
    heartbeat,
    message,
    open_generation,
    reset_session,
    stop,
)
from tests.broker.core.replica import BEGIN_MS, Replica

NOW = "2023-11-14T22:13:20.000Z"  # BEGIN_MS


def replica(*entries: Entry) -> Replica:
    """A session on which these were applied, all with success."""
    made = Replica()
    for entry in (create_session(), *entries):
        outcome = made.do(entry)
        assert outcome.changed, outcome
    return made


def said(outcome: Outcome) -> Result | Code:
    """The outcome in one word."""
    return outcome.code or outcome.result


def shapes(made: Replica) -> list[str]:
    """The records of the session, each as `type key operation status`."""
    found = []
    for record in made.records(SESSION):
        event = json.loads(record)
        status = event["value"].get("status", "")
        found.append(" ".join([event["type"], event["key"], event["headers"]["operation"], status]).strip())
    return found


def last_value(made: Replica) -> Any:
    """The value of the newest record."""
    return json.loads(made.records(SESSION)[-1])["value"]


# -- sessions --------------------------------------------------------------------------------------------------------


def test_session_is_created_with_its_stream() -> None:
    made = Replica()
    outcome = made.do(create_session(metadata=b'{"a":1}'))
    assert (outcome.result, outcome.next_position) == (Result.CREATED, 0)
    assert made.stream(SESSION).is_json
    session = made.session(SESSION)
    assert session.metadata == b'{"a":1}'
    assert session.birth != made.stream(SESSION).incarnation  # a reset ends the one and keeps the other


def test_session_and_its_first_message_are_one_entry() -> None:
    """DESIGN 5: nothing half-made."""
    made = Replica()
    assert made.do(create_session("m1", b'{"id":"m1"}')).next_position == 1
    assert shapes(made) == ["message m1 insert"]


@pytest.mark.parametrize("again", [create_session(), create_session("m1", b'{"id":"m1"}')])
def test_create_of_a_session_that_is_there_succeeds_and_changes_nothing(again: Entry) -> None:
    made = Replica()
    made.do(create_session("m1", b'{"id":"m1"}'))
    outcome = made.do(again)
    assert (outcome.result, outcome.next_position) == (Result.UNCHANGED, 1)


def test_create_with_another_first_message_is_refused() -> None:
    made = Replica()
    made.do(create_session("m1", b'{"id":"m1"}'))
    assert said(made.do(create_session("m1", b'{"id":"m1","x":1}'))) is Code.MESSAGE_EXISTS
    assert said(made.do(create_session("m2", b'{"id":"m2"}'))) is Code.SESSION_EXISTS


@pytest.mark.parametrize(
    "entry",
    [
        message("m"),
        chunks("g", 0, b"1"),
        finish("g", 0),
        stop("g"),
        heartbeat("g"),
        expire_lease("g", 1, 1),
        delete_session(),
    ],
    ids=lambda entry: Kind(entry.kind).name,
)
def test_entry_for_a_session_that_is_not_there_is_refused(entry: Entry) -> None:
    assert said(Replica().do(entry)) is Code.SESSION_NOT_FOUND


def test_deleted_session_is_gone_with_its_stream() -> None:
    made = replica(message("m"), chunks("g", 0, b"1"))
    birth = made.session(SESSION).birth
    assert said(made.do(delete_session())) is Result.ACCEPTED
    assert session_key(SESSION) not in made.rows
    assert stream_key(SESSION) not in made.rows
    assert (SESSION, birth) in made.ended


def test_session_that_nobody_has_used_for_so_long_expires() -> None:
    made = replica()
    birth = made.session(SESSION).birth
    assert said(made.do(expire_session(unused_ms=1_000), after_ms=998)) is Result.UNCHANGED
    assert said(made.do(expire_session(unused_ms=1_000), after_ms=1_000)) is Result.ACCEPTED
    assert session_key(SESSION) not in made.rows
    assert stream_key(SESSION) not in made.rows
    assert (SESSION, birth) in made.ended
    assert said(made.do(expire_session())) is Code.SESSION_NOT_FOUND


def test_session_that_was_opened_ahead_for_an_answer_that_never_came_expires() -> None:
    made = replica(open_generation("g"), expire_lease("g", 1, 2))
    assert said(made.do(expire_session(tail=2), after_ms=1_000)) is Result.ACCEPTED
    assert session_key(SESSION) not in made.rows


@pytest.mark.parametrize(
    "entries",
    [
        [message("m")],
        [open_generation("g")],
        [message("m"), reset_session(nonce=9)],
        [fork_ref("sessions/child", 7, path=SESSION)],
    ],
    ids=["written to since", "open", "used before its reset", "forked"],
)
def test_session_that_was_used_since_the_proposer_looked_does_not_expire(entries: list[Entry]) -> None:
    made = replica(*entries)
    before = dict(made.rows)
    assert said(made.do(expire_session(), after_ms=1 << 40)) is Result.UNCHANGED
    assert made.rows == before


def test_session_of_the_same_name_does_not_expire_for_the_one_before() -> None:
    made = replica()
    seen = made.stream(SESSION).incarnation
    made.do(delete_session())
    made.do(create_session())
    assert said(made.do(expire_session(incarnation=seen), after_ms=9_000)) is Code.SESSION_NOT_FOUND


def test_session_created_again_has_forgotten_everything() -> None:
    """Messages, generations open and ended, lanes and their fences."""
    made = replica(
        message("m"), chunks("g1", 0, b"1"), finish("g1", 1), chunks("g2", 0, b"1"), delete_session(), create_session()
    )
    assert made.records(SESSION) == []
    assert said(made.do(message("m", b'{"other":1}'))) is Result.ACCEPTED
    for generation_id in ("g2", "g1"):
        assert said(made.do(heartbeat(generation_id))) is Code.GENERATION_NOT_FOUND
        assert said(made.do(chunks(generation_id, 2, b"2"))) is Code.SEQ_GAP
    outcome = made.do(chunks("g1", 0, b"1"))
    assert (outcome.result, outcome.epoch) == (Result.ACCEPTED, 1)
    assert made.session(SESSION).open[0].chunks == 1


def test_last_activity_moves_with_what_is_accepted_only() -> None:
    made = replica(chunks("g", 0, b"1"))
    made.do(chunks("g", 0, b"1"), after_ms=10)
    made.do(chunks("g", 5, b"1"), after_ms=10)
    assert made.session(SESSION).active_ms == BEGIN_MS
    made.do(chunks("g", 1, b"2"), after_ms=10)
    assert made.session(SESSION).active_ms == BEGIN_MS + 30


# -- messages --------------------------------------------------------------------------------------------------------


def test_same_message_again_is_a_duplicate_that_is_told_where_it_stands() -> None:
    made = replica(message("m1"), message("m2"))
    outcome = made.do(message("m1"))
    assert (outcome.result, outcome.next_position) == (Result.DUPLICATE, 1)
    assert shapes(made) == ["message m1 insert", "message m2 insert"]


def test_message_id_with_other_content_is_refused() -> None:
    made = replica(message("m1"))
    assert said(made.do(message("m1", b'{"role":"tool"}'))) is Code.MESSAGE_EXISTS


def test_message_id_of_a_generation_is_taken() -> None:
    made = replica(chunks("g", 0, b"1", message_id="m"))
    assert said(made.do(message("m"))) is Code.MESSAGE_EXISTS


@pytest.mark.parametrize("taken", [message("m"), chunks("g1", 0, b"1", message_id="m", lane="side")])
def test_generation_cannot_write_a_message_that_exists(taken: Entry) -> None:
    made = replica(taken)
    assert said(made.do(chunks("g2", 0, b"1", message_id="m"))) is Code.MESSAGE_EXISTS
    assert generation_key(SESSION, "g2") not in made.rows


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


# -- one writer in a lane --------------------------------------------------------------------------------------------


def test_newer_generation_in_the_lane_supersedes_the_open_one() -> None:
    """DESIGN 5: the interrupted generation gets its terminal record."""
    made = replica(chunks("g1", 0, b"1"))
    outcome = made.do(chunks("g2", 0, b"2"))
    assert outcome.epoch == 2
    assert shapes(made)[2:] == ["generation g1 update aborted", "generation g2 insert streaming", "chunk g2:0 insert"]
    ended = made.generation(SESSION, "g1")
    assert (ended.status, ended.reason, ended.fence) == (Status.ABORTED, Reason.SUPERSEDED, 1)


def test_lanes_do_not_fence_each_other() -> None:
    made = replica(chunks("g1", 0, b"1"), chunks("g2", 0, b"2", lane="side"))
    assert {generation.generation_id for generation in made.session(SESSION).open} == {"g1", "g2"}
    assert said(made.do(chunks("g1", 1, b"2"))) is Result.ACCEPTED


ENDINGS = {
    "finished": finish("g", 1),
    "stopped": stop("g"),
    "superseded": chunks("newer", 0, b"x"),
    "lease expired": expire_lease("g", 1, 2),
}
ended = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)


@ended
def test_resent_accepted_batch_of_an_ended_generation_is_a_duplicate(ending: Entry) -> None:
    """DESIGN 5: until the session is deleted."""
    made = replica(chunks("g", 0, b"1"), ending)
    outcome = made.do(chunks("g", 0, b"1"))
    assert (outcome.result, outcome.next_position) == (Result.DUPLICATE, 2)


@ended
@pytest.mark.parametrize("seq", [2, 3, 99])
def test_anything_new_for_an_ended_generation_is_fenced(ending: Entry, seq: int) -> None:
    """DESIGN 5: everything else older is 403 FENCED, whether it is the next batch or leaves a gap."""
    made = replica(chunks("g", 0, b"1"), ending)
    for entry in (chunks("g", seq, b"2"), heartbeat("g")):
        outcome = made.do(entry)
        assert outcome.code is Code.FENCED
        assert outcome.generation is not None
        assert outcome.generation.status != Status.STREAMING


@ended
def test_late_retry_of_seq_zero_is_never_a_new_answer(ending: Entry) -> None:
    """CORE 7. Other bytes under an accepted seq are a client bug, told as one even then."""
    made = replica(chunks("g", 0, b"1"), ending)
    before = made.records(SESSION)
    assert said(made.do(chunks("g", 0, b"1"))) is Result.DUPLICATE
    assert said(made.do(chunks("g", 0, b"another answer"))) is Code.PAYLOAD_MISMATCH
    assert made.records(SESSION) == before


def test_fenced_producer_is_told_the_epoch_that_fences_it() -> None:
    made = replica(chunks("g1", 0, b"1"), chunks("g2", 0, b"2"))
    outcome = made.do(chunks("g1", 1, b"2"))
    assert (outcome.code, outcome.epoch, outcome.seq) == (Code.FENCED, 2, 0)


@pytest.mark.parametrize(("ending", "fence"), [("stopped", 2), ("lease expired", 2), ("finished", 1)])
def test_broker_that_ends_a_generation_raises_the_fence(ending: str, fence: int) -> None:
    """DESIGN 5: ends it and raises the fence. Whoever finished by itself has nobody to fence off."""
    made = replica(chunks("g", 0, b"1"), ENDINGS[ending])
    assert [(lane.name, lane.epoch) for lane in made.session(SESSION).lanes] == [("main", fence)]
    assert made.do(chunks("next", 0, b"1")).epoch == fence + 1


def test_fences_of_a_lane_only_rise() -> None:
    made = replica()
    fences = []
    for number in range(4):
        fences.append(made.do(chunks(f"g{number}", 0, b"1")).epoch)
        made.do(stop(f"g{number}"))
    assert fences == [1, 3, 5, 7]


# -- windows and bounds ----------------------------------------------------------------------------------------------


def test_receipts_of_the_newest_sixty_four_batches_are_kept() -> None:
    """CORE 2: an older duplicate is told no offset, and its bytes cannot be compared any more."""
    made = replica(*[chunks("g", seq, b"%d" % seq) for seq in range(65)])
    assert made.do(chunks("g", 1, b"1")).next_position == 3
    assert said(made.do(chunks("g", 1, b"x"))) is Code.PAYLOAD_MISMATCH
    oldest = made.do(chunks("g", 0, b"0"))
    assert (oldest.result, oldest.next_position) == (Result.DUPLICATE, None)
    assert said(made.do(chunks("g", 0, b"x"))) is Result.DUPLICATE


def test_window_outlives_the_generation() -> None:
    made = replica(*[chunks("g", seq, b"%d" % seq) for seq in range(64)], finish("g", 64))
    assert made.do(chunks("g", 1, b"1")).next_position == 3
    assert made.do(chunks("g", 0, b"0")).next_position is None


def test_lane_beyond_the_limit_is_refused() -> None:
    made = replica(chunks("g1", 0, b"1", lanes_max=1))
    assert said(made.do(chunks("g2", 0, b"1", lane="side", lanes_max=1))) is Code.TOO_MANY_LANES
    assert said(made.do(chunks("g2", 0, b"1", lanes_max=1))) is Result.ACCEPTED


def test_generation_beyond_the_limit_is_refused_and_supersedes_nobody() -> None:
    made = replica(chunks("g1", 0, b"1"))
    side = chunks("g2", 0, b"1", lane="side", generations_max=1)
    assert said(made.do(side)) is Code.TOO_MANY_GENERATIONS
    assert made.generation(SESSION, "g1").status == Status.STREAMING
    made.do(finish("g1", 1))
    assert said(made.do(side)) is Result.ACCEPTED


def test_generation_that_takes_the_place_of_another_needs_no_room() -> None:
    made = replica(chunks("g1", 0, b"1", generations_max=1))
    assert said(made.do(chunks("g2", 0, b"1", generations_max=1))) is Result.ACCEPTED


# -- stop ------------------------------------------------------------------------------------------------------------


def test_stop_writes_a_stop_record_and_then_the_end() -> None:
    """DESIGN 5: a stop record, then the terminal record; the partial answer stays."""
    made = replica(chunks("g", 0, b"1"))
    outcome = made.do(stop("g", requested_by="me", reason="enough"))
    assert (outcome.result, outcome.next_position) == (Result.ACCEPTED, 4)
    assert shapes(made) == [
        "generation g insert streaming",
        "chunk g:0 insert",
        "stop g insert",
        "generation g update aborted",
    ]
    assert last_value(made)["reason"] == "stopped"


@ended
def test_stop_of_an_ended_generation_changes_nothing_and_tells_how_it_ended(ending: Entry) -> None:
    made = replica(chunks("g", 0, b"1"), ending)
    outcome = made.do(stop("g"))
    assert outcome.result is Result.UNCHANGED
    assert outcome.generation == made.generation(SESSION, "g")


@pytest.mark.parametrize("entry", [stop("g"), heartbeat("g"), expire_lease("g", 1, 1)])
def test_generation_never_seen_is_not_found(entry: Entry) -> None:
    assert said(replica().do(entry)) is Code.GENERATION_NOT_FOUND


# -- leases ----------------------------------------------------------------------------------------------------------


def renewed_index(made: Replica) -> int:
    return made.generation(SESSION, "g").renewed_index


def test_lease_that_nobody_renewed_ends_the_generation() -> None:
    """DESIGN 5: dead producers are closed."""
    made = replica(chunks("g", 0, b"1"))
    outcome = made.do(expire_lease("g", 1, renewed_index(made)))
    assert outcome.result is Result.ACCEPTED
    value = last_value(made)
    assert (value["status"], value["reason"]) == ("failed", "LEASE_EXPIRED")
    assert shapes(made)[-1] == "generation g update failed"


@pytest.mark.parametrize("renewal", [heartbeat("g"), chunks("g", 1, b"2")], ids=["heartbeat", "chunks"])
def test_lease_that_was_renewed_since_the_proposer_looked_holds(renewal: Entry) -> None:
    """CORE 6: accepted only if fence and index of the last renewal are unchanged."""
    made = replica(chunks("g", 0, b"1"))
    seen = renewed_index(made)
    made.do(renewal)
    assert renewed_index(made) == made.index
    assert said(made.do(expire_lease("g", 1, seen))) is Result.UNCHANGED
    assert said(made.do(expire_lease("g", 1, renewed_index(made)))) is Result.ACCEPTED


@pytest.mark.parametrize("nothing", [chunks("g", 0, b"1"), chunks("g", 5, b"1"), chunks("g", 0, b"x"), message("m")])
def test_what_is_not_accepted_renews_no_lease(nothing: Entry) -> None:
    """CORE 4: a refusal or a duplicate changes nothing: no lease."""
    made = replica(chunks("g", 0, b"1"))
    seen = renewed_index(made)
    made.do(nothing)
    assert said(made.do(expire_lease("g", 1, seen))) is Result.ACCEPTED


def test_lease_of_another_fence_ends_nothing() -> None:
    made = replica(chunks("g", 0, b"1"))
    assert said(made.do(expire_lease("g", 2, renewed_index(made)))) is Result.UNCHANGED


@ended
def test_lease_of_an_ended_generation_ends_nothing_twice(ending: Entry) -> None:
    made = replica(chunks("g", 0, b"1"), ending)
    assert said(made.do(expire_lease("g", 1, renewed_index(made)))) is Result.UNCHANGED


def test_time_alone_ends_no_generation() -> None:
    """CORE 6: neither a clock step nor an hour of downtime ends a living generation."""
    made = replica(chunks("g", 0, b"1"))
    assert said(made.do(chunks("g", 1, b"2"), after_ms=3_600_000)) is Result.ACCEPTED


def test_heartbeat_writes_no_record() -> None:
    made = replica(chunks("g", 0, b"1"))
    before = made.records(SESSION)
    assert said(made.do(heartbeat("g"))) is Result.ACCEPTED
    assert made.records(SESSION) == before


# -- the bytes of the records: part of the log, the same for ever ----------------------------------------------------


def test_bytes_of_a_message_record() -> None:
    made = replica(message("m1", b'{ "id":"m1", "parts":[1.0] }'), message("m2", b"{}", txid='t"1'))
    assert made.records(SESSION) == [
        (
            b'{"type":"message","key":"m1","value":{ "id":"m1", "parts":[1.0] },"headers":{"operation":"insert",'
            b'"timestamp":"2023-11-14T22:13:20.000Z"}}'
        ),
        (
            b'{"type":"message","key":"m2","value":{},"headers":{"operation":"insert","txid":"t\\"1",'
            b'"timestamp":"2023-11-14T22:13:20.000Z"}}'
        ),
    ]


def test_bytes_of_the_records_of_an_answer() -> None:
    made = Replica()
    made.do(create_session())
    made.do(chunks("g~1", 0, b'{"type":"text-delta","delta":"hi"}', b"1.50", message_id="m:1", actor_id="me", txid="t"))
    made.do(chunks("g~1", 1, b'"\xc3\xa9"'), after_ms=7)
    made.do(finish("g~1", 2, usage=b'{"out":3}'), after_ms=1000)
    assert made.records(SESSION) == [
        (
            b'{"type":"generation","key":"g~1","value":{"messageId":"m:1","lane":"main","fence":1,"role":"assistant",'
            b'"format":"text","status":"streaming","actorId":"me","createdAt":"2023-11-14T22:13:20.000Z"},'
            b'"headers":{"operation":"insert","txid":"t"}}'
        ),
        (
            b'{"type":"chunk","key":"g~1:0","value":{"messageId":"m:1","chunk":{"type":"text-delta","delta":"hi"}},'
            b'"headers":{"operation":"insert","txid":"t"}}'
        ),
        (
            b'{"type":"chunk","key":"g~1:1","value":{"messageId":"m:1","chunk":1.50},'
            b'"headers":{"operation":"insert","txid":"t"}}'
        ),
        (
            b'{"type":"chunk","key":"g~1:2","value":{"messageId":"m:1","chunk":"\xc3\xa9"},'
            b'"headers":{"operation":"insert"}}'
        ),
        (
            b'{"type":"generation","key":"g~1","value":{"messageId":"m:1","lane":"main","fence":1,"role":"assistant",'
            b'"format":"text","status":"complete","actorId":"me","usage":{"out":3},"createdAt":"2023-11-14T22:13:20.000Z",'
            b'"endedAt":"2023-11-14T22:13:21.007Z"},"headers":{"operation":"update"}}'
        ),
    ]


def test_bytes_of_a_failed_end() -> None:
    made = replica(chunks("g", 0, b"1"), finish("g", 1, status="failed", reason="r", error=b'"e"', metadata=b'{"m":2}'))
    assert made.records(SESSION)[-1] == (
        b'{"type":"generation","key":"g","value":{"messageId":"g","lane":"main","fence":1,"role":"assistant",'
        b'"format":"text","status":"failed","reason":"r","error":"e","metadata":{"m":2},'
        b'"createdAt":"2023-11-14T22:13:20.000Z","endedAt":"2023-11-14T22:13:20.000Z"},'
        b'"headers":{"operation":"update"}}'
    )


def test_bytes_of_a_stop_record() -> None:
    made = replica(chunks("g", 0, b"1", message_id="m"))
    made.do(stop("g", requested_by="me", reason="enough", txid="t"))
    assert made.records(SESSION)[2] == (
        b'{"type":"stop","key":"g","value":{"messageId":"m","requestedBy":"me","reason":"enough",'
        b'"createdAt":"2023-11-14T22:13:20.000Z"},"headers":{"operation":"insert","txid":"t"}}'
    )


def test_bytes_of_a_stop_record_that_says_no_more_than_it_must() -> None:
    made = replica(chunks("g", 0, b"1"), stop("g"))
    assert made.records(SESSION)[2] == (
        b'{"type":"stop","key":"g","value":{"messageId":"g","createdAt":"2023-11-14T22:13:20.000Z"},'
        b'"headers":{"operation":"insert"}}'
    )


def test_records_of_any_ids_are_json_that_says_what_was_meant() -> None:
    """The edge refuses such ids; the log must be whole all the same."""
    odd = 'a"b\\c:9\n\u2028é'
    made = replica(chunks(odd, 0, b"1", message_id=odd, lane=odd), stop(odd, reason=odd), message("m" + odd, txid=odd))
    events = [json.loads(record) for record in made.records(SESSION)]
    assert [event["key"] for event in events] == [odd, f"{odd}:0", odd, odd, f"m{odd}"]
    assert events[1]["value"]["messageId"] == odd
    assert events[4]["headers"]["txid"] == odd


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_timestamps_are_utc_with_milliseconds(time_ms: int, text: str) -> None:
    assert timestamp(time_ms) == text


def test_raw_append_to_a_session_is_not_part_of_it() -> None:
    """The edge answers 405 (CORE 7). Were one to come through, the session's own rows would not move."""
    made = replica()
    made.do(append(b"1", path=SESSION))
    row = made.rows[session_key(SESSION)]
    assert isinstance(row, Session)
    assert row.open == ()
