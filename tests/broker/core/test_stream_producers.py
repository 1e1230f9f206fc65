"""broker/core/stream.py: appends of idempotent producers (PROTOCOL.md 5.2.1)."""

import pytest

from broker.core.outcome import Result
from broker.core.state import Producer, producer_key
from consumer.wire import Code
from tests.broker.core.entries import (
    PATH,
    append,
    create,
    forget,
)
from tests.broker.core.replica import BEGIN_MS, after_seqs, replica, said


def test_accepted_batch_tells_epoch_seq_and_position() -> None:
    made = after_seqs(2)
    outcome = made.do(append(b"2", b"3", producer=("p", 0, 2)))
    assert (outcome.result, outcome.epoch, outcome.seq, outcome.next_position) == (Result.ACCEPTED, 0, 2, 4)


def test_duplicate_is_told_where_its_original_landed_and_the_highest_seq() -> None:
    """DESIGN 4: Stream-Next-Offset of the original, not of the tail."""
    made = after_seqs(3)
    outcome = made.do(append(b"1", producer=("p", 0, 1)))
    assert (outcome.result, outcome.next_position, outcome.seq) == (Result.DUPLICATE, 2, 2)
    assert made.records(PATH) == [b"0", b"1", b"2"]


def test_duplicate_older_than_sixty_four_batches_is_told_no_position() -> None:
    """CORE 2: an older duplicate is a 204 without the original's offset."""
    made = after_seqs(65)
    assert made.do(append(b"1", producer=("p", 0, 1))).next_position == 2
    outcome = made.do(append(b"0", producer=("p", 0, 0)))
    assert (outcome.result, outcome.next_position) == (Result.DUPLICATE, None)


def test_accepted_seq_with_other_bytes_is_a_mismatch() -> None:
    """DESIGN 4: a client bug, not a silent 204."""
    made = after_seqs(1)
    assert said(made.do(append(b"other", producer=("p", 0, 0)))) is Code.PAYLOAD_MISMATCH


def test_gap_tells_what_is_expected() -> None:
    made = after_seqs(1)
    outcome = made.do(append(b"5", producer=("p", 0, 5)))
    assert (outcome.code, outcome.expected_seq, outcome.epoch) == (Code.SEQ_GAP, 1, 0)


def test_batch_that_overtook_its_predecessor_is_accepted_when_sent_again() -> None:
    """CORE 4: costs a round trip, never order."""
    made = after_seqs(1)
    second, third = append(b"1", producer=("p", 0, 1)), append(b"2", producer=("p", 0, 2))
    assert [said(made.do(entry)) for entry in (third, second, third)] == [
        Code.SEQ_GAP,
        Result.ACCEPTED,
        Result.ACCEPTED,
    ]
    assert made.records(PATH) == [b"0", b"1", b"2"]


def test_new_epoch_fences_the_old_one_off() -> None:
    made = after_seqs(2, epoch=1)
    assert said(made.do(append(b"a", producer=("p", 2, 0)))) is Result.ACCEPTED
    outcome = made.do(append(b"2", producer=("p", 1, 2)))
    assert (outcome.code, outcome.epoch) == (Code.FENCED, 2)
    assert said(made.do(append(b"1", producer=("p", 1, 1)))) is Code.FENCED


def test_new_epoch_that_does_not_begin_at_zero_is_refused_and_fences_nobody() -> None:
    made = after_seqs(1)
    assert said(made.do(append(b"x", producer=("p", 1, 1)))) is Code.EPOCH_START
    assert said(made.do(append(b"1", producer=("p", 0, 1)))) is Result.ACCEPTED


def test_producer_never_seen_must_begin_at_zero() -> None:
    outcome = replica(create()).do(append(b"x", producer=("p", 3, 1)))
    assert (outcome.code, outcome.expected_seq) == (Code.SEQ_GAP, 0)


def test_producers_do_not_know_of_each_other() -> None:
    made = after_seqs(2)
    assert said(made.do(append(b"q", producer=("q", 0, 0)))) is Result.ACCEPTED
    assert made.stream(PATH).producers == 2


def test_producer_beyond_the_limit_that_the_entry_carries_is_refused() -> None:
    """CORE 1: settings travel in the entry; CORE 2: else 429."""
    made = after_seqs(1)
    assert said(made.do(append(b"q", producer=("q", 0, 0), producers_max=1))) is Code.TOO_MANY_PRODUCERS
    assert said(made.do(append(b"1", producer=("p", 0, 1), producers_max=1))) is Result.ACCEPTED
    assert said(made.do(append(b"q", producer=("q", 0, 0), producers_max=2))) is Result.ACCEPTED


def test_refused_first_batch_of_a_producer_leaves_no_trace_of_it() -> None:
    made = replica(create(), append(b"1", stream_seq="b"))
    made.do(append(b"x", producer=("p", 0, 0), stream_seq="a"))
    assert producer_key(PATH, "p") not in made.rows
    assert made.stream(PATH).producers == 0


def test_idle_producer_is_forgotten_and_makes_room() -> None:
    made = after_seqs(1)
    written_ms = made.now_ms
    assert said(made.do(forget("p", written_ms + 1), after_ms=5)) is Result.ACCEPTED
    assert made.stream(PATH).producers == 0
    assert producer_key(PATH, "p") not in made.rows
    assert said(made.do(append(b"q", producer=("q", 0, 0), producers_max=1))) is Result.ACCEPTED


@pytest.mark.parametrize(
    ("producer_id", "idle_for_ms", "path"), [("p", 0, PATH), ("nobody", 1, PATH), ("p", 1, "elsewhere")]
)
def test_producer_that_wrote_meanwhile_or_is_unknown_is_not_forgotten(
    producer_id: str, idle_for_ms: int, path: str
) -> None:
    made = after_seqs(1)
    assert said(made.do(forget(producer_id, made.now_ms + idle_for_ms, path=path))) is Result.UNCHANGED
    assert made.stream(PATH).producers == 1


def test_producer_row_names_its_life_epoch_and_last_activity() -> None:
    made = replica(create(nonce=5))
    made.do(append(b"1", producer=("p", 2, 0)), after_ms=3)
    row = made.rows[producer_key(PATH, "p")]
    assert isinstance(row, Producer)
    assert (row.incarnation, row.epoch, row.sequence.seq, row.active_ms) == (5, 2, 0, BEGIN_MS + 3)
