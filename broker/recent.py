"""Recent changes of sessions: which, in what order, and who waits for the next.

Derived from what is applied, and forgotten with the process: whoever knows nothing reads the list itself.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict

from broker import limits


class Recent:
    """The sessions that changed last, by path, each with the index of its latest change; bounded."""

    def __init__(self, changed_max: int = limits.SESSIONS_CHANGED_MAX) -> None:
        self.life = os.urandom(8).hex()
        """Tells the indexes of this process from those of any other, whose changes are not known here."""
        self.index = 0
        """Of the newest change; they count changes, of all partitions that share this."""
        self.forgotten = 0
        """Changes up to this index are not all known any more."""
        self._changed_max = changed_max
        self._changed: OrderedDict[str, int] = OrderedDict()  # by rising index
        self._waiters: set[asyncio.Future[None]] = set()

    def change(self, path: str) -> None:
        """The session at `path` was created, changed or deleted."""
        self.index += 1
        self._changed[path] = self.index
        self._changed.move_to_end(path)
        if len(self._changed) > self._changed_max:
            self.forgotten = self._changed.popitem(last=False)[1]
        if self._waiters:
            self.wake()

    def since(self, index: int) -> list[tuple[int, str]]:
        """What changed after `index`, which is not below `forgotten`: (index, path) by rising index, each path once."""
        found: list[tuple[int, str]] = []
        for path, changed in reversed(self._changed.items()):
            if changed <= index:
                break
            found.append((changed, path))
        return found[::-1]

    async def wait(self, index: int, timeout_s: float) -> None:
        """Return when something has changed after `index`, when everybody is woken, or after `timeout_s`."""
        if self.index > index:
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
