"""The memory journal: the order and the times of a journal, and no durability; for tests and for trying things out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from broker import limits
from broker.core.entry import Entry
from broker.errors import EngineStopped
from broker.journal import Commit, Foresee, Refused
from broker.journal.clock import Milliseconds, monotonic_ms, wall_ms
from broker.journal.lone import LoneJournal
from consumer.wire import Durability


class MemoryJournal(LoneJournal):
    """A `Journal` that keeps nothing: what is proposed in one iteration of the event loop comes back in the next."""

    durability: Durability = Durability.MEMORY
    synchronous: bool = False

    def __init__(self, *, wall_ms: Milliseconds = wall_ms, monotonic_ms: Milliseconds = monotonic_ms) -> None:
        super().__init__(wall_ms, monotonic_ms)
        self._next_index = 1
        self._waiting: list[Entry] = []
        self._deliver: Callable[[Commit | Refused], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self, applied_index: int, applied_time_ms: int, mark: bytes = b"") -> None:  # noqa: ARG002 - it has none
        """Begin after `applied_index`. Raises nothing."""
        self._begin_time(applied_time_ms)
        self._next_index = applied_index + 1

    async def replay(self, foresee: Foresee | None = None) -> AsyncIterator[Commit]:  # noqa: ARG002 -- there is nothing
        """Nothing: it was lost with the process before."""
        nothing: tuple[Commit, ...] = ()
        for commit in nothing:
            yield commit

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:  # noqa: ARG002 - nothing can stop it
        """Take proposals from now on."""
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver

    def propose(self, entry: Entry) -> None:
        """Queue an entry. Raises EngineStopped before `start` and after `aclose`."""
        if self._loop is None:
            raise EngineStopped("the journal is closed")
        self._waiting.append(entry)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._commit)

    def trim(self, index: int) -> None:
        """Nothing is kept, so nothing is dropped."""

    async def aclose(self, within_s: float = limits.DRAIN_S) -> None:  # noqa: ARG002 -- it waits for nobody
        """Hand back what waits; take no more."""
        self._loop = None
        self._commit()

    def _commit(self) -> None:
        if not self._waiting or self._deliver is None:
            return
        entries, self._waiting = self._waiting, []
        for together in [[entry] for entry in entries] if self.synchronous else [entries]:
            commit = Commit(self._next_index, self.now_ms(), together)
            self._next_index += len(together)
            self._deliver(commit)
