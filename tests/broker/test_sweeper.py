"""broker/sweeper.py: what only time brings about. The monotonic clock and the partition's time are the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from broker import limits, sweeper as module
from broker.core.entry import Entry, GenerationOptions, Kind, encode_options
from broker.core.outcome import Result
from broker.core.state import Generation
from broker.errors import EngineStopped, Unavailable
from broker.partition import Partition
from broker.sweeper import TICK_S, Sweeper
from consumer.wire import Code, Reason, Status
from tests.broker.core.entries import (
    PATH,
    SESSION,
    chunks,
    create,
    create_session,
    delete_session,
    finish,
    heartbeat,
    stop,
    touch,
)
from tests.broker.held import HeldJournal, HeldStore, blocked, opened
from tests.eventually import until

LEASE_S = limits.LEASE_MS / 1000


class Watch:
    """A sweeper with a clock, and the partition that it sweeps."""

    def __init__(self, partition: Partition, journal: HeldJournal, store: HeldStore) -> None:
        self.partition = partition
        self.journal = journal
        self.store = store
        self.now_s = 1000.0
        self.sweeper = self.restarted()

    def restarted(self) -> Sweeper:
        """The sweeper of another life of the process: it knows nothing of what was seen before."""
        self.sweeper = Sweeper(self.partition, lambda: self.now_s)
        return self.sweeper

    async def pass_time(self, seconds: float, step_s: float = TICK_S) -> None:
        """Let so much time pass, with a look every `step_s`."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + step_s)
            await self.sweeper.end_leases()

    async def do(self, *entries: Entry) -> None:
        for entry in entries:
            outcome = await self.partition.propose(entry)
            assert outcome.changed, outcome

    async def generation(self, generation_id: str = "g") -> Generation:
        generation = await self.partition.generation(SESSION, generation_id)
        assert generation is not None
        return generation

    async def status(self, generation_id: str = "g") -> tuple[str, str]:
        generation = await self.generation(generation_id)
        return generation.status, generation.reason

    def proposed(self, kind: Kind) -> int:
        return sum(entry.kind == kind for entry in self.journal.proposed)


@asynccontextmanager
async def watching() -> AsyncIterator[Watch]:
    journal, store = HeldJournal(), HeldStore()
    async with opened(journal, store) as partition:
        yield Watch(partition, journal, store)


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """A session with one open generation, which the sweeper has seen."""
    async with watching() as watch:
        await watch.do(create_session(), chunks("g", 0, b"1"))
        await watch.sweeper.end_leases()
        yield watch


OPEN = (Status.STREAMING.value, "")
DEAD = (Status.FAILED.value, Reason.LEASE_EXPIRED.value)


# -- leases ----------------------------------------------------------------------------------------------------------


async def test_generation_of_a_dead_producer_ends_within_one_lease_of_its_due_time(watch: Watch) -> None:
    await watch.pass_time(LEASE_S - TICK_S)
    assert await watch.status() == OPEN
    await watch.pass_time(LEASE_S)
    assert await watch.status() == DEAD
    generation = await watch.generation()
    assert generation.ended_ms
    assert not watch.partition.open_sessions


async def test_shortest_lease_ends_in_time_too() -> None:
    async with watching() as watch:
        await watch.do(create_session(), _leased("g", limits.LEASE_MS_MIN))
        await watch.pass_time(2 * limits.LEASE_MS_MIN / 1000)
        assert await watch.status() == DEAD


async def test_producer_that_comes_back_too_late_runs_into_the_fence(watch: Watch) -> None:
    await watch.pass_time(2 * LEASE_S)
    for late in (chunks("g", 1, b"2"), finish("g", 1), heartbeat("g")):
        outcome = await watch.partition.propose(late)
        assert (outcome.code, outcome.epoch) == (Code.FENCED, 2)
    copy = await watch.partition.propose(chunks("g", 0, b"1"))
    assert copy.result is Result.DUPLICATE
    await watch.do(chunks("next", 0, b"1"))
    assert (await watch.generation("next")).fence == 3


@pytest.mark.parametrize("sign_of_life", ["heartbeat", "chunks"])
async def test_sign_of_life_in_time_keeps_a_generation_open(watch: Watch, sign_of_life: str) -> None:
    for seq in range(1, 8):
        await watch.pass_time(0.9 * LEASE_S)
        await watch.do(heartbeat("g") if sign_of_life == "heartbeat" else chunks("g", seq, b"1"))
    assert await watch.status() == OPEN
    await watch.pass_time(2 * LEASE_S)
    assert await watch.status() == DEAD


