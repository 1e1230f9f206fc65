"""A partition of a topic of Kafka as the shared log that a cluster's journal reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from broker import limits
from broker.journal.kafka import Kafka
from broker.journal.kafka_feed import Feed
from broker.journal.shared_log import LogRecord


class KafkaLog:
    """A `SharedLog`: one partition of the topic."""

    def __init__(self, kafka: Kafka, partition: int) -> None:
        self.feed = Feed(partition)
        self._kafka = kafka
        self._partition = partition

    async def open(self) -> None:
        """As in `SharedLog`."""
        await self._kafka.open()

    async def first(self) -> int:
        """As in `SharedLog`."""
        return await self._kafka.first(self._partition)

    async def end(self) -> int:
        """As in `SharedLog`."""
        end = await self._kafka.end(self._partition)
        self.feed.note_end(end)
        return end

    def seek(self, position: int, last: LogRecord | None = None) -> None:
        """As in `SharedLog`."""
        self.feed.begin(position, last)
        self._kafka.join(self.feed)

    async def read(self) -> Sequence[LogRecord]:
        """As in `SharedLog`."""
        await self.feed.some()
        was_full = self.feed.is_full
        records = self.feed.take()
        if was_full:
            self._kafka.resume(self.feed)
        return records

    async def look_up(self, positions: Sequence[int]) -> Sequence[LogRecord | None]:
        """As in `SharedLog`."""
        return await self._kafka.look_up(self._partition, positions)

    def heed(self, is_watched: Callable[[], bool]) -> None:
        """As in `SharedLog`."""
        self.feed.is_watched = is_watched

    async def append(self, data: bytes) -> int:
        """As in `SharedLog`."""
        return await self._kafka.append(self.feed, data)

    async def trim(self, position: int) -> None:
        """As in `SharedLog`."""
        await self._kafka.trim(self._partition, position)

    @property
    def events(self) -> Mapping[str, int]:
        """As in `SharedLog`. The connection is that of all partitions: the first one tells of it."""
        return self._kafka.events if self._partition == 0 else {}

    async def aclose(self, within_s: float = limits.DRAIN_S) -> None:
        """As in `SharedLog`."""
        await self._kafka.leave(self.feed, within_s)
