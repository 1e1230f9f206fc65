"""Sessions and messages in PostgreSQL, directly or behind a pooler such as PgBouncer.

A pooler in transaction mode gives every transaction any of its connections to the server, so nothing may outlive a
transaction: no prepared statement, no session lock, no setting. The statements here are prepared, unnamed, within the
transaction that uses them, the only lock is one of the transaction, and nothing is set. So all works alike in every
mode; what is to be found out is only whether the driver may keep prepared statements between transactions.

A pooler is seen by the process id of the server: a client is told one when it connects, for cancelling, and
PgBouncer, as other poolers, tells one of its own making, while `pg_backend_pid()` is the server's. One in session mode
is seen as well; that costs a little speed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import asyncpg
import msgspec

from consumer.materialize import schema
from consumer.materialize.rows import Change, MessageRow
from consumer.materialize.schema import MIGRATIONS, POSTGRES, Migration
from consumer.materialize.sink import Fenced, SinkRefused, SinkUnavailable, Stored

__all__ = ["PostgresSink"]

log = logging.getLogger("streamfold.materialize")

CONNECTIONS_MAX: Final = 5
"""One for each session that is written at the same time, and one for looking."""
CONNECT_S_MAX: Final = 10.0
STATEMENT_S_MAX: Final = 30.0
"""Silence after which a statement counts as lost. A pooler whose server is away holds statements back for longer."""
CLOSE_S_MAX: Final = 3.0
STATEMENTS_KEPT: Final = 100
"""As the driver has it."""
_MIGRATION_LOCK: Final = 0x73747265616D66  # "streamf": two that start at the same time migrate one after the other

_PASSING: Final = ("08", "40", "53", "55", "57", "58", "25006")
"""SQLSTATEs, or their classes, of what may succeed later: connection, rollback, resources, locks, shutdown, system;
and a server that is read-only, as one is for a moment that takes over from another."""


class PostgresSink:
    """See Sink. `pgbouncer` says whether a pooler is between; None finds out.

    Raises ValueError if the DSN cannot be one.
    """

    def __init__(
        self, dsn: str, *, pgbouncer: bool | None = None, migrations: Sequence[Migration] = MIGRATIONS
    ) -> None:
        _check(dsn)
        self._dsn = dsn
        self.has_pooler = pgbouncer
        """None until it has been found out."""
        self._migrations = migrations
        self._pool: Any = None
        self._epoch = 0

    async def open(self) -> None:
        """See Sink."""
        with _ours():
            if self.has_pooler is None:
                self.has_pooler = await _is_behind_pooler(self._dsn)
                log.info("PostgreSQL %s", "is behind a pooler" if self.has_pooler else "is connected to directly")
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=CONNECTIONS_MAX,
                timeout=CONNECT_S_MAX,
                command_timeout=STATEMENT_S_MAX,
                statement_cache_size=0 if self.has_pooler else STATEMENTS_KEPT,
                reset=_leave,
            )
        async with self._transaction() as connection:
            self._epoch = await _open(connection, self._migrations)

    async def claim(self, session_id: str) -> Stored:
        """See Sink."""
        async with self._transaction() as connection:
            return await _claim(connection, session_id, self._epoch)

    async def write(self, change: Change) -> None:
        """See Sink."""
        async with self._transaction() as connection:
            await _write(connection, change, self._epoch)

    async def delete(self, session_id: str) -> None:
        """See Sink."""
        async with self._transaction() as connection:
            if await connection.fetchrow(POSTGRES.sql(schema.READ_SESSION), session_id) is not None:
                await _claim(connection, session_id, self._epoch)
                await connection.execute(POSTGRES.sql(schema.DELETE_MESSAGES), session_id)
                await connection.execute(POSTGRES.sql(schema.DELETE_SESSION), session_id, self._epoch)

    async def offsets(self, session_ids: Sequence[str]) -> dict[str, str]:
        """See Sink."""
        query = "SELECT session_id, next_offset FROM streamfold_sessions WHERE session_id = ANY($1::text[])"
        async with self._transaction() as connection:
            return {row[0]: row[1] for row in await connection.fetch(query, list(session_ids))}

    async def session_ids(self, after: str, limit: int) -> list[str]:
        """See Sink."""
        async with self._transaction() as connection:
            return [str(row[0]) for row in await connection.fetch(POSTGRES.sql(schema.READ_IDS), after, limit)]

    async def aclose(self) -> None:
        """See Sink."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await pool.close()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pool.terminate()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        """A connection in a transaction: everything is in one, as a pooler then leaves the connection alone."""
        with _ours():
            async with self._pool.acquire(timeout=CONNECT_S_MAX) as connection, connection.transaction():
                yield connection


@contextmanager
def _ours() -> Iterator[None]:
    """The driver's errors as ours."""
    try:
        yield
    except (OSError, TimeoutError, asyncpg.InterfaceError) as error:
        raise SinkUnavailable(f"PostgreSQL: {error or type(error).__name__}") from error
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state.startswith(_PASSING):
            raise SinkUnavailable(f"PostgreSQL: {error} ({state})") from error
        raise SinkRefused(f"PostgreSQL: {error} ({state})") from error


