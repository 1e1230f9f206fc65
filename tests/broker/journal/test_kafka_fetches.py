"""What is fetched from a real Kafka, when, and what need not be: own records, pauses, single records."""

import asyncio

import pytest

from broker.errors import Unavailable
from broker.journal.kafka_clients import Departing, connections, let_go, new_producer, started
from broker.journal.kafka_topic import KafkaTopic
from broker.journal.shared_log import LogRecord
from tests.broker.journal.kafka_logs import opened, read
from tests.eventually import eventually

LEAVE_S = 5.0


async def test_own_record_is_had_before_a_fetch_brings_it(topic: KafkaTopic) -> None:
    """Where nobody wrote between: its confirmation tells all that the fetch will."""
    async with opened(topic) as (kafka, log):
        await log.append(b"0")
        assert await read(log, 1) == [b"0"]
        kafka._consumer.pause(kafka.place(0))  # noqa: SLF001 -- nothing is fetched from here on
        await log.append(b"1")
        assert await read(log, 1) == [b"1"]
        kafka._consumer.resume(kafka.place(0))  # noqa: SLF001 -- as above

        async def is_read_back() -> bool:
            return not log.feed.is_behind

        await eventually(is_read_back)
        await log.append(b"2")
        assert await read(log, 1) == [b"2"]
        assert kafka.rebuilds == 0


async def test_own_record_behind_one_of_others_is_had_without_a_pause(
    topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.journal.kafka_fetches._PAUSE_S", 60.0)
    async with opened(topic) as (_, log), opened(topic) as (_, other):
        await other.append(b"0")
        assert await read(log, 1) == [b"0"]  # from here on fetches pause
        await other.append(b"1")
        await log.append(b"2")
        assert await read(log, 2) == [b"1", b"2"]


@pytest.mark.parametrize("is_watched", [True, False])
async def test_records_of_others_that_come_all_the_time_are_fetched_some_at_a_time(
    topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch, *, is_watched: bool
) -> None:
    monkeypatch.setattr("broker.journal.kafka_fetches._PAUSE_S", 0.1 if is_watched else 0.02)
    monkeypatch.setattr("broker.journal.kafka_fetches._UNWATCHED_PAUSE_S", 0.1)
    producer = await started(new_producer(topic), Departing())
    found: list[bytes] = []
    takes = 0
    async with opened(topic) as (_, log), asyncio.timeout(30):
        log.heed(lambda: is_watched)

        async def write() -> None:
            for number in range(100):
                await producer.send_and_wait(topic.name, b"%d" % number, partition=0)
                await asyncio.sleep(0.005)  # they come one by one

        begun_at = asyncio.get_running_loop().time()
        writing = asyncio.create_task(write())
        while len(found) < 100:
            found += [record.data for record in await log.read()]
            takes += 1
        took_s = asyncio.get_running_loop().time() - begun_at
        await writing
    await let_go(producer, LEAVE_S)
    assert found == [b"%d" % number for number in range(100)]
    assert takes <= took_s / 0.1 + 2


async def test_who_begins_to_watch_does_not_wait_for_the_end_of_a_long_pause(
    topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.journal.kafka_fetches._UNWATCHED_PAUSE_S", 60.0)
    watchers: list[object] = []
    async with opened(topic) as (_, log), opened(topic) as (_, other):
        log.heed(lambda: bool(watchers))
        await other.append(b"0")
        assert await read(log, 1) == [b"0"]
        await other.append(b"1")
        reading = asyncio.create_task(read(log, 1))
        await asyncio.sleep(0.3)  # of the 60 s
        assert not reading.done()
        watchers.append(object())
        assert await reading == [b"1"]


async def test_record_is_looked_up_where_it_is_and_nobody_reads_on_from_there(topic: KafkaTopic) -> None:
    async with opened(topic) as (_, log):
        for number in range(5):
            await log.append(b"%d" % number)
        found: list[LogRecord] = []
        while len(found) < 4:
            found += await log.read()
        await log.trim(2)
        assert await log.look_up([3, 2]) == [found[3], found[2]]
        assert await log.look_up([1, 5, 99]) == [None, None, None], "trimmed, the next one, and beyond"
        await log.append(b"5")
        assert await read(log, 6 - len(found)) == [b"%d" % number for number in range(len(found), 6)]


async def test_record_is_looked_up_among_others_that_were_written_with_it(topic: KafkaTopic) -> None:
    async with opened(topic) as (_, log):
        producer = await started(new_producer(topic), Departing())
        batch = producer.create_batch()
        for number in range(3):
            batch.append(key=None, value=b"%d" % number * 100_000, timestamp=None)
        await (await producer.send_batch(batch, topic.name, partition=0))
        await let_go(producer, LEAVE_S)
        assert [record and record.data[:1] for record in await log.look_up([2, 1, 0])] == [b"2", b"1", b"0"]


async def test_partition_that_nobody_leads_is_not_looked_up(topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(topic) as (kafka, log):
        await log.append(b"0")
        cluster = connections(kafka._asker._client).cluster  # noqa: SLF001 -- as a broker tells it in an election
        monkeypatch.setattr(cluster, "leader_for_partition", lambda _: -1)
        with pytest.raises(Unavailable, match="nobody is known to lead partition 0"):
            await log.look_up([0])
