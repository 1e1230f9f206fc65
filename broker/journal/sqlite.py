"""The SQLite journal: entries are durable in `journal.sqlite` before they are handed back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence

from broker.core.entry import Entry
from broker.core.outcome import Outcome
from broker.data_dir import DataDir
from broker.errors import Damaged, EngineStopped
from broker.journal import Commit, Refused
from broker.journal.clock import Clock, Milliseconds, monotonic_ms, wall_ms
from broker.journal.commit_row import FORM, SELECT, decode_commit
from broker.journal.writer import PAGE_BYTES, CommitWriter, Told
from broker.limits import GATHER_TURNS_MAX
from broker.sqlite import WAL_BYTES, Connect, WalMover, connect, opening, prepare
from consumer.wire import Durability

_RESTORE = "restore the folder from a backup"


class SqliteJournal:
    """A `Journal` in one SQLite file. Opens behind the store of the same folder, closes before it."""

    durability: Durability = Durability.FSYNC
    lone_proposer: bool = True

    def __init__(
        self,
        data_dir: DataDir,
        *,
        wall_ms: Milliseconds = wall_ms,
        monotonic_ms: Milliseconds = monotonic_ms,
        connect: Connect = connect,
        wal_bytes: int = WAL_BYTES,
    ) -> None:
        self._data_dir = data_dir
        self._path = data_dir.journal_path
        self._wall_ms, self._monotonic_ms = wall_ms, monotonic_ms
        self._connect = connect
        self._wal_bytes = wal_bytes
        self._clock = Clock(0, wall_ms, monotonic_ms)
        self._connection: sqlite3.Connection | None = None
        self._applied_index = 0  # the store's, when this opened
        self._next_index = 1  # when this opened; above _applied_index. From `start` on, the writer counts
        self._trim_index = 0  # what `trim` told before `start`
        self._writer: CommitWriter | None = None
        self._wal: WalMover | None = None
        self._error: EngineStopped | None = None  # why nothing is taken any more
        self._gathered: list[Entry] = []  # proposed, and not yet given to the writer

    async def open(self, applied_index: int, applied_time_ms: int, mark: bytes = b"") -> None:  # noqa: ARG002 - it has none
        """As in `Journal`. The store of the folder is open."""
        self._applied_index = self._trim_index = applied_index
        with opening(self._path):
            last_index, last_time_ms = await asyncio.to_thread(self._open)
        self._next_index = max(last_index, applied_index) + 1
        self._clock = Clock(max(last_time_ms, applied_time_ms), self._wall_ms, self._monotonic_ms)

    async def replay(self) -> AsyncIterator[Commit]:
        """As in `Journal`; one commit in memory. Raises Damaged or NewerFormat, both naming the index."""
        index = self._applied_index + 1
        while index < self._next_index:
            with opening(self._path):
                commit = await asyncio.to_thread(self._commit_with, index)
            index += len(commit.entries)
            yield commit

    def start(self, deliver: Callable[[Commit | Refused], None], stopped: Callable[[Exception], None]) -> None:
        """As in `Journal`."""
        self._loop = loop = asyncio.get_running_loop()

        def told(told: Told) -> None:
            if isinstance(told, EngineStopped):
                self._error = told
                stopped(told)
            else:
                deliver(told)

        self._wal = WalMover(self._path, self._connect, self._wal_bytes)
        self._writer = CommitWriter(
            self._held,
            self._wal,
            self._next_index,
            self.now_ms,
            lambda what: loop.call_soon_threadsafe(told, what),
        )
        self._writer.trim(self._trim_index)

    def propose(self, entry: Entry) -> None:
        """As in `Journal`."""
        if self._writer is None or self._error is not None:
            raise self._error or EngineStopped("the journal is not started")
        self._gathered.append(entry)
        if len(self._gathered) == 1:
            self._loop.call_soon(self._commit_gathered, 1, GATHER_TURNS_MAX)

    def applied(self, commit: Commit, outcomes: Sequence[Outcome]) -> None:
        """Never told: this process proposes alone."""

    def mark(self) -> bytes:
        """Nothing beside the index."""
        return b""

    async def catch_up(self) -> bool:
        """There are no others."""
        return False

    def trim(self, index: int) -> None:
        """As in `Journal`: rides in the next commits, or runs by itself when there are none."""
        self._trim_index = max(self._trim_index, index)
        if self._writer is not None:
            self._writer.trim(self._trim_index)

    def now_ms(self) -> int:
        """The time now; see `Clock`. Any thread."""
        return self._clock.now_ms()

    async def aclose(self) -> None:
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
        if len(self._gathered) > seen and turns_left:
            self._loop.call_soon(self._commit_gathered, len(self._gathered), turns_left - 1)
        elif self._writer is not None:
            self._writer.queue(self._gathered)
            self._gathered = []

    # -- in a thread ---------------------------------------------------------------------------------------------

    def _open(self) -> tuple[int, int]:
        """Open and check the file; the highest index ever given, and the time of the last entry."""
        self._connection = connection = self._connect(self._path)
        prepare(connection, FORM, self._path.name, self._fill, PAGE_BYTES)
        uuid, trimmed_index = connection.execute("SELECT uuid, trimmed_index FROM head").fetchone()
        if uuid != self._data_dir.uuid:
            raise Damaged(f"{self._path.name} belongs to another store", _RESTORE)
        if trimmed_index > self._applied_index:
            raise Damaged(
                f"{self._path.name} has dropped entries up to index {trimmed_index}, the store ends at index"
                f" {self._applied_index}",
                _RESTORE,
            )
        newest = connection.execute(
            "SELECT first_index + count - 1, time_ms FROM commits ORDER BY first_index DESC LIMIT 1"
        )
        last_index, last_time_ms = newest.fetchone() or (trimmed_index, 0)
        if last_index > self._applied_index:
            self._commit_with(self._applied_index + 1)
        return last_index, last_time_ms

    def _fill(self) -> None:
        row = (self._data_dir.uuid, self._applied_index)
        self._held.execute("INSERT INTO head (id, uuid, trimmed_index) VALUES (1, ?, ?)", row)

    def _commit_with(self, index: int) -> Commit:
        """The part from `index` on of the commit that holds it. Raises Damaged where none does."""
        row = self._held.execute(
            f"{SELECT} WHERE first_index <= ? ORDER BY first_index DESC LIMIT 1", (index,)
        ).fetchone()
        commit = decode_commit(row) if row else Commit(index, 0, ())
        skipped = index - commit.first_index
        if skipped >= len(commit.entries):
            raise Damaged(f"{self._path.name}: no commit holds index {index}", _RESTORE)
        return Commit(index, commit.time_ms, commit.entries[skipped:]) if skipped else commit

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.join()
        if self._wal is not None:
            self._wal.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _held(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the journal is not open")
        return self._connection
