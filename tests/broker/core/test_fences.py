"""broker/core/generation.py: one writer in a lane: who is fenced off, stopped or has lost the lease, and the bounds."""

import pytest

from broker.core.entry import Entry
from broker.core.outcome import Result
from consumer.wire import Code, Reason, Status
from tests.broker.core.entries import SESSION, chunks, expire_lease, finish, heartbeat, message, stop
from tests.broker.core.replica import Replica
from tests.broker.core.sessions import last_value, replica, said, shapes

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
