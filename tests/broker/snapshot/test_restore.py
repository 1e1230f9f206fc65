"""broker/snapshot/restore.py: who begins with a snapshot, with which one, and who must not begin at all."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from broker import limits
from broker.errors import Damaged, EngineStopped, StartError
from broker.snapshot.form import name_of
from tests.broker.journal.memory_log import Records
from tests.broker.snapshot.bench import Node
from tests.simulator.dump import Dump, store_dump


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SNAPSHOT_ANNOUNCE_S", "SNAPSHOT_PATIENCE_S", "SNAPSHOT_RETRY_S"):
        monkeypatch.setattr(limits, name, 0.0)


@pytest.fixture
async def records(tmp_path: Path) -> Records:
    """A log that was trimmed, with two snapshots of node `a` behind it and a tail."""
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await node.create()
        for _ in range(3):
            await node.write()
            await node.snapshot()
        await node.write(2)
    assert records.first > 0
    assert len(snapshots(tmp_path)) == 2
    return records


def snapshots(tmp_path: Path) -> list[Path]:
    """The files, the newest one first."""
    return sorted((tmp_path / "place").iterdir(), reverse=True)


def dump(data_dir: Path) -> Dump:
    with closing(sqlite3.connect(data_dir / "store.sqlite")) as connection:
        return store_dump(connection)


async def test_node_without_a_store_is_what_the_others_are(tmp_path: Path, records: Records) -> None:
    """KI15: same index, same chain, same store."""
    async with (
        Node(records, tmp_path / "a", tmp_path / "place") as one,
        Node(records, tmp_path / "b", tmp_path / "place") as two,
    ):
        assert await two.tail() == await one.tail() == 11
        await two.write(1)
        await one.write(1)  # what began with a copy of its store has not voided what it writes
        assert await one.tail() == await two.tail() == 13
        assert one.partition.applied_index == two.partition.applied_index
        assert one.journal._standing.chain == two.journal._standing.chain  # noqa: SLF001 -- what audits compare
    assert dump(tmp_path / "a") == dump(tmp_path / "b")
    assert not (tmp_path / "b" / "snapshot.sqlite").exists()


async def test_node_whose_store_ends_before_the_log_begins_takes_a_snapshot_instead(tmp_path: Path) -> None:
    records = Records()
    async with Node(records, tmp_path / "b", tmp_path / "place") as behind:
        await behind.create()
        await behind.write(1)
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        for _ in range(3):
            await node.write()
            await node.snapshot()
    async with Node(records, tmp_path / "b", tmp_path / "place") as behind:
        assert await behind.tail() == 10
    assert dump(tmp_path / "a") == dump(tmp_path / "b")


async def test_node_whose_store_is_enough_keeps_it(tmp_path: Path, records: Records) -> None:
    for path in snapshots(tmp_path):
        path.unlink()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        assert await node.tail() == 11


async def test_new_node_spares_itself_a_log_that_is_whole(tmp_path: Path) -> None:
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await node.create()
        await node.write()
        await node.snapshot()
    assert records.first == 0
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        assert (tmp_path / "b" / "begun-with").read_text().strip() == snapshots(tmp_path)[0].name
        assert await node.tail() == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "newer", "renamed"])
async def test_snapshot_that_cannot_be_used_is_passed_over_for_an_older_one(
    damage: str, tmp_path: Path, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    newest, older = snapshots(tmp_path)
    data = newest.read_bytes()
    middle = len(data) // 2
    newest.write_bytes(
        {
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "cut": data[:middle],
            "empty": b"",
            "newer": data[:4] + b"\x7f" + data[5:],
            "renamed": older.read_bytes(),
        }[damage]
    )
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        assert await node.tail() == 11
        assert (tmp_path / "b" / "begun-with").read_text().strip() == older.name
    assert f"{newest.name} in {tmp_path / 'place'} is not used: it" in caplog.text
    assert dump(tmp_path / "a") == dump(tmp_path / "b")


async def test_no_usable_snapshot_is_a_refusal_that_names_what_is_missing(tmp_path: Path, records: Records) -> None:
    for path in snapshots(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    node = Node(records, tmp_path / "b", tmp_path / "place")
    with pytest.raises(StartError, match=f"the log begins at position {records.first}; this node has no store, and"):
        await node.__aenter__()
    assert not (tmp_path / "b" / "store.sqlite").exists()
    for path in snapshots(tmp_path):
        path.unlink()
    with pytest.raises(StartError, match="there is no snapshot in"):
        await Node(records, tmp_path / "b", tmp_path / "place").__aenter__()


async def test_store_that_is_too_old_is_not_lost_with_the_refusal(tmp_path: Path) -> None:
    records = Records()
    async with Node(records, tmp_path / "b", tmp_path / "place") as behind:
        await behind.create()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        for _ in range(2):
            await node.write()
            await node.snapshot()
    shutil.rmtree(tmp_path / "place")
    before = dump(tmp_path / "b")
    with pytest.raises(StartError, match="this node's store ends at position"):
        await Node(records, tmp_path / "b", tmp_path / "place").__aenter__()
    assert dump(tmp_path / "b") == before


async def test_snapshots_of_a_topic_that_was_made_anew_are_left_alone(tmp_path: Path, records: Records) -> None:
    assert records.first > 0
    fresh = Records()
    async with Node(fresh, tmp_path / "b", tmp_path / "place") as node:
        assert await node.tail() == 0
        await node.create()
    async with Node(fresh, tmp_path / "c", tmp_path / "place") as node:
        assert await node.tail() == 0
    assert not (tmp_path / "c" / "begun-with").exists()
    assert len(snapshots(tmp_path)) == 2


async def test_snapshot_whose_store_was_set_aside_is_not_taken_twice(
    tmp_path: Path, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a node that began with a wrong one would do so for ever."""
    newest, older = snapshots(tmp_path)
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        node.data_dir.quarantine("it is not what the others have")
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        assert await node.tail() == 11
        assert (tmp_path / "b" / "begun-with").read_text().strip() == older.name
    assert f"{newest.name} in {tmp_path / 'place'} is not used: a store that was made with it" in caplog.text


