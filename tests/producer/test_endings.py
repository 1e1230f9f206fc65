"""Interruption keeps what was written (I1 to I3): an exception, a cancellation or a timeout, at every point."""

import asyncio
import logging
from collections.abc import AsyncIterator

import anyio
import pytest

from producer import Fenced, Generation, Limits, Producer, Unavailable
from tests.eventually import until
from tests.producer.model import Fault, ModelBroker

CUTS = [0, 1, 2, 7, 50]


async def write_and_hang(generation: Generation, chunks: int) -> None:
    """Write, and then wait for a model that says no more."""
    for n in range(chunks):
        await generation.write(n)
    await anyio.sleep_forever()


@pytest.mark.parametrize("cut", CUTS)
async def test_exception_at_any_point_keeps_everything_and_fails_the_generation(
    url: str, broker: ModelBroker, cut: int
) -> None:
    async with Producer(url) as producer:
        with pytest.raises(KeyError):  # noqa: PT012  it has to pass through the context
            async with producer.generation("s", "g") as generation:
                for n in range(cut):
                    await generation.write(n)
                raise KeyError("model \ud83d")
    assert broker.log("s", "g") == list(range(cut))
    assert broker.generation("s", "g").end == {
        "status": "failed",
        "error": {"type": "KeyError", "message": "'model \\ud83d'"},
    }


@pytest.mark.parametrize("cut", CUTS)
async def test_cancelled_scope_at_any_point_keeps_everything_and_aborts_the_generation(
    url: str, broker: ModelBroker, cut: int
) -> None:
    async with Producer(url) as producer:
        with anyio.CancelScope() as request:
            async with producer.generation("s", "g") as generation:
                for n in range(cut):
                    await generation.write(n)
                request.cancel()
                await anyio.sleep_forever()
        assert broker.log("s", "g") == list(range(cut)), "left only when everything was durable"
        assert broker.generation("s", "g").end == {"status": "aborted", "reason": "cancelled"}


@pytest.mark.parametrize("cut", CUTS)
async def test_cancelled_task_at_any_point_keeps_everything(url: str, broker: ModelBroker, cut: int) -> None:
    """As a web framework or `asyncio.wait_for` cancels: natively, without a scope."""

    async def answer(producer: Producer) -> None:
        async with producer.generation("s", "g") as generation:
            await write_and_hang(generation, cut)

    async with Producer(url) as producer:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer(producer), timeout=0.1)
    assert broker.log("s", "g") == list(range(cut))
    assert broker.generation("s", "g").status == "aborted"


async def test_second_cancellation_stops_the_waiting_and_not_the_saving(url: str, broker: ModelBroker) -> None:
    async def answer(producer: Producer) -> None:
        async with producer.generation("s", "g") as generation:
            await write_and_hang(generation, 5)

    broker.gate.clear()
    async with Producer(url) as producer:
        task = asyncio.create_task(answer(producer))
        await until(lambda: len(broker.seqs) == 1)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "g" not in broker.sessions["s"].generations
        broker.gate.set()
    assert broker.log("s", "g") == list(range(5))
    assert broker.generation("s", "g").status == "aborted"


async def test_cancellation_around_the_producer_itself_keeps_everything(url: str, broker: ModelBroker) -> None:
    broker.delay_s = lambda _: 0.02
    with anyio.CancelScope() as scope:
        async with Producer(url) as producer, producer.generation("s", "g") as generation:
            for n in range(500):
                await generation.write(n)
            scope.cancel()
            await anyio.sleep_forever()
    assert broker.log("s", "g") == list(range(500))
    assert broker.generation("s", "g").status == "aborted"


async def test_cancellation_during_finish_keeps_the_status_that_was_asked(url: str, broker: ModelBroker) -> None:
    broker.gate.clear()
    async with Producer(url) as producer:
        with anyio.CancelScope() as request:
            async with producer.generation("s", "g") as generation:
                await generation.write("x")
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(generation.finish, "complete")
                    await until(lambda: len(broker.seqs) == 1)
                    request.cancel()
                    broker.gate.set()
    assert broker.log("s", "g") == ["x"]
    assert broker.generation("s", "g").status == "complete"


async def test_closed_asynchronous_generator_keeps_everything(url: str, broker: ModelBroker) -> None:
    """A streaming response whose reader has gone is closed at a `yield`, inside the context."""

    async def answer(producer: Producer) -> AsyncIterator[int]:
        async with producer.generation("s", "g") as generation:
            for n in range(100):
                await generation.write(n)
                yield n

    async with Producer(url) as producer:
        reading = answer(producer)
        async for n in reading:
            if n == 9:
                break
        await reading.aclose()  # type: ignore[attr-defined]  # an asynchronous generator, typed as what readers need
    assert broker.log("s", "g") == list(range(10))
    assert broker.generation("s", "g").status == "aborted"


async def test_ending_that_cannot_be_delivered_is_bounded_and_told(url: str, broker: ModelBroker) -> None:
    broker.fault = lambda _: Fault.REFUSE
    async with Producer(url, limits=Limits(finish_timeout_s=0.2)) as producer:
        with anyio.fail_after(5), pytest.raises(Unavailable) as caught:
            async with producer.generation("s", "g") as generation:
                await generation.write("lost")
    assert caught.value.unacknowledged_chunks == 1
    assert caught.value.unacknowledged_batches == 1
    assert generation.error is caught.value


async def test_failed_ending_does_not_hide_the_exception_under_way(url: str, broker: ModelBroker) -> None:
    broker.fault = lambda _: Fault.REFUSE
    async with Producer(url, limits=Limits(finish_timeout_s=0.1)) as producer:
        with pytest.raises(KeyError) as caught:  # noqa: PT012  it has to pass through the context
            async with producer.generation("s", "g") as generation:
                await generation.write("lost")
                raise KeyError("model")
    assert "could not be ended: not finished within 0.1 s" in caught.value.__notes__[0]


async def test_failed_ending_of_a_cancelled_writer_is_logged(
    url: str, broker: ModelBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The cancellation that carries the note is swallowed by whoever asked for it."""
    broker.fault = lambda _: Fault.REFUSE
    async with Producer(url, limits=Limits(finish_timeout_s=0.1)) as producer:
        with caplog.at_level(logging.WARNING, "streamfold.producer"), anyio.move_on_after(0.05):
            async with producer.generation("s", "g") as generation:
                await write_and_hang(generation, 1)
    assert "could not be ended" in caplog.text


async def test_finish_after_a_lost_batch_is_no_success(url: str, broker: ModelBroker) -> None:
    """The deadline of a batch passes: nothing that follows may look complete."""
    broker.fault = lambda request: Fault.REFUSE if request.url.path.endswith("/chunks") else None
    async with Producer(url, limits=Limits(deadline_s=0.1)) as producer, producer.generation("s", "g") as generation:
        await generation.write("lost")
        await until(lambda: generation.error is not None)
        with pytest.raises(Unavailable):
            await generation.finish()
        with pytest.raises(Unavailable):
            await generation.write("more")
    assert "g" not in broker.sessions["s"].generations


async def test_generation_stopped_elsewhere_is_told_on_leaving_even_if_nothing_was_written_since(
    url: str, broker: ModelBroker
) -> None:
    async with Producer(url) as producer:
        with pytest.raises(Fenced):  # noqa: PT012  it comes from leaving
            async with producer.generation("s", "g") as generation:
                await generation.write("x")
                await generation.flush()
                broker.generation("s", "g").status = "aborted"
    assert broker.log("s", "g") == ["x"]
