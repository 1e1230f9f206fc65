"""A generation that another process takes up: nothing is lost, nothing is doubled."""

import anyio
import pytest

from producer import Fenced, Finished, Limits, Producer, Receipt, Refused
from tests.eventually import until
from tests.producer.model import ModelBroker

ANSWER = [{"type": "text-delta", "id": "0", "delta": f"{n} "} for n in range(40)]


async def die_after(url: str, written: int) -> None:
    """A process that is killed: what it had written is durable, and no ending is sent."""
    async with anyio.create_task_group() as process:
        producer = await Producer(url, limits=Limits(batch_chunks_max=3)).__aenter__()
        generation = await producer.generation("s", "g").__aenter__()
        for chunk in ANSWER[:written]:
            await generation.write(chunk)
        await generation.flush()
        generation._sender._scope.cancel()  # noqa: SLF001  as SIGKILL would: nothing more is sent
        await generation._sender.over.wait()  # noqa: SLF001  as above
        await producer.__aexit__(None, None, None)
        process.cancel_scope.cancel()


@pytest.mark.parametrize("written", [1, 2, 3, 20, 40])
async def test_second_process_goes_on_where_the_first_one_died(url: str, broker: ModelBroker, written: int) -> None:
    await die_after(url, written)
    async with Producer(url) as producer, producer.generation("s", "g", resume=True) as generation:
        assert generation.durable_chunks == written
        for chunk in ANSWER:
            await generation.write(chunk)
        await generation.flush()
        assert generation.durable_chunks == len(ANSWER)
    assert broker.log("s", "g") == ANSWER
    assert broker.generation("s", "g").status == "complete"


async def test_generation_that_the_broker_does_not_know_begins_from_the_start(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer, producer.generation("s", "g", resume=True) as generation:
        assert generation.durable_chunks == 0
        for chunk in ANSWER:
            await generation.write(chunk)
    assert broker.log("s", "g") == ANSWER


async def whole_answer(producer: Producer, *, resume: bool) -> Receipt | None:
    async with producer.generation("s", "g", resume=resume) as generation:
        for chunk in ANSWER:
            await generation.write(chunk)
        return await generation.finish()


async def test_completed_generation_takes_the_same_again_without_effect(url: str, broker: ModelBroker) -> None:
    """The first process died after its finish was accepted, and before it knew."""
    # One batch at a time, or the finish may overtake a chunk, and be sent twice for that.
    async with Producer(url, limits=Limits(in_flight_max=1)) as producer:
        receipts = [await whole_answer(producer, resume=resume) for resume in (False, True)]
    assert receipts[0] is not None
    assert receipts[1] is None
    assert broker.log("s", "g") == ANSWER
    assert [verb for verb, _, _ in broker.seqs].count("finish") == 1


async def test_completed_generation_takes_nothing_new(url: str, broker: ModelBroker) -> None:
    async with Producer(url) as producer:
        async with producer.generation("s", "g") as generation:
            await generation.write("x")
        async with producer.generation("s", "g", resume=True) as generation:
            await generation.write("x")
            with pytest.raises(Finished):
                await generation.write("y")
    assert broker.log("s", "g") == ["x"]


async def test_aborted_generation_cannot_be_taken_up(url: str, broker: ModelBroker) -> None:
    await die_after(url, 3)
    broker.generation("s", "g").status, broker.generation("s", "g").reason = "failed", "LEASE_EXPIRED"
    async with Producer(url) as producer:
        with pytest.raises(Fenced) as caught:
            await producer.generation("s", "g", resume=True).__aenter__()
    assert (caught.value.reason, caught.value.generation_status) == ("LEASE_EXPIRED", "failed")


async def test_unknown_session_cannot_be_taken_up(url: str) -> None:
    async with Producer(url) as producer:
        with pytest.raises(Refused) as caught:
            await producer.generation("nowhere", "g", resume=True).__aenter__()
    assert caught.value.code == "SESSION_NOT_FOUND"


async def test_second_writer_of_the_same_generation_is_found_out_before_it_adds_anything(
    url: str, broker: ModelBroker
) -> None:
    """The first process is not dead: its batch lands after the second one asked how far it got."""
    async with Producer(url) as producer, producer.generation("s", "g") as first:
        await first.write("a")
        await first.flush()
        second = await producer.generation("s", "g", resume=True).__aenter__()
        await first.write("b")
        await first.flush()
        for chunk in ("a", "B", "c", "d"):
            await second.write(chunk)
        await until(lambda: second.error is not None)
        assert isinstance(second.error, Refused)
        assert second.error.code == "PAYLOAD_MISMATCH"
    assert broker.log("s", "g") == ["a", "b"]
    assert broker.generation("s", "g").status == "complete"


async def test_crash_at_any_moment_and_any_number_of_times_loses_and_doubles_nothing(
    url: str, broker: ModelBroker
) -> None:
    for written in (1, 2, 5, 9, 10, 30):
        async with Producer(url) as producer:
            generation = await producer.generation("s", "g", resume=True).__aenter__()
            for chunk in ANSWER[:written]:
                await generation.write(chunk)
                await anyio.sleep(0.001)
            generation._sender._scope.cancel()  # noqa: SLF001  as SIGKILL would: batches are in flight
            await generation._sender.over.wait()  # noqa: SLF001  as above
        await until(lambda: broker.concurrent == 0)
    async with Producer(url) as producer, producer.generation("s", "g", resume=True) as last:
        for chunk in ANSWER:
            await last.write(chunk)
    assert broker.log("s", "g") == ANSWER
