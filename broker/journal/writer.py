"""The thread that commits: group commit, one row and one fsync for all that waits."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from broker.core.entry import Entry, encode
from broker.errors import EngineStopped, Unavailable
from broker.journal import Commit, Refused
from broker.journal.commit_row import INSERT, CommitRow, encode_commit
from broker.limits import COMMIT_BYTES_MAX, KIB, MIB
from broker.sqlite import WalMover, is_definite, transaction

PAGE_BYTES: Final = 8 * KIB
"""A page of the file: about one commit under light load."""
TRIM_COMMITS_MAX: Final = 64
"""Rows dropped in one step, and …"""
TRIM_BYTES_MAX: Final = 1 * MIB
"""… their bytes (one row at least): what one step may add to the commit that it rides in."""

Told = Commit | Refused | EngineStopped


class CommitWriter:
    """Takes all that waits, commits it, tells it, and goes on with what came meanwhile.

    `tell` is called in a thread of the writer's, in order; after an EngineStopped nothing is committed any more.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        wal: WalMover,
        next_index: int,
        now_ms: Callable[[], int],
        tell: Callable[[Told], object],
    ) -> None:
        self._connection = connection
        self._wal = wal
        self._next_index = next_index
        self._now_ms = now_ms
        self._tell = tell
        # Appended by the event loop, taken by this thread: a deque needs no lock for one of each.
        self._waiting: deque[Entry] = deque()
        # A binary semaphore: locked while nothing is new. Released by the event loop only, so never twice.
        self._nothing_new = threading.Lock()
        self._nothing_new.acquire()
        self._closing = False
        self._trim_index = 0  # rows up to here may go; the event loop raises it; below _next_index
        self._trimmed_index = 0  # rows up to here are gone; at most _trim_index
        # A daemon, so that a program which forgot to close still ends; what is lost then was never acknowledged.
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

        self._thread.start()

    # -- called in the event loop --------------------------------------------------------------------------------

    def queue(self, entries: Iterable[Entry]) -> None:
        """For the next commit."""
        self._waiting.extend(entries)
        self._wake()

    def _wake(self) -> None:
        """Something is new."""
        if self._nothing_new.locked():
            self._nothing_new.release()

    def trim(self, index: int) -> None:
        """Rows up to and including `index`, which only rises, may go: with the next commits, or alone."""
        self._trim_index = index
        self._wake()

    def close(self) -> None:
        """Ask the thread to end after what waits."""
        self._closing = True
        self._wake()

    def join(self) -> None:
        """Wait until it has, in any thread."""
        self._thread.join()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        closing = False
        try:
            while not closing:
                self._nothing_new.acquire()
                closing = self._closing  # before the last look at what waits
                while self._step():
                    pass
        except Exception as error:  # noqa: BLE001 - a bug in here leaves the fate of a commit as unknown as a bad disk
            stopped = EngineStopped(f"the fate of a commit is unknown: {error!r}")
            stopped.__cause__ = error
            self._tell(stopped)

    def _step(self) -> bool:
        """Commit what waits, or trim a little; False when there was nothing to do."""
        entries, encoded = self._take()
        if entries:
            self._commit(entries, encoded)
            return True
        return self._trim_is_due and self._trim_alone()

    def _take(self) -> tuple[list[Entry], list[bytes]]:
        """What waits, up to COMMIT_BYTES_MAX and the entry that reaches it."""
        waiting, size_bytes = self._waiting, 0
        entries: list[Entry] = []
        encoded: list[bytes] = []
        while waiting and size_bytes < COMMIT_BYTES_MAX:
            entry = waiting.popleft()
            data = encode(entry)
            entries.append(entry)
            encoded.append(data)
            size_bytes += len(data)
        return entries, encoded

    def _commit(self, entries: list[Entry], encoded: list[bytes]) -> None:
        time_ms = self._now_ms()
        row = encode_commit(self._next_index, time_ms, encoded)
        try:
            with self._wal.gate:
                self._insert(row)
        except sqlite3.Error as error:
            self._tell(Refused(entries, self._definite(error)))
        else:
            self._tell(Commit(self._next_index, time_ms, entries))
            self._next_index += len(entries)

    def _insert(self, row: CommitRow) -> None:
        if self._trim_is_due:
            with transaction(self._connection):
                self._connection.execute(INSERT, row)
                trimmed_index = self._drop_some()
            self._trimmed_index = trimmed_index
        else:
            # One statement is a transaction by itself; each one more would pass the interpreter's lock around.
            self._connection.execute(INSERT, row)
        self._wal.wrote(PAGE_BYTES + 2 * len(row[-1]))  # with the rest of the last page and the list of free pages

    @property
    def _trim_is_due(self) -> bool:
        return self._trim_index > self._trimmed_index

    def _trim_alone(self) -> bool:
        """One step of trimming in a transaction of its own; False when the disk refuses it for now."""
        try:
            with self._wal.gate, transaction(self._connection):
                trimmed_index = self._drop_some()
        except sqlite3.Error as error:
            self._definite(error)
            return False
        self._trimmed_index = trimmed_index
        return True

    def _drop_some(self) -> int:
        """Drop some of the oldest rows; the index up to which none is left."""
        trim_index = self._trim_index
        oldest = self._connection.execute(
            """SELECT first_index + count - 1, length(entries) FROM commits
            WHERE first_index <= :index AND first_index + count - 1 <= :index ORDER BY first_index LIMIT :limit""",
            {"index": trim_index, "limit": TRIM_COMMITS_MAX},
        ).fetchall()
        if not oldest:
            return trim_index
        last_index, size_bytes = 0, 0
        for last_index, commit_bytes in oldest:  # noqa: B007 - the last one that fits is what counts
            size_bytes += commit_bytes
            if size_bytes >= TRIM_BYTES_MAX:
                break
        self._connection.execute("DELETE FROM commits WHERE first_index <= ?", (last_index,))
        self._connection.execute("UPDATE head SET trimmed_index = ?", (last_index,))
        return last_index

    def _definite(self, error: sqlite3.Error) -> Unavailable:
        """What a write that failed for certain is told as. Raises `error` again when that is not certain."""
        if not is_definite(error):
            raise error
        self._wal.hurry()
        return Unavailable(f"the journal cannot be written: {error}")
