"""What every sink promises, on each database: whole transactions, fences, versions."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from consumer.materialize.postgres import PostgresSink
from consumer.materialize.rows import Change, message_row
from consumer.materialize.schema import MIGRATIONS, Migration
from consumer.materialize.sink import Fenced, Sink, SinkRefused, SinkUnavailable, WrongSchema
from consumer.session import SessionFold
from consumer.session_list import SessionSummary
from tests.consumer.materialize.databases import Database, PostgresDatabase, kept
from tests.consumer.records import answer, whole

OLDER = (
    Migration(
        1,
        tuple(
            statement.replace("missing {json},", "").replace("fold_state", "state")
            for statement in MIGRATIONS[0].statements
        ),
    ),
)
SINCE = (
    Migration(
        2,
        (
            "ALTER TABLE streamfold_messages ADD COLUMN missing {json}",
            "ALTER TABLE streamfold_messages RENAME COLUMN state TO fold_state",
        ),
    ),
)


@asynccontextmanager
async def opened(database: Database, migrations: Sequence[Migration] = MIGRATIONS) -> AsyncIterator[Sink]:
    sink = database.sink(migrations)
    try:
        await sink.open()
        yield sink
    finally:
        await sink.aclose()


def change(offset: str, next_offset: str, *message_ids: str, replaces: bool = False) -> Change:
    fold = SessionFold()
    for message_id in message_ids:
        for record in (whole(message_id), *answer(f"g-{message_id}", f"a-{message_id}", "Hel", "lo")):
            fold.add(record)
    session = SessionSummary("s", "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.000Z", "idle", next_offset)
    rows = [message_row("s", fold, item["id"]) for item in fold.items()]
    return Change(session, "idle", offset, next_offset, rows, replaces)


async def ids(database: Database) -> dict[str, list[str]]:
    return {session_id: [item["id"] for item in found.items] for session_id, found in (await kept(database)).items()}


async def test_what_was_written_is_claimed_as_it_was(database: Database) -> None:
    written = change("-1", "7", "m")
    async with opened(database) as sink:
        assert (await sink.claim("s")).next_offset == "-1"
        await sink.write(written)
    async with opened(database) as sink:
        stored = await sink.claim("s")
        assert await sink.offsets(["s", "other"]) == {"s": "7"}
        assert (await sink.session_ids("", 10), await sink.session_ids("s", 10)) == (["s"], [])
    assert stored.next_offset == "7"
    assert sorted(stored.states) == [(row.position, row.message_id, row.fold_state) for row in written.messages]


async def test_a_write_from_elsewhere_than_where_it_stands_changes_nothing(database: Database) -> None:
    """A commit whose answer was lost: the same write again must not be taken for the next one."""
    async with opened(database) as sink:
        await sink.claim("s")
        await sink.write(change("-1", "7", "m"))
        with pytest.raises(SinkUnavailable):
            await sink.write(change("-1", "7", "m", "n"))
    assert await ids(database) == {"s": ["m", "a-m"]}


async def test_a_write_that_fails_in_its_middle_leaves_nothing(database: Database) -> None:
    async with opened(database) as sink:
        await sink.claim("s")
        await sink.write(change("-1", "7", "m"))
        before = await kept(database)
        with pytest.raises(SinkRefused):  # another message at a position that is taken
            await sink.write(change("7", "9", "n"))
        assert await kept(database) == before


async def test_another_life_takes_the_place_of_the_rows(database: Database) -> None:
    async with opened(database) as sink:
        await sink.claim("s")
        await sink.write(change("-1", "7", "m", "n"))
        await sink.write(change("7", "3", "o", replaces=True))
    assert await ids(database) == {"s": ["o", "a-o"]}


async def test_who_started_earlier_is_kept_out(database: Database) -> None:
    """Also of what it had claimed before, and of deleting it."""
    async with opened(database) as first, opened(database) as second:
        await first.claim("s")
        await first.write(change("-1", "7", "m"))
        await second.claim("s")
        for attempt in (lambda: first.write(change("7", "9", "m", "n")), lambda: first.claim("s")):
            with pytest.raises(Fenced, match="epoch 2"):
                await attempt()
        with pytest.raises(Fenced):
            await first.delete("s")
        await second.write(change("7", "9", "m", "o"))
        await first.claim("another")
    assert await ids(database) == {"another": [], "s": ["m", "a-m", "o", "a-o"]}


async def test_a_deleted_session_is_gone_with_its_rows(database: Database) -> None:
    async with opened(database) as sink:
        await sink.claim("s")
        await sink.write(change("-1", "7", "m"))
        await sink.delete("s")
        await sink.delete("s")
    assert await ids(database) == {}


async def test_an_older_schema_is_brought_up_to_date_with_its_rows(database: Database) -> None:
    """An older version that is made up: without one column, and with another name for a second."""
    async with opened(database, OLDER):
        await database.execute(
            "INSERT INTO streamfold_messages (session_id, message_id, position, role, status, text, state)"
            " VALUES ('s', 'm', 0, 'user', 'complete', 'old', '')"
        )
    async with opened(database, (*OLDER, *SINCE)):
        pass
    assert await database.query("SELECT text, missing FROM streamfold_messages") == [{"text": "old", "missing": None}]
    versions = await database.query("SELECT version FROM streamfold_schema ORDER BY version")
    assert [row["version"] for row in versions] == [1, 2]


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(database: Database) -> None:
    async with opened(database):
        pass
    broken = Migration(2, ("ALTER TABLE streamfold_messages ADD COLUMN more TEXT", "ALTER TABLE missing ADD x TEXT"))
    sink = database.sink((*MIGRATIONS, broken))
    with pytest.raises(SinkRefused):
        await sink.open()
    await sink.aclose()
    assert [row["version"] for row in await database.query("SELECT version FROM streamfold_schema")] == [1]
    async with opened(database):
        assert await database.query("SELECT * FROM streamfold_messages") == []


async def test_a_newer_schema_is_refused(database: Database) -> None:
    async with opened(database, (*MIGRATIONS, Migration(2, ()))):
        pass
    sink = database.sink()
    with pytest.raises(WrongSchema, match="version 2"):
        await sink.open()
    await sink.aclose()
    assert (await database.query("SELECT epoch FROM streamfold_epoch"))[0]["epoch"] == 1


async def test_two_that_start_at_once_make_the_tables_once(database: Database) -> None:
    sinks = [database.sink() for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for sink in sinks:
            tasks.start_soon(sink.open)
    for sink in sinks:
        await sink.aclose()
    assert (await database.query("SELECT epoch FROM streamfold_epoch"))[0]["epoch"] == len(sinks)


@pytest.mark.parametrize(("database", "is_pooled"), [("postgres", False), ("pgbouncer", True)], indirect=["database"])
async def test_a_pooler_is_found_out_unless_somebody_says(database: PostgresDatabase, *, is_pooled: bool) -> None:
    found, said = PostgresSink(database.dsn), PostgresSink(database.dsn, pgbouncer=not is_pooled)
    for sink in (found, said):
        await sink.open()
        await sink.aclose()
    assert (found.has_pooler, said.has_pooler) == (is_pooled, not is_pooled)
