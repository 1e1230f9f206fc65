"""Readers behind an nginx that keeps events to itself until there are many, in front of a real broker."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import httpx
import pytest

from consumer import Limits, Reader, SessionView
from producer import Producer
from tests.live import Broker
from tests.nginx import Nginx

READER = Limits(first_event_s_max=0.3, backoff_s_initial=0.01, backoff_s_max=0.1, backoff_s_jitter=0.01)


@pytest.fixture
async def nginx(broker: Broker, tmp_path: Path) -> AsyncIterator[Nginx]:
    async with Nginx(broker, tmp_path / "nginx", holds_back=True) as running:
        yield running


async def test_this_nginx_holds_events_back_though_the_broker_asks_it_not_to(broker: Broker, nginx: Nginx) -> None:
    """What the other tests here rest on."""
    query = {"offset": "-1", "live": "sse"}
    async with Producer(broker.url) as producer, httpx.AsyncClient(timeout=5) as client:
        await producer.streams.create("s")
        await producer.streams.append("s", "told at once")
        async with client.stream("GET", f"{broker.url}/v1/stream/s", params=query) as direct:
            assert direct.headers["x-accel-buffering"] == "no"
            assert b"told at once" in await anext(direct.aiter_bytes())
        with pytest.raises(httpx.ReadTimeout):
            async with client.stream(
                "GET", f"{nginx.url}/v1/stream/s", params=query, timeout=httpx.Timeout(0.5)
            ) as held_back:
                await anext(held_back.aiter_bytes())


async def test_a_reader_gets_every_record_once_and_in_order_though_no_event_comes_through(
    broker: Broker, nginx: Nginx
) -> None:
    count = 50
    async with Producer(broker.url) as producer, Reader(nginx.url, limits=READER) as reader:
        await producer.streams.create("s")

        async def append() -> None:
            for number in range(count):
                await producer.streams.append("s", number)
                await anyio.sleep(0.02)  # slower than the reader finds out, so that most of it has to be polled for
            await producer.streams.close("s")

        async with anyio.create_task_group() as tasks, aclosing(reader.follow("s")) as batches:
            seen = [*(await anext(batches)).records]
            tasks.start_soon(append)
            with anyio.fail_after(20):
                seen += [record async for batch in batches for record in batch.records]

    assert seen == list(range(count))
    assert sum("live=long-poll" in target for target in nginx.asked()) >= 1


async def test_each_record_comes_as_soon_as_it_is_written_once_the_reader_polls(broker: Broker, nginx: Nginx) -> None:
    async with Producer(broker.url) as producer, Reader(nginx.url, limits=READER) as reader:
        await producer.streams.create("s")
        async with aclosing(reader.follow("s")) as batches:
            await anext(batches)
            for number in range(5):
                await producer.streams.append("s", number)
                with anyio.fail_after(10):
                    assert (await anext(batches)).records == [number]
            await producer.streams.close("s")
            assert (await anext(batches)).closed

    assert sum("live=long-poll" in target for target in nginx.asked()) >= 4
    assert sum("live=sse" in target for target in nginx.asked()) <= 1


async def test_a_view_follows_an_answer_though_no_event_comes_through(broker: Broker, nginx: Nginx) -> None:
    async with Producer(broker.url) as producer:
        await producer.create_session("s")
        async with SessionView(nginx.url, "s", limits=READER) as view, aclosing(view.follow()) as changes:
            await anext(changes)
            async with producer.generation("s", "g", format="text") as generation:
                for piece in ("hel", "lo"):
                    await generation.write(piece)
                    await generation.flush()
                    with anyio.fail_after(10):
                        await anext(changes)
            with anyio.fail_after(10):
                while not view.messages or view.messages[0]["status"] != "complete":
                    await anext(changes)
            assert view.messages[0]["message"]["parts"][0]["text"] == "hello"

    assert any("live=long-poll" in target for target in nginx.asked())
