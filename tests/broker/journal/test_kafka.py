"""broker/journal/kafka.py on a real Kafka: what the contract and the simulation cannot know of."""

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from msgspec.structs import replace

from broker.errors import StartError, Unavailable
from broker.journal.kafka import Kafka
from broker.journal.kafka_log import KafkaLog
from broker.journal.kafka_topic import KafkaTopic
from broker.journal.shared_log import LogLost, LogTruncated
from tests.broker.journal.kafka_logs import opened, read
from tests.eventually import eventually
from tests.kafka.cluster import PASSWORD, USERNAME, KafkaCluster


async def make(topic: KafkaTopic, **settings: str) -> None:
    """Make the topic as somebody else would have."""
    admin = AIOKafkaAdminClient(bootstrap_servers=topic.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic.name, topic.partitions, 1, topic_configs=settings)])
    finally:
        await admin.close()


async def test_partitions_are_read_by_one_consumer_each_in_its_order(topic: KafkaTopic) -> None:
    kafka = Kafka(KafkaTopic(topic.bootstrap, topic.name, partitions=3))
    logs = [KafkaLog(kafka, partition) for partition in range(3)]
    await asyncio.gather(*(log.open() for log in logs))
    for log in logs:
        log.seek(0)
    for number in range(9):
        assert await logs[number % 3].append(b"%d" % number) == number // 3
    assert [await read(log, 3) for log in logs] == [[b"0", b"3", b"6"], [b"1", b"4", b"7"], [b"2", b"5", b"8"]]
    await asyncio.gather(*(log.aclose() for log in logs))


async def test_consumer_that_stopped_for_good_is_made_anew_and_misses_nothing(topic: KafkaTopic) -> None:
    """A known fault of the client: after timeouts it may never fetch again, and says nothing."""
    async with opened(topic, stall_s=0.5) as (kafka, log):
        await log.append(b"0")
        assert await read(log, 1) == [b"0"]
        kafka._consumer.pause(kafka.place(0))  # noqa: SLF001 -- from outside it looks just like that
        for number in range(1, 4):
            await log.append(b"%d" % number)
        assert await read(log, 3) == [b"1", b"2", b"3"]

        async def is_made_anew() -> bool:
            return kafka.rebuilds == 1

        await eventually(is_made_anew)


async def test_reader_whose_place_was_trimmed_is_told_and_does_not_jump(topic: KafkaTopic) -> None:
    async with opened(topic) as (_, log):
        for number in range(5):
            await log.append(b"%d" % number)
        await log.trim(3)
        assert (await log.first(), await log.end()) == (3, 5)
    async with opened(topic) as (_, log):
        with pytest.raises(LogLost, match="position 0 is asked for, Kafka has 3 to 5"):
            await read(log, 1)


async def test_reader_of_a_topic_that_was_made_anew_and_has_grown_since_does_not_go_on(topic: KafkaTopic) -> None:
    """As after an unclean election: there are records where it reads on, and they are not the next ones."""
    async with opened(topic) as (_, log):
        for number in range(3):
            await log.append(b"%d" % number)
        assert await read(log, 3) == [b"0", b"1", b"2"]
        admin = AIOKafkaAdminClient(bootstrap_servers=topic.bootstrap)
        await admin.start()
        await admin.delete_topics([topic.name])
        await admin.close()
        with pytest.raises(Unavailable):
            await log.end()
        async with opened(topic) as (_, other):
            for number in range(10, 15):
                await other.append(b"%d" % number)
        with pytest.raises(LogTruncated, match="another record at position 2"):
            await read(log, 1)


async def test_reader_that_looks_back_reads_nothing_twice(topic: KafkaTopic) -> None:
    async with opened(topic) as (_, log):
        for number in range(6):
            await log.append(b"%d" % number)
            log.feed.doubt()
        assert await read(log, 6) == [b"%d" % number for number in range(6)]
        log.feed.doubt()
        await log.append(b"6")
        assert await read(log, 1) == [b"6"]


async def test_reader_that_is_frozen_again_and_again_gets_on_and_reads_nothing_twice(
    topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.journal.kafka._SILENCE_S_MAX", -1.0)
    async with opened(topic) as (_, log):
        for number in range(10):
            await log.append(b"%d" % number)
            assert await read(log, 1) == [b"%d" % number]


async def test_reader_whose_last_record_was_trimmed_goes_on_without_looking_back(topic: KafkaTopic) -> None:
    async with opened(topic) as (_, log):
        await log.append(b"0")
        assert await read(log, 1) == [b"0"]
        await log.trim(1)
        log.feed.doubt()
        await log.append(b"1")
        assert await read(log, 1) == [b"1"]


async def test_reader_that_is_slow_holds_no_more_than_its_bound(
    topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.limits.KAFKA_BACKLOG_BYTES", 100_000)
    async with opened(topic) as (_, log):
        bodies = [b"%d" % number * 50_000 for number in range(8)]
        for body in bodies:
            await log.append(body)
        assert await read(log, 8) == bodies


@pytest.mark.parametrize(
    ("setting", "value"),
    [("retention.ms", "86400000"), ("cleanup.policy", "compact"), ("message.timestamp.type", "CreateTime")],
)
async def test_topic_that_would_lose_entries_is_refused(topic: KafkaTopic, setting: str, value: str) -> None:
    wanted = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime", "max.message.bytes": "8000000"}
    await make(topic, **{**wanted, setting: value})
    with pytest.raises(StartError, match=f"{setting}={value}"):
        await KafkaLog(Kafka(topic), 0).open()


async def test_topic_with_another_number_of_partitions_is_refused(topic: KafkaTopic) -> None:
    await make(KafkaTopic(topic.bootstrap, topic.name, partitions=2))
    with pytest.raises(StartError, match="2 partitions, not 1"):
        await KafkaLog(Kafka(topic), 0).open()


async def test_kafka_that_is_not_there_is_told_as_the_operator_named_it() -> None:
    with pytest.raises(StartError, match=r"Kafka at 127\.0\.0\.1:1 "):
        await KafkaLog(Kafka(KafkaTopic("127.0.0.1:1", "t")), 0).open()


async def test_kafka_that_asks_who_is_asking_is_reached_over_tls(topic: KafkaTopic, kafka: KafkaCluster) -> None:
    guarded = KafkaTopic(
        kafka.guarded,
        topic.name,
        tls=True,
        ca=str(kafka.certificate),
        username=USERNAME,
        password=PASSWORD,
        mechanism="PLAIN",
    )
    async with opened(guarded) as (_, log):
        await log.append(b"1")
        assert await read(log, 1) == [b"1"]
    for wrong in (replace(guarded, password="mistyped"), replace(guarded, tls=False), replace(guarded, ca="")):
        with pytest.raises(StartError):
            await KafkaLog(Kafka(wrong), 0).open()
    with pytest.raises(StartError, match="/nowhere"):
        await KafkaLog(Kafka(replace(guarded, ca="/nowhere")), 0).open()
