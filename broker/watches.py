"""Watches: who waits for the next change of a stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from broker.core.state import Key

WOKEN_AT_ONCE: Final = 64
"""Watchers in one turn of the event loop, well below a millisecond: many readers of one stream are not to hold up the
writers of others."""


class Watcher(Protocol):
    """Somebody who wants to know of every change, and waits in no task."""

    def wake(self) -> None:
        """There may be more. Never raises: others are behind this one."""


class _Watch:
    """All who wait for one stream."""

    __slots__ = ("_again", "_changed", "_left", "_unwoken", "waiting", "watchers")

    def __init__(self) -> None:
        self.watchers: dict[Watcher, None] = {}
        self.waiting = 0
        """In `changed`. The next to wait after a change begins anew."""
        # Futures only where somebody awaits them: most streams have one reader, and that is a watcher.
        self._changed: asyncio.Future[None] | None = None
        self._left: asyncio.Future[None] | None = None
        self._unwoken: deque[Watcher] = deque()
        self._again = False  # there was another change before all were woken

    @property
    def is_over(self) -> bool:
        return not self.waiting and not self.watchers

    @property
    def changed(self) -> asyncio.Future[None]:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    @property
    def left(self) -> asyncio.Future[None]:
        if self._left is None:
            self._left = asyncio.get_running_loop().create_future()
        return self._left

    def end(self) -> None:
        if self._left is not None:
            self._left.set_result(None)

    def wake(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
        if self._unwoken:
            self._again = True  # not from the first on: with many changes the last would never be woken
        elif self.watchers:
            self._unwoken.extend(self.watchers)
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _wake_some(self) -> None:
        for _ in range(min(WOKEN_AT_ONCE, len(self._unwoken))):
            watcher = self._unwoken.popleft()
            if watcher in self.watchers:
                watcher.wake()
        if self._unwoken:
            asyncio.get_running_loop().call_soon(self._wake_some)
        elif self._again:
            self._again = False
            self.wake()


class Watches:
    """By the key of the stream's row. Nothing is kept for a stream that nobody waits for."""

    def __init__(self) -> None:
        self._watches: dict[Key, _Watch] = {}

    def __bool__(self) -> bool:
        return bool(self._watches)

    def __contains__(self, key: object) -> bool:
        return key in self._watches

    def add(self, key: Key, watcher: Watcher) -> None:
        """Wake it after every change, until it is removed. Changes that come close together may wake it once."""
        self._of(key).watchers[watcher] = None

    def remove(self, key: Key, watcher: Watcher) -> None:
        """It has left."""
        watch = self._watches.get(key)
        if watch is not None:
            watch.watchers.pop(watcher, None)
            self._end_unused(key, watch)

    async def wait(self, key: Key, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`."""
        watch = self._of(key)
        watch.waiting += 1
        try:
            await asyncio.wait((watch.changed,), timeout=timeout_s)
        finally:
            watch.waiting -= 1
            self._end_unused(key, watch)

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

    def wake_those(self, keys: Mapping[Key, object]) -> None:
        """All of these have changed."""
        if not self._watches.keys().isdisjoint(keys.keys()):
            for key in keys:
                self.wake(key)

    def wake_all(self) -> None:
        """Everybody is to look again."""
        for watch in list(self._watches.values()):
            watch.wake()

    def _of(self, key: Key) -> _Watch:
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch()
        return watch

    def _end_unused(self, key: Key, watch: _Watch) -> None:
        if watch.is_over and self._watches.get(key) is watch:
            del self._watches[key]
            watch.end()
