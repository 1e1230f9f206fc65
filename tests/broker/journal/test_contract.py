"""What every journal promises (`broker/journal/__init__.py`)."""

import asyncio

import pytest

from broker.errors import EngineStopped
from tests.broker.journal.bench import Bench, MakeEntry


async def test_entries_come_back_as_they_were_proposed_with_indexes_rising_by_one(
    each: Bench, entry: MakeEntry
) -> None:
    journal, heard = await each.started()
    proposed = [entry(n) for n in range(200)]
    for n, one in enumerate(proposed):
        journal.propose(one)
        if n % 7 == 0:
            await asyncio.sleep(0)
    await heard.until_entries(200)
    assert heard.indexes == list(range(1, 201))
    assert all(back is one for (_, back), one in zip(heard.entries, proposed, strict=True))


async def test_what_is_proposed_in_one_iteration_of_the_loop_shares_a_commit(each: Bench, entry: MakeEntry) -> None:
    journal, heard = await each.started()
    for n in range(50):
        asyncio.get_running_loop().call_soon(journal.propose, entry(n))
    await heard.until(lambda: heard.commits)
    assert [len(commit.entries) for commit in heard.commits] == [50]


async def test_synchronous_journal_commits_each_entry_by_itself_from_then_on_and_until_told_otherwise(
    each: Bench, entry: MakeEntry
) -> None:
    journal, heard = await each.started()
    for synchronous, sizes in ((True, [1] * 50), (False, [50])):
        heard.commits.clear()
        journal.synchronous = synchronous
        assert journal.synchronous is synchronous
        for n in range(50):
            asyncio.get_running_loop().call_soon(journal.propose, entry(n))
        await heard.until_entries(50)
        assert [len(commit.entries) for commit in heard.commits] == sizes


async def test_nothing_is_handed_back_inside_propose(each: Bench, entry: MakeEntry) -> None:
    journal, heard = await each.started()
    journal.propose(entry(1))
    assert heard.commits == []


async def test_close_hands_back_what_was_proposed_and_then_takes_no_more(each: Bench, entry: MakeEntry) -> None:
    journal, heard = await each.started()
    for n in range(100):
        journal.propose(entry(n))
    await journal.aclose()
    assert heard.indexes == list(range(1, 101))
    with pytest.raises(EngineStopped):
        journal.propose(entry(100))
    await journal.aclose()
    assert heard.stopped == []


async def test_indexes_go_on_behind_the_store_after_a_restart(each: Bench, entry: MakeEntry) -> None:
    for start in (0, 3, 6):
        journal, heard = await each.started(applied_index=start)
        for n in range(3):
            journal.propose(entry(n))
        await journal.aclose()
        assert heard.indexes == [start + 1, start + 2, start + 3]


async def test_indexes_go_on_after_everything_was_trimmed(each: Bench, entry: MakeEntry) -> None:
    journal, _ = await each.started()
    for n in range(5):
        journal.propose(entry(n))
    await journal.aclose()
    journal, _ = await each.started(applied_index=5)
    journal.trim(5)
    await journal.aclose()
    journal, heard = await each.started(applied_index=5)
    journal.propose(entry(6))
    await journal.aclose()
    assert heard.indexes == [6]


async def test_time_runs_with_the_monotonic_clock_whatever_the_wall_clock_does(alone: Bench, entry: MakeEntry) -> None:
    journal, heard = await alone.started()
    alone.wall_ms -= 500_000
    alone.monotonic_ms += 40
    journal.propose(entry(1))
    await heard.until(lambda: heard.commits)
    alone.monotonic_ms += 2
    assert heard.commits[0].time_ms == 1_000_040
    assert journal.now_ms() == 1_000_042


async def test_time_goes_on_from_the_store_when_the_wall_clock_has_stepped_back(alone: Bench, entry: MakeEntry) -> None:
    alone.wall_ms = 400
    journal, heard = await alone.started(applied_index=9, applied_time_ms=2_000_000)
    alone.monotonic_ms += 5
    journal.propose(entry(1))
    await heard.until(lambda: heard.commits)
    assert heard.commits[0].time_ms == 2_000_005
