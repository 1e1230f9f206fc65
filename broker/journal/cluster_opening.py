"""Opening a shared log behind a store: whether it is that store's, and still has all that the store was made from."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from broker.errors import BrokerError, Damaged, OutcomeUnknown, StartError, Unavailable
from broker.journal.cluster_begin import meta_at, record_at
from broker.journal.cluster_record import Envelope, Mark, Meta, decode_mark, encode, fingerprint
from broker.journal.cluster_standing import NOWHERE, Standing
from broker.journal.shared_log import LogRecord, SharedLog

Quarantine = Callable[[str, bool], None]
"""Told why a store is not to be used any more, and whether the snapshot that it was begun with is not to be, either."""


class Opening:
    """Of partition `partition` of `partitions`."""

    def __init__(
        self,
        log: SharedLog,
        standing: Standing,
        partition: int,
        partitions: int,
        quarantine: Quarantine,
    ) -> None:
        self._log = log
        self._standing = standing
        self._partition, self._partitions = partition, partitions
        self._quarantine = quarantine
        self._is_as_begun = False
        self.last: LogRecord | None = None
        """The record before the one to go on with, as it was found to be there."""

    async def run(self, mark: bytes) -> None:
        """Find where in the log the store stands that has this mark. Raises StartError, Unavailable and LogLost."""
        first, end = await self._log.first(), await self._log.end()
        if mark:
            stands = decode_mark(mark)
            self._is_as_begun = stands.boot == 0
            if stands.position > end:  # as a server has it that may not know that another one leads by now
                end = await self.written_end(end)
            self._resume(stands, first, end)
        elif self._standing.index:
            raise Damaged("the store was made by another engine", "name an empty folder with --data-dir")
        elif first > 0:
            raise _trimmed(f"the log begins at position {first}, and there is no store of what was before it")
        await self._find_meta(first, end)
        await self._look_at_newest(first)

    async def is_still_right(self) -> bool:
        """Whether the log begins with what it began with."""
        try:
            first = await meta_at(self._log, await self._log.first())
        except (StartError, Unavailable):
            return False  # a start finds out
        return first is not None and first.log_uuid == self._standing.meta.log_uuid

    def _resume(self, mark: Mark, first: int, end: int) -> None:
        """Go on where the store stands. Raises Damaged."""
        if mark.position > end:
            self._lose(f"the log ends at position {end}, the store has what came before position {mark.position}")
        if mark.position < first:
            raise _trimmed(f"the log begins at position {first}, the store ends at position {mark.position}")
        self._standing.resume(mark)
        self._check_partitions(mark.meta)

    async def written_end(self, said_end: int) -> int:
        """Where the log ended at some moment after this was called: where it takes a record. Raises StartError."""
        meta = None if said_end else self._new_meta()  # for it may be true, and then this is the first
        try:
            return await self._log.append(encode(Envelope(self._standing.boot, 0, meta=meta)))
        except OutcomeUnknown as error:
            raise StartError(f"the log takes no records: {error}") from error

    def _new_meta(self) -> Meta:
        return Meta(os.urandom(16), self._partition, self._partitions)

    async def _find_meta(self, first: int, end: int) -> None:
        """Read the first record of the log, or write it. Whoever came first has said what holds."""
        if end == 0:
            with suppress(BrokerError):  # it may be there all the same; only what is read counts
                await self._log.append(encode(Envelope(self._standing.boot, 0, meta=self._new_meta())))
        found = await meta_at(self._log, first)
        if found is None and first > 0:
            return  # somebody trimmed it by hand; audits tell which log it is
        if found is None:
            raise StartError(
                "the log holds what Streamfold has not written", "name a topic of its own with --kafka-topic"
            )
        if self._standing.meta is not NOWHERE and self._standing.meta.log_uuid != found.log_uuid:
            self._lose("the log was made anew: it is not the one that the store was made from")
        self._check_partitions(found)
        self._standing.meta = found

    async def _look_at_newest(self, first: int) -> None:
        """A log that lost records and has grown since looks whole: see that the last one applied is still there."""
        standing = self._standing
        newest = standing.newest()
        if newest and standing.position > first:
            record = await record_at(self._log, standing.position - 1)
            if fingerprint(record) != newest:
                self._lose(f"the log has another record at position {record.position} than the store was made from")
            self.last = record

    def _check_partitions(self, meta: Meta) -> None:
        if (meta.partition, meta.partitions) != (self._partition, self._partitions):
            raise StartError(
                f"the log is partition {meta.partition} of {meta.partitions}, not {self._partition} of"
                f" {self._partitions}",
                "the number of partitions is chosen once, with the topic",
            )

    def _lose(self, reason: str) -> NoReturn:
        """The store has what the log has not. Raises Damaged.

        So has the snapshot that it was begun with, if no process has written to it since; else that may well be right,
        and be the only one that is: the log may have lost what came behind it.
        """
        self._quarantine(reason, self._is_as_begun)
        raise Damaged(reason, "start again: the store is set aside, and made anew from the log")


def _trimmed(reason: str) -> StartError:
    return StartError(
        reason,
        "name the folder of the cluster's snapshots with --snapshot-dir; or copy the data folder of another node, while"
        " that is stopped, and start with the copy",
    )
