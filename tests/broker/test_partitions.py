"""broker/partitions.py: several partitions that look like one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from broker.core.entry import Entry, ForkOptions, ForkRefOptions, Kind, encode_options
from broker.core.fork import lineage_of
from broker.core.outcome import Result
from broker.core.state import session_key
from broker.errors import EngineStopped
from broker.journal.memory import MemoryJournal
from broker.materializer import Materializer
from broker.partition import Partition
from broker.partitions import Partitions, place_of
from broker.sweeper import Sweeper
from tests.broker.core.entries import append, chunks, create, create_session, delete, message
from tests.broker.held import HeldStore

COUNT = 4
HOUR_MS = 3_600_000


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Partitions, list[HeldStore]]]:
    stores = [HeldStore() for _ in range(COUNT)]
    partitions = Partitions([Partition(MemoryJournal(), store, checkpoint_interval_s=3600) for store in stores])
    await partitions.open()
    try:
        yield partitions, stores
    finally:
        await partitions.aclose()


def at(path: str, entry: Entry) -> Entry:
    """The entry, of another path."""
    return msgspec.structs.replace(entry, path=path)


def paths_in(place: int) -> str:
    """A path that is in that partition."""
    return next(path for number in range(1000) if place_of(path := f"path-{number}", COUNT) == place)


async def content(partitions: Partitions, path: str) -> bytes:
    stream, data = await partitions.stream(path), b""
    assert stream is not None
    position = 0
    while page := await partitions.read(path, stream, position, 1 << 20):
        data, position = data + page.data + b";", page.end
    assert position == stream.tail
    return data


@pytest.mark.parametrize(
    ("path", "place"),
    [("a", 153), ("a/b", 81), ("sessions/s", 223), ("sessions/s/anything", 223), ("__ds/subscriptions/x", 250)],
)
def test_place_of_a_path_never_changes(path: str, place: int) -> None:
    assert place_of(path, 251) == place


def test_paths_spread_evenly() -> None:
    places = Counter(place_of(f"sessions/{number}", 8) for number in range(8_000))
    assert min(places.values()) > 850


async def test_each_path_lives_in_its_partition_and_is_found_through_all_of_them() -> None:
    async with opened() as (partitions, stores):
        paths = [paths_in(place) for place in range(COUNT)]
        for path in paths:
            assert (await partitions.propose(at(path, create(path.encode())))).result is Result.CREATED
        for path in paths:
            assert await content(partitions, path) == path.encode() + b";"
        assert sorted([path async for path in partitions.stream_paths("")]) == sorted(paths)
        await partitions.checkpoint()
        assert [store.written[0].head.applied_index for store in stores] == [1] * COUNT


async def test_fork_reads_what_it_inherits_in_the_partition_of_its_source() -> None:
    source, child = paths_in(0), paths_in(1)
    async with opened() as (partitions, _):
        await partitions.propose(at(source, create(b"inherited")))
        deadline_ms = partitions.now_ms() + HOUR_MS
        ref = Entry(Kind.FORK_REF, source, nonce=7, options=encode_options(ForkRefOptions(child, deadline_ms)))
        agreed = await partitions.propose(ref)
        assert agreed.stream is not None
        lineage = lineage_of(agreed.stream, source, agreed.stream.tail)
        options = ForkOptions(source, agreed.stream.incarnation, lineage, deadline_ms, content_type="text/plain")
        await partitions.propose(Entry(Kind.FORK, child, nonce=7, options=encode_options(options)))
        await partitions.propose(at(child, append(b"own", content_type="text/plain")))
        assert await content(partitions, child) == b"inherited,own;"

        await partitions.propose(at(source, delete()))
        await partitions.checkpoint()
        assert await content(partitions, child) == b"inherited,own;"
        await partitions.propose(at(child, delete()))
        await Sweeper(partitions).clear_up()
        gone = await partitions.of(source)._row(b"s" + source.encode())  # noqa: SLF001 -- a deleted stream is not shown
        assert gone is None


async def test_snapshot_of_a_session_is_stored_in_the_partition_that_has_the_session() -> None:
    async with opened() as (partitions, stores):
        materializer = Materializer(partitions)
        paths = [f"sessions/s{number}" for number in range(8)]
        for path in paths:
            await partitions.propose(at(path, create_session()))
            await partitions.propose(at(path, message("m", b'{"id":"m","role":"user"}')))
            await materializer.messages(path)
        await partitions.checkpoint()
        await partitions.checkpoint()
        for place, store in enumerate(stores):
            told = {snapshot.path for written in store.written for snapshot in written.snapshots}
            held = {key[1:].decode() for written in store.written for key in written.rows if key.startswith(b"S")}
            assert told == held == {path for path in paths if place_of(path, COUNT) == place}
        assert session_key(paths[0]).startswith(b"S")


async def test_sessions_with_open_generations_are_known_wherever_they_are() -> None:
    async with opened() as (partitions, _):
        for number in range(8):
            await partitions.propose(at(f"sessions/s{number}", create_session()))
            await partitions.propose(at(f"sessions/s{number}", chunks("g", 0, b"1")))
        assert len(partitions.open_sessions) == 8


async def test_partition_that_stopped_takes_the_node_out_of_service() -> None:
    async with opened() as (partitions, _):
        partitions.of("a").failure = EngineStopped("of a test")
        assert (partitions.healthy, str(partitions.failure)) == (False, "of a test")


async def test_one_switch_and_one_number_for_all_of_them() -> None:
    async with opened() as (partitions, _):
        partitions.synchronous = True
        assert [partitions.of(paths_in(place)).synchronous for place in range(COUNT)] == [True] * COUNT
        await partitions.propose(Entry(Kind.NOOP, ""))
        assert (partitions.applied_index, partitions.in_flight, partitions.lag_s) == (COUNT, 0, 0.0)
        assert partitions.journal_events == {}
        partitions.drain()
        assert partitions.draining


async def test_sessions_are_listed_by_activity_whatever_partition_they_are_in() -> None:
    async with opened() as (partitions, _):
        paths = [f"sessions/s{number}" for number in range(8)]
        for path in paths:
            await partitions.propose(at(path, create_session()))
        begun_at = partitions.recent.number
        await partitions.propose(at(paths[3], message("m", b"{}")))
        listed = await partitions.sessions(None, 5)
        assert [each[1].active_ms for each in listed] == sorted((each[1].active_ms for each in listed), reverse=True)
        last = listed[-1]
        rest = await partitions.sessions((last[1].active_ms, last[0]), 5)
        assert sorted(path for path, _, _ in [*listed, *rest]) == paths
        (change,) = partitions.recent.since(begun_at)
        assert change.path == paths[3]
        assert change.entry_index == partitions.applied_indexes[change.partition]
