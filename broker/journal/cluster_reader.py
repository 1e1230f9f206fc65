"""Reading a shared log ahead of applying it: a run of records is decoded, and what it needs is told, in one go.

What is ahead is only looked at. What becomes of a record, and of what is wrong with it, is judged when its turn comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

import msgspec

from broker import limits
from broker.core.entry import Entry, UnknownFormat, decode as decode_entry
from broker.errors import NewerFormat
from broker.journal import Foresee
from broker.journal.cluster_record import Envelope, decode
from broker.journal.shared_log import LogRecord, SharedLog

_Undecoded = NewerFormat | UnknownFormat | msgspec.MsgspecError


class Read(NamedTuple):
    """A record as it was read. With an `error` it must not be skipped: without an envelope, or else if it counts."""

    record: LogRecord
    envelope: Envelope | None  # None for what nobody of ours has written, too
    entries: list[Entry]  # none of those of this process, which it still has
    error: _Undecoded | None


class RecordReader:
    """Owned by a `ClusterJournal`."""

    def __init__(self, log: SharedLog, boot: int) -> None:
        self.foresee: Foresee | None = None
        self._log = log
        self._boot = boot
        self._fetched: deque[LogRecord] = deque()
        self._ahead: deque[Read] = deque()

    async def next(self) -> Read:
        """The next record. Raises LogLost."""
        if not self._ahead:
            if not self._fetched:
                self._fetched.extend(await self._log.read())
            await self._look_ahead()
        return self._ahead.popleft()

    def seek(self, position: int) -> None:
        """Forget what was read, and go on from there."""
        self._fetched.clear()
        self._ahead.clear()
        self._log.seek(position)

    async def _look_ahead(self) -> None:
        run: list[Read] = []
        size_bytes = 0
        while self._fetched and len(run) < limits.AHEAD_RECORDS and size_bytes < limits.AHEAD_BYTES:
            record = self._fetched.popleft()
            size_bytes += len(record.data)
            run.append(self._decoded(record))
        if self.foresee is not None:
            entries = [entry for read in run for entry in read.entries]
            if entries:
                await self.foresee(entries)
        self._ahead.extend(run)
        if self._fetched:
            await asyncio.sleep(0)  # others of this process have a turn between two runs

    def _decoded(self, record: LogRecord) -> Read:
        envelope: Envelope | None = None
        try:
            envelope = decode(record.data)
            if envelope is None or envelope.boot == self._boot:
                return Read(record, envelope, [], None)
            return Read(record, envelope, [decode_entry(data) for data in envelope.entries], None)
        except (NewerFormat, UnknownFormat, msgspec.MsgspecError) as error:
            return Read(record, envelope, [], error)
