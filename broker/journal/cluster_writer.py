"""Writing to a shared log: one record at a time, each settled before the next.

A record whose fate is unknown is followed by an empty one: once that has been read, the first was read before it or is
void for ever (`broker.journal.proposers`). What is void is written again, in its place and order, as a new record.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Final

from broker import limits
from broker.core.entry import Entry, encode as encode_entry
from broker.errors import OutcomeUnknown, Unavailable
from broker.journal import Refused
from broker.journal.cluster_record import Envelope, encode
from broker.journal.shared_log import SharedLog

logger = logging.getLogger("streamfold.journal")


_EMPTY: Final = Envelope(0, 0)


class _Proposed:
    """An entry that is to be written."""

    __slots__ = ("data", "entry", "given_up", "until")

    def __init__(self, entry: Entry, until: float) -> None:
        self.entry = entry
        self.data = b""  # encoded, once it is first written
        self.until = until  # by the event loop's clock: somebody waits for it no longer than that
        self.given_up = False  # that somebody was told


class RecordWriter:
    """Owned by a `ClusterJournal`, which reads what this writes. Numbers of records rise from 1."""

    def __init__(
        self,
        log: SharedLog,
        boot: int,
        read_past: Callable[[int], Awaitable[None]],
        refuse: Callable[[Refused], None],
        placed: Callable[[], None],
        wait_s: float = limits.CLUSTER_WAIT_S,
    ) -> None:
        self._log = log
        self._boot = boot
        self._read_past = read_past
        self._refuse = refuse
        self._placed = placed
        self._wait_s = wait_s
        self._number = 0  # of the newest record
        self._waiting: deque[_Proposed] = deque()
        self._control: list[Envelope] = []  # records without entries that are to be written
        self._asked = False  # for any record at all
        self._may_ask = True  # an empty one, only because of that
        self._unseen: dict[int, tuple[_Proposed, ...]] = {}  # by number: records written, and not yet read
        self._places: dict[int, int] = {}  # by number: where the log confirmed those of them that it did
        self._durable_position = -1  # of the last record of ours that the log has confirmed
        self._confirmed = asyncio.Event()
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.synchronous = False
        self.log = b""  # see Envelope
        self.unknown = 0  # records whose append failed
        self.void = 0  # of these, records that were not there

    # -- called by the journal ---------------------------------------------------------------------------------------

    def propose(self, entry: Entry) -> None:
        """For the next record."""
        self._waiting.append(_Proposed(entry, asyncio.get_running_loop().time() + self._wait_s))
        self._work()

    def add(self, control: Envelope) -> None:
        """Write what is no entry; boot and number are filled in here."""
        self._control.append(control)
        self._work()

    def ask(self) -> int:
        """Write another record, an empty one if there is nothing to write; what is returned its number reaches.

        All who ask while one record is under way are answered by the next one.
        """
        self._asked = True
        self._work()
        return self._number + 1

    def seen(self, number: int) -> list[Entry]:
        """The entries of a record of ours that has been read, as they were proposed."""
        self._places.pop(number, None)
        return [proposed.entry for proposed in self._unseen.pop(number, ())]

    def has_missed(self, position: int) -> bool:
        """Whether a record that was confirmed before `position` was not there when all before that was read.

        Or a later one has been confirmed before it: then the log has lost records, and has yet to grow again.
        """
        places = self._places.values()
        return any(place < position for place in places) or any(later <= place for place, later in pairwise(places))

    async def confirmed(self, position: int) -> None:
        """Return once the log has confirmed a record of ours at or behind `position`.

        A log that is set to keep fewer copies than it should shows records that it then fails to make durable.
        """
        while self._durable_position < position:
            self._confirmed.clear()
            await self._confirmed.wait()

    async def idle(self) -> None:
        """Return once all that was proposed is written and read, or was given up."""
        await self._idle.wait()

    def look_idle(self) -> None:
        """Something was read."""
        if not self._waiting and not self._unseen and not self._control and not self._asked:
            self._idle.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._control or self._waiting or (self._asked and self._may_ask):
                self._asked = False
                if self._control:
                    await self._write(self._control.pop(0), ())
                elif self._waiting:
                    await self._write(None, self._gathered())
                else:
                    self._may_ask = False
                    asyncio.get_running_loop().call_later(limits.ASK_PAUSE_S, self._ask_again)
                    await self._write(_EMPTY, ())
                self.look_idle()

    def _ask_again(self) -> None:
        self._may_ask = True
        self._something.set()

    def give_up(self) -> None:
        """Answer those who have waited long enough, definitely where that can be said."""
        now = asyncio.get_running_loop().time()
        never = [self._waiting.popleft().entry for _ in range(_overdue(self._waiting, now))]
        if never:
            self._refuse(Refused(never, Unavailable("the log takes no records")))
        for unseen in list(self._unseen.values()):
            unknown = [proposed for proposed in unseen if proposed.until <= now and not proposed.given_up]
            for proposed in unknown:
                proposed.given_up = True
            if unknown:
                entries = [proposed.entry for proposed in unknown]
                self._refuse(Refused(entries, OutcomeUnknown("the log has not said what became of it")))
        self.look_idle()

    # -- writing -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._idle.clear()
        self._something.set()

    def _gathered(self) -> tuple[_Proposed, ...]:
        """What waits, up to RECORD_BYTES and the entry that reaches it; one entry where that is asked for."""
        gathered: list[_Proposed] = []
        size_bytes = 0
        while self._waiting and size_bytes < limits.RECORD_BYTES and not (gathered and self.synchronous):
            proposed = self._waiting.popleft()
            proposed.data = encode_entry(proposed.entry)
            size_bytes += len(proposed.data)
            gathered.append(proposed)
        return tuple(gathered)

    async def _write(self, control: Envelope | None, proposed: tuple[_Proposed, ...]) -> None:
        """Write one record until it is there, or nobody waits for it any more."""
        while proposed or control is not None:
            number = self._next_number()
            entries = tuple(one.data for one in proposed)
            it = control or _EMPTY
            envelope = Envelope(self._boot, number, entries, it.retired, it.meta, it.audit, self.log)
            self._unseen[number] = proposed
            if await self._append(envelope) is not None or await self._is_there(number):
                return
            self.void += 1
            proposed = self._still_wanted(proposed)

    async def _append(self, envelope: Envelope) -> int | None:
        """Its position, or None when its fate is unknown. Raises Diverged."""
        try:
            position = await self._log.append(encode(envelope))
        except (OutcomeUnknown, Unavailable) as error:
            self.unknown += 1
            logger.warning("what became of record %d of this process is unknown: %s", envelope.number, error)
            return None
        self._durable_position = max(self._durable_position, position)
        self._confirmed.set()
        if envelope.number in self._unseen:
            self._places[envelope.number] = position
            self._placed()
        return position

    async def _is_there(self, number: int) -> bool:
        """Whether a record of unknown fate is in the log; if not, it never will count.

        Raises Diverged where the log has lost records: nothing is to be written again then, least of all an audit.
        """
        pause_s = limits.SETTLE_PAUSE_S_MIN
        while True:
            settling = self._next_number()
            self._unseen[settling] = ()
            position = await self._append(Envelope(self._boot, settling, log=self.log))
            if position is not None and await self._is_read(position):
                return self._unseen.pop(number, None) is None
            self._unseen.pop(settling, None)  # it may be read yet, or have been, though nobody has confirmed it
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 -- it spreads load, it guards nothing
            pause_s = min(2 * pause_s, limits.SETTLE_PAUSE_S_MAX)

    async def _is_read(self, position: int) -> bool:
        """Whether what was confirmed there is read in time: it may be lost, and nobody else be there to write."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.CATCH_UP_S):
                await self._read_past(position)
                return True
        return False

    def _still_wanted(self, proposed: Iterable[_Proposed]) -> tuple[_Proposed, ...]:
        """Those that somebody waits for; to write the others now would surprise whoever was told to try again."""
        now = asyncio.get_running_loop().time()
        late = [one for one in proposed if one.until <= now and not one.given_up]
        if late:
            self._refuse(Refused([one.entry for one in late], Unavailable("the log took no records for too long")))
        return tuple(one for one in proposed if one.until > now)

    def _next_number(self) -> int:
        self._number += 1
        return self._number


def _overdue(waiting: Iterable[_Proposed], now: float) -> int:
    """How many of those in front are overdue."""
    count = 0
    for proposed in waiting:
        if proposed.until > now:
            break
        count += 1
    return count
