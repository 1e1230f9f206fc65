"""The database goes away in the middle, and comes back: nothing is lost."""

import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from consumer import Reader
from consumer.materialize.materializing import Materializing
from consumer.materialize.sink import Sink
from consumer.materialize.sqlite import SqliteSink
from producer import Producer
from tests.consumer.materialize.databases import Database, SqliteDatabase
from tests.consumer.materialize.test_materializing import answer, until_equal
from tests.eventually import eventually
from tests.live import Broker
from tests.postgres import Postgres


@asynccontextmanager
async def materializing(reader: Reader, sink: Sink) -> AsyncIterator[Materializing]:
    await sink.open()
    try:
        async with anyio.create_task_group() as tasks:
            work = Materializing(reader, sink)
            tasks.start_soon(work.run)
            yield work
            tasks.cancel_scope.cancel()
    finally:
        await sink.aclose()


async def until_away(work: Materializing) -> None:
    before = work.outages

    async def has_failed() -> bool:
        return work.outages > before

    await eventually(has_failed)


@pytest.mark.parametrize("database", ["postgres", "pgbouncer"], indirect=True)
async def test_postgres_crashes_and_comes_back(database: Database, postgres: Postgres, broker: Broker) -> None:
    """SIGQUIT: it ends at once, in the middle of its transactions, and recovers when it starts again."""
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "a", "g1", "before")
        async with materializing(reader, database.sink()) as work:
            await until_equal(database, reader, "a")
            await anyio.to_thread.run_sync(postgres.stop, signal.SIGQUIT)
            try:
                await answer(producer, "a", "g2", "meanwhile")
                await answer(producer, "b", "g1", "meanwhile")
                await until_away(work)
            finally:
                with anyio.CancelScope(
                    shield=True
                ):  # the server is there for the next test, whatever became of this one
                    await anyio.to_thread.run_sync(postgres.start)
            await until_equal(database, reader, "a", "b")


async def test_a_locked_file_is_waited_for(tmp_path: Path, broker: Broker) -> None:
    database = SqliteDatabase(tmp_path / "rows.sqlite")
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "a", "g1", "before")
        async with materializing(reader, SqliteSink(database.path, busy_s_max=0.05)) as work:
            await until_equal(database, reader, "a")
            other = sqlite3.connect(database.path, isolation_level=None)
            try:
                other.execute("BEGIN EXCLUSIVE")
                await answer(producer, "a", "g2", "meanwhile")
                await answer(producer, "b", "g1", "meanwhile")
                await until_away(work)
            finally:
                other.close()
            await until_equal(database, reader, "a", "b")


async def test_a_state_that_cannot_be_gone_on_with_is_folded_anew(tmp_path: Path, broker: Broker) -> None:
    """As an older or a newer version may have stored it."""
    database = SqliteDatabase(tmp_path / "rows.sqlite")
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "a", "g1", "before")
        async with materializing(reader, database.sink()):
            await until_equal(database, reader, "a")
        await database.execute("UPDATE streamfold_messages SET fold_state = 'of another version'")
        await answer(producer, "a", "g2", "after")
        async with materializing(reader, database.sink()):
            await until_equal(database, reader, "a")
