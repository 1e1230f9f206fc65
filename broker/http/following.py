"""Following: what one reader over SSE is told, whoever carries it to the socket (PROTOCOL.md 5.8).

A follower is a position and what follows from it. `events` tells it to an ASGI server, from a task that waits; or
somebody calls `look` until the reader is at the tail, and `look_newest` whenever the stream has changed: no task waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from typing import NamedTuple

from broker import limits
from broker.core.page import Page, before
from broker.core.state import Stream
from broker.errors import Unavailable
from broker.http import sse
from broker.http.live_readers import LiveReaders
from broker.http.looks import Look, Looks, body_of
from broker.http.problems import BadRequest
from broker.http.response import LiveResponse
from broker.partitions import Partitioned
from broker.settings import Settings
from broker.watches import Watcher


class Told(NamedTuple):
    """What one look is told as."""

    data: bytes
    """Events; empty when there was nothing to tell."""
    at_tail: bool
    """Whether there was nothing more: the next look is worth it when the stream has changed."""
    over: bool
    """Whether the connection ends behind this."""


_GONE = Told(b"", at_tail=True, over=True)
_NOTHING = Told(b"", at_tail=True, over=False)


class Feed:
    """What all followers have in common."""

    def __init__(self, partition: Partitioned, settings: Settings, looks: Looks, live: LiveReaders) -> None:
        self.partition = partition
        self.looks = looks
        self.live = live
        self.life_s = settings.sse_life_s
        self.keepalive_s = settings.sse_keepalive_s
        self._events = sse.FrameCache(limits.SSE_CACHE_BYTES)
        # The last one that was told: what most readers are told is what the one before was.
        self._look: Look | None = None
        self._cursor = 0
        self._told = (_NOTHING, 0)

    def told(self, look: Look, cursor: int, *, again: bool) -> tuple[Told, int]:
        """What a look is told as, and where a reader then stands; no bytes for nothing new, if it is told `again`."""
        if look is self._look and cursor == self._cursor and again:
            return self._told
        data, end = self._made(look, cursor, again=again)
        told = Told(data, look.up_to_date, over=look.at_eof)
        if again:
            self._look, self._cursor, self._told = look, cursor, (told, end)
        return told, end

    def _made(self, look: Look, cursor: int, *, again: bool) -> tuple[bytes, int]:
        page = _whole(look)
        if page is None and again and not look.at_eof:
            return b"", look.start
        end = look.start if page is None else page.end
        key = (look.stream.incarnation, look.start, end, cursor, look.up_to_date, look.at_eof)
        event = self._events.get(key)
        if event is None:
            offset = look.stream.offset(end)
            event = sse.control_frame(offset, cursor, up_to_date=look.up_to_date, closed=look.at_eof)
            if page is not None:
                event = sse.data_frame(offset, body_of(page), text=sse.is_text(look.stream.content_type)) + event
            self._events.put(key, event)
        return event, end


class Follower:
    """One reader."""

    __slots__ = ("_cursor", "_incarnation", "_path", "_position", "_stream", "_told", "ends_at", "feed")

    def __init__(self, feed: Feed, path: str, stream: Stream, start: int, cursor: int) -> None:
        self.feed = feed
        # Not all at once: readers that came together after a restart would else come back together for ever.
        self.ends_at = _clock() + feed.life_s * random.uniform(0.9, 1.1)  # noqa: S311 -- it spreads load, it guards nothing
        """By the event loop's clock: when the connection has lived long enough."""
        self._path = path
        self._incarnation = stream.incarnation
        self._stream = stream
        self._position = start
        self._cursor = cursor
        self._told = False

    def watch(self, watcher: Watcher) -> None:
        """Have it woken whenever there may be more, until `unwatch`."""
        self.feed.partition.watch(self._path, watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """It has left."""
        self.feed.partition.unwatch(self._path, watcher)

    @property
    def is_mortal(self) -> bool:
        """Whether the stream's time runs out unless somebody who listens renews it, and looks at the clock."""
        return self._stream.deadline_ms is not None

    async def look(self) -> Told:
        """Tell what there is now. Raises EngineStopped."""
        try:
            look = await self.feed.looks.at(self._path, self._incarnation, self._position)
        except (BadRequest, Unavailable):
            return _GONE  # or another life of the path, or not readable: the reader learns which by asking again
        return self._tell(look, _clock())

    def look_newest(self, now_s: float) -> Told | None:
        """The same at once, if what there is to tell is in memory; None: `look`. `now_s` is by the loop's clock."""
        look = self.feed.looks.newest(self._path, self._incarnation, self._position)
        return None if look is None else self._tell(look, now_s)

    async def events(self) -> AsyncGenerator[bytes]:
        """Everything, until the stream is at its end or gone, or the connection has lived long enough."""
        with self.feed.live.counted("sse"):
            while True:
                told = await self.look()
                if told.data or not told.over:
                    yield told.data or sse.KEEP_ALIVE
                if told.over:
                    return
                if told.at_tail:
                    await self._wait()

    def _tell(self, look: Look, now_s: float) -> Told:
        self._stream = look.stream
        told, self._position = self.feed.told(look, self._cursor, again=self._told)
        self._told = True
        if told.over:
            return told
        if now_s >= self.ends_at:
            return Told(told.data, told.at_tail, over=True)
        if self.feed.partition.draining:
            return Told(told.data + sse.LEAVING, told.at_tail, over=True)
        return told

    async def _wait(self) -> None:
        """Wait for more; a stream that somebody reads live does not run out of time meanwhile (PROTOCOL.md 5.1)."""
        left_s = max(0.0, min(self.ends_at - _clock(), self.feed.keepalive_s))
        await wait_for_more(self.feed.partition, self._path, self._stream, self._stream.tail, left_s)


class Followed(LiveResponse, frozen=True):
    """What a reader gets over SSE: `chunks` are the follower's events, for who cannot call it."""

    follower: Follower


async def wait_for_more(partition: Partitioned, path: str, stream: Stream, position: int, timeout_s: float) -> None:
    """Return when a stream may have more after `position`, or after `timeout_s`; its TTL is renewed meanwhile."""
    partition.touch(path, stream)
    if stream.ttl_s is not None:
        timeout_s = min(timeout_s, max(stream.ttl_s / 2, 0.1))
    await partition.wait(path, stream.incarnation, position, timeout_s)


def _whole(look: Look) -> Page | None:
    """What of a look can be told: of a text that was cut within a character, not its half, unless nothing follows."""
    page = look.page
    if page is None or page.lengths or look.at_eof or not sse.is_text(look.stream.content_type):
        return page
    whole = sse.whole_characters(page.data)
    if whole:
        return before(page, page.start + whole)
    return None if look.up_to_date else page


def _clock() -> float:
    return asyncio.get_running_loop().time()
