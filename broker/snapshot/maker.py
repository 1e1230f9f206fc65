"""Making a partition's snapshots, and trimming its log behind them.

Due when the log behind the newest one has grown enough. Which node makes it: see `journal.cluster_begin`. What is made
is read back, and so is the one before it, and the log is asked whether it still has what they were made from; only then
is it trimmed, to where that older one begins, and whatever is older still goes. So whatever is found damaged later,
there is another one, and the log has all behind it.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final, Protocol

from broker import limits
from broker.core.entry import Entry, Kind
from broker.errors import EngineStopped, OutcomeUnknown, Unavailable
from broker.journal.cluster import ClusterJournal
from broker.journal.cluster_record import decode_mark, disowned, fingerprint
from broker.journal.shared_log import SharedLog
from broker.partition import Partition
from broker.snapshot.form import Facts, Name, Unusable
from broker.snapshot.shelf import Shelf
from broker.store import Head
from broker.store.whole import ChangeMark

log = logging.getLogger("streamfold.snapshot")

_NEVER: Final = float("-inf")
Good = list[tuple[Name, Facts]]


class Copied(Protocol):
    """A store that can be copied: see `SqliteStore.copy`."""

    async def copy(self, path: Path, change_mark: ChangeMark) -> Head: ...


class Counts:
    """What a maker has done, as plain numbers for the metrics to read."""

    def __init__(self) -> None:
        self.made = 0
        self.failures = 0
        self.trims = 0
        self.last_s = 0.0
        """How long the last one took, from copying the store to having trimmed the log."""


class SnapshotMaker:
    """Of one partition; `run` belongs to its event loop. One owner, who ends it by cancelling."""

    def __init__(  # noqa: PLR0913 -- one for each part that it brings together
        self,
        partition: Partition,
        store: Copied,
        journal: ClusterJournal,
        log: SharedLog,
        shelf: Shelf,
        scratch: Path,
        *,
        log_bytes: int = limits.SNAPSHOT_LOG_BYTES,
        log_share: float = limits.SNAPSHOT_LOG_SHARE,
        one_at_a_time: asyncio.Lock | None = None,
    ) -> None:
        self._partition, self._store, self._journal, self._log = partition, store, journal, log
        self._shelf, self._scratch = shelf, scratch
        self._log_bytes, self._log_share = log_bytes, log_share
        self._one_at_a_time = one_at_a_time or asyncio.Lock()
        self.counts = Counts()
        self.newest: Facts | None = None
        """Of those that this node knows of, whoever made it."""
        self._lost: set[Name] = set()  # made from what the log has lost, or may have: never again counted
        self._is_looked_up = False
        self._announced_at = _NEVER  # by the event loop's clock
        self._not_before = _NEVER  # as above

    @property
    def damaged(self) -> int:
        """How many snapshots this node has found that cannot be used."""
        return self._shelf.damaged

    @property
    def behind_bytes(self) -> int:
        """Log behind the newest snapshot."""
        return max(0, self._journal.log_bytes - (self.newest.log_bytes if self.newest is not None else 0))

    @property
    def age_s(self) -> float | None:
        """Of the newest snapshot, by the log's time; None when there is none."""
        return None if self.newest is None else max(0, self._partition.now_ms() - self.newest.time_ms) / 1000

    async def run(self) -> None:
        """Look whether a snapshot is due, for ever."""
        try:
            while True:
                await asyncio.sleep(limits.SNAPSHOT_LOOK_S)
                await self.look()
        except asyncio.CancelledError:
            self._shelf.stop()
            raise

    async def look(self) -> None:
        """Make a snapshot if one is due and it is this node's turn. What fails is told, and tried again later."""
        now = asyncio.get_running_loop().time()
        if now < self._not_before or not self._partition.healthy or not self._is_due():
            return
        try:
            await self._look()
        except EngineStopped:
            return  # the partition has told it
        except (OSError, ValueError, Unusable, Unavailable, OutcomeUnknown) as error:
            self.counts.failures += 1
            self._not_before = now + limits.SNAPSHOT_RETRY_S
            log.warning("no snapshot in %s, tried again later: %s", self._shelf, error)

    def _is_due(self) -> bool:
        return not self._is_looked_up or self.behind_bytes >= self._due_bytes

    @property
    def _due_bytes(self) -> float:
        """How much log the next snapshot waits for."""
        size_bytes = self.newest.size_bytes if self.newest is not None else 0
        return max(self._log_bytes, self._log_share * size_bytes)

    async def _look(self) -> None:
        self.newest = await asyncio.to_thread(self._newest)
        self._is_looked_up = True
        if not self._is_due() or not self._is_my_turn():
            return
        async with self._one_at_a_time:
            began_at = asyncio.get_running_loop().time()
            await self._make()
            self.counts.last_s = asyncio.get_running_loop().time() - began_at

    def _newest(self) -> Facts | None:
        """The newest that there is, by what it says of itself."""
        for name in self._shelf.newest_first(self._journal.identity):
            with self._shelf.told(name):
                return self._shelf.facts(name)
        return None

    def _is_my_turn(self) -> bool:
        """Whether the newest announcement behind the newest snapshot is this node's; sees to it that there is one."""
        now, begin = asyncio.get_running_loop().time(), self._journal.begin
        is_announced = begin.position > 0 and (self.newest is None or begin.position >= self.newest.position)
        if is_announced and begin.boot == self._journal.boot:
            return True
        is_fresh = self._journal.log_bytes < begin.log_bytes + self._due_bytes
        is_somebodys = is_announced and begin.boot != 0 and is_fresh
        if is_somebodys:
            self._not_before = now + limits.SNAPSHOT_PATIENCE_S
        elif now >= self._announced_at + limits.SNAPSHOT_ANNOUNCE_S:
            self._announced_at = now
            self._journal.announce()
        return False

    async def _make(self) -> None:
        # An entry behind the announcement: a checkpoint goes by entries, and is to have the announcement in it.
        await self._partition.propose(Entry(Kind.NOOP, ""))
        await self._partition.checkpoint()
        try:
            facts = await self._copied()
            name = Name(facts.position, facts.log_uuid, self._journal.boot)
            await asyncio.to_thread(self._shelf.put, name, facts, self._scratch)
        finally:
            self._scratch.unlink(missing_ok=True)
        good = await self._good(facts.log_uuid)
        if name not in (kept for kept, _ in good):
            raise Unusable(f"what was written as {name} is not what is read back")
        self.newest = good[0][1]
        self.counts.made += 1
        log.info("made the snapshot %s, %d bytes", name, facts.size_bytes)
        await self._trim(await self._of_the_log(good))

    async def _good(self, log_uuid: bytes) -> Good:
        return await asyncio.to_thread(self._shelf.good, log_uuid, limits.SNAPSHOTS_KEPT, self._lost)

    async def _of_the_log(self, good: Good) -> Good:
        """If there are two, those that the log has all of as it is now: these, or older ones in their place.

        Kafka may have lost what one was made from: to trim behind that would leave one that can be used, or none.
        """
        while len(good) == limits.SNAPSHOTS_KEPT and (lost := await self._lost_of(good)):
            self._lost |= lost
            good = await self._good(good[0][0].log_uuid)
        return good

    async def _lost_of(self, good: Good) -> set[Name]:
        """Those whose newest record the log does not have any more, or that do not tell it. Raises Unavailable.

        A log loses its end: where that record is, all before it is. A server that leads no more may still have what the
        log has lost; so it has to have what this node has read last, too, behind a record that it has just written.
        """
        await self._journal.catch_up()  # a log that has lost what this node has, or a node that has stopped, does not
        last = self._journal.newest
        last_has, *has = await self._has(last, *((facts.position - 1, facts.newest) for _, facts in good))
        if not last_has:
            raise Unavailable(f"who answers for the log does not have the record that was read at position {last[0]}")
        lost = {name: facts for (name, facts), is_there in zip(good, has, strict=True) if not is_there}
        for name, facts in lost.items():
            with self._shelf.told(name):
                raise Unusable(f"the log {'has' if facts.newest else 'may have'} lost what it was made from")
        return set(lost)

    async def _has(self, *told: tuple[int, bytes]) -> list[bool]:
        """Whether the log has these records, each told by its position and its fingerprint. Raises Unavailable."""
        found = await self._log.look_up([position for position, _ in told])
        return [
            record is not None and fingerprint(record) == newest
            for record, (_, newest) in zip(found, told, strict=True)
        ]

    async def _copied(self) -> Facts:
        """Copy the store to `_scratch`."""
        head = await self._store.copy(self._scratch, disowned)
        mark = decode_mark(head.mark)
        return Facts(
            log_uuid=mark.meta.log_uuid,
            partition=mark.meta.partition,
            partitions=mark.meta.partitions,
            position=mark.position,
            begin=mark.begin,
            chain=mark.chain,
            index=head.applied_index,
            time_ms=head.time_ms,
            log_bytes=mark.log_bytes,
            size_bytes=self._scratch.stat().st_size,
            newest=mark.newest,
        )

    async def _trim(self, good: Good) -> None:
        """Let the log go back to the older of two snapshots that were just read, and keep none that is older still.

        Now or not at all: who leads after an election may have lost what the log was just found to have.
        """
        if len(good) < limits.SNAPSHOTS_KEPT:
            return
        oldest, facts = good[-1]
        try:
            async with asyncio.timeout(limits.SNAPSHOT_TRIM_S):
                if facts.begin > await self._log.first():
                    await self._log.trim(facts.begin)
                    self.counts.trims += 1
                    log.info("the log begins at position %d from here on", facts.begin)
        except TimeoutError:
            raise Unavailable("the log was not trimmed soon enough after it was asked what it has") from None
        await asyncio.to_thread(self._remove_before, oldest)

    def _remove_before(self, oldest: Name) -> None:
        for name in self._shelf.newest_first(oldest.log_uuid):
            if name < oldest:
                self._shelf.remove(name)
