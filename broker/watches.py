"""Watches: readers that wait for the next change of a stream."""

from __future__ import annotations

import asyncio

from broker.core.state import Key


class _Watch:
    """All readers that wait for one stream. The next to wait after a change begins anew."""

    __slots__ = ("changed", "left", "waiting")

    def __init__(self) -> None:
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting = 0
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        if not self.changed.done():
            self.changed.set_result(None)
        self.changed = asyncio.get_running_loop().create_future()


class Watches:
    """By the key of the stream's row. Nothing is kept for a stream that nobody waits for."""

    def __init__(self) -> None:
        self._watches: dict[Key, _Watch] = {}

    def __bool__(self) -> bool:
        return bool(self._watches)

    def __contains__(self, key: object) -> bool:
        return key in self._watches

    async def wait(self, key: Key, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`."""
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch()
        watch.waiting += 1
        try:
            await asyncio.wait((watch.changed,), timeout=timeout_s)
        finally:
            watch.waiting -= 1
            if not watch.waiting and self._watches.get(key) is watch:
                del self._watches[key]
                watch.left.set_result(None)

    async def left(self, key: Key, timeout_s: float) -> None:
        """Return when nobody waits for what they wait for now, or after `timeout_s`."""
        watch = self._watches.get(key)
        if watch is not None:
            await asyncio.wait((watch.left,), timeout=timeout_s)

    def wake(self, key: Key) -> None:
        """The stream has changed."""
        watch = self._watches.get(key)
        if watch is not None:
            watch.wake()

    def wake_all(self) -> None:
        """Everybody is to look again."""
        for watch in list(self._watches.values()):
            watch.wake()
