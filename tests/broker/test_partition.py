"""broker/partition.py: what is told when, over a journal and a store that a test can hold at any point.

The store is the real one, in memory; `HeldStore` only makes it wait or fail. `HeldJournal` is a journal whose commits
the test decides: what comes back, when, and in how many pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from msgspec.structs import replace

from broker import limits
from broker.core.entry import Entry, Kind
from broker.core.outcome import Outcome, Result
from broker.core.page import Page, json_page
from broker.core.state import Key, Row
from broker.errors import Diverged, EngineStopped, Overloaded, Unavailable
from broker.journal import Commit, Foresee, Refused
from broker.journal.memory import MemoryJournal
from broker.partition import Partition
from broker.store import Checkpoint, Head, Snapshot
from broker.store.sqlite import SqliteStore
from consumer.wire import Code, Durability
from tests.broker.core.entries import (
    PATH,
    SESSION,
    append,
    chunks,
    close,
    create,
    create_session,
    delete,
    delete_session,
    expire_lease,
    finish,
    heartbeat,
    message,
    stop,
)
from tests.broker.core.replica import BEGIN_MS

NEVER_S = 3600.0
READ_BYTES = 1 << 20


class HeldJournal:
    """A journal in the hands of a test: proposals wait in `waiting` until it commits or refuses them."""

    durability: Durability = Durability.MEMORY
    lone_proposer: bool = True
    identity: bytes = b""
    synchronous: bool = False

    def __init__(self, *, held: bool = False, replayed: Sequence[Commit] = ()) -> None:
        self.held = held
        self.waiting: list[Entry] = []
        self.told_applied: list[Outcome] = []
        self.mark_at_open = b""
        self.proposed: list[Entry] = []
        self.time_ms = BEGIN_MS
        self.index = 0
        self.trimmed_index = 0
        self._replayed = replayed
        self._deliver: Callable[[Commit | Refused], None] | None = None
        self._stopped: Callable[[Exception], None] | None = None

    async def open(self, applied_index: int, applied_time_ms: int, mark: bytes = b"") -> None:
        self.mark_at_open = mark
        self.index = applied_index
        self.time_ms = max(self.time_ms, applied_time_ms)

    async def replay(self, foresee: Foresee | None = None) -> AsyncIterator[Commit]:
        if foresee is not None and self._replayed:
            await foresee([entry for commit in self._replayed for entry in commit.entries])
        for commit in self._replayed:
            self.index = commit.first_index + len(commit.entries) - 1
            yield commit

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:
        self._deliver, self._stopped = deliver, stopped

    def propose(self, entry: Entry) -> None:
        self.waiting.append(entry)
        self.proposed.append(entry)
        if not self.held:
            asyncio.get_running_loop().call_soon(self.commit)

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        assert commit.first_index + len(commit.entries) - 1 == self.index
        self.told_applied += outcomes

    def mark(self) -> bytes:
        return b"at %d" % self.index

    async def catch_up(self) -> bool:
        return False

    lag_s = 0.0
    events: ClassVar[dict[str, int]] = {"seen": 1}

    def trim(self, index: int) -> None:
        self.trimmed_index = index

    def now_ms(self) -> int:
        return self.time_ms

    async def aclose(self) -> None:
        self.commit()

    def commit(self, count: int | None = None) -> None:
        """Hand back the oldest `count` proposals, durable."""
        entries, self.waiting = self.waiting[:count], self.waiting[count or len(self.waiting) :]
        self.deliver(*entries)

    def deliver(self, *entries: Entry) -> None:
        """Hand these back, whoever proposed them."""
        if entries:
            assert self._deliver is not None
            commit = Commit(self.index + 1, self.time_ms, entries)
            self.index += len(entries)
            self._deliver(commit)

    def refuse(self, error: Exception) -> None:
        """Nothing that waits was or will be written."""
        entries, self.waiting = self.waiting, []
        assert self._deliver is not None
        self._deliver(Refused(entries, error))

    def stop(self, error: Exception) -> None:
        """The fate of what waits is unknown."""
        assert self._stopped is not None
        self._stopped(error)


class Gate:
    """Where a test stops whoever comes by."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()
        self.reached.clear()

    def open(self) -> None:
        self._open.set()

    async def passage(self) -> None:
        self.reached.set()
        await self._open.wait()


