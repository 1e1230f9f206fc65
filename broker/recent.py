"""Recent changes of sessions: which, in what order, and who waits for the next.

Derived from what is applied, and forgotten with the process: whoever knows nothing reads the list itself. Where a
change stands in its partition is the same on every node of a cluster; the order over partitions is each process's own.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from broker import limits


class Change(msgspec.Struct, frozen=True, gc=False):
    """The latest change of a session."""

    number: int  # of the changes that this process has seen, of all partitions
    path: str
    partition: int
    entry_index: int  # in its partition


class Recent:
    """The sessions that changed last, by path, each with its latest change; bounded."""

    def __init__(self, changed_max: int = limits.SESSIONS_CHANGED_MAX) -> None:
        self.life = os.urandom(8).hex()
        """Tells the indexes that are known here from those of any other journal."""
        self.number = 0
        """Of the newest change."""
        self.forgotten = 0
        """Changes up to this number are not all known any more."""
        self._forgotten: dict[int, int] = {}  # by partition: changes up to this index are not all known
        self._changed_max = changed_max
        self._changed: OrderedDict[str, Change] = OrderedDict()  # by rising number
        self._waiters: set[asyncio.Future[None]] = set()

    def begin(self, partition: int, index: int, identity: bytes) -> None:
        """A partition opens with what was applied up to `index`; `identity` is `Journal.identity`."""
        self._forgotten[partition] = index
        if identity and partition == 0:
            self.life = identity[:8].hex()

    def change(self, path: str, partition: int = 0, index: int = 0) -> None:
        """The session at `path` was created, changed or deleted, by the entry at `index`."""
        self.number += 1
        self._changed[path] = Change(self.number, path, partition, index)
        self._changed.move_to_end(path)
        if len(self._changed) > self._changed_max:
            _, oldest = self._changed.popitem(last=False)
            self.forgotten, self._forgotten[oldest.partition] = oldest.number, oldest.entry_index
        if self._waiters:
            self.wake()

    def since(self, number: int) -> list[Change]:
        """What changed after that change, which is not below `forgotten`: by rising number, each path once."""
        found: list[Change] = []
        for change in reversed(self._changed.values()):
            if change.number <= number:
                break
            found.append(change)
        return found[::-1]

    def behind(self, indexes: Sequence[int]) -> int | None:
        """The number before the first change behind these indexes, one of each partition; None if not all are known."""
        if any(index < self._forgotten.get(partition, 0) for partition, index in enumerate(indexes)):
            return None
        missed = (change.number for change in self._changed.values() if change.entry_index > indexes[change.partition])
        return next(missed, self.number + 1) - 1

    @property
    def is_watched(self) -> bool:
        """Whether anybody waits for the next change."""
        return bool(self._waiters)

    async def wait(self, number: int, timeout_s: float) -> None:
        """Return when something has changed after that change, when everybody is woken, or after `timeout_s`."""
        if self.number > number:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)

    def wake(self) -> None:
        """Everybody is to look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
