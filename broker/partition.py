"""The partition: one journal, the state applied from it, and its store. The one owner of all three.

A write: `propose` stamps an entry and hands it to the journal; the journal hands it back, durable and in order; it is
applied; the outcome answers whoever proposed it, and readers wake. A read looks at what has been applied: rows, the
tail, or stored pages. A checkpoint moves what was applied into the store and lets the journal forget it.

Nothing here decides what an entry does: that is `core.apply`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from broker import limits
from broker.applied import Subscribers
from broker.checkpoints import Checkpoints
from broker.core.apply import keys
from broker.core.entry import ANY, Entry
from broker.core.outcome import Outcome
from broker.core.state import Key
from broker.errors import EngineStopped, OutcomeUnknown, Unavailable
from broker.journal import Commit, Journal, Refused
from broker.proposals import Proposal, Proposer, Waiter
from broker.store import Snapshot, Store
from broker.writable import Writable

log = logging.getLogger("streamfold.partition")


async def _no_snapshots() -> list[Snapshot]:
    return []


def _ignored(_: list[Snapshot]) -> None:
    pass


def _nothing() -> None:
    pass


_Told = tuple[Proposal | Proposer, Entry, Outcome]


class Partition(Writable):
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
        super().__init__(
            store, journal, rows_max=rows_max, unstored_bytes_max=checkpoint_bytes_max, make_room=self._hurry
        )
        self.snapshots: Callable[[], Awaitable[list[Snapshot]]] = _no_snapshots
        self.snapshots_stored: Callable[[list[Snapshot]], None] = _ignored
        """The materializer's: gives what is to ride in the checkpoint that is about to be frozen; is told of it once
        that is durable, in their order, and must be quick."""
        self.all_told: Callable[[], None] = _nothing
        """Called when everybody has been told of a commit. Must be quick, and never raises."""
        self._checkpoint_bytes = checkpoint_bytes
        self._checkpoints = Checkpoints(
            self,
            journal,
            store,
            interval_s=checkpoint_interval_s,
            snapshots=self._due_snapshots,
            written=self._checkpoint_written,
            failed=self._stopped,
        )
        self._inbox: list[Commit | Refused] = []
        journal.heed(self._is_watched)

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

    def _is_watched(self) -> bool:
        return bool(self._watches) or self.recent.is_watched

    def drain(self) -> None:
        """From here on live reads end; appends in flight still finish."""
        self.draining = True
        self._watches.wake_all()
        self.recent.wake()

    async def aclose(self, within_s: float = limits.DRAIN_S) -> None:
        """Finish what was proposed, as `Journal.aclose` has it; checkpoint, close. Idempotent."""
        now = asyncio.get_running_loop().time
        until = now() + within_s
        self.drain()
        await self._checkpoints.aclose()
        await self._journal.aclose(until - now())
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

    def _hurry(self) -> None:
        self._checkpoints.hurry()

    async def _due_snapshots(self) -> list[Snapshot]:
        return await self.snapshots()

    def _checkpoint_written(self, snapshots: list[Snapshot]) -> None:
        self._room.set()
        self.snapshots_stored(snapshots)

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

    def of(self, path: str) -> Partition:  # noqa: ARG002 -- as `Partitions.of`
        """The partition that holds a path: this one."""
        return self

    async def catch_up(self) -> bool:
        """Have applied all that others had proposed before this call; False, at once, where there are no others.

        Before something is said to be missing: it may be new. Raises Unavailable.
        """
        return await self._journal.catch_up()

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
        return not self._is_alone and self._unstored_bytes >= 2 * self._unstored_bytes_max

    async def _store_and_go_on(self) -> None:
        while self._is_ahead() and self.failure is None:
            await self._more_stored()
        self._drain_inbox()

    def _missing(self, commit: Commit) -> list[Key]:
        rows, missing = self._rows.held, []
        for entry in commit.entries:
            for key in self._proposals.keys_of(entry):
                if key not in rows:
                    missing.append(key)  # noqa: PERF401 -- two nested loops read better than one comprehension
        return missing

    def _apply_commit(self, commit: Commit) -> None:
        self.counts.commits += 1
        outcomes: list[Outcome] = []
        told: list[_Told] = []
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
            if isinstance(proposal, Proposal) and proposal.stamped and self._is_stale(entry, outcome):
                stale.append((proposal, entry))
            elif proposal is not None:
                told.append((proposal, entry, outcome))
            outcomes.append(outcome)
        # Not by turns with applying: each would have the other's code and data leave the caches, a sixth of a request.
        _tell(told)
        self.all_told()
        if not self._is_alone:
            self._journal.applied(commit, outcomes)
            for proposal, entry in stale:
                if not proposal.waiter.done():
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


def _tell(told: list[_Told]) -> None:
    for proposal, entry, outcome in told:
        try:
            proposal.told(entry, outcome)
        except Exception:  # a bug of its own, which must not keep from others what is durable
            log.exception("one who waited for an entry could not be told")


__all__ = ["Partition", "Subscribers", "Waiter"]
