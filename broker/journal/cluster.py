"""The journal of a cluster: entries in a log that other processes write to as well. Every one of them applies all.

What `SharedLog` leaves to be done is here: late and double copies are void, unknown fates are settled, time is made to
rise, indexes count entries without gaps whatever else the log holds, and replicas compare what they made of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

import msgspec

from broker import limits
from broker.core.entry import Entry, UnknownFormat, decode as decode_entry
from broker.core.outcome import Outcome
from broker.errors import BrokerError, Diverged, EngineStopped, NewerFormat, StartError, Unavailable
from broker.journal import Commit, Foresee, Refused
from broker.journal.clock import Milliseconds, monotonic_ms
from broker.journal.cluster_auditor import Auditor
from broker.journal.cluster_begin import Begin
from broker.journal.cluster_opening import Opening, Quarantine
from broker.journal.cluster_reader import Read, RecordReader
from broker.journal.cluster_record import Envelope
from broker.journal.cluster_standing import Standing
from broker.journal.cluster_writer import RecordWriter
from broker.journal.rising import Rising
from broker.journal.shared_log import LogLost, LogRecord, LogTruncated, SharedLog
from consumer.wire import Durability

log = logging.getLogger("streamfold.journal")

TICK_S: Final = 0.25
"""How often overdue proposals and due audits are looked for."""
LOOK_S: Final = 1.0
"""How often a node asks whether it is behind: below LAG_S_MAX by much."""
OUT_OF_TOUCH_S: Final = 3 * LOOK_S
"""A node that was not current for so long says nothing about the log before it is: below what an election takes."""


class Counts:
    """What a cluster's journal has seen, as plain numbers for the metrics to read."""

    def __init__(self) -> None:
        self.records = 0
        self.void = 0  # late or double copies
        self.foreign = 0  # somebody else's
        self.diverged = 0  # this node's store is not what the log makes


class _Taken(NamedTuple):
    """A record in hand: read, and not yet applied."""

    record: LogRecord
    envelope: Envelope
    commit: Commit | None  # None when it is the journal's own business


