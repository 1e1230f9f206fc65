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
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from broker.core.entry import AckOptions, Entry, Kind, LeaseOptions, encode_options
from broker.core.fork import unref_entry
from broker.core.state import Generation, Subscription, Wake
from broker.core.subscription import is_leased
from broker.errors import BrokerError
from broker.partition import Partition

log = logging.getLogger("streamfold.sweeper")

TICK_S = 0.25
"""How often leases are looked at: well below the shortest lease, so an end comes within one lease of its due time."""
SOURCES_S = 30.0
"""How often the children of all sources are looked for; the first time at once."""
EXPIRE_STREAMS_MAX = 256
"""Overdue streams taken away in one tick; the others wait for the next."""


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
    """Runs beside a partition; `run` until cancelled."""

    def __init__(self, partition: Partition, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._partition = partition
        self._monotonic = monotonic
        self._sources_looked_at = -SOURCES_S
        self._leases: dict[tuple[str, str, int], _Lease] = {}  # by `_Held.key`

    async def run(self) -> None:
        """Tick until cancelled. A partition that refuses or stops is no reason to end: it is tried again."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except BrokerError as error:
                log.warning("sweep put off: %s", error)

    async def tick(self) -> None:
        """One look at everything that time may have ended."""
        if not self._partition.healthy:
            return
        await self._expire_streams()
        await self._expire_leases()
        await self._tell_sources()
        await self._partition.sweep()

    async def _expire_streams(self) -> None:
        for path, incarnation in await self._partition.overdue(EXPIRE_STREAMS_MAX):
            await self._partition.propose(Entry(Kind.EXPIRE, path, incarnation=incarnation))

    async def _tell_sources(self) -> None:
        """Take the notes of forks that went from their sources. One that could not be told is told next time."""
        partition = self._partition
        while partition.orphans:
            await partition.propose(unref_entry(*partition.orphans[0]))
            del partition.orphans[0]
        if self._monotonic() >= self._sources_looked_at + SOURCES_S:
            self._sources_looked_at = self._monotonic()
            await self._look_at_sources()

    async def _look_at_sources(self) -> None:
        """Find the notes of forks that never came, or that went unseen: a crash between two entries leaves them."""
        partition, now_ms = self._partition, self._partition.now_ms()
        async for path in partition.sources():
            source = await partition.stream(path)
            for child in source.children if source is not None else ():
                stream = await partition.stream(child.path)
                is_there = stream is not None and stream.incarnation == child.incarnation
                if source is not None and not is_there and now_ms > child.deadline_ms:
                    orphan = (path, source.incarnation, child.path, child.incarnation)
                    await partition.propose(unref_entry(*orphan))

    async def _expire_leases(self) -> None:
        silent, dead = self._look()
        if silent:
            await self._partition.propose(Entry(Kind.NOOP, ""))
            proved_at = self._monotonic()
            for lease in silent:
                lease.proved_at = proved_at
        for held in dead:
            await self._partition.propose(held.end())

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
