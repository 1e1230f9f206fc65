"""The partition: one journal, the state applied from it, and its store. The one owner of all three.

A write: `propose` stamps an entry and hands it to the journal; the journal hands it back, durable and in order; it is
applied; the outcome answers whoever proposed it, and readers wake. A read looks at what has been applied: rows, the
tail, or stored pages. A checkpoint moves what was applied into the store and lets the journal forget it.

Nothing here decides what an entry does: that is `core.apply`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from heapq import nlargest
from typing import Protocol

import msgspec

from broker import limits
from broker.core.apply import apply, keys, unchanging
from broker.core.entry import ANY, Entry, Kind
from broker.core.outcome import Outcome
from broker.core.page import Page
from broker.core.state import (
    Changes,
    Generation,
    Key,
    Producer,
    Row,
    Session,
    Stream,
    Subscription,
    generation_key,
    producer_key,
    session_key,
    stream_key,
)
from broker.errors import EngineStopped, OutcomeUnknown, Overloaded, Unavailable
from broker.journal import Commit, Journal, Refused
from broker.log import Log
from broker.recent import Recent
from broker.rows import Rows
from broker.store import Checkpoint, Head, Snapshot, Store
from broker.watches import Watches
from consumer.wire import ENDED, Code

log = logging.getLogger("streamfold.partition")

ENTRY_BYTES = 512
"""What an applied entry costs in memory besides its data: rows and receipts, roughly."""

_MAKES_A_LIFE = frozenset(
    {Kind.CREATE, Kind.SESSION_CREATE, Kind.SESSION_RESET, Kind.FORK_REF, Kind.SUBSCRIPTION_CREATE}
)
_MAKES_A_WAKE = frozenset({Kind.SUBSCRIPTION_ATTEMPT, Kind.SUBSCRIPTION_CLAIM})
_NEEDS_CHANCE = _MAKES_A_LIFE | _MAKES_A_WAKE
_KEEPS_ALIVE = frozenset(
    {
        Kind.HEARTBEAT,
        Kind.STOP,
        Kind.SESSION_STOP,
        Kind.FINISH,
        Kind.LEASE_EXPIRE,
        Kind.NOOP,
        Kind.EXPIRE,
        Kind.SUBSCRIPTION_ACK,
    }
)
_TO_ONE_LIFE = frozenset(
    {
        Kind.APPEND,
        Kind.CLOSE,
        Kind.DELETE,
        Kind.SESSION_DELETE,
        Kind.SESSION_RESET,
        Kind.SESSION_STOP,
        Kind.GENERATION_OPEN,
        Kind.MESSAGE,
        Kind.RECORD,
        Kind.CHUNKS,
        Kind.FINISH,
        Kind.STOP,
    }
)
_IN_MASSES = frozenset({Kind.APPEND, Kind.CHUNKS})
_force = msgspec.structs.force_setattr


async def _no_snapshots() -> list[Snapshot]:
    return []


def _ignored(_: list[Snapshot]) -> None:
    pass


class Counts:
    """What the partition has done, as plain numbers for the metrics to read."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[int, str]] = Counter()  # (kind, result or code)
        self.appended_records = 0
        self.appended_bytes = 0
        self.commits = 0
        self.checkpoints = 0
        self.checkpoint_failures = 0
        self.answered_without_journal = 0


