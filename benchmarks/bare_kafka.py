"""The floor of the Kafka engine: a producer and a consumer as the journal sets them up, and nothing else."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from broker.journal.kafka_clients import let_go, new_consumer, new_producer
from broker.journal.kafka_topic import KafkaTopic, ensure_topic

POLL_MS: Final = 1_000
STOP_S: Final = 5.0


class BareKafka:
    """One record at a time through a partition of a topic, made as a node makes it. Of all partitions it reads.

    With `led_by` it is one that this node of Kafka leads, else the first.
    """

    def __init__(self, topic: KafkaTopic, led_by: int | None = None) -> None:
        self._topic = topic
        self._led_by = led_by
        self._partition = 0
        self._producer = new_producer(topic)
        self._consumer = new_consumer(topic)
        self._read_offset = -1

    async def __aenter__(self) -> Self:
        await ensure_topic(self._topic)
        if self._led_by is not None:
            [described] = await _described(self._topic)
            self._partition = next(p["partition"] for p in described["partitions"] if p["leader"] == self._led_by)
        await self._producer.start()
        await self._consumer.start()
        places = [TopicPartition(self._topic.name, number) for number in range(self._topic.partitions)]
        self._consumer.assign(places)
        for place, end in (await self._consumer.end_offsets(places)).items():
            self._consumer.seek(place, end)
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for client in (self._producer, self._consumer):
            await let_go(client, STOP_S)

    async def round_trip(self, payload: bytes) -> None:
        """Return when a record is confirmed and read. Raises KafkaError."""
        sent = await self._producer.send(self._topic.name, payload, partition=self._partition)
        await self._read()
        offset = (await sent).offset
        while self._read_offset < offset:
            await self._read()

    async def _read(self) -> None:
        found: dict[Any, list[Any]] = await self._consumer.getmany(timeout_ms=POLL_MS)
        for records in found.values():
            self._read_offset = records[-1].offset

    async def round_trips_s(self, payload: bytes, seconds: float) -> list[float]:
        """One after the other for so long: what each took."""
        took_s: list[float] = []
        until_s = time.perf_counter() + seconds
        while (begun_s := time.perf_counter()) < until_s:
            await self.round_trip(payload)
            took_s.append(time.perf_counter() - begun_s)
        return took_s

    async def keep_going(self, seconds: float) -> list[float]:
        """One after the other, whatever becomes of Kafka: when each one ended, by `time.perf_counter`."""
        ended_s: list[float] = []
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            with suppress(KafkaError):
                await self.round_trip(b"beside")
                ended_s.append(time.perf_counter())
        return ended_s


async def leader_of(topic: KafkaTopic, partition: int) -> int:
    """The node of Kafka that leads a partition."""
    [described] = await _described(topic)
    return next(int(part["leader"]) for part in described["partitions"] if part["partition"] == partition)


async def until_whole(topic: KafkaTopic) -> None:
    """Return when every copy of every partition is in sync."""
    while True:
        [described] = await _described(topic)
        if all(len(part["isr"]) == len(part["replicas"]) for part in described["partitions"]):
            return
        await asyncio.sleep(0.2)


async def _described(topic: KafkaTopic) -> list[dict[str, Any]]:
    admin = AIOKafkaAdminClient(**topic.access())
    await admin.start()
    try:
        described: list[dict[str, Any]] = await admin.describe_topics([topic.name])
    finally:
        await admin.close()
    return described
