"""broker/journal/cluster_standing.py: what a store's mark keeps."""

from broker.journal.cluster_record import Envelope, decode_mark, fingerprint
from broker.journal.cluster_standing import Standing
from broker.journal.shared_log import LogRecord

EMPTY = Envelope(7, 1)


def standing_behind(*records: LogRecord) -> Standing:
    """Each without entries."""
    standing = Standing(1, lambda: 0)
    for record in records:
        standing.hear(record.time_ms)
        standing.advance(record, EMPTY, None, ())
    return standing


def test_time_of_a_record_that_is_not_applied_yet_is_not_stored() -> None:
    """Kafka may lose that record: what stands there then may be older, and all others have that time."""
    standing = standing_behind(LogRecord(0, 5, b"applied"))
    standing.hear(9)
    assert decode_mark(standing.mark()).time_ms == 5
    again = Standing(2, lambda: 0)
    again.resume(decode_mark(standing.mark()))
    assert decode_mark(again.mark()).time_ms == 5


def test_newest_record_is_told_before_and_behind_a_mark_and_by_who_goes_on_there() -> None:
    record = LogRecord(1, 6, b"newest")
    standing = standing_behind(LogRecord(0, 5, b"older"))
    assert standing.newest() == fingerprint(LogRecord(0, 5, b"older"))
    standing.advance(record, EMPTY, None, ())
    mark = standing.mark()
    again = Standing(2, lambda: 0)
    again.resume(decode_mark(mark))
    assert standing.newest() == again.newest() == fingerprint(record)
