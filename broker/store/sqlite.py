"""The SQLite store: one writer thread, reader threads with connections of their own, one file (or memory)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import msgspec

from broker.core.page import Page, after
from broker.core.state import Key, Row, decode_row
from broker.data_dir import DataDir
from broker.errors import Damaged, EngineStopped, Unavailable
from broker.limits import KIB
from broker.priority import stand_back
from broker.sqlite import (
    WAL_BYTES,
    Connect,
    Gate,
    WalMover,
    WalPieces,
    connect,
    is_definite,
    opening,
    prepare,
    transaction,
)
from broker.store import Checkpoint, Head, Snapshot
from broker.store.checkpoint import write_checkpoint
from broker.store.form import FORM
from broker.store.page_row import decode_page
from broker.store.sweep import is_swept, sweep_step
from broker.store.whole import ChangeMark, Copying, Restore, drop, head_of, replace

READERS: Final = 2
"""Reader threads: reads are short and wait for the disk, not for each other's computing."""
FILE_PAGE_BYTES: Final = 8 * KIB
SWEEP_BYTES: Final = 256 * KIB
"""What a step of sweeping adds to the WAL, about."""

Ts = TypeVarTuple("Ts")
T = TypeVar("T")


class SqliteStore:
    """A `Store`. Without a data folder it is in memory: the same code over one connection, used by one thread."""

    def __init__(
        self,
        data_dir: DataDir | None,
        *,
        connect: Connect = connect,
        wal_bytes: int = WAL_BYTES,
        restore: Restore | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._restore = restore
        self._connect = connect
        self._wal_bytes = wal_bytes
        self._wal: WalMover | None = None
        self._pieces: WalPieces | None = None
        self._gate = Gate()  # the WAL mover's, if there is one
        self._connection: sqlite3.Connection | None = None  # the writer's
        self._is_swept = False  # nothing is left of lives that have ended; the writer's too
        self._error: EngineStopped | None = None  # why nothing is written any more
        self._of_reader = threading.local()
        self._connections: list[sqlite3.Connection] = []  # to be closed in the end
        self._writer = ThreadPoolExecutor(1, "store", initializer=stand_back if data_dir else None)
        self._readers = ThreadPoolExecutor(READERS, "store reader") if data_dir else self._writer

    @classmethod
    def in_memory(cls) -> SqliteStore:
        """A store that is gone when it is closed."""
        return cls(None)

    async def open(self) -> Head:
        """As in `Store`. Its time does not depend on what is stored."""
        try:
            await self._in(self._writer, self._take)
            if self._restore is not None:
                fresh = await self._restore(await self._in(self._writer, self._look))
                if fresh is not None:
                    await self._in(self._writer, self._replace, fresh)
            return await self._in(self._writer, self._open)
        except BaseException:
            await self.aclose()
            raise

    async def load(self, keys: Iterable[Key]) -> dict[Key, Row | None]:
        """As in `Store`."""
        return await self._in(self._readers, self._load, tuple(keys))

    async def read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        """As in `Store`."""
        return await self._in(self._readers, self._read, incarnation, position, bytes_max)

    async def write(self, checkpoint: Checkpoint) -> None:
        """As in `Store`."""
        await self._in(self._writer, self._write_checkpoint, checkpoint)

    async def sweep(self, steps_max: int = 16) -> bool:
        """As in `Store`; checkpoints pass between two steps."""
        for _ in range(steps_max):
            if self._is_swept or not await self._in(self._writer, self._sweep):
                return False
        return True

    async def overdue(self, now_ms: int, limit: int) -> list[tuple[str, int]]:
        """As in `Store`."""
        return await self._in(self._readers, self._overdue, now_ms, limit)

    async def watched(self, letter: bytes, after: Key, limit: int) -> list[Key]:
        """As in `Store`."""
        return await self._in(self._readers, self._watched, letter, after, limit)

    async def keys(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        """As in `Store`."""
        return await self._in(self._readers, self._keys, prefix, after, limit)

    async def active(self, before: tuple[int, Key], limit: int) -> list[tuple[int, Key]]:
        """As in `Store`."""
        return await self._in(self._readers, self._active, before, limit)

    async def idle(self, after: tuple[int, Key], before_ms: int, limit: int) -> list[tuple[int, Key]]:
        """As in `Store`."""
        return await self._in(self._readers, self._idle, after, before_ms, limit)

    async def snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        """As in `Store`."""
        return await self._in(self._readers, self._snapshot, path, incarnation)

    async def copy(self, path: Path, change_mark: ChangeMark) -> Head:
        """Make a new file at `path` of what the last checkpoint left, and return where it stands.

        In a thread of its own, while everything goes on; the WAL is not moved meanwhile. Raises Unavailable.
        """
        copying = Copying(self._source, path, change_mark)
        try:
            return await asyncio.to_thread(copying.run)
        except asyncio.CancelledError:
            copying.interrupt()
            raise

    async def aclose(self) -> None:
        """As in `Store`. Gives the folder free."""
        await asyncio.to_thread(self._close)

    async def _in(self, threads: ThreadPoolExecutor, call: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call, *args)

    # -- in the writer's thread ----------------------------------------------------------------------------------

    def _take(self) -> None:
        if self._data_dir is not None:
            self._data_dir.take()

    def _look(self) -> Head | None:
        if self._data_dir is not None and not self._path.exists():
            drop(self._path)  # what a process left that died in `_replace`
            return None
        with opening(self._path), closing(self._connect(self._path)) as connection:
            return head_of(connection)

    def _replace(self, fresh: Path) -> None:
        if self._data_dir is not None:
            replace(self._path, fresh)
            return
        with closing(sqlite3.connect(fresh)) as source, closing(self._connect(self._path)) as connection:
            source.backup(connection)

    def _open(self) -> Head:
        path = self._path
        if self._data_dir is None:
            return self._open_file(path)[1]
        if self._data_dir.journal_path.exists() and not path.exists():
            raise Damaged(
                f"{path.name} is missing beside {self._data_dir.journal_path.name}", "restore it from a backup"
            )
        with opening(path):
            self._data_dir.uuid, head = self._open_file(path)
        self._pieces = WalPieces(path)
        self._wal = WalMover(path, self._connect, self._wal_bytes)
        self._gate = self._wal.gate
        return head

    def _open_file(self, path: Path) -> tuple[bytes, Head]:
        self._connection = connection = self._connected(path)
        insert = "INSERT INTO head (id, uuid, applied_index, time_ms, mark) VALUES (1, ?, 0, 0, x'')"
        prepare(connection, FORM, path.name, lambda: connection.execute(insert, (os.urandom(16),)), FILE_PAGE_BYTES)
        uuid, *head = connection.execute("SELECT uuid, applied_index, time_ms, mark FROM head").fetchone()
        return uuid, Head(*head)

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._is_swept = self._is_swept and not checkpoint.ended
        wrote = _ignored if self._pieces is None else self._pieces.wrote
        self._write(partial(write_checkpoint, checkpoint=checkpoint, wrote=wrote), _size_bytes(checkpoint))

    def _write(self, change: Callable[[sqlite3.Connection], None], size_bytes: int) -> None:
        """Run `change` in one transaction, and tell what became of it."""
        if self._error is not None:
            raise self._error
        try:
            with self._gate:
                with transaction(self._held):
                    change(self._held)
                if self._wal is not None:
                    self._wal.wrote(size_bytes)
        except Exception as error:  # of what is not known for certain, a bug of ours included, the fate is unknown
            if is_definite(error):
                raise self._refused(error) from error
            self._error = EngineStopped(f"the fate of a checkpoint is unknown: {error!r}")
            raise self._error from error

    def _refused(self, error: Exception) -> Unavailable:
        if self._wal is not None:
            self._wal.hurry()
        return Unavailable(f"the store cannot be written: {error}")

    def _sweep(self) -> bool:
        """One step; False when nothing is left."""
        if not is_swept(self._held):
            self._write(sweep_step, SWEEP_BYTES)
        self._is_swept = is_swept(self._held)
        return not self._is_swept

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        if self._wal is not None:
            self._wal.close()
        if self._pieces is not None:
            self._pieces.close()
        while self._connections:
            self._connections.pop().close()
        if self._data_dir is not None:
            self._data_dir.release()

    def _source(self) -> sqlite3.Connection:
        return self._connect(self._path)

    @property
    def _path(self) -> Path:
        return Path(":memory:") if self._data_dir is None else self._data_dir.store_path

    @property
    def _held(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the store is not open")
        return self._connection

    def _connected(self, path: Path) -> sqlite3.Connection:
        connection = self._connect(path)
        self._connections.append(connection)
        return connection

    # -- in a reader's thread ------------------------------------------------------------------------------------

    @contextmanager
    def _view(self) -> Iterator[sqlite3.Connection]:
        """One read transaction. Turns SQLite's errors into Unavailable."""
        connection = self._reader()
        try:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise Unavailable(f"the store cannot be read: {error}") from error

    def _reader(self) -> sqlite3.Connection:
        """The connection of this thread."""
        if self._data_dir is None:
            return self._held
        connection: sqlite3.Connection | None = getattr(self._of_reader, "connection", None)
        if connection is None:
            connection = self._of_reader.connection = self._connected(self._data_dir.store_path)
            connection.execute("PRAGMA query_only=ON")
        return connection

    def _load(self, keys: Iterable[Key]) -> dict[Key, Row | None]:
        with self._view() as view:
            found = {key: view.execute("SELECT value FROM row WHERE key = ?", (key,)).fetchone() for key in keys}
        return {key: value and _row(key, value[0]) for key, value in found.items()}

    def _read(self, incarnation: int, position: int, bytes_max: int) -> list[Page]:
        pages: list[Page] = []
        size_bytes, next_position = 0, position
        with self._view() as view:
            for start, end, data in view.execute(
                """SELECT start, "end", data FROM page WHERE incarnation = :life AND "end" > :position AND start >=
                (SELECT max(start) FROM page WHERE incarnation = :life AND start <= :position) ORDER BY start""",
                {"life": incarnation, "position": position},
            ):
                if pages and start != next_position:
                    raise Damaged(f"stored pages of incarnation {incarnation:016x} lack position {next_position}")
                page = after(decode_page(start, end, data), position)
                pages.append(page)
                size_bytes, next_position = size_bytes + len(page.data), end
                if size_bytes >= bytes_max:
                    break
        return pages

    def _overdue(self, now_ms: int, limit: int) -> list[tuple[str, int]]:
        with self._view() as view:
            rows = view.execute(
                "SELECT key, owner FROM row WHERE deadline_ms <= ? ORDER BY deadline_ms LIMIT ?", (now_ms, limit)
            ).fetchall()
        return [(_path(key), incarnation) for key, incarnation in rows]

    def _watched(self, letter: bytes, after: Key, limit: int) -> list[Key]:
        with self._view() as view:
            return [
                key
                for (key,) in view.execute(
                    "SELECT key FROM row WHERE is_watched AND key > ? AND key < ? ORDER BY key LIMIT ?",
                    (max(letter, after), letter + b"\xff", limit),
                )
            ]

    def _keys(self, prefix: Key, after: Key, limit: int) -> list[Key]:
        begin = max(prefix, after + b"\0")  # the first key after `after`
        with self._view() as view:
            return [
                key
                for (key,) in view.execute(
                    "SELECT key FROM row WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
                    (begin, prefix + b"\xff", limit),
                )
            ]

    def _active(self, before: tuple[int, Key], limit: int) -> list[tuple[int, Key]]:
        with self._view() as view:
            return view.execute(
                """SELECT active_ms, key FROM row WHERE active_ms IS NOT NULL AND (active_ms, key) < (?, ?)
                ORDER BY active_ms DESC, key DESC LIMIT ?""",
                (*before, limit),
            ).fetchall()

    def _idle(self, after: tuple[int, Key], before_ms: int, limit: int) -> list[tuple[int, Key]]:
        with self._view() as view:
            return view.execute(
                """SELECT active_ms, key FROM row WHERE active_ms IS NOT NULL AND (active_ms, key) > (?, ?)
                AND active_ms < ? ORDER BY active_ms, key LIMIT ?""",
                (*after, before_ms, limit),
            ).fetchall()

    def _snapshot(self, path: str, incarnation: int) -> Snapshot | None:
        with self._view() as view:
            stands = view.execute(
                "SELECT position FROM snapshot WHERE path = ? AND incarnation = ?", (path, incarnation)
            ).fetchone()
            if stands is None:
                return None
            messages = view.execute(
                "SELECT ordinal, message_id, data FROM snapshot_message WHERE incarnation = ? ORDER BY ordinal",
                (incarnation,),
            ).fetchall()
        return Snapshot(path, incarnation, stands[0], messages)


def _ignored(_: int) -> None:
    pass


def _row(key: Key, value: bytes) -> Row:
    try:
        return decode_row(value)
    except msgspec.MsgspecError as error:
        raise Damaged(f"the stored row {key!r} cannot be decoded: {error}") from error


def _path(key: Key) -> str:
    """The path of a stream's or session's key: all but its letter."""
    return key[1:].decode()


def _size_bytes(checkpoint: Checkpoint) -> int:
    """About what a checkpoint adds to the WAL: its data, and a page of the file for each row."""
    data_bytes = sum(len(page.data) for _, pages in checkpoint.pages for page in pages)
    snapshot_bytes = sum(len(data) for snapshot in checkpoint.snapshots for _, _, data in snapshot.messages)
    return data_bytes + snapshot_bytes + FILE_PAGE_BYTES * (len(checkpoint.rows) + len(checkpoint.pages))
