"""broker/journal/cluster.py: several journals over one log, and what can go wrong between them and it."""

import asyncio

import pytest

from broker.errors import OutcomeUnknown, Unavailable
from broker.journal import Commit, Refused
from broker.journal.cluster_record import Envelope, encode
from tests.broker.journal.bench import MakeEntry
from tests.broker.journal.memory_log import Records
from tests.broker.journal.nodes import Node, entries_of, nodes, settled
from tests.eventually import eventually

# -- order -----------------------------------------------------------------------------------------------------------


async def test_every_node_is_handed_the_same_entries_in_the_same_order_at_the_same_indexes(entry: MakeEntry) -> None:
    async with nodes(3) as (one, two, three):
        for number in range(30):
            (one, two, three)[number % 3].journal.propose(entry(number))
            if number % 4 == 0:
                await asyncio.sleep(0)
        for node in (one, two, three):
            await node.heard.until_entries(30)
    assert one.heard.indexes == list(range(1, 31))
    told = [[(index, found.proposal) for index, found in node.heard.entries] for node in (one, two, three)]
    assert told[0] == told[1] == told[2]
    assert sorted(one.proposals) == list(range(30))


async def test_records_that_are_no_entries_leave_no_gap_in_the_indexes(entry: MakeEntry) -> None:
    async with nodes(1) as (node,):
        await node.write(entry(1))
        node.log.records.put(b"somebody else's")
        await node.write(entry(2))
        assert node.heard.indexes == [1, 2]
        assert node.journal.counts.foreign == 1


async def test_time_never_goes_back_when_the_clock_of_the_log_does(entry: MakeEntry) -> None:
    now_ms = 5_000
    async with nodes(1, Records(lambda: now_ms)) as (node,):
        await node.write(entry(1))
        now_ms = 3_000
        await node.write(entry(2))
        assert [commit.time_ms for commit in node.heard.commits] == [5_000, 5_000]
        assert node.journal.now_ms() >= 5_000


# -- a stop ----------------------------------------------------------------------------------------------------------


