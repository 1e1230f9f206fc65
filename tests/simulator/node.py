"""A node of the simulation: the broker's own partition, journal, store and sweeper, on a disk that outlives it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

from broker.core.entry import ANY, Entry, Kind
from broker.core.outcome import Outcome
from broker.core.page import Page, records
from broker.errors import BrokerError, OutcomeUnknown
from broker.journal import Commit
from broker.journal.cluster import ClusterJournal
from broker.journal.cluster_record import decode_mark
from broker.partition import Partition
from broker.snapshot.maker import SnapshotMaker
from broker.snapshot.restore import Restorer
from broker.snapshot.shelf import Shelf
from broker.store import Checkpoint, Head
from broker.store.sqlite import SqliteStore
from broker.store.whole import ChangeMark
from broker.sweeper import Sweeper
from tests.simulator.history import History, applied
from tests.simulator.log import Road, Truth
from tests.simulator.loop import Loop, Process
from tests.simulator.place import SharedPlace

T = TypeVar("T")
WAIT_S = 3.0
"""How long a proposal waits for the log. Short, so that giving up happens often."""
AUDIT_S = 2.0


class _Platter(sqlite3.Connection):
    """A database in memory that stays when a process lets go of it."""

    def close(self) -> None:
        pass

    def drop(self) -> None:
        super().close()


class Disk:
    """What a crash leaves."""

    def __init__(self) -> None:
        self.platter = sqlite3.connect(":memory:", isolation_level=None, factory=_Platter)

    def connect(self, path: Path) -> sqlite3.Connection:  # noqa: ARG002 -- there is only one
        """As `broker.sqlite.connect`."""
        return self.platter

    def head(self) -> tuple[int, int]:
        """Index, and position in the log, that the store stands at; zeros when there is none."""
        if not self.platter.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            return 0, 0
        index, mark = self.platter.execute("SELECT applied_index, mark FROM head").fetchone()
        return index, decode_mark(mark).position if mark else 0

    def drop(self) -> None:
        self.platter.drop()


class _Journal(ClusterJournal):
    """Tells the history where it stands."""

    told: Callable[[int, bytes], None]

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        super().applied(commit, outcomes)
        self.told(self._standing.position, self._standing.chain)


class _Partition(Partition):
    """Tells the history what it does."""

    name: str
    history: History

    def _step(self, entry: Entry, index: int, time_ms: int) -> Outcome:
        outcome = super()._step(entry, index, time_ms)
        told = applied(entry.kind, entry.path, (entry.boot, entry.proposal), outcome)
        self.history.apply(self.name, index, told)
        appended = outcome.changed and entry.kind in (Kind.APPEND, Kind.CLOSE)
        if appended and outcome.stream is not None and entry.incarnation not in (ANY, outcome.stream.incarnation):
            self.history.violated("KI10", f"{self.name} let entry {index} into another life of {entry.path}")
        return outcome

    def _append(self, path: str, incarnation: int, page: Page) -> None:
        super()._append(path, incarnation, page)
        self.history.show(self.name, (path, incarnation), page.start, records(page))


class Node:
    """One node: started, killed, frozen and started again by the world."""

    def __init__(
        self, name: str, loop: Loop, truth: Truth, history: History, rng: Random, place: SharedPlace, scratch: Path
    ) -> None:
        self.name = name
        self.distrusted: set[str] = set()
        """Snapshots that did not agree with the log."""
        self.disk = Disk()
        self.partition: Partition | None = None
        """While it is up."""
        self.process = Process()
        self.process.alive = False
        self.quarantined = False
        self.store_delay_s = 0.0
        self.road = Road(truth, rng)
        self._loop, self._truth, self._history, self._rng = loop, truth, history, rng
        self._place, self._scratch = place, scratch
        self._begun_with = ""
        self._asking: list[asyncio.Future[None]] = []

    def start(self) -> asyncio.Task[None]:
        """Boot; the task ends once it is up, with StartError if it does not come up."""
        self.process = Process()
        self.road = Road(self._truth, self._rng)
        return self._loop.create_task(self._open(), context=self.process.context)

    async def _open(self) -> None:
        skew_ms = self._rng.randrange(1_000_000)
        journal = _Journal(
            self.road,
            monotonic_ms=lambda: int(self._loop.time() * 1000) + skew_ms,
            quarantine=self._quarantine,
            wait_s=WAIT_S,
            audit_s=AUDIT_S,
        )
        journal.told = lambda position, chain: self._history.link(self.name, position, chain)
        shelf = Shelf(self._place, bytes_per_s=float("inf"))
        restorer = Restorer(
            self.road, shelf, self._scratch, distrusted=lambda: self.distrusted, note=self._note_snapshot
        )
        store = _SlowStore(None, connect=self.disk.connect, restore=restorer)
        store.node = self
        partition = _Partition(journal, store, checkpoint_interval_s=self._rng.choice((0.2, 1.0, 4.0)), rows_max=16)
        partition.name, partition.history = self.name, self._history
        await partition.open()
        self.partition = partition
        sweeper = Sweeper(partition, self._loop.time)
        self.sweeping = asyncio.create_task(sweeper.run())
        maker = SnapshotMaker(
            partition,
            store,
            journal,
            self.road,
            shelf,
            self._scratch,
            log_bytes=self._place.log_bytes,
            log_share=0,
        )
        self.making = asyncio.create_task(maker.run())

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
            self.sweeping.cancel()
            self.making.cancel()
            await self._loop.create_task(partition.aclose(), context=self.process.context)
        self.kill()

    async def call(self, ask: Callable[[Partition], Awaitable[T]], timeout_s: float = 8.0) -> T:
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

    def _quarantine(self, reason: str) -> None:
        self.quarantined = True
        self.distrusted.add(self._begun_with)
        self._history.violated("KI12", f"{self.name}: {reason}")

    def _note_snapshot(self, name: str) -> None:
        self._begun_with = name


class _SlowStore(SqliteStore):
    """Takes its time to write and to copy; a kill may come before and after."""

    node: Node

    async def copy(self, path: Path, change_mark: ChangeMark) -> Head:
        await asyncio.sleep(self.node.store_delay_s)
        head = await super().copy(path, change_mark)
        await asyncio.sleep(self.node.store_delay_s)
        return head

    async def write(self, checkpoint: Checkpoint) -> None:
        await asyncio.sleep(self.node.store_delay_s)
        await super().write(checkpoint)
        await asyncio.sleep(self.node.store_delay_s)
