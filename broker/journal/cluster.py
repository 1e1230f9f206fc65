"""The journal of a cluster: entries in a log that other processes write to as well. Every one of them applies all.

What `SharedLog` leaves to be done is here: late and double copies are void, unknown fates are settled, time is made to
rise, indexes count entries without gaps whatever else the log holds, and replicas compare what they made of it.

A record holds the entries that waited together; it may hold none. So an index counts entries, a position counts
records, and the `Mark` that is stored with an index says which position it stands at.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

import msgspec

from broker import limits
from broker.core.entry import Entry, UnknownFormat, decode as decode_entry
from broker.core.outcome import Outcome
from broker.errors import (
    BrokerError,
    Damaged,
    Diverged,
    EngineStopped,
    NewerFormat,
    OutcomeUnknown,
    StartError,
    Unavailable,
)
from broker.journal import Commit, Foresee, Refused
from broker.journal.audits import Audits
from broker.journal.clock import Milliseconds, monotonic_ms
from broker.journal.cluster_begin import Begin, meta_at, record_at
from broker.journal.cluster_reader import Read, RecordReader
from broker.journal.cluster_record import (
    Audit,
    Envelope,
    Mark,
    Meta,
    decode_mark,
    encode,
    encode_mark,
    fingerprint,
)
from broker.journal.cluster_writer import RecordWriter
from broker.journal.proposers import Proposers
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
_NOWHERE: Final = Meta(b"", 0, 1)
_numbers = struct.Struct("<QQ")
_encode_facts = msgspec.msgpack.Encoder().encode


class Counts:
    """What a cluster's journal has seen, as plain numbers for the metrics to read."""

    def __init__(self) -> None:
        self.records = 0
        self.void = 0  # late or double copies
        self.foreign = 0  # somebody else's
        self.audits = 0  # that agreed
        self.audits_passed_over = 0  # that did not, and whose writers were outvoted, or by the log itself
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
        quarantine: Callable[[str], None] = lambda _: None,
        wait_s: float = limits.CLUSTER_WAIT_S,
        audit_s: float = limits.AUDIT_S,
    ) -> None:
        self.durability = durability
        self.counts = Counts()
        self._log = log
        self._partition, self._partitions = partition, partitions
        self._monotonic_ms = monotonic_ms
        self._quarantine = quarantine
        self._audit_s = audit_s
        self._boot = int.from_bytes(os.urandom(8), "big") >> 1 or 1
        self._boot_before = 0  # who had this store before; whatever of it still comes is void
        self._writer = RecordWriter(log, self._boot, self._read_past, self._refuse, self._look_for_missed, wait_s)

        self._meta = _NOWHERE
        self._index = 0  # of the newest applied entry
        self._position = 0  # of the next record to apply
        self._newest: LogRecord | None = None  # the one before it, if it was applied since the last mark
        self._newest_told = b""  # its fingerprint, if not
        self._log_bytes = 0  # of the records before it
        self._begin = Begin()
        self._time_ms = 0  # of the newest record; never goes back
        self._time_seen_ms = 0  # when that was, by the monotonic clock
        self._told_ms = 0  # the latest that `now_ms` has said
        self._chain = b""  # of hashes, over all outcomes before _position
        self._audits = Audits(self._boot)
        self._audited_chain = b""  # that of the last audit read, whoever wrote it
        self._audit_due = 0.0
        self._proposers = Proposers()
        self._current_at = 0.0  # when all that the log had was known to be applied, by the event loop's clock

        self._reader = RecordReader(log, self._boot)
        self._taken: _Taken | None = None
        self._replay_end = 0
        self._is_made_anew = False  # the store, of all that the log has
        self._went_on = asyncio.Event()  # a record was applied
        self._behind = Rising()  # _position, for those who wait for it
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
        self._index, self._time_ms, self._time_seen_ms = applied_index, applied_time_ms, self._monotonic_ms()
        await self._log.open()
        try:
            first, end = await self._log.first(), await self._log.end()
            if mark:
                stands = decode_mark(mark)
                if stands.position > end:  # as a server has it that may not know that another one leads by now
                    end = await self._written_end(end)
                self._resume(stands, first, end)
            elif applied_index:
                raise Damaged("the store was made by another engine", "name an empty folder with --data-dir")
            elif first > 0:
                raise _trimmed(f"the log begins at position {first}, and there is no store of what was before it")
            self._is_made_anew = self._boot_before == 0
            await self._find_meta(first, end)
            await self._look_at_newest(first)
            self._replay_end = await self._log.end()
        except Unavailable as error:
            raise StartError(f"the log does not answer: {error}") from error
        except LogLost as error:
            raise StartError(f"the log changed meanwhile: {error}", "start again") from error
        self._log.seek(self._position)

    async def replay(self, foresee: Foresee | None = None) -> AsyncIterator[Commit]:
        """As in `Journal`: up to where the log ended at `open`."""
        self._reader.foresee = foresee
        while self._position < self._replay_end:
            taken = await self._take()
            if taken.commit is None:
                self._advance(())
            else:
                yield taken.commit

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:
        """As in `Journal`."""
        self._deliver, self._stopped, self._error = deliver, stopped, None
        self._writer.log = self._meta.log
        # The first record of this life: it voids what an earlier one may have left under way, and tells the time.
        self._writer.add(Envelope(0, 0, retired=self._boot_before))
        self._put_audit_off()
        self._current_at = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._run(self._read_forever), name="journal: read"),
            asyncio.create_task(self._run(self._writer.run), name="journal: write"),
            asyncio.create_task(self._run(self._tick_forever), name="journal: tick"),
            asyncio.create_task(self._run(self._look_forever), name="journal: look"),
        ]

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
        if self._newest is not None:
            self._newest_told, self._newest = fingerprint(self._newest), None
        return encode_mark(
            Mark(
                self._meta,
                self._position,
                self._chain,
                self._proposers.stored(),
                self._boot,
                self._time_ms,
                self._newest_told,
                self._begin.position,
                self._log_bytes,
            )
        )

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
        return self._meta.log_uuid

    @property
    def lag_s(self) -> float:
        """As in `Journal`; the time since this node was last known to have applied all that the log said it had."""
        return asyncio.get_running_loop().time() - self._current_at

    @property
    def events(self) -> Mapping[str, int]:
        """As in `Journal`."""
        written = {"unknown": self._writer.unknown, "written_again": self._writer.void}
        return {**vars(self.counts), **written, **self._log.events}

    def trim(self, index: int) -> None:
        """Nothing is dropped: others may not have it. See `broker.snapshot`, which knows when they do."""

    @property
    def log_uuid(self) -> bytes:
        """Which log this is; known once it is open."""
        return self._meta.log_uuid

    @property
    def log_bytes(self) -> int:
        """Of all records that were applied, by whomever, since the log was made."""
        return self._log_bytes

    @property
    def begin(self) -> Begin:
        """Where the log could begin, and who is to make the snapshot that it takes."""
        return self._begin

    @property
    def boot(self) -> int:
        """This process, as its records name it."""
        return self._boot

    def announce(self) -> None:
        """Write a record that the log may begin with one day; `begin` tells once it has been read."""
        self._writer.add(Envelope(0, 0, meta=self._meta))

    def now_ms(self) -> int:
        """The time of the newest record, carried forward; never goes back."""
        now_ms = self._time_ms + self._monotonic_ms() - self._time_seen_ms
        self._told_ms = max(self._told_ms, now_ms)
        return self._told_ms

    async def aclose(self) -> None:
        """As in `Journal`; what the log does not take by then stays unknown."""
        if self._closed:
            return
        self._closed = True
        if self._error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.CLUSTER_CLOSE_S):
                    await self._writer.idle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._error = self._error or EngineStopped("the journal is closed")
        self._wake_all(self._error)
        await self._log.aclose()

    # -- opening -----------------------------------------------------------------------------------------------------

    def _resume(self, mark: Mark, first: int, end: int) -> None:
        """Go on where the store stands. Raises Damaged."""
        if mark.position > end:
            self._lose(f"the log ends at position {end}, the store has what came before position {mark.position}")
        if mark.position < first:
            raise _trimmed(f"the log begins at position {first}, the store ends at position {mark.position}")
        self._meta, self._position, self._chain, self._boot_before = mark.meta, mark.position, mark.chain, mark.boot
        self._behind.rise(mark.position)
        self._begin, self._log_bytes = Begin(mark.begin), mark.log_bytes
        self._time_ms = max(self._time_ms, mark.time_ms)
        self._newest_told = mark.newest
        self._proposers = Proposers(mark.proposers)
        self._audited_chain = mark.chain
        self._audits.note(mark.position, mark.chain)
        self._check_partitions(mark.meta)

    async def _written_end(self, said_end: int) -> int:
        """Where the log ended at some moment after this was called: where it takes a record. Raises StartError."""
        meta = None if said_end else self._new_meta()  # for it may be true, and then this is the first
        try:
            return await self._log.append(encode(Envelope(self._boot, 0, meta=meta)))
        except OutcomeUnknown as error:
            raise StartError(f"the log takes no records: {error}") from error

    def _new_meta(self) -> Meta:
        return Meta(os.urandom(16), self._partition, self._partitions)

    async def _look_at_newest(self, first: int) -> None:
        """A log that lost records and has grown since looks whole: see that the last one applied is still there."""
        if self._newest_told and self._position > first:
            record = await record_at(self._log, self._position - 1)
            if fingerprint(record) != self._newest_told:
                self._lose(f"the log has another record at position {record.position} than the store was made from")

    async def _find_meta(self, first: int, end: int) -> None:
        """Read the first record of the log, or write it. Whoever came first has said what holds."""
        if end == 0:
            with suppress(BrokerError):  # it may be there all the same; only what is read counts
                await self._log.append(encode(Envelope(self._boot, 0, meta=self._new_meta())))
        found = await meta_at(self._log, first)
        if found is None and first > 0:
            return  # somebody trimmed it by hand; audits tell which log it is
        if found is None:
            raise StartError(
                "the log holds what Streamfold has not written", "name a topic of its own with --kafka-topic"
            )
        if self._meta is not _NOWHERE and self._meta.log_uuid != found.log_uuid:
            self._lose("the log was made anew: it is not the one that the store was made from")
        self._check_partitions(found)
        self._meta = found

    def _check_partitions(self, meta: Meta) -> None:
        if (meta.partition, meta.partitions) != (self._partition, self._partitions):
            raise StartError(
                f"the log is partition {meta.partition} of {meta.partitions}, not {self._partition} of"
                f" {self._partitions}",
                "the number of partitions is chosen once, with the topic",
            )

    def _lose(self, reason: str) -> None:
        """The store has what the log has not. Raises Damaged."""
        self._quarantine(reason)
        raise Damaged(reason, "start again: the store is set aside, and made anew from the log")

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _take(self) -> _Taken:
        """The next record, looked at. Raises EngineStopped for one that must not be skipped."""
        self._look_for_missed()
        try:
            read = await self._reader.next()
        except LogTruncated as error:
            self._diverge(str(error))
        record = read.record
        if record.position != self._position:
            raise LogLost(f"the log handed out position {record.position} after {self._position - 1}")
        self._time_ms = max(self._time_ms, record.time_ms)
        self._time_seen_ms = self._monotonic_ms()
        try:
            if read.envelope is not None and read.envelope.log not in (b"", self._meta.log):
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
        if self._proposers.is_late(envelope.boot, envelope.number):
            self.counts.void += 1
            return _Taken(record, Envelope(0, 0), None)
        if read.error is not None:
            raise read.error
        if envelope.retired == self._boot:
            # A copy of this node's store was started while this process lives: what it writes is void from here on.
            raise EngineStopped("another process began with a copy of this one's store, and took its place")
        if envelope.audit is not None:
            self._compare(envelope.boot, envelope.audit)
        own = self._writer.seen(envelope.number) if envelope.boot == self._boot else []
        if not envelope.entries:
            return _Taken(record, envelope, None)
        entries = own or read.entries or [decode_entry(data) for data in envelope.entries]
        return _Taken(record, envelope, Commit(self._index + 1, self._time_ms, entries))

    async def _meet_another_log(self, position: int) -> None:
        """A record was written for another log of this name. Raises LogLost, unless it does not belong here.

        The topic was deleted and made anew. Either under this process: then nothing that it reads is meant for it. Or
        before: then a node of the old one goes on, and its record is void. What the log begins with tells which; it was
        looked at when this process began, and holds for what was in the log then.
        """
        if position >= self._replay_end and not await self._is_still_ours():
            raise LogLost(f"the record at position {position} is of another log: the topic was deleted and made anew")
        self._reader.seek(position + 1)

    async def _is_still_ours(self) -> bool:
        """Whether the log begins with what it began with."""
        try:
            first = await meta_at(self._log, await self._log.first())
        except (StartError, Unavailable):
            return False  # a start finds out
        return first is not None and first.log_uuid == self._meta.log_uuid

    def _advance(self, outcomes: Sequence[Outcome]) -> None:
        """The record in hand has been applied: from here on it is part of the state."""
        taken, self._taken = self._taken, None
        if taken is None:
            raise RuntimeError("no record is in hand")
        envelope = taken.envelope
        if envelope.number:
            self._proposers.note(envelope.boot, envelope.number, self._time_ms)
        if envelope.retired:
            self._proposers.retire(envelope.retired, self._time_ms)
            self._audits.retire(envelope.retired)
        self._begin = self._begin.after(envelope, self._meta, taken.record.position, self._log_bytes)
        self._log_bytes += len(taken.record.data)
        if taken.commit is not None:
            self._index += len(taken.commit.entries)
            self._chain = _chained(self._chain, taken.record.position, taken.commit, outcomes)
        self._position = taken.record.position + 1
        self._newest = taken.record
        self._audits.note(self._position, self._chain)
        self._went_on.set()
        self._writer.look_idle()
        self._behind.rise(self._position)
        if envelope.boot == self._boot:
            self._own.rise(envelope.number)

    async def _read_forever(self) -> None:
        while True:
            taken = await self._take()
            if taken.commit is None:
                self._advance(())
                continue
            if taken.envelope.boot == self._boot:
                await self._writer.confirmed(taken.record.position)
            self._went_on.clear()
            self._hand_back(taken.commit)
            await self._went_on.wait()

    def _hand_back(self, handed: Commit | Refused) -> None:
        if self._deliver is None:
            raise RuntimeError("the journal is not started")
        self._deliver(handed)

    def _refuse(self, refused: Refused) -> None:
        self._hand_back(refused)

    async def _read_past(self, position: int) -> None:
        """Return once the record at `position` has been applied. Raises EngineStopped."""
        await self._behind.reach(position + 1)

    def _wake_all(self, error: EngineStopped) -> None:
        """Nothing more will be read."""
        self._behind.fail(error)
        self._own.fail(error)

    # -- audits ------------------------------------------------------------------------------------------------------

    def _compare(self, boot: int, audit: Audit) -> None:
        """Hold a replica's chain against ours. Raises Diverged."""
        self._put_audit_off()
        self._audited_chain = audit.chain
        is_ours = audit.log_uuid == self._meta.log_uuid
        is_equal = self._audits.hear(boot, audit.position, audit.chain) if is_ours else False
        if is_equal:
            self.counts.audits += 1
        elif is_equal is not None and self._is_made_anew and self._position < self._replay_end:
            # What this node has, it has from the log itself: the other one was wrong, and is gone or is told by ours.
            # Nobody could ever get past its record otherwise.
            self._pass_over(audit.position)
        elif not is_ours:
            self._diverge("a record speaks of another log: the topic was deleted and made anew")
        elif is_equal is not None:
            self._dispute(audit.position)

    def _dispute(self, position: int) -> None:
        """Somebody has made something else of the log: ask all who are there."""
        chain = self._audits.dispute(position, asyncio.get_running_loop().time() + limits.DISPUTE_S)
        if chain is not None:
            log.error("DISPUTED: what the log makes before position %d; every node is asked", position)
            self._writer.add(Envelope(0, 0, audit=Audit(self._meta.log_uuid, position, chain)))

    def _judge(self) -> None:
        """Raises Diverged when this node is not among the most."""
        for verdict in self._audits.verdicts(asyncio.get_running_loop().time()):
            if verdict.is_wrong:
                self._diverge(f"most nodes made something else of the log before position {verdict.position}")
            self._pass_over(verdict.position)

    def _pass_over(self, position: int) -> None:
        self.counts.audits_passed_over += 1
        log.error("a node made something else of the log before position %d than it says", position)

    def _look_for_missed(self) -> None:
        """Before the log has grown over what it lost, and looks whole again. Raises Diverged."""
        if self._writer.has_missed(self._position):
            self._diverge(
                "a record of this process does not count where the log confirmed it: the log lost records, or a copy of"
                " this store is in use elsewhere"
            )

    def _diverge(self, reason: str) -> NoReturn:
        self.counts.diverged += 1
        log.critical("DIVERGED: %s; the store of this node is not to be used any more", reason)
        self._quarantine(reason)
        raise Diverged(reason)

    def _is_audit_due(self) -> bool:
        """Whether to tell what this node made of the log.

        Not after it was frozen or cut off, until it has caught up: should the log have lost records meanwhile, it will
        find that out itself, and must not make all those doubt who are right.
        """
        is_in_touch = self.lag_s < OUT_OF_TOUCH_S
        is_due = asyncio.get_running_loop().time() >= self._audit_due
        return is_in_touch and is_due and self._chain != self._audited_chain

    def _put_audit_off(self) -> None:
        # Not all nodes at once: the first one's record tells the others that it is done.
        self._audit_due = asyncio.get_running_loop().time() + self._audit_s * random.uniform(1, 1.5)  # noqa: S311 -- as said

    # -- running -----------------------------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._writer.give_up()
            self._look_for_missed()
            self._judge()
            if self._is_audit_due():
                self._put_audit_off()
                self._writer.add(Envelope(0, 0, audit=Audit(self._meta.log_uuid, self._position, self._chain)))

    async def _look_forever(self) -> None:
        """Know whether this node is behind. A log that does not answer leaves it behind.

        An end that was is good enough for that, and no record is written only to be ready.
        """
        while True:
            asked_at, position = asyncio.get_running_loop().time(), self._position
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
            self._wake_all(error)
            if self._stopped is not None:
                self._stopped(error)


def _trimmed(reason: str) -> StartError:
    return StartError(
        reason,
        "name the folder of the cluster's snapshots with --snapshot-dir; or copy the data folder of another node, while"
        " that is stopped, and start with the copy",
    )


def _chained(chain: bytes, position: int, commit: Commit, outcomes: Sequence[Outcome]) -> bytes:
    """The next link: what this record was, and what came of it."""
    told = hashlib.blake2b(chain, digest_size=16)
    told.update(_numbers.pack(position, commit.time_ms))
    for outcome in outcomes:
        told.update(_encode_facts((outcome.result, outcome.code, outcome.next_position, outcome.epoch, outcome.seq)))
    return told.digest()
