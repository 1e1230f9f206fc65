"""The thread that commits: group commit, one frame and one write for all that waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from broker.core.entry import Entry, encode
from broker.errors import EngineStopped, Unavailable
from broker.journal import Commit, Refused
from broker.journal.segments import Segments
from broker.limits import COMMIT_BYTES_MAX

Told = Commit | Refused | EngineStopped


class CommitWriter:
    """Takes all that waits, commits it, tells it, and goes on with what came meanwhile.

    `tell` is called in a thread of the writer's, in order; after an EngineStopped nothing is committed any more.
    """

    def __init__(
        self,
        segments: Segments,
        next_index: int,
        now_ms: Callable[[], int],
        tell: Callable[[Told], object],
    ) -> None:
        self._segments = segments
        self._next_index = next_index
        self._now_ms = now_ms
        self._tell = tell
        # Appended by the event loop, taken by this thread: a deque needs no lock for one of each.
        self._waiting: deque[Entry] = deque()
        # A binary semaphore: locked while nothing is new. Released by the event loop only, so never twice.
        self._nothing_new = threading.Lock()
        self._nothing_new.acquire()
        self.synchronous = False  # set by the event loop
        self._closing = False
        self._trim_index = 0  # entries up to here may go; the event loop raises it; below _next_index
        self._trimmed_index = 0  # up to here the segments know
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
        """Entries up to and including `index`, which only rises, may go."""
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
            self._tell(error if isinstance(error, EngineStopped) else _stopped(error))

    def _step(self) -> bool:
        """Commit what waits, then let go of what may go; False when nothing waited."""
        entries, encoded = self._take()
        if entries:
            self._commit(entries, encoded)
        if self._trim_index > self._trimmed_index:
            self._trimmed_index = self._trim_index
            self._segments.trim(self._trimmed_index)
        return bool(entries)

    def _take(self) -> tuple[list[Entry], list[bytes]]:
        """What waits, up to COMMIT_BYTES_MAX and the entry that reaches it; one entry where that is asked for."""
        waiting, size_bytes = self._waiting, 0
        entries: list[Entry] = []
        encoded: list[bytes] = []
        while waiting and size_bytes < COMMIT_BYTES_MAX and not (entries and self.synchronous):
            entry = waiting.popleft()
            data = encode(entry)
            entries.append(entry)
            encoded.append(data)
            size_bytes += len(data)
        return entries, encoded

    def _commit(self, entries: list[Entry], encoded: list[bytes]) -> None:
        time_ms = self._now_ms()
        try:
            self._segments.append(self._next_index, time_ms, encoded)
        except Unavailable as error:
            self._tell(Refused(entries, error))
        else:
            self._tell(Commit(self._next_index, time_ms, entries))
            self._next_index += len(entries)


def _stopped(error: Exception) -> EngineStopped:
    stopped = EngineStopped(f"the fate of a commit is unknown: {error!r}")
    stopped.__cause__ = error
    return stopped