class HeldStore(SqliteStore):
    """The real store in memory. Its answers wait at a gate: they are from before whatever the test then does."""

    def __init__(self) -> None:
        super().__init__(None)
        self.load_gate, self.read_gate, self.write_gate = Gate(), Gate(), Gate()
        self.load_errors: list[Exception] = []
        self.loads = 0
        self.write_errors: list[Exception] = []
        self.written: list[Checkpoint] = []

    async def load(self, keys: Iterable[Key]) -> dict[Key, Row | None]:
        if self.load_errors:
            raise self.load_errors[0]
        self.loads += 1
        rows = await super().load(keys)
        await self.load_gate.passage()
        return rows

    async def read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        pages = await super().read(incarnation, position, bytes_max)
        await self.read_gate.passage()
        return pages

    async def write(self, checkpoint: Checkpoint) -> None:
        error = self.write_errors.pop(0) if self.write_errors else None
        if error is None:
            await super().write(checkpoint)
            self.written.append(checkpoint)
        await self.write_gate.passage()
        if error is not None:
            raise error


@asynccontextmanager
async def opened(
    journal: HeldJournal | MemoryJournal | None = None,
    store: SqliteStore | None = None,
    *,
    checkpoint_interval_s: float = NEVER_S,
    checkpoint_bytes: int = limits.CHECKPOINT_BYTES,
    checkpoint_bytes_max: int = limits.CHECKPOINT_BYTES_MAX,
    rows_max: int = limits.ROWS_MAX,
) -> AsyncIterator[Partition]:
    """A partition that checkpoints when it is told to, unless the test says otherwise."""
    journal = journal or HeldJournal()
    partition = Partition(
        journal,
        store or SqliteStore.in_memory(),
        checkpoint_interval_s=checkpoint_interval_s,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_bytes_max=checkpoint_bytes_max,
        rows_max=rows_max,
    )
    try:
        await partition.open()
        yield partition
    finally:
        if isinstance(journal, HeldJournal):
            journal.held = False
        if isinstance(store, HeldStore):
            for gate in (store.load_gate, store.read_gate, store.write_gate):
                gate.open()
        await partition.aclose()


async def until(fact: Callable[[], object]) -> None:
    """Let the others run until it is so."""
    async with asyncio.timeout(10):
        while not fact():  # noqa: ASYNC110 -- most facts here have no event that could be waited for
            await asyncio.sleep(0.001)


async def blocked(task: asyncio.Future[Outcome] | asyncio.Task[None]) -> bool:
    """Whether the task still waits once everybody else has run as far as they can."""
    for _ in range(50):
        await asyncio.sleep(0)
    return not task.done()


async def content(partition: Partition, path: str = PATH, position: int = 0) -> bytes:
    """All data of the stream from `position` on, page by page."""
    data: list[bytes] = []
    while True:
        stream = await partition.stream(path)
        assert stream is not None
        page = await partition.read(path, stream, position, READ_BYTES)
        if page is None:
            assert position == stream.tail
            return b",".join(data)
        assert page.start == position
        data.append(page.data)
        position = page.end


# -- nothing before it is durable ------------------------------------------------------------------------------------


async def test_proposal_is_answered_and_shown_only_once_it_is_handed_back() -> None:
    """DESIGN 3: nothing is applied, shown or acknowledged before it is durable."""
    journal = HeldJournal(held=True)
    async with opened(journal) as partition:
        answer = asyncio.ensure_future(partition.propose(create(b"1")))
        await until(lambda: journal.waiting)
        assert await blocked(answer)
        assert await partition.stream(PATH) is None
        journal.commit()
        assert (await answer).result is Result.CREATED
        assert await content(partition) == b"1"


