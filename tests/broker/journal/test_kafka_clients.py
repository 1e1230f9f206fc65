"""broker/journal/kafka_clients.py on a real Kafka: clients that hang, are cancelled, or ask too often."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from msgspec.structs import replace

from broker.errors import OutcomeUnknown, Unavailable
from broker.journal.kafka_clients import Departing, Together, let_go, new_consumer, new_producer, started
from broker.journal.kafka_topic import KafkaTopic
from tests.broker.journal.kafka_logs import opened
from tests.eventually import eventually

LEAVE_S = 5.0


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
