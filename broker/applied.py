"""What a partition has made of its entries: rows, records, and what somebody must look after unasked.

One entry after the other: first everything that it changes is computed (`core.apply`), then everything is installed. A
checkpoint takes in hand what changed since the last one, and says what became of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from typing import Protocol

import msgspec

from broker import limits
from broker.core.apply import apply
from broker.core.entry import Entry
from broker.core.outcome import Outcome, Result
from broker.core.page import Page
from broker.core.state import Changes, Key, Row, Session, Stream, Subscription, generation_key, stream_key
from broker.log import Frozen as FrozenLog, Log
from broker.recent import Recent
from broker.rows import Rows
from broker.store import Store
from broker.watches import Watches
from consumer.wire import Code

ENTRY_BYTES = 512
"""What an applied entry costs in memory besides its data: rows and receipts, roughly."""


_ACCEPTED = Result.ACCEPTED
_OF_STREAM, _OF_SESSION, _OF_SUBSCRIPTION = b"sSw"
"""What the keys of these rows begin with."""


class Counts:
    """What the partition has done, as plain numbers for the metrics to read."""

    def __init__(self) -> None:
        self.accepted: Counter[int] = Counter()
        """Entries that did what they ask for, by kind: most, and in a table of their own, since to find a member of an
        enumeration in one takes a call."""
        self.others: Counter[tuple[int, str]] = Counter()  # (kind, result or code)
        self.appended_records = 0
        self.appended_bytes = 0
        self.commits = 0
        self.checkpoints = 0
        self.checkpoint_failures = 0
        self.answered_without_journal = 0

    @property
    def outcomes(self) -> Counter[tuple[int, str]]:
        """All entries, by kind, and result or code."""
        return self.others + Counter({(kind, _ACCEPTED): count for kind, count in self.accepted.items()})


class Subscribers(Protocol):
    """Who follows the subscriptions and their streams. Told in the midst of applying entries: must be quick."""

    def changed(self, subscription_id: str) -> None:
        """A subscription was created, or changed, or is no more."""

    def moved(self, path: str, incarnation: int, start: int) -> None:
        """A stream got records, from position `start` on. Only told while there are subscriptions."""


class Frozen(msgspec.Struct):
    """What a checkpoint has in hand: what the entries up to `index` made."""

    index: int
    time_ms: int
    rows: Mapping[Key, Row | None]
    tails: FrozenLog
    ended: list[tuple[str, int]]
    mortal: set[str]


class Applied:
    """The state of a partition. One owner, one event loop. `needed` has the keys of rows that must stay in memory."""

    number: int = 0
    """Which of several partitions it is: see `Partitions`."""

    def __init__(self, store: Store, rows_max: int, needed: Container[Key]) -> None:
        self.counts = Counts()
        self.open_sessions: dict[str, Session] = {}
        """Sessions with open generations, by path: those whose leases somebody must watch."""
        self.orphans: list[tuple[str, int, str, int]] = []
        """Forks that went, and whose sources have not been told: (source path, incarnation, path, incarnation)."""
        self.crowded: set[str] = set()
        """Streams that refused a producer because they have too many: some may have been idle for long."""
        self.subscriptions: dict[str, Subscription] = {}
        """All subscriptions, by id."""
        self.recent = Recent()
        """Which sessions have changed since this process began."""
        self.subscribers: Subscribers | None = None
        self.observe: Callable[[str], None] | None = None
        """Told the path of every stream that got records or ended: the materializer's cue. Must be quick."""

        self._index = 0  # of the newest applied entry
        self._time_ms = 0  # the partition's time at that entry; never goes back
        self._rows = Rows(store.load, rows_max)
        self._log = Log(store.read)
        self._watches = Watches()
        self._needed = (needed, self._watches)
        self._mortal: set[str] = set()  # paths of streams that have a deadline and are not stored with it
        self._ended: list[tuple[str, int]] = []  # lives that are over, and not stored as such
        self._doubtful: set[str] = set()  # paths of which the last entry changed nothing, or could not be written
        self._unstored_bytes = 0  # applied and not yet in the store
        self._frozen_bytes = 0  # the part of it that a checkpoint has in hand

    @property
    def records(self) -> Log:
        """Its records. What its forks inherit may lie in another partition: see `Log.elsewhere`."""
        return self._log

    @property
    def applied_index(self) -> int:
        """The index of the newest applied entry."""
        return self._index

    @property
    def applied_indexes(self) -> list[int]:
        """The same of each partition, in their order."""
        return [self._index]

    @property
    def unstored_bytes(self) -> int:
        """Applied, and so far only in memory and in the journal."""
        return self._unstored_bytes

    # -- an entry ----------------------------------------------------------------------------------------------------

    def _step(self, entry: Entry, index: int, time_ms: int) -> Outcome:
        """Apply one entry: first everything is computed, then everything is installed."""
        if index != self._index + 1:
            msg = f"the journal handed back {index} after {self._index}"
            raise ValueError(msg)
        now_ms = max(self._time_ms, time_ms)
        outcome, changes = apply(self._rows.held, entry, index, now_ms)
        self._install(changes)
        self._index, self._time_ms = index, now_ms
        self._count(entry, outcome)
        return outcome

    def _count(self, entry: Entry, outcome: Outcome) -> None:
        if outcome.result is _ACCEPTED:
            self.counts.accepted[entry.kind] += 1
        else:
            self.counts.others[entry.kind, outcome.code or outcome.result] += 1
            if not outcome.changed:
                self._doubt(entry.path)
                if outcome.code is Code.TOO_MANY_PRODUCERS:
                    self.crowded.add(entry.path)
                return
        if self._doubtful:
            self._doubtful.discard(entry.path)

    def _doubt(self, path: str) -> None:
        if len(self._doubtful) >= limits.DOUBTFUL_PATHS_MAX:
            self._doubtful.clear()
        self._doubtful.add(path)

    def _install(self, changes: Changes) -> None:
        puts, ended = changes.puts, changes.ended
        for path, life in ended:
            self._end(path, life)
        for path, incarnation, page in changes.appended:
            self._append(path, incarnation, page)
        for path, life in ended:
            self._note_orphan(path, life)
        self._rows.install(puts)
        self._unstored_bytes += ENTRY_BYTES
        for key, row in puts.items():
            if key[0] == _OF_SESSION:
                path = key[1:].decode()
                self._note_session(path, row)
                self.recent.change(path, self.number, self._index + 1)
            else:
                self._note(key, row)
        if self._watches:
            self._watches.wake_those(puts)

    def _append(self, path: str, incarnation: int, page: Page) -> None:
        self._log.append(path, incarnation, page)
        counts, data_bytes, lengths_bytes = self.counts, len(page.data), len(page.lengths)
        self._unstored_bytes += data_bytes + lengths_bytes
        counts.appended_records += page.end - page.start if lengths_bytes else 1
        counts.appended_bytes += data_bytes
        if self.observe is not None:
            self.observe(path)
        if self.subscriptions and self.subscribers is not None:
            self.subscribers.moved(path, incarnation, page.start)

    def _end(self, path: str, life: int) -> None:
        self._ended.append((path, life))
        self._log.end(path, life)
        if self.observe is not None:
            self.observe(path)

    def _note(self, key: Key, row: Row | None) -> None:
        """Keep in view what somebody must look after."""
        kind = key[0]
        if kind == _OF_STREAM:
            if isinstance(row, Stream) and (row.ttl_s is not None or row.expires_at_ms is not None):
                self._mortal.add(key[1:].decode())
        elif kind == _OF_SESSION:
            self._note_session(key[1:].decode(), row)
        elif kind == _OF_SUBSCRIPTION:
            self._note_subscription(key[1:].decode(), row)

    def _note_orphan(self, path: str, life: int) -> None:
        """A life that may be a fork is about to go: its source is to be told."""
        row = self._rows.held.get(stream_key(path))
        if not isinstance(row, Stream):
            return
        lives = ((row.incarnation, row.source), *((past.incarnation, past.source) for past in row.past))
        for incarnation, source in lives:
            if incarnation == life and source is not None:
                self.orphans.append((*source, path, life))

    def _note_session(self, path: str, row: Row | None) -> None:
        if isinstance(row, Session) and row.open:
            self.open_sessions[path] = row
            return
        before = self.open_sessions.pop(path, None)
        if row is None and before is not None:  # gone as a whole, without a row for the end of each generation
            for generation in before.open:
                self._watches.wake(generation_key(path, generation.generation_id))

    def _note_subscription(self, subscription_id: str, row: Row | None) -> None:
        if isinstance(row, Subscription):
            self.subscriptions[subscription_id] = row
        else:
            self.subscriptions.pop(subscription_id, None)
        if self.subscribers is not None:
            self.subscribers.changed(subscription_id)

    # -- a checkpoint ------------------------------------------------------------------------------------------------

    def freeze(self) -> Frozen:
        """Take in hand what changed since the last checkpoint. Then `stored` or `thaw`, before the next."""
        self._frozen_bytes = self._unstored_bytes
        rows, tails = self._rows.freeze(), self._log.freeze()
        mortal, self._mortal = self._mortal, set()
        ended, self._ended = self._ended, []
        return Frozen(self._index, self._time_ms, rows, tails, ended, mortal)

    def thaw(self, frozen: Frozen) -> None:
        """It was not written: all of it is to be stored again."""
        self._rows.thaw()
        self._mortal |= frozen.mortal
        self._log.thaw(frozen.tails)
        self._ended = frozen.ended + self._ended
        self._frozen_bytes = 0

    def stored(self, frozen: Frozen) -> None:
        """The store has it."""
        self._rows.stored()
        self._log.drop(frozen.tails)
        self._unstored_bytes -= self._frozen_bytes
        self._frozen_bytes = 0
        self._rows.evict(self._needed)
