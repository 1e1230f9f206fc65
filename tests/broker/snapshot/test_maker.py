"""broker/snapshot/maker.py: when a snapshot is made, by whom, and what the log may forget for it."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker import limits
from broker.errors import Diverged, EngineStopped
from broker.journal.cluster_record import decode
from broker.snapshot.folder import Folder
from broker.snapshot.form import Facts
from tests.broker.journal.memory_log import Records
from tests.broker.snapshot.bench import Node


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between two looks."""
    for name in ("SNAPSHOT_ANNOUNCE_S", "SNAPSHOT_PATIENCE_S", "SNAPSHOT_RETRY_S"):
        monkeypatch.setattr(limits, name, 0.0)


def kept(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


async def make_one_with_another_due(node: Node) -> None:
    await node.create()
    await node.write()
    await node.snapshot()
    await node.write()


async def test_snapshot_is_made_once_the_log_has_grown_enough_and_not_before(tmp_path: Path) -> None:
    async with Node(Records(), tmp_path / "a", tmp_path / "place") as node:
        await node.create()
        await node.write(1)
        for _ in range(3):
            await node.maker.look()
            await node.partition.catch_up()
        assert kept(tmp_path / "place") == []
        await node.write(2)
        await node.snapshot()
        (name,) = kept(tmp_path / "place")
        assert name.startswith(f"{node.maker.newest.position:020}-" if node.maker.newest else "none")
        assert node.maker.behind_bytes < 2_000


async def test_log_goes_back_to_the_older_of_two_snapshots_and_begins_with_what_it_is(tmp_path: Path) -> None:
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await node.create()
        firsts, positions = [], []
        for _ in range(4):
            await node.write()
            await node.snapshot()
            assert node.maker.newest is not None
            positions.append(node.maker.newest.position)
            firsts.append(records.first)
        assert firsts[0] == 0
        assert all(0 < first <= older for first, older in zip(firsts[1:], positions, strict=False))
        envelope = decode(records.records[0].data)
        assert envelope is not None
        assert envelope.meta is not None
        assert envelope.meta.log_uuid == node.journal.identity
        assert len(kept(tmp_path / "place")) == 2


async def test_of_several_nodes_that_find_it_due_one_makes_it(tmp_path: Path) -> None:
    records = Records()
    async with (
        Node(records, tmp_path / "a", tmp_path / "place") as one,
        Node(records, tmp_path / "b", tmp_path / "place") as two,
    ):
        await one.create()
        await one.write()
        for _ in range(5):
            for node in (one, two):
                await node.maker.look()
            for node in (one, two):
                await node.partition.catch_up()
        assert one.maker.counts.made + two.maker.counts.made == 1


async def test_another_node_makes_it_when_the_one_that_announced_it_does_not(tmp_path: Path) -> None:
    """It is gone for good, and nobody says so: the log has grown by as much again."""
    records = Records()
    async with (
        Node(records, tmp_path / "a", tmp_path / "place") as gone,
        Node(records, tmp_path / "b", tmp_path / "place") as node,
    ):
        await gone.create()
        await gone.write()
        await gone.maker.look()
        await gone.partition.catch_up()
        await node.partition.catch_up()
        for _ in range(3):
            await node.maker.look()
            await node.partition.catch_up()
        assert node.maker.counts.made == 0
        await node.write()
        await node.snapshot()


async def test_node_that_comes_back_makes_what_its_earlier_life_had_announced(tmp_path: Path) -> None:
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await node.create()
        await node.write()
        await node.maker.look()
        await node.partition.catch_up()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await node.snapshot()


async def test_damaged_snapshot_does_not_count_and_the_log_keeps_what_only_one_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await node.create()
        await node.write()
        await node.snapshot()
        (first,) = (tmp_path / "place").iterdir()
        first.write_bytes(first.read_bytes()[:-1])
        await node.write()
        await node.snapshot()
        assert records.first == 0
        assert f"{first.name} in {tmp_path / 'place'} is not used: it is damaged: it is cut short" in caplog.text
        assert node.maker.damaged
        await node.write()
        await node.snapshot()
        assert records.first > 0
        assert first.name not in kept(tmp_path / "place")


async def test_node_trims_nothing_once_the_log_has_lost_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read its snapshots back meanwhile, and did not know yet."""
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await make_one_with_another_due(node)
        good = node.shelf.good

        def good_and_then_lost(*asked: Any) -> Any:
            found = good(*asked)
            del records.records[-2:]
            return found

        monkeypatch.setattr(node.shelf, "good", good_and_then_lost)
        while node.partition.failure is None:
            await node.maker.look()
            with suppress(EngineStopped):
                await node.partition.catch_up()
        assert isinstance(node.partition.failure, Diverged)
        assert len(kept(tmp_path / "place")) == 2
        assert records.first == 0


async def test_snapshot_that_does_not_tell_its_newest_record_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As an earlier version made them: whether the log has lost what it is of, nobody can tell."""
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await node.create()
        with monkeypatch.context() as earlier:
            earlier.setattr("broker.snapshot.maker.Facts", partial(untold, Facts))
            await node.write()
            await node.snapshot()
        (first,) = kept(tmp_path / "place")
        await node.write()
        await node.snapshot()
        assert records.first == 0
        assert (
            f"{first} in {tmp_path / 'place'} is not used: the log may have lost what it was made from" in caplog.text
        )
        await node.write()
        await node.snapshot()
        assert records.first > 0
        assert first not in kept(tmp_path / "place")


def untold(make: Callable[..., Facts], **facts: Any) -> Facts:
    return make(**facts | {"newest": b""})


async def test_server_that_leads_no_more_is_not_asked_what_the_log_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has what the log has lost. Nothing is trimmed, and nothing is given up, before one answers that leads."""
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await make_one_with_another_due(node)
        node.log.old_records = [*records.records]
        while not node.maker.counts.failures:
            await node.maker.look()
            await node.partition.catch_up()
        assert "who answers for the log does not have the record that was read at position" in caplog.text
        assert records.first == 0
        assert not node.maker.damaged
        node.log.old_records = None
        await node.write()
        await node.snapshot()
        assert records.first > 0


async def test_trim_that_the_log_does_not_take_soon_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody leads it, and who will may have lost what it was found to have before."""
    monkeypatch.setattr(limits, "SNAPSHOT_TRIM_S", 0.05)
    records = Records()

    async def until_somebody_leads(_: int) -> None:
        await asyncio.Event().wait()

    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        await make_one_with_another_due(node)
        with monkeypatch.context() as election:
            election.setattr(node.log, "trim", until_somebody_leads)
            await node.snapshot()
        assert "was not trimmed soon enough after it was asked what it has" in caplog.text
        assert len(kept(tmp_path / "place")) == 2
        await node.write()
        await node.snapshot()
        assert records.first > 0


class Forgetful(Folder):
    """Keeps something else than it was given."""

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        super().write(name, [b"".join(chunks)[:-1] + b"?"])


async def test_place_that_keeps_something_else_is_noticed_before_the_log_is_trimmed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records()
    async with Node(records, tmp_path / "a", tmp_path / "place") as node:
        node.shelf._place = Forgetful(tmp_path / "place")  # noqa: SLF001 -- a place that lies
        await node.create()
        for _ in range(3):
            await node.write()
            for _ in range(3):
                await node.maker.look()
                await node.partition.catch_up()
        assert node.maker.counts.made == 0
        assert node.maker.counts.failures > 0
        assert records.first == 0
        assert "is not what is read back" in caplog.text


async def test_place_that_cannot_be_written_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "place"
    place.write_text("a file, not a folder")
    async with Node(Records(), tmp_path / "a", place) as node:
        await node.create()
        await node.write()
        await node.maker.look()
        assert node.maker.counts.failures == 1
        assert f"no snapshot in {place}, tried again later" in caplog.text
        place.unlink()
        await node.snapshot()
        assert not node.data_dir.snapshot_path.exists()