async def test_retry_while_the_first_copy_is_in_flight_waits_for_durability() -> None:
    """A "duplicate" of what a crash could still undo would be a lost batch."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create())
        journal.held = True
        first = partition.propose_nowait(append(b"1", producer=("p", 0, 0)))
        again = partition.propose_nowait(append(b"1", producer=("p", 0, 0)))
        assert await blocked(first)
        assert await blocked(again)
        journal.commit()
        assert [(await first).result, (await again).result] == [Result.ACCEPTED, Result.DUPLICATE]
        assert await content(partition) == b"1"


async def test_cancelled_proposer_takes_nothing_back() -> None:
    journal = HeldJournal(held=True)
    async with opened(journal) as partition:
        answer = asyncio.ensure_future(partition.propose(create(b"1")))
        await until(lambda: journal.waiting)
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        journal.commit()
        await until(lambda: partition.applied_index == 1)
        assert await content(partition) == b"1"
        assert partition.in_flight == 0


async def test_refused_commit_leaves_no_trace_and_may_be_proposed_again() -> None:
    """DESIGN 3: a commit that failed definitely is a retryable 503."""
    journal = HeldJournal(held=True)
    async with opened(journal) as partition:
        answer = partition.propose_nowait(create(b"1"))
        await until(lambda: journal.waiting)
        journal.refuse(Unavailable("the disk is full"))
        with pytest.raises(Unavailable, match="the disk is full"):
            await answer
        assert await partition.stream(PATH) is None
        assert partition.in_flight == 0
        journal.held = False
        assert (await partition.propose(create(b"1"))).result is Result.CREATED


async def test_unknown_fate_of_a_commit_stops_the_engine() -> None:
    """DESIGN 3 and 9: it stops acknowledging and says so."""
    journal = HeldJournal(held=True)
    async with opened(journal) as partition:
        answer = partition.propose_nowait(create())
        journal.stop(EngineStopped("fsync failed"))
        with pytest.raises(EngineStopped, match="fsync failed"):
            await answer
        assert not partition.healthy
        with pytest.raises(EngineStopped):
            await partition.propose(create())


async def test_what_may_not_be_what_the_log_makes_is_not_shown_any_more() -> None:
    """It would be wrong, and look right; another node has it."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create())
        journal.stop(Diverged("most nodes made something else of the log"))
        for asked in (partition.stream(PATH), partition.session(PATH), partition.sessions(None, 1)):
            with pytest.raises(EngineStopped, match="most nodes"):
                await asked


# -- answers without the journal -------------------------------------------------------------------------------------


async def test_refusals_and_duplicates_that_follow_one_do_not_fill_the_journal() -> None:
    """This process is the only proposer, and nothing that waits shares a key with them: so they are certain."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create())
        await partition.propose(append(b"1", producer=("p", 0, 0)))
        assert (await partition.propose(append(b"1", producer=("p", 0, 0)))).result is Result.DUPLICATE
        assert partition.counts.answered_without_journal == 0, "appends in general are written as they come"
        journal.held = True
        duplicate = await partition.propose(append(b"1", producer=("p", 0, 0)))
        gap = await partition.propose(append(b"3", producer=("p", 0, 2)))
        assert (duplicate.result, duplicate.next_position, gap.code) == (Result.DUPLICATE, 1, Code.SEQ_GAP)
        assert journal.waiting == []
        assert partition.counts.answered_without_journal == 2

        accepted = partition.propose_nowait(append(b"2", producer=("p", 0, 1)))
        journal.commit()
        assert (await accepted).result is Result.ACCEPTED
        copy = partition.propose_nowait(append(b"2", producer=("p", 0, 1)))
        assert await blocked(copy), "all is well again"
        journal.commit()
        assert (await copy).result is Result.DUPLICATE


async def test_copy_of_what_a_full_disk_refused_is_answered_although_the_disk_is_full() -> None:
    """What it asks for is durable: its producer must not hear 503 for ever."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create())
        await partition.propose(append(b"1", producer=("p", 0, 0)))
        journal.held = True
        copy = partition.propose_nowait(append(b"1", producer=("p", 0, 0)))
        journal.refuse(Unavailable("the disk is full"))
        with pytest.raises(Unavailable):
            await copy
        assert (await partition.propose(append(b"1", producer=("p", 0, 0)))).result is Result.DUPLICATE


