"""Chunks that come faster than they leave: none is lost unless the caller said so, and then it shows."""

from functools import partial
from typing import Any

import anyio
import pytest

from consumer.fold import fold
from producer import BufferFull, Limits, Merging, Producer, Unavailable, has_no_effect
from tests.eventually import until
from tests.producer.model import ModelBroker

FORMAT = "ai-sdk-ui-message-stream"


def answer(deltas: int) -> list[dict[str, Any]]:
    texts = [{"type": "text-delta", "id": "1", "delta": f"{n} "} for n in range(deltas)]
    return [{"type": "start"}, {"type": "text-start", "id": "1"}, *texts, {"type": "text-end", "id": "1"}]


async def test_chunks_are_not_merged_unless_asked(url: str, broker: ModelBroker) -> None:
    chunks = answer(200)
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        for chunk in chunks:
            await generation.write(chunk)
    assert broker.log("s", "g") == chunks


async def test_merged_deltas_make_a_shorter_log_of_the_same_message(url: str, broker: ModelBroker) -> None:
    chunks = answer(2000)
    async with Producer(url) as producer, producer.generation("s", "g", merging=Merging.ALWAYS) as generation:
        for chunk in chunks:
            await generation.write(chunk)
        await generation.finish()
        merged = producer.metrics().merged_chunks
    log = broker.log("s", "g")
    assert len(log) + merged == len(chunks)
    assert len(log) < len(chunks) / 10
    assert fold(FORMAT, log) == fold(FORMAT, chunks)


async def test_merging_under_pressure_leaves_chunks_alone_that_come_at_leisure(url: str, broker: ModelBroker) -> None:
    chunks = answer(10)
    async with Producer(url) as producer, producer.generation("s", "g", merging="pressed") as generation:
        for chunk in chunks:
            await generation.write(chunk)
            await generation.flush()
    assert broker.log("s", "g") == chunks


async def test_merging_under_pressure_makes_room_where_there_was_none(url: str, broker: ModelBroker) -> None:
    """The broker stands still, and far more is written than the buffer has room for in single chunks."""
    chunks = answer(1000)
    broker.gate.clear()
    limits = Limits(buffer_chunks_max=20, finish_timeout_s=20)
    async with (
        Producer(url, limits=limits) as producer,
        producer.generation("s", "g", merging="pressed") as generation,
    ):
        for chunk in chunks:
            await generation.write(chunk)
        broker.gate.set()
    assert fold(FORMAT, broker.log("s", "g")) == fold(FORMAT, chunks)


async def test_merged_chunk_stays_below_the_limit_of_a_chunk(url: str, broker: ModelBroker) -> None:
    chunks = answer(1000)
    limits = Limits(chunk_bytes_max=500)
    async with Producer(url, limits=limits) as producer, producer.generation("s", "g", merging="always") as generation:
        for chunk in chunks:
            generation.write_nowait(chunk)
    assert max(len(chunk.get("delta", "")) for chunk in broker.log("s", "g")) < 500
    assert fold(FORMAT, broker.log("s", "g")) == fold(FORMAT, chunks)


async def test_try_write_tells_that_there_is_no_room(url: str, broker: ModelBroker) -> None:
    broker.gate.clear()
    async with (
        Producer(url, limits=Limits(buffer_chunks_max=3)) as producer,
        producer.generation("s", "g") as generation,
    ):
        taken = [generation.try_write(n) for n in range(5)]
        assert taken == [True, True, True, False, False]
        with pytest.raises(BufferFull):
            generation.write_nowait(5)
        broker.gate.set()
        await until(lambda: generation.try_write("again"))
    assert broker.log("s", "g") == [0, 1, 2, "again"]


async def test_dropped_chunks_are_counted_and_told_at_the_end(url: str, broker: ModelBroker) -> None:
    progress = {"type": "data-progress", "data": 1, "transient": True}
    broker.gate.clear()
    async with (
        Producer(url, limits=Limits(buffer_chunks_max=3)) as producer,
        producer.generation("s", "g", drop=partial(has_no_effect, FORMAT)) as generation,
    ):
        for chunk in (*answer(0), progress, progress):
            await generation.write(chunk)
        with anyio.move_on_after(0.02) as waiting:
            await generation.write({"type": "finish"})
        assert waiting.cancelled_caught, "what is not to be dropped waits"
        broker.gate.set()
        await generation.flush()
        await generation.write(progress)
        await generation.finish(metadata={"model": "m"})
        assert generation.dropped_chunks == producer.metrics().dropped_chunks == 2
    assert broker.log("s", "g") == [*answer(0), progress]
    assert broker.generation("s", "g").end["metadata"] == {"model": "m", "droppedChunks": 2}


async def test_end_without_a_drop_says_nothing_of_it(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g", drop=lambda _: True) as generation:
        await generation.write("x")
    assert broker.generation("s", "g").end == {"status": "complete"}


async def test_what_was_merged_cannot_be_resumed_by_writing_it_again(url: str) -> None:
    async with Producer(url) as producer:
        with pytest.raises(ValueError, match="merged"):
            producer.generation("s", "g", resume=True, merging="always")


async def test_metrics_tell_what_was_done_and_what_is_queued(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer:
        async with producer.generation("s", "g") as generation:
            await generation.write("x")
            await generation.flush()
            broker.gate.clear()
            await generation.write("yy")
            await until(lambda: producer.metrics().in_flight_batches == 1)
            queued = producer.metrics()
            assert (queued.queued_chunks, queued.queued_bytes) == (1, 4)
            broker.gate.set()
        done = producer.metrics()
    assert (done.written_chunks, done.acknowledged_batches, done.queued_chunks) == (2, 3, 0)
    assert (done.errors, done.failed_attempts, done.failed_finishes) == (0, 0, 0)
    assert done.enqueue_to_durable.count == 2
    assert 0 < done.enqueue_to_durable.max_s < 30
    assert done.finish.count == 1


async def test_finish_that_was_not_heard_counts_as_one_that_failed(url: str, broker: ModelBroker) -> None:
    broker.gate.clear()
    async with Producer(url, limits=Limits(finish_timeout_s=0.05)) as producer:
        generation = producer.generation("s", "g")
        with pytest.raises(Unavailable):
            async with generation:
                await generation.write("x")
        assert producer.metrics().failed_finishes == 1
        broker.gate.set()
