"""broker/core/stream.py: streams that live for a time (PROTOCOL.md 5.1, CORE 6)."""

import pytest

from broker.core.entry import Entry
from broker.core.outcome import Result
from broker.core.state import stream_key
from consumer.wire import Code
from tests.broker.core.entries import (
    PATH,
    append,
    close,
    create,
    delete,
    expire,
    forget,
    touch,
)
from tests.broker.core.replica import BEGIN_MS, Replica, replica, said

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
