"""What can be asked of a partition: always of what has been applied, wherever it lies, in memory or in the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Container
from heapq import nlargest

from broker import limits
from broker.applied import Applied
from broker.core.page import Page
from broker.core.state import (
    Generation,
    Key,
    Producer,
    Row,
    Session,
    Stream,
    generation_key,
    producer_key,
    session_key,
    stream_key,
)
from broker.errors import EngineStopped
from broker.store import Snapshot, Store
from broker.watches import Watcher
from consumer.wire import ENDED


class Readable(Applied):
    """Applied state behind questions. `journal_ms` is the time of the journal."""

    def __init__(self, store: Store, journal_ms: Callable[[], int], rows_max: int, needed: Container[Key]) -> None:
        super().__init__(store, rows_max, needed)
        self.draining = False
        self.failure: Exception | None = None
        self._store = store
        self._journal_ms = journal_ms

    def now_ms(self) -> int:
        """The partition's time carried forward: what reads judge expiry by."""
        return max(self._journal_ms(), self._time_ms)

    async def _row(self, key: Key) -> Row | None:
        self._require_sound()
        held = self._rows.held
        return held[key] if key in held else await self._rows.get(key, self._needed)

    def _require_sound(self) -> None:
        """Raise EngineStopped when what was applied here is not what the log makes."""
        if isinstance(self.failure, EngineStopped) and self.failure.spoils_reads:
            raise EngineStopped(str(self.failure))

    async def stream(self, path: str) -> Stream | None:
        """The stream at `path`, as applied; None when there is none or its deadline has passed.

        One that was deleted and lives on for its forks says so (`deleted`).
        """
        row = await self._row(stream_key(path))
        if not isinstance(row, Stream):
            return None
        deadline_ms = row.deadline_ms
        return row if deadline_ms is None or deadline_ms > self.now_ms() else None

    async def session(self, path: str) -> Session | None:
        """The session whose stream is at `path`."""
        row = await self._row(session_key(path))
        return row if isinstance(row, Session) else None

    async def sessions(self, before: tuple[int, str] | None, limit: int) -> list[tuple[str, Session, Stream]]:
        """Sessions by last activity, newest first, with their streams; those below (time of activity, path) `before`.

        One that moves meanwhile may be missing; `recent` has it.
        """
        below = (2**63 - 1, b"\xff") if before is None else (before[0], session_key(before[1]))
        self._require_sound()
        unstored = {key: row for key, row in self._rows.unstored() if key[:1] == b"S"}
        fresh = [(row.active_ms, key) for key, row in unstored.items() if isinstance(row, Session)]
        found = nlargest(limit, (each for each in fresh if each < below))
        missing = limit
        while missing > 0 and (stored := await self._store.active(below, limit)):
            current = [each for each in stored if each[1] not in unstored]
            found += current
            missing -= len(current)
            below = stored[-1]
        return await self._with_streams([key for _, key in nlargest(limit, found)])

    async def idle_sessions(
        self, after: tuple[int, str], before_ms: int, limit: int
    ) -> list[tuple[str, Session, Stream | None]]:
        """Stored sessions by last activity, oldest first: above (time of activity, path) `after`, below `before_ms`.

        As the store has them, and not kept in memory for it: many are looked at, and few are wanted.
        """
        found = await self._store.idle((after[0], session_key(after[1])), before_ms, limit)
        paths = [key[1:].decode() for _, key in found]
        rows = await self._store.load([key for path in paths for key in (session_key(path), stream_key(path))])
        idle = []
        for path in paths:
            session, stream = rows[session_key(path)], rows[stream_key(path)]
            if isinstance(session, Session) and session.active_ms < before_ms:
                idle.append((path, session, stream if isinstance(stream, Stream) else None))
        return idle

    async def _with_streams(self, wanted: list[Key]) -> list[tuple[str, Session, Stream]]:
        paths = [key[1:].decode() for key in wanted]
        await self._rows.load([*wanted, *map(stream_key, paths)])
        rows = [(path, await self.session(path), await self.stream(path)) for path in paths]
        return [(path, session, stream) for path, session, stream in rows if session is not None and stream is not None]

    async def generation(self, path: str, generation_id: str) -> Generation | None:
        """A generation of that session, open or ended."""
        session = await self.session(path)
        if session is None:
            return None
        for generation in session.open:
            if generation.generation_id == generation_id:
                return generation
        row = await self._row(generation_key(path, generation_id))
        return row if isinstance(row, Generation) and row.birth == session.birth and row.status in ENDED else None

    async def read(self, path: str, stream: Stream, position: int, bytes_max: int) -> Page | None:
        """Records of `stream` from `position` on, whole pages up to about `bytes_max` bytes; None if there are none.

        May be less than there is. Never of another life: when the stream ended meanwhile, nothing.
        """
        return await self._log.read(path, stream, position, bytes_max)

    async def wait(self, path: str, incarnation: int, position: int, timeout_s: float) -> None:
        """Return when the stream has records after `position`, is closed or over, on drain, or after `timeout_s`.

        Says nothing of which: judge anew with `stream`.
        """
        stream = await self.stream(path)
        if self.draining or stream is None or stream.incarnation != incarnation:
            return
        if stream.tail > position or stream.closed or stream.deleted:
            return
        if stream.deadline_ms is not None:
            timeout_s = min(timeout_s, (stream.deadline_ms - self.now_ms()) / 1000 + 0.001)
        await self._watches.wait(stream_key(path), timeout_s)

    def held(self, path: str, incarnation: int) -> Stream | None:
        """What `stream` would find now, of a stream without a deadline, if it is in memory; None says nothing."""
        row = self._rows.held.get(stream_key(path))
        if self.failure is not None or not isinstance(row, Stream):
            return None
        if row.incarnation != incarnation or row.deleted or row.deadline_ms is not None:
            return None
        return row

    def newest(self, path: str, incarnation: int, position: int, bytes_max: int) -> Page | None:
        """What `read` would find now in the tail; None says nothing: ask that."""
        return self._log.newest(path, incarnation, position, bytes_max)

    def watch(self, path: str, watcher: Watcher) -> None:
        """Wake it after every change of the stream, and on drain, until `unwatch`."""
        self._watches.add(stream_key(path), watcher)

    def unwatch(self, path: str, watcher: Watcher) -> None:
        """Wake it no more."""
        self._watches.remove(stream_key(path), watcher)

    async def wait_for_end(self, path: str, generation_id: str, timeout_s: float) -> None:
        """Return when an open generation has ended or its session is gone, on drain, or after `timeout_s`.

        Says nothing of which: judge anew with `generation`.
        """
        if not self.draining:
            await self._watches.wait(generation_key(path, generation_id), timeout_s)

    async def overdue(self, limit: int) -> list[tuple[str, int]]:
        """Streams whose deadline has passed, (path, incarnation): stored ones and those only in memory.

        Late by a checkpoint at most; whoever comes upon an overdue stream before finds that out by itself.
        """
        now_ms = self.now_ms()
        stored = await self._store.overdue(now_ms, limit)
        found: list[tuple[str, int]] = []
        for path in [*dict.fromkeys((*(path for path, _ in stored), *self._mortal))]:
            row = await self._row(stream_key(path))
            deadline_ms = row.deadline_ms if isinstance(row, Stream) else None
            if deadline_ms is None:
                self._mortal.discard(path)
            elif isinstance(row, Stream) and deadline_ms <= now_ms:
                found.append((path, row.incarnation))
        return found[:limit]

    async def sources(self) -> AsyncIterator[str]:
        """Paths of the streams that have forks."""
        async for key in self._watched(b"s"):
            yield key[1:].decode()
        for key, row in self._rows.unstored():
            if isinstance(row, Stream) and row.is_needed:
                yield key[1:].decode()

    async def idle_producers(self, path: str, idle_since_ms: int) -> AsyncIterator[str]:
        """Ids of the stored producers of `path` that have written nothing since `idle_since_ms`."""
        prefix, after = producer_key(path, ""), b""
        while found := await self._store.keys(prefix, after, limits.STREAMS_PAGE):
            for key in found:
                row = await self._row(key)
                if isinstance(row, Producer) and row.active_ms < idle_since_ms:
                    yield key.removeprefix(prefix).decode()
            after = found[-1]

    async def stream_paths(self, prefix: str) -> AsyncIterator[str]:
        """Paths of streams that begin with `prefix`; some twice. In bounded steps, however many there are.

        A path that comes or goes meanwhile may be in it or not.
        """
        wanted = stream_key(prefix)
        # What is only in memory comes first: a checkpoint may move it behind the place that the store was read to.
        for key, row in self._rows.unstored():
            if row is not None and key.startswith(wanted):
                yield key[1:].decode()
        after = b""
        while found := await self._store.keys(wanted, after, limits.STREAMS_PAGE):
            for key in found:
                yield key[1:].decode()
            after = found[-1]

    async def _watched(self, letter: bytes) -> AsyncIterator[Key]:
        """Keys of the stored rows of a kind that somebody must look after."""
        after = b""
        while found := await self._store.watched(letter, after, limits.WATCHED_PAGE):
            for key in found:
                yield key
            after = found[-1]

    async def stored_snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        """The stored snapshot of a session's messages."""
        return await self._store.snapshot(path, incarnation)

    async def sweep(self) -> bool:
        """Remove some of what ended lives left in the store; True while more is left."""
        return await self._store.sweep()
