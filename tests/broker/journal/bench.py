"""A journal of each engine that can be restarted, its clocks, and what it hands back."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from broker.core.entry import Entry
from broker.data_dir import DataDir
from broker.journal import Commit, Journal, Refused
from broker.journal.cluster import ClusterJournal
from broker.journal.durable import Write
from broker.journal.file import FileJournal
from broker.journal.kafka import Kafka
from broker.journal.kafka_log import KafkaLog
from broker.journal.kafka_topic import KafkaTopic
from broker.journal.memory import MemoryJournal
from broker.limits import SEGMENT_BYTES
from tests.broker.journal.memory_log import MemoryLog, Records

UUID = b"store of a test."
MakeEntry = Callable[..., Entry]
"""The fixture `entry`: of a proposal number."""


class Heard:
    """What a journal handed back."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.refused: list[Refused] = []
        self.stopped: list[Exception] = []
        self._changed = asyncio.Event()

    @property
    def entries(self) -> list[tuple[int, Entry]]:
        return [
            (index, entry) for commit in self.commits for index, entry in enumerate(commit.entries, commit.first_index)
        ]

    @property
    def indexes(self) -> list[int]:
        return [index for index, _ in self.entries]

    def deliver(self, told: Commit | Refused) -> None:
        if isinstance(told, Commit):
            self.commits.append(told)
        else:
            self.refused.append(told)
        self._changed.set()

    def stop(self, error: Exception) -> None:
        self.stopped.append(error)
        self._changed.set()

    async def until_entries(self, count: int) -> None:
        """Wait until so many were handed back."""
        await self.until(lambda: len(self.entries) >= count)

    async def write(self, journal: Journal, *entries: Entry) -> None:
        """Propose to the journal that is heard here, one after the other; return when the last was handed back."""
        for entry in entries:
            times = self._times(entry)
            journal.propose(entry)
            await self.until(partial(self._is_heard_again, entry, times))

    def _is_heard_again(self, entry: Entry, times: int) -> bool:
        return self._times(entry) > times

    def _times(self, entry: Entry) -> int:
        return sum(heard.proposal == entry.proposal for _, heard in self.entries)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until what was handed back makes `holds` true."""
        while not holds():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 30)


class Bench:
    """One folder, the journals opened in it one after the other, and the time they are told."""

    def __init__(self, engine: str, path: Path, topic: KafkaTopic | None = None) -> None:
        self.engine = engine
        self.topic = topic
        self.wall_ms = 1_000_000
        self.monotonic_ms = 5_000
        self.data_dir = DataDir(path)
        self.data_dir.take()
        self.data_dir.uuid = UUID
        self.records = Records(lambda: self.wall_ms)
        self.marks: dict[int, bytes] = {}
        """What a store would have, by index."""
        self.write: Write | None = None
        self.segment_bytes = SEGMENT_BYTES
        self._open: list[Journal] = []

    def make(self) -> Journal:
        if self.topic is not None:
            return ClusterJournal(KafkaLog(Kafka(self.topic), 0), monotonic_ms=lambda: self.monotonic_ms)
        if self.engine == "cluster":
            return ClusterJournal(MemoryLog(self.records), monotonic_ms=lambda: self.monotonic_ms)
        if self.engine == "memory":
            return MemoryJournal(wall_ms=lambda: self.wall_ms, monotonic_ms=lambda: self.monotonic_ms)
        return FileJournal(
            self.data_dir,
            wall_ms=lambda: self.wall_ms,
            monotonic_ms=lambda: self.monotonic_ms,
            segment_bytes=self.segment_bytes,
            write=self.write,
        )

    async def opened(self, applied_index: int = 0, applied_time_ms: int = 0) -> Journal:
        """A journal behind a store that stands there."""
        journal = self.make()
        self._open.append(journal)
        await journal.open(applied_index, applied_time_ms, self.marks.get(applied_index, b""))
        return journal

    async def started(self, applied_index: int = 0, applied_time_ms: int = 0) -> tuple[Journal, Heard]:
        """The same, taking proposals."""
        journal, heard = await self.opened(applied_index, applied_time_ms), Heard()

        def deliver(told: Commit | Refused) -> None:
            heard.deliver(told)
            if isinstance(told, Commit) and not journal.lone_proposer:
                journal.applied(told, ())
                self.marks[told.first_index + len(told.entries) - 1] = journal.mark()

        journal.start(deliver, heard.stop)
        return journal, heard

    async def aclose(self) -> None:
        for journal in self._open:
            await journal.aclose()
        self.data_dir.release()
