"""broker/journal/cluster.py: a log, stores and nodes that do not belong together, and how each of them is told."""

import asyncio
from contextlib import suppress

import pytest

from broker.core.outcome import Outcome, Result
from broker.errors import Damaged, Diverged, EngineStopped, StartError
from broker.journal.cluster import ClusterJournal
from broker.journal.cluster_record import Audit, Envelope, decode_mark, encode
from broker.journal.shared_log import LogLost
from tests.broker.journal.bench import MakeEntry
from tests.broker.journal.memory_log import MemoryLog, Records
from tests.broker.journal.nodes import Node, entries_of, nodes, settled, until_stopped
from tests.eventually import eventually


async def test_record_of_a_newer_version_stops_the_journal_and_is_not_skipped(entry: MakeEntry) -> None:
    async with nodes(1) as (node,):
        node.log.records.put(b"SF\x02whatever this means")
        node.log.records.put(b"SF\x01\xc1")
        await node.heard.until(lambda: node.heard.stopped)
        assert "format version 2" in str(node.heard.stopped[0])
        with pytest.raises(EngineStopped):
            node.journal.propose(entry(1))


async def test_nodes_that_agree_find_that_in_each_others_audits(entry: MakeEntry) -> None:
    async with nodes(2, audit_s=0.2) as (one, two):

        async def both_agreed() -> bool:
            return bool(one.journal.events["audits"] and two.journal.events["audits"])

        one.journal.propose(entry(1))
        await two.heard.until_entries(1)
        await eventually(both_agreed)
        assert not one.heard.stopped
        assert not two.heard.stopped


