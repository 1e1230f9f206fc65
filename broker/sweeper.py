"""The sweeper: proposes what only time brings about. It watches; entries decide (CORE: leases, expiry).

A lease is judged by this process's monotonic clock, never by the partition's time: neither a clock step nor an hour of
downtime ends a living generation. After two thirds of a lease without renewal a NOOP is proposed; once that is applied,
every renewal that was on its way before it has been seen. If after another third there is still none, the end is
proposed, and accepted only if nobody renewed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import NamedTuple

from broker import limits
from broker.core.entry import AckOptions, Entry, Kind, LeaseOptions, ProducerForgetOptions, encode_options
from broker.core.fork import unref_entry
from broker.core.state import Child, Generation, Subscription, Wake
from broker.core.subscription import is_leased
from broker.errors import BrokerError
from broker.partitions import Partitioned
from broker.unused import UnusedSessions

log = logging.getLogger("streamfold.sweeper")

TICK_S = 0.25
"""How often leases are looked at: well below the shortest lease, so an end comes within one lease of its due time."""
UNUSED_S = 30.0
"""How often unused sessions are looked for, at most; the first time at once."""
SOURCES_S = 30.0
"""How often the children of all sources are looked for; the first time at once."""
ENTRIES_MAX = 256
"""Proposed at once, to share a commit: overdue streams, leases that ran out, forks that are gone."""


class _Lease:
    """What this process has seen of one lease."""

    __slots__ = ("proved_at", "renewed_index", "seen_at")

    def __init__(self, renewed_index: int, seen_at: float) -> None:
        self.renewed_index = renewed_index
        self.seen_at = seen_at  # when this renewal was first seen
        self.proved_at: float | None = None  # when a NOOP proposed after two thirds had been applied


class _Held(NamedTuple):
    """A lease that runs, as the rows have it."""

    key: tuple[str, str, int]
    renewed_index: int
    lease_ms: int
    end: Callable[[], Entry]  # what to propose when it has run out


class Sweeper:
    """Runs beside a partition; `run` until cancelled. Its parts raise BrokerError: then they are to be tried again."""

    def __init__(
        self, partition: Partitioned, monotonic: Callable[[], float] = time.monotonic, unused_session_s: float = 0
    ) -> None:
        self._partition = partition
        self._unused_session_s = unused_session_s
        self._monotonic = monotonic
        self._leases: dict[tuple[str, str, int], _Lease] = {}  # by `_Held.key`

    async def run(self) -> None:
        """Sweep until cancelled. Each part by itself: however much there is to clear up, a lease ends in time."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_repeat(self.end_leases, TICK_S))
            tasks.create_task(_repeat(self.clear_up, TICK_S))
            tasks.create_task(_repeat(self.look_at_sources, SOURCES_S))
            if self._unused_session_s:
                unused = UnusedSessions(self._partition, self._unused_session_s)
                tasks.create_task(_repeat(unused.expire, min(UNUSED_S, self._unused_session_s / 4)))

    async def end_leases(self) -> None:
        """End what dead producers and workers have left open."""
        if not self._partition.healthy:
            return
        silent, dead = self._look()
        if silent:
            await self._partition.propose(Entry(Kind.NOOP, ""))
            proved_at = self._monotonic()
            for lease in silent:
                lease.proved_at = proved_at
        await self._propose([held.end() for held in dead[:ENTRIES_MAX]])

    async def clear_up(self) -> None:
        """Take away streams whose time is over, tell sources which forks went, and sweep what ended lives left."""
        partition = self._partition
        if not partition.healthy:
            return
        overdue = await partition.overdue(ENTRIES_MAX)
        await self._propose([Entry(Kind.EXPIRE, path, incarnation=incarnation) for path, incarnation in overdue])
        while partition.orphans:
            told = partition.orphans[:ENTRIES_MAX]
            await self._propose([unref_entry(*orphan) for orphan in told])
            del partition.orphans[: len(told)]  # only now: what could not be told is told next time
        await self._make_room()
        await partition.sweep()

    async def _make_room(self) -> None:
        """Streams that refused a producer because they have too many lose those that have been idle for long."""
        partition = self._partition
        idle_since_ms = partition.now_ms() - limits.PRODUCER_IDLE_MS
        while partition.crowded:
            path = partition.crowded.pop()
            async for producer_id in partition.idle_producers(path, idle_since_ms):
                options = encode_options(ProducerForgetOptions(producer_id, idle_since_ms))
                await partition.propose(Entry(Kind.PRODUCER_FORGET, path, options=options))

    async def look_at_sources(self) -> None:
        """Find the notes of forks that never came, or that went unseen: a crash between two entries leaves them."""
        partition = self._partition
        if not partition.healthy:
            return
        now_ms = partition.now_ms()
        async for path in partition.sources():
            source = await partition.stream(path)
            for incarnation, child in source.forks if source is not None else ():
                if now_ms > child.deadline_ms and not await self._is_there(child):
                    await partition.propose(unref_entry(path, incarnation, child.path, child.incarnation))

    async def _is_there(self, child: Child) -> bool:
        """Whether a fork whose deadline has passed exists: if so, its source must keep what it inherits."""
        if await self._has(child):
            return True
        # Gone; or on its way since before its deadline; or overdue and not yet taken away, while forks of its own need
        # what it inherits. Behind an entry that names its row the last two are settled.
        await self._partition.propose(Entry(Kind.EXPIRE, child.path))
        return await self._has(child)

    async def _has(self, child: Child) -> bool:
        stream = await self._partition.stream(child.path)
        if stream is None:
            return False
        # A fork that was reset still needs what it inherits, for as long as forks of its own do.
        return child.incarnation in (stream.incarnation, *(past.incarnation for past in stream.past))

    async def _propose(self, entries: list[Entry]) -> None:
        await asyncio.gather(*(self._partition.propose(entry) for entry in entries))

    def _look(self) -> tuple[list[_Lease], list[_Held]]:
        """The leases that have been silent for two thirds, and those that are dead."""
        now = self._monotonic()
        known, self._leases = self._leases, {}
        silent: list[_Lease] = []
        dead: list[_Held] = []
        for held in self._held():
            lease = known.get(held.key)
            if lease is None or lease.renewed_index != held.renewed_index:
                lease = _Lease(held.renewed_index, now)
            self._leases[held.key] = lease
            third_s = held.lease_ms / 3000
            if lease.proved_at is not None and now >= lease.proved_at + third_s:
                dead.append(held)
            elif lease.proved_at is None and now >= lease.seen_at + 2 * third_s:
                silent.append(lease)
        return silent, dead

    def _held(self) -> Iterator[_Held]:
        """Every lease that runs: those of open generations, and of subscriptions that somebody works for."""
        for path, session in self._partition.open_sessions.items():
            for generation in session.open:
                key = (path, generation.generation_id, generation.fence)
                end = partial(_end_of_generation, path, generation)
                yield _Held(key, generation.renewed_index, generation.lease_ms, end)
        for subscription in self._partition.subscriptions.values():
            wake = subscription.wake
            if wake is not None and is_leased(subscription):
                key = ("", wake.wake_id, subscription.generation)
                end = partial(_end_of_wake, subscription, wake)
                yield _Held(key, wake.renewed_index, subscription.lease_ms, end)


def _end_of_generation(path: str, generation: Generation) -> Entry:
    options = LeaseOptions(generation.generation_id, generation.fence, generation.renewed_index)
    return Entry(Kind.LEASE_EXPIRE, path, options=encode_options(options))


def _end_of_wake(subscription: Subscription, wake: Wake) -> Entry:
    options = AckOptions(subscription.generation, wake.wake_id, expires=wake.renewed_index)
    return Entry(
        Kind.SUBSCRIPTION_ACK,
        subscription.subscription_id,
        incarnation=subscription.birth,
        options=encode_options(options),
    )


async def _repeat(part: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """Until cancelled. A partition that refuses or stops is no reason to end: it is tried again."""
    while True:
        try:
            await part()
        except BrokerError as error:
            log.warning("sweep put off: %s", error)
        await asyncio.sleep(pause_s)
