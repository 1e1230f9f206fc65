"""Rows in memory: everything that has changed and is not yet stored, and as a cache some of what is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping

from broker import limits
from broker.core.state import Generation, Key, Message, Row

Load = Callable[[Iterable[Key]], Awaitable[dict[Key, Row | None]]]

_OF_PAST = b"gm"  # what their keys begin with
_PAST = (Generation, Message)  # a union would be built anew by each look


class Rows:
    """What is here counts; what is not here, the store knows best.

    A row that has changed stays until the checkpoint that has it is durable: it is in `_fresh` until a checkpoint
    takes it in hand, then in `_frozen` until that is written.

    Of what is over, an ended generation or a message, only the newest rows stay: a session writes nothing to them any
    more, and has ever more of them. A late copy of a batch has them loaded.
    """

    def __init__(self, load: Load, rows_max: int, past_rows_max: int = limits.PAST_ROWS_MAX) -> None:
        self.held: dict[Key, Row | None] = {}
        """Every row in memory, for `apply`; None for one that is known not to exist. Not to be edited."""
        self._load = load
        self._rows_max = rows_max
        self._past_rows_max = past_rows_max
        self._past: dict[Key, None] = {}  # what of `held` is over, the oldest first
        self._fresh: dict[Key, Row | None] = {}
        self._frozen: dict[Key, Row | None] = {}
        self._loading: dict[Key, asyncio.Future[None]] = {}

    async def get(self, key: Key, needed: tuple[Container[Key], ...] = ()) -> Row | None:
        """The row; None when there is none. `needed` as in `bound`."""
        while key not in self.held:
            await self.load([key])
        row = self.held[key]
        self.bound(needed)
        return row

    async def load(self, wanted: Iterable[Key]) -> None:
        """Have all these rows in memory. One load of a key at a time, so an old answer never covers a newer row."""
        wanted = list(wanted)
        mine = [key for key in dict.fromkeys(wanted) if key not in self.held and key not in self._loading]
        others = [self._loading[key] for key in wanted if key in self._loading]
        if mine:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._loading.update(dict.fromkeys(mine, done))
            try:
                loaded = await self._load(mine)
                for key in mine:
                    row = self.held.setdefault(key, loaded[key])
                    self._note_past(key, row)
            finally:
                for key in mine:
                    del self._loading[key]
                done.set_result(None)
        if others:
            await asyncio.wait(others)

    def install(self, changed: Mapping[Key, Row | None]) -> None:
        """Rows as an entry has made them."""
        self.held.update(changed)
        self._fresh.update(changed)
        for key, row in changed.items():
            if key[0] in _OF_PAST:
                self._note_past(key, row)

    def _note_past(self, key: Key, row: Row | None) -> None:
        if isinstance(row, _PAST):
            self._past[key] = None
        elif key in self._past:
            del self._past[key]

    def unstored(self) -> list[tuple[Key, Row | None]]:
        """Rows that the store does not have as they are; of one that changed again, what it was comes first."""
        return [*self._frozen.items(), *self._fresh.items()]

    def freeze(self) -> Mapping[Key, Row | None]:
        """What has changed, for the checkpoint that now takes it in hand."""
        self._frozen, self._fresh = self._fresh, {}
        return self._frozen

    def thaw(self) -> None:
        """The checkpoint was not written: all of it is to be stored again."""
        self._fresh = self._frozen | self._fresh
        self._frozen = {}

    def stored(self) -> None:
        """The checkpoint is durable."""
        self._frozen = {}

    def bound(self, needed: tuple[Container[Key], ...]) -> None:
        """Forget the oldest clean rows above the bound, but for those in `needed`.

        To be called when nobody needs the rows just loaded: never between a commit's load and its application.
        """
        kept = len(self._fresh) + len(self._frozen)  # about: these cannot be let go anyway
        if _exceeds(len(self.held) - kept, self._rows_max) or _exceeds(len(self._past) - kept, self._past_rows_max):
            self.evict(needed)

    def evict(self, needed: tuple[Container[Key], ...]) -> None:
        """Forget the oldest rows that the store has, down to the bounds."""
        for keys, rows_max in ((self._past, self._past_rows_max), (self.held, self._rows_max)):
            excess = len(keys) - rows_max
            if excess > 0:
                for key in list(self._evictable(keys, excess, needed)):
                    del self.held[key]
                    self._past.pop(key, None)

    def _evictable(self, keys: Iterable[Key], count: int, needed: tuple[Container[Key], ...]) -> Iterator[Key]:
        # Not one that is being loaded either: the answer may be older than the row that is here, and would replace it.
        kept: tuple[Container[Key], ...] = (self._fresh, self._frozen, self._loading, *needed)
        for key in keys:
            if any(key in needed_by for needed_by in kept):
                continue
            yield key
            count -= 1
            if count == 0:
                return


def _exceeds(count: int, rows_max: int) -> bool:
    """By enough that it is worth looking for what to forget."""
    return count > rows_max + rows_max // 8
