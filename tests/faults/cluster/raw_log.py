"""The log as Kafka has it, replayed by nobody's journal: what every replica must have made of it.

The rules of `broker.journal.cluster` are written a second time here, from what a record says alone. What an entry does
is `apply`'s to say, here as there.
"""

import asyncio
import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from broker.core.entry import decode as decode_entry
from broker.core.outcome import Outcome
from broker.core.state import Stream
from broker.journal.cluster_record import Audit, Envelope, decode
from broker.journal.shared_log import LogRecord
from tests.broker.core.replica import Replica

READ_S_MAX = 30.0
_OVER = 1 << 63


async def records_of(bootstrap: str, topic: str, partition: int) -> list[LogRecord]:
    """All records that a partition has at the moment of the call. Raises TimeoutError."""
    place = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="none")
    async with asyncio.timeout(READ_S_MAX):
        await consumer.start()
        try:
            consumer.assign([place])
            begin = (await consumer.beginning_offsets([place]))[place]
            end = (await consumer.end_offsets([place]))[place]
            consumer.seek(place, begin)
            records: list[LogRecord] = []
            while begin + len(records) < end:
                for found in (await consumer.getmany(timeout_ms=500)).values():
                    records += [LogRecord(record.offset, record.timestamp, record.value) for record in found]
            return records[: end - begin]
        finally:
            await consumer.stop()


@dataclass(eq=False)
class Replay:
    """One partition, applied record by record. What is wrong with the log itself is in `faults`.

    `losses` are what says that Kafka once had more: a fault, too, unless it was made to lose it.
    """

    state: Replica = field(default_factory=Replica)
    position: int = 0
    chain: bytes = b""
    chains: dict[int, bytes] = field(default_factory=lambda: {0: b""})
    """By position, the chain before it."""
    indexes: dict[int, int] = field(default_factory=lambda: {0: 0})
    void: int = 0
    audits: int = 0
    faults: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    _seen: dict[int, int] = field(default_factory=dict)
    _time_ms: int = 0
    _log: bytes = b""

    def apply(self, records: Sequence[LogRecord]) -> None:
        """Go on with these records."""
        for record in records:
            if record.position != self.position:
                self.faults.append(f"position {record.position} comes after {self.position - 1}")
            self._time_ms = max(self._time_ms, record.time_ms)
            envelope = decode(record.data)
            if envelope is not None:
                self._take(record, envelope)
            self.position = record.position + 1
            self.chains[self.position] = self.chain
            self.indexes[self.position] = self.state.index

    def _take(self, record: LogRecord, envelope: Envelope) -> None:
        if record.position == 0 and envelope.meta is not None:
            self._log = envelope.meta.log
        if envelope.log not in (b"", self._log):
            self.void += 1
            return
        if envelope.number <= self._seen.get(envelope.boot, -1):
            self.void += 1
            return
        self._seen[envelope.boot] = envelope.number
        if envelope.retired:
            self._seen[envelope.retired] = _OVER
        if envelope.audit is not None:
            self.audits += 1
            self._audit(record.position, envelope.audit)
        if envelope.entries:
            first_ms = self._time_ms - self.state.now_ms
            outcomes = [
                self.state.do(decode_entry(entry), after_ms=0 if number else first_ms)
                for number, entry in enumerate(envelope.entries)
            ]
            self._link(record.position, outcomes)

    def _audit(self, position: int, said: Audit) -> None:
        if said.position > position:
            self.losses.append(f"the audit at {position} tells of position {said.position}, which was yet to come")
        elif self.chains.get(said.position) != said.chain:
            self.faults.append(f"the audit at {position} has another chain before {said.position}")

    def _link(self, position: int, outcomes: Sequence[Outcome]) -> None:
        link = hashlib.blake2b(self.chain, digest_size=16)
        link.update(struct.pack("<QQ", position, self._time_ms))
        for it in outcomes:
            link.update(msgspec.msgpack.encode((it.result, it.code, it.next_position, it.epoch, it.seq)))
        self.chain = link.digest()

    def streams(self) -> Iterator[tuple[str, Stream]]:
        """All streams that there are, with their paths."""
        for key, row in self.state.rows.items():
            if isinstance(row, Stream) and not row.deleted:
                yield key[1:].decode(), row

    def content(self, path: str) -> bytes:
        """What a stream holds: its bytes, or the array of its records."""
        pages = self.state.pages.get((path, self.state.stream(path).incarnation), [])
        if pages and not pages[0].lengths:
            return b"".join(page.data for page in pages)
        return b",".join(page.data for page in pages)


async def replayed(bootstrap: str, topic: str, partitions: int) -> list[Replay]:
    """All partitions of a topic, each replayed from its first record to its last."""
    replays = [Replay() for _ in range(partitions)]
    for partition, replay in enumerate(replays):
        replay.apply(await records_of(bootstrap, topic, partition))
    return replays
