"""Databases that sessions are materialized into, and what they have, read without our own code for that."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from consumer.materialize.postgres import PostgresSink
from consumer.materialize.schema import MIGRATIONS, Migration
from consumer.materialize.sink import Sink
from consumer.materialize.sqlite import SqliteSink

NAMES = {"generation_id": "generationId", "created_at": "createdAt", "ended_at": "endedAt"}
JSON_COLUMNS = ("message", "error", "usage", "metadata", "missing")
NOT_IN_ITEMS = ("session_id", "position", "text", "fold_state")


class Database(Protocol):
    """One empty database."""

    @property
    def dsn(self) -> str:
        """As `--to` takes it."""
        ...

    def sink(self, migrations: Sequence[Migration] = MIGRATIONS) -> Sink: ...

    async def query(self, statement: str) -> list[dict[str, Any]]:
        """What a client of the user's own gets, all of it from one moment."""
        ...

    async def execute(self, statement: str) -> None: ...


@dataclass(frozen=True)
class SqliteDatabase:
    path: Path

    @property
    def dsn(self) -> str:
        return f"sqlite:///{self.path}"

    def sink(self, migrations: Sequence[Migration] = MIGRATIONS) -> Sink:
        return SqliteSink(self.path, migrations=migrations)

    async def query(self, statement: str) -> list[dict[str, Any]]:
        connection = sqlite3.connect(self.path)
        try:
            cursor = connection.execute(statement)
            return [dict(zip([column[0] for column in cursor.description or ()], row, strict=True)) for row in cursor]
        finally:
            connection.close()

    async def execute(self, statement: str) -> None:
        connection = sqlite3.connect(self.path)
        try:
            connection.execute(statement)
            connection.commit()
        finally:
            connection.close()


@dataclass(frozen=True)
class PostgresDatabase:
    dsn: str
    direct_dsn: str

    def sink(self, migrations: Sequence[Migration] = MIGRATIONS) -> Sink:
        return PostgresSink(self.dsn, migrations=migrations)

    async def query(self, statement: str) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.direct_dsn)
        try:
            return [dict(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    async def execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.direct_dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@dataclass(frozen=True)
class Kept:
    """A session as the database has it: `items` as `GET /messages` tells them."""

    next_offset: str
    items: list[dict[str, Any]]


async def kept(database: Database) -> dict[str, Kept]:
    """All sessions in it, each as of one moment."""
    rows = await database.query(
        "SELECT s.session_id AS of_session, s.next_offset, m.* FROM streamfold_sessions s"
        " LEFT JOIN streamfold_messages m ON m.session_id = s.session_id ORDER BY s.session_id, m.position"
    )
    found: dict[str, Kept] = {}
    for row in rows:
        session = found.setdefault(row["of_session"], Kept(row["next_offset"], []))
        if row["message_id"] is not None:
            assert row["position"] == len(session.items)
            session.items.append(item(row))
    return found


def item(row: dict[str, Any]) -> dict[str, Any]:
    facts = {"id": row["message_id"]}
    for column, value in row.items():
        if value is None or column in (*NOT_IN_ITEMS, "message_id", "of_session", "next_offset"):
            continue
        facts[NAMES.get(column, column)] = plain(column, value)
    return {"message": None, **facts}


def plain(column: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.loads(value) if column in JSON_COLUMNS else value
