"""The shared log on Apache Kafka: one topic, each of its partitions a `SharedLog`.

Kafka is asked for little: that a partition orders records and keeps them. No consumer group (every node reads all), no
transactions, no idempotent producer (one that has lost its place stays lost; `broker.journal.cluster` makes late and
double copies void by itself), no offsets in Kafka (the store has them, in one transaction with what they stand for).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from broker import limits
from broker.errors import OutcomeUnknown, StartError, Unavailable
from broker.journal.kafka_topic import KafkaTopic, ensure_topic
from broker.journal.shared_log import LogLost, LogRecord, LogTruncated

log = logging.getLogger("streamfold.kafka")

_POLL_MS: Final = 1_000
"""How long the consumer waits for anything before it looks whether it is stalled."""
_PAUSE_S: Final = 0.5
"""Before a consumer that failed is used, or made, again."""
_LOOK_AGAIN_S: Final = 0.1
"""Before a broker is asked again for what it does not have."""
_SILENCE_S_MAX: Final = 2 * _POLL_MS / 1000
"""Between two looks of the consumer, or a question and its answer: in a longer one another replica may have come to
lead, one that lacks what was read."""
_REBUILD_S_MAX: Final = 3 * limits.KAFKA_REQUEST_MS / 1000
"""A client of a Kafka that comes and goes may start, or stop, for ever."""
_APPEND_S_MAX: Final = 3 * limits.KAFKA_REQUEST_MS / 1000
"""The producer answers within twice its request timeout; this is for the day that it does not."""


class Kafka:
    """This process's connection to one topic: a producer and a consumer, for all partitions.

    Opened by the first log that opens, closed with the last one that closes.
    """

    def __init__(self, topic: KafkaTopic, *, stall_s: float = limits.KAFKA_STALL_S) -> None:
        self.topic = topic
        self._stall_s = stall_s
        self.rebuilds = 0
        """How often a stalled consumer was made anew."""
        self._producer: Any = None
        self._consumer: Any = None
        self._asker: Any = None  # a consumer that reads nothing: a fetch that waits would hold questions up for as long
        self._logs: dict[int, KafkaLog] = {}
        self._opening = asyncio.Lock()
        self._consuming: asyncio.Task[None] | None = None
        self._looked_at = 0.0  # when the consumer was last asked, by the event loop's clock
        self._progress_at = 0.0  # when records last came, by the event loop's clock
        self._doubted_at: dict[int, float] = {}  # by partition: since when Kafka says to have less than it has told

    def log(self, partition: int) -> KafkaLog:
        """A partition's log, closed yet."""
        return KafkaLog(self, partition)

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the topic if it is missing, check it, connect. Raises StartError."""
        async with self._opening:
            if self._consuming is None:
                try:
                    await ensure_topic(self.topic)
                    await self._connect()
                except (KafkaError, OSError, TimeoutError) as error:
                    await self._disconnect()
                    raise StartError(
                        f"Kafka at {self.topic.bootstrap} does not serve topic {self.topic.name}: {error}",
                        "is it running, and does --kafka-bootstrap name it?",
                    ) from error
                except BaseException:
                    await self._disconnect()
                    raise

    async def _connect(self) -> None:
        self._producer = new_producer(self.topic)
        await self._producer.start()
        self._asker = new_consumer(self.topic)
        await self._asker.start()
        self._consumer = await self._made_consumer()
        self._progress_at = self._looked_at = asyncio.get_running_loop().time()
        self._consuming = asyncio.create_task(self._consume_forever(), name="kafka: consume")

    async def _made_consumer(self) -> Any:
        """A consumer of all partitions, each where its log wants to go on; paused where none reads."""
        consumer = new_consumer(self.topic)
        try:
            await consumer.start()
            all_partitions = [self.place(partition) for partition in range(self.topic.partitions)]
            consumer.assign(all_partitions)
            for place in all_partitions:
                reader = self._logs.get(place.partition)
                consumer.seek(place, 0 if reader is None else reader.look_back())
                if reader is None or reader.is_full:
                    consumer.pause(place)
        except BaseException:
            await _stop(consumer)
            raise
        return consumer

    def place(self, partition: int) -> Any:
        """The partition as aiokafka names it."""
        return TopicPartition(self.topic.name, partition)

    async def leave(self, reader: KafkaLog) -> None:
        """A log is closed; the last one closes the connection."""
        if self._logs.get(reader.partition) is reader:
            del self._logs[reader.partition]
        if not self._logs:
            async with self._opening:
                await self._disconnect()

    async def _disconnect(self) -> None:
        if self._consuming is not None:
            self._consuming.cancel()
            await asyncio.gather(self._consuming, return_exceptions=True)
            self._consuming = None
        for client in (self._consumer, self._asker, self._producer):
            if client is not None:
                with suppress(KafkaError, OSError, TimeoutError):
                    async with asyncio.timeout(limits.CLUSTER_CLOSE_S):
                        await client.stop()
        self._consumer = self._asker = self._producer = None

    # -- consuming ---------------------------------------------------------------------------------------------------

    def join(self, reader: KafkaLog) -> None:
        """From here on feed this log, from its next position on."""
        self._logs[reader.partition] = reader
        if self._consumer is not None:
            self._consumer.seek(self.place(reader.partition), reader.next_position)
            self._consumer.resume(self.place(reader.partition))

    def resume(self, reader: KafkaLog) -> None:
        """A log that was full has room again."""
        if self._consumer is not None:
            self._consumer.resume(self.place(reader.partition))

    async def _consume_forever(self) -> None:
        while True:
            try:
                await self._consume()
            except OffsetOutOfRangeError as error:
                await self._judge_range(error.args[0])
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("the consumer failed, and goes on: %s", error)
                await asyncio.sleep(_PAUSE_S)

    async def _consume(self) -> None:
        """Feed the logs; return when the consumer has stalled and was made anew."""
        while True:
            self._look_back()
            # At once into our own queues: no fetch is sent while records of an earlier one lie in the client.
            found = await self._consumer.getmany(timeout_ms=_POLL_MS)
            now = asyncio.get_running_loop().time()
            was_frozen = now > self._looked_at + _SILENCE_S_MAX
            self._looked_at = now
            for place, records in found.items():
                self._doubted_at.pop(place.partition, None)
                reader = self._logs.get(place.partition)
                # What may lie behind a loss is read again, behind the last record that was read before it.
                if reader is not None and not (was_frozen and reader.could_be_misled) and reader.feed(records):
                    self._consumer.pause(place)
            if was_frozen:
                self._doubt(*self._logs)
            if found or not any(reader.is_behind for reader in self._logs.values()):
                self._progress_at = now
            elif now > self._progress_at + self._stall_s:
                await self._rebuild()
                return

    def _look_back(self) -> None:
        """Let those who have doubts read the last record again."""
        for reader in self._logs.values():
            if reader.is_in_doubt:
                self._consumer.seek(self.place(reader.partition), reader.look_back())

    async def _rebuild(self) -> None:
        """Make a consumer that stopped for good anew: it loses nothing, the logs know where they are."""
        self.rebuilds += 1
        log.warning("records are there and none come: the consumer is made anew")
        async with asyncio.timeout(_REBUILD_S_MAX):  # else a Kafka that goes away meanwhile ends all reading
            fresh = await self._made_consumer()
        stalled, self._consumer = self._consumer, fresh
        self._progress_at = asyncio.get_running_loop().time()
        await _stop(stalled)

    async def _judge_range(self, places: dict[Any, int]) -> None:
        """A broker does not have a position. It may be behind, or lead no more; if that stays so, it is lost."""
        for place, position in places.items():
            reader = self._logs.get(place.partition)
            if reader is None:
                continue
            try:
                first, end = await reader.first(), await reader.end()
            except Unavailable:
                await asyncio.sleep(_PAUSE_S)
                continue
            told = f"position {position} is asked for, Kafka has {first} to {end}"
            if position > end and self._is_beyond_doubt(place.partition):
                reader.lose(LogTruncated(told))
                self._consumer.pause(place)
            elif position < first and first > reader.next_position:
                reader.lose(LogLost(told))
                self._consumer.pause(place)
            else:
                self._consumer.seek(place, reader.look_ahead() if position < first else reader.look_back())
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _is_beyond_doubt(self, partition: int) -> bool:
        """Whether Kafka has said for long enough that it has less of a partition than was read from it.

        A leader that was frozen says so, until it hears that another one leads by now.
        """
        now = asyncio.get_running_loop().time()
        return now >= self._doubted_at.setdefault(partition, now) + limits.KAFKA_DOUBT_S

    # -- for the logs ------------------------------------------------------------------------------------------------

    async def bound(self, partition: int, *, end: bool) -> int:
        """The partition's first or next position, as its leader has it. Raises Unavailable."""
        place, asker = self.place(partition), self._asker
        if asker is None:
            raise Unavailable("Kafka is not connected")
        asked_at = asyncio.get_running_loop().time()
        try:
            ask = asker.end_offsets if end else asker.beginning_offsets
            told = int((await ask([place]))[place])
        except (KafkaError, OSError, TimeoutError) as error:
            self._doubt(partition)
            raise Unavailable(f"Kafka does not tell where partition {partition} stands: {error}") from error
        if asyncio.get_running_loop().time() > asked_at + _SILENCE_S_MAX:
            self._doubt(partition)
        return told

    async def append(self, partition: int, data: bytes) -> int:
        """As `SharedLog.append`."""
        if self._producer is None:
            raise OutcomeUnknown("Kafka is not connected")
        try:
            # Not cancelled with whoever waits: the record may be under way, and its place is needed to settle it.
            told = await self._producer.send(self.topic.name, data, partition=partition)
            done, _ = await asyncio.wait((told,), timeout=_APPEND_S_MAX)
            if not done:
                raise OutcomeUnknown("the producer does not answer")
            return int(told.result().offset)
        except (KafkaError, OSError, TimeoutError) as error:
            self._doubt(partition)
            raise OutcomeUnknown(f"Kafka has not confirmed it: {error}") from error

    def _doubt(self, *partitions: int) -> None:
        """Something has happened under which these may have lost records."""
        for partition in partitions:
            if partition in self._logs:
                self._logs[partition].doubt()

    async def trim(self, partition: int, position: int) -> None:
        """As `SharedLog.trim`."""
        admin = AIOKafkaAdminClient(**self.topic.access(), request_timeout_ms=limits.KAFKA_REQUEST_MS)
        try:
            await admin.start()
            await admin.delete_records({self.place(partition): RecordsToDelete(position)})
        except (KafkaError, OSError, TimeoutError) as error:
            raise Unavailable(f"Kafka has not dropped records: {error}") from error
        finally:
            await admin.close()


