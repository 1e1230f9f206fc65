"""What can be proposed to a partition: how an entry comes into the journal, and who is told what became of it.

It goes there at once when there is room for it. Where this process alone proposes, what certainly changes nothing need
not go there at all; among others, it is first stamped with the life of its path that was seen here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence

from broker import limits
from broker.core.apply import keys, unchanging
from broker.core.entry import ANY, Entry, Kind
from broker.core.outcome import Outcome
from broker.core.state import Key, Stream, session_key, stream_key
from broker.errors import EngineStopped, OutcomeUnknown, Overloaded, Unavailable
from broker.journal import Journal, Refused
from broker.proposals import Proposal, Proposals, Proposer, ProposerWaits, Together, Waiter
from broker.readable import Readable
from broker.store import Store
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


class Writable(Readable):
    """Applied state behind what it is changed by. Who applies what the journal hands back answers the proposals.

    They wait while more than `unstored_bytes_max` is under way or not stored; `make_room` asks that some be stored.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        rows_max: int,
        unstored_bytes_max: int,
        make_room: Callable[[], None],
    ) -> None:
        self._proposals = Proposals()
        super().__init__(store, journal.now_ms, rows_max, self._proposals)
        self.durability = journal.durability.value
        """What an acknowledgement of this engine promises."""

        self._journal, self._is_alone = journal, journal.lone_proposer
        self._unstored_bytes_max, self._make_room = unstored_bytes_max, make_room
        self._create_future: Callable[[], asyncio.Future[Outcome]]
        self._room = asyncio.Event()
        """Set when something was applied or stored since it was cleared."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._touching: set[str] = set()

    @property
    def healthy(self) -> bool:
        """Whether the engine still acknowledges."""
        return self.failure is None

    @property
    def in_flight(self) -> int:
        """Entries proposed and not yet applied."""
        return len(self._proposals)

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

    def claim(self, proposer: Proposer, entry: Entry) -> bool:
        """Have the rows that such an entry needs stay in memory, until `let_go`; whether all of them are there by now.

        Once they are, its proposer may `propose_together`. Where others propose as well they need not be.
        """
        if not self._is_alone:
            return True
        needed, held = keys(entry), self._rows.held
        self._proposals.claim(proposer, needed)
        if all(key in held for key in needed):
            return True
        self._spawn(self._rows.load(needed))
        return False

    def let_go(self, proposer: Proposer) -> None:
        """End its claim, if it has one. To be called when nothing of it is on its way."""
        self._proposals.let_go(proposer)

    def propose_together(self, gathered: Sequence[Together]) -> None:
        """As `propose_for`, of many; those of one proposer keep their order. Each is told, or told an error."""
        if self.failure is not None:
            for proposer, entry in gathered:
                proposer.told_error(entry, EngineStopped(str(self.failure)))
            return
        if self._doubtful or not self._is_alone:
            gathered = [each for each in gathered if not self._propose_alone(*each)]
        self._proposals.add_together(gathered)
        for _, entry in gathered:
            try:
                self._journal.propose(entry)
            except EngineStopped as error:
                self._refuse(Refused([entry], error))

    def _propose_alone(self, proposer: Proposer, entry: Entry) -> bool:
        """Propose an entry by itself, if it has to be looked at first."""
        if self._is_alone and not self._is_doubtful(entry):
            return False
        try:
            self.propose_for(ProposerWaits(proposer, entry), entry)
        except EngineStopped as error:
            proposer.told_error(entry, error)
        return True

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

    def _is_doubtful(self, entry: Entry) -> bool:
        """Whether it is worth a look, before it is written, if the entry changes anything at all.

        What comes in masses mostly does; where the last one did not, the next one may well be another copy of it.
        """
        return entry.kind not in _IN_MASSES or entry.path in self._doubtful

    def _answer_early(self, entry: Entry, entry_keys: list[Key]) -> Outcome | None:
        """A refusal or a duplicate that is certain already need not fill the journal.

        Certain: this process is alone in proposing, and nothing that waits touches a row that this entry needs.
        """
        rows, proposals = self._rows.held, self._proposals
        for key in entry_keys:
            if key not in rows or proposals.is_pending(key):
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
        return self._unstored_bytes + proposals.size_bytes < self._unstored_bytes_max + reserve

    async def wait_for_room(self, entry: Entry) -> None:
        """Return once `has_room`. Raises Overloaded, and EngineStopped."""
        try:
            async with asyncio.timeout(limits.BACK_PRESSURE_WAIT_S):
                while not self.has_room(entry):
                    if self.failure is not None:
                        raise EngineStopped(str(self.failure))
                    await self._more_stored()
        except TimeoutError:
            msg = "the broker has more to store than it can hold"
            raise Overloaded(msg) from None

    async def _more_stored(self) -> None:
        """Return when there may be room, or the engine is done."""
        self._room.clear()
        self._make_room()
        await self._room.wait()

    async def settle(self, path: str) -> None:
        """Return when nothing that was proposed for a session so far is under way, and its live readers have left.

        These get `limits.DETACH_S`: they were woken by what has been applied, and one that does not leave sees no more.
        """
        if self._proposals.is_pending(session_key(path)):
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

    def _is_stale(self, entry: Entry, outcome: Outcome) -> bool:
        """Whether an entry was refused only because its proposer had not yet seen the life that the path has now."""
        if outcome.code not in (Code.STREAM_NOT_FOUND, Code.SESSION_NOT_FOUND):
            return False
        row = self._rows.held.get(stream_key(entry.path))
        return isinstance(row, Stream) and row.incarnation != entry.incarnation

    def _refuse(self, refused: Refused) -> None:
        for entry in refused.entries:
            self._doubt(entry.path)
            proposal = self._proposals.take(entry)
            if proposal is not None:
                proposal.told_error(entry, refused.error)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run something whose end nobody waits for; `aclose` ends it."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("%s failed: %r", task.get_name(), task.exception())
