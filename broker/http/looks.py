"""Looks: what a reader at a position of a stream sees at one moment."""

from __future__ import annotations

import msgspec

from broker import limits
from broker.core.page import Page
from broker.core.state import Stream
from broker.errors import Unavailable
from broker.http.problems import BadRequest
from broker.partitions import Partitioned
from consumer.wire import Code


class Look(msgspec.Struct, frozen=True, gc=False):
    """What one look at a stream from `start` saw: `page`, or nothing yet, and the stream as it was after that."""

    stream: Stream
    start: int
    page: Page | None

    @property
    def end(self) -> int:
        """Where a reader stands that has taken it."""
        return self.start if self.page is None else self.page.end

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing more."""
        return self.end >= self.stream.tail

    @property
    def at_eof(self) -> bool:
        """Whether there never will be."""
        return self.stream.closed and self.up_to_date


class Looks:
    """Looks at the streams of a partition."""

    def __init__(self, partition: Partitioned) -> None:
        self._partition = partition
        self._newest: Look | None = None

    async def stream(self, path: str) -> Stream:
        """The stream at `path`. Raises BadRequest (STREAM_NOT_FOUND, STREAM_GONE)."""
        stream = await self._partition.stream(path)
        if stream is None:
            raise BadRequest(Code.STREAM_NOT_FOUND)
        if stream.deleted:
            raise BadRequest(Code.STREAM_GONE)
        return stream

    async def at(self, path: str, incarnation: int, start: int) -> Look:
        """What lies behind `start` now. Whether that is all is judged after the read, when the answer is built.

        Raises BadRequest (as `stream`, and OFFSET_GONE in another life of the path) and Unavailable.
        """
        stream = await self.stream(path)
        page = None
        if stream.incarnation == incarnation and start < stream.tail:
            page = await self._partition.read(path, stream, start, limits.READ_BYTES_MAX)
            stream = await self.stream(path)
        if stream.incarnation != incarnation:
            raise BadRequest(Code.OFFSET_GONE, "the stream was deleted and created anew")
        if page is None and start < stream.tail:
            raise Unavailable("what was stored could not be read just now")
        return Look(stream, start, page)

    def newest(self, path: str, incarnation: int, start: int) -> Look | None:
        """What `at` would see, if all of it is in memory; None: ask `at`, which may wait and says what is wrong."""
        stream = self._partition.held(path, incarnation)
        if stream is None:
            return None
        last = self._newest
        if last is not None and last.stream is stream and last.start == start:
            return last  # all readers at a tail see the same, and a stream that changed is another value
        page = None
        if start < stream.tail:
            page = self._partition.newest(path, incarnation, start, limits.READ_BYTES_MAX)
            if page is None:
                return None
        self._newest = Look(stream, start, page)
        return self._newest


def body_of(page: Page) -> bytes:
    """Its records as one response has them: a JSON array, or the bytes."""
    return b"[%b]" % page.data if page.lengths else page.data
