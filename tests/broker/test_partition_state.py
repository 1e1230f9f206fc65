"""broker/partition.py: rows that are not in memory, bugs that stop it, and what a restart makes of the journal."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from broker.core.entry import Entry, Kind
from broker.core.outcome import Result
from broker.errors import EngineStopped, Unavailable
from broker.journal import Commit
from broker.store import Head
from consumer.wire import Code
from tests.broker.core.entries import PATH, SESSION, append, chunks, create, create_session, finish, heartbeat, message
from tests.broker.core.replica import BEGIN_MS
from tests.broker.held import Gate, HeldJournal, HeldStore, blocked, content, opened, stamped
from tests.eventually import until

# -- rows ------------------------------------------------------------------------------------------------------------


async def test_commit_waits_until_its_rows_are_loaded_and_keeps_its_place() -> None:
    """DESIGN 3: state that is not in memory is loaded for a whole commit before it is applied."""
    store = HeldStore()
    async with opened(HeldJournal(), store, rows_max=0) as partition:
        await partition.propose(create())
        await partition.propose(append(b"1", producer=("p", 0, 0)))
        await partition.checkpoint()
        store.load_gate.shut()
        behind = partition.propose_nowait(append(b"2", producer=("p", 0, 1)))
        other = partition.propose_nowait(Entry(Kind.NOOP, ""))
        await store.load_gate.reached.wait()
        assert await blocked(behind)
        assert await blocked(other)
        store.load_gate.open()
        outcome = await behind
        assert (outcome.result, outcome.next_position, outcome.seq) == (Result.ACCEPTED, 2, 1)
        await other
        assert await content(partition) == b"1,2"


async def test_rows_that_were_forgotten_come_back_from_the_store() -> None:
    async with opened(rows_max=0) as partition:
        await partition.propose(create_session())
        await partition.propose(chunks("g", 0, b"1"))
        await partition.propose(finish("g", 1))
        await partition.checkpoint()
        generation = await partition.generation(SESSION, "g")
        assert generation is not None
        assert generation.status == "complete"
        assert (await partition.propose(chunks("g", 0, b"1"))).result is Result.DUPLICATE
        assert (await partition.propose(chunks("g", 2, b"2"))).code is Code.FENCED


async def test_load_that_began_before_a_change_never_covers_it() -> None:
    """Else a late retry of the first batch would find its generation never seen, and open a second answer.

    1. A heartbeat of g1 begins to load g1's row: there is none, g1 is open. The heartbeat itself is refused.
    2. g2 supersedes g1, whose end is now a row; it is stored, and memory is short.
    3. The load comes back with what was there before.
    """
    store, journal = HeldStore(), HeldJournal()
    async with opened(journal, store, rows_max=0) as partition:
        await partition.propose(create_session())
        await partition.propose(chunks("g1", 0, b"1"))
        await partition.checkpoint()
        await partition.propose(message("m"))
        journal.held, slow = True, store.load_gate
        slow.shut()
        beat = partition.propose_nowait(heartbeat("g1"))
        await slow.reached.wait()
        store.load_gate = Gate()
        journal.refuse(Unavailable("the disk is full"))
        with pytest.raises(Unavailable):
            await beat
        journal.held = False
        assert (await partition.propose(chunks("g2", 0, b"2"))).result is Result.ACCEPTED
        await partition.checkpoint()
        slow.open()
        await until(lambda: not partition._rows._loading)  # noqa: SLF001 -- the slow load is over
        assert (await partition.propose(chunks("g1", 0, b"1"))).result is Result.DUPLICATE


async def test_replay_of_more_rows_than_memory_may_hold_goes_through() -> None:
    """A commit needs a row that an earlier one left clean in memory, beside more new rows than there is room for."""
    first = [append(b"x", path="old")]
    second = [append(b"x", path=f"new/{number}") for number in range(20)]
    commits = [
        Commit(1, BEGIN_MS, stamped(first, 1)),
        Commit(2, BEGIN_MS, stamped([*second, append(b"x", path="old")], 2)),
    ]
    async with opened(HeldJournal(replayed=commits), rows_max=4) as partition:
        assert partition.healthy
        assert partition.applied_index == 22


# -- bugs stop the partition -----------------------------------------------------------------------------------------


async def test_entry_that_cannot_be_applied_stops_the_partition_and_is_named() -> None:
    """CORE 1: an exception in apply is a bug: skip nothing, name the index, tell those who wait."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create(b"1"))
        journal.held = True
        before = partition.propose_nowait(append(b"2"))
        poison = Entry(Kind.MOVED, PATH, boot=1, proposal=1)
        after = partition.propose_nowait(append(b"3"))
        mine, others = journal.waiting
        journal.waiting = []
        journal.deliver(mine, poison, others)
        assert (await before).result is Result.ACCEPTED
        with pytest.raises(EngineStopped, match="entry 3 cannot be applied"):
            await after
        assert not partition.healthy
        assert partition.applied_index == 2
        assert await content(partition) == b"1,2"
        with pytest.raises(EngineStopped, match="entry 3"):
            await partition.propose(append(b"4"))


