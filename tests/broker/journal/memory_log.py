"""A shared log in memory: one truth, any number of ends of it, and what can go wrong between an end and the truth."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from broker.errors import OutcomeUnknown, Unavailable
from broker.journal.shared_log import LogLost, LogRecord, LogTruncated


class Records:
    """What the log holds. Tests may put records of their own."""

    def __init__(self, now_ms: Callable[[], int] = lambda: 1_000_000) -> None:
        self.now_ms = now_ms
        self.records: list[LogRecord] = []
        self.first = 0
        self._grown = asyncio.Event()

    def put(self, data: bytes) -> int:
        position = self.first + len(self.records)
        self.records.append(LogRecord(position, self.now_ms(), data))
        self._grown.set()
        return position

    @property
    def end(self) -> int:
        return self.first + len(self.records)

    async def until_grown(self, beyond: int) -> None:
        while self.end <= beyond:
            self._grown.clear()
            await self._grown.wait()


class MemoryLog:
    """One process's end of `Records`. `faults` are what happens to the next appends, one after the other.

    "lost" never reaches the log; of "unheard" the answer is lost; "late" comes when the test calls `arrive`.
    While there is an `old_end` it is what a server tells that was frozen then, and leads no more. While there are
    `old_records` it is what such a server has.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self.faults: deque[str] = deque()
        self.road = asyncio.Event()  # appends wait here
        self.road.set()
        self.readable = asyncio.Event()  # reads wait here
        self.readable.set()
        self.old_end: int | None = None
        self.old_records: list[LogRecord] | None = None
        self.late: list[bytes] = []
        self._next = 0
        self._last: LogRecord | None = None  # that the next read is to follow
        self._is_truncated = False

    async def open(self) -> None:
        pass

    async def first(self) -> int:
        await asyncio.sleep(0)
        return self.records.first

    async def end(self) -> int:
        await asyncio.sleep(0)
        return self.records.end if self.old_end is None else self.old_end

    def heed(self, is_watched: Callable[[], bool]) -> None:
        pass

    def seek(self, position: int, last: LogRecord | None = None) -> None:
        self._next, self._last = position, last

    async def look_up(self, positions: Sequence[int]) -> Sequence[LogRecord | None]:
        await asyncio.sleep(0)
        has = self.records.records if self.old_records is None else self.old_records
        by_position = {record.position: record for record in has}
        return [by_position.get(position) for position in positions]

    async def read(self) -> Sequence[LogRecord]:
        await self.records.until_grown(self._next)
        await self.readable.wait()
        while self.records.end <= self._next:  # the test has made it lose some meanwhile
            await self.records.until_grown(self._next)
        if self._next < self.records.first:
            raise LogLost("the test has trimmed it")
        if self._is_truncated:
            raise LogTruncated("the test has truncated it")
        last, self._last = self._last, None
        if last is not None and last not in self.records.records:
            raise LogTruncated("the test has put another record there")
        found = self.records.records[self._next - self.records.first :]
        self._next = self.records.end
        return found

    async def append(self, data: bytes) -> int:
        await self.road.wait()
        await asyncio.sleep(0)
        fault = self.faults.popleft() if self.faults else ""
        if fault == "late":
            self.late.append(data)
        position = self.records.put(data) if fault in ("", "unheard") else -1
        if fault:
            raise OutcomeUnknown(f"the test says {fault}")
        return position

    def truncate(self) -> None:
        """The next read tells that what was read is gone."""
        self._is_truncated = True

    def arrive(self) -> None:
        """What was held up comes now."""
        while self.late:
            self.records.put(self.late.pop(0))

    async def trim(self, position: int) -> None:
        if position > self.records.end:
            raise Unavailable("beyond the end")
        del self.records.records[: position - self.records.first]
        self.records.first = position

    @property
    def events(self) -> Mapping[str, int]:
        return {}

    async def aclose(self, within_s: float = 0) -> None:
        pass
