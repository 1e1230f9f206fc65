"""broker/journal/cluster_standing.py: what a store's mark keeps, and what a process knows of what it has passed."""

from broker.core.outcome import Outcome, Result
from broker.journal import Commit
from broker.journal.cluster_record import Envelope, decode_mark, fingerprint
from broker.journal.cluster_standing import Standing
from broker.journal.shared_log import LogRecord
from tests.broker.core import entries

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


def test_store_of_a_log_that_has_lost_its_last_record_is_told_though_that_changed_nothing() -> None:
    """A chain is of outcomes, and that record had none."""
    lost, now = LogRecord(1, 6, b"lost"), LogRecord(1, 6, b"in its place")
    standing = standing_behind(LogRecord(0, 5, b"kept"), now)
    assert standing.may_have(2, standing.chain, fingerprint(now))
    assert not standing.may_have(2, standing.chain, fingerprint(lost))


def test_store_of_other_outcomes_is_told_and_one_of_longer_ago_than_is_known_is_not() -> None:
    standing = standing_behind(LogRecord(4, 5, b"first that this process has read"))
    commit = Commit(1, 5, [entries.append(b"1")])
    standing.advance(LogRecord(5, 5, b"with an entry"), EMPTY, commit, [Outcome(Result.ACCEPTED, next_position=1)])
    assert standing.may_have(6, standing.chain, b"whatever")
    assert not standing.may_have(6, b"another", b"whatever")
    assert standing.may_have(4, b"of an earlier process", b"")
    assert not standing.may_have(7, standing.chain, b""), "it has not read as far"
