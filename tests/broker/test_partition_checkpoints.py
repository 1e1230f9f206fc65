"""broker/partition.py: what a checkpoint stores, what it does not lose, and what waits for the room that it makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import limits
from broker.core.entry import Entry, Kind
from broker.core.outcome import Result
from broker.errors import EngineStopped, Overloaded, Unavailable
from broker.partition import Partition
from broker.store import Snapshot
from consumer.wire import Code
from tests.broker.core.entries import (
    PATH,
    SESSION,
    append,
    chunks,
    create,
    create_session,
    delete,
    expire_lease,
    finish,
    heartbeat,
    stop,
)
from tests.broker.held import READ_BYTES, HeldJournal, HeldStore, blocked, content, opened
from tests.eventually import until

SMALL = 20_000


async def under_way(partition: Partition, store: HeldStore) -> asyncio.Future[None]:
    """A checkpoint that the store is about to say it has written, once the test lets it."""
    store.write_gate.shut()
    checkpoint = asyncio.ensure_future(partition.checkpoint())
    await store.write_gate.reached.wait()
    return checkpoint


@asynccontextmanager
async def full(store: HeldStore, journal: HeldJournal | None = None) -> AsyncIterator[Partition]:
    """A partition with as much in memory as may be between checkpoints, while none can be written."""
    journal = journal or HeldJournal()
    async with opened(journal, store, checkpoint_bytes=SMALL, checkpoint_bytes_max=SMALL) as partition:
        store.write_gate.shut()
        await partition.propose(create_session())
        await partition.propose(chunks("g", 0, b"1"))
        await partition.propose(create())
        record = b'"%b"' % (b"x" * 4000)
        while partition.unstored_bytes < SMALL:
            await partition.propose(append(record))
        yield partition


# -- checkpoints -----------------------------------------------------------------------------------------------------


async def test_checkpoint_moves_what_was_applied_into_the_store_and_trims_the_journal() -> None:
    journal, store = HeldJournal(), HeldStore()
    async with opened(journal, store) as partition:
        await partition.propose(create(b"1"))
        await partition.propose(append(b"2", producer=("p", 0, 0)))
        assert partition.unstored_bytes > 0
        await partition.checkpoint()
        assert partition.unstored_bytes == 0
        assert journal.trimmed_index == 2
        stream = await partition.stream(PATH)
        assert stream is not None
        assert [page.data for page in await store.read(stream.incarnation, 0, READ_BYTES)] == [b"1,2"]


async def test_checkpoint_that_fails_loses_nothing_and_is_written_next_time() -> None:
    journal, store = HeldJournal(), HeldStore()
    snapshot = Snapshot(SESSION, 1, 1, [(0, "m", b"{}")])
    taken = [[snapshot], []]
    async with opened(journal, store) as partition:

        async def take() -> list[Snapshot]:
            return taken.pop(0) if taken else []

        partition.snapshots = take
        await partition.propose(create(b"1"))
        await partition.propose(create(b"1", path="gone"))
        await partition.propose(delete(path="gone"))
        unstored = partition.unstored_bytes
        store.write_errors.append(Unavailable("the disk is full"))
        with pytest.raises(Unavailable, match="the disk is full"):
            await partition.checkpoint()
        assert partition.unstored_bytes == unstored
        assert journal.trimmed_index == 0
        await partition.propose(append(b"2"))
        assert await content(partition) == b"1,2"
        await partition.checkpoint()
        assert await content(partition) == b"1,2"
        assert journal.trimmed_index == 4
        (checkpoint,) = store.written
        assert checkpoint.snapshots == [snapshot]
        assert [path for path, _ in checkpoint.ended] == ["gone"]


async def test_change_during_a_checkpoint_that_fails_is_not_covered_by_what_it_had_in_hand() -> None:
    store = HeldStore()
    async with opened(HeldJournal(), store, rows_max=0) as partition:
        await partition.propose(create(b"1"))
        store.write_errors.append(Unavailable("the disk is full"))
        checkpoint = await under_way(partition, store)
        await partition.propose(append(b"2", producer=("p", 0, 0)))
        store.write_gate.open()
        with pytest.raises(Unavailable):
            await checkpoint
        await partition.checkpoint()
        assert await content(partition) == b"1,2"
        outcome = await partition.propose(append(b"3", producer=("p", 0, 1)))
        assert (outcome.result, outcome.next_position) == (Result.ACCEPTED, 3)


async def test_checkpoint_whose_caller_is_cancelled_is_written_once() -> None:
    """As that of a snapshot's maker when the broker stops: the store finishes what it has begun to write."""
    store = HeldStore()
    async with opened(HeldJournal(), store) as partition:
        await partition.propose(create(b"1"))
        caller = await under_way(partition, store)
        caller.cancel()
        await asyncio.wait((caller,))
        await partition.propose(append(b"2"))
        store.write_gate.open()
        await partition.checkpoint()
        stored = [(page.start, page.end) for each in store.written for _, pages in each.pages for page in pages]
        assert stored == [(0, 1), (1, 2)]


