"""Readers whose connections die without a sign or are cut anywhere, in front of a real broker."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from consumer import Batch, Limits, NotFound, Reader, SessionView
from producer import Producer
from tests.eventually import until
from tests.live import Broker, free_port
from tests.nginx import Nginx
from tests.relay import Relay

PATIENT = Limits(backoff_s_initial=30.0, backoff_s_max=60.0)
"""Whatever waits for a time out, or for the next attempt, does so for longer than SOON_S."""
SOON_S = 4.0
PROMPT = Limits(
    silence_s_max=1.0, attempt_timeout_s=1.0, backoff_s_initial=0.001, backoff_s_max=0.01, backoff_s_jitter=0.001
)

pytestmark = pytest.mark.usefixtures("stream_s")


# -- connections that die without a sign ---------------------------------------------------------------------------


async def test_a_dead_connection_is_noticed_by_its_silence(broker: Broker) -> None:
    relay = Relay(broker.port)
    async with (
        relay.serving() as url,
        Producer(broker.url) as producer,
        Reader(url, limits=PROMPT) as reader,
        aclosing(reader.follow("s")) as batches,
    ):
        await anext(batches)
        await producer.streams.append("s", 1)
        assert (await anext(batches)).records == [1]
        relay.freeze()
        await producer.streams.append("s", 2)
        with anyio.fail_after(PROMPT.silence_s_max + 2 * PROMPT.attempt_timeout_s + 2):
            assert (await anext(batches)).records == [2]


async def test_a_proxy_that_stops_answering_delays_and_neither_loses_nor_doubles(
    broker: Broker, tmp_path: Path
) -> None:
    seen: list[Any] = []
    async with (
        Producer(broker.url) as producer,
        Nginx(broker, tmp_path / "nginx") as nginx,
        Reader(nginx.url, limits=PROMPT) as reader,
        aclosing(reader.follow("s")) as batches,
        anyio.create_task_group() as tasks,
    ):
        await anext(batches)
        for number in range(2):
            await producer.streams.append("s", 2 * number)
            seen += (await anext(batches)).records
            nginx.suspend()
            await producer.streams.append("s", 2 * number + 1)
            tasks.start_soon(_resume_after, nginx, 1.5 * PROMPT.silence_s_max)
            with anyio.fail_after(20):
                seen += (await anext(batches)).records

    assert seen == [0, 1, 2, 3]


async def _resume_after(nginx: Nginx, wait_s: float) -> None:
    """How long it is stopped is what is tested: longer than the reader bears silence."""
    await anyio.sleep(wait_s)
    nginx.resume()


# -- coming back to the foreground ---------------------------------------------------------------------------------


async def test_who_reconnects_need_not_wait_until_a_dead_connection_is_noticed(broker: Broker) -> None:
    relay = Relay(broker.port)
    async with (
        relay.serving() as url,
        Producer(broker.url) as producer,
        Reader(url, limits=PATIENT) as reader,
        aclosing(reader.follow("s")) as batches,
    ):
        await anext(batches)
        for number in range(3):
            await producer.streams.append("s", number)
            with anyio.fail_after(SOON_S):
                assert (await anext(batches)).records == [number]
            relay.freeze()
            await reader.reconnect()  # between two batches: the frozen connection must not be used again


@pytest.mark.parametrize("live", [True, "long-poll"])
async def test_who_waits_for_news_on_a_dead_connection_is_woken(live: Any, broker: Broker) -> None:
    relay = Relay(broker.port)
    async with (
        relay.serving() as url,
        Producer(broker.url) as producer,
        Reader(url, limits=PATIENT) as reader,
        aclosing(reader.follow("s", live=live)) as batches,
    ):
        await anext(batches)
        news = asyncio.create_task(next_records(batches))
        relay.freeze()
        await producer.streams.append("s", "news")
        assert await soon(news, reader) == ["news"]


async def test_who_waits_for_the_next_attempt_is_woken(broker: Broker) -> None:
    async with (
        Producer(broker.url) as producer,
        Reader(broker.url, limits=PATIENT) as reader,
        aclosing(reader.follow("s")) as batches,
    ):
        await anext(batches)
        news = asyncio.create_task(next_records(batches))
        await broker.restart()
        await producer.streams.append("s", "news")
        assert await soon(news, reader) == ["news"]


async def test_reconnecting_all_the_time_loses_and_doubles_nothing(broker: Broker) -> None:
    count = 100

    async def reconnect(reader: Reader) -> None:
        while True:
            await reader.reconnect()
            await anyio.sleep(0.002)

    seen: list[Any] = []
    async with Producer(broker.url) as producer, Reader(broker.url) as reader, anyio.create_task_group() as tasks:
        tasks.start_soon(reconnect, reader)
        tasks.start_soon(append_numbers, producer, count)
        async with aclosing(reader.follow("s")) as batches:
            async for batch in batches:
                seen += batch.records
        tasks.cancel_scope.cancel()

    assert seen == list(range(count))


# -- connections that are cut --------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_connections_cut_at_any_byte_lose_and_double_nothing(live: Any, broker: Broker) -> None:
    chance = random.Random(11)
    count = 100
    relay = Relay(broker.port)
    relay.cuts.extend(chance.choice([0, chance.randrange(1200)]) for _ in range(120))
    relay.cuts.extend([None] * 10)
    seen: list[Any] = []
    async with (
        relay.serving() as url,
        Producer(broker.url) as producer,
        Reader(url, limits=PROMPT) as reader,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(append_numbers, producer, count)
        async with aclosing(reader.follow("s", live=live)) as batches:
            async for batch in batches:
                seen += batch.records

    assert seen == list(range(count))
    assert relay.connections > 20


async def test_two_devices_see_the_same_whatever_happens_to_the_connections_of_one(broker: Broker) -> None:
    words = [f"word{number} " for number in range(150)]
    relay = Relay(broker.port)
    relay.cuts.extend(random.Random(7).randrange(3000) for _ in range(1000))
    async with Producer(broker.url) as first:
        await first.create_session("s1", message={"id": "u", "role": "user", "text": "?"})

    async def write(producer: Producer) -> None:
        async with producer.generation("s1", "g", message_id="a", format="text") as generation:
            for word in words:
                await generation.write(word)
                await generation.flush()

    async with (
        relay.serving() as url,
        Producer(broker.url) as producer,
        SessionView(url, "s1", limits=PROMPT) as phone,
        SessionView(broker.url, "s1") as desktop,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(write, producer)
        for view in (phone, desktop):
            tasks.start_soon(follow_until_complete, view, "a")

    assert phone.messages == desktop.messages
    assert phone.offset == desktop.offset
    assert "".join(part["text"] for part in phone.messages[1]["message"]["parts"]) == "".join(words)


async def follow_until_complete(view: SessionView, message_id: str) -> None:
    async with aclosing(view.follow()) as changes:
        async for _ in changes:
            item = view.message(message_id)
            if item is not None and item["status"] == "complete":
                return


# -- what is left behind -------------------------------------------------------------------------------------------


async def test_readers_and_views_that_are_cancelled_leave_no_task_and_no_socket(broker: Broker) -> None:
    chance = random.Random(5)
    relay = Relay(broker.port)
    async with relay.serving() as url, Producer(broker.url) as producer:
        unreachable = f"http://127.0.0.1:{free_port()}"
        await producer.create_session("s1")
        await producer.streams.append("s", "a record")
        await follow_for(broker.url, "s", 0.3)  # whatever is made once is made now
        tasks_before, files_before = len(asyncio.all_tasks()), open_files()
        for number in range(20):
            where = chance.choice([url, url, broker.url, unreachable])
            if chance.random() < 0.2:
                relay.freeze()
            await follow_for(where, chance.choice(["s", "sessions/s1", "missing"]), chance.random() ** 2 * 0.1)
            await view_for(where, {"id": f"m{number}", "role": "user"}, chance.random() ** 2 * 0.1)

    assert len(asyncio.all_tasks()) <= tasks_before
    await until(lambda: open_files() <= files_before)


async def test_a_reader_that_goes_on_keeps_nothing_of_what_was_given_up(broker: Broker) -> None:
    async with Reader(broker.url) as reader:
        await reader.read("s")
        files_before = open_files()  # with the one connection that is kept for the next request
        for _ in range(10):
            with anyio.move_on_after(0.05):
                async with aclosing(reader.follow("s")) as batches:
                    async for _batch in batches:
                        pass
            await reader.read("s")
            await reader.reconnect()
        await until(lambda: open_files() <= files_before)

        following = [reader.follow("s") for _ in range(10)]
        for batches in following:
            assert (await anext(batches)).up_to_date
            waiting = asyncio.create_task(next_records(batches))
            await asyncio.wait([waiting], timeout=0.02)
            waiting.cancel()
            await asyncio.wait([waiting])
            await batches.aclose()
        await until(lambda: open_files() <= files_before)


async def follow_for(url: str, stream: str, stay_s: float) -> None:
    """Follow until the time is over, in whatever state the reader is then."""
    with anyio.move_on_after(stay_s):
        async with Reader(url) as reader, aclosing(reader.follow(stream)) as batches:
            with suppress(NotFound):
                async for _ in batches:
                    if stay_s < 0.01:
                        await reader.reconnect()


async def view_for(url: str, message: dict[str, str], stay_s: float) -> None:
    """Watch a session and say something there, until the time is over."""
    with anyio.move_on_after(stay_s):
        async with SessionView(url, "s1") as view, aclosing(view.follow()) as changes:
            await anext(changes)
            await view.send(message)
            async for _ in changes:
                pass


# -- the rest ------------------------------------------------------------------------------------------------------


async def soon(news: asyncio.Task[Any], reader: Reader) -> Any:
    """What the task returns; the reader is told to reconnect until it does."""
    with anyio.fail_after(SOON_S):
        while not news.done():
            await reader.reconnect()
            await asyncio.wait([news], timeout=0.5)
    return news.result()


async def next_records(batches: AsyncIterator[Batch]) -> Any:
    """The records of the next batch that has any."""
    while not (batch := await anext(batches)).records:
        continue
    return batch.records


async def append_numbers(producer: Producer, count: int) -> None:
    """0, 1, 2 … one by one, then the end."""
    for number in range(count):
        await producer.streams.append("s", number)
    await producer.streams.close("s")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  only their number counts
