"""Raw streams with our own libraries, written and read, on a real broker that is killed under them."""

import random
from contextlib import AsyncExitStack, aclosing
from typing import Any

import anyio
import pytest

from consumer import Limits as ReaderLimits, Reader
from producer import (
    BadRequest,
    BodyTooLarge,
    Closed,
    Conflict,
    Fenced,
    Gone,
    Limits,
    NotFound,
    Producer,
    Streams,
)
from tests.live import Broker

PROMPT = Limits(batch_chunks_max=5, backoff_s_initial=0.01, backoff_s_max=0.2, backoff_s_jitter=0.01)
READER = ReaderLimits(backoff_s_initial=0.01, backoff_s_max=0.1, backoff_s_jitter=0.01)


async def content(broker: Broker, stream: str) -> Any:
    async with Reader(broker.url, limits=READER) as reader:
        return (await reader.read(stream)).records


async def test_every_request_does_what_it_says(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        streams = producer.streams
        made = await streams.create("a/b", {"n": 0}, ttl_s=3600)
        again = await streams.create("a/b", {"n": 0}, ttl_s=3600)
        receipt = await streams.append("a/b", [1], "two", stream_seq="01")
        end = await streams.append("a/b", 3, close=True)
        head = await streams.head("a/b")
        assert await content(broker, "a/b") == [{"n": 0}, [1], "two", 3]
        assert (await streams.close("a/b")).closed
        forked = await streams.fork("fork", "a/b", offset=made.offset, sub_offset=1)
        await streams.append("fork", "own")
        assert await content(broker, "fork") == [{"n": 0}, [1], "own"]

    assert (made.created, again.created, forked.created) == (True, False, True)
    assert made.offset < (receipt.offset or "") < (end.offset or "") == head.offset
    promised = {"sqlite": "fsync", "kafka": "replicated"}[broker.engine]
    assert (receipt.durability, receipt.duplicate, end.closed) == (promised, False, True)
    assert (head.content_type, head.ttl_s, head.closed) == ("application/json", 3600, True)


async def test_every_refusal_is_its_own_error(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        streams = producer.streams
        await streams.create("s", 1)
        await streams.append("s", 2, stream_seq="b")
        await streams.create("done", 1, closed=True)
        await streams.create("parent", 1)
        await streams.fork("child", "parent")
        await streams.delete("parent")
        tail = (await streams.head("done")).offset
        await refused(streams.append("nowhere", 1), NotFound, "STREAM_NOT_FOUND", 404)
        await refused(streams.append("s", "x", content_type="text/plain"), Conflict, "CONTENT_TYPE_MISMATCH", 409)
        await refused(streams.append("s", 3, stream_seq="a"), Conflict, "STREAM_SEQ_REGRESSION", 409)
        await refused(streams.create("s", content_type="text/plain"), Conflict, "STREAM_EXISTS", 409)
        closed = await refused(streams.append("done", 2), Closed, "STREAM_CLOSED", 409)
        assert closed.offset == tail
        await refused(streams.head("parent"), Gone, "HTTP_410", 410)
        await refused(streams.fork("f", "s", offset="no-offset"), BadRequest, "INVALID_OFFSET", 400)
        await refused(streams.append("sessions/x", 1), BadRequest, "METHOD_NOT_ALLOWED", 405)
        big = "x" * (64 * 1024 * 1024)
        await refused(streams.append("s", big), BodyTooLarge, "BODY_TOO_LARGE", 413)
    assert await content(broker, "s") == [1, 2]


async def refused(call: Any, kind: type[Any], code: str, status: int) -> Any:
    with pytest.raises(kind) as caught:
        await call
    assert (caught.value.code, caught.value.status) == (code, status)
    return caught.value


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "image/png"])
@pytest.mark.parametrize("live", [True, "sse", "long-poll"])
async def test_every_content_type_is_written_and_followed_by_either_way(
    broker: Broker, content_type: str, live: Any
) -> None:
    kinds: dict[str, list[Any]] = {
        "application/json": [{"n": 1}, [2], "\u2028"],
        "text/plain": ["a\n", "\u00e9\u2028 ", "\n\nb"],
        "image/png": [bytes(range(256)), b"\r\n", b"\0"],
    }
    pieces = kinds[content_type]
    async with (
        Producer(broker.url) as producer,
        Reader(broker.url, limits=READER) as reader,
        aclosing(reader.follow("s", live=live)) as batches,
    ):
        await producer.streams.create("s", content_type=content_type)
        first = await anext(batches)
        assert (bool(first.records), first.up_to_date) == (False, True)
        async with producer.streams.producer("s", "p") as writing:
            for piece in pieces:
                await writing.append(piece)
                await writing.flush()
            await writing.close()
        seen = [batch.records async for batch in batches]
    if content_type == "application/json":
        assert [record for records in seen for record in records] == pieces
    else:
        written = b"".join(piece if isinstance(piece, bytes) else str(piece).encode() for piece in pieces)
        assert b"".join(bytes(records) for records in seen) == written