async def test_refusal_waits_its_turn_while_an_entry_for_the_same_row_is_pending() -> None:
    """What waits may change the answer: here the append finds the stream that is being created."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        assert (await partition.propose(append(b"0"))).code is Code.STREAM_NOT_FOUND
        journal.held = True
        created = partition.propose_nowait(create())
        appended = partition.propose_nowait(append(b"1"))
        assert await blocked(appended)
        journal.commit()
        assert [(await created).result, (await appended).result] == [Result.CREATED, Result.ACCEPTED]


async def test_r42_session_is_settled_when_nothing_of_it_is_on_its_way_and_its_readers_have_left() -> None:
    """R3, R42: what a delete waits for. What was proposed before it was applied is answered first, as a refusal."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create_session())
        stream = await partition.stream(SESSION)
        assert stream is not None
        reader = asyncio.create_task(partition.wait(SESSION, stream.incarnation, stream.tail, NEVER_S))
        assert await blocked(reader)
        journal.held = True
        gone, late = partition.propose_nowait(delete_session()), partition.propose_nowait(chunks("g", 0, b"1"))
        journal.commit(1)
        assert (await gone).result is Result.ACCEPTED

        settled = asyncio.create_task(partition.settle(SESSION))
        assert await blocked(settled)
        journal.commit()
        await settled

        assert late.done()
        assert (await late).code is Code.SESSION_NOT_FOUND
        assert reader.done()
        await partition.settle(SESSION)  # at once: nothing of it is left


async def test_reader_that_does_not_leave_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DETACH_S", 0.01)
    async with opened() as partition:
        stream = (await partition.propose(create_session())).stream
        assert stream is not None
        reader = asyncio.create_task(partition.wait(SESSION, stream.incarnation, stream.tail, NEVER_S))
        assert await blocked(reader)
        await partition.settle(SESSION)
        assert not reader.done()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def test_journal_with_other_proposers_answers_everything_itself() -> None:
    """CORE 4: on Kafka every outcome comes from the log."""
    journal = HeldJournal()
    journal.lone_proposer = False
    async with opened(journal) as partition:
        await partition.propose(create())
        await partition.propose(create())
        assert partition.applied_index == 2
        assert partition.counts.answered_without_journal == 0
        assert [outcome.result for outcome in journal.told_applied] == [Result.CREATED, Result.UNCHANGED]


async def test_append_among_others_is_one_to_the_life_that_was_seen() -> None:
    """CORE 1: so a late copy of it never falls into the next stream of that name."""
    journal = HeldJournal()
    journal.lone_proposer = False
    async with opened(journal) as partition:
        life = (await partition.propose(create())).stream
        await partition.propose(append(b"1"))
        late = journal.proposed[-1]
        assert life is not None
        assert late.incarnation == life.incarnation
        await partition.propose(delete())
        await partition.propose(create())
        journal.deliver(late)
        assert await content(partition) == b""


async def test_refusal_because_of_a_life_not_yet_seen_is_proposed_again_and_never_shown() -> None:
    """CORE 1: another node deletes and creates the stream while an append is on its way."""
    journal = HeldJournal()
    journal.lone_proposer = False
    async with opened(journal) as partition:
        await partition.propose(create())
        journal.held = True
        answer = partition.propose_nowait(append(b"1"))
        await until(lambda: journal.waiting)
        journal.deliver(replace(delete(), boot=7), replace(create(), boot=7, nonce=77))
        journal.held = False
        journal.commit()
        assert (await answer).result is Result.ACCEPTED
        assert await content(partition) == b"1"


async def test_late_write_to_a_session_never_falls_into_the_next_one_of_its_name() -> None:
    journal = HeldJournal()
    journal.lone_proposer = False
    async with opened(journal) as partition:
        await partition.propose(create_session())
        await partition.propose(chunks("g", 0, b"1"))
        late = journal.proposed[-1]
        await partition.propose(delete_session())
        await partition.propose(create_session())
        journal.deliver(late)
        assert (await partition.propose(chunks("h", 0, b"2"))).result is Result.ACCEPTED
        session = await partition.session(SESSION)
        assert session is not None
        assert [generation.generation_id for generation in session.open] == ["h"]


