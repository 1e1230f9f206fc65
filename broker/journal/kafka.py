"""A process's connection to Apache Kafka: one topic, each of its partitions a log (`kafka_log`).

Kafka is asked for little: that a partition orders records and keeps them. No consumer group (every node reads all), no
transactions, no idempotent producer (one that has lost its place stays lost; `broker.journal.cluster` makes late and
double copies void by itself), no offsets in Kafka (the store has them, in one transaction with what they stand for).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from broker import limits
from broker.errors import OutcomeUnknown, StartError, Unavailable
from broker.journal.kafka_clients import (
    Client,
    ClientFailed,
    Departing,
    Together,
    connections,
    heard,
    is_cancelled,
    new_consumer,
    new_producer,
    started,
    told,
)
from broker.journal.kafka_feed import Feed
from broker.journal.kafka_fetches import Fetches
from broker.journal.kafka_records import records_at
from broker.journal.kafka_topic import KafkaTopic, administered, ensure_topic
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
_LOG_APPEND_TIME: Final = 1
"""A type of time stamps: the broker's."""
_ANSWER_S_MAX: Final = 3 * limits.KAFKA_REQUEST_MS / 1000
"""Clients answer within twice their request timeout, mostly; this is for when they do not."""


class Kafka:
    """This process's connection to one topic: a producer and a consumer, for all partitions.

    Opened by the first log that opens, closed with the last one that closes.
    """

    def __init__(self, topic: KafkaTopic, *, stall_s: float = limits.KAFKA_STALL_S) -> None:
        self.topic = topic
        self._stall_s = stall_s
        self.rebuilds = 0
        """How often a stalled consumer was made anew."""
        self._departing = Departing()
        self._producer = Client("producer", partial(new_producer, topic), self._departing, stall_s)
        # A consumer that reads nothing: a fetch that waits would hold questions up for as long.
        self._asker = Client("client for questions", partial(new_consumer, topic), self._departing, stall_s)
        self._ends = Together(partial(self._bounds, end=True))
        self._consumer: Any = None
        self._feeds: dict[int, Feed] = {}
        self._fetches = Fetches(self._is_waited_for, self._is_watched)
        self._opening = asyncio.Lock()
        self._consuming: asyncio.Task[None] | None = None
        self._looked_at = 0.0  # when the consumer was last asked, by the event loop's clock
        self._progress_at = 0.0  # when records last came, by the event loop's clock
        self._doubted_at: dict[int, float] = {}  # by partition: since when Kafka says to have less than it has told

    @property
    def events(self) -> Mapping[str, int]:
        """What befell the connection."""
        return {
            "kafka_failed": self._producer.failures + self._asker.failures,
            "kafka_made_anew": self._producer.renewals + self._asker.renewals + self.rebuilds,
        }

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the topic if it is missing, check it, connect. Raises StartError."""
        async with self._opening:
            if self._consuming is None:
                try:
                    await ensure_topic(self.topic)
                    await self._connect()
                except (ClientFailed, KafkaError, OSError) as error:
                    await self._disconnect()
                    raise StartError(
                        f"Kafka at {self.topic.bootstrap} does not serve topic {self.topic.name}: {error}",
                        "is it running, and does --kafka-bootstrap name it?",
                    ) from error
                except BaseException:
                    await self._disconnect()
                    raise

    async def _connect(self) -> None:
        await self._producer.start()
        await self._asker.start()
        self._consumer = await self._made_consumer()
        self._progress_at = self._looked_at = asyncio.get_running_loop().time()
        self._consuming = asyncio.create_task(self._consume_forever(), name="kafka: consume")

    async def _made_consumer(self) -> Any:
        """A consumer of all partitions, each where its log wants to go on; paused where none reads."""
        consumer = new_consumer(self.topic)
        self._fetches.heed(connections(consumer))
        consumer = await started(consumer, self._departing)
        all_partitions = [self.place(partition) for partition in range(self.topic.partitions)]
        consumer.assign(all_partitions)
        for place in all_partitions:
            feed = self._feeds.get(place.partition)
            consumer.seek(place, 0 if feed is None else feed.look_back())
            if feed is None or feed.is_full:
                consumer.pause(place)
        return consumer

    def place(self, partition: int) -> Any:
        """The partition as aiokafka names it."""
        return TopicPartition(self.topic.name, partition)

    async def leave(self, feed: Feed, within_s: float) -> None:
        """A log is closed; the last one closes the connection, within that time or a few seconds more."""
        if self._feeds.get(feed.partition) is feed:
            del self._feeds[feed.partition]
        if not self._feeds:
            async with self._opening:
                await self._disconnect(within_s)

    async def _disconnect(self, within_s: float = limits.STOP_STEP_S) -> None:
        self._departing.within_s = within_s
        if self._consuming is not None:
            self._consuming.cancel()
            await asyncio.gather(self._consuming, return_exceptions=True)
            self._consuming = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._departing.add(consumer)
        await self._ends.aclose()
        await self._asker.aclose()
        await self._producer.aclose()
        await self._departing.gone()

    # -- consuming ---------------------------------------------------------------------------------------------------

    def join(self, feed: Feed) -> None:
        """From here on feed this one, from its next position on."""
        self._feeds[feed.partition] = feed
        if self._consumer is not None:
            self._consumer.seek(self.place(feed.partition), feed.next_position)
            self._consumer.resume(self.place(feed.partition))

    def resume(self, feed: Feed) -> None:
        """One that was full has room again."""
        if self._consumer is not None:
            self._consumer.resume(self.place(feed.partition))

    async def _consume_forever(self) -> None:
        while True:
            try:
                await self._consume_in_range()
            except (Exception, asyncio.CancelledError) as error:  # whatever the client stumbled over, reading goes on
                if is_cancelled():
                    raise
                log.warning("the consumer failed, and goes on: %s", told(error, _ANSWER_S_MAX))
                await asyncio.sleep(_PAUSE_S)

    async def _consume_in_range(self) -> None:
        try:
            await self._consume()
        except OffsetOutOfRangeError as error:
            await self._judge_range(error.args[0])

    async def _consume(self) -> None:
        """Feed the logs; return when the consumer has stalled and was made anew."""
        while True:
            self._look_back()
            async with asyncio.timeout(_ANSWER_S_MAX):
                # At once into our own queues: no fetch is sent while records of an earlier one lie in the client.
                found = await self._consumer.getmany(timeout_ms=_POLL_MS)
            now = asyncio.get_running_loop().time()
            was_frozen = now > self._looked_at + _SILENCE_S_MAX
            self._looked_at = now
            for place, records in found.items():
                self._doubted_at.pop(place.partition, None)
                feed = self._feeds.get(place.partition)
                # What may lie behind a loss is read again, behind the last record that was read before it.
                if feed is not None and not (was_frozen and feed.could_be_misled) and feed.feed(records):
                    self._consumer.pause(place)
            if was_frozen:
                self._doubt(*self._feeds)
            if found or not any(feed.is_behind for feed in self._feeds.values()):
                self._progress_at = now
            elif now > self._progress_at + self._stall_s:
                await self._rebuild()
                return

    def _look_back(self) -> None:
        """Let those who have doubts read the last record again."""
        for feed in self._feeds.values():
            if feed.is_in_doubt:
                self._consumer.seek(self.place(feed.partition), feed.look_back())

    async def _rebuild(self) -> None:
        """Make a consumer that stopped for good anew: it loses nothing, the feeds know where they are."""
        self.rebuilds += 1
        log.warning("records are there and none come: the consumer is made anew")
        fresh = await self._made_consumer()
        stalled, self._consumer = self._consumer, fresh
        self._progress_at = asyncio.get_running_loop().time()
        self._departing.add(stalled)

    async def _judge_range(self, places: Mapping[Any, int]) -> None:
        """A broker does not have a position. It may be behind, or lead no more; if that stays so, it is lost."""
        for place, position in places.items():
            feed = self._feeds.get(place.partition)
            if feed is None:
                continue
            try:
                first, end = await self.first(place.partition), await self.end(place.partition)
            except Unavailable:
                await asyncio.sleep(_PAUSE_S)
                continue
            said = f"position {position} is asked for, Kafka has {first} to {end}"
            if position > end and self._is_beyond_doubt(place.partition):
                feed.lose(LogTruncated(said))
                self._consumer.pause(place)
            elif position < first and first > feed.next_position:
                feed.lose(LogLost(said))
                self._consumer.pause(place)
            else:
                self._consumer.seek(place, feed.look_ahead() if position < first else feed.look_back())
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _is_beyond_doubt(self, partition: int) -> bool:
        """Whether Kafka has said for long enough that it has less of a partition than was read from it.

        A leader that was frozen says so, until it hears that another one leads by now.
        """
        now = asyncio.get_running_loop().time()
        return now >= self._doubted_at.setdefault(partition, now) + limits.KAFKA_DOUBT_S

    # -- for the logs ------------------------------------------------------------------------------------------------

    async def first(self, partition: int) -> int:
        """The partition's first position, as its leader has it. Raises Unavailable."""
        return (await self._bounds((partition,), end=False))[partition]

    async def end(self, partition: int) -> int:
        """The partition's next position, as its leader has it. Raises Unavailable."""
        return await self._ends.of(partition)

    async def _bounds(self, partitions: Collection[int], *, end: bool) -> Mapping[int, int]:
        """Where each of these begins or ends. Raises Unavailable."""
        places = [self.place(partition) for partition in partitions]

        async def question(asker: Any) -> Mapping[int, int]:
            ask = asker.end_offsets if end else asker.beginning_offsets
            positions = await ask(places)
            return {place.partition: int(positions[place]) for place in places}

        asked_at = asyncio.get_running_loop().time()
        try:
            bounds = await self._asker.ask(question, _ANSWER_S_MAX)
        except ClientFailed as error:
            self._doubt(*partitions)
            told_of = ", ".join(map(str, sorted(partitions)))
            raise Unavailable(f"Kafka does not tell where partition {told_of} stands: {error}") from error
        if asyncio.get_running_loop().time() > asked_at + _SILENCE_S_MAX:
            self._doubt(*partitions)
        return bounds

    async def look_up(self, partition: int, positions: Sequence[int]) -> Sequence[LogRecord | None]:
        """As `SharedLog.look_up`."""

        async def question(asker: Any) -> Sequence[LogRecord | None]:
            return await records_at(connections(asker), self.place(partition), positions)

        try:
            return await self._asker.ask(question, _ANSWER_S_MAX)
        except ClientFailed as error:
            raise Unavailable(f"Kafka does not tell what partition {partition} has: {error}") from error

    async def append(self, feed: Feed, data: bytes) -> int:
        """As `SharedLog.append`; if nothing came between, the record is fed at once, and read back later."""

        async def question(producer: Any) -> Any:
            sent = await producer.send(self.topic.name, data, partition=feed.partition)
            sent.add_done_callback(heard)
            # Not cancelled with whoever waits: the record may be under way, and its place is needed to settle it.
            await asyncio.wait((sent,))
            return sent.result()

        asked_at = asyncio.get_running_loop().time()
        feed.is_awaited = feed.was_overtaken
        self._hurry(feed)
        try:
            confirmed = await self._producer.ask(question, _ANSWER_S_MAX)
        except ClientFailed as error:
            self._doubt(feed.partition)
            raise OutcomeUnknown(f"Kafka has not confirmed it: {error}") from error
        finally:
            feed.is_awaited = False
        feed.note_end(confirmed.offset + 1)
        if self._is_certain(feed.partition, asked_at) and confirmed.timestamp_type == _LOG_APPEND_TIME:
            feed.confirm(LogRecord(confirmed.offset, confirmed.timestamp, data))
        self._hurry(feed)
        return int(confirmed.offset)

    def _is_certain(self, partition: int, asked_at: float) -> bool:
        """Whether who has just answered what was asked then also has all that was read of the partition before.

        Else another replica may have come to lead meanwhile, and only reading on, or looking back, tells what it has.
        """
        is_fresh = asyncio.get_running_loop().time() <= asked_at + _SILENCE_S_MAX
        return is_fresh and self._fetches.has_heard_of(partition, _SILENCE_S_MAX)

    def _hurry(self, feed: Feed) -> None:
        if feed.is_waited_for:
            self._fetches.hurry()

    def _is_waited_for(self) -> bool:
        """Whether there is anything to be read that should not wait for the next fetch."""
        return any(feed.is_waited_for for feed in self._feeds.values())

    def _is_watched(self) -> bool:
        """Whether anybody would be told of what others write next."""
        return any(feed.is_watched() for feed in self._feeds.values())

    def _doubt(self, *partitions: int) -> None:
        """Something has happened under which these may have lost records."""
        for partition in partitions:
            if partition in self._feeds:
                self._feeds[partition].doubt()
        if self._consumer is not None:
            self._look_back()  # now: what the poll under way finds is not to be believed either

    async def trim(self, partition: int, position: int) -> None:
        """As `SharedLog.trim`."""
        try:
            async with administered(self.topic, _ANSWER_S_MAX) as admin:
                await admin.delete_records({self.place(partition): RecordsToDelete(position)})
        except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
            raise Unavailable(f"Kafka has not dropped records: {told(error, _ANSWER_S_MAX)}") from error