async def test_node_that_made_something_else_of_the_log_stops_and_the_others_go_on(
    entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KAFKA.md A5. Its store is set aside; whoever read its audit does not know yet who of the two is wrong."""
    monkeypatch.setattr("broker.limits.DISPUTE_S", 0.3)
    records = Records()
    async with nodes(3, records, audit_s=0.2) as (one, two, three):
        index, mark = one.index, one.journal.mark()
        two.makes = Outcome(Result.DUPLICATE)
        one.journal.propose(entry(1))
        await two.heard.until(lambda: two.heard.stopped)
        assert isinstance(two.heard.stopped[0], Diverged)
        assert two.quarantined

        async def is_judged() -> bool:
            return bool(one.journal.events["audits_passed_over"] and three.journal.events["audits_passed_over"])

        await eventually(is_judged)
        one.journal.propose(entry(2))
        await three.heard.until_entries(2)
        await asyncio.sleep(0.5)  # whatever would stop them has its time
        assert not one.heard.stopped
        assert not three.heard.stopped
    again = Node(records)
    await again.start(index, mark)  # it reads of the dispute, and was not there
    try:
        await again.write(entry(3))
        await asyncio.sleep(0.6)
        assert not again.heard.stopped
    finally:
        await again.journal.aclose()


async def test_two_nodes_that_differ_both_begin_anew(entry: MakeEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell which of them is wrong but the log."""
    monkeypatch.setattr("broker.limits.DISPUTE_S", 0.3)
    async with nodes(2, audit_s=0.2) as (one, two):
        two.makes = Outcome(Result.DUPLICATE)
        one.journal.propose(entry(1))
        for node in (one, two):
            await until_stopped(node)
            assert isinstance(node.heard.stopped[0], Diverged)
            assert node.quarantined


async def test_wrong_audit_stops_nobody_who_has_made_all_anew_from_the_log(entry: MakeEntry) -> None:
    """It stays in the log: whoever could not get past it would never start again."""
    records = Records()
    async with nodes(2, records, audit_s=0.2) as (one, two):
        two.makes = Outcome(Result.DUPLICATE)
        one.journal.propose(entry(1))
        await two.heard.until(lambda: one.heard.stopped or two.heard.stopped)
    again = Node(records)
    again.makes = Outcome(Result.ACCEPTED, next_position=7)  # neither of the two
    await again.start()
    try:
        await again.write(entry(2))
        assert not again.quarantined
    finally:
        await again.journal.aclose()


async def test_node_whose_log_lost_records_and_grew_again_is_told_by_where_its_own_went(entry: MakeEntry) -> None:
    """It reads on behind what was lost, and has what the log has not: no other node needs to tell it."""
    async with nodes(1) as (node,):
        await node.write(*map(entry, range(3)))
        del node.log.records.records[-2:]
        node.journal.propose(entry(3))
        await node.heard.until(lambda: node.heard.stopped)
        assert isinstance(node.heard.stopped[0], Diverged)
        assert node.quarantined
        assert node.proposals == [0, 1, 2]


async def test_record_of_unknown_fate_is_not_written_to_a_log_that_has_lost_records_since(entry: MakeEntry) -> None:
    """The empty one that is to settle its fate tells, by its place, before anything is written again."""
    async with nodes(1) as (node,):
        for number in range(3):
            node.journal.propose(entry(number))
            await node.heard.until_entries(number + 1)
        del node.log.records.records[-2:]
        node.log.faults.append("lost")
        node.journal.propose(entry(3))
        await until_stopped(node)
        assert isinstance(node.heard.stopped[0], Diverged)
        assert len(entries_of(node.log.records)) == 1


async def test_audit_of_a_log_that_is_no_more_is_passed_over_and_has_no_vote(
    entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was under way while Kafka lost records, and lies before the place that it tells of."""
    monkeypatch.setattr("broker.limits.DISPUTE_S", 0.3)
    records = Records()
    async with nodes(2, records) as (one, two):
        await settled(one)
        await settled(two)
        log_uuid, future = decode_mark(one.journal.mark()).meta.log_uuid, records.end + 3
        for gone in (7, 8):
            records.put(encode(Envelope(gone, 1, audit=Audit(log_uuid, future, b"another"))))
        one.journal.propose(entry(1))
        await two.heard.until_entries(1)
        assert records.end == future
        records.put(encode(Envelope(9, 1, audit=Audit(log_uuid, future, b"wrong"))))

        async def is_judged() -> bool:
            return all(node.journal.events["audits_passed_over"] == 3 for node in (one, two))

        await eventually(is_judged)
        assert not one.quarantined
        assert not two.quarantined


async def test_node_whose_store_was_copied_while_it_ran_is_told(entry: MakeEntry) -> None:
    """The copy takes it for its own earlier life, and ends that."""
    async with nodes(1) as (node,):
        await node.write(entry(1))
        copy = Node(node.log.records)
        await copy.start(node.index, node.mark)
        try:
            await settled(copy)
            with suppress(EngineStopped):  # it may have been told already
                node.journal.propose(entry(2))
            await node.heard.until(lambda: node.heard.stopped)
            await copy.write(entry(3))
        finally:
            await copy.journal.aclose()


async def test_log_that_lost_what_the_store_has_is_told_and_the_store_set_aside(entry: MakeEntry) -> None:
    """An unclean election: what was acknowledged is gone from the log, and must not be served as if it were there."""
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(entry(1))
        index, mark = node.index, node.mark
    del records.records[-1]
    again = Node(records)
    with pytest.raises(Damaged, match="ends at position"):
        await again.start(index, mark)
    assert again.quarantined


async def test_log_that_lost_records_and_grew_again_while_a_node_was_down_is_told_when_it_starts(
    entry: MakeEntry,
) -> None:
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(*map(entry, range(3)))
        index, mark = node.index, node.mark
    del records.records[2:]
    async with nodes(1, records) as (other,):
        await other.write(*map(entry, range(10, 15)))
        assert records.end > decode_mark(mark).position
    again = Node(records)
    with pytest.raises(Damaged, match="another record at position"):
        await again.start(index, mark)
    assert again.quarantined


async def test_log_that_loses_the_newest_record_of_a_store_while_that_is_opened_is_told_as_it_is_read_on(
    entry: MakeEntry,
) -> None:
    """It was there when the start looked, and others came with it."""
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(entry(1))
        index, mark = node.index, node.mark
        await node.write(entry(2), entry(3))
    again = Node(records)
    await again.journal.open(index, 0, mark)
    del records.records[decode_mark(mark).position - 1 :]
    async with nodes(1, records) as (other,):
        await other.write(*map(entry, range(10, 15)))

    async def read_on() -> None:
        async for commit in again.journal.replay():
            again.apply(commit)

    with pytest.raises(Diverged, match="another record"):
        await read_on()
    assert again.quarantined
    await again.journal.aclose()


async def test_start_does_not_wait_for_what_the_log_lost_before_it_was_read(
    entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else is there to write as much again."""
    monkeypatch.setattr("broker.limits.CATCH_UP_S", 0.1)
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(*map(entry, range(3)))
    again = Node(records)
    await again.journal.open(0, 0, b"")
    del records.records[-2:]
    async with asyncio.timeout(10):
        async for commit in again.journal.replay():
            again.apply(commit)
    assert again.index == 1
    await again.journal.aclose()


async def test_record_that_settles_a_fate_and_is_lost_before_it_is_read_is_not_waited_for(
    entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else is there to write as much again."""
    monkeypatch.setattr("broker.limits.CATCH_UP_S", 0.1)
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(entry(1))
        end = records.end
        node.log.readable.clear()
        node.log.faults.append("unheard")
        node.journal.propose(entry(2))

        async def is_settled() -> bool:
            return records.end == end + 2

        await eventually(is_settled)
        del records.records[-2:]
        node.log.readable.set()
        await until_stopped(node)
        assert isinstance(node.heard.stopped[0], Diverged)
        assert node.quarantined


async def test_node_goes_on_where_its_store_stands_when_the_log_is_as_it_was(entry: MakeEntry) -> None:
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(entry(1))
        index, mark = node.index, node.mark
    again = Node(records)
    await again.start(index, mark)
    await again.write(entry(2))
    assert again.heard.indexes == [2]
    assert not again.quarantined
    await again.journal.aclose()


async def test_node_that_is_told_by_the_log_that_it_lost_records_stops_and_its_store_is_set_aside() -> None:
    async with nodes(1) as (node,):
        await settled(node)
        node.log.truncate()
        node.log.records.put(b"somebody else's")
        await node.heard.until(lambda: node.heard.stopped)
        assert isinstance(node.heard.stopped[0], Diverged)
        assert node.quarantined
        assert node.journal.events["diverged"] == 1


async def test_log_that_was_made_anew_under_its_name_is_told(entry: MakeEntry) -> None:
    async with nodes(1) as (node,):
        await node.write(entry(1))
        index, mark = node.index, node.mark
    other = Records()
    async with nodes(1, other) as (node,):
        await node.write(*map(entry, range(5)))
    again = Node(other)
    with pytest.raises(Damaged, match="made anew"):
        await again.start(index, mark)
    assert again.quarantined


async def test_node_whose_log_is_made_anew_while_it_runs_applies_nothing_of_the_new_one(entry: MakeEntry) -> None:
    """KF10. The new one may have grown to where the node reads on, and look like the old one."""
    new = Records()
    async with nodes(1, new) as (node,):
        await node.write(*map(entry, range(10, 20)))
    async with nodes(1) as (node,):
        await node.write(*map(entry, range(3)))
        node.log.records.records[:] = new.records
        with suppress(EngineStopped):
            node.journal.propose(entry(3))
        await until_stopped(node)
        assert isinstance(node.heard.stopped[0], LogLost)
        assert node.proposals == [0, 1, 2]


async def test_record_of_a_node_that_takes_the_log_for_its_old_one_is_void(entry: MakeEntry) -> None:
    """What the log begins with tells which of the two is wrong."""
    records = Records()
    async with nodes(1, records) as (node,):
        await node.write(entry(1))
        stray = Envelope(7, 1, tuple(entries_of(records)[:1]), log=b"anotherlog"[:8])
        records.put(encode(stray))
        index, mark = node.index, node.mark
        await node.write(entry(2))
        assert node.proposals == [1, 2]
    again = Node(records)
    await again.start(index, mark)
    try:
        await again.write(entry(3))
        assert again.proposals == [2, 3]
    finally:
        await again.journal.aclose()


async def test_log_with_another_number_of_partitions_is_refused() -> None:
    records = Records()
    async with nodes(1, records):
        pass
    journal = ClusterJournal(MemoryLog(records), partition=0, partitions=4)
    with pytest.raises(StartError, match="partition 0 of 1, not 0 of 4"):
        await journal.open(0, 0)


async def test_log_that_somebody_else_writes_is_refused() -> None:
    records = Records()
    records.put(b"{}")
    with pytest.raises(StartError, match="not written"):
        await ClusterJournal(MemoryLog(records)).open(0, 0)


async def test_store_of_another_engine_is_refused() -> None:
    with pytest.raises(Damaged, match="another engine"):
        await ClusterJournal(MemoryLog(Records())).open(7, 0)