class KafkaLog:
    """A `SharedLog`: one partition of the topic.

    Kafka may lose what it has confirmed, when a replica must lead that was behind (an unclean election), and the client
    does not notice (it does not speak KIP-320). So after everything that might have been one, a log looks back: it
    reads the last record again, and what it finds there must be the same.
    """

    def __init__(self, kafka: Kafka, partition: int) -> None:
        self.partition = partition
        self.next_position = 0
        """Of the next record to be fed."""
        self._kafka = kafka
        self._known_end = 0  # Kafka has records before this position
        self._records: deque[LogRecord] = deque()  # fed, and not yet read
        self._size_bytes = 0
        self._last: LogRecord | None = None  # that was fed
        self._doubts = False
        self._is_looking_back = False  # the consumer was sent to `_last`, which is to be fed next
        self._came = asyncio.Event()
        self._lost: LogLost | None = None

    async def open(self) -> None:
        """As in `SharedLog`."""
        await self._kafka.open()

    async def first(self) -> int:
        """As in `SharedLog`."""
        return await self._kafka.bound(self.partition, end=False)

    async def end(self) -> int:
        """As in `SharedLog`."""
        end = await self._kafka.bound(self.partition, end=True)
        self._known_end = max(self._known_end, end)
        return end

    def seek(self, position: int) -> None:
        """As in `SharedLog`."""
        self.next_position = position
        if self._last is None or self._last.position != position - 1:
            self._last = None
        self._is_looking_back = False
        self._records.clear()
        self._size_bytes = 0
        self._kafka.join(self)

    async def read(self) -> Sequence[LogRecord]:
        """As in `SharedLog`."""
        while not self._records:
            if self._lost is not None:
                raise self._lost
            self._came.clear()
            await self._came.wait()
        was_full = self.is_full
        records, self._records, self._size_bytes = self._records, deque(), 0
        if was_full:
            self._kafka.resume(self)
        return tuple(records)

    async def append(self, data: bytes) -> int:
        """As in `SharedLog`."""
        position = await self._kafka.append(self.partition, data)
        self._known_end = max(self._known_end, position + 1)
        return position

    async def trim(self, position: int) -> None:
        """As in `SharedLog`."""
        await self._kafka.trim(self.partition, position)

    async def aclose(self) -> None:
        """As in `SharedLog`."""
        await self._kafka.leave(self)

    # -- called by the connection ------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether more should not be fed before some is read."""
        return self._size_bytes >= limits.KAFKA_BACKLOG_BYTES

    @property
    def is_behind(self) -> bool:
        """Whether Kafka is known to have records that could have been fed."""
        return self._known_end > self.next_position and not self.is_full and self._lost is None

    def feed(self, records: Sequence[Any]) -> bool:
        """Records of this partition as the consumer found them; True when that was enough for now."""
        for record in records if self._lost is None else ():
            found = LogRecord(record.offset, record.timestamp, record.value or b"")
            if self._is_looking_back and not self._has_found_again(found):
                break
            if found.position < self.next_position:
                continue  # of a fetch from before a seek
            self._records.append(found)
            self._size_bytes += len(found.data)
            self.next_position = found.position + 1
            self._last = found
        self._came.set()
        return self.is_full

    @property
    def is_in_doubt(self) -> bool:
        """Whether to look back."""
        return self._doubts and self._lost is None

    @property
    def could_be_misled(self) -> bool:
        """Whether what comes next does not begin with the last record, though there is one."""
        return self._last is not None and not self._is_looking_back

    def doubt(self) -> None:
        """Look back once more, to be sure."""
        self._doubts = True

    def look_ahead(self) -> int:
        """Where the consumer is to go on, without looking back."""
        self._doubts, self._is_looking_back = False, False
        return self.next_position

    def look_back(self) -> int:
        """Where the consumer is to go on, at the last record if there is one."""
        self._doubts = False
        self._is_looking_back = self._last is not None
        return self.next_position if self._last is None else self._last.position

    def _has_found_again(self, found: LogRecord) -> bool:
        """Whether this is the last record, as it was."""
        self._is_looking_back = False
        if self._last is None or found.position != self._last.position:
            self.doubt()  # of a fetch from before the seek: once more
            return False
        if found != self._last:
            self.lose(LogTruncated(f"the log has another record at position {found.position} than was read there"))
            return False
        return True

    def lose(self, lost: LogLost) -> None:
        """There is nothing more to come."""
        self._lost = lost
        self._came.set()


