"""Records of a partition where they stand, as one server has them.

A consumer that is sent from place to place asks whoever it believes to lead by then, and waits where nothing is. So
these are fetched by hand, all from the leader as it was known at first, and nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from aiokafka.errors import CorruptRecordException, LeaderNotAvailableError, NoError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record import MemoryRecords

from broker.journal.shared_log import LogRecord

_NO_WAIT: Final = 0
_ONE_BATCH: Final = 1
"""In bytes: the first one comes whole, however long it is (KIP-74)."""
_READ_UNCOMMITTED: Final = 0


async def records_at(reached_by: Any, place: Any, positions: Sequence[int]) -> list[LogRecord | None]:
    """The records there, fetched one after the other; None where there is none. Raises KafkaError.

    `reached_by` is what a client that nothing else waits for reaches Kafka by.
    """
    await reached_by.add_topic(place.topic)
    leader = reached_by.cluster.leader_for_partition(place)
    if leader is None or leader < 0:
        raise LeaderNotAvailableError(f"nobody is known to lead partition {place.partition}")
    return [await _record(reached_by, leader, place, position) for position in positions]


async def _record(reached_by: Any, server: int, place: Any, position: int) -> LogRecord | None:
    wanted = [(place.topic, [(place.partition, position, _ONE_BATCH)])]
    answer = await reached_by.send(server, FetchRequest(_NO_WAIT, 0, _ONE_BATCH, _READ_UNCOMMITTED, wanted))
    ((_, ((_, code, *_, batches),)),) = answer.topics
    error = for_code(code)
    if error is OffsetOutOfRangeError:
        return None
    if error is not NoError:
        raise error(f"position {position} of partition {place.partition}")
    return next((record for record in _records(batches or b"") if record.position == position), None)


def _records(batches: bytes) -> Iterator[LogRecord]:
    """Raises CorruptRecordException."""
    fetched = MemoryRecords(batches)
    if batches and not fetched.has_next():
        raise CorruptRecordException("a batch is not whole")
    while fetched.has_next():
        batch = fetched.next_batch()
        if not batch.validate_crc():
            raise CorruptRecordException("a batch has another checksum than it says")
        for record in batch:
            yield LogRecord(record.offset, record.timestamp, record.value or b"")
