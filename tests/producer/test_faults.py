"""Whatever happens to requests and answers on the way: every chunk is there, once, in order."""

import random
from dataclasses import replace

import anyio
import pytest

from producer import Limits, Producer
from tests.eventually import until
from tests.producer.model import Fault, ModelBroker, in_turn, serving

FAULTS = [Fault.REFUSE, Fault.RESET, Fault.LOSE_ANSWER, Fault.FAIL_AFTER]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_any_fault_on_the_first_batch_is_overcome(
    url: str, broker: ModelBroker, limits: Limits, fault: Fault
) -> None:
    broker.fault = in_turn(fault, fault)
    async with Producer(url, limits=limits) as producer, producer.generation("s", "g") as generation:
        await generation.write("x")
        receipt = await generation.flush()
    assert receipt is not None
    assert receipt.duplicate == (fault in {Fault.LOSE_ANSWER, Fault.FAIL_AFTER})
    assert receipt.offset == broker.generation("s", "g").batches[0].offset, "the original's"
    assert broker.log("s", "g") == ["x"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_any_fault_on_the_finish_is_overcome(url: str, broker: ModelBroker, limits: Limits, fault: Fault) -> None:
    broker.fault = in_turn(None, fault)
    async with Producer(url, limits=limits) as producer, producer.generation("s", "g") as generation:
        await generation.write("x")
    assert broker.log("s", "g") == ["x"]
    assert broker.generation("s", "g").status == "complete"


@pytest.mark.parametrize("seed", range(8))
async def test_chunks_survive_a_network_that_fails_every_third_request_and_reorders_the_rest(
    url: str, broker: ModelBroker, limits: Limits, seed: int
) -> None:
    chance = random.Random(seed)
    broker.fault = lambda _: chance.choice(FAULTS) if chance.random() < 0.3 else None
    broker.delay_s = lambda _: chance.random() * 0.01
    small = replace(limits, batch_chunks_max=3, deadline_s=30, finish_timeout_s=30)
    async with Producer(url, limits=small) as producer, producer.generation("s", "g") as generation:
        for n in range(120):
            await generation.write(n)
    assert broker.log("s", "g") == list(range(120))
    assert broker.generation("s", "g").status == "complete"
    seqs = [seq for _, seq, _ in broker.seqs]
    assert seqs != sorted(seqs), "batches did overtake each other"


async def test_batch_that_overtakes_is_sent_again_without_backing_off(url: str, broker: ModelBroker) -> None:
    """Batch 1 is held up, 2 to 4 overtake it and meet gaps. None of that is a failure."""
    broker.delay_s = lambda request: 0.1 if request.headers["producer-seq"] == "1" else 0.0
    patient = Limits(batch_chunks_max=1, backoff_s_initial=60, backoff_s_max=60)
    async with Producer(url, limits=patient) as producer, producer.generation("s", "g") as generation:
        with anyio.fail_after(10):
            for n in range(8):
                await generation.write(n)
            await generation.flush()
    assert broker.log("s", "g") == list(range(8))


async def test_retry_after_is_honoured(url: str, broker: ModelBroker, limits: Limits) -> None:
    broker.retry_after = "1"
    broker.fault = in_turn(Fault.REFUSE)
    async with Producer(url, limits=limits) as producer, producer.generation("s", "g") as generation:
        began_s = anyio.current_time()
        await generation.write("x")
        await generation.flush()
        assert anyio.current_time() - began_s >= 1.0
    assert len(broker.seqs) == 3, "two attempts and the finish"


async def test_broker_that_goes_away_and_comes_back_mid_answer_loses_and_doubles_nothing(limits: Limits) -> None:
    broker = ModelBroker()
    broker.create("s")
    async with serving(broker) as url:
        port = int(url.rpartition(":")[2])
        producer = await Producer(url, limits=limits).__aenter__()
        generation = await producer.generation("s", "g").__aenter__()
        for n in range(100):
            await generation.write(n)
        await until(lambda: generation.durable_chunks > 0)
    for n in range(100, 200):  # written while nobody listens
        await generation.write(n)
        await anyio.sleep(0.001)
    async with serving(broker, port):
        await generation.finish()
        await producer.__aexit__(None, None, None)
    assert broker.log("s", "g") == list(range(200))
    assert broker.generation("s", "g").status == "complete"