async def test_what_others_propose_waits_for_room_and_none_of_it_is_lost() -> None:
    """Our own proposals wait before they are made; those of others come as they come."""
    journal, room_bytes = HeldJournal(), 8_192
    journal.lone_proposer = False
    async with opened(journal, checkpoint_bytes=1 << 30, checkpoint_bytes_max=room_bytes) as partition:
        journal.deliver(replace(create(), boot=7, nonce=7))
        for number in range(100):
            await until(lambda: partition.applied_index == journal.index)
            assert partition.unstored_bytes < 3 * room_bytes
            journal.deliver(replace(append(b'"%0500d"' % number), boot=7))
        await until(lambda: partition.applied_index == 101)
        assert partition.counts.checkpoints > 1
        stream = await partition.stream(PATH)
        assert stream is not None
        assert stream.tail == 100


async def test_mark_of_the_journal_is_stored_with_the_index_it_belongs_to() -> None:
    store = HeldStore()
    async with opened(HeldJournal(), store) as partition:
        await partition.propose(create())
        await partition.checkpoint()
        head = store.written[0].head
        assert (head.applied_index, head.mark) == (1, b"at 1")


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


def stamped(entries: Sequence[Entry], first_proposal: int) -> list[Entry]:
    """Entries as an earlier life of the broker proposed them."""
    return [replace(entry, boot=77, proposal=number) for number, entry in enumerate(entries, first_proposal)]


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
        store.write_gate.shut()
        checkpoint = asyncio.ensure_future(partition.checkpoint())
        await store.write_gate.reached.wait()
        await partition.propose(append(b"2", producer=("p", 0, 0)))
        store.write_gate.open()
        with pytest.raises(Unavailable):
            await checkpoint
        await partition.checkpoint()
        assert await content(partition) == b"1,2"
        outcome = await partition.propose(append(b"3", producer=("p", 0, 1)))
        assert (outcome.result, outcome.next_position) == (Result.ACCEPTED, 3)


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
        store.write_gate.shut()
        checkpoint = asyncio.ensure_future(partition.checkpoint())
        await store.write_gate.reached.wait()
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
        store.write_gate.shut()
        checkpoint = asyncio.ensure_future(partition.checkpoint())
        await store.write_gate.reached.wait()
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
        store.write_gate.shut()
        first = asyncio.ensure_future(partition.checkpoint())
        await store.write_gate.reached.wait()
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

SMALL = 20_000


async def full(partition: Partition, store: HeldStore) -> None:
    """Fill the memory between checkpoints while none can be written."""
    store.write_gate.shut()
    await partition.propose(create_session())
    await partition.propose(chunks("g", 0, b"1"))
    await partition.propose(create())
    record = b'"%b"' % (b"x" * 4000)
    while partition.unstored_bytes < SMALL:
        await partition.propose(append(record))


async def test_append_waits_for_room_and_goes_on_when_a_checkpoint_made_it() -> None:
    store = HeldStore()
    async with opened(HeldJournal(), store, checkpoint_bytes=SMALL, checkpoint_bytes_max=SMALL) as partition:
        await full(partition, store)
        answer = asyncio.ensure_future(partition.propose(append(b"1")))
        await store.write_gate.reached.wait()
        assert await blocked(answer)
        store.write_gate.open()
        assert (await answer).result is Result.ACCEPTED


