"""The tail: the newest applied batches of a live stream, in memory until the store has them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from itertools import islice
from operator import attrgetter

from broker.core.page import Page, after, join

_start, _end = attrgetter("start"), attrgetter("end")


class Tail:
    """Consecutive pages of one incarnation.

    Positions, always start <= frozen <= end: [start, end) is in `pages`; below `frozen` a checkpoint has it in hand;
    below `start` the store has it.
    """

    __slots__ = ("end", "frozen", "incarnation", "pages")

    def __init__(self, incarnation: int, start: int) -> None:
        self.incarnation = incarnation
        self.pages: deque[Page] = deque()
        self.frozen = start
        self.end = start

    def append(self, page: Page) -> None:
        """Add the next page."""
        self.pages.append(page)
        self.end = page.end

    def holds(self, position: int) -> bool:
        """Whether what lies at `position` is here."""
        return bool(self.pages) and self.pages[0].start <= position < self.end

    def read(self, position: int, bytes_max: int) -> Page:
        """From `position`, which it holds, whole pages up to about `bytes_max` bytes."""
        pages = self.pages
        at = bisect_right(pages, position, key=_start) - 1
        first = after(pages[at], position)
        if at == len(pages) - 1:
            return first
        run, size = [first], len(first.data)
        for page in islice(pages, at + 1, None):
            size += len(page.data)
            if size > bytes_max:
                break
            run.append(page)
        return join(run)

    def freeze(self) -> list[Page]:
        """The pages that no checkpoint has in hand yet; from here on one has."""
        fresh = list(islice(self.pages, bisect_left(self.pages, self.frozen, key=_start), None))
        self.frozen = self.end
        return fresh

    def thaw(self) -> None:
        """The checkpoint failed: all that is here is to be stored again."""
        self.frozen = self.pages[0].start if self.pages else self.end

    def drop(self, position: int) -> None:
        """The store has everything below `position`."""
        self.pages = deque(islice(self.pages, bisect_right(self.pages, position, key=_end), None))
