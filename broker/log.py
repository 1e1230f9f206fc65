"""The log: the records of all streams, as if it did not matter whether the tail has them or the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from broker.core.page import Page, before, join
from broker.core.state import Stream
from broker.tail import Tail

Read = Callable[[int, int, int], Awaitable[list[Page]]]
Life = tuple[str, int]
"""A path and an incarnation. Not the path alone: a session that was reset goes on while forks read what it was."""
Frozen = list[tuple[Life, Tail, list[Page]]]
"""What a checkpoint has in hand: (life, its tail, the pages)."""


class Log:
    """The tails of live streams before the store's pages (`read`: as `Store.read`)."""

    def __init__(self, read: Read) -> None:
        self.elsewhere: Callable[[str], Log] | None = None
        """The log that has the records of a path, where there are several."""
        self._read_stored = read
        self._tails: dict[Life, Tail] = {}
        self._fresh: set[Life] = set()  # tails with pages that no checkpoint has in hand

    def append(self, path: str, life: int, page: Page) -> None:
        """Add the next page of a stream."""
        tail = self._tails.get((path, life))
        if tail is None:
            tail = self._tails[path, life] = Tail(life, page.start)
        tail.append(page)
        self._fresh.add((path, life))

    def end(self, path: str, life: int) -> None:
        """This life of the path is over: nobody will ask for its pages, nor store them."""
        self._tails.pop((path, life), None)
        self._fresh.discard((path, life))

    async def read(self, path: str, stream: Stream, position: int, bytes_max: int) -> Page | None:
        """Records of `stream` from `position` on, whole pages up to about `bytes_max` bytes; None if there are none.

        What a fork inherits is read where it lies. May be less than there is. Never of another life: when the stream
        ended meanwhile, nothing.
        """
        if not stream.lineage:
            return await self._read(path, stream.incarnation, stream.tail, position, bytes_max)
        run: list[Page] = []
        for part_path, life, end in _parts(path, stream):
            if position < end and bytes_max > 0:
                log = self if self.elsewhere is None else self.elsewhere(part_path)
                page = await log._read(part_path, life, end, position, bytes_max)  # noqa: SLF001 -- one of this class
                if page is None:
                    break
                run.append(before(page, end))
                bytes_max -= len(page.data)
                position = run[-1].end
                if position < end:
                    break
        return join(run) if run else None

    def newest(self, path: str, life: int, position: int, bytes_max: int) -> Page | None:
        """The same of what a tail has; None says nothing."""
        tail = self._tails.get((path, life))
        return tail.read(position, bytes_max) if tail is not None and tail.holds(position) else None

    def freeze(self) -> Frozen:
        """The pages that no checkpoint has in hand yet; from here on one has."""
        frozen = [(life, self._tails[life], self._tails[life].freeze()) for life in self._fresh]
        self._fresh = set()
        return frozen

    def thaw(self, frozen: Frozen) -> None:
        """The checkpoint was not written: all of it is to be stored again."""
        for life, tail, _ in frozen:
            if self._tails.get(life) is tail:
                tail.thaw()
                self._fresh.add(life)

    def drop(self, frozen: Frozen) -> None:
        """The store has them."""
        for life, tail, pages in frozen:
            if pages:
                tail.drop(pages[-1].end)
            if not tail.pages and self._tails.get(life) is tail:
                del self._tails[life]

    async def _read(self, path: str, life: int, end: int, position: int, bytes_max: int) -> Page | None:
        for _ in range(2):  # a checkpoint may move the tail into the store between the two looks: look again
            tail = self._tails.get((path, life))
            if tail is not None and tail.holds(position):
                return tail.read(position, bytes_max)
            if position >= (end if tail is None else tail.end):
                return None
            pages = await self._read_stored(life, position, bytes_max)
            if pages:
                return self._with_tail(path, life, join(pages), bytes_max)
        return None

    def _with_tail(self, path: str, life: int, page: Page, bytes_max: int) -> Page:
        """A stored run that reached the tail goes on in it."""
        tail = self._tails.get((path, life))
        room = bytes_max - len(page.data)
        if room <= 0 or tail is None or not tail.holds(page.end):
            return page
        return join([page, tail.read(page.end, room)])


def _parts(path: str, stream: Stream) -> list[tuple[str, int, int]]:
    """Where a fork's records lie: (path, life, end), in order."""
    inherited = [(segment.path, segment.incarnation, segment.end) for segment in stream.lineage]
    return [*inherited, (path, stream.incarnation, stream.tail)]
