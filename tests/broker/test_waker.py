"""broker/waker.py: what it looks at unasked, beside a real partition in memory. Deliveries are tried in tests/e2e."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import limits
from broker.core.entry import Place
from broker.core.outcome import Result
from broker.core.state import Subscription, Wake
from broker.journal.memory import MemoryJournal
from broker.partition import Partition
from broker.signing import Signing
from broker.store.sqlite import SqliteStore
from broker.waker import Waker
from broker.wakes import wake_entry
from broker.webhooks import Webhooks
from consumer.wire import Code
from tests.broker.core.entries import SUBSCRIPTION, append, attempt, create, delete, fork, fork_ref, link, subscribe
from tests.eventually import eventually

NEVER_S = 3600.0


@pytest.fixture
async def partition() -> AsyncIterator[Partition]:
    made = Partition(MemoryJournal(), SqliteStore(None), checkpoint_interval_s=NEVER_S)
    await made.open()
    yield made
    await made.aclose()


def waker_of(partition: Partition) -> Waker:
    signing = Signing()
    signing.open()
    return Waker(partition, signing, Webhooks(signing, local=True))


@asynccontextmanager
async def running(partition: Partition) -> AsyncIterator[Waker]:
    """A waker that starts now: as after a crash, it has seen nothing of what is there."""
    waker = waker_of(partition)
    task = asyncio.create_task(waker.run())
    try:
        yield waker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def subscription(partition: Partition) -> Subscription:
    return partition.subscriptions[SUBSCRIPTION]


async def subscribed(partition: Partition, *places: Place, pattern: str = "a/*", complete: bool = True) -> None:
    """A pull-wake subscription."""
    await partition.propose(subscribe(wake_stream="wake", pattern=pattern))
    await partition.propose(link(*places, complete=complete))


async def links(partition: Partition) -> dict[str, int]:
    return {known.path: known.acked for known in subscription(partition).links}


async def wake(partition: Partition) -> Wake | None:
    return subscription(partition).wake


async def test_stream_that_comes_to_match_is_linked_before_its_content_and_wakes(partition: Partition) -> None:
    """PROTOCOL 6.2."""
    async with running(partition):
        await subscribed(partition)
        await partition.propose(create(path="a/empty"))
        await partition.propose(create(b"1", b"2", path="a/1"))
        await partition.propose(create(b"1", path="b/1"))
        held = await eventually(lambda: wake(partition))
        assert held is not None
        assert held.path == "a/1"
        assert await links(partition) == {"a/1": 0}
        await partition.propose(append(b"3", path="a/empty"))
        assert await eventually(lambda: has_links(partition, {"a/1": 0, "a/empty": 0}))


async def has_links(partition: Partition, expected: dict[str, int]) -> bool:
    return await links(partition) == expected


async def test_fork_that_matches_is_linked_where_it_parts_from_its_source(partition: Partition) -> None:
    async with running(partition):
        await subscribed(partition)
        source = (await partition.propose(create(b"1", b"2", path="source"))).stream
        assert source is not None
        await partition.propose(fork_ref("a/fork", 9, path="source"))
        lineage = (("source", source.incarnation, 2),)
        await partition.propose(fork(b"3", path="a/fork", child=9, lineage=lineage, source_path="source"))
        assert await eventually(lambda: has_links(partition, {"a/fork": 2}))


async def test_stream_that_a_crash_left_unlinked_is_found_at_the_start(partition: Partition) -> None:
    """Its content was durable, the link was not yet: nothing but a look at the streams can tell."""
    await subscribed(partition)
    await partition.propose(create(b"1", path="a/stored"))
    await partition.checkpoint()
    await partition.propose(create(b"1", path="a/fresh"))
    await partition.propose(create(path="a/empty"))
    async with running(partition):
        assert await eventually(lambda: has_links(partition, {"a/stored": 0, "a/fresh": 0}))
        assert await eventually(lambda: wake(partition))


async def test_backfill_that_a_crash_cut_short_is_taken_up_again(partition: Partition) -> None:
    """Those streams were there before the subscription: they are linked at their tails."""
    await partition.propose(create(b"1", path="a/old"))
    await subscribed(partition, complete=False)
    async with running(partition):
        assert await eventually(lambda: has_links(partition, {"a/old": 1}))
        assert await eventually(lambda: is_linked(partition))
        assert await wake(partition) is None


async def is_linked(partition: Partition) -> bool:
    return subscription(partition).linked


async def test_work_that_waited_through_a_crash_wakes_at_the_start(partition: Partition) -> None:
    outcome = await partition.propose(create(b"1", path="a/1"))
    assert outcome.stream is not None
    await subscribed(partition, ("a/1", outcome.stream.incarnation, 0))
    async with running(partition):
        assert await eventually(lambda: wake(partition))


@asynccontextmanager
async def full(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Waker]:
    """A subscription with as many links as it may have: `a/1` and `a/2`."""
    monkeypatch.setattr(limits, "LINKS_MAX", 2)
    async with running(partition) as waker:
        await subscribed(partition)
        for path in ("a/1", "a/2"):
            await partition.propose(create(b"1", path=path))
        assert await eventually(lambda: has_links(partition, {"a/1": 0, "a/2": 0}))
        yield waker


async def test_stream_beyond_the_bound_is_refused_and_counted(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with full(partition, monkeypatch) as waker:
        await partition.propose(create(b"1", path="a/3"))
        assert await eventually(lambda: has_refused(waker, 1))
        assert await links(partition) == {"a/1": 0, "a/2": 0}


async def has_refused(waker: Waker, count: int) -> bool:
    return waker.counts.links_refused == count


async def test_link_of_a_stream_that_is_no_more_makes_room(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with full(partition, monkeypatch) as waker:
        await partition.propose(delete(path="a/1"))
        await partition.propose(create(b"1", path="a/3"))
        assert await eventually(lambda: has_links(partition, {"a/2": 0, "a/3": 0}))
        assert waker.counts.links_refused == 0


async def test_wake_event_that_is_appended_again_is_a_duplicate(partition: Partition) -> None:
    """CORE 9: the subscription is the producer, so a retry after a crash doubles nothing."""
    await partition.propose(create(path="wake"))
    for generation in (1, 2):
        held = Wake("w", "a/1", 5, 6)
        told = Subscription(7, SUBSCRIPTION, b"", 0, "pull-wake", 1_000, wake_stream="wake", generation=generation)
        results = [(await partition.propose(wake_entry(told, held))).result for _ in range(2)]
        assert results == [Result.ACCEPTED, Result.DUPLICATE]
    late = Subscription(7, SUBSCRIPTION, b"", 0, "pull-wake", 1_000, wake_stream="wake", generation=1)
    assert (await partition.propose(wake_entry(late, Wake("w", "a/1", 5, 6)))).code is Code.FENCED
    stream = await partition.stream("wake")
    assert stream is not None
    assert stream.tail == 2


async def test_attempt_of_a_process_that_died_is_followed_when_it_is_due(partition: Partition) -> None:
    outcome = await partition.propose(create(b"1", path="a/1"))
    assert outcome.stream is not None
    await subscribed(partition, ("a/1", outcome.stream.incarnation, 0))
    await partition.propose(create(path="wake"))
    await partition.propose(attempt(1, 0, ("a/1", outcome.stream.incarnation, 1), delay_ms=50))
    async with running(partition):
        assert await eventually(lambda: is_delivered(partition))
        held = await wake(partition)
        assert held is not None
        assert held.attempt == 1


async def is_delivered(partition: Partition) -> bool:
    held = await wake(partition)
    return held is not None and held.next_attempt_ms is None


async def test_append_asks_nothing_while_there_are_no_subscriptions(partition: Partition) -> None:
    class Stranger:
        def changed(self, subscription_id: str) -> None:
            raise AssertionError(subscription_id)

        def moved(self, path: str, incarnation: int, start: int) -> None:
            raise AssertionError(path, incarnation, start)

    partition.subscribers = Stranger()
    assert (await partition.propose(create(b"1", path="a/1"))).result is Result.CREATED


@pytest.mark.parametrize("attempts", [0, 1, 5, 6, 40, 10_000])
async def test_delay_grows_from_a_second_to_a_minute(partition: Partition, attempts: int) -> None:
    """PROTOCOL 7.1."""
    expected_ms = min(1_000 * 2 ** min(attempts, 20), 60_000)
    waker = waker_of(partition)
    delays_ms = {waker._delay_ms(attempts) for _ in range(50)}  # noqa: SLF001 -- what it proposes
    assert all(0.8 * expected_ms <= delay_ms <= 1.2 * expected_ms for delay_ms in delays_ms)
    assert len(delays_ms) > 10
