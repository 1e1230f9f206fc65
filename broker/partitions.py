"""Several partitions as one: whatever is about a path goes to the partition that holds it.

Each is a partition whole, with a journal and a store of its own; nothing orders what happens in one against what
happens in another. What spans two (a fork and its source, a subscription and its streams) is several entries, each
decided in its own partition, and heals where one of them is missing. What others look after (open sessions,
subscriptions, forks that went) is in tables that all of them share: paths and ids are in one partition only.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import lru_cache

from broker import limits
from broker.core.entry import Entry, Kind
from broker.core.outcome import Outcome
from broker.core.page import Page
from broker.core.state import Generation, Session, Stream
from broker.log import Log
from broker.partition import Partition, Subscribers, Waiter
from broker.proposals import Proposer, Together
from broker.store import Snapshot
from broker.watches import Watcher

_OF_A_SUBSCRIPTION = frozenset(
    {
        Kind.SUBSCRIPTION_CREATE,
        Kind.SUBSCRIPTION_LINK,
        Kind.SUBSCRIPTION_ATTEMPT,
        Kind.SUBSCRIPTION_CLAIM,
        Kind.SUBSCRIPTION_ACK,
        Kind.SUBSCRIPTION_DELETE,
    }
)
_SESSIONS = "sessions/"


@lru_cache(maxsize=limits.PLACES_MAX)
def place_of(path: str, count: int) -> int:
    """Which of `count` partitions holds a path. Stored data depends on it: it never changes.

    A session and everything under it are in one.
    """
    if path.startswith(_SESSIONS):
        path = "/".join(path.split("/", 2)[:2])
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") % count


class Partitions:
    """What a `Partition` is to others, over several. They are this one's: it opens and closes them."""

    def __init__(self, partitions: Sequence[Partition]) -> None:
        self._all = tuple(partitions)
        first = self._all[0]
        self.durability = first.durability
        self.counts = first.counts
        self.open_sessions = first.open_sessions
        self.orphans = first.orphans
        self.crowded = first.crowded
        self.subscriptions = first.subscriptions
        self.recent = first.recent
        for number, partition in enumerate(self._all):
            partition.number = number
            partition.counts = self.counts
            partition.open_sessions = self.open_sessions
            partition.orphans = self.orphans
            partition.crowded = self.crowded
            partition.subscriptions = self.subscriptions
            partition.recent = self.recent
            partition.records.elsewhere = self._records_of
        self._snapshots: Callable[[], Awaitable[list[Snapshot]]] | None = None
        self._kept: dict[Partition, list[Snapshot]] = {partition: [] for partition in self._all}

    def of(self, path: str) -> Partition:
        """The partition that holds a path."""
        return self._all[place_of(path, len(self._all))]

    def _for(self, entry: Entry) -> Partition:
        return self.of(f"__ds/subscriptions/{entry.path}" if entry.kind in _OF_A_SUBSCRIPTION else entry.path)

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """All of them. Raises StartError."""
        opening = [asyncio.create_task(partition.open()) for partition in self._all]
        try:
            await asyncio.gather(*opening)
        finally:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)

    def drain(self) -> None:
        """As `Partition.drain`."""
        for partition in self._all:
            partition.drain()

    async def aclose(self, within_s: float = limits.DRAIN_S) -> None:
        """As `Partition.aclose`."""
        await asyncio.gather(*(partition.aclose(within_s) for partition in self._all))

    @property
    def draining(self) -> bool:
        """Whether any of them is: they drain together, or one has stopped."""
        return any(partition.draining for partition in self._all)

    @property
    def failure(self) -> Exception | None:
        """Why one of them has stopped."""
        return next((partition.failure for partition in self._all if partition.failure is not None), None)

    @property
    def healthy(self) -> bool:
        """Whether all of them acknowledge: a node that has lost one is no use to those who do not know which."""
        return all(partition.healthy for partition in self._all)

    @property
    def synchronous(self) -> bool:
        """As `Partition.synchronous`."""
        return self._all[0].synchronous

    @synchronous.setter
    def synchronous(self, synchronous: bool) -> None:
        for partition in self._all:
            partition.synchronous = synchronous

    @property
    def applied_index(self) -> int:
        """Entries applied, in all of them."""
        return sum(partition.applied_index for partition in self._all)

    @property
    def applied_indexes(self) -> list[int]:
        """As `Partition.applied_indexes`."""
        return [partition.applied_index for partition in self._all]

    @property
    def unstored_bytes(self) -> int:
        """As `Partition.unstored_bytes`, in all of them."""
        return sum(partition.unstored_bytes for partition in self._all)

    @property
    def in_flight(self) -> int:
        """As `Partition.in_flight`, in all of them."""
        return sum(partition.in_flight for partition in self._all)

    @property
    def lag_s(self) -> float:
        """As `Partition.lag_s`, of the one that is furthest behind."""
        return max(partition.lag_s for partition in self._all)

    @property
    def journal_events(self) -> Mapping[str, int]:
        """As `Partition.journal_events`, of all of them."""
        events: Counter[str] = Counter()
        for partition in self._all:
            events.update(partition.journal_events)
        return events

    async def catch_up(self) -> bool:
        """As `Partition.catch_up`, all of them."""
        return all(await asyncio.gather(*(partition.catch_up() for partition in self._all)))

    def now_ms(self) -> int:
        """The time that all of them have reached."""
        return min(partition.now_ms() for partition in self._all)

    # -- writing -----------------------------------------------------------------------------------------------------

    async def propose(self, entry: Entry) -> Outcome:
        """As `Partition.propose`. An entry about no path goes to all of them: it is behind whatever was on its way."""
        if entry.kind == Kind.NOOP and not entry.path:
            return (await asyncio.gather(*(partition.propose(Entry(Kind.NOOP, "")) for partition in self._all)))[0]
        return await self._for(entry).propose(entry)

    def propose_nowait(self, entry: Entry) -> asyncio.Future[Outcome]:
        """As `Partition.propose_nowait`, for an entry about a path."""
        return self._for(entry).propose_nowait(entry)

    def propose_for(self, waiter: Waiter, entry: Entry, *, looks_ahead: bool = False) -> None:
        """As `Partition.propose_for`, for an entry about a path."""
        self._for(entry).propose_for(waiter, entry, looks_ahead=looks_ahead)

    def claim(self, proposer: Proposer, entry: Entry) -> bool:
        """As `Partition.claim`."""
        return self._for(entry).claim(proposer, entry)

    def let_go(self, proposer: Proposer) -> None:
        """As `Partition.let_go`."""
        for partition in self._all:
            partition.let_go(proposer)

    def propose_together(self, gathered: Sequence[Together]) -> None:
        """As `Partition.propose_together`."""
        for each in gathered:
            self._for(each[1]).propose_together((each,))

    def has_room(self, entry: Entry) -> bool:
        """As `Partition.has_room`."""
        return self._for(entry).has_room(entry)

    async def wait_for_room(self, entry: Entry) -> None:
        """As `Partition.wait_for_room`."""
        await self._for(entry).wait_for_room(entry)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def stream(self, path: str) -> Stream | None:
        """As `Partition.stream`."""
        return await self.of(path).stream(path)

    async def session(self, path: str) -> Session | None:
        """As `Partition.session`."""
        return await self.of(path).session(path)

    async def sessions(self, before: tuple[int, str] | None, limit: int) -> list[tuple[str, Session, Stream]]:
        """As `Partition.sessions`, of all of them."""
        found = await asyncio.gather(*(partition.sessions(before, limit) for partition in self._all))
        merged = (each for of_one in found for each in of_one)
        return sorted(merged, key=lambda each: (each[1].active_ms, each[0]), reverse=True)[:limit]

    async def idle_sessions(
        self, after: tuple[int, str], before_ms: int, limit: int
    ) -> list[tuple[str, Session, Stream | None]]:
        """As `Partition.idle_sessions`, of all of them."""
        found = await asyncio.gather(*(partition.idle_sessions(after, before_ms, limit) for partition in self._all))
        merged = (each for of_one in found for each in of_one)
        return sorted(merged, key=lambda each: (each[1].active_ms, each[0]))[:limit]

    async def generation(self, path: str, generation_id: str) -> Generation | None:
        """As `Partition.generation`."""
        return await self.of(path).generation(path, generation_id)

    async def read(self, path: str, stream: Stream, position: int, bytes_max: int) -> Page | None:
        """As `Partition.read`. A fork may be here before what it inherits is: that is waited for."""
        partition = self.of(path)
        page = await partition.read(path, stream, position, bytes_max)
        if page is None and position < stream.tail and stream.lineage and await self.catch_up():
            page = await partition.read(path, stream, position, bytes_max)
        return page

    async def wait(self, path: str, incarnation: int, position: int, timeout_s: float) -> None:
        """As `Partition.wait`."""
        await self.of(path).wait(path, incarnation, position, timeout_s)

    def held(self, path: str, incarnation: int) -> Stream | None:
        """As `Partition.held`."""
        return self.of(path).held(path, incarnation)

    def newest(self, path: str, incarnation: int, position: int, bytes_max: int) -> Page | None:
        """As `Partition.newest`."""
        return self.of(path).newest(path, incarnation, position, bytes_max)

    def watch(self, path: str, watcher: Watcher) -> None:
        """As `Partition.watch`."""
        self.of(path).watch(path, watcher)

    def unwatch(self, path: str, watcher: Watcher) -> None:
        """As `Partition.unwatch`."""
        self.of(path).unwatch(path, watcher)

    async def wait_for_end(self, path: str, generation_id: str, timeout_s: float) -> None:
        """As `Partition.wait_for_end`."""
        await self.of(path).wait_for_end(path, generation_id, timeout_s)

    async def settle(self, path: str) -> None:
        """As `Partition.settle`."""
        await self.of(path).settle(path)

    def touch(self, path: str, stream: Stream) -> None:
        """As `Partition.touch`."""
        self.of(path).touch(path, stream)

    async def overdue(self, limit: int) -> list[tuple[str, int]]:
        """As `Partition.overdue`; `limit` of each."""
        found = await asyncio.gather(*(partition.overdue(limit) for partition in self._all))
        return [stream for of_one in found for stream in of_one]

    async def sources(self) -> AsyncIterator[str]:
        """As `Partition.sources`."""
        for partition in self._all:
            async for path in partition.sources():
                yield path

    async def idle_producers(self, path: str, idle_since_ms: int) -> AsyncIterator[str]:
        """As `Partition.idle_producers`."""
        async for producer_id in self.of(path).idle_producers(path, idle_since_ms):
            yield producer_id

    async def stream_paths(self, prefix: str) -> AsyncIterator[str]:
        """As `Partition.stream_paths`."""
        for partition in self._all:
            async for path in partition.stream_paths(prefix):
                yield path

    async def stored_snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        """As `Partition.stored_snapshot`."""
        return await self.of(path).stored_snapshot(path, incarnation)

    async def sweep(self) -> bool:
        """As `Partition.sweep`."""
        return any(await asyncio.gather(*(partition.sweep() for partition in self._all)))

    async def checkpoint(self) -> None:
        """As `Partition.checkpoint`."""
        await asyncio.gather(*(partition.checkpoint() for partition in self._all))

    # -- who follows -------------------------------------------------------------------------------------------------

    @property
    def subscribers(self) -> Subscribers | None:
        """As `Partition.subscribers`: of all."""
        return self._all[0].subscribers

    @subscribers.setter
    def subscribers(self, subscribers: Subscribers | None) -> None:
        for partition in self._all:
            partition.subscribers = subscribers

    @property
    def observe(self) -> Callable[[str], None] | None:
        """As `Partition.observe`: of all."""
        return self._all[0].observe

    @observe.setter
    def observe(self, observe: Callable[[str], None] | None) -> None:
        for partition in self._all:
            partition.observe = observe

    @property
    def snapshots(self) -> Callable[[], Awaitable[list[Snapshot]]] | None:
        """As `Partition.snapshots`: each rides in the checkpoint of the partition that holds its session."""
        return self._snapshots

    @snapshots.setter
    def snapshots(self, snapshots: Callable[[], Awaitable[list[Snapshot]]]) -> None:
        self._snapshots = snapshots
        for partition in self._all:
            partition.snapshots = self._snapshots_for(partition, snapshots)

    @property
    def all_told(self) -> Callable[[], None]:
        """As `Partition.all_told`: of all."""
        return self._all[0].all_told

    @all_told.setter
    def all_told(self, all_told: Callable[[], None]) -> None:
        for partition in self._all:
            partition.all_told = all_told

    @property
    def snapshots_stored(self) -> Callable[[list[Snapshot]], None]:
        """As `Partition.snapshots_stored`: of all."""
        return self._all[0].snapshots_stored

    @snapshots_stored.setter
    def snapshots_stored(self, stored: Callable[[list[Snapshot]], None]) -> None:
        for partition in self._all:
            partition.snapshots_stored = stored

    def _snapshots_for(
        self, partition: Partition, snapshots: Callable[[], Awaitable[list[Snapshot]]]
    ) -> Callable[[], Awaitable[list[Snapshot]]]:
        async def due() -> list[Snapshot]:
            for snapshot in await snapshots():
                self._kept[self.of(snapshot.path)].append(snapshot)
            kept, self._kept[partition] = self._kept[partition], []
            return kept

        return due

    def _records_of(self, path: str) -> Log:
        return self.of(path).records


Partitioned = Partition | Partitions
"""What serves all paths: one partition, or several that look like one."""
