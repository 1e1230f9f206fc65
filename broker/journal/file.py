"""The journal in files: entries are durable in a segment before they are handed back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.core.entry import Entry
from broker.data_dir import DataDir
from broker.errors import Damaged, EngineStopped, StartError
from broker.journal import Commit, Foresee, Refused
from broker.journal.clock import Milliseconds, monotonic_ms, wall_ms
from broker.journal.durable import Write
from broker.journal.lone import LoneJournal
from broker.journal.segments import Segments
from broker.journal.writer import CommitWriter, Told
from broker.limits import DRAIN_S, GATHER_ENTRIES_MAX, GATHER_TURNS_MAX, SEGMENT_BYTES
from consumer.wire import Durability


class FileJournal(LoneJournal):
    """A `Journal` in the segments of a data folder. Opens behind the store of the same folder, closes before it."""

    durability: Durability = Durability.FSYNC

    def __init__(
        self,
        data_dir: DataDir,
        *,
        wall_ms: Milliseconds = wall_ms,
        monotonic_ms: Milliseconds = monotonic_ms,
        segment_bytes: int = SEGMENT_BYTES,
        write: Write | None = None,
    ) -> None:
        super().__init__(wall_ms, monotonic_ms)
        self._data_dir = data_dir
        self._path = data_dir.journal_path
        self._segment_bytes = segment_bytes
        self._write = write
        self._segments: Segments | None = None
        self._applied_index = 0  # the store's, when this opened
        self._next_index = 1  # when this opened; above _applied_index. From `start` on, the writer counts
        self._trim_index = 0  # what `trim` told before `start`
        self._writer: CommitWriter | None = None
        self._synchronous = False
        self._error: EngineStopped | None = None  # why nothing is taken any more
        self._stopped: EngineStopped | None = None  # the same, when it was not asked for
        self._gathered: list[Entry] = []  # proposed, and not yet given to the writer

    async def open(self, applied_index: int, applied_time_ms: int, mark: bytes = b"") -> None:
        """As in `Journal`. The store of the folder is open. Raises Damaged for one that another engine made."""
        if mark:
            raise Damaged("the store was made by another engine", "name an empty folder with --data-dir")
        self._applied_index = self._trim_index = applied_index
        with _opening(self._path):
            last_index, last_time_ms = await asyncio.to_thread(self._open)
        self._next_index = max(last_index, applied_index) + 1
        self._begin_time(max(last_time_ms, applied_time_ms))

    async def replay(self, foresee: Foresee | None = None) -> AsyncIterator[Commit]:  # noqa: ARG002 -- not read ahead
        """As in `Journal`; one commit in memory. Raises Damaged or NewerFormat, both naming the index."""
        commits = self._held.commits(self._applied_index + 1)
        while True:
            with _opening(self._path):
                commit = await asyncio.to_thread(next, commits, None)
            if commit is None:
                return
            yield commit

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:
        """As in `Journal`."""
        self._loop = loop = asyncio.get_running_loop()

        def told(told: Told) -> None:
            if isinstance(told, EngineStopped):
                self._error = self._stopped = told
                stopped(told)
            else:
                deliver(told)

        self._writer = CommitWriter(
            self._held, self._next_index, self.now_ms, lambda what: loop.call_soon_threadsafe(told, what)
        )
        self._writer.synchronous = self._synchronous
        self._writer.trim(self._trim_index)

    @property
    def synchronous(self) -> bool:
        """As in `Journal`."""
        return self._synchronous

    @synchronous.setter
    def synchronous(self, synchronous: bool) -> None:
        self._synchronous = synchronous
        if self._writer is not None:
            self._writer.synchronous = synchronous

    def propose(self, entry: Entry) -> None:
        """As in `Journal`."""
        if self._writer is None or self._error is not None:
            raise self._error or EngineStopped("the journal is not started")
        self._gathered.append(entry)
        if len(self._gathered) == 1:
            self._loop.call_soon(self._commit_gathered, 1, GATHER_TURNS_MAX)

    def trim(self, index: int) -> None:
        """As in `Journal`: whole segments, between two commits."""
        self._trim_index = max(self._trim_index, index)
        if self._writer is not None:
            self._writer.trim(self._trim_index)

    async def aclose(self, within_s: float = DRAIN_S) -> None:  # noqa: ARG002 -- it waits for nobody
        """As in `Journal`."""
        if self._error is None:
            self._error = EngineStopped("the journal is closed")
        if self._writer is not None:
            self._writer.queue(self._gathered)
            self._gathered = []
            self._writer.close()
        await asyncio.to_thread(self._close)

    def _commit_gathered(self, seen: int, turns_left: int) -> None:
        """Hand on what was proposed, once a turn of the loop has brought nothing more; a commit costs more than a turn.

        So writers that answer each other's acks share a commit, and one that is alone waits for one empty turn.
        """
        if seen < len(self._gathered) < GATHER_ENTRIES_MAX and turns_left:
            self._loop.call_soon(self._commit_gathered, len(self._gathered), turns_left - 1)
        elif self._writer is not None:
            self._writer.queue(self._gathered)
            self._gathered = []

    # -- in a thread ---------------------------------------------------------------------------------------------

    def _open(self) -> tuple[int, int]:
        """Open and check the files; the highest index ever given, and the time of the last entry."""
        self._segments = Segments(self._path, self._data_dir.uuid, segment_bytes=self._segment_bytes, write=self._write)
        return self._segments.open(self._applied_index)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.join()
        if self._segments is not None:
            if self._stopped is None:
                self._segments.close()
            else:
                self._segments.abandon()

    @property
    def _held(self) -> Segments:
        if self._segments is None:
            raise RuntimeError("the journal is not open")
        return self._segments


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}", "check the disk and the permissions of the folder") from error