class ClusterJournal:
    """A `Journal` over a `SharedLog`, which is this one's alone."""

    lone_proposer: bool = False

    def __init__(
        self,
        log: SharedLog,
        *,
        durability: Durability = Durability.REPLICATED,
        partition: int = 0,
        partitions: int = 1,
        monotonic_ms: Milliseconds = monotonic_ms,
        quarantine: Quarantine = lambda *_: None,
        wait_s: float = limits.CLUSTER_WAIT_S,
        audit_s: float = limits.AUDIT_S,
    ) -> None:
        self.durability = durability
        self.counts = Counts()
        self._log = log
        self._quarantine = quarantine
        boot = int.from_bytes(os.urandom(8), "big") >> 1 or 1
        self._standing = Standing(boot, monotonic_ms)
        self._opening = Opening(log, self._standing, partition, partitions, quarantine)
        self._reader = RecordReader(log, boot)
        self._writer = RecordWriter(log, boot, self._read_past, self._hand_back, self._look_for_missed, wait_s)
        self._auditor = Auditor(self._standing, self._writer.add, self._be_outvoted, audit_s)

        self._taken: _Taken | None = None
        self._replay_end = 0
        self._is_made_anew = False  # the store, of all that the log has
        self._current_at = 0.0  # when all that the log had was known to be applied, by the event loop's clock
        self._went_on = asyncio.Event()  # a record was applied
        self._behind = Rising()  # the position of the standing, for those who wait for it
        self._own = Rising()  # the number of the newest applied record of this boot
        self._deliver: Callable[[Commit | Refused], None] | None = None
        self._stopped: Callable[[Exception], None] | None = None
        self._error: EngineStopped | None = EngineStopped("the journal is not started")
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    # -- the port ----------------------------------------------------------------------------------------------------

    @property
    def synchronous(self) -> bool:
        """As in `Journal`: a record for each entry."""
        return self._writer.synchronous

    @synchronous.setter
    def synchronous(self, synchronous: bool) -> None:
        self._writer.synchronous = synchronous

    async def open(self, applied_index: int, applied_time_ms: int, mark: bytes = b"") -> None:
        """As in `Journal`. Raises Damaged too when the log is not the store's, or has lost what the store has."""
        self._standing.take_up(applied_index, applied_time_ms)
        await self._log.open()
        try:
            await self._opening.run(mark)
            self._replay_end = await self._log.end()
        except Unavailable as error:
            raise StartError(f"the log does not answer: {error}") from error
        except LogLost as error:
            raise StartError(f"the log changed meanwhile: {error}", "start again") from error
        self._is_made_anew = self._standing.boot_before == 0
        self._behind.rise(self._standing.position)
        if mark:
            self._auditor.resume()
        self._log.seek(self._standing.position, self._opening.last)

    async def replay(self, foresee: Foresee | None = None) -> AsyncIterator[Commit]:
        """As in `Journal`: up to where the log ended at `open`."""
        self._reader.foresee = foresee
        looking = asyncio.create_task(self._look_for_end(), name="journal: look for the end")
        try:
            while self._standing.position < self._replay_end:
                taken = await self._take()
                if taken.commit is None:
                    self._advance(())
                else:
                    yield taken.commit
        finally:
            looking.cancel()

    async def _look_for_end(self) -> None:
        """The log may lose what a start is yet to read: nobody may be there to write what it would wait for."""
        while True:
            await asyncio.sleep(limits.CATCH_UP_S)
            with suppress(BrokerError):
                end = await self._log.end()
                # Or a server says so that leads no more: it takes no record. Once more where the record was read before
                # its place was told: then the start waits for another one.
                if end < self._replay_end or self._standing.position >= self._replay_end:
                    self._replay_end = min(self._replay_end, await self._opening.written_end(end) + 1)

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:
        """As in `Journal`."""
        self._deliver, self._stopped, self._error = deliver, stopped, None
        self._writer.log = self._standing.meta.log
        # The first record of this life: it voids what an earlier one may have left under way, and tells the time.
        self._writer.add(Envelope(0, 0, retired=self._standing.boot_before))
        self._auditor.put_off()
        self._current_at = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._run(self._read_forever), name="journal: read"),
            asyncio.create_task(self._run(self._writer.run), name="journal: write"),
            asyncio.create_task(self._run(self._tick_forever), name="journal: tick"),
            asyncio.create_task(self._run(self._look_forever), name="journal: look"),
        ]

    def heed(self, is_watched: Callable[[], bool]) -> None:
        """As in `Journal`."""
        self._log.heed(is_watched)

    def propose(self, entry: Entry) -> None:
        """As in `Journal`."""
        if self._error is not None or self._closed:
            raise self._error or EngineStopped("the journal is closed")
        self._writer.propose(entry)

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        """As in `Journal`."""
        if self._taken is None or self._taken.commit is not commit:
            raise RuntimeError("what was applied is not what was handed back")
        self._advance(outcomes)

    def mark(self) -> bytes:
        """As in `Journal`."""
        return self._standing.mark()

    async def catch_up(self) -> bool:
        """As in `Journal`; those who ask at the same time share a record.

        Where the log ends is not asked for: a server that was frozen, and does not know yet that another one leads,
        tells an end that was. A record that was written after the question, and has been read, is behind all that was
        acknowledged before the question: who does not lead takes none.
        """
        if self._error is not None:
            raise self._error
        try:
            async with asyncio.timeout(limits.CATCH_UP_S):
                await self._own.reach(self._writer.ask())
        except TimeoutError:
            raise Unavailable("this node has not caught up with what others wrote") from None
        return True

    @property
    def identity(self) -> bytes:
        """As in `Journal`."""
        return self._standing.meta.log_uuid

    @property
    def lag_s(self) -> float:
        """As in `Journal`; the time since this node was last known to have applied all that the log said it had."""
        return asyncio.get_running_loop().time() - self._current_at

    @property
    def events(self) -> Mapping[str, int]:
        """As in `Journal`."""
        audits = {"audits": self._auditor.agreed, "audits_passed_over": self._auditor.passed_over}
        written = {"unknown": self._writer.unknown, "written_again": self._writer.void}
        return {**vars(self.counts), **audits, **written, **self._log.events}

    def trim(self, index: int) -> None:
        """Nothing is dropped: others may not have it. See `broker.snapshot`, which knows when they do."""

    @property
    def log_bytes(self) -> int:
        """Of all records that were applied, by whomever, since the log was made."""
        return self._standing.log_bytes

    @property
    def begin(self) -> Begin:
        """Where the log could begin, and who is to make the snapshot that it takes."""
        return self._standing.begin

    @property
    def newest(self) -> tuple[int, bytes]:
        """The position of the newest applied record, and its `fingerprint`."""
        return self._standing.position - 1, self._standing.newest()

    @property
    def boot(self) -> int:
        """This process, as its records name it."""
        return self._standing.boot

    def announce(self) -> None:
        """Write a record that the log may begin with one day; `begin` tells once it has been read."""
        self._writer.add(Envelope(0, 0, meta=self._standing.meta))

    def now_ms(self) -> int:
        """The time of the newest record, carried forward; never goes back."""
        return self._standing.now_ms()

    async def aclose(self, within_s: float = limits.DRAIN_S) -> None:
        """As in `Journal`; what the log does not take by then stays unknown."""
        if self._closed:
            return
        self._closed = True
        now = asyncio.get_running_loop().time
        until = now() + within_s
        if self._error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(within_s, limits.STOP_STEP_S)):
                    await self._writer.idle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._error = self._error or EngineStopped("the journal is closed")
        self._fail_waiting(self._error)
        await self._log.aclose(until - now())

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _take(self) -> _Taken:
        """The next record, looked at. Raises EngineStopped for one that must not be skipped."""
        self._look_for_missed()
        try:
            read = await self._reader.next()
        except LogTruncated as error:
            self._diverge(str(error), blames_snapshot=False)
        record = read.record
        if record.position != self._standing.position:
            raise LogLost(f"the log handed out position {record.position} after {self._standing.position - 1}")
        self._standing.hear(record.time_ms)
        try:
            if read.envelope is not None and read.envelope.log not in (b"", self._standing.meta.log):
                await self._meet_another_log(record.position)
                read = Read(record, None, [], None)
            self._taken = self._looked_at(read)
        except (NewerFormat, UnknownFormat, msgspec.MsgspecError) as error:
            raise EngineStopped(f"the record at position {record.position} cannot be applied: {error}") from error
        return self._taken

    def _looked_at(self, read: Read) -> _Taken:
        record, envelope = read.record, read.envelope
        self.counts.records += 1
        if envelope is None:
            if read.error is not None:
                raise read.error
            self.counts.foreign += 1
            return _Taken(record, Envelope(0, 0), None)
        if self._standing.proposers.is_late(envelope.boot, envelope.number):
            self.counts.void += 1
            return _Taken(record, Envelope(0, 0), None)
        if read.error is not None:
            raise read.error
        if envelope.retired == self._standing.boot:
            # A copy of this node's store was started while this process lives: what it writes is void from here on.
            raise EngineStopped("another process began with a copy of this one's store, and took its place")
        if envelope.audit is not None:
            is_first_hand = self._is_made_anew and self._standing.position < self._replay_end
            self._auditor.hear(envelope.boot, envelope.audit, is_first_hand=is_first_hand)
        own = self._writer.seen(envelope.number) if envelope.boot == self._standing.boot else []
        if not envelope.entries:
            return _Taken(record, envelope, None)
        entries = own or read.entries or [decode_entry(data) for data in envelope.entries]
        return _Taken(record, envelope, Commit(self._standing.index + 1, self._standing.time_ms, entries))

    async def _meet_another_log(self, position: int) -> None:
        """A record was written for another log of this name. Raises LogLost, unless it does not belong here.

        The topic was deleted and made anew. Either under this process: then nothing that it reads is meant for it. Or
        before: then a node of the old one goes on, and its record is void. What the log begins with tells which; it was
        looked at when this process began, and holds for what was in the log then.
        """
        if position >= self._replay_end and not await self._opening.is_still_right():
            raise LogLost(f"the record at position {position} is of another log: the topic was deleted and made anew")
        self._reader.seek(position + 1)

    def _advance(self, outcomes: Sequence[Outcome]) -> None:
        """The record in hand has been applied: from here on it is part of the state."""
        taken, self._taken = self._taken, None
        if taken is None:
            raise RuntimeError("no record is in hand")
        record, envelope, commit = taken
        self._standing.advance(record, envelope, commit, outcomes)
        if envelope.retired:
            self._auditor.retire(envelope.retired)
        self._auditor.note()
        self._went_on.set()
        self._writer.look_idle()
        self._behind.rise(self._standing.position)
        if envelope.boot == self._standing.boot:
            self._own.rise(envelope.number)

    async def _read_forever(self) -> None:
        while True:
            taken = await self._take()
            if taken.commit is None:
                self._advance(())
                continue
            if taken.envelope.boot == self._standing.boot:
                await self._writer.confirmed(taken.record.position)
            self._went_on.clear()
            self._hand_back(taken.commit)
            await self._went_on.wait()

    def _hand_back(self, handed: Commit | Refused) -> None:
        if self._deliver is None:
            raise RuntimeError("the journal is not started")
        self._deliver(handed)

    async def _read_past(self, position: int) -> None:
        """Return once the record at `position` has been applied. Raises EngineStopped."""
        await self._behind.reach(position + 1)

    def _look_for_missed(self) -> None:
        """Before the log has grown over what it lost, and looks whole again. Raises Diverged."""
        if self._writer.has_missed(self._standing.position):
            self._diverge(
                "a record of this process does not count where the log confirmed it: the log lost records, or a copy of"
                " this store is in use elsewhere",
                blames_snapshot=False,
            )

    def _be_outvoted(self, reason: str) -> NoReturn:
        self._diverge(reason, blames_snapshot=True)

    def _diverge(self, reason: str, *, blames_snapshot: bool) -> NoReturn:
        """Not the snapshot where the log lost records behind it: a start with it finds out whether it is right."""
        self.counts.diverged += 1
        log.critical("DIVERGED: %s; the store of this node is not to be used any more", reason)
        self._quarantine(reason, blames_snapshot)
        raise Diverged(reason)

    # -- running -----------------------------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._writer.give_up()
            self._look_for_missed()
            self._auditor.judge()
            # Not after this node was frozen or cut off, until it has caught up: should the log have lost records
            # meanwhile, it will find that out itself, and must not make all those doubt who are right.
            if self.lag_s < OUT_OF_TOUCH_S:
                self._auditor.tell_if_due()

    async def _look_forever(self) -> None:
        """Know whether this node is behind. A log that does not answer leaves it behind.

        An end that was is good enough for that, and no record is written only to be ready.
        """
        while True:
            asked_at, position = asyncio.get_running_loop().time(), self._standing.position
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(limits.CATCH_UP_S):
                    end = await self._log.end()
                    await self._read_past(end - 1)
                if end >= position:  # else the server is behind this node, or the log has lost records
                    self._current_at = asked_at
            await asyncio.sleep(LOOK_S)

    async def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever ends one of the tasks ends the journal: nothing is skipped."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001 -- a bug in here leaves as much unknown as a log that lost records
            self._stop(error if isinstance(error, EngineStopped) else EngineStopped(f"the journal failed: {error!r}"))

    def _stop(self, error: EngineStopped) -> None:
        if self._error is None:
            self._error = error
            self._fail_waiting(error)
            if self._stopped is not None:
                self._stopped(error)

    def _fail_waiting(self, error: EngineStopped) -> None:
        self._behind.fail(error)
        self._own.fail(error)
