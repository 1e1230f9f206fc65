"""broker/core/stream.py: every row of the table of checks (CORE 4; PROTOCOL.md 5.1 to 5.4)."""

import pytest

from broker.core.entry import Entry
from broker.core.outcome import Outcome, Result
from broker.core.state import Producer, producer_key, stream_key
from consumer.wire import OCTET_STREAM, Code
from tests.broker.core.entries import (
    PATH,
    Triple,
    append,
    append_bytes,
    close,
    create,
    delete,
    expire,
    forget,
    touch,
)
from tests.broker.core.replica import BEGIN_MS, Replica


def replica(*entries: Entry) -> Replica:
    """A replica on which these were applied, all with success."""
    made = Replica()
    for entry in entries:
        outcome = made.do(entry)
        assert outcome.changed, outcome
    return made


def said(outcome: Outcome) -> Result | Code:
    """The outcome in one word."""
    return outcome.code or outcome.result


def after_seqs(count: int, *, epoch: int = 0) -> Replica:
    """A stream to which producer p wrote batches 0 … count - 1 of `epoch`, one record each."""
    return replica(create(), *[append(b"%d" % seq, producer=("p", epoch, seq)) for seq in range(count)])


# -- create (5.1) ----------------------------------------------------------------------------------------------------


def test_create_makes_an_empty_open_stream_of_the_life_that_its_nonce_names() -> None:
    made = Replica()
    outcome = made.do(create(nonce=77))
    assert outcome.result is Result.CREATED
    assert outcome.next_position == 0
    stream = made.stream(PATH)
    assert (stream.incarnation, stream.tail, stream.closed) == (77, 0, False)
    assert stream.created_ms == stream.active_ms == BEGIN_MS


def test_create_with_content_holds_it_from_the_start() -> None:
    made = Replica()
    assert made.do(create(b"1", b"2")).next_position == 2
    assert made.records(PATH) == [b"1", b"2"]


def test_create_of_bytes_counts_bytes() -> None:
    made = replica(create(content_type=OCTET_STREAM))
    assert made.do(append_bytes(b"hello")).next_position == 5
    assert made.do(append_bytes(b"!")).next_position == 6
    assert made.data(PATH) == b"hello!"


def test_create_closed_with_content_is_the_whole_stream() -> None:
    """5.1: any body provided becomes the complete and final content."""
    made = replica(create(b"1", closed=True))
    assert made.stream(PATH).closed
    assert said(made.do(append(b"2"))) is Code.STREAM_CLOSED
    assert made.records(PATH) == [b"1"]


@pytest.mark.parametrize(
    "again",
    [create(), create(content_type="application/JSON; charset=utf-8"), create(b"other content")],
    ids=["same", "same media type", "content is not configuration"],
)
def test_create_of_what_is_there_changes_nothing_and_tells_the_tail(again: Entry) -> None:
    """5.1: 200 when the configuration matches."""
    made = replica(create(), append(b"1"))
    outcome = made.do(again)
    assert outcome.result is Result.UNCHANGED
    assert outcome.next_position == 1
    assert made.records(PATH) == [b"1"]


@pytest.mark.parametrize(
    "again",
    [create(content_type="text/plain"), create(ttl_s=5), create(expires_at_ms=BEGIN_MS + 1), create(closed=True)],
    ids=["content type", "ttl", "expiry", "closed"],
)
def test_create_with_another_configuration_is_refused(again: Entry) -> None:
    """5.1: 409 when content type, TTL, expiry or closure differ."""
    made = replica(create())
    assert said(made.do(again)) is Code.STREAM_EXISTS


def test_closure_that_came_later_is_compared_too() -> None:
    """5.1 "Closure status matching": with the stream's current status, not with the one that it was created with."""
    made = replica(create(), close())
    assert said(made.do(create())) is Code.STREAM_EXISTS
    assert said(made.do(create(closed=True))) is Result.UNCHANGED


# -- the order of checks (CORE 4) ------------------------------------------------------------------------------------

# One request that is wrong in every way at once; each fact mended uncovers the next complaint.
WRONG_TYPE = append(b"x", content_type="text/plain", producer=("p", 0, 9), stream_seq="a")
WRONG_PRODUCER = append(b"x", producer=("p", 0, 9), stream_seq="a")
WRONG_SEQ = append(b"x", producer=("p", 0, 1), stream_seq="a")
ALL_RIGHT = append(b"x", producer=("p", 0, 1), stream_seq="c")
OPEN = (create(), append(b"1", producer=("p", 0, 0), stream_seq="b"))


