"""Where a replica stands in a shared log: what moves with each record that is applied, and what a store's mark keeps.

A record holds the entries that waited together; it may hold none. So an index counts entries, a position counts
records, and the `Mark` that is stored with an index says which position it stands at.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from broker.core.outcome import Outcome
from broker.journal import Commit
from broker.journal.clock import Milliseconds
from broker.journal.cluster_begin import Begin
from broker.journal.cluster_record import Envelope, Mark, Meta, encode_mark, fingerprint
from broker.journal.proposers import Proposers
from broker.journal.shared_log import LogRecord

NOWHERE: Final = Meta(b"", 0, 1)
_numbers = struct.Struct("<QQ")
_encode_facts = msgspec.msgpack.Encoder().encode


class Standing:
    """Of the replica that `boot` keeps. Pure but for the clock; whoever owns it applies records in their order."""

    def __init__(self, boot: int, monotonic_ms: Milliseconds) -> None:
        self.boot = boot
        self.boot_before = 0
        """Who had this store before; whatever of it still comes is void."""
        self.meta = NOWHERE
        self.index = 0
        """Of the newest applied entry."""
        self.position = 0
        """Of the next record to apply."""
        self.log_bytes = 0
        """Of the records before it."""
        self.chain = b""
        """Of hashes, over all outcomes before it."""
        self.begin = Begin()
        self.proposers = Proposers()
        self.time_ms = 0
        """Of the newest record; never goes back."""
        self._applied_time_ms = 0  # of the record before `position`; `time_ms` may be that of one in hand
        self._newest: LogRecord | None = None  # that record, if it was applied since somebody last asked `newest`
        self._newest_told = b""  # what it said then
        self._monotonic_ms = monotonic_ms
        self._time_seen_ms = 0  # when time_ms was, by the monotonic clock
        self._told_ms = 0  # the latest that `now_ms` has said

    def take_up(self, index: int, time_ms: int) -> None:
        """Begin where a store stands."""
        self.index = index
        self.hear(time_ms)

    def resume(self, mark: Mark) -> None:
        """And where that is in the log."""
        self.meta, self.position, self.chain, self.boot_before = mark.meta, mark.position, mark.chain, mark.boot
        self.begin, self.log_bytes = Begin(mark.begin), mark.log_bytes
        self.time_ms = self._applied_time_ms = max(self.time_ms, mark.time_ms)
        self._newest_told = mark.newest
        self.proposers = Proposers(mark.proposers)

    def hear(self, time_ms: int) -> None:
        """A record was read that the log took then."""
        self.time_ms = max(self.time_ms, time_ms)
        self._time_seen_ms = self._monotonic_ms()

    def now_ms(self) -> int:
        """The time of the newest record, carried forward; never goes back."""
        now_ms = self.time_ms + self._monotonic_ms() - self._time_seen_ms
        self._told_ms = max(self._told_ms, now_ms)
        return self._told_ms

    def advance(
        self, record: LogRecord, envelope: Envelope, commit: Commit | None, outcomes: Sequence[Outcome]
    ) -> None:
        """The next record has been applied: from here on it is part of the state."""
        if envelope.number:
            self.proposers.note(envelope.boot, envelope.number, self.time_ms)
        if envelope.retired:
            self.proposers.retire(envelope.retired, self.time_ms)
        self.begin = self.begin.after(envelope, self.meta, record.position, self.log_bytes)
        self.log_bytes += len(record.data)
        if commit is not None:
            self.index += len(commit.entries)
            self.chain = _chained(self.chain, record.position, commit, outcomes)
        self.position = record.position + 1
        self._newest, self._applied_time_ms = record, self.time_ms

    def newest(self) -> bytes:
        """The fingerprint of the record before `position`; empty where nobody noted it."""
        if self._newest is not None:
            self._newest_told, self._newest = fingerprint(self._newest), None
        return self._newest_told

    def mark(self) -> bytes:
        """What is to be stored with `index`."""
        return encode_mark(
            Mark(
                self.meta,
                self.position,
                self.chain,
                self.proposers.stored(),
                self.boot,
                self._applied_time_ms,
                self.newest(),
                self.begin.position,
                self.log_bytes,
            )
        )


def _chained(chain: bytes, position: int, commit: Commit, outcomes: Sequence[Outcome]) -> bytes:
    """The next link: what this record was, and what came of it."""
    told = hashlib.blake2b(chain, digest_size=16)
    told.update(_numbers.pack(position, commit.time_ms))
    for outcome in outcomes:
        told.update(_encode_facts((outcome.result, outcome.code, outcome.next_position, outcome.epoch, outcome.seq)))
    return told.digest()