async def test_stop_waits_no_longer_than_it_may_for_a_log_that_takes_nothing(
    entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.limits.STOP_STEP_S", 0.1)
    async with nodes(1) as (node,):
        await settled(node)
        node.log.road.clear()
        node.journal.propose(entry(1))
        async with asyncio.timeout(5):
            await node.journal.aclose(0.2)
        assert node.proposals == []


async def test_stop_whose_time_is_used_up_hands_back_what_the_log_is_about_to_take(entry: MakeEntry) -> None:
    async with nodes(1) as (node,):
        await settled(node)
        node.log.road.clear()
        node.journal.propose(entry(1))
        asyncio.get_running_loop().call_later(0.1, node.log.road.set)
        await node.journal.aclose(0)
        assert node.proposals == [1]


# -- what became of a record -----------------------------------------------------------------------------------------


async def test_record_that_never_reached_the_log_is_written_again_in_its_place(entry: MakeEntry) -> None:
    async with nodes(2) as (one, two):
        await settled(one)
        one.log.faults.extend(["lost", "lost", "lost"])
        for number in range(3):
            one.journal.propose(entry(number))
        await asyncio.sleep(0)
        for number in range(3, 6):
            one.journal.propose(entry(number))
        await two.heard.until_entries(6)
        assert two.proposals == list(range(6))


async def test_record_whose_answer_was_lost_counts_once(entry: MakeEntry) -> None:
    async with nodes(2) as (one, two):
        await settled(one)
        one.log.faults.extend(["unheard", "lost"])
        one.journal.propose(entry(1))
        one.journal.propose(entry(2))
        await two.heard.until_entries(2)
        await settled(one)
        assert one.proposals == two.proposals == [1, 2]


async def test_copy_that_comes_after_its_record_was_settled_is_void_for_everybody(entry: MakeEntry) -> None:
    """KAFKA.md 2.1, the aborted-write hole: what was told to have failed must not appear later."""
    async with nodes(2) as (one, two):
        await settled(one)
        one.log.faults.append("late")
        one.journal.propose(entry(1))
        await two.heard.until_entries(1)
        one.log.arrive()
        one.journal.propose(entry(2))
        await two.heard.until_entries(2)
        await one.heard.until_entries(2)
        assert one.proposals == two.proposals == [1, 2]
        assert two.heard.indexes == [1, 2]
        assert one.journal.counts.void == two.journal.counts.void == 1


async def test_nothing_is_handed_back_that_the_log_has_not_confirmed_to_its_writer(entry: MakeEntry) -> None:
    """A topic that keeps fewer copies than it should shows a record before it is safe."""
    async with nodes(2) as (one, two):
        await settled(one)
        one.log.faults.extend(["unheard", *["lost"] * 3])
        one.journal.propose(entry(1))
        await two.heard.until_entries(1)
        assert one.proposals == []
        await one.heard.until_entries(1)


async def test_proposals_that_the_log_does_not_take_in_time_are_refused_and_never_come(entry: MakeEntry) -> None:
    async with nodes(1, wait_s=0.3) as (node,):
        await settled(node)
        node.log.road.clear()
        node.journal.propose(entry(1))
        await asyncio.sleep(0.01)
        node.journal.propose(entry(2))
        await node.heard.until(lambda: len(node.heard.refused) == 2)
        told = {refused.entries[0].proposal: refused.error for refused in node.heard.refused}
        assert isinstance(told[1], OutcomeUnknown)
        assert isinstance(told[2], Unavailable)
        node.log.road.set()
        await node.write(entry(3))
        assert node.proposals == [1, 3]


# -- restarts --------------------------------------------------------------------------------------------------------


async def test_restart_goes_on_where_the_store_stands(entry: MakeEntry) -> None:
    records, index, mark = Records(), 0, b""
    async with nodes(2, records) as (one, two):
        for number in range(4):
            one.journal.propose(entry(number))
            await two.heard.until_entries(number + 1)
            if number == 1:
                index, mark = two.index, two.mark
    again = Node(records)
    await again.start(index, mark)
    try:
        assert again.proposals == [2, 3]
        assert again.heard.indexes == [3, 4]
        await again.write(entry(4))
    finally:
        await again.journal.aclose()


async def test_what_an_earlier_life_left_under_way_is_void_once_the_next_one_has_begun(entry: MakeEntry) -> None:
    """A killed process's record may still sit in a connection; who asked for it has long asked again elsewhere."""
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(entry(1))
        straggler = encode(Envelope(node.journal.boot, 99, tuple(entries_of(records)[:1])))
        index, mark = node.index, node.mark
    again = Node(records)
    await again.start(index, mark)
    try:
        await settled(again)
        records.put(straggler)
        await again.write(entry(2))
        assert again.proposals == [2]
        assert again.journal.counts.void == 1
    finally:
        await again.journal.aclose()


async def test_time_that_only_an_empty_record_told_does_not_go_back_at_a_restart(entry: MakeEntry) -> None:
    """Else a node that restarts gives later entries another time than those that went on, and expiry differs."""
    now_ms = 5_000
    records = Records(lambda: now_ms)
    async with nodes(2, records) as (one, two):
        one.journal.propose(entry(1))
        await two.heard.until_entries(1)
        now_ms = 9_000
        two.journal._writer.add(Envelope(0, 0))  # noqa: SLF001 -- as a settling does
        await settled(two)
        index, mark = two.index, two.journal.mark()
        now_ms = 6_000
        await one.write(entry(2))
        again = Node(records)
        await again.start(index, mark)
        try:
            await again.heard.until_entries(1)
            assert [commit.time_ms for commit in again.heard.commits] == [9_000]
            assert one.heard.commits[-1].time_ms == 9_000
        finally:
            await again.journal.aclose()


async def test_process_whose_store_was_copied_while_it_lives_stops_instead_of_writing_in_vain(entry: MakeEntry) -> None:
    """The copy's first record voids whatever the original writes from then on."""
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(entry(1))
        copy = Node(records)
        await copy.start(node.index, node.mark)
        try:
            await node.heard.until(lambda: node.heard.stopped)
            assert "copy" in str(node.heard.stopped[0])
            await copy.write(entry(2))
        finally:
            await copy.journal.aclose()


async def test_node_that_starts_empty_makes_the_same_of_the_whole_log(entry: MakeEntry) -> None:
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(*map(entry, range(5)))
        late = Node(records)
        await late.start()
        assert late.proposals == node.proposals
        assert late.journal._standing.chain == node.journal._standing.chain  # noqa: SLF001 -- what an audit would compare
        await late.journal.aclose()


# -- reads ask the log -----------------------------------------------------------------------------------------------


async def test_catching_up_is_having_applied_what_others_wrote_before(entry: MakeEntry) -> None:
    async with nodes(2) as (one, two):
        await one.write(entry(1))
        assert await two.journal.catch_up()
        assert two.proposals == [1]


async def test_catching_up_does_not_believe_a_server_that_leads_no_more(entry: MakeEntry) -> None:
    """KF2. It was frozen, and goes on with what it knew then."""
    async with nodes(2) as (one, two):
        await two.journal.catch_up()
        two.log.old_end = two.log.records.end
        two.log.readable.clear()
        await one.write(entry(1))
        caught_up = asyncio.create_task(two.journal.catch_up())
        await asyncio.sleep(0.05)
        assert not caught_up.done()
        two.log.readable.set()
        assert await caught_up
        assert two.proposals == [1]


async def test_those_who_catch_up_at_the_same_time_share_a_record(entry: MakeEntry) -> None:
    async with nodes(1) as (node,):
        await settled(node)
        node.log.road.clear()
        before = node.log.records.end
        asking = [asyncio.create_task(node.journal.catch_up()) for _ in range(5)]
        await asyncio.sleep(0.01)
        asking += [asyncio.create_task(node.journal.catch_up()) for _ in range(5)]
        await asyncio.sleep(0.01)
        node.log.road.set()
        assert all(await asyncio.gather(*asking))
        assert node.log.records.end == before + 2
        node.journal.propose(entry(1))
        assert await node.journal.catch_up()
        assert node.log.records.end == before + 3


async def test_node_that_does_not_catch_up_in_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.limits.CATCH_UP_S", 0.05)
    async with nodes(1) as (node,):
        await settled(node)
        node.log.readable.clear()
        with pytest.raises(Unavailable):
            await node.journal.catch_up()
        node.log.readable.set()


async def test_node_that_starts_keeps_its_store_though_a_server_that_leads_no_more_has_less(entry: MakeEntry) -> None:
    async with nodes(1) as (node,):
        await node.write(*map(entry, range(3)))
        index, mark, records = node.index, node.mark, node.log.records
    again = Node(records)
    again.log.old_end = 2
    await again.start(index, mark)
    try:
        assert not again.quarantined
        await again.write(entry(3))
        assert again.heard.indexes == [4]
    finally:
        await again.journal.aclose()


async def test_node_knows_for_how_long_it_is_behind(entry: MakeEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.journal.cluster.LOOK_S", 0.01)
    monkeypatch.setattr("broker.limits.CATCH_UP_S", 0.05)
    async with nodes(2) as (one, two):

        async def two_lags() -> bool:
            return two.journal.lag_s > 0.3

        async def two_is_current() -> bool:
            return two.journal.lag_s < 0.1

        held: list[Commit | Refused] = []
        two.journal._deliver = held.append  # noqa: SLF001 -- as a partition does that still loads rows
        one.journal.propose(entry(1))
        assert await eventually(two_lags)
        assert one.journal.lag_s < 0.3
        two.journal._deliver = two.deliver  # noqa: SLF001 -- as above
        two.deliver(held[0])
        assert await eventually(two_is_current)