@pytest.mark.parametrize(
    ("before", "entry", "word"),
    [
        ((), WRONG_TYPE, Code.STREAM_NOT_FOUND),
        ((*OPEN, close()), WRONG_TYPE, Code.STREAM_CLOSED),
        (OPEN, WRONG_TYPE, Code.CONTENT_TYPE_MISMATCH),
        (OPEN, WRONG_PRODUCER, Code.SEQ_GAP),
        (OPEN, WRONG_SEQ, Code.STREAM_SEQ_REGRESSION),
        (OPEN, ALL_RIGHT, Result.ACCEPTED),
    ],
    ids=["exists", "closed", "content type", "producer", "stream seq", "accepted"],
)
def test_first_complaint_in_the_order_of_checks_is_the_one_told(
    before: tuple[Entry, ...], entry: Entry, word: Result | Code
) -> None:
    """CORE 4: exists → closed → content type → producer → Stream-Seq."""
    assert said(replica(*before).do(entry)) is word


def test_duplicate_with_an_old_stream_seq_is_a_duplicate() -> None:
    """CORE 4: the producer is asked before Stream-Seq, or no retry that carries both could succeed."""
    first = append(b"1", producer=("p", 0, 0), stream_seq="a")
    made = replica(create(), first)
    assert said(made.do(first)) is Result.DUPLICATE


@pytest.mark.parametrize(("before", "after"), [("a", "b"), ("1", "10"), ("09", "1"), ("a", "é")])
def test_stream_seq_that_rises_as_text_is_accepted(before: str, after: str) -> None:
    """5.2: byte-wise lexicographic order."""
    made = replica(create(), append(b"1", stream_seq=before))
    assert said(made.do(append(b"2", stream_seq=after))) is Result.ACCEPTED


@pytest.mark.parametrize(("before", "after"), [("b", "a"), ("b", "b"), ("2", "10")])
def test_stream_seq_that_does_not_rise_is_refused(before: str, after: str) -> None:
    made = replica(create(), append(b"1", stream_seq=before))
    assert said(made.do(append(b"2", stream_seq=after))) is Code.STREAM_SEQ_REGRESSION
    assert made.records(PATH) == [b"1"]


def test_append_without_stream_seq_keeps_the_one_before() -> None:
    made = replica(create(), append(b"1", stream_seq="b"), append(b"2"))
    assert said(made.do(append(b"3", stream_seq="b"))) is Code.STREAM_SEQ_REGRESSION


def test_content_type_is_compared_by_media_type_alone() -> None:
    made = replica(create(content_type="text/plain; charset=utf-8"))
    assert said(made.do(append_bytes(b"x", content_type="TEXT/plain"))) is Result.ACCEPTED
    assert said(made.do(append_bytes(b"x", content_type="text/html"))) is Code.CONTENT_TYPE_MISMATCH


# -- producers (5.2.1) -----------------------------------------------------------------------------------------------


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


# -- closure (5.3) ---------------------------------------------------------------------------------------------------


def test_close_adds_nothing_and_tells_the_tail() -> None:
    made = replica(create(), append(b"1"))
    outcome = made.do(close())
    assert (outcome.result, outcome.next_position) == (Result.ACCEPTED, 1)
    assert made.stream(PATH).closed


def test_append_that_closes_is_the_last_one() -> None:
    made = replica(create(), append(b"1", closes=True))
    assert made.records(PATH) == [b"1"]
    outcome = made.do(append(b"2"))
    assert (outcome.code, outcome.next_position) == (Code.STREAM_CLOSED, 1)


@pytest.mark.parametrize("producer", [None, ("p", 0, 0), ("q", 9, 9)])
def test_close_of_a_closed_stream_succeeds_whoever_asks(producer: Triple | None) -> None:
    """5.2: close-only requests are idempotent."""
    made = replica(create(), append(b"1", closes=True))
    assert said(made.do(close(producer=producer))) is Result.UNCHANGED


@pytest.mark.parametrize("again", [b"1", b"other"], ids=["same bytes", "other bytes"])
def test_tuple_that_closed_the_stream_is_a_duplicate_whatever_its_bytes(again: bytes) -> None:
    """5.2.1 "Stream Closure with Idempotent Producers"; CORE 4: no PAYLOAD_MISMATCH here."""
    made = replica(create(), append(b"1", producer=("p", 2, 0), closes=True))
    outcome = made.do(append(again, producer=("p", 2, 0), closes=True))
    assert (outcome.result, outcome.epoch, outcome.seq, outcome.next_position) == (Result.DUPLICATE, 2, 0, 1)