async def test_from_now_only_what_comes_is_read(broker: Broker) -> None:
    async with (
        Producer(broker.url) as producer,
        Reader(broker.url, limits=READER) as reader,
        aclosing(reader.follow("s", "now", live="long-poll")) as batches,
    ):
        await producer.streams.create("s", "old")
        assert (await anext(batches)).records == []
        await producer.streams.append("s", "new", close=True)
        assert [record async for batch in batches for record in batch.records] == ["new"]


async def test_producer_and_reader_lose_and_double_nothing_while_the_broker_is_killed(broker: Broker) -> None:
    count, kills = 600, 4
    seen: list[Any] = []

    async def write(streams: Streams) -> None:
        async with streams.producer("s", "p", auto_claim=True) as writing:
            for number in range(count):
                await writing.append(number)
                await anyio.sleep(0.001)
            await writing.close("the end")

    async with (
        Producer(broker.url, limits=PROMPT) as producer,
        Reader(broker.url, limits=READER) as reader,
        anyio.create_task_group() as tasks,
    ):
        await producer.streams.create("s")
        tasks.start_soon(write, producer.streams)
        async with aclosing(reader.follow("s")) as batches:
            async for batch in batches:
                before, seen = len(seen), [*seen, *batch.records]
                if before * (kills + 1) // count < len(seen) * (kills + 1) // count < kills + 1:
                    await broker.restart()

    assert seen == [*range(count), "the end"]


async def test_lives_of_a_producer_shut_each_other_out_and_none_is_mixed_up(broker: Broker) -> None:
    """Each claims the id while the one before still writes; what was acknowledged to any of them is there."""
    lives = 4
    acknowledged: dict[int, int] = {}

    async def live(streams: Streams, number: int, started: anyio.Event) -> None:
        async with streams.producer("s", "p", auto_claim=True) as writing:
            for n in range(11 if number == lives - 1 else 1000):
                await writing.append([number, n])
                await writing.flush()
                acknowledged[number] = n
                if n == 5:
                    started.set()

    async def live_until_fenced(streams: Streams, number: int, started: anyio.Event) -> None:
        with pytest.raises(Fenced) as caught:
            await live(streams, number, started)
        assert caught.value.current_epoch is not None
        assert caught.value.current_epoch > number

    async with Producer(broker.url, limits=PROMPT) as producer, anyio.create_task_group() as tasks:
        await producer.streams.create("s")
        for number in range(lives):
            started = anyio.Event()
            tasks.start_soon(live if number == lives - 1 else live_until_fenced, producer.streams, number, started)
            await started.wait()

    records = await content(broker, "s")
    for number in range(lives):
        written = [n for life, n in records if life == number]
        assert written == list(range(len(written))), "in order, each once, none missing"
        assert len(written) - acknowledged[number] in (1, 2)  # one more may have been on its way


async def test_producers_of_many_streams_share_one_connection_pool(broker: Broker) -> None:
    chance = random.Random(1)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Producer(broker.url, limits=PROMPT))
        for number in range(20):
            await producer.streams.create(f"s/{number}", content_type="text/plain")
        writers = [
            await stack.enter_async_context(
                producer.streams.producer(f"s/{number}", f"p-{number}", content_type="text/plain")
            )
            for number in range(20)
        ]
        expected = [b""] * 20
        for turn in range(400):
            number = chance.randrange(20)
            await writers[number].append(f"{turn},")
            expected[number] += f"{turn},".encode()
    for number in range(20):
        assert await content(broker, f"s/{number}") == expected[number]


async def test_offset_of_an_earlier_life_of_a_path_is_gone(broker: Broker) -> None:
    async with Producer(broker.url) as producer, Reader(broker.url, limits=READER) as reader:
        await producer.streams.create("s", 1)
        offset = (await reader.read("s")).next_offset
        await producer.streams.delete("s")
        await producer.streams.create("s", 2)
        with pytest.raises(Gone) as caught:
            await reader.read("s", offset)
    assert (caught.value.code, caught.value.status) == ("OFFSET_GONE", 410)
