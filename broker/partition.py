"""The partition: one journal, the state applied from it, and its store. The one owner of all three.

A write: `propose` stamps an entry and hands it to the journal; the journal hands it back, durable and in order; it is
applied; the outcome answers whoever proposed it, and readers wake. A read looks at what has been applied: rows, the
tail, or stored pages. A checkpoint moves what was applied into the store and lets the journal forget it.

Nothing here decides what an entry does: that is `core.apply`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

import msgspec

from broker import limits
from broker.applied import Subscribers
from broker.checkpoints import Checkpoints
from broker.core.apply import keys, unchanging
from broker.core.entry import ANY, Entry, Kind
from broker.core.outcome import Outcome
from broker.core.state import Key, Stream, session_key, stream_key
from broker.errors import EngineStopped, OutcomeUnknown, Overloaded, Unavailable
from broker.journal import Commit, Journal, Refused
from broker.proposals import Proposal, Proposals, Waiter
from broker.readable import Readable
from broker.store import Snapshot, Store
from consumer.wire import Code

log = logging.getLogger("streamfold.partition")

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


async def _no_snapshots() -> list[Snapshot]:
    return []


def _ignored(_: list[Snapshot]) -> None:
    pass


class Partition(Readable):
    """See the module. All methods belong to one event loop; `open` first, `aclose` last."""

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
        self._proposals = Proposals()
        super().__init__(store, journal.now_ms, rows_max, self._proposals.keys)
        self.snapshots: Callable[[], Awaitable[list[Snapshot]]] = _no_snapshots
        self.snapshots_stored: Callable[[list[Snapshot]], None] = _ignored
        """The materializer's: gives what is to ride in the checkpoint that is about to be frozen; is told of it once
        that is durable, in their order, and must be quick."""
        self.durability = journal.durability.value
        """What an acknowledgement of this engine promises."""

        self._journal, self._is_alone = journal, journal.lone_proposer
        self._checkpoint_bytes, self._checkpoint_bytes_max = checkpoint_bytes, checkpoint_bytes_max
        self._checkpoints = Checkpoints(
            self,
            journal,
            store,
            interval_s=checkpoint_interval_s,
            snapshots=self._due_snapshots,
            written=self._checkpoint_written,
            failed=self._stopped,
        )
        self._create_future: Callable[[], asyncio.Future[Outcome]]
        self._inbox: list[Commit | Refused] = []
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._touching: set[str] = set()

    # -- life --------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Store, then what the journal has beyond it. Raises StartError."""
        # Asking for the running loop asks the system for the process each time: a tenth of an append, here.
        self._create_future = asyncio.get_running_loop().create_future
        head = await self._store.open()
        self._index, self._time_ms = head.applied_index, head.time_ms
        self._checkpoints.begin(head.applied_index)
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
        self._checkpoints.start()

    def drain(self) -> None:
        """From here on live reads end; appends in flight still finish."""
        self.draining = True
        self._watches.wake_all()
        self.recent.wake()

    async def aclose(self) -> None:
        """Finish what was proposed, checkpoint, close. Idempotent."""
        self.drain()
        await self._checkpoints.aclose()
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
        self._proposals.fail(OutcomeUnknown("the broker is shutting down"))
        await self._store.aclose()

    async def checkpoint(self) -> None:
        """Write what changed to the store and let the journal forget it.

        Raises Unavailable when it was definitely not written: everything stays in memory, to be written next time.
        """
        await self._checkpoints.write()

    async def _due_snapshots(self) -> list[Snapshot]:
        return await self.snapshots()

    def _checkpoint_written(self, snapshots: list[Snapshot]) -> None:
        self._room.set()
        self.snapshots_stored(snapshots)

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
    def in_flight(self) -> int:
        """Entries proposed and not yet applied."""
        return len(self._proposals)

    def of(self, path: str) -> Partition:  # noqa: ARG002 -- as `Partitions.of`
        """The partition that holds a path: this one."""
        return self

    async def catch_up(self) -> bool:
        """Have applied all that others had proposed before this call; False, at once, where there are no others.

        Before something is said to be missing: it may be new. Raises Unavailable.
        """
        return await self._journal.catch_up()

    # -- writing -------------------------------------------------------------------------------------------------------

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

    def propose_for(self, waiter: Waiter, entry: Entry, *, looks_ahead: bool = False) -> None:
        """Hand an entry to the journal; `waiter` is told what `propose` returns or raises, perhaps at once.

        With `looks_ahead` always at once where it is certain already. Raises EngineStopped; then it hears nothing.
        """
        if self.failure is not None:
            raise EngineStopped(str(self.failure))
        entry_keys = keys(entry)
        self._proposals.stamp(entry)
        proposal = Proposal(waiter, entry_keys, entry)
        if self._is_alone:
            answer = self._answer_early(entry, entry_keys) if looks_ahead or self._is_doubtful(entry) else None
            if answer is not None:
                waiter.set_result(answer)
                return
            self._journal.propose(entry)
        else:
            self._propose_among_others(proposal, entry)
        self._proposals.add(entry, proposal)
        held = self._rows.held
        for key in entry_keys:
            if key not in held:  # load them while the commit that needs them is under way
                self._spawn(self._rows.load(entry_keys))
                return

    def _propose_among_others(self, proposal: Proposal, entry: Entry) -> None:
        """Propose a write as one to the life that is seen here, once that has been loaded.

        Else a copy that comes late, after this process is gone, falls into whatever stream is at the path by then.
        """
        if entry.kind not in _TO_ONE_LIFE or entry.incarnation != ANY:
            self._journal.propose(entry)
        elif stream_key(entry.path) in self._rows.held:
            self._see_life(proposal, entry)
        else:
            self._spawn(self._propose_when_seen(proposal, entry))

    async def _propose_when_seen(self, proposal: Proposal, entry: Entry) -> None:
        try:
            await self._row(stream_key(entry.path))
            self._see_life(proposal, entry)
        except (Unavailable, OutcomeUnknown) as error:
            self._refuse(Refused([entry], error))

    def _see_life(self, proposal: Proposal, entry: Entry) -> None:
        row = self._rows.held.get(stream_key(entry.path))
        if isinstance(row, Stream):
            proposal.see_life(entry, row.incarnation)
        self._journal.propose(entry)

    def _is_stale(self, entry: Entry, outcome: Outcome) -> bool:
        """Whether an entry was refused only because its proposer had not yet seen the life that the path has now."""
        if outcome.code not in (Code.STREAM_NOT_FOUND, Code.SESSION_NOT_FOUND):
            return False
        row = self._rows.held.get(stream_key(entry.path))
        return isinstance(row, Stream) and row.incarnation != entry.incarnation

    def _is_doubtful(self, entry: Entry) -> bool:
        """Whether it is worth a look, before it is written, if the entry changes anything at all.

        What comes in masses mostly does; where the last one did not, the next one may well be another copy of it.
        """
        return entry.kind not in _IN_MASSES or entry.path in self._doubtful

    def _answer_early(self, entry: Entry, entry_keys: list[Key]) -> Outcome | None:
        """A refusal or a duplicate that is certain already need not fill the journal.

        Certain: this process is alone in proposing, and nothing that waits touches a row that this entry needs.
        """
        rows, pending = self._rows.held, self._proposals.keys
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
        proposals = self._proposals
        if len(proposals) >= limits.IN_FLIGHT_ENTRIES_MAX or proposals.size_bytes >= limits.IN_FLIGHT_BYTES_MAX:
            return False
        reserve = limits.CHECKPOINT_RESERVE_BYTES if entry.kind in _KEEPS_ALIVE else 0
        return self._unstored_bytes + proposals.size_bytes < self._checkpoint_bytes_max + reserve

    async def wait_for_room(self, entry: Entry) -> None:
        """Return once `has_room`. Raises Overloaded, and EngineStopped."""
        try:
            async with asyncio.timeout(limits.BACK_PRESSURE_WAIT_S):
                while not self.has_room(entry):
                    if self.failure is not None:
                        raise EngineStopped(str(self.failure))
                    self._room.clear()
                    self._checkpoints.hurry()
                    await self._room.wait()
        except TimeoutError:
            msg = "the broker has more to store than it can hold"
            raise Overloaded(msg) from None

    async def settle(self, path: str) -> None:
        """Return when nothing that was proposed for a session so far is under way, and its live readers have left.

        These get `limits.DETACH_S`: they were woken by what has been applied, and one that does not leave sees no more.
        """
        if session_key(path) in self._proposals.keys:
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
            self._checkpoints.hurry()
            await self._room.wait()
        self._drain_inbox()

    def _missing(self, commit: Commit) -> list[Key]:
        rows, missing = self._rows.held, []
        for entry in commit.entries:
            proposal = self._proposals.of(entry)
            for key in keys(entry) if proposal is None else proposal.keys:
                if key not in rows:
                    missing.append(key)  # noqa: PERF401 -- two nested loops read better than one comprehension
        return missing

    def _refuse(self, refused: Refused) -> None:
        for entry in refused.entries:
            self._doubt(entry.path)
            proposal = self._proposals.take(entry)
            if proposal is not None and not proposal.waiter.done():
                proposal.waiter.set_exception(refused.error)

    def _apply_commit(self, commit: Commit) -> None:
        self.counts.commits += 1
        outcomes: list[Outcome] = []
        told: list[tuple[Waiter, Outcome]] = []
        stale: list[tuple[Proposal, Entry]] = []
        for index, entry in enumerate(commit.entries, commit.first_index):
            try:
                outcome = self._step(entry, index, commit.time_ms)
            except Exception as error:  # noqa: BLE001 -- a bug in apply: stop here, name the index, skip nothing
                log.critical("cannot apply entry %d: %r", index, error)
                _tell(told)
                self._stopped(EngineStopped(f"entry {index} cannot be applied: {error!r}"))
                return
            proposal = self._proposals.take(entry)
            if proposal is not None:
                if proposal.stamped and self._is_stale(entry, outcome) and not proposal.waiter.done():
                    stale.append((proposal, entry))
                else:
                    told.append((proposal.waiter, outcome))
            outcomes.append(outcome)
        # Not by turns with applying: each would have the other's code and data leave the caches, a sixth of a request.
        _tell(told)
        if not self._is_alone:
            self._journal.applied(commit, outcomes)
            for proposal, entry in stale:
                self.propose_for(proposal.waiter, msgspec.structs.replace(entry, incarnation=ANY))
        if self._unstored_bytes - self._frozen_bytes >= self._checkpoint_bytes:
            self._checkpoints.hurry()
        self._rows.bound(self._needed)
        if not self._room.is_set():
            self._room.set()

    def _stopped(self, error: Exception) -> None:
        """The engine is done: nothing that waits can be told what became of it."""
        if self.failure is not None:
            return
        log.critical("the engine stopped: %s", error)
        self.failure = error
        self._proposals.fail(error if isinstance(error, EngineStopped) else EngineStopped(str(error)))
        self._checkpoints.end()
        self.drain()
        self._room.set()

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run something whose end nobody waits for; `aclose` ends it."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("%s failed: %r", task.get_name(), task.exception())


def _tell(told: list[tuple[Waiter, Outcome]]) -> None:
    for waiter, outcome in told:
        if not waiter.done():
            waiter.set_result(outcome)


__all__ = ["Partition", "Subscribers", "Waiter"]
