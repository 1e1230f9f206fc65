"""A journal and a store that a test can hold at any point, and a partition over them.

The store is the real one, in memory; `HeldStore` only makes it wait or fail. `HeldJournal` is a journal whose commits
the test decides: what comes back, when, and in how many pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

from msgspec.structs import replace

from broker import limits
from broker.core.entry import Entry
from broker.core.outcome import Outcome
from broker.core.page import Page
from broker.core.state import Key, Row
from broker.journal import Commit, Foresee, Refused
from broker.journal.memory import MemoryJournal
from broker.partition import Partition
from broker.store import Checkpoint
from broker.store.sqlite import SqliteStore
from consumer.wire import Durability
from tests.broker.core.entries import PATH
from tests.broker.core.replica import BEGIN_MS

NEVER_S = 3600.0
READ_BYTES = 1 << 20


class HeldJournal:
    """A journal in the hands of a test: proposals wait in `waiting` until it commits or refuses them."""

    durability: Durability = Durability.MEMORY
    lone_proposer: bool = True
    identity: bytes = b""
    synchronous: bool = False

    def __init__(self, *, held: bool = False, replayed: Sequence[Commit] = ()) -> None:
        self.held = held
        self.waiting: list[Entry] = []
        self.told_applied: list[Outcome] = []
        self.mark_at_open = b""
        self.proposed: list[Entry] = []
        self.time_ms = BEGIN_MS
        self.index = 0
        self.trimmed_index = 0
        self._replayed = replayed
        self._deliver: Callable[[Commit | Refused], None] | None = None
        self._stopped: Callable[[Exception], None] | None = None

    async def open(self, applied_index: int, applied_time_ms: int, mark: bytes = b"") -> None:
        self.mark_at_open = mark
        self.index = applied_index
        self.time_ms = max(self.time_ms, applied_time_ms)

    async def replay(self, foresee: Foresee | None = None) -> AsyncIterator[Commit]:
        if foresee is not None and self._replayed:
            await foresee([entry for commit in self._replayed for entry in commit.entries])
        for commit in self._replayed:
            self.index = commit.first_index + len(commit.entries) - 1
            yield commit

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:
        self._deliver, self._stopped = deliver, stopped

    def heed(self, is_watched: Callable[[], bool]) -> None:
        pass

    def propose(self, entry: Entry) -> None:
        self.waiting.append(entry)
        self.proposed.append(entry)
        if not self.held:
            asyncio.get_running_loop().call_soon(self.commit)

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        assert commit.first_index + len(commit.entries) - 1 == self.index
        self.told_applied += outcomes

    def mark(self) -> bytes:
        return b"at %d" % self.index

    async def catch_up(self) -> bool:
        return False

    lag_s = 0.0
    events: ClassVar[dict[str, int]] = {"seen": 1}

    def trim(self, index: int) -> None:
        self.trimmed_index = index

    def now_ms(self) -> int:
        return self.time_ms

    async def aclose(self, within_s: float = 0) -> None:  # noqa: ARG002 -- as `Journal`
        self.commit()

    def commit(self, count: int | None = None) -> None:
        """Hand back the oldest `count` proposals, durable."""
        entries, self.waiting = self.waiting[:count], self.waiting[count or len(self.waiting) :]
        self.deliver(*entries)

    def deliver(self, *entries: Entry) -> None:
        """Hand these back, whoever proposed them."""
        if entries:
            assert self._deliver is not None
            commit = Commit(self.index + 1, self.time_ms, entries)
            self.index += len(entries)
            self._deliver(commit)

    def refuse(self, error: Exception) -> None:
        """Nothing that waits was or will be written."""
        entries, self.waiting = self.waiting, []
        assert self._deliver is not None
        self._deliver(Refused(entries, error))

    def stop(self, error: Exception) -> None:
        """The fate of what waits is unknown."""
        assert self._stopped is not None
        self._stopped(error)


class Gate:
    """Where a test stops whoever comes by."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()

    def shut(self) -> None:
        self._open.clear()
        self.reached.clear()

    def open(self) -> None:
        self._open.set()

    async def passage(self) -> None:
        self.reached.set()
        await self._open.wait()


class HeldStore(SqliteStore):
    """The real store in memory. Its answers wait at a gate: they are from before whatever the test then does."""

    def __init__(self) -> None:
        super().__init__(None)
        self.load_gate, self.read_gate, self.write_gate = Gate(), Gate(), Gate()
        self.load_errors: list[Exception] = []
        self.loads = 0
        self.write_errors: list[Exception] = []
        self.written: list[Checkpoint] = []

    async def load(self, keys: Iterable[Key]) -> dict[Key, Row | None]:
        if self.load_errors:
            raise self.load_errors[0]
        self.loads += 1
        rows = await super().load(keys)
        await self.load_gate.passage()
        return rows

    async def read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        pages = await super().read(incarnation, position, bytes_max)
        await self.read_gate.passage()
        return pages

    async def write(self, checkpoint: Checkpoint) -> None:
        error = self.write_errors.pop(0) if self.write_errors else None
        if error is None:
            await super().write(checkpoint)
            self.written.append(checkpoint)
        await self.write_gate.passage()
        if error is not None:
            raise error


@asynccontextmanager
async def opened(
    journal: HeldJournal | MemoryJournal | None = None,
    store: SqliteStore | None = None,
    *,
    checkpoint_interval_s: float = NEVER_S,
    checkpoint_bytes: int = limits.CHECKPOINT_BYTES,
    checkpoint_bytes_max: int = limits.CHECKPOINT_BYTES_MAX,
    rows_max: int = limits.ROWS_MAX,
) -> AsyncIterator[Partition]:
    """A partition that checkpoints when it is told to, unless the test says otherwise."""
    journal = journal or HeldJournal()
    partition = Partition(
        journal,
        store or SqliteStore.in_memory(),
        checkpoint_interval_s=checkpoint_interval_s,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_bytes_max=checkpoint_bytes_max,
        rows_max=rows_max,
    )
    try:
        await partition.open()
        yield partition
    finally:
        if isinstance(journal, HeldJournal):
            journal.held = False
        if isinstance(store, HeldStore):
            for gate in (store.load_gate, store.read_gate, store.write_gate):
                gate.open()
        await partition.aclose()


async def blocked(task: asyncio.Future[Outcome] | asyncio.Task[None]) -> bool:
    """Whether the task still waits once everybody else has run as far as they can."""
    for _ in range(50):
        await asyncio.sleep(0)
    return not task.done()


async def content(partition: Partition, path: str = PATH, position: int = 0) -> bytes:
    """All data of the stream from `position` on, page by page."""
    data: list[bytes] = []
    while True:
        stream = await partition.stream(path)
        assert stream is not None
        page = await partition.read(path, stream, position, READ_BYTES)
        if page is None:
            assert position == stream.tail
            return b",".join(data)
        assert page.start == position
        data.append(page.data)
        position = page.end


def stamped(entries: Sequence[Entry], first_proposal: int) -> list[Entry]:
    """Entries as an earlier life of the broker proposed them."""
    return [replace(entry, boot=77, proposal=number) for number, entry in enumerate(entries, first_proposal)]