async def test_checkpoint_that_failed_is_tried_again_by_itself() -> None:
    store = HeldStore()
    store.write_errors.append(Unavailable("the disk is full"))
    async with opened(HeldJournal(), store, checkpoint_interval_s=0.01) as partition:
        await partition.propose(create(b"1"))
        await until(lambda: store.written)
        assert partition.counts.checkpoint_failures == 1
        assert partition.healthy


async def test_checkpoint_of_unknown_fate_stops_the_engine() -> None:
    store = HeldStore()
    store.write_errors.append(EngineStopped("fsync failed"))
    async with opened(HeldJournal(), store, checkpoint_interval_s=0.01) as partition:
        await partition.propose(create(b"1"))
        await until(lambda: not partition.healthy)
        with pytest.raises(EngineStopped, match="fsync failed"):
            await partition.propose(append(b"2"))


async def test_write_during_a_checkpoint_belongs_to_the_next_one() -> None:
    """CORE 5: the checkpoint freezes by swapping the map of changed rows between two commits."""
    store = HeldStore()
    async with opened(HeldJournal(), store) as partition:
        await partition.propose(create(b"1"))
        checkpoint = await under_way(partition, store)
        await partition.propose(append(b"2"))
        assert await content(partition) == b"1,2"
        store.write_gate.open()
        await checkpoint
        assert await content(partition) == b"1,2"
        await partition.checkpoint()
        assert [written.head.applied_index for written in store.written] == [1, 2]
        assert await content(partition) == b"1,2"


async def test_stream_deleted_while_its_pages_are_being_stored_is_swept_later() -> None:
    store = HeldStore()
    async with opened(HeldJournal(), store) as partition:
        await partition.propose(create(b"1"))
        stream = await partition.stream(PATH)
        assert stream is not None
        checkpoint = await under_way(partition, store)
        await partition.propose(delete())
        await partition.propose(create(b"new"))
        store.write_gate.open()
        await checkpoint
        assert await content(partition) == b"new"
        await partition.checkpoint()
        while await partition.sweep():
            pass
        assert await content(partition) == b"new"
        assert await store.read(stream.incarnation, 0, READ_BYTES) == []


async def test_two_checkpoints_at_once_are_written_one_after_the_other() -> None:
    """Else the second takes the first one's frozen rows for stored, and they may be forgotten too early."""
    store = HeldStore()
    async with opened(HeldJournal(), store, rows_max=0) as partition:
        await partition.propose(create(b"1"))
        first = await under_way(partition, store)
        await partition.propose(append(b"2"))
        second = asyncio.ensure_future(partition.checkpoint())
        assert await blocked(second)
        assert len(store.written) == 1
        store.write_gate.open()
        await asyncio.gather(first, second)
        assert await content(partition) == b"1,2"


