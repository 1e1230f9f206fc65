"""broker/partition.py: entries that are proposed together by those who have claimed their rows."""

from __future__ import annotations

from broker.core.entry import Entry
from broker.core.outcome import Outcome, Result
from broker.errors import EngineStopped, Unavailable
from broker.partition import Partition
from tests.broker.core.entries import SESSION, chunks, create_session
from tests.broker.held import HeldJournal, HeldStore, opened
from tests.eventually import until


class Writer:
    """Proposes, and keeps what it is told."""

    def __init__(self) -> None:
        self.flying = 0
        self.heard: list[tuple[int, Result | type[Exception]]] = []
        """Each with the seq of its entry."""

    def told(self, entry: Entry, outcome: Outcome) -> None:
        self.heard.append((entry.seq, outcome.result))

    def told_error(self, entry: Entry, error: Exception) -> None:
        self.heard.append((entry.seq, type(error)))


async def begun(partition: Partition) -> Writer:
    """A writer of a generation that has its first batch; its rows are claimed, and in memory."""
    await partition.propose(create_session())
    await partition.propose(chunks("g", 0, b"0"))
    writer = Writer()
    await until(lambda: partition.claim(writer, chunks("g", 1, b"1")))
    return writer


async def test_each_is_told_what_it_did_in_the_order_of_all() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        writer = await begun(partition)
        journal.held = True
        partition.propose_together([(writer, chunks("g", seq, b"%d" % seq)) for seq in (1, 2, 4, 3)])
        assert (writer.flying, writer.heard) == (4, [])
        journal.commit()
        assert writer.heard == [
            (1, Result.ACCEPTED),
            (2, Result.ACCEPTED),
            (4, Result.REFUSED),
            (3, Result.ACCEPTED),
        ]
        assert (writer.flying, partition.in_flight) == (0, 0)


async def test_all_are_told_before_it_is_said_that_they_are() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        writer = await begun(partition)
        heard: list[int] = []
        partition.all_told = lambda: heard.append(len(writer.heard))
        journal.held = True
        partition.propose_together([(writer, chunks("g", seq, b"%d" % seq)) for seq in (1, 2)])
        journal.commit()
        assert heard == [2]


async def test_claimed_rows_stay_in_memory_until_they_are_let_go() -> None:
    """So nothing has to be loaded, or looked up, for each of the entries."""
    store = HeldStore()
    async with opened(HeldJournal(), store, rows_max=0) as partition:
        writer = await begun(partition)
        await partition.checkpoint()
        assert partition.claim(writer, chunks("g", 1, b"1"))
        partition.let_go(writer)
        await partition.checkpoint()
        assert await partition.stream("another") is None  # a look at any row forgets those that nobody needs
        assert not partition.claim(Writer(), chunks("g", 1, b"1"))


async def test_copies_behind_one_do_not_fill_the_journal() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        writer = await begun(partition)
        for _ in range(3):
            partition.propose_together([(writer, chunks("g", 0, b"0"))])
            await until(lambda: writer.flying == 0)
        assert writer.heard == [(0, Result.DUPLICATE)] * 3
        assert partition.counts.answered_without_journal == 2


async def test_copy_of_one_on_its_way_waits_for_it() -> None:
    """A "duplicate" of what a crash could still undo would be a lost batch."""
    journal = HeldJournal()
    async with opened(journal) as partition:
        writer = await begun(partition)
        partition.propose_together([(writer, chunks("g", 0, b"0"))])  # from here on the path is doubtful
        await until(lambda: len(writer.heard) == 1)
        journal.held = True
        partition.propose_together([(writer, chunks("g", 0, b"0"))])
        assert writer.heard == [(0, Result.DUPLICATE)] * 2, "certain: nothing is on its way"
        partition.propose_together([(writer, chunks("g", 1, b"1"))])
        partition.propose_together([(writer, chunks("g", 1, b"1"))])
        assert len(writer.heard) == 2
        journal.commit()
        assert writer.heard[2:] == [(1, Result.ACCEPTED), (1, Result.DUPLICATE)]


async def test_each_is_told_when_they_could_not_be_written() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        writer = await begun(partition)
        journal.held = True
        partition.propose_together([(writer, chunks("g", seq, b"%d" % seq)) for seq in (1, 2)])
        journal.refuse(Unavailable("the disk is full"))
        assert writer.heard == [(1, Unavailable), (2, Unavailable)]
        assert (writer.flying, partition.in_flight) == (0, 0)


async def test_each_is_told_when_the_engine_stops_and_after() -> None:
    journal = HeldJournal()
    async with opened(journal) as partition:
        writer = await begun(partition)
        journal.held = True
        partition.propose_together([(writer, chunks("g", 1, b"1"))])
        journal.stop(EngineStopped("the disk is gone"))
        partition.propose_together([(writer, chunks("g", 2, b"2"))])
        assert writer.heard == [(1, EngineStopped), (2, EngineStopped)]
        assert writer.flying == 0


async def test_among_other_proposers_each_goes_its_own_way() -> None:
    """CORE 4: there an entry says which life of its path its proposer saw."""
    journal = HeldJournal()
    journal.lone_proposer = False
    async with opened(journal) as partition:
        writer = await begun(partition)
        partition.propose_together([(writer, chunks("g", seq, b"%d" % seq)) for seq in (1, 2)])
        await until(lambda: len(writer.heard) == 2)
        assert writer.heard == [(1, Result.ACCEPTED), (2, Result.ACCEPTED)]
        stream = await partition.stream(SESSION)
        assert stream is not None
        assert [entry.incarnation for entry in journal.proposed[-2:]] == [stream.incarnation] * 2