def test_close_without_a_body_by_a_producer_has_its_own_tuple() -> None:
    made = replica(create(), append(b"1", producer=("p", 0, 0)), close(producer=("p", 0, 1)))
    outcome = made.do(close(producer=("p", 0, 1)))
    assert (outcome.result, outcome.seq) == (Result.DUPLICATE, 1)


@pytest.mark.parametrize("producer", [None, ("p", 0, 0), ("p", 0, 2), ("p", 1, 0), ("q", 0, 1)])
def test_anything_but_the_closing_tuple_finds_the_stream_closed(producer: Triple | None) -> None:
    """CORE 4: an accepted earlier batch too."""
    made = replica(create(), append(b"1", producer=("p", 0, 0)), append(b"2", producer=("p", 0, 1), closes=True))
    assert said(made.do(append(b"1", producer=producer))) is Code.STREAM_CLOSED


def test_closing_tuple_is_known_after_its_producer_was_forgotten() -> None:
    """The stream's own row remembers who closed it."""
    closing = append(b"1", producer=("p", 4, 0), closes=True)
    made = replica(create(), closing)
    made.do(forget("p", made.now_ms + 1), after_ms=5)
    outcome = made.do(closing)
    assert (outcome.result, outcome.epoch, outcome.seq) == (Result.DUPLICATE, 4, 0)


def test_close_with_a_gap_does_not_close() -> None:
    """A close is one more batch of its producer: what is missing before it must come first."""
    made = after_seqs(1)
    assert said(made.do(close(producer=("p", 0, 2)))) is Code.SEQ_GAP
    assert not made.stream(PATH).closed


# -- delete, and the life after it -----------------------------------------------------------------------------------


def test_deleted_stream_is_gone_and_its_life_is_reported_for_sweeping() -> None:
    made = replica(create(nonce=5), append(b"1"))
    assert said(made.do(delete())) is Result.ACCEPTED
    assert made.ended == [(PATH, 5)]
    assert stream_key(PATH) not in made.rows
    for entry in (append(b"2"), close(), delete()):
        assert said(made.do(entry)) is Code.STREAM_NOT_FOUND


def test_stream_created_again_begins_anew() -> None:
    """CORE 3: positions restart with an incarnation."""
    made = replica(create(nonce=5), append(b"1", stream_seq="z"), close(), delete(), create(nonce=6))
    assert made.stream(PATH).incarnation == 6
    assert made.do(append(b"2", stream_seq="a")).next_position == 1
    assert made.records(PATH) == [b"2"]


def test_producer_of_an_earlier_life_does_not_count() -> None:
    """CORE 4: else "duplicate" is answered, and the bytes are nowhere."""
    first = append(b"0", producer=("p", 3, 0))
    made = replica(create(), first, delete(), create())
    assert said(made.do(first)) is Result.ACCEPTED
    assert made.records(PATH) == [b"0"]
    assert made.stream(PATH).producers == 1


def test_producer_of_an_earlier_life_does_not_fence_a_lower_epoch() -> None:
    made = replica(create(), append(b"0", producer=("p", 3, 0)), delete(), create())
    outcome = made.do(append(b"0", producer=("p", 0, 0)))
    assert (outcome.result, outcome.epoch) == (Result.ACCEPTED, 0)


def test_producer_of_an_earlier_life_is_not_forgotten_twice() -> None:
    made = replica(create(), append(b"0", producer=("p", 0, 0)), delete(), create())
    assert said(made.do(forget("p", made.now_ms + 1), after_ms=5)) is Result.UNCHANGED
    assert made.stream(PATH).producers == 0


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (append(b"x", incarnation=5), Code.STREAM_NOT_FOUND),
        (delete(incarnation=5), Code.STREAM_NOT_FOUND),
        (touch(incarnation=5), Result.UNCHANGED),
        (append(b"x", incarnation=6), Result.ACCEPTED),
    ],
)
def test_entry_that_names_a_life_reaches_that_life_only(entry: Entry, word: Result | Code) -> None:
    """CORE 1: the incarnation that the proposer saw."""
    made = replica(create(nonce=5, ttl_s=60), delete(), create(nonce=6, ttl_s=60))
    assert said(made.do(entry)) is word