async def test_refused_or_repeated_batch_is_no_sign_of_life(watch: Watch) -> None:
    """CORE 4: a refusal or a duplicate changes nothing, no lease either."""
    for _ in range(8):
        await watch.pass_time(LEASE_S / 4)
        for entry in (chunks("g", 0, b"1"), chunks("g", 5, b"1")):
            assert not (await watch.partition.propose(entry)).changed
    assert await watch.status() == DEAD


@pytest.mark.parametrize("slept_s", [LEASE_S, 10 * LEASE_S, 1_000_000.0])
async def test_sweeper_that_slept_looks_twice_before_it_ends_anything(watch: Watch, slept_s: float) -> None:
    """A stalled process, or a laptop that woke up: its producers must get to say that they live."""
    await watch.pass_time(slept_s, step_s=slept_s)
    assert await watch.status() == OPEN
    await watch.do(heartbeat("g"))
    await watch.pass_time(0.9 * LEASE_S)
    assert await watch.status() == OPEN


async def test_renewal_that_was_on_its_way_when_the_sweeper_looked_counts(watch: Watch) -> None:
    watch.journal.held = True
    renewing = watch.partition.propose_nowait(heartbeat("g"))
    watch.now_s += LEASE_S
    looking = asyncio.create_task(watch.sweeper.end_leases())
    await until(lambda: watch.proposed(Kind.NOOP))
    assert await blocked(looking)
    watch.now_s += LEASE_S
    watch.journal.held = False
    watch.journal.commit()
    await asyncio.gather(renewing, looking)
    await watch.pass_time(0.9 * LEASE_S)
    assert await watch.status() == OPEN


async def test_renewal_that_overtakes_the_end_wins(watch: Watch) -> None:
    await watch.pass_time(LEASE_S - TICK_S)
    watch.journal.held = True
    renewing = watch.partition.propose_nowait(heartbeat("g"))
    watch.now_s += LEASE_S
    ending = asyncio.create_task(watch.sweeper.end_leases())
    await until(lambda: watch.proposed(Kind.LEASE_EXPIRE))
    watch.journal.held = False
    watch.journal.commit()
    await asyncio.gather(renewing, ending)
    assert await watch.status() == OPEN


async def test_restart_counts_anew(watch: Watch) -> None:
    """CORE 6: neither a clock step nor an hour of downtime ends a living generation."""
    for _ in range(5):
        await watch.pass_time(0.9 * LEASE_S)
        watch.restarted()
    assert await watch.status() == OPEN
    await watch.pass_time(2 * LEASE_S)
    assert await watch.status() == DEAD


@pytest.mark.parametrize("step_ms", [365 * 24 * 3600 * 1000, -3600 * 1000])
async def test_step_of_the_wall_clock_changes_nothing(watch: Watch, step_ms: int) -> None:
    watch.journal.time_ms += step_ms
    await watch.pass_time(LEASE_S - TICK_S)
    assert await watch.status() == OPEN
    await watch.pass_time(LEASE_S)
    assert await watch.status() == DEAD


@pytest.mark.parametrize("end", [finish("g", 1), stop("g"), delete_session(), chunks("newer", 0, b"1")])
async def test_generation_that_ended_by_itself_is_not_ended_again(watch: Watch, end: Entry) -> None:
    await watch.pass_time(0.9 * LEASE_S)
    await watch.do(end)
    await watch.pass_time(0.9 * LEASE_S)
    assert watch.proposed(Kind.LEASE_EXPIRE) == 0


async def test_lanes_have_leases_of_their_own(watch: Watch) -> None:
    await watch.pass_time(LEASE_S / 2)
    await watch.do(chunks("other", 0, b"1", lane="side"))
    await watch.pass_time(0.7 * LEASE_S)
    assert [await watch.status(), await watch.status("other")] == [DEAD, OPEN]
    assert [session.open[0].generation_id for session in watch.partition.open_sessions.values()] == ["other"]


async def test_many_dead_generations_share_a_proof_and_end_together() -> None:
    async with watching() as watch:
        count = module.ENTRIES_MAX + 10
        for number in range(count):
            path = f"sessions/{number}"
            await watch.do(create_session(path=path), chunks("g", 0, b"1", path=path))
        await watch.pass_time(2 * LEASE_S)
        assert (len(watch.partition.open_sessions), watch.proposed(Kind.NOOP)) == (0, 1)
        assert watch.proposed(Kind.LEASE_EXPIRE) == count


