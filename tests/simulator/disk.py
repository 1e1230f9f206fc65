"""The disks of the simulation's nodes: what is on them stays, whatever becomes of who wrote it.

Most schedules have a `Tray`, a store of dicts, for SQLite would be a third of what a schedule costs; some have the
broker's own store, on a `Platter`. Both take a checkpoint whole or not at all, as `Store` promises.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol

from broker.core.page import Page, after
from broker.core.state import Key, Row, Session, Stream, is_watched, owned_prefixes, owner
from broker.errors import EngineStopped
from broker.journal.cluster_record import decode_mark
from broker.snapshot.maker import Copied
from broker.store import Checkpoint, Head, Snapshot, Store
from broker.store.sqlite import SqliteStore
from broker.store.whole import ChangeMark, Restore
from tests.simulator.dump import Dump, paged_dump, store_dump

Pause = Callable[[], Awaitable[None]]
"""What writing and copying take: a kill may come within, before what is written is there and after."""


class KeptStore(Store, Copied, Protocol):
    """What a node opens."""


class Disk(Protocol):
    """What a crash leaves."""

    def store(self, restore: Restore, pause: Pause) -> KeptStore:
        """The store on it, for the next process."""
        ...

    def head(self) -> tuple[int, int]:
        """Index, and position in the log, that the store stands at; zeros when there is none."""
        ...

    def dump(self) -> Dump:
        """Its logical state; empty when there is none."""
        ...

    def drop(self) -> None:
        """Nobody needs it any more."""


def _stands_at(head: Head) -> tuple[int, int]:
    return head.applied_index, decode_mark(head.mark).position if head.mark else 0


# -- the broker's own store ------------------------------------------------------------------------------------------


class _Platters(sqlite3.Connection):
    """A database in memory that stays when a process lets go of it."""

    def close(self) -> None:
        pass

    def drop(self) -> None:
        super().close()


class Platter:
    """A `Disk` with a database of SQLite."""

    def __init__(self) -> None:
        self._platters = sqlite3.connect(":memory:", isolation_level=None, factory=_Platters)
        self._platters.execute("PRAGMA synchronous=OFF")  # copies of it are files: see `os.fsync` in `world`

    def store(self, restore: Restore, pause: Pause) -> KeptStore:
        store = _SlowSqlite(None, connect=lambda _: self._platters, restore=restore)
        store.pause = pause
        return store

    def head(self) -> tuple[int, int]:
        if not self._platters.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            return 0, 0
        return _stands_at(Head(*self._platters.execute("SELECT applied_index, time_ms, mark FROM head").fetchone()))

    def dump(self) -> Dump:
        return store_dump(self._platters) if self.head()[0] else {}

    def drop(self) -> None:
        self._platters.drop()


class _SlowSqlite(SqliteStore):
    pause: Pause

    async def copy(self, path: Path, change_mark: ChangeMark) -> Head:
        await self.pause()
        head = await super().copy(path, change_mark)
        await self.pause()
        return head

    async def write(self, checkpoint: Checkpoint) -> None:
        await self.pause()
        try:
            await super().write(checkpoint)
        except EngineStopped as error:
            raise ValueError("a checkpoint was refused by a disk that has no faults") from error
        await self.pause()


# -- dicts -----------------------------------------------------------------------------------------------------------


class Tray:
    """A `Disk` of dicts. What lies in them is immutable."""

    def __init__(self) -> None:
        self.is_there = False
        self.stands = Head()
        self.rows: dict[Key, Row] = {}
        self.pages: dict[int, list[Page]] = {}
        """By life, consecutive."""
        self.garbage: dict[tuple[str, int], None] = {}
        """Lives that are over, and not yet swept."""

    def store(self, restore: Restore, pause: Pause) -> KeptStore:
        return _TrayStore(self, restore, pause)

    def head(self) -> tuple[int, int]:
        return _stands_at(self.stands)

    def dump(self) -> Dump:
        return paged_dump(self.rows, self.pages)

    def drop(self) -> None:
        pass

    def packed(self, head: Head) -> bytes:
        """All of it as a file, with that head."""
        return pickle.dumps((head, self.rows, self.pages, self.garbage))

    def unpack(self, packed: bytes) -> None:
        """Be what another one was."""
        self.stands, self.rows, self.pages, self.garbage = pickle.loads(packed)  # noqa: S301 -- checksummed on its way


class _TrayStore:
    """See `Store` for what its methods promise."""

    def __init__(self, tray: Tray, restore: Restore, pause: Pause) -> None:
        self._tray, self._restore, self._pause = tray, restore, pause

    async def open(self) -> Head:
        tray = self._tray
        fresh = await self._restore(tray.stands if tray.is_there else None)
        if fresh is not None:
            tray.unpack(fresh.read_bytes())
        tray.is_there = True
        return tray.stands

    async def load(self, keys: Iterable[Key]) -> dict[Key, Row | None]:
        rows = self._tray.rows
        return {key: rows.get(key) for key in keys}

    async def read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        found: list[Page] = []
        size_bytes = 0
        for page in self._tray.pages.get(incarnation, ()):
            if page.end > position and size_bytes < bytes_max:
                found.append(after(page, position))
                size_bytes += len(found[-1].data)
        return found

    async def write(self, checkpoint: Checkpoint) -> None:
        await self._pause()
        assert not checkpoint.snapshots, "nobody folds sessions here"
        tray = self._tray
        for incarnation, added in checkpoint.pages:
            pages = tray.pages.get(incarnation)
            if pages and pages[-1].end != added[0].start:
                raise ValueError(f"pages of {incarnation} end at {pages[-1].end}, new ones begin at {added[0].start}")
        for incarnation, added in checkpoint.pages:
            tray.pages.setdefault(incarnation, []).extend(added)
        for key, row in checkpoint.rows.items():
            if row is not None:
                tray.rows[key] = row
            else:
                tray.rows.pop(key, None)
        tray.garbage.update(dict.fromkeys(checkpoint.ended))
        tray.stands = checkpoint.head
        await self._pause()

    async def sweep(self, steps_max: int = 16) -> bool:
        tray = self._tray
        for path, life in list(tray.garbage)[:steps_max]:
            tray.pages.pop(life, None)
            prefixes = owned_prefixes(path)
            for key in [key for key, row in tray.rows.items() if owner(row) == life and key.startswith(prefixes)]:
                del tray.rows[key]
            del tray.garbage[path, life]
        return bool(tray.garbage)

    async def overdue(self, now_ms: int, limit: int) -> list[tuple[str, int]]:
        found = [
            (row.deadline_ms, key, row.incarnation)
            for key, row in self._tray.rows.items()
            if isinstance(row, Stream) and row.deadline_ms is not None and row.deadline_ms <= now_ms
        ]
        return [(key[1:].decode(), incarnation) for _, key, incarnation in sorted(found)[:limit]]

    async def watched(self, letter: bytes, after: Key, limit: int) -> list[Key]:
        return [key for key in self._keys(letter, after) if is_watched(self._tray.rows[key])][:limit]

    async def keys(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        return self._keys(prefix, after)[:limit]

    def _keys(self, prefix: Key, after: Key) -> list[Key]:
        return sorted(key for key in self._tray.rows if key.startswith(prefix) and key > after)

    async def active(self, before: tuple[int, Key], limit: int) -> list[tuple[int, Key]]:
        return sorted((each for each in self._sessions() if each < before), reverse=True)[:limit]

    async def idle(self, after: tuple[int, Key], before_ms: int, limit: int) -> list[tuple[int, Key]]:
        return sorted(each for each in self._sessions() if after < each and each[0] < before_ms)[:limit]

    def _sessions(self) -> list[tuple[int, Key]]:
        return [(row.active_ms, key) for key, row in self._tray.rows.items() if isinstance(row, Session)]

    async def snapshot(self, path: str, incarnation: int) -> Snapshot | None:  # noqa: ARG002 -- there are none: see `write`
        return None

    async def copy(self, path: Path, change_mark: ChangeMark) -> Head:
        await self._pause()
        stands = self._tray.stands
        head = Head(stands.applied_index, stands.time_ms, change_mark(stands.mark))
        path.write_bytes(self._tray.packed(head))
        await self._pause()
        return stands

    async def aclose(self) -> None:
        pass