# -- expiry (5.1, CORE 6) --------------------------------------------------------------------------------------------

TTL_MS = 10_000
DEADLINE_MS = 11_000  # 1.1 TTL


@pytest.mark.parametrize(
    ("after_ms", "word"), [(DEADLINE_MS - 1, Result.ACCEPTED), (DEADLINE_MS, Code.STREAM_NOT_FOUND)]
)
def test_stream_lives_until_a_tenth_beyond_its_ttl(after_ms: int, word: Result | Code) -> None:
    """CORE 6: the deadline is last activity + 1.1 TTL."""
    made = replica(create(ttl_s=10))
    assert said(made.do(append(b"1"), after_ms=after_ms)) is word


@pytest.mark.parametrize("renewal", [append(b"1"), touch(), close()], ids=["append", "touch", "close"])
def test_write_or_read_renews_a_sliding_ttl(renewal: Entry) -> None:
    made = replica(create(ttl_s=10))
    made.do(renewal, after_ms=TTL_MS)
    assert said(made.do(expire(), after_ms=TTL_MS)) is Result.UNCHANGED
    assert said(made.do(expire(), after_ms=DEADLINE_MS - TTL_MS)) is Result.ACCEPTED


@pytest.mark.parametrize(
    "nothing",
    [
        append(b"0", producer=("p", 0, 0)),
        append(b"9", producer=("p", 0, 9)),
        append(b"x", content_type="text/plain"),
        create(ttl_s=10),
        expire(),
    ],
    ids=["duplicate", "gap", "content type", "create again", "expire"],
)
def test_refusal_or_duplicate_renews_nothing(nothing: Entry) -> None:
    """CORE 4: no TTL, no last activity."""
    made = replica(create(ttl_s=10), append(b"0", producer=("p", 0, 0)))
    assert not made.do(nothing, after_ms=TTL_MS).changed
    assert said(made.do(expire(), after_ms=DEADLINE_MS - TTL_MS)) is Result.ACCEPTED


def test_absolute_expiry_is_neither_renewed_nor_stretched() -> None:
    made = replica(create(expires_at_ms=BEGIN_MS + 1000))
    assert said(made.do(append(b"1"), after_ms=999)) is Result.ACCEPTED
    assert said(made.do(touch())) is Result.UNCHANGED
    assert said(made.do(append(b"2"), after_ms=1)) is Code.STREAM_NOT_FOUND


@pytest.mark.parametrize("entry", [append(b"x"), close(), delete(), expire(), touch(), forget("p", 0)])
def test_entry_that_comes_upon_an_overdue_stream_takes_it_away(entry: Entry) -> None:
    """CORE 6: an entry that names an overdue stream expires it first."""
    made = replica(create(ttl_s=10, nonce=5))
    made.do(entry, after_ms=DEADLINE_MS)
    assert stream_key(PATH) not in made.rows
    assert made.ended == [(PATH, 5)]


def test_create_over_an_overdue_stream_is_a_new_life() -> None:
    made = replica(create(b"old", ttl_s=10, nonce=5))
    assert said(made.do(create(b"new", nonce=6), after_ms=DEADLINE_MS)) is Result.CREATED
    assert made.ended == [(PATH, 5)]
    assert made.records(PATH) == [b"new"]


def test_expire_of_a_stream_that_is_not_there_changes_nothing() -> None:
    assert said(Replica().do(expire())) is Result.UNCHANGED


@pytest.mark.parametrize("path", [PATH, "elsewhere"])
def test_touch_without_a_sliding_ttl_changes_nothing(path: str) -> None:
    assert said(replica(create()).do(touch(path=path))) is Result.UNCHANGED


def test_stream_with_a_ttl_of_zero_is_gone_at_once() -> None:
    """5.1: any non-negative integer is a TTL."""
    made = replica(create(ttl_s=0))
    assert said(made.do(append(b"1"))) is Code.STREAM_NOT_FOUND


def test_producer_row_names_its_life_epoch_and_last_activity() -> None:
    made = replica(create(nonce=5))
    made.do(append(b"1", producer=("p", 2, 0)), after_ms=3)
    row = made.rows[producer_key(PATH, "p")]
    assert isinstance(row, Producer)
    assert (row.incarnation, row.epoch, row.sequence.seq, row.active_ms) == (5, 2, 0, BEGIN_MS + 3)