def _check(dsn: str) -> None:
    parts = urlsplit(dsn)
    _ = parts.port  # raises ValueError if it is none


async def _leave(_connection: Any) -> None:
    """What is done to a connection between two transactions: nothing outlives one that had to be reset."""


async def _is_behind_pooler(dsn: str) -> bool:
    connection = await asyncpg.connect(
        dsn, timeout=CONNECT_S_MAX, command_timeout=STATEMENT_S_MAX, statement_cache_size=0
    )
    try:
        async with connection.transaction():
            return bool(await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid())
    finally:
        await connection.close(timeout=CLOSE_S_MAX)


# -- transactions ----------------------------------------------------------------------------------------------------


async def _open(connection: Any, migrations: Sequence[Migration]) -> int:
    await connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")  # goes with the transaction
    await connection.execute(POSTGRES.ddl(schema.MAKE_VERSIONS))
    version = await connection.fetchval(schema.READ_VERSION)
    schema.check_version(version, migrations)
    for migration in migrations:
        if migration.version > version:
            for statement in migration.statements:
                await connection.execute(POSTGRES.ddl(statement))
            await connection.execute(POSTGRES.sql(schema.NOTE_VERSION), migration.version)
    await connection.execute(schema.RAISE_EPOCH)
    return int(await connection.fetchval(schema.READ_EPOCH))


async def _claim(connection: Any, session_id: str, epoch: int) -> Stored:
    await connection.execute(POSTGRES.sql(schema.CLAIM), session_id, epoch)
    claimed_by, next_offset = await connection.fetchrow(POSTGRES.sql(schema.READ_SESSION), session_id)
    if claimed_by != epoch:
        raise Fenced(session_id, claimed_by)
    rows = await connection.fetch(POSTGRES.sql(schema.READ_STATES), session_id)
    return Stored(next_offset, [(position, message_id, bytes(state)) for position, message_id, state in rows])


async def _write(connection: Any, change: Change, epoch: int) -> None:
    session = change.session
    moved = await connection.execute(
        POSTGRES.sql(schema.MOVE_SESSION),
        change.status,
        change.metadata,
        _time(session.created_at),
        _time(session.last_activity_at),
        change.next_offset,
        session.session_id,
        epoch,
        change.offset,
    )
    if moved != "UPDATE 1":
        await _claim(connection, session.session_id, epoch)
        raise SinkUnavailable(f"session {session.session_id} does not stand at {change.offset}")
    if change.replaces:
        await connection.execute(POSTGRES.sql(schema.DELETE_MESSAGES), session.session_id)
    await connection.executemany(POSTGRES.sql(schema.PUT_MESSAGE), [_values(row) for row in change.messages])


def _values(row: MessageRow) -> tuple[Any, ...]:
    timed = msgspec.structs.asdict(row)
    return tuple(_time(value) if name in schema.TIMES else value for name, value in timed.items())


def _time(text: str | None) -> datetime | None:
    """What an import brought along may be no time; it has none then."""
    try:
        return None if text is None else datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        return None
