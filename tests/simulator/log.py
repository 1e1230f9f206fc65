"""The shared log of the simulation: one truth, and a bad road to it from every node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from random import Random

from broker.errors import OutcomeUnknown, Unavailable
from broker.journal.shared_log import LogLost, LogRecord
from tests.simulator.loop import Loop

APPEND_S_MAX = 1.5
"""After which an append without an answer has failed, for its writer."""
COPY_S_MAX = 6.0
"""How much later a copy may still come."""


class Truth:
    """All that the log ever took; readers are given none before `first`."""

    def __init__(self, loop: Loop, rng: Random, say: Callable[..., None]) -> None:
        self.records: list[LogRecord] = []
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
        for reader in self._grown:
            if not reader.done():
                reader.set_result(None)
        self._grown.clear()
        return position

    def trim(self, position: int) -> None:
        """Readers are given nothing before `position` any more."""
        if position > self.first:
            self.first = position
            self._say("trim", position)
            self.trimmed(position)

    def later(self, delay_s: float, data: bytes) -> None:
        """A copy is on the road, whatever becomes of who sent it."""
        self._later(delay_s, lambda: self.put(data, "copy"))

    def trim_later(self, delay_s: float, position: int) -> None:
        """A trim is on the road."""
        self._later(delay_s, lambda: self.trim(position))

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
        """Done once there is another record."""
        reader: asyncio.Future[None] = self._loop.create_future()
        self._grown.append(reader)
        return reader

    def fate(self) -> str:
        """What becomes of an append."""
        if self._rng.random() >= self.faulty:
            return "fine"
        return self._rng.choice(("lost", "unheard", "late", "doubled", "doubled unheard"))


class Road:
    """One node's way to the log: a `SharedLog`."""

    def __init__(self, truth: Truth, rng: Random) -> None:
        self._truth, self._rng = truth, rng
        self._next = 0
        self.lag_s = 0.0
        """How far behind its reads are."""
        self.old_end: int | None = None
        """What a server says that was frozen then, and does not know that it leads no more."""

    async def open(self) -> None:
        await self._pass()

    async def first(self) -> int:
        await self._pass()
        return self._truth.first

    async def end(self) -> int:
        await self._pass()
        end = self._truth.end if self.old_end is None else self.old_end
        await self._pass()
        return end

    def heed(self, is_watched: Callable[[], bool]) -> None:
        """It is as far behind as `lag_s` says, whoever waits."""

    def seek(self, position: int) -> None:
        self._next = position

    async def read(self) -> Sequence[LogRecord]:
        while self._truth.end <= self._next:
            await self._truth.grown()
        await asyncio.sleep(self._rng.random() * 0.01 + self._rng.random() * self.lag_s)
        if self._next < self._truth.first:
            raise LogLost("it was trimmed")
        found = self._truth.records[self._next : self._next + self._rng.choice((1, 2, 5, 100))]
        self._next += len(found)
        return found

    async def append(self, data: bytes) -> int:
        truth, rng = self._truth, self._rng
        fate = truth.fate()
        await self._pass()
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
        await self._pass()
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
