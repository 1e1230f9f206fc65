"""One generation from its first chunk to its end, against the model broker over real sockets."""

import json
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from producer import BufferFull, ChunkTooLarge, Fenced, Finished, Limits, Producer, Refused, Unavailable
from tests.eventually import until
from tests.producer.model import Fault, ModelBroker


async def test_chunks_arrive_in_order_each_once_and_the_generation_is_complete(url: str, broker: ModelBroker) -> None:
    chunks = [{"type": "text-delta", "id": "0", "delta": f"word {n} "} for n in range(5000)]
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        for chunk in chunks:
            await generation.write(chunk)
    assert broker.log("s", "g") == chunks
    assert broker.generation("s", "g").status == "complete"
    assert generation.durable_chunks == 5000
    assert generation.receipt is not None
    assert generation.receipt.seq == len(broker.generation("s", "g").batches) - 1
    assert generation.receipt.durability == "memory"


async def test_batches_have_consecutive_seqs_and_travel_within_the_window(url: str, broker: ModelBroker) -> None:
    broker.delay_s = lambda _: 0.01
    limits = Limits(batch_chunks_max=3)
    async with (
        Producer(url, limits=limits, upload="post") as producer,
        producer.generation("s", "g") as generation,
    ):
        for n in range(31):
            await generation.write(n)
    assert sorted({seq for _, seq, _ in broker.seqs}) == list(range(12))
    assert 1 < broker.concurrent_max <= limits.in_flight_max
    assert broker.log("s", "g") == list(range(31))


