"""The journal: orders entries, makes them durable and hands them back in that order, each with an index and a time.

One port, one contract suite (`tests/broker/journal/`), one class for each engine. What the port promises:

1. Entries are handed back in one order, the same after every restart. Indexes rise by one and never start again, not
   even after every entry was trimmed.
2. Nothing is handed back before it is durable (memory engine: never durable, and it says so).
3. `time_ms` never goes back, over restarts too.
4. A proposal that cannot be made durable is told through `Refused`, definitely; it is not in the journal and never will
   be. When that cannot be told, the journal of one process stops (`EngineStopped`) and hands back nothing more; a
   cluster's tells `Refused` with OutcomeUnknown, goes on, and hands the proposal back if it is there after all.
5. Entries of this process are handed back once per proposal; a cluster's journal also hands back those of others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from broker import limits
from broker.core.entry import Entry
from broker.core.outcome import Outcome
from consumer.wire import Durability


class Commit(msgspec.Struct, frozen=True, gc=False):
    """Entries that became durable together: indexes first_index, first_index + 1, …, all at `time_ms`."""

    first_index: int
    time_ms: int
    entries: Sequence[Entry]


class Refused(msgspec.Struct, frozen=True, gc=False):
    """Proposals that nobody should wait for any longer.

    Unavailable: they definitely are not, and will never be, in the journal. OutcomeUnknown: they may be, or not.
    """

    entries: Sequence[Entry]
    error: Exception


Foresee = Callable[[Sequence[Entry]], Awaitable[None]]
"""Told of entries that are about to come, or to come to nothing: time to have at hand what they need."""


class Journal(Protocol):
    """The port. One owner: the partition, in one event loop."""

    durability: Durability
    lone_proposer: bool
    """Whether only this process proposes. Then what the partition applied is all there is to know."""
    synchronous: bool
    """Set at any time: whether each entry, those that wait included, is committed by itself. Begins as False."""

    async def open(self, applied_index: int, applied_time_ms: int, mark: bytes = b"") -> None:
        """Open behind a store that has applied everything up to `applied_index`, at `applied_time_ms`.

        `mark` is what `mark` gave at that index. Raises StartError (DataDirInUse, NewerFormat, Damaged): a first entry
        beyond `applied_index + 1`, another file uuid than the store's, bytes that do not check out.
        """

    def replay(self, foresee: Foresee | None = None) -> AsyncIterator[Commit]:
        """What is durable beyond the store's index, in order; once, right after `open`. Bounded memory.

        A journal that reads ahead tells `foresee`, and waits for it: here, and of what others propose for ever after.
        """
        ...

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:
        """From now on take proposals. `deliver` is called in the event loop, in order; `stopped` once, if ever."""

    def heed(self, is_watched: Callable[[], bool]) -> None:
        """Once, before `open`: ask this whether anybody here waits for what comes next.

        Where nobody does, what others propose may be handed back a little later, and cost less.
        """

    def propose(self, entry: Entry) -> None:
        """Queue one entry for the next commit. Never blocks; the caller bounds what it has in flight.

        Raises EngineStopped.
        """

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        """`commit` has been applied, with these outcomes. Told where others propose too (not `lone_proposer`).

        Such a journal hands back one commit at a time: the next one comes after this.
        """

    def mark(self) -> bytes:
        """What the journal wants to be told at `open`, beside the index applied by now; stored together with it."""
        ...

    async def catch_up(self) -> bool:
        """Return True once everything that others had proposed before this call has been applied.

        False, at once, where only this process proposes. Raises Unavailable when that takes too long.
        """
        ...

    @property
    def identity(self) -> bytes:
        """The same wherever indexes mean the same entries, once it is open; empty where only this process has them."""
        ...

    @property
    def lag_s(self) -> float:
        """For how long what this process has applied has not been all that there is; 0 where it proposes alone."""
        ...

    @property
    def events(self) -> Mapping[str, int]:
        """How often what happened to this journal that only its kind knows, by name."""
        ...

    def trim(self, index: int) -> None:
        """Entries up to and including `index` are durable in the store: drop them, in bounded steps and later."""

    def now_ms(self) -> int:
        """The journal's time carried forward by this process's monotonic clock: what reads judge expiry by."""
        ...

    async def aclose(self, within_s: float = limits.DRAIN_S) -> None:
        """Commit what was proposed, hand it back, stop. Idempotent.

        Where others have a say in that it takes `within_s`, or a few seconds more when they do not answer; what became
        of a proposal that is not handed back by then is unknown.
        """


__all__ = ["Commit", "Foresee", "Journal", "Refused"]
