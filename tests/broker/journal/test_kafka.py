"""broker/journal/kafka.py on a real Kafka: what the contract and the simulation cannot know of."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from msgspec.structs import replace

from broker.errors import OutcomeUnknown, StartError, Unavailable
from broker.journal.kafka import Kafka, KafkaLog
from broker.journal.kafka_clients import Departing, Together, connections, let_go, new_consumer, new_producer, started
from broker.journal.kafka_topic import KafkaTopic
from broker.journal.shared_log import LogLost, LogRecord, LogTruncated
from tests.eventually import eventually
from tests.kafka.cluster import PASSWORD, USERNAME, KafkaCluster

LEAVE_S = 5.0


@asynccontextmanager
async def opened(topic: KafkaTopic, *, stall_s: float = 8.0) -> AsyncIterator[tuple[Kafka, KafkaLog]]:
    kafka = Kafka(topic, stall_s=stall_s)
    log = kafka.log(0)
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
    logs = [kafka.log(partition) for partition in range(3)]
    await asyncio.gather(*(log.open() for log in logs))
    for log in logs:
        log.seek(0)
    for number in range(9):
        assert await logs[number % 3].append(b"%d" % number) == number // 3
    assert [await read(log, 3) for log in logs] == [[b"0", b"3", b"6"], [b"1", b"4", b"7"], [b"2", b"5", b"8"]]
    await asyncio.gather(*(log.aclose() for log in logs))


async def test_partitions_that_ask_while_a_question_is_under_way_share_the_next_one() -> None:
    """Where they end: each asks every second, and a topic may have hundreds."""
    asked: list[set[int]] = []
    may_answer = asyncio.Event()

    async def ask(partitions: Collection[int]) -> Mapping[int, int]:
        asked.append(set(partitions))
        await may_answer.wait()
        if 9 in partitions:
            raise Unavailable("there is no such partition")
        return {partition: 10 * partition for partition in partitions}

    together = Together(ask)
    asking = [asyncio.create_task(together.of(partition)) for partition in (1, 2, 3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = [asyncio.create_task(together.of(partition)) for partition in (3, 4, 5)]
    await asyncio.sleep(0)
    late[0].cancel()  # one that has no patience; the others have
    may_answer.set()
    assert await asyncio.gather(*asking, *late[1:]) == [10, 20, 30, 40, 50]
    assert asked == [{1, 2, 3}, {3, 4, 5}]
    with pytest.raises(Unavailable):
        await together.of(9)
    assert await together.of(1) == 10
    may_answer.clear()
    asking = [asyncio.create_task(together.of(1))]
    await asyncio.sleep(0)
    await together.aclose()
    assert await asyncio.gather(*asking, return_exceptions=True) != [10]


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


async def test_clients_that_answer_no_more_are_made_anew(topic: KafkaTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of theirs has ended: nothing that they are asked for would ever be done."""
    monkeypatch.setattr("broker.journal.kafka._ANSWER_S_MAX", 0.5)
    monkeypatch.setattr("broker.journal.kafka._POLL_MS", 100)
    async with opened(topic, stall_s=0.3) as (kafka, log):
        await log.append(b"0")
        kafka._producer._client._sender.sender_task.cancel()  # noqa: SLF001 -- from outside it cannot be seen
        asker = kafka._asker._client._client  # noqa: SLF001 -- as above
        await asker._get_conn_lock.acquire()  # noqa: SLF001 -- and whoever had it is gone
        while asker._conns:  # noqa: SLF001 -- as above
            await asker._conns.popitem()[1].close()  # noqa: SLF001 -- as above

        async def is_answered() -> bool:
            with suppress(OutcomeUnknown, Unavailable):
                return await log.append(b"1") > 0 and await log.end() > 1
            return False

        await eventually(is_answered)
        assert kafka.events["kafka_made_anew"] == 2
        assert kafka.events["kafka_failed"] >= 4


@asynccontextmanager
async def gate(bootstrap: str, asked: asyncio.Event, opens: asyncio.Event) -> AsyncIterator[str]:
    """HOST:PORT by which a broker welcomes clients, and hears what they ask for only once the gate opens."""
    host, port = bootstrap.split(":")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_kafka, to_kafka = await asyncio.open_connection(host, int(port))
        is_welcomed = False
        with suppress(asyncio.IncompleteReadError):
            while True:
                request = await message(reader)
                if is_welcomed:
                    asked.set()
                    await opens.wait()
                to_kafka.write(request)
                writer.write(await message(from_kafka))
                is_welcomed = True
        to_kafka.close()
        writer.close()

    async def message(reader: asyncio.StreamReader) -> bytes:
        size = await reader.readexactly(4)
        return size + await reader.readexactly(int.from_bytes(size))

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("make", [new_producer, new_consumer])
async def test_client_that_is_cancelled_while_it_connects_leaves_nothing_open(
    make: Callable[[KafkaTopic], Any], topic: KafkaTopic
) -> None:
    """A connection that the collector has to close warns, and warnings are errors here."""
    departing, asked, opens = Departing(), asyncio.Event(), asyncio.Event()
    async with gate(topic.bootstrap, asked, opens) as bootstrap:
        starting = asyncio.create_task(started(make(replace(topic, bootstrap=bootstrap)), departing))
        await asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        opens.set()
        await departing.gone()
        gc.collect()


@pytest.mark.parametrize("make", [new_producer, new_consumer])
async def test_client_that_wants_to_know_who_leads_does_not_ask_all_the_time(
    make: Callable[[KafkaTopic], Any], topic: KafkaTopic
) -> None:
    """As one does while a partition has no leader: it took half of a processor, and more of Kafka's."""
    client = await started(make(topic), Departing())
    try:
        connections = client.client if make is new_producer else client._client  # noqa: SLF001 -- it is not shown
        asked, until = 0, asyncio.get_running_loop().time() + 0.5
        while asyncio.get_running_loop().time() < until:
            assert await connections.force_metadata_update()
            asked += 1
        assert 1 <= asked <= 12
    finally:
        await let_go(client, LEAVE_S)


async def test_reader_whose_place_was_trimmed_is_told_and_does_not_jump(topic: KafkaTopic) -> None:
    async with opened(topic) as (_, log):
        for number in range(5):
            await log.append(b"%d" % number)
        await log.trim(3)
        assert (await log.first(), await log.end()) == (3, 5)
    async with opened(topic) as (_, log):
        with pytest.raises(LogLost, match="position 0 is asked for, Kafka has 3 to 5"):
            await read(log, 1)


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
        await Kafka(topic).log(0).open()


async def test_topic_with_another_number_of_partitions_is_refused(topic: KafkaTopic) -> None:
    await make(KafkaTopic(topic.bootstrap, topic.name, partitions=2))
    with pytest.raises(StartError, match="2 partitions, not 1"):
        await Kafka(topic).log(0).open()


async def test_kafka_that_is_not_there_is_told_as_the_operator_named_it() -> None:
    with pytest.raises(StartError, match=r"Kafka at 127\.0\.0\.1:1 "):
        await Kafka(KafkaTopic("127.0.0.1:1", "t")).log(0).open()


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
            await Kafka(wrong).log(0).open()
    with pytest.raises(StartError, match="/nowhere"):
        await Kafka(replace(guarded, ca="/nowhere")).log(0).open()
