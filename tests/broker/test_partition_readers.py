"""broker/partition.py: what readers find, when those who wait are woken, and what time alone brings about."""

from __future__ import annotations

import asyncio

import pytest

from broker.core.entry import Entry, Kind
from broker.core.page import json_page
from broker.journal.memory import MemoryJournal
from broker.partition import Partition
from consumer.wire import Code
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
    finish,
)
from tests.broker.core.replica import BEGIN_MS
from tests.broker.held import NEVER_S, READ_BYTES, HeldJournal, HeldStore, blocked, content, opened
from tests.eventually import until

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