class Waiter(Protocol):
    """Who waits for what an entry did: a future, or one that is quick, never raises, and need not be told later."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, outcome: Outcome, /) -> None:
        """The entry is durable, and did this."""

    def set_exception(self, error: Exception, /) -> None:
        """As `Partition.propose` raises."""


class _Proposal:
    """An entry on its way through the journal, and who waits for it."""

    __slots__ = ("keys", "size", "stamped", "waiter")

    def __init__(self, waiter: Waiter, keys: list[Key], size: int) -> None:
        self.waiter = waiter
        self.keys = keys
        self.size = size
        self.stamped = False  # with the life of the path that was seen here: see `_see_life`


class Subscribers(Protocol):
    """Who follows the subscriptions and their streams. Told in the midst of applying entries: must be quick."""

    def changed(self, subscription_id: str) -> None:
        """A subscription was created, or changed, or is no more."""

    def moved(self, path: str, incarnation: int, start: int) -> None:
        """A stream got records, from position `start` on. Only told while there are subscriptions."""


class Partition:
    """See the module. All methods belong to one event loop; `open` first, `aclose` last."""

    number: int = 0
    """Which of several it is: see `Partitions`."""

    def __init__(
        self,
        journal: Journal,
        store: Store,
        *,
        checkpoint_interval_s: float = limits.CHECKPOINT_INTERVAL_S,
        checkpoint_bytes: int = limits.CHECKPOINT_BYTES,
        checkpoint_bytes_max: int = limits.CHECKPOINT_BYTES_MAX,
        rows_max: int = limits.ROWS_MAX,
    ) -> None:
        self.counts = Counts()
        self.draining = False
        self.failure: Exception | None = None
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
        self.snapshots: Callable[[], Awaitable[list[Snapshot]]] = _no_snapshots
        self.snapshots_stored: Callable[[list[Snapshot]], None] = _ignored
        """The materializer's: gives what is to ride in the checkpoint that is about to be frozen; is told of it once
        that is durable, in their order, and must be quick."""
        self.observe: Callable[[str], None] | None = None
        """Told the path of every stream that got records or ended: the materializer's cue. Must be quick."""

        self.durability = journal.durability.value
        """What an acknowledgement of this engine promises."""

        self._journal, self._is_alone, self._store = journal, journal.lone_proposer, store
        self._checkpoint_interval_s = checkpoint_interval_s
        self._checkpoint_bytes, self._checkpoint_bytes_max = checkpoint_bytes, checkpoint_bytes_max

        self._create_future: Callable[[], asyncio.Future[Outcome]]
        self._boot, self._proposal = int.from_bytes(os.urandom(8), "big") >> 1, 0
        self._index = 0  # of the newest applied entry
        self._stored_index = 0  # of the newest entry that the store has; never above _index
        self._time_ms = 0  # the partition's time at that entry; never goes back

        self._rows = Rows(store.load, rows_max)
        self._mortal: set[str] = set()  # paths of streams that have a deadline and are not stored with it
        self._ended: list[tuple[str, int]] = []
        self._late_snapshots: list[Snapshot] = []  # of a checkpoint that could not be written
        self._log = Log(store.read)
        self._unstored_bytes = 0  # applied and not yet in the store
        self._frozen_bytes = 0  # the part of it that a checkpoint has in hand
        self._in_flight_bytes = 0  # proposed and not yet applied

        self._waiting: dict[int, _Proposal] = {}
        self._pending_keys: dict[Key, int] = {}  # of entries proposed and not yet applied
        self._inbox: list[Commit | Refused] = []
        self._watches = Watches()
        self._doubtful: set[str] = set()  # paths of which the last entry changed nothing, or could not be written
        self._needed = (self._pending_keys, self._watches)  # whose rows must stay in memory
        self._tasks: set[asyncio.Task[None]] = set()
        self._touching: set[str] = set()
        self._checkpoint_due = asyncio.Event()
        self._room = asyncio.Event()
        self._checkpointer: asyncio.Task[None] | None = None
        self._checkpointing = asyncio.Lock()
        self._closing = asyncio.Event()

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Store, then what the journal has beyond it. Raises StartError."""
        # Asking for the running loop asks the system for the process each time: a tenth of an append, here.
        self._create_future = asyncio.get_running_loop().create_future
        head = await self._store.open()
        self._index = self._stored_index = head.applied_index
        self._time_ms = head.time_ms
        await self._journal.open(head.applied_index, head.time_ms, head.mark)
        self.recent.begin(self.number, head.applied_index, self._journal.identity)
        for kind in (b"S", b"w"):
            async for key in self._watched(kind):
                self._note(key, await self._row(key))
        async for commit in self._journal.replay(self._foresee):
            await self._rows.load(self._missing(commit))
            self._apply_commit(commit)
            if self.failure is not None:
                raise self.failure
            if self._unstored_bytes >= self._checkpoint_bytes:
                await self.checkpoint()
        self._journal.start(self._deliver, self._stopped)
        self._checkpointer = asyncio.create_task(self._checkpoint_forever(), name="checkpoint")

    def drain(self) -> None:
        """From here on live reads end; appends in flight still finish."""
        self.draining = True
        self._watches.wake_all()
        self.recent.wake()

    async def aclose(self) -> None:
        """Finish what was proposed, checkpoint, close. Idempotent."""
        self.drain()
        self._closing.set()
        self._checkpoint_due.set()
        if self._checkpointer is not None:
            # Not cancelled: the store finishes what it has begun to write, and the last checkpoint must not repeat it.
            await asyncio.wait((self._checkpointer,))
            self._checkpointer = None
        await self._journal.aclose()
        while self._inbox and self.failure is None:  # the oldest commit waits for its rows; a task loads them
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failure is None:
            try:
                await self.checkpoint()
            except (Unavailable, OutcomeUnknown) as error:
                log.warning("no last checkpoint, the journal keeps it: %s", error)
        self._fail_waiting(OutcomeUnknown("the broker is shutting down"))
        await self._store.aclose()

    @property
    def healthy(self) -> bool:
        """Whether the engine still acknowledges."""
        return self.failure is None

    @property
    def synchronous(self) -> bool:
        """Whether every write has a commit of its own; may be set at any time."""
        return self._journal.synchronous

    @synchronous.setter
    def synchronous(self, synchronous: bool) -> None:
        self._journal.synchronous = synchronous

    @property
    def lag_s(self) -> float:
        """For how long what is applied here has not been all that there is; 0 where nobody else writes."""
        return self._journal.lag_s

    @property
    def journal_events(self) -> Mapping[str, int]:
        """What happened to the journal, by name: see `Journal.events`."""
        return self._journal.events

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

    @property
    def in_flight(self) -> int:
        """Entries proposed and not yet applied."""
        return len(self._waiting)

    def of(self, path: str) -> Partition:  # noqa: ARG002 -- as `Partitions.of`
        """The partition that holds a path: this one."""
        return self

    async def catch_up(self) -> bool:
        """Have applied all that others had proposed before this call; False, at once, where there are no others.

        Before something is said to be missing: it may be new. Raises Unavailable.
        """
        return await self._journal.catch_up()

    def now_ms(self) -> int:
        """The partition's time carried forward: what reads judge expiry by."""
        return max(self._journal.now_ms(), self._time_ms)

    # -- writing -----------------------------------------------------------------------------------------------------

    async def propose(self, entry: Entry) -> Outcome:
        """What the entry did, once that is durable.

        A cancelled caller does not take the proposal back. Raises Overloaded when there is no room for it in
        `limits.BACK_PRESSURE_WAIT_S`, Unavailable when it was definitely not written, OutcomeUnknown when that cannot
        be told.
        """
        if not self.has_room(entry):
            await self.wait_for_room(entry)
        return await self.propose_nowait(entry)

    def propose_nowait(self, entry: Entry) -> asyncio.Future[Outcome]:
        """Hand an entry to the journal; the future is `propose`'s answer."""
        future = self._create_future()
        self.propose_for(future, entry)
        return future

    def propose_for(self, waiter: Waiter, entry: Entry) -> None:
        """Hand an entry to the journal; `waiter` is told what `propose` returns or raises, perhaps at once.

        Raises EngineStopped; then it hears nothing.
        """
        if self.failure is not None:
            raise EngineStopped(str(self.failure))
        entry_keys = keys(entry)
        self._stamp(entry)
        proposal = _Proposal(waiter, entry_keys, len(entry.body) + ENTRY_BYTES)
        if self._is_alone:
            answer = self._answer_early(entry, entry_keys) if self._is_doubtful(entry) else None
            if answer is not None:
                waiter.set_result(answer)
                return
            self._journal.propose(entry)
        else:
            self._propose_among_others(proposal, entry)
        self._waiting[entry.proposal] = proposal
        self._in_flight_bytes += proposal.size
        held, pending = self._rows.held, self._pending_keys
        is_here = True
        for key in entry_keys:
            pending[key] = pending.get(key, 0) + 1
            is_here = is_here and key in held
        if not is_here:  # load them while the commit that needs them is under way
            self._spawn(self._rows.load(entry_keys))

    def _propose_among_others(self, proposal: _Proposal, entry: Entry) -> None:
        """Propose a write as one to the life that is seen here, once that has been loaded.

        Else a copy that comes late, after this process is gone, falls into whatever stream is at the path by then.
        """
        if entry.kind not in _TO_ONE_LIFE or entry.incarnation != ANY:
            self._journal.propose(entry)
        elif stream_key(entry.path) in self._rows.held:
            self._see_life(proposal, entry)
        else:
            self._spawn(self._propose_when_seen(proposal, entry))

    async def _propose_when_seen(self, proposal: _Proposal, entry: Entry) -> None:
        try:
            await self._row(stream_key(entry.path))
            self._see_life(proposal, entry)
        except (Unavailable, OutcomeUnknown) as error:
            self._refuse(Refused([entry], error))

    def _see_life(self, proposal: _Proposal, entry: Entry) -> None:
        row = self._rows.held.get(stream_key(entry.path))
        if isinstance(row, Stream):
            _force(entry, "incarnation", row.incarnation)
            proposal.stamped = True
        self._journal.propose(entry)

    def _is_stale(self, entry: Entry, outcome: Outcome) -> bool:
        """Whether an entry was refused only because its proposer had not yet seen the life that the path has now."""
        if outcome.code not in (Code.STREAM_NOT_FOUND, Code.SESSION_NOT_FOUND):
            return False
        row = self._rows.held.get(stream_key(entry.path))
        return isinstance(row, Stream) and row.incarnation != entry.incarnation

    def _stamp(self, entry: Entry) -> None:
        """Fill in what the pure function that made the entry could not know. The entry is ours alone until proposed."""
        self._proposal += 1
        _force(entry, "boot", self._boot)
        _force(entry, "proposal", self._proposal)
        if entry.kind in _NEEDS_CHANCE and not entry.nonce:
            _force(entry, "nonce", int.from_bytes(os.urandom(8), "big") >> 1 or 1)

    def _is_doubtful(self, entry: Entry) -> bool:
        """Whether it is worth a look, before it is written, if the entry changes anything at all.

        What comes in masses mostly does; where the last one did not, the next one may well be another copy of it.
        """
        return entry.kind not in _IN_MASSES or entry.path in self._doubtful

    def _answer_early(self, entry: Entry, entry_keys: list[Key]) -> Outcome | None:
        """A refusal or a duplicate that is certain already need not fill the journal.

        Certain: this process is alone in proposing, and nothing that waits touches a row that this entry needs.
        """
        rows, pending = self._rows.held, self._pending_keys
        for key in entry_keys:
            if key not in rows or key in pending:
                return None
        outcome = unchanging(rows, entry, self._index + 1, self.now_ms())
        if outcome is None:
            return None
        self.counts.answered_without_journal += 1
        self._count(entry, outcome)
        return outcome

    def has_room(self, entry: Entry) -> bool:
        """Whether an entry may be proposed now; else `propose` waits for room."""
        if len(self._waiting) >= limits.IN_FLIGHT_ENTRIES_MAX or self._in_flight_bytes >= limits.IN_FLIGHT_BYTES_MAX:
            return False
        reserve = limits.CHECKPOINT_RESERVE_BYTES if entry.kind in _KEEPS_ALIVE else 0
        return self._unstored_bytes + self._in_flight_bytes < self._checkpoint_bytes_max + reserve

    async def wait_for_room(self, entry: Entry) -> None:
        """Return once `has_room`. Raises Overloaded, and EngineStopped."""
        try:
            async with asyncio.timeout(limits.BACK_PRESSURE_WAIT_S):
                while not self.has_room(entry):
                    if self.failure is not None:
                        raise EngineStopped(str(self.failure))
                    self._room.clear()
                    self._checkpoint_due.set()
                    await self._room.wait()
        except TimeoutError:
            msg = "the broker has more to store than it can hold"
            raise Overloaded(msg) from None

    # -- what the journal hands back -----------------------------------------------------------------------------------

    def _deliver(self, handed: Commit | Refused) -> None:
        self._inbox.append(handed)
        if len(self._inbox) == 1:
            self._drain_inbox()

    def _drain_inbox(self) -> None:
        """Apply what lies ready, in order; stops at a commit whose rows are still being loaded, and goes on after."""
        while self._inbox and self.failure is None:
            handed = self._inbox[0]
            if isinstance(handed, Refused):
                self._refuse(handed)
            elif self._is_ahead():
                self._spawn(self._store_and_go_on())
                return
            else:
                missing = self._missing(handed)
                if missing:
                    self._spawn(self._load_and_go_on(missing))
                    return
                self._apply_commit(handed)
            del self._inbox[0]

    async def _foresee(self, entries: Sequence[Entry]) -> None:
        """Load what these need in one go: one by one, each would wait for the store."""
        held = self._rows.held
        missing = [key for entry in entries for key in keys(entry) if key not in held]
        if missing:
            await self._rows.load(missing)

    async def _load_and_go_on(self, missing: list[Key]) -> None:
        try:
            await self._rows.load(missing)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the commit cannot be applied: stop, never skip
            self._stopped(error)
            return
        self._drain_inbox()

    def _is_ahead(self) -> bool:
        """Whether what others propose comes faster than it can be stored; our own proposals wait before they are made.

        Once what a checkpoint has in hand is stored there is room again: unlike `has_room` this must not need more.
        """
        return not self._is_alone and self._unstored_bytes >= 2 * self._checkpoint_bytes_max

    async def _store_and_go_on(self) -> None:
        while self._is_ahead() and self.failure is None:
            self._room.clear()
            self._checkpoint_due.set()
            await self._room.wait()
        self._drain_inbox()

    def _missing(self, commit: Commit) -> list[Key]:
        rows, missing = self._rows.held, []
        for entry in commit.entries:
            proposal = self._waiting.get(entry.proposal) if entry.boot == self._boot else None
            for key in keys(entry) if proposal is None else proposal.keys:
                if key not in rows:
                    missing.append(key)  # noqa: PERF401 -- two nested loops read better than one comprehension
        return missing

    def _refuse(self, refused: Refused) -> None:
        for entry in refused.entries:
            self._doubt(entry.path)
            proposal = self._take(entry)
            if proposal is not None and not proposal.waiter.done():
                proposal.waiter.set_exception(refused.error)

    def _take(self, entry: Entry) -> _Proposal | None:
        """The proposal behind an entry that the journal is done with; None for another proposer's."""
        if entry.boot != self._boot:
            return None
        proposal = self._waiting.pop(entry.proposal, None)
        if proposal is None:
            return None
        self._in_flight_bytes -= proposal.size
        pending = self._pending_keys
        for key in proposal.keys:
            if pending[key] == 1:
                del pending[key]
            else:
                pending[key] -= 1
        return proposal

    def _apply_commit(self, commit: Commit) -> None:
        self.counts.commits += 1
        index = commit.first_index
        outcomes: list[Outcome] = []
        stale: list[tuple[_Proposal, Entry]] = []
        for entry in commit.entries:
            try:
                outcome = self._step(entry, index, commit.time_ms)
            except Exception as error:  # noqa: BLE001 -- a bug in apply: stop here, name the index, skip nothing
                log.critical("cannot apply entry %d: %r", index, error)
                self._stopped(EngineStopped(f"entry {index} cannot be applied: {error!r}"))
                return
            proposal = self._take(entry)
            if proposal is not None and not proposal.waiter.done():
                if proposal.stamped and self._is_stale(entry, outcome):
                    stale.append((proposal, entry))
                else:
                    proposal.waiter.set_result(outcome)
            outcomes.append(outcome)
            index += 1
        if not self._is_alone:
            self._journal.applied(commit, outcomes)
            for proposal, entry in stale:
                self.propose_for(proposal.waiter, msgspec.structs.replace(entry, incarnation=ANY))
        if self._unstored_bytes - self._frozen_bytes >= self._checkpoint_bytes:
            self._checkpoint_due.set()
        self._rows.bound(self._needed)
        if not self._room.is_set():
            self._room.set()

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
        self.counts.outcomes[entry.kind, outcome.code or outcome.result] += 1
        if not outcome.changed:
            self._doubt(entry.path)
        elif self._doubtful:
            self._doubtful.discard(entry.path)
        if outcome.code is Code.TOO_MANY_PRODUCERS:
            self.crowded.add(entry.path)

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
            self._note(key, row)
            if key[:1] == b"S":
                self.recent.change(key[1:].decode(), self.number, self._index + 1)
        if self._watches:
            for key in puts:
                self._watches.wake(key)

    def _append(self, path: str, incarnation: int, page: Page) -> None:
        self._log.append(path, incarnation, page)
        self._unstored_bytes += len(page.data) + len(page.lengths)
        self.counts.appended_records += page.end - page.start if page.lengths else 1
        self.counts.appended_bytes += len(page.data)
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
        kind = key[:1]
        if kind == b"s":
            if isinstance(row, Stream) and (row.ttl_s is not None or row.expires_at_ms is not None):
                self._mortal.add(key[1:].decode())
        elif kind == b"S":
            self._note_session(key[1:].decode(), row)
        elif kind == b"w":
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
        else:
            self.open_sessions.pop(path, None)

    def _note_subscription(self, subscription_id: str, row: Row | None) -> None:
        if isinstance(row, Subscription):
            self.subscriptions[subscription_id] = row
        else:
            self.subscriptions.pop(subscription_id, None)
        if self.subscribers is not None:
            self.subscribers.changed(subscription_id)

    def _stopped(self, error: Exception) -> None:
        """The engine is done: nothing that waits can be told what became of it."""
        if self.failure is not None:
            return
        log.critical("the engine stopped: %s", error)
        self.failure = error
        self._fail_waiting(error if isinstance(error, EngineStopped) else EngineStopped(str(error)))
        self.drain()
        self._room.set()

    def _fail_waiting(self, error: Exception) -> None:
        for proposal in self._waiting.values():
            if not proposal.waiter.done():
                proposal.waiter.set_exception(error)
        self._waiting.clear()
        self._pending_keys.clear()
        self._in_flight_bytes = 0

    # -- rows --------------------------------------------------------------------------------------------------------

    async def _row(self, key: Key) -> Row | None:
        self._require_sound()
        held = self._rows.held
        return held[key] if key in held else await self._rows.get(key, self._needed)

    def _require_sound(self) -> None:
        """Raise EngineStopped when what was applied here is not what the log makes."""
        if isinstance(self.failure, EngineStopped) and self.failure.spoils_reads:
            raise EngineStopped(str(self.failure))

    # -- reading -----------------------------------------------------------------------------------------------------

    async def stream(self, path: str) -> Stream | None:
        """The stream at `path`, as applied; None when there is none or its deadline has passed.

        One that was deleted and lives on for its forks says so (`deleted`).
        """
        row = await self._row(stream_key(path))
        if not isinstance(row, Stream):
            return None
        deadline_ms = row.deadline_ms
        return row if deadline_ms is None or deadline_ms > self.now_ms() else None

    async def session(self, path: str) -> Session | None:
        """The session whose stream is at `path`."""
        row = await self._row(session_key(path))
        return row if isinstance(row, Session) else None

    async def sessions(self, before: tuple[int, str] | None, limit: int) -> list[tuple[str, Session, Stream]]:
        """Sessions by last activity, newest first, with their streams; those below (time of activity, path) `before`.

        One that moves meanwhile may be missing; `recent` has it.
        """
        below = (2**63 - 1, b"\xff") if before is None else (before[0], session_key(before[1]))
        self._require_sound()
        unstored = {key: row for key, row in self._rows.unstored() if key[:1] == b"S"}
        fresh = [(row.active_ms, key) for key, row in unstored.items() if isinstance(row, Session)]
        found = nlargest(limit, (each for each in fresh if each < below))
        missing = limit
        while missing > 0 and (stored := await self._store.active(below, limit)):
            current = [each for each in stored if each[1] not in unstored]
            found += current
            missing -= len(current)
            below = stored[-1]
        return await self._with_streams([key for _, key in nlargest(limit, found)])

    async def idle_sessions(
        self, after: tuple[int, str], before_ms: int, limit: int
    ) -> list[tuple[str, Session, Stream | None]]:
        """Stored sessions by last activity, oldest first: above (time of activity, path) `after`, below `before_ms`.

        As the store has them, and not kept in memory for it: many are looked at, and few are wanted.
        """
        found = await self._store.idle((after[0], session_key(after[1])), before_ms, limit)
        paths = [key[1:].decode() for _, key in found]
        rows = await self._store.load([key for path in paths for key in (session_key(path), stream_key(path))])
        idle = []
        for path in paths:
            session, stream = rows[session_key(path)], rows[stream_key(path)]
            if isinstance(session, Session) and session.active_ms < before_ms:
                idle.append((path, session, stream if isinstance(stream, Stream) else None))
        return idle

    async def _with_streams(self, wanted: list[Key]) -> list[tuple[str, Session, Stream]]:
        paths = [key[1:].decode() for key in wanted]
        await self._rows.load([*wanted, *map(stream_key, paths)])
        rows = [(path, await self.session(path), await self.stream(path)) for path in paths]
        return [(path, session, stream) for path, session, stream in rows if session is not None and stream is not None]

    async def generation(self, path: str, generation_id: str) -> Generation | None:
        """A generation of that session, open or ended."""
        session = await self.session(path)
        if session is None:
            return None
        for generation in session.open:
            if generation.generation_id == generation_id:
                return generation
        row = await self._row(generation_key(path, generation_id))
        return row if isinstance(row, Generation) and row.birth == session.birth and row.status in ENDED else None

    async def read(self, path: str, stream: Stream, position: int, bytes_max: int) -> Page | None:
        """Records of `stream` from `position` on, whole pages up to about `bytes_max` bytes; None if there are none.

        May be less than there is. Never of another life: when the stream ended meanwhile, nothing.
        """
        return await self._log.read(path, stream, position, bytes_max)

    async def wait(self, path: str, incarnation: int, position: int, timeout_s: float) -> None:
        """Return when the stream has records after `position`, is closed or over, on drain, or after `timeout_s`.

        Says nothing of which: judge anew with `stream`.
        """
        stream = await self.stream(path)
        if self.draining or stream is None or stream.incarnation != incarnation:
            return
        if stream.tail > position or stream.closed or stream.deleted:
            return
        if stream.deadline_ms is not None:
            timeout_s = min(timeout_s, (stream.deadline_ms - self.now_ms()) / 1000 + 0.001)
        await self._watches.wait(stream_key(path), timeout_s)

    async def settle(self, path: str) -> None:
        """Return when nothing that was proposed for a session so far is under way, and its live readers have left.

        These get `limits.DETACH_S`: they were woken by what has been applied, and one that does not leave sees no more.
        """
        if session_key(path) in self._pending_keys:
            await self.propose_nowait(Entry(Kind.NOOP, ""))  # applied behind everything that was on its way
        await self._watches.left(stream_key(path), limits.DETACH_S)

    def touch(self, path: str, stream: Stream) -> None:
        """A read renews a sliding TTL: by an entry nobody waits for, at most once per TTL/10."""
        if stream.ttl_s is None or self.now_ms() - stream.active_ms < stream.ttl_s * 100 or path in self._touching:
            return
        entry = Entry(Kind.TOUCH, path, incarnation=stream.incarnation)
        if not self.healthy or not self.has_room(entry):
            return
        self._touching.add(path)
        self._spawn(self._touch(path, entry))

    async def _touch(self, path: str, entry: Entry) -> None:
        try:
            await self.propose_nowait(entry)
        except (Unavailable, OutcomeUnknown) as error:
            log.info("a read could not renew %s: %s", path, error)
        finally:
            self._touching.discard(path)

    async def overdue(self, limit: int) -> list[tuple[str, int]]:
        """Streams whose deadline has passed, (path, incarnation): stored ones and those only in memory.

        Late by a checkpoint at most; whoever comes upon an overdue stream before finds that out by itself.
        """
        now_ms = self.now_ms()
        stored = await self._store.overdue(now_ms, limit)
        found: list[tuple[str, int]] = []
        for path in [*dict.fromkeys((*(path for path, _ in stored), *self._mortal))]:
            row = await self._row(stream_key(path))
            deadline_ms = row.deadline_ms if isinstance(row, Stream) else None
            if deadline_ms is None:
                self._mortal.discard(path)
            elif isinstance(row, Stream) and deadline_ms <= now_ms:
                found.append((path, row.incarnation))
        return found[:limit]

    async def sources(self) -> AsyncIterator[str]:
        """Paths of the streams that have forks."""
        async for key in self._watched(b"s"):
            yield key[1:].decode()
        for key, row in self._rows.unstored():
            if isinstance(row, Stream) and row.is_needed:
                yield key[1:].decode()

    async def idle_producers(self, path: str, idle_since_ms: int) -> AsyncIterator[str]:
        """Ids of the stored producers of `path` that have written nothing since `idle_since_ms`."""
        prefix, after = producer_key(path, ""), b""
        while found := await self._store.keys(prefix, after, limits.STREAMS_PAGE):
            for key in found:
                row = await self._row(key)
                if isinstance(row, Producer) and row.active_ms < idle_since_ms:
                    yield key.removeprefix(prefix).decode()
            after = found[-1]

    async def stream_paths(self, prefix: str) -> AsyncIterator[str]:
        """Paths of streams that begin with `prefix`; some twice. In bounded steps, however many there are.

        A path that comes or goes meanwhile may be in it or not.
        """
        wanted = stream_key(prefix)
        # What is only in memory comes first: a checkpoint may move it behind the place that the store was read to.
        for key, row in self._rows.unstored():
            if row is not None and key.startswith(wanted):
                yield key[1:].decode()
        after = b""
        while found := await self._store.keys(wanted, after, limits.STREAMS_PAGE):
            for key in found:
                yield key[1:].decode()
            after = found[-1]

    async def _watched(self, letter: bytes) -> AsyncIterator[Key]:
        """Keys of the stored rows of a kind that somebody must look after."""
        after = b""
        while found := await self._store.watched(letter, after, limits.WATCHED_PAGE):
            for key in found:
                yield key
            after = found[-1]

    async def stored_snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        """The stored snapshot of a session's messages."""
        return await self._store.snapshot(path, incarnation)

    async def sweep(self) -> bool:
        """Remove some of what ended lives left in the store; True while more is left."""
        return await self._store.sweep()

    # -- checkpoint --------------------------------------------------------------------------------------------------

    async def _checkpoint_forever(self) -> None:
        while not self._closing.is_set():
            await self._pause(self._checkpoint_due)
            self._checkpoint_due.clear()
            if self._closing.is_set() or self.failure is not None:
                return
            try:
                await self.checkpoint()
            except Unavailable as error:
                self.counts.checkpoint_failures += 1
                log.warning("checkpoint not written, tried again later: %s", error)
                await self._pause(self._closing)
            except Exception as error:  # noqa: BLE001 -- the store's state is unknown: acknowledge nothing more
                self._stopped(error)
                return

    async def _pause(self, event: asyncio.Event) -> None:
        """For the interval between two checkpoints, or until the event."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._checkpoint_interval_s):
                await event.wait()

    async def checkpoint(self) -> None:
        """Write what changed to the store and let the journal forget it.

        Raises Unavailable when it was definitely not written: everything stays in memory, to be written next time.
        """
        async with self._checkpointing:
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        snapshots = [*self._late_snapshots, *await self.snapshots()]
        # By the index, not by changed rows: refusals change none, and the journal must let go of them too.
        if self._index == self._stored_index and not snapshots:
            return
        self._frozen_bytes = self._unstored_bytes
        rows, tails = self._rows.freeze(), self._log.freeze()
        mortal, self._mortal = self._mortal, set()
        ended, self._ended = self._ended, []
        pages = [(tail.incarnation, fresh) for _, tail, fresh in tails]
        head = Head(self._index, self._time_ms, self._journal.mark())
        try:
            await self._store.write(Checkpoint(head, rows, pages, ended, snapshots))
        except BaseException:
            self._rows.thaw()
            self._mortal |= mortal
            self._log.thaw(tails)
            self._ended = ended + self._ended
            self._late_snapshots = snapshots
            self._frozen_bytes = 0
            raise
        self._rows.stored()
        self._log.drop(tails)
        self._late_snapshots = []
        self._unstored_bytes -= self._frozen_bytes
        self._frozen_bytes = 0
        self._stored_index = head.applied_index
        self.counts.checkpoints += 1
        self._journal.trim(head.applied_index)
        self._rows.evict(self._needed)
        self._room.set()
        self.snapshots_stored(snapshots)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run something whose end nobody waits for; `aclose` ends it."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("%s failed: %r", task.get_name(), task.exception())
