"""A node of the simulation: the broker's own partitions, journals, sweeper and waker, on disks that outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

from broker.core.entry import ANY, Entry, Kind
from broker.core.outcome import Outcome
from broker.core.page import Page, records
from broker.errors import BrokerError, EngineStopped, OutcomeUnknown
from broker.journal import Commit
from broker.journal.cluster import ClusterJournal
from broker.partition import Partition
from broker.partitions import Partitioned, Partitions
from broker.signing import Signing
from broker.snapshot.maker import SnapshotMaker
from broker.snapshot.restore import Restorer
from broker.snapshot.shelf import Shelf
from broker.sweeper import Sweeper
from broker.waker import Waker
from broker.webhooks import Webhooks
from tests.simulator.disk import Disk
from tests.simulator.history import History, applied
from tests.simulator.log import Road, Truth
from tests.simulator.loop import Loop, Process
from tests.simulator.place import SharedPlace

T = TypeVar("T")
Deliver = Callable[[str, bytes], Awaitable[bool]]
"""As `Webhooks.deliver`."""
WAIT_S = 3.0
"""How long a proposal waits for the log. Short, so that giving up happens often."""
AUDIT_S = 2.0


class Shared(NamedTuple):
    """What all nodes have in common of one partition."""

    number: int
    truth: Truth
    place: SharedPlace
    boots: dict[int, Replica]
    """Whose store each process has, or had."""


class _Journal(ClusterJournal):
    """Tells the history where it stands."""

    told: Callable[[int, bytes], None]

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        super().applied(commit, outcomes)
        self.told(self._standing.position, self._standing.chain)


class _Partition(Partition):
    """Tells the history what it does."""

    name: str
    log: int
    history: History

    def _step(self, entry: Entry, index: int, time_ms: int) -> Outcome:
        outcome = super()._step(entry, index, time_ms)
        told = applied(entry.kind, entry.path, (entry.boot, entry.proposal), outcome)
        self.history.apply(self.name, (self.log, index), told)
        appended = outcome.changed and entry.kind in (Kind.APPEND, Kind.CLOSE)
        if appended and outcome.stream is not None and entry.incarnation not in (ANY, outcome.stream.incarnation):
            self.history.violated("KI10", f"{self.name} let entry {index} into another life of {entry.path}")
        return outcome

    def _append(self, path: str, incarnation: int, page: Page) -> None:
        super()._append(path, incarnation, page)
        self.history.show(self.name, (path, incarnation), page.start, records(page))


class _Webhooks(Webhooks):
    """Calls receivers of the simulation."""

    def __init__(self, deliver: Deliver) -> None:
        self._to = deliver  # and nothing of what the base class needs for a network

    async def deliver(self, text: str, body: bytes) -> bool:
        return await self._to(text, body)


@cache
def _signing() -> Signing:
    signing = Signing()
    signing.open()
    return signing


class Replica:
    """What one node has of one partition."""

    def __init__(self, shared: Shared, rng: Random, disk: Disk, scratch: Path) -> None:
        self.shared = shared
        self.disk = disk
        self.road = Road(shared.truth, rng)
        self.scratch = scratch
        self.distrusted: set[str] = set()
        """Snapshots that did not agree with the log."""
        self.begun_with = ""
        """The snapshot that the store was made with."""
        self.is_quarantined = False
        self._stored_parts_at: int | None = None

    @property
    def parts_at(self) -> int | None:
        """Where what it has parts from the log, if it has what the log has lost since."""
        parts_at = [at for at in (self._stored_parts_at, self.road.parts_at) if at is not None]
        return min(parts_at, default=None)

    def lose(self, position: int) -> None:
        """The log has lost what it had from `position` on."""
        if self.disk.head()[1] > position:
            self._stored_parts_at = position

    def begin(self) -> None:
        """For another process: what is known of the store, and no more."""
        parts_at = self.parts_at
        self._stored_parts_at = None if parts_at is None or self.disk.head()[1] <= parts_at else parts_at

    def note(self, snapshot: str) -> None:
        """The store was made with it."""
        self.begun_with = snapshot
        self._stored_parts_at = self.shared.place.parts_at.get(snapshot)

    def replace(self, disk: Disk) -> Disk:
        """Go on with another disk; what is returned is the one that was."""
        self.is_quarantined, self._stored_parts_at = False, None
        self.disk, replaced = disk, self.disk
        return replaced


class Node:
    """One node: started, killed, frozen and started again by the world."""

    def __init__(self, name: str, loop: Loop, history: History, rng: Random, replicas: list[Replica]) -> None:
        self.name = name
        self.replicas = replicas
        self.partition: Partitioned | None = None
        """While it is up."""
        self.process = Process()
        self.process.alive = False
        self.store_delay_s = 0.0
        self.beside: list[asyncio.Task[None]] = []
        """What runs beside the partitions."""
        self.deliver: Deliver | None = None
        """Who receives webhooks, in a schedule with subscriptions."""
        self.waker: Waker | None = None
        self._loop, self._history, self._rng = loop, history, rng
        self._asking: list[asyncio.Future[None]] = []

    def start(self) -> asyncio.Task[None]:
        """Boot; the task ends once it is up, with StartError if it does not come up."""
        self.process = Process()
        for replica in self.replicas:
            replica.begin()
            replica.road = Road(replica.shared.truth, self._rng)
        return self._loop.create_task(self._open(), context=self.process.context)

    async def _open(self) -> None:
        opened = [self._partition_of(replica) for replica in self.replicas]
        parts = [partition for partition, _ in opened]
        partition: Partitioned = Partitions(parts) if len(parts) > 1 else parts[0]
        waker = None
        if self.deliver is not None:
            waker = Waker(partition, _signing(), _Webhooks(self.deliver), monotonic=self._loop.time)
        await partition.open()
        self.partition, self.waker = partition, waker
        beside = [Sweeper(partition, self._loop.time).run(), *(maker.run() for _, maker in opened)]
        if waker is not None:
            beside.append(waker.run())
        self.beside = [asyncio.create_task(work) for work in beside]

    def _partition_of(self, replica: Replica) -> tuple[_Partition, SnapshotMaker]:
        shared, road = replica.shared, replica.road
        skew_ms = self._rng.randrange(1_000_000)
        journal = _Journal(
            road,
            partition=shared.number,
            partitions=len(self.replicas),
            monotonic_ms=lambda: int(self._loop.time() * 1000) + skew_ms,
            quarantine=lambda reason, blames: self._quarantine(replica, journal.boot, reason, blames_snapshot=blames),
            wait_s=WAIT_S,
            audit_s=AUDIT_S,
        )
        journal.told = lambda position, chain: self._history.link(self.name, (shared.number, position), chain)
        shared.boots[journal.boot] = replica
        shelf = Shelf(shared.place, bytes_per_s=float("inf"))
        restore = Restorer(road, shelf, replica.scratch, distrusted=lambda: replica.distrusted, note=replica.note)
        store = replica.disk.store(restore, lambda: asyncio.sleep(self.store_delay_s))
        partition = _Partition(journal, store, checkpoint_interval_s=self._rng.choice((0.3, 1.0, 4.0)), rows_max=16)
        partition.name, partition.log, partition.history = self.name, shared.number, self._history
        log_bytes = shared.place.log_bytes
        maker = SnapshotMaker(partition, store, journal, road, shelf, replica.scratch, log_bytes=log_bytes, log_share=0)
        return partition, maker

    def rest(self) -> None:
        """Do nothing any more but serve."""
        for task in self.beside:
            task.cancel()

    def kill(self) -> None:
        """As SIGKILL does. Whoever waits for an answer hears that the connection is gone."""
        self.process.alive = False
        self.partition = None
        asking, self._asking = self._asking, []
        for answer in asking:
            if not answer.done():
                answer.set_exception(OutcomeUnknown("connection reset"))

    async def stop(self) -> None:
        """As SIGTERM does."""
        if self.partition is not None:
            partition, self.partition = self.partition, None
            self.rest()
            await self._loop.create_task(partition.aclose(), context=self.process.context)
            self.has_failed(partition)
        self.kill()

    def has_failed(self, partition: Partitioned) -> bool:
        """Whether its engine has stopped; checks that it had a reason."""
        failure = partition.failure
        if failure is not None and not isinstance(failure, EngineStopped):
            self._history.violated("KI17", f"{self.name} failed: {failure!r}")
        return failure is not None

    async def call(self, ask: Callable[[Partitioned], Awaitable[T]], timeout_s: float = 8.0) -> T:
        """Ask over a network. Raises OutcomeUnknown when no answer comes, or what `ask` does."""
        await asyncio.sleep(self._rng.random() * 0.03)
        partition = self.partition
        if partition is None:
            raise OutcomeUnknown("connection refused")
        answer: asyncio.Future[T] = self._loop.create_future()

        async def serve() -> None:
            try:
                told = await ask(partition)
            except BrokerError as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(told)

        self._asking.append(answer)  # type: ignore[arg-type]  # whatever it is that it answers
        self._loop.create_task(serve(), context=self.process.context)
        try:
            async with asyncio.timeout(timeout_s):
                told = await answer
        except TimeoutError:
            raise OutcomeUnknown("no answer") from None
        finally:
            if answer in self._asking:
                self._asking.remove(answer)  # type: ignore[arg-type]  # as above
        await asyncio.sleep(self._rng.random() * 0.03)
        return told

    def _quarantine(self, replica: Replica, boot: int, reason: str, *, blames_snapshot: bool) -> None:
        replica.is_quarantined = True
        if blames_snapshot:
            replica.distrusted.add(replica.begun_with)
        truth = replica.shared.truth
        # An audit of a past may lie in what the log has grown since: where votes are equal, all begin anew.
        is_vote_of_a_past = blames_snapshot and truth.pasts
        if replica.parts_at is None and not truth.has_lost_of(boot) and not is_vote_of_a_past:
            self._history.violated("KI12", f"{self.name}: {reason}")
        self._history.told_of_loss(self.name, reason)
