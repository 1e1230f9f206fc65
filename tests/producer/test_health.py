"""A broker that keeps failing is asked less, not more; and asked fully again when it answers."""

import pytest

from producer import HealthState, Limits, Producer, Unavailable, Unhealthy
from producer.health import Health
from tests.eventually import until
from tests.producer.model import Fault, ModelBroker, serving

LIMITS = Limits(degraded_after=2, recovered_after=3, unhealthy_after=4, unhealthy_s=1.0, probe_s=5.0)


def failing(times: int, now_s: float = 0.0) -> Health:
    health = Health(LIMITS)
    for _ in range(times):
        health.failed(now_s)
    return health


def test_failures_in_a_row_degrade() -> None:
    assert [failing(times).state for times in (0, 1, 2, 3)] == [
        *[HealthState.HEALTHY] * 2,
        *[HealthState.DEGRADED] * 2,
    ]


def test_success_between_failures_starts_the_count_anew() -> None:
    health = failing(1)
    health.succeeded()
    health.failed(0.0)
    assert health.is_healthy


def test_many_failures_in_a_short_time_are_not_unhealthy_yet() -> None:
    health = failing(100)
    assert health.state is HealthState.DEGRADED
    health.failed(1.0)
    assert health.is_unhealthy


def test_unhealthy_lets_one_probe_through_now_and_then() -> None:
    health = failing(4)
    health.failed(1.0)
    assert health.blocked_s(1.0) == 5.0
    assert health.blocked_s(6.0) == 0.0
    health.take_probe(6.0)
    assert health.blocked_s(7.0) == 4.0
    health.failed(8.0)
    assert health.blocked_s(8.0) == 5.0


def test_answered_probe_leads_back_step_by_step() -> None:
    health = failing(4)
    health.failed(1.0)
    states = []
    for _ in range(3):
        health.succeeded()
        states.append(health.state)
    assert states == [HealthState.DEGRADED, HealthState.DEGRADED, HealthState.HEALTHY]


SOON = Limits(
    degraded_after=2,
    recovered_after=5,
    unhealthy_after=3,
    unhealthy_s=0.02,
    probe_s=0.02,
    backoff_s_initial=0.01,
    backoff_s_max=0.02,
    backoff_s_jitter=0.005,
    finish_timeout_s=20,
)


async def refused_at_once(producer: Producer) -> Unhealthy:
    """How a call fails that is not tried. One that happens to be the probe is."""
    while True:
        try:
            await producer.create_session("another")
        except Unhealthy as error:
            return error
        except Unavailable:
            continue


async def test_work_that_begins_while_the_broker_is_unhealthy_fails_at_once(url: str, broker: ModelBroker) -> None:
    broker.fault = lambda _: Fault.REFUSE
    async with Producer(url, limits=SOON) as producer, producer.generation("s", "g") as under_way:
        await under_way.write("x")
        await until(lambda: producer.health is HealthState.UNHEALTHY)
        refusal = await refused_at_once(producer)
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s <= SOON.probe_s
        broker.fault = lambda _: None
        await until(lambda: producer.health is not HealthState.UNHEALTHY)
        await producer.create_session("another")
        await under_way.write("y")
    assert broker.log("s", "g") == ["x", "y"], "what was under way waited"


async def test_generation_is_not_begun_while_the_broker_is_unhealthy(url: str, broker: ModelBroker) -> None:
    limits = Limits(
        unhealthy_after=1, unhealthy_s=0.001, probe_s=60, backoff_s_initial=0.01, backoff_s_max=0.01, deadline_s=0.2
    )
    broker.fault = lambda _: Fault.REFUSE
    async with Producer(url, limits=limits) as producer:
        with pytest.raises(Unavailable):
            await producer.create_session("s")
        assert producer.health is HealthState.UNHEALTHY
        arrived = len(broker.requests)
        with pytest.raises(Unhealthy) as caught:
            async with producer.generation("s", "g"):
                raise AssertionError("not reached")
        assert caught.value.retryable
        assert len(broker.requests) == arrived, "nothing was sent"


async def test_unhealthy_broker_is_probed_without_any_work_to_do(url: str, broker: ModelBroker) -> None:
    broker.fault = lambda _: Fault.RESET
    async with Producer(url, limits=SOON) as producer:
        await refused_at_once(producer)
        broker.fault = lambda _: None
        await until(lambda: producer.health is not HealthState.UNHEALTHY)


async def test_batches_go_one_at_a_time_while_attempts_keep_failing(url: str, broker: ModelBroker) -> None:
    """R24: what fails then fails alone; and several go at once again after some answers in a row."""
    limits = Limits(
        degraded_after=2,
        recovered_after=4,
        backoff_s_initial=0.01,
        backoff_s_max=0.02,
        backoff_s_jitter=0.005,
        batch_chunks_max=1,
    )
    async with Producer(url, limits=limits, upload="post") as producer, producer.generation("s", "g") as generation:
        await generation.write(0)
        await generation.flush()
        broker.fault = lambda _: Fault.REFUSE
        for n in range(1, 20):
            await generation.write(n)
        await until(lambda: producer.health is HealthState.DEGRADED)
        await until(lambda: broker.concurrent == 0)
        broker.concurrent_max = 0
        broker.delay_s = lambda _: 0.005
        broker.fault = lambda _: None
        await until(lambda: generation.durable_chunks >= 3)
        assert broker.concurrent_max == 1
        await generation.flush()
        await until(lambda: producer.health is HealthState.HEALTHY)
        for n in range(20, 60):
            await generation.write(n)
        await generation.flush()
        assert broker.concurrent_max > 1
    assert broker.log("s", "g") == list(range(60))


async def test_heartbeat_meets_an_unhealthy_broker_and_the_generation_lives_on(broker: ModelBroker) -> None:
    async with serving(broker) as url, Producer(url, limits=SOON) as producer:
        async with producer.generation("s", "g", lease_ms=1000) as generation:
            await generation.write("x")
            await generation.flush()
            broker.fault = lambda _: Fault.REFUSE
            await until(lambda: producer.health is HealthState.UNHEALTHY)
            broker.fault = lambda _: None
            await generation.write("y")
        assert broker.log("s", "g") == ["x", "y"]