async def test_opening_options_travel_with_the_first_batch_only(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer:
        options: dict[str, Any] = {
            "message_id": "m",
            "lane": "l:1",
            "format": "text",
            "role": "tool",
            "actor_id": "a & b",
        }
        async with producer.generation("s", "g", lease_ms=5000, **options) as generation:
            await generation.write("x")
            await generation.flush()
    expected = {"messageId": "m", "lane": "l:1", "format": "text", "role": "tool", "actorId": "a & b"}
    assert broker.generation("s", "g").options == {**expected, "leaseMs": "5000"}


async def test_first_chunk_leaves_without_waiting_for_company(url: str, broker: ModelBroker) -> None:
    async with (
        Producer(url, limits=Limits(linger_ms=60_000)) as producer,
        producer.generation("s", "g") as generation,
    ):
        await generation.write("first")
        await until(lambda: generation.durable_chunks == 1)
        assert broker.log("s", "g") == ["first"]


async def test_caller_that_never_waits_for_anything_else_does_not_hold_up_the_sending(
    url: str, broker: ModelBroker
) -> None:
    """A recorded answer, written in a loop without another await."""
    limits = Limits(batch_chunks_max=10)
    async with Producer(url, limits=limits) as producer, producer.generation("s", "g") as generation:
        durable_before_the_end = 0
        for n in range(10_000):
            await generation.write(n)
            durable_before_the_end = generation.durable_chunks
    assert durable_before_the_end > 0
    assert broker.log("s", "g") == list(range(10_000))


async def test_chunk_that_is_an_array_stays_one_chunk(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        await generation.write([1, 2])
        await generation.flush()
        await generation.write([])
    assert broker.log("s", "g") == [[1, 2], []]


async def test_lone_surrogate_is_sent(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        await generation.write({"delta": "\ud83d"})
    assert broker.log("s", "g") == [{"delta": "\ud83d"}]


async def test_chunk_that_is_no_json_is_not_queued_and_does_no_harm(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        with pytest.raises(TypeError):
            await generation.write(object())
        await generation.write("good")
    assert broker.log("s", "g") == ["good"]


async def test_chunk_above_the_limit_is_not_queued_and_does_no_harm(url: str, broker: ModelBroker) -> None:
    async with (
        Producer(url, limits=Limits(chunk_bytes_max=100)) as producer,
        producer.generation("s", "g") as generation,
    ):
        with pytest.raises(ChunkTooLarge):
            await generation.write("x" * 100)
        await generation.write("good")
    assert broker.log("s", "g") == ["good"]


async def test_full_buffer_makes_write_wait_until_there_is_room(url: str, broker: ModelBroker) -> None:
    broker.gate.clear()
    async with (
        Producer(url, limits=Limits(buffer_chunks_max=10)) as producer,
        producer.generation("s", "g") as generation,
    ):
        for n in range(10):
            await generation.write(n)
        with pytest.raises(BufferFull):
            generation.write_nowait("too many")
        with anyio.move_on_after(0.05) as waiting:
            await generation.write("too many")
        assert waiting.cancelled_caught
        broker.gate.set()
        await generation.write(10)
    assert broker.log("s", "g") == list(range(11)), "a cancelled write is not queued"


async def test_buffer_is_bounded_in_bytes_too(url: str, broker: ModelBroker) -> None:
    broker.gate.clear()
    limits = Limits(buffer_bytes_max=1000, chunk_bytes_max=500)
    async with Producer(url, limits=limits) as producer, producer.generation("s", "g") as generation:
        written = 0
        with pytest.raises(BufferFull):  # noqa: PT012  one of them does
            for _ in range(20):
                generation.write_nowait("x" * 98)
                written += 1
        assert written == 10
        broker.gate.set()
    assert len(broker.log("s", "g")) == 10


async def test_flush_returns_when_everything_written_is_durable(url: str, broker: ModelBroker) -> None:
    async with (
        Producer(url, limits=Limits(linger_ms=60_000)) as producer,
        producer.generation("s", "g") as generation,
    ):
        assert await generation.flush() is None
        for n in range(10):
            await generation.write(n)
        receipt = await generation.flush()
        assert broker.log("s", "g") == list(range(10))
        assert receipt is not None
        assert receipt.offset == broker.generation("s", "g").batches[-1].offset


async def test_flush_is_given_up_at_its_timeout_and_the_sending_goes_on(url: str, broker: ModelBroker) -> None:
    broker.gate.clear()
    async with (
        Producer(url, limits=Limits(flush_timeout_s=0.05)) as producer,
        producer.generation("s", "g") as generation,
    ):
        await generation.write("late")
        with pytest.raises(Unavailable) as caught:
            await generation.flush()
        assert caught.value.unacknowledged_chunks == 1
        broker.gate.set()
    assert broker.log("s", "g") == ["late"]


async def test_finish_tells_status_usage_metadata_and_error(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        await generation.write("x")
        facts: dict[str, Any] = {"usage": {"tokens": 3}, "metadata": {"model": "m"}, "error": {"code": "LENGTH"}}
        receipt = await generation.finish("failed", reason="length", **facts)
        assert receipt is not None
        assert receipt.offset == broker.generation("s", "g").batches[-1].offset
    assert broker.generation("s", "g").end == {"status": "failed", "reason": "length", **facts}


async def test_nothing_is_written_after_the_finish(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        await generation.finish()
        with pytest.raises(Finished):
            await generation.write("late")
        with pytest.raises(Finished):
            await generation.finish()
    assert broker.log("s", "g") == []


@pytest.mark.parametrize("status", ["streaming", "pending", "done"])
async def test_finish_with_what_is_no_end_is_a_value_error(url: str, status: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        with pytest.raises(ValueError, match=status):
            await generation.finish(status)
    assert broker.generation("s", "g").status == "complete"


async def test_generation_without_a_chunk_opens_and_ends_at_once(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g"):
        pass
    assert [(verb, seq) for verb, seq, _ in broker.seqs] == [("finish", 0)]
    assert broker.generation("s", "g").options["messageId"] == "g"


async def test_quiet_generation_is_kept_alive(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g", lease_ms=1000) as generation:
        await generation.write("x")
        await until(lambda: "g" in broker.sessions["s"].generations and broker.generation("s", "g").heartbeats >= 2)
    assert not generation.stopped.is_set()


async def test_unopened_generation_sends_no_heartbeat(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g", lease_ms=1000):
        await anyio.sleep(0.5)  # longer than a third of the lease
        assert not broker.requests


async def test_quiet_producer_learns_from_a_heartbeat_that_it_was_stopped(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g", lease_ms=1000) as generation:
        await generation.write("x")
        await generation.flush()
        broker.generation("s", "g").status, broker.generation("s", "g").reason = "aborted", "stopped"
        await generation.stopped.wait()
        with pytest.raises(Fenced) as caught:
            await generation.write("y")
    assert (caught.value.reason, caught.value.generation_status) == ("stopped", "aborted")
    assert broker.log("s", "g") == ["x"]


async def test_heartbeat_that_crosses_the_finish_does_no_harm(url: str, broker: ModelBroker) -> None:
    """The finish has taken effect and its answer is on the way when the heartbeat meets the fence."""
    broker.hold_answer = lambda request: request.url.path.endswith("/finish")
    async with Producer(url) as producer, producer.generation("s", "g", lease_ms=1000) as generation:
        await generation.write("x")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(generation.finish)
            await until(lambda: any(path.endswith("/heartbeat") for _, path, _ in broker.requests))
            await until(lambda: broker.concurrent == 1)
            broker.answers.set()
    assert generation.error is None
    assert broker.generation("s", "g").status == "complete"


async def test_superseded_generation_is_told_so_when_it_is_left(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer:
        with pytest.raises(Fenced, match="superseded"):  # noqa: PT012  the error comes from leaving the context
            async with producer.generation("s", "old") as old:
                await old.write("o")
                await old.flush()
                async with producer.generation("s", "new") as new:
                    await new.write("n")
                await old.write("refused")
        assert old.stopped.is_set()
    assert broker.log("s", "old") == ["o"]
    assert broker.generation("s", "new").status == "complete"


async def test_fence_that_write_told_is_not_told_again_on_leaving(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        await generation.write("x")
        await generation.flush()
        broker.generation("s", "g").status = "aborted"
        with pytest.raises(Fenced):  # noqa: PT012  when the answer has come
            while True:
                await generation.write("y")
                await anyio.sleep(0.001)


async def test_stop_cancels_what_is_in_flight_at_once(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        await generation.write("kept")
        await generation.flush()
        broker.delay_s = lambda request: 60.0 if request.url.path.endswith("/chunks") else 0.0
        await generation.write("in flight")
        await until(lambda: len(broker.seqs) == 2)
        with anyio.fail_after(5):
            stopped = await generation.stop(reason="enough")
        assert stopped is not None
        assert (stopped.status, stopped.reason) == ("aborted", "stopped")
        with pytest.raises(Fenced):
            await generation.write("late")
    assert broker.log("s", "g") == ["kept"]
    assert broker.generation("s", "g").status == "aborted"


async def test_stop_of_a_generation_that_never_wrote_needs_no_request(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        assert await generation.stop() is None
    assert not broker.requests


async def stop_while_it_opens(url: str, broker: ModelBroker) -> None:
    """Its first batch gets no answer before the stop is asked for."""
    broker.delay_s = lambda request: 60.0 if request.url.path.endswith("/chunks") else 0.0
    async with Producer(url) as producer, producer.generation("s", "g") as generation:
        await generation.write("x")
        await until(lambda: len(broker.seqs) == 1)
        stopped = await generation.stop()
        assert stopped is not None
        assert stopped.status == "aborted"


async def test_stop_while_the_opening_batch_is_under_way_leaves_nothing_open(url: str, broker: ModelBroker) -> None:
    await stop_while_it_opens(url, broker)
    assert broker.generation("s", "g").status == "aborted"


async def test_opening_batch_that_lands_after_the_stop_was_asked_is_stopped(url: str, broker: ModelBroker) -> None:
    """The stop finds no generation; then the batch arrives; then the end in its place meets other bytes."""

    def land_before_finish(request: Any) -> None:
        if request.url.path.endswith("/finish"):
            broker.delay_s = lambda _: 0.0
            generation = broker.sessions["s"].generations["g"] = broker._open(broker.sessions["s"], "g", {})  # noqa: SLF001  the late batch
            generation.chunks.append("x")
            generation.batches.append(broker.batch(b'["x"]'))

    broker.fault = land_before_finish
    await stop_while_it_opens(url, broker)
    assert broker.generation("s", "g").reason == "stopped"


async def test_refused_batch_ends_the_generation_as_failed_and_says_what_is_missing(
    url: str, broker: ModelBroker
) -> None:
    broker.body_bytes_max = 1000
    async with Producer(url, limits=Limits(batch_chunks_max=1)) as producer:
        with pytest.raises(Refused) as caught:  # noqa: PT012  it may come from a write or from leaving
            async with producer.generation("s", "g") as generation:
                for chunk in ("a", "b", "x" * 2000, "c"):
                    await generation.write(chunk)
    assert caught.value.code == "BODY_TOO_LARGE"
    ended = broker.generation("s", "g")
    assert ended.chunks == ["a", "b"], "what came before the refused batch is durable"
    assert ended.end == {
        "status": "failed",
        "error": {"code": "BODY_TOO_LARGE", "lost": {"firstChunk": 2, "chunks": 2}},
    }


async def test_unknown_session_is_refused(url: str) -> None:
    async with Producer(url) as producer:
        with pytest.raises(Refused) as caught:  # noqa: PT012  it may come from the write or from leaving
            async with producer.generation("nowhere", "g") as generation:
                await generation.write("x")
                await generation.flush()
    assert caught.value.code == "SESSION_NOT_FOUND"


async def test_generation_cannot_be_entered_twice(url: str) -> None:
    async with Producer(url) as producer:
        generation = producer.generation("s", "g")
        async with generation:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            await generation.__aenter__()


async def test_lease_outside_its_bounds_is_a_value_error(url: str) -> None:
    async with Producer(url) as producer:
        for lease_ms in (999, 600_001):
            with pytest.raises(ValueError, match="lease_ms"):
                producer.generation("s", "g", lease_ms=lease_ms)


async def test_many_generations_at_once_keep_apart(url: str, broker: ModelBroker, limits: Limits) -> None:
    async def answer(producer: Producer, number: int) -> None:
        async with producer.generation("s", f"g-{number}", lane=f"lane-{number}") as generation:
            for n in range(50):
                await generation.write([number, n])
                await anyio.lowlevel.checkpoint()

    async with Producer(url, limits=limits) as producer, anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(answer, producer, number)
    for number in range(50):
        assert broker.log("s", f"g-{number}") == [[number, n] for n in range(50)]
        assert broker.generation("s", f"g-{number}").status == "complete"


async def test_bytes_sent_again_under_a_seq_are_the_same(url: str, broker: ModelBroker, limits: Limits) -> None:
    arrivals = iter(range(1_000_000))
    broker.fault = lambda _: list(Fault)[number % 4] if (number := next(arrivals)) % 2 else None
    async with Producer(url, limits=limits) as producer, producer.generation("s", "g") as generation:
        for n in range(200):
            await generation.write(n)
            await anyio.sleep(0.0005)
    bodies: dict[int, set[bytes]] = {}
    for _, seq, body in broker.seqs:
        bodies.setdefault(seq, set()).add(body)
    assert all(len(different) == 1 for different in bodies.values())
    assert len(broker.seqs) > len(bodies), "something was sent again"
    assert [chunk for seq in sorted(bodies) for chunk in content(*bodies[seq])] == list(range(200))


def content(body: bytes) -> list[Any]:
    decoded = json.loads(body)
    return decoded if isinstance(decoded, list) else []