async def _stop(consumer: Any) -> None:
    """Let go of a consumer that may not answer."""
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(limits.KAFKA_REQUEST_MS / 1000):
            await consumer.stop()


def new_producer(topic: KafkaTopic) -> Any:
    """A client that writes as the log wants it, not started."""
    return AIOKafkaProducer(
        **topic.access(),
        acks="all",
        enable_idempotence=False,
        linger_ms=0,
        compression_type="lz4",
        max_batch_size=limits.RECORD_BYTES_MAX,
        max_request_size=limits.RECORD_BYTES_MAX,
        request_timeout_ms=limits.KAFKA_REQUEST_MS,
        metadata_max_age_ms=limits.KAFKA_METADATA_MS,
        retry_backoff_ms=50,
    )


def new_consumer(topic: KafkaTopic) -> Any:
    """A client that reads as the log wants it, not started."""
    return AIOKafkaConsumer(
        **topic.access(),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",  # anything else would jump over what is missing
        isolation_level="read_uncommitted",
        fetch_max_wait_ms=limits.KAFKA_FETCH_WAIT_MS,
        fetch_max_bytes=limits.KAFKA_FETCH_BYTES,
        max_partition_fetch_bytes=limits.RECORD_BYTES_MAX,
        request_timeout_ms=limits.KAFKA_REQUEST_MS,
        metadata_max_age_ms=limits.KAFKA_METADATA_MS,
        retry_backoff_ms=50,
    )
