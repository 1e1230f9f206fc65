"""A partition of a real Kafka as a test opens and reads it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.journal.kafka import Kafka
from broker.journal.kafka_log import KafkaLog
from broker.journal.kafka_topic import KafkaTopic


@asynccontextmanager
async def opened(topic: KafkaTopic, *, stall_s: float = 8.0) -> AsyncIterator[tuple[Kafka, KafkaLog]]:
    kafka = Kafka(topic, stall_s=stall_s)
    log = KafkaLog(kafka, 0)
    await log.open()
    log.seek(0)
    try:
        yield kafka, log
    finally:
        await log.aclose()


async def read(log: KafkaLog, count: int) -> list[bytes]:
    found: list[bytes] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += [record.data for record in await log.read()]
    return found