async def test_close_during_a_checkpoint_lets_it_finish_and_stores_the_rest() -> None:
    """A write that has begun goes on in its thread; writing the same pages again beside it would double them."""
    store = HeldStore()
    journal = HeldJournal()
    partition = Partition(journal, store, checkpoint_interval_s=0.01)
    await partition.open()
    store.write_gate.shut()
    await partition.propose(create(b"1"))
    await store.write_gate.reached.wait()
    await partition.propose(append(b"2"))
    closing = asyncio.ensure_future(partition.aclose())
    assert await blocked(closing)
    store.write_gate.open()
    await closing
    assert [written.head.applied_index for written in store.written] == [1, 2]
    assert [[page.data for page in pages] for written in store.written for _, pages in written.pages] == [
        [b"1"],
        [b"2"],
    ]
    assert partition.healthy


async def test_close_with_proposals_in_flight_answers_them() -> None:
    journal = HeldJournal(held=True)
    async with opened(journal, HeldStore()) as partition:
        answer = partition.propose_nowait(create(b"1"))
    assert (await answer).result is Result.CREATED


async def test_close_may_be_called_again() -> None:
    async with opened() as partition:
        await partition.propose(create())
        await partition.aclose()


# -- back-pressure ---------------------------------------------------------------------------------------------------


async def test_append_waits_for_room_and_goes_on_when_a_checkpoint_made_it() -> None:
    store = HeldStore()
    async with full(store) as partition:
        answer = asyncio.ensure_future(partition.propose(append(b"1")))
        await store.write_gate.reached.wait()
        assert await blocked(answer)
        store.write_gate.open()
        assert (await answer).result is Result.ACCEPTED


async def test_append_that_finds_no_room_in_time_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 3: appends wait, then get 503."""
    monkeypatch.setattr(limits, "BACK_PRESSURE_WAIT_S", 0.05)
    async with full(HeldStore()) as partition:
        with pytest.raises(Overloaded) as refused:
            await partition.propose(append(b"1"))
        assert refused.value.retry_after_ms
        assert partition.in_flight == 0


@pytest.mark.parametrize(
    "entry",
    [heartbeat("g"), stop("g"), finish("g", 1), expire_lease("g", 9, 9)],
    ids=lambda entry: Kind(entry.kind).name,
)
async def test_what_keeps_or_ends_a_generation_has_a_reserve(entry: Entry) -> None:
    """CORE 5: the memory bound stops data only. Otherwise back-pressure kills living generations."""
    async with full(HeldStore()) as partition:
        async with asyncio.timeout(1):
            assert (await partition.propose(entry)).code is None


async def test_those_who_wait_for_room_are_told_when_the_engine_stops() -> None:
    store, journal = HeldStore(), HeldJournal()
    async with full(store, journal) as partition:
        answer = asyncio.ensure_future(partition.propose(append(b"1")))
        await blocked(answer)
        journal.stop(EngineStopped("fsync failed"))
        with pytest.raises(EngineStopped):
            await answer


async def test_what_a_checkpoint_has_in_hand_still_counts_as_memory() -> None:
    """DESIGN 3: what is applied and not yet in the store is bounded, not twice the bound."""
    store = HeldStore()
    async with opened(HeldJournal(), store) as partition:
        await partition.propose(create(b"1"))
        unstored = partition.unstored_bytes
        checkpoint = await under_way(partition, store)
        assert partition.unstored_bytes == unstored
        store.write_gate.open()
        await checkpoint
        assert partition.unstored_bytes == 0


async def test_refusals_alone_never_fill_the_memory() -> None:
    """Refusals that went through the journal change no row; they must be trimmed and forgotten all the same."""
    journal = HeldJournal()
    journal.lone_proposer = False
    async with opened(journal, checkpoint_bytes=2_000, checkpoint_bytes_max=4_000) as partition:
        async with asyncio.timeout(10):
            for _ in range(100):
                assert (await partition.propose(append(b"1"))).code is Code.STREAM_NOT_FOUND
        await until(lambda: journal.trimmed_index > 80)