async def test_sweeper_with_nothing_to_end_proposes_nothing(watch: Watch) -> None:
    await watch.do(finish("g", 1))
    before = len(watch.journal.proposed)
    await watch.pass_time(10 * LEASE_S)
    await watch.sweeper.clear_up()
    await watch.sweeper.look_at_sources()
    assert len(watch.journal.proposed) == before


def _leased(generation_id: str, lease_ms: int) -> Entry:
    """A batch 0 that asks for a lease of its own."""
    entry = chunks(generation_id, 0, b"1")
    options = msgspec.msgpack.decode(entry.options, type=GenerationOptions)
    return msgspec.structs.replace(entry, options=encode_options(msgspec.structs.replace(options, lease_ms=lease_ms)))


# -- streams whose time is over --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored"])
async def test_overdue_stream_is_taken_away_with_all_it_had(*, stored: bool) -> None:
    async with watching() as watch:
        await watch.do(create(b"1", ttl_s=1), create(b"1", path="stays"), create(b"1", path="later", ttl_s=100))
        if stored:
            await watch.partition.checkpoint()
        watch.journal.time_ms += 1_100
        await watch.sweeper.clear_up()
        await watch.partition.checkpoint()
        await watch.sweeper.clear_up()
        assert await watch.store.keys(b"s", b"", 10) == [b"slater", b"sstays"]
        assert watch.proposed(Kind.EXPIRE) == 1
        assert not await watch.store.sweep()


async def test_stream_that_only_the_store_knows_of_expires_too() -> None:
    """More streams than rows in memory: it is found by its stored deadline."""
    journal, store = HeldJournal(), HeldStore()
    async with opened(journal, store, rows_max=4) as partition:
        watch = Watch(partition, journal, store)
        for number in range(20):
            await watch.do(create(b"1", path=f"s{number}", ttl_s=1))
        await partition.checkpoint()
        journal.time_ms += 1_100
        await watch.sweeper.clear_up()
        await partition.checkpoint()
        assert await store.keys(b"s", b"", 50) == []


async def test_stream_that_was_renewed_stays() -> None:
    async with watching() as watch:
        await watch.do(create(b"1", ttl_s=1))
        await watch.partition.checkpoint()
        watch.journal.time_ms += 1_000
        await watch.do(touch())
        watch.journal.time_ms += 1_000
        await watch.sweeper.clear_up()
        assert await watch.partition.stream(PATH) is not None


async def test_more_overdue_streams_than_fit_one_round_go_in_the_next() -> None:
    async with watching() as watch:
        count = module.ENTRIES_MAX + 10
        for number in range(count):
            await watch.do(create(path=f"s{number}", ttl_s=1))
        watch.journal.time_ms += 1_100
        await watch.sweeper.clear_up()
        assert watch.proposed(Kind.EXPIRE) == module.ENTRIES_MAX
        await watch.sweeper.clear_up()
        assert watch.proposed(Kind.EXPIRE) == count


# -- a partition that refuses ----------------------------------------------------------------------------------------


async def test_sweeper_outlives_a_partition_that_refuses(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk for a while, say: what was due is done once it can be."""
    monkeypatch.setattr(module, "TICK_S", 0.001)
    watch.journal.held = True
    watch.now_s += LEASE_S
    running = asyncio.create_task(watch.sweeper.run())
    for _ in range(3):
        await until(lambda: watch.journal.waiting)
        watch.journal.refuse(Unavailable("disk full"))
    await until(lambda: watch.journal.waiting)
    assert "sweep put off: disk full" in caplog.text
    watch.journal.held = False
    watch.journal.commit()
    while watch.partition.open_sessions:
        watch.now_s += TICK_S
        await asyncio.sleep(0.001)
    assert await watch.status() == DEAD
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_sweeper_of_a_stopped_engine_does_nothing(watch: Watch) -> None:
    watch.journal.stop(EngineStopped("fsync failed"))
    before = len(watch.journal.proposed)
    await watch.pass_time(3 * LEASE_S)
    await watch.sweeper.clear_up()
    await watch.sweeper.look_at_sources()
    assert len(watch.journal.proposed) == before


async def test_lease_ends_in_time_while_clearing_up_is_held_up(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part has a loop of its own."""
    monkeypatch.setattr(module, "TICK_S", 0.001)
    reached = asyncio.Event()

    async def hang() -> bool:
        reached.set()
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(watch.partition, "sweep", hang)
    running = asyncio.create_task(watch.sweeper.run())
    await reached.wait()
    while watch.partition.open_sessions:
        watch.now_s += TICK_S
        await asyncio.sleep(0.001)
    assert watch.now_s <= 1000.0 + 2 * LEASE_S
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
