"""Where a reader goes on after a restart: the port, and stores in memory, in a file and in SQLite.

What a stored offset means is the caller's to decide, and follows from when it is saved:

- *After* what was made of a batch is durable, as `Reader.follow(stream, offsets=…)` does: every record is handled at
  least once. A crash between the two hands out the batches since the last save once more, never others, never with a
  hole.
- *In one transaction* with it (`SqliteOffsets.put`, or the offset in a column of your own): exactly once.
- *Before* it: at most once. Nothing here does so.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal, Protocol, Self, TypeVar

import anyio
import anyio.to_thread
import msgspec

from consumer.errors import OffsetsFailed

__all__ = ["FileOffsets", "MemoryOffsets", "OffsetStore", "SqliteOffsets"]

T = TypeVar("T")

_BUSY_S_MAX: Final = 5.0
"""How long SQLite waits for another connection's transaction. As Python's own default."""


class OffsetStore(Protocol):
    """Keeps one offset per stream for one reader: two devices, or two purposes, have a store each.

    A stream is named by the path of its URL as the broker has it, escaped: `/v1/stream/sessions/s`. Any number of
    followers of one process may share a store. Every method raises OffsetsFailed if the store cannot be used; a save
    that raised may have happened or not.
    """

    async def load(self, stream: str) -> str | None:
        """The offset that was saved last; None if none was, or it was forgotten."""
        ...

    async def save(self, stream: str, offset: str) -> None:
        """Return when the offset is kept as safely as this store keeps anything."""
        ...

    async def forget(self, stream: str) -> None:
        """Drop what is known of a stream, to begin at its start: after Gone, or when it is not followed any more."""
        ...


class MemoryOffsets:
    """Survives the reader, not the process."""

    def __init__(self) -> None:
        self._offsets: dict[str, str] = {}

    async def load(self, stream: str) -> str | None:
        """See OffsetStore."""
        return self._offsets.get(stream)

    async def save(self, stream: str, offset: str) -> None:
        """See OffsetStore."""
        self._offsets[stream] = offset

    async def forget(self, stream: str) -> None:
        """See OffsetStore."""
        self._offsets.pop(stream, None)


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """The form of the file. Another meaning of a field is another version."""

    version: Literal[1]
    offsets: dict[str, str]


class FileOffsets:
    """Survives a crash and a loss of power: one JSON file, replaced whole at every save, after an fsync.

    For a handful of streams; with thousands SQLite writes less. One process at a time: of two, the last one wins. A
    file that is not there is a store without offsets; its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._offsets: dict[str, str] | None = None  # as the file has them; None before it was read
        self._lock = anyio.Lock()

    async def load(self, stream: str) -> str | None:
        """See OffsetStore."""
        async with self._opened() as offsets:
            return offsets.get(stream)

    async def save(self, stream: str, offset: str) -> None:
        """See OffsetStore."""
        async with self._opened() as offsets:
            if offsets.get(stream) != offset:
                await self._write({**offsets, stream: offset})

    async def forget(self, stream: str) -> None:
        """See OffsetStore."""
        async with self._opened() as offsets:
            if stream in offsets:
                await self._write({name: offset for name, offset in offsets.items() if name != stream})

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[dict[str, str], None]:
        async with self._lock:
            if self._offsets is None:
                self._offsets = await _in_thread(partial(_read, self._path))
            yield self._offsets

    async def _write(self, offsets: dict[str, str]) -> None:
        await _in_thread(partial(_replace, self._path, msgspec.json.encode(_Stored(1, offsets))))
        self._offsets = offsets


class SqliteOffsets:
    """Survives a crash and a loss of power: a table `streamfold_offsets` in a SQLite file, made when it is missing.

    The file may hold an application's own tables as well; `put` then saves an offset in the transaction that stores
    what was made of the records. `async with SqliteOffsets(path) as offsets:`, or call `aclose` in the end.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._connection: sqlite3.Connection | None = None
        self._lock = anyio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file; another use opens it again."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if self._connection is not None:
                    await _in_thread(self._connection.close)
                    self._connection = None

    async def load(self, stream: str) -> str | None:
        """See OffsetStore."""
        query = "SELECT next_offset FROM streamfold_offsets WHERE stream = ?"
        row = await self._run(lambda connection: connection.execute(query, (stream,)).fetchone())
        return None if row is None else str(row[0])

    async def save(self, stream: str, offset: str) -> None:
        """See OffsetStore."""
        await self._run(lambda connection: self.put(connection, stream, offset))

    async def forget(self, stream: str) -> None:
        """See OffsetStore."""
        statement = "DELETE FROM streamfold_offsets WHERE stream = ?"
        await self._run(lambda connection: connection.execute(statement, (stream,)))

    @staticmethod
    def put(connection: sqlite3.Connection, stream: str, offset: str) -> None:
        """Save an offset in a transaction of yours: it is kept exactly if the transaction is.

        `connection` is one to the same file, `stream` the name under which the reader looks: `Reader.name_of`. Raises
        sqlite3.Error.
        """
        _make_table(connection)
        connection.execute(
            "INSERT INTO streamfold_offsets VALUES (?, ?)"
            " ON CONFLICT (stream) DO UPDATE SET next_offset = excluded.next_offset",
            (stream, offset),
        )

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async with self._lock:
            if self._connection is None:
                self._connection = await _in_thread(partial(_connect, self._path))
            return await _in_thread(partial(work, self._connection))


async def _in_thread(work: Callable[[], T]) -> T:
    """Run to its end, also when the caller is cancelled: half a save must not be overtaken by the next."""
    try:
        return await anyio.to_thread.run_sync(work)
    except (OSError, sqlite3.Error, msgspec.DecodeError) as error:
        raise OffsetsFailed(f"offsets could not be kept: {type(error).__name__}: {error}") from error


def _read(path: Path) -> dict[str, str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    return msgspec.json.decode(content, type=_Stored).offsets


def _replace(path: Path, content: bytes) -> None:
    """Put the content in the place of the file: a crash at any moment leaves the old or the new one, whole."""
    beside = path.with_name(f"{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened; NTFS keeps renames in its own journal
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _connect(path: Path) -> sqlite3.Connection:
    # Every call comes from some thread of a pool, one at a time.
    connection = sqlite3.connect(path, timeout=_BUSY_S_MAX, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        _make_table(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_table(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS streamfold_offsets (stream TEXT PRIMARY KEY, next_offset TEXT NOT NULL)"
    )