async def test_append_that_finds_no_room_in_time_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 3: appends wait, then get 503."""
    monkeypatch.setattr(limits, "BACK_PRESSURE_WAIT_S", 0.05)
    store = HeldStore()
    async with opened(HeldJournal(), store, checkpoint_bytes=SMALL, checkpoint_bytes_max=SMALL) as partition:
        await full(partition, store)
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
    store = HeldStore()
    async with opened(HeldJournal(), store, checkpoint_bytes=SMALL, checkpoint_bytes_max=SMALL) as partition:
        await full(partition, store)
        async with asyncio.timeout(1):
            assert (await partition.propose(entry)).code is None


async def test_those_who_wait_for_room_are_told_when_the_engine_stops() -> None:
    store, journal = HeldStore(), HeldJournal()
    async with opened(journal, store, checkpoint_bytes=SMALL, checkpoint_bytes_max=SMALL) as partition:
        await full(partition, store)
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
        store.write_gate.shut()
        checkpoint = asyncio.ensure_future(partition.checkpoint())
        await store.write_gate.reached.wait()
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


# -- readers ---------------------------------------------------------------------------------------------------------


async def waiting_at(partition: Partition, position: int, timeout_s: float = NEVER_S) -> asyncio.Task[None]:
    """A reader that waits at `position` of the stream."""
    stream = await partition.stream(PATH)
    assert stream is not None
    return asyncio.ensure_future(partition.wait(PATH, stream.incarnation, position, timeout_s))


@pytest.mark.parametrize("entry", [append(b"2"), close(), delete()], ids=lambda entry: Kind(entry.kind).name)
async def test_reader_at_the_tail_wakes_when_the_stream_changes(entry: Entry) -> None:
    async with opened() as partition:
        await partition.propose(create(b"1"))
        reader = await waiting_at(partition, 1)
        assert await blocked(reader)
        await partition.propose(entry)
        async with asyncio.timeout(10):
            await reader


async def test_reader_of_a_session_wakes_when_it_is_deleted() -> None:
    async with opened() as partition:
        await partition.propose(create_session())
        stream = await partition.stream(SESSION)
        assert stream is not None
        reader = asyncio.ensure_future(partition.wait(SESSION, stream.incarnation, 0, NEVER_S))
        assert await blocked(reader)
        await partition.propose(delete_session())
        async with asyncio.timeout(10):
            await reader


async def test_reader_wakes_when_the_broker_drains() -> None:
    async with opened() as partition:
        await partition.propose(create())
        reader = await waiting_at(partition, 0)
        assert await blocked(reader)
        partition.drain()
        async with asyncio.timeout(10):
            await reader
        await partition.wait(PATH, 0, 0, NEVER_S)


async def test_reader_wakes_after_its_time() -> None:
    async with opened() as partition:
        await partition.propose(create())
        async with asyncio.timeout(10):
            await (await waiting_at(partition, 0, timeout_s=0.02))


async def test_reader_wakes_at_the_deadline_of_its_stream() -> None:
    """Nobody has to propose anything for a stream to be over."""
    async with opened(MemoryJournal()) as partition:
        await partition.propose(create(expires_at_ms=partition.now_ms() + 50))
        reader = await waiting_at(partition, 0)
        async with asyncio.timeout(10):
            await reader
        assert await partition.stream(PATH) is None


@pytest.mark.parametrize(("position", "life"), [(0, 0), (1, 1)], ids=["records after it", "another life"])
async def test_reader_with_something_to_learn_does_not_wait(position: int, life: int) -> None:
    async with opened() as partition:
        await partition.propose(create(b"1"))
        stream = await partition.stream(PATH)
        assert stream is not None
        async with asyncio.timeout(10):
            await partition.wait(PATH, stream.incarnation + life, position, NEVER_S)


async def test_reader_that_went_away_leaves_nothing_behind() -> None:
    async with opened() as partition:
        await partition.propose(create())
        readers = [await waiting_at(partition, 0) for _ in range(3)]
        assert await blocked(readers[0])
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert not partition._watches  # noqa: SLF001 -- memory that nothing public shows


async def test_read_goes_on_from_the_store_into_the_tail() -> None:
    async with opened() as partition:
        await partition.propose(create(b"0", b"1"))
        await partition.checkpoint()
        await partition.propose(append(b"2"))
        stream = await partition.stream(PATH)
        assert stream is not None
        for position in range(3):
            page = await partition.read(PATH, stream, position, READ_BYTES)
            assert page == json_page([b"0", b"1", b"2"][position:], position)
        assert await partition.read(PATH, stream, 3, READ_BYTES) is None


async def test_read_while_a_checkpoint_moves_the_tail_misses_nothing() -> None:
    """CORE 5: the run from the store ends where the tail began when it was read; what follows is not skipped."""
    store = HeldStore()
    async with opened(HeldJournal(), store) as partition:
        await partition.propose(create(b"0"))
        await partition.checkpoint()
        await partition.propose(append(b"1"))
        stream = await partition.stream(PATH)
        assert stream is not None
        store.read_gate.shut()
        reader = asyncio.ensure_future(partition.read(PATH, stream, 0, READ_BYTES))
        await store.read_gate.reached.wait()
        await partition.checkpoint()
        await partition.propose(append(b"2"))
        store.read_gate.open()
        page = await reader
        assert page is not None
        assert page == json_page([b"0", b"1", b"2"][: page.end])
        assert await content(partition, position=page.end) == b",".join([b"1", b"2"][page.end - 1 :])


async def test_read_of_a_life_that_is_over_is_never_of_the_next_one() -> None:
    async with opened() as partition:
        await partition.propose(create(b"old"))
        stream = await partition.stream(PATH)
        assert stream is not None
        await partition.propose(delete())
        await partition.propose(create(b"new", b"newer"))
        assert await partition.read(PATH, stream, 0, READ_BYTES) is None


async def test_read_gives_about_as_much_as_was_asked_for() -> None:
    async with opened() as partition:
        await partition.propose(create())
        for _ in range(10):
            await partition.propose(append(b"1234567890"))
        stream = await partition.stream(PATH)
        assert stream is not None
        page = await partition.read(PATH, stream, 0, 35)
        assert page is not None
        assert (page.start, page.end) == (0, 3)


# -- time ------------------------------------------------------------------------------------------------------------


async def test_reads_renew_a_sliding_ttl_at_most_once_in_a_tenth_of_it() -> None:
    """CORE 6: by an entry that nobody waits for."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create(ttl_s=10))
        touches: list[int] = []
        for _ in range(30):
            journal.time_ms += 100
            stream = await partition.stream(PATH)
            assert stream is not None
            before = partition.applied_index
            partition.touch(PATH, stream)
            partition.touch(PATH, stream)
            await until(lambda: not partition.in_flight and not partition._touching)  # noqa: SLF001 -- as above
            touches.append(partition.applied_index - before)
        assert touches == ([0] * 9 + [1]) * 3


