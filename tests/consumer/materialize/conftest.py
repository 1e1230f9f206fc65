"""The databases: SQLite, PostgreSQL, and PostgreSQL behind a PgBouncer in transaction mode."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

from tests.consumer.materialize.databases import Database, PostgresDatabase, SqliteDatabase
from tests.live import Broker
from tests.postgres import PgBouncer, Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests, which leave it running; each has a database of its own."""
    with TemporaryDirectory(prefix="streamfold-postgres-") as folder, Postgres(Path(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    with TemporaryDirectory(prefix="streamfold-pgbouncer-") as folder, PgBouncer(Path(folder), postgres) as server:
        yield server


async def a_postgres_database(postgres: Postgres) -> str:
    name = f"t{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres.dsn("postgres"))
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return name


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty one of each kind."""
    if request.param == "sqlite":
        return SqliteDatabase(tmp_path / "rows.sqlite")
    postgres: Postgres = request.getfixturevalue("postgres")
    name = await a_postgres_database(postgres)
    server = postgres if request.param == "postgres" else request.getfixturevalue("pgbouncer")
    return PostgresDatabase(server.dsn(name), postgres.dsn(name))


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "broker") as running:
        yield running
