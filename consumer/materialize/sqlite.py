"""Sessions and messages in a SQLite file, which may hold an application's own tables as well."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread
import msgspec

from consumer.materialize import schema
from consumer.materialize.rows import Change
from consumer.materialize.schema import MIGRATIONS, SQLITE, Migration
from consumer.materialize.sink import Fenced, SinkRefused, SinkUnavailable, Stored

__all__ = ["SqliteSink"]

T = TypeVar("T")

_BUSY_S_MAX: Final = 5.0
"""As Python's own default."""
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
    }
)
_PRIMARY: Final = 0xFF  # the lower byte of an extended result code


class SqliteSink:
    """See Sink. The file is made if its folder is there; its journal mode is left as it is, every commit is synced.

    `busy_s_max` is how long another connection's transaction is waited for before this counts as an outage.
    """

    def __init__(
        self, path: Path, *, migrations: Sequence[Migration] = MIGRATIONS, busy_s_max: float = _BUSY_S_MAX
    ) -> None:
        self._path = path
        self._busy_s_max = busy_s_max
        self._migrations = migrations
        self._connection: sqlite3.Connection | None = None
        self._lock = anyio.Lock()
        self._epoch = 0

    async def open(self) -> None:
        """See Sink."""
        self._epoch = await self._transaction(partial(_open, migrations=self._migrations))

    async def claim(self, session_id: str) -> Stored:
        """See Sink."""
        return await self._transaction(partial(_claim, session_id=session_id, epoch=self._epoch))

    async def write(self, change: Change) -> None:
        """See Sink."""
        await self._transaction(partial(_write, change=change, epoch=self._epoch))

    async def delete(self, session_id: str) -> None:
        """See Sink."""
        await self._transaction(partial(_delete, session_id=session_id, epoch=self._epoch))

    async def offsets(self, session_ids: Sequence[str]) -> dict[str, str]:
        """See Sink."""
        return await self._transaction(partial(_offsets, session_ids=session_ids))

    async def session_ids(self, after: str, limit: int) -> list[str]:
        """See Sink."""

        def read(connection: sqlite3.Connection) -> list[str]:
            return [str(row[0]) for row in connection.execute(schema.READ_IDS, (after, limit))]

        return await self._transaction(read)

    async def aclose(self) -> None:
        """See Sink."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                connection, self._connection = self._connection, None
                if connection is not None:
                    await anyio.to_thread.run_sync(connection.close)

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run to its end, also when the caller is cancelled: half a transaction must not stay open."""
        async with self._lock:
            return await anyio.to_thread.run_sync(partial(self._in_transaction, work))

    def _in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with _ours(self._path):
            if self._connection is None:
                self._connection = _connect(self._path, self._busy_s_max)
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    """Its errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        text = f"{path}: {error}"
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & _PRIMARY in _PASSING:
            raise SinkUnavailable(text) from error
        raise SinkRefused(text) from error


def _connect(path: Path, busy_s_max: float) -> sqlite3.Connection:
    # Every call comes from some thread of a pool, one at a time.
    connection = sqlite3.connect(path, timeout=busy_s_max, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


# -- transactions ----------------------------------------------------------------------------------------------------


def _open(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> int:
    connection.execute(SQLITE.ddl(schema.MAKE_VERSIONS))
    (version,) = connection.execute(schema.READ_VERSION).fetchone()
    schema.check_version(version, migrations)
    for migration in migrations:
        if migration.version > version:
            for statement in migration.statements:
                connection.execute(SQLITE.ddl(statement))
            connection.execute(schema.NOTE_VERSION, (migration.version,))
    connection.execute(schema.RAISE_EPOCH)
    (epoch,) = connection.execute(schema.READ_EPOCH).fetchone()
    return int(epoch)


def _claim(connection: sqlite3.Connection, session_id: str, epoch: int) -> Stored:
    connection.execute(schema.CLAIM, (session_id, epoch))
    claimed_by, next_offset = connection.execute(schema.READ_SESSION, (session_id,)).fetchone()
    if claimed_by != epoch:
        raise Fenced(session_id, claimed_by)
    return Stored(next_offset, connection.execute(schema.READ_STATES, (session_id,)).fetchall())


def _write(connection: sqlite3.Connection, change: Change, epoch: int) -> None:
    session = change.session
    moved = connection.execute(
        schema.MOVE_SESSION,
        (
            change.status,
            change.metadata,
            session.created_at,
            session.last_activity_at,
            change.next_offset,
            session.session_id,
            epoch,
            change.offset,
        ),
    )
    if moved.rowcount != 1:
        _claim(connection, session.session_id, epoch)
        raise SinkUnavailable(f"session {session.session_id} does not stand at {change.offset}")
    if change.replaces:
        connection.execute(schema.DELETE_MESSAGES, (session.session_id,))
    connection.executemany(schema.PUT_MESSAGE, [msgspec.structs.astuple(row) for row in change.messages])


def _delete(connection: sqlite3.Connection, session_id: str, epoch: int) -> None:
    if connection.execute(schema.READ_SESSION, (session_id,)).fetchone() is not None:
        _claim(connection, session_id, epoch)
        connection.execute(schema.DELETE_MESSAGES, (session_id,))
        connection.execute(schema.DELETE_SESSION, (session_id, epoch))


def _offsets(connection: sqlite3.Connection, session_ids: Sequence[str]) -> dict[str, str]:
    found = {known: connection.execute(schema.READ_OFFSET, (known,)).fetchone() for known in session_ids}
    return {known: row[0] for known, row in found.items() if row is not None}
