"""broker/journal/kafka_feed.py: records that Kafka confirms are fed before they are read, and read back."""

from typing import NamedTuple

import pytest

from broker.journal.kafka_feed import Feed
from broker.journal.shared_log import LogRecord, LogTruncated


class Found(NamedTuple):
    """A record as the consumer has it."""

    offset: int
    timestamp: int = 7
    value: bytes = b"mine"


MINE, THEIRS = LogRecord(0, 7, b"mine"), b"theirs"


async def test_reader_that_goes_on_behind_a_record_that_it_did_not_read_last_looks_back_to_that_one() -> None:
    """A start reads the newest record of its store, and what comes with it; the log may lose that before it goes on."""
    feed = Feed(0)
    feed.feed([Found(0), Found(1)])
    feed.begin(1, MINE)
    feed.doubt()
    assert feed.look_back() == 0
    feed.feed([Found(0, value=THEIRS), Found(1, value=THEIRS)])
    with pytest.raises(LogTruncated, match="another record at position 0"):
        await feed.some()


async def test_record_confirmed_as_the_next_one_is_fed_once_though_it_is_read_too() -> None:
    feed = Feed(0)
    feed.note_end(1)
    feed.confirm(MINE)
    await feed.some()
    assert feed.take() == (MINE,)
    assert feed.is_behind  # it is still to be read back; a consumer that stopped must not go unnoticed
    assert not feed.is_waited_for
    feed.feed([Found(0), Found(1, value=THEIRS)])
    assert feed.take() == (LogRecord(1, 7, THEIRS),)
    assert not feed.is_behind


async def test_record_confirmed_behind_one_of_others_is_left_to_reading() -> None:
    feed = Feed(0)
    feed.note_end(2)
    feed.confirm(MINE._replace(position=1))
    assert feed.take() == ()
    assert feed.was_overtaken
    assert feed.is_waited_for
    feed.feed([Found(0, value=THEIRS), Found(1)])
    assert [record.data for record in feed.take()] == [THEIRS, b"mine"]
    assert not feed.is_waited_for


async def test_record_confirmed_after_it_was_read_is_not_fed_again() -> None:
    feed = Feed(0)
    feed.feed([Found(0)])
    feed.confirm(MINE)
    assert feed.take() == (MINE,)
    assert not feed.was_overtaken


@pytest.mark.parametrize("found", [Found(0, value=THEIRS), Found(0, timestamp=8)])
async def test_log_that_has_another_record_than_it_confirmed_has_lost_it(found: Found) -> None:
    feed = Feed(0)
    feed.confirm(MINE)
    feed.take()
    feed.feed([found])
    with pytest.raises(LogTruncated, match="another record at position 0 than it confirmed"):
        await feed.some()


async def test_confirmation_is_not_believed_where_the_log_may_have_lost_records() -> None:
    feed = Feed(0)
    feed.feed([Found(0)])
    feed.doubt()
    feed.confirm(MINE._replace(position=1))
    assert feed.look_back() == 0
    feed.confirm(MINE._replace(position=1))
    assert feed.take() == (MINE,)
    feed.feed([Found(0), Found(1)])  # the last record is still there
    feed.confirm(MINE._replace(position=2))
    assert [record.position for record in feed.take()] == [1, 2]


async def test_reader_that_looks_back_begins_with_what_was_confirmed_last() -> None:
    feed = Feed(0)
    for position in range(3):
        feed.confirm(MINE._replace(position=position))
    feed.doubt()
    assert feed.look_back() == 2
    feed.feed([Found(2, value=THEIRS)])
    feed.take()
    with pytest.raises(LogTruncated):
        await feed.some()


async def test_no_more_is_confirmed_unread_than_is_held_of_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when writing goes on while reading has stopped."""
    monkeypatch.setattr("broker.limits.KAFKA_BACKLOG_BYTES", 10)
    feed = Feed(0)
    for position in range(5):
        feed.confirm(MINE._replace(position=position))
        feed.take()
    assert feed.next_position == 3
    feed.feed([Found(position) for position in range(5)])
    assert [record.position for record in feed.take()] == [3, 4]
    feed.confirm(MINE._replace(position=5))
    assert feed.next_position == 6
