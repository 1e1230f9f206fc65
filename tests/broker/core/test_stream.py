"""broker/core/stream.py: create, close, delete and the order of checks, row by row (CORE 4; PROTOCOL.md 5.1 to 5.4)."""

import pytest

from broker.core.entry import Entry
from broker.core.outcome import Result
from broker.core.state import stream_key
from consumer.wire import OCTET_STREAM, Code
from tests.broker.core.entries import (
    PATH,
    Triple,
    append,
    append_bytes,
    close,
    create,
    delete,
    forget,
    touch,
)
from tests.broker.core.replica import BEGIN_MS, Replica, after_seqs, replica, said

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
