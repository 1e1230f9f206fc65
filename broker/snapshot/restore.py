"""Beginning with a snapshot: a node that has no store, or one that ends before the log begins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from broker.errors import StartError, Unavailable
from broker.journal.cluster_begin import meta_at
from broker.journal.cluster_record import decode_mark
from broker.journal.shared_log import LogLost, SharedLog
from broker.snapshot.form import Facts, Name, Unusable
from broker.snapshot.shelf import Shelf
from broker.store import Head
from broker.store.whole import drop

log = logging.getLogger("streamfold.snapshot")


class _Begin(NamedTuple):
    """What the log begins with."""

    first: int
    log_uuid: bytes | None  # None: its first record does not say


class Restorer:
    """A `store.whole.Restore`: finds what this node needs, and a snapshot that has it."""

    def __init__(
        self,
        log: SharedLog,
        shelf: Shelf,
        fetched: Path,
        *,
        distrusted: Callable[[], Collection[str]] = tuple,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._shelf = shelf
        self._fetched = fetched
        self._distrusted = distrusted
        self._note = note

    async def __call__(self, head: Head | None) -> Path | None:
        """As `Restore`. Raises StartError when the log does not answer, or lacks what no snapshot has."""
        drop(self._fetched)  # of one that did not live to use it
        if head is not None and head.applied_index and not head.mark:
            return None  # of another engine: the journal says so
        try:
            await self._log.open()
            position = decode_mark(head.mark).position if head is not None and head.mark else None
            if position is not None and position >= await self._log.first():
                return None
            begin = await self._begin()
        except Unavailable as error:
            raise StartError(f"the log does not answer: {error}") from error
        except LogLost as error:
            raise StartError(f"the log changed meanwhile: {error}", "start again") from error
        name = None if begin is None else await asyncio.to_thread(self._fetch_newest, begin)
        if name is not None:
            self._note(str(name))
            log.info("this node begins with the snapshot %s, and what the log has behind it", name)
            return self._fetched
        if begin is not None and begin.first > 0:
            raise StartError(
                f"the log begins at position {begin.first}; {_lacking(position)}, and there is no snapshot in"
                f" {self._shelf} that can be used instead",
                "does --snapshot-dir name the folder that the other nodes of the cluster use? The lines above say what"
                " is wrong with the snapshots that are there",
            )
        return None

    async def _begin(self) -> _Begin | None:
        """None for a log that is new: whatever snapshots there are, they are of another one."""
        first = await self._log.first()
        if first == 0 and await self._log.end() == 0:
            return None
        meta = await meta_at(self._log, first)
        return _Begin(first, None if meta is None else meta.log_uuid)

    def _fetch_newest(self, begin: _Begin) -> Name | None:
        """Copy the newest usable snapshot to the file `_fetched`; which one it is."""
        try:
            for name in self._shelf.newest_first(begin.log_uuid):
                with self._shelf.told(name):
                    self._require_usable(self._shelf.facts(name), begin, name)
                    self._shelf.check(name, keep=self._fetched)
                    return name
        except OSError as error:
            if begin.first > 0:
                raise StartError(f"{self._shelf}: {error}", "--snapshot-dir has to be readable") from error
            log.warning("no snapshot can be read in %s, and the log has everything: %s", self._shelf, error)
        return None

    def _require_usable(self, facts: Facts, begin: _Begin, name: Name) -> None:
        """Raises Unusable."""
        if facts.position < begin.first:
            raise Unusable(f"it ends at position {facts.position}, and the log begins at {begin.first}")
        if str(name) in self._distrusted():
            raise Unusable("a store that was made with it was set aside: it does not agree with the log")


def _lacking(position: int | None) -> str:
    return "this node has no store" if position is None else f"this node's store ends at position {position}"