async def test_snapshot_is_taken_again_where_the_log_lost_records_behind_it(tmp_path: Path, records: Records) -> None:
    """It is right, and the others may be what the log has lost."""
    newest, _ = snapshots(tmp_path)
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        await node.write(2)
        del records.records[-2:]
        with pytest.raises(EngineStopped):
            await node.write(1)
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        assert list((tmp_path / "b").glob("set-aside-*"))
        assert (tmp_path / "b" / "begun-with").read_text().strip() == newest.name
        await node.write(1)


async def test_snapshot_that_has_what_the_log_lost_is_not_taken_twice(tmp_path: Path, records: Records) -> None:
    newest, older = snapshots(tmp_path)
    cut_before(newest, records)
    with pytest.raises(Damaged, match="the log ends at position"):
        await Node(records, tmp_path / "b", tmp_path / "place").__aenter__()
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        assert (tmp_path / "b" / "begun-with").read_text().strip() == older.name
        await node.write(1)


async def test_log_is_not_trimmed_behind_a_snapshot_that_has_what_it_lost(tmp_path: Path, records: Records) -> None:
    """Or one alone could be begun with; and were that one damaged, none."""
    newest, older = snapshots(tmp_path)
    cut_before(newest, records)
    with pytest.raises(Damaged):
        await Node(records, tmp_path / "b", tmp_path / "place").__aenter__()
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        before = records.first
        await node.write(6)
        await node.snapshot()
        made, lost, kept = snapshots(tmp_path)
        assert (lost.name, kept.name) == (newest.name, older.name)
        assert records.first == before
        await node.write()
        await node.snapshot()
        assert records.first > before
        assert made in snapshots(tmp_path)


async def test_log_is_not_trimmed_behind_what_it_lost_before_the_node_that_trims_was_started(
    tmp_path: Path, records: Records
) -> None:
    """That has not passed the place of the loss itself: it began behind it, and what it counts by is in the log."""
    newest, older = snapshots(tmp_path)
    cut_before(newest, records)
    with pytest.raises(Damaged):
        await Node(records, tmp_path / "b", tmp_path / "place").__aenter__()
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        await node.write(5)
    async with Node(records, tmp_path / "b", tmp_path / "place") as node:
        before = records.first
        await node.write()
        await node.snapshot()
        assert snapshots(tmp_path)[1:] == [newest, older]
        assert records.first == before


def cut_before(snapshot: Path, records: Records) -> None:
    """The log loses the last records that the snapshot was made from, and all behind."""
    named = name_of(snapshot.name)
    assert named is not None
    del records.records[named.position - 2 - records.first :]


async def test_place_that_does_not_answer_stops_nobody_who_can_read_the_whole_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "none") as node:
        await node.create()
        await node.write(1)
    place = tmp_path / "place"
    place.write_text("a file, not a folder")
    async with Node(records, tmp_path / "b", place) as node:
        assert await node.tail() == 1
    assert "the log has everything" in caplog.text
    records.first, records.records = 1, records.records[1:]
    with pytest.raises(StartError, match=str(place)):
        await Node(records, tmp_path / "c", place).__aenter__()
