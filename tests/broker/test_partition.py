"""broker/partition.py: what is told when, over a journal and a store that a test can hold at any point."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from broker import limits
from broker.core.outcome import Result
from broker.errors import Diverged, EngineStopped, Unavailable
from consumer.wire import Code
from tests.broker.core.entries import PATH, SESSION, append, chunks, create, create_session, delete, delete_session
from tests.broker.held import NEVER_S, HeldJournal, HeldStore, blocked, content, opened
from tests.eventually import until

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