async def test_entry_that_cannot_be_applied_stops_a_replay_and_is_named() -> None:
    commits = [Commit(1, BEGIN_MS, [Entry(Kind.MOVED, PATH, boot=1, proposal=1)]), Commit(2, BEGIN_MS, [])]
    with pytest.raises(EngineStopped, match="entry 1 cannot be applied"):
        async with opened(HeldJournal(replayed=commits)):
            pass


async def test_hole_in_the_journal_stops_the_partition() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create())
        journal.index += 1
        with pytest.raises(EngineStopped, match="the journal handed back 3 after 1"):
            await partition.propose(append(b"1"))


async def test_store_that_cannot_be_read_stops_the_partition_and_skips_nothing() -> None:
    store = HeldStore()
    store.load_errors.append(Unavailable("the store cannot be read"))
    async with opened(HeldJournal(), store) as partition:
        with pytest.raises(EngineStopped, match="the store cannot be read"):
            await partition.propose(create())
        assert partition.applied_index == 0


# -- restart ---------------------------------------------------------------------------------------------------------


async def test_restart_replays_what_the_store_has_not_got() -> None:
    """DESIGN 3: open the store, replay the rest through the same apply: also the refusals, and who is fenced."""
    entries = [
        create_session(),
        chunks("g1", 0, b"1"),
        chunks("g2", 0, b"2"),
        chunks("g1", 1, b"fenced"),
        chunks("g2", 1, b"3"),
    ]
    made = [replace(entry, nonce=5) if entry.kind == Kind.SESSION_CREATE else entry for entry in stamped(entries, 1)]
    async with opened(
        HeldJournal(replayed=[Commit(1, BEGIN_MS, made[:3]), Commit(4, BEGIN_MS, made[3:])])
    ) as partition:
        assert partition.applied_index == 5
        assert (await content(partition, SESSION)).count(b'"type":"chunk"') == 3
        assert (await partition.propose(chunks("g2", 1, b"3"))).result is Result.DUPLICATE
        assert (await partition.propose(chunks("g1", 1, b"1"))).code is Code.FENCED
        assert list(partition.open_sessions) == [SESSION]


async def test_replay_checkpoints_as_it_goes() -> None:
    """CORE 5: or a long journal would not fit into memory."""
    record = b'"%b"' % (b"x" * 3000)
    made = stamped([replace(create(), nonce=5), *[append(record) for _ in range(20)]], 1)
    commits = [Commit(number, BEGIN_MS, [entry]) for number, entry in enumerate(made, 1)]
    store = HeldStore()
    async with opened(HeldJournal(replayed=commits), store, checkpoint_bytes=10_000) as partition:
        assert len(store.written) > 3
        assert partition.unstored_bytes < 10_000
        assert await content(partition) == b",".join([record] * 20)


async def test_replay_asks_the_store_once_for_what_many_commits_need() -> None:
    """A node that begins anew has many streams to make: one wait for the store each would be most of its time."""
    made = stamped([replace(create(path=f"new/{number}"), nonce=number + 1) for number in range(20)], 1)
    commits = [Commit(number, BEGIN_MS, [entry]) for number, entry in enumerate(made, 1)]
    store = HeldStore()
    async with opened(HeldJournal(replayed=commits), store) as partition:
        assert partition.applied_index == 20
        assert store.loads == 1


async def test_stored_head_and_rows_are_of_the_same_index() -> None:
    store = HeldStore()
    async with opened(HeldJournal(), store) as partition:
        await partition.propose(create(b"1"))
        await partition.checkpoint()
        (checkpoint,) = store.written
        assert isinstance(checkpoint.head, Head)
        assert checkpoint.head.applied_index == 1
        assert checkpoint.head.time_ms == BEGIN_MS