async def test_stream_is_gone_for_reads_when_its_time_is_over_before_any_entry_says_so() -> None:
    """CORE 6: reads judge expiry by the partition's time carried forward; only an entry changes state."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create(ttl_s=10))
        journal.time_ms += 11_000
        assert await partition.stream(PATH) is None
        assert [path for path, _ in await partition.overdue(10)] == [PATH]
        assert (await partition.propose(append(b"1"))).code is Code.STREAM_NOT_FOUND
        assert await partition.overdue(10) == []


@pytest.mark.parametrize("stored", ["stored", "in memory"])
async def test_overdue_streams_are_found_wherever_they_are(stored: str) -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        await partition.propose(create(ttl_s=10))
        await partition.propose(create(path="lasting"))
        await partition.propose(create(path="renewed", ttl_s=10))
        if stored == "stored":
            await partition.checkpoint()
        journal.time_ms += 10_000
        await partition.propose(append(b"1", path="renewed"))
        journal.time_ms += 1_000
        assert [path for path, _ in await partition.overdue(10)] == [PATH]


async def test_partition_time_never_goes_back() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        journal.time_ms = BEGIN_MS + 500
        await partition.propose(create())
        journal.time_ms = BEGIN_MS
        assert partition.now_ms() == BEGIN_MS + 500
        outcome = await partition.propose(append(b"1"))
        assert outcome.stream is not None
        assert outcome.stream.active_ms == BEGIN_MS + 500


async def test_sessions_with_open_generations_are_known() -> None:
    async with opened() as partition:
        await partition.propose(create_session())
        assert partition.open_sessions == {}
        await partition.propose(chunks("g", 0, b"1"))
        assert list(partition.open_sessions) == [SESSION]
        await partition.propose(finish("g", 1))
        assert partition.open_sessions == {}


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
