"""The shared log of the simulation: one truth, and a bad road to it from every node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from random import Random

from broker import limits
from broker.errors import OutcomeUnknown, Unavailable
from broker.journal.cluster_record import decode
from broker.journal.shared_log import LogLost, LogRecord, LogTruncated
from tests.simulator.loop import Loop

APPEND_S_MAX = 1.5
"""After which an append without an answer has failed, for its writer."""
COPY_S_MAX = 6.0
"""How much later a copy may still come."""
PATIENCE_S_MAX = limits.KAFKA_REQUEST_MS / 1000
"""How long a client of the log asks on while nobody leads it."""


class Truth:
    """All that the log ever took; readers are given none before `first`."""

    def __init__(self, loop: Loop, rng: Random, say: Callable[..., None]) -> None:
        self.records: list[LogRecord] = []
        self.pasts: list[list[LogRecord]] = []
        """All of the log, as it was before each time that it lost records."""
        self.first = 0
        self.clock_ms = 1_700_000_000_000
        """Added to the time that has passed: the clock of whichever server takes a record. It jumps."""
        self.faulty = 0.0
        """How likely something happens to an append."""
        self.trimmed: Callable[[int], None] = lambda _: None
        """Told where the log begins from now on."""
        self._loop, self._rng, self._say = loop, rng, say
        self._world = Context()
        self._grown: list[asyncio.Future[None]] = []
        self.is_led = asyncio.Event()
        """Not while one is elected: then nothing is read or taken."""
        self.is_led.set()
        self.all_arrived = asyncio.Event()
        """Set while no copy and no trim is on the road."""
        self.all_arrived.set()
        self._on_the_road = 0

    @property
    def end(self) -> int:
        return len(self.records)

    @property
    def now_ms(self) -> int:
        return self.clock_ms + int(self._loop.time() * 1000)

    def put(self, data: bytes, what: str) -> int:
        """Take a record; `what` it is, for the trace."""
        position = len(self.records)
        self.records.append(LogRecord(position, self.now_ms, data))
        self._say("log", position, what)
        self._tell()
        return position

    def _tell(self) -> None:
        for reader in self._grown:
            if not reader.done():
                reader.set_result(None)
        self._grown.clear()

    def lose(self, position: int) -> None:
        """An unclean election begins: who will lead never had what is there from `position` on."""
        self.pasts.append(list(self.records))
        self._say("lost", position, "to", self.end - 1)
        del self.records[position:]
        self.is_led.clear()
        self._tell()

    def lead(self) -> None:
        """And is over."""
        self._say("led", self.end)
        self.is_led.set()

    def has(self, record: LogRecord) -> bool:
        """Whether it is where it was."""
        return self.records[record.position : record.position + 1] == [record]

    def has_lost_of(self, boot: int) -> bool:
        """Whether a record of that process was there, and is no more."""
        lost = (decode(record.data) for past in self.pasts for record in past if not self.has(record))
        return any(envelope is not None and envelope.boot == boot for envelope in lost)

    @property
    def branches(self) -> list[list[LogRecord]]:
        """Each that readers may have seen; the last one is what is left."""
        return [*self.pasts, self.records]

    def trim(self, position: int) -> None:
        """Readers are given nothing before `position` any more."""
        if self.first < position <= self.end:
            self.first = position
            self._say("trim", position)
            self.trimmed(position)

    def later(self, delay_s: float, data: bytes) -> None:
        """A copy is on the road, whatever becomes of who sent it."""
        self._later(delay_s, lambda: self.put(data, "copy"))

    def trim_later(self, delay_s: float, position: int) -> None:
        """A trim is on the road, to who leads now."""
        elections = len(self.pasts)

        def come() -> None:
            if len(self.pasts) == elections:
                self.trim(position)

        self._later(delay_s, come)

    def _later(self, delay_s: float, come: Callable[[], object]) -> None:
        def arrive() -> None:
            self._on_the_road -= 1
            if not self._on_the_road:
                self.all_arrived.set()
            come()

        self._on_the_road += 1
        self.all_arrived.clear()
        self._loop.call_later(delay_s, arrive, context=self._world)

    def grown(self) -> asyncio.Future[None]:
        """Done once there is another record, or are fewer."""
        reader: asyncio.Future[None] = self._loop.create_future()
        self._grown.append(reader)
        return reader

    def fate(self) -> str:
        """What becomes of an append."""
        if self._rng.random() >= self.faulty:
            return "fine"
        return self._rng.choice(("lost", "unheard", "late", "doubled", "doubled unheard"))


class Road:
    """One node's way to the log: a `SharedLog`.

    As `broker.journal.kafka_feed` does, it looks back after everything that might have been an unclean election.
    """

    def __init__(self, truth: Truth, rng: Random) -> None:
        self._truth, self._rng = truth, rng
        self._next = 0
        self._last: LogRecord | None = None  # that was handed out, if what comes next is behind it
        self._handed: list[LogRecord] = []  # since the newest seek
        self._elections = 0  # after which it has looked back
        self._lacks_until: float | None = None  # when it is beyond doubt that the log has less than was handed out
        self.lag_s = 0.0
        """How far behind its reads are."""
        self.old_end: int | None = None
        """What a server says that was frozen then, and does not know that it leads no more."""
        self._old_elections = 0  # before it was frozen

    async def open(self) -> None:
        await self._pass()

    async def first(self) -> int:
        await self._ask()
        return self._truth.first

    async def end(self) -> int:
        await self._ask()
        end = self._truth.end if self.old_end is None else self.old_end
        await self._pass()
        return end

    def depose(self, old_end: int | None) -> None:
        """The server that is asked was frozen at that end; None: it is one that leads."""
        self.old_end, self._old_elections = old_end, len(self._truth.pasts)

    async def look_up(self, positions: Sequence[int]) -> Sequence[LogRecord | None]:
        if self.old_end is None or self._rng.random() < 0.5:
            await self._ask()
            has = self._truth.records
        else:
            await self._pass()
            has = self._truth.branches[self._old_elections][: self.old_end]
        found = [has[at] if self._truth.first <= at < len(has) else None for at in positions]
        await self._pass()
        return found

    async def _ask(self) -> None:
        await self._pass()
        if not await self._is_led():
            raise Unavailable("nobody leads the log")

    async def _is_led(self) -> bool:
        """Whether somebody leads, or is elected soon enough."""
        if not self._truth.is_led.is_set():
            try:
                async with asyncio.timeout(self._rng.random() * PATIENCE_S_MAX):
                    await self._truth.is_led.wait()
            except TimeoutError:
                return False
        return True

    def heed(self, is_watched: Callable[[], bool]) -> None:
        """It is as far behind as `lag_s` says, whoever waits."""

    def seek(self, position: int, last: LogRecord | None = None) -> None:
        self._next = position
        self._handed.clear()
        if last is not None or (self._last is not None and self._last.position != position - 1):
            self._last = last

    @property
    def parts_at(self) -> int | None:
        """The first position of what was handed out since the newest seek where the log has something else by now."""
        return next((record.position for record in self._handed if not self._truth.has(record)), None)

    async def read(self) -> Sequence[LogRecord]:
        truth = self._truth
        while True:
            await self._until_there_is_more()
            await asyncio.sleep(self._rng.random() * 0.01 + self._rng.random() * self.lag_s)
            await truth.is_led.wait()
            self._look_back()
            if self._next < truth.first:
                raise LogLost("it was trimmed")
            if self._next < truth.end:
                break
        found = truth.records[self._next : self._next + self._rng.choice((1, 2, 5, 100))]
        self._next += len(found)
        self._last = found[-1]
        self._handed += found
        return found

    async def _until_there_is_more(self) -> None:
        """Raises LogTruncated when for long enough there was less than has been handed out."""
        truth, now = self._truth, asyncio.get_running_loop().time
        while truth.end <= self._next:
            if truth.end == self._next:
                await truth.grown()
                continue
            self._lacks_until = self._lacks_until or now() + limits.KAFKA_DOUBT_S
            try:
                async with asyncio.timeout_at(self._lacks_until):
                    await truth.grown()
            except TimeoutError:
                raise LogTruncated(f"position {self._next} is asked for, the log ends at {truth.end}") from None
        self._lacks_until = None

    def _look_back(self) -> None:
        """Raises LogTruncated when the last record is not there any more."""
        elections, last = len(self._truth.pasts), self._last
        if last is not None and elections > self._elections and not self._truth.has(last):
            raise LogTruncated(f"the log has another record at position {last.position}")
        self._elections = elections

    async def append(self, data: bytes) -> int:
        truth, rng = self._truth, self._rng
        fate = truth.fate()
        await self._pass()
        if not await self._is_led():
            raise OutcomeUnknown("nobody leads the log")
        position = -1
        if fate in ("fine", "unheard", "doubled", "doubled unheard"):
            position = truth.put(data, fate)
        if fate in ("late", "doubled", "doubled unheard"):
            truth.later(rng.random() * rng.choice((0.05, 1.0, COPY_S_MAX)), data)
        if fate in ("fine", "doubled"):
            await self._pass()
            return position
        await asyncio.sleep(rng.random() * APPEND_S_MAX)
        raise OutcomeUnknown(fate)

    async def trim(self, position: int) -> None:
        truth, fate = self._truth, self._truth.fate()
        await self._ask()
        if fate == "late":
            truth.trim_later(self._rng.random() * COPY_S_MAX, position)
        elif fate != "lost":
            truth.trim(position)
        await self._pass()
        if fate != "fine":
            raise Unavailable(fate)

    @property
    def events(self) -> Mapping[str, int]:
        return {}

    async def aclose(self, within_s: float = 0) -> None:
        pass

    async def _pass(self) -> None:
        await asyncio.sleep(self._rng.random() * 0.02)
