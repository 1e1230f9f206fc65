"""`streamfold materialize` against real brokers and databases: what it keeps is what the broker tells."""

import random
import sqlite3
from contextlib import AsyncExitStack
from functools import partial

import anyio
import asyncpg
import httpx
import pytest

from consumer import Reader
from producer import Producer
from tests.consumer.materialize.databases import Database, Kept, kept
from tests.consumer.materialize.life import Life
from tests.eventually import eventually
from tests.live import Broker

KILLS = 6
WRITERS = 3
# The same server with a pooler before it is the harder case; every sink is held to the same promises in test_sinks.py.
without_direct = pytest.mark.parametrize("database", ["sqlite", "pgbouncer"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


async def told(reader: Reader, session_id: str, at: str | None = None) -> Kept:
    snapshot = await reader.messages(session_id, at=at)
    return Kept(snapshot.offset, snapshot.messages)


async def until_equal(database: Database, reader: Reader, *session_ids: str) -> None:
    """Return when the database has these sessions, and no others, as the broker has them."""
    found: dict[str, Kept] = {}

    async def is_equal() -> bool:
        nonlocal found
        if not await _has_tables(database):
            return False
        found = await kept(database)
        return found == {session_id: await told(reader, session_id) for session_id in session_ids}

    try:
        await eventually(is_equal)
    except TimeoutError:
        assert found == {session_id: await told(reader, session_id) for session_id in session_ids}


async def answer(producer: Producer, session_id: str, generation_id: str, *texts: str) -> None:
    await producer.create_session(session_id)
    async with producer.generation(session_id, generation_id, format="text") as writing:
        for text in texts:
            await writing.write(text)


async def _write(producer: Producer, session_id: str, chance: random.Random, enough: anyio.Event) -> None:
    await producer.create_session(session_id, metadata={"title": session_id})
    number = 0
    while not enough.is_set():
        number += 1
        await producer.send_message(session_id, {"id": f"u{number}", "role": "user", "content": f"no. {number}"})
        async with producer.generation(session_id, f"g{number}", format="text") as writing:
            for word in range(chance.randrange(1, 30)):
                await writing.write(f"word {word} ")
                await anyio.sleep(chance.random() * 0.03)


async def test_killed_at_any_moment_it_loses_and_doubles_nothing(database: Database, broker: Broker) -> None:
    """After each kill the rows are what the broker tells of the very offset that is stored with them."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    enough, sessions = anyio.Event(), [f"s{number}" for number in range(WRITERS)]
    command = ["--to", database.dsn, "--all", "--url", broker.url]
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(Reader(broker.url))
        producer = await stack.enter_async_context(Producer(broker.url))
        with Life(*command):
            await until_equal(database, reader)
        async with anyio.create_task_group() as tasks:
            for session_id in sessions:
                tasks.start_soon(_write, producer, session_id, chance, enough)
            for kill in range(KILLS):
                before = await kept(database)
                with Life(*command):
                    if kill % 2:  # amid the work; the others, while it finds out where it stands
                        await eventually(partial(_moved_on, database, before))
                    await anyio.sleep(chance.random() * 0.2)
                for session_id, found in (await kept(database)).items():
                    if found.next_offset != "-1":  # claimed, and nothing written yet
                        assert found == await told(reader, session_id, found.next_offset)
            enough.set()
        with Life(*command):
            await until_equal(database, reader, *sessions)


async def _moved_on(database: Database, before: dict[str, Kept]) -> bool:
    return await kept(database) != before


async def _has_tables(database: Database) -> bool:
    try:
        await kept(database)
    except (sqlite3.OperationalError, asyncpg.UndefinedTableError):
        return False
    return True


@without_direct
async def test_sessions_are_followed_through_all_that_happens_to_them(database: Database, broker: Broker) -> None:
    """New ones, forks, continued answers, resets and deletions, while it runs and while it does not."""
    command = ["--to", database.dsn, "--all", "--url", broker.url]
    async with Reader(broker.url) as reader, Producer(broker.url) as producer, httpx.AsyncClient() as http:

        async def ask(method: str, path: str, **body: object) -> None:
            answer = await http.request(method, f"{broker.url}/v1/sessions/{path}", json=body or None)
            assert answer.is_success, answer.text

        await answer(producer, "before", "g1", "was ", "there")
        with Life(*command):
            await until_equal(database, reader, "before")
            await answer(producer, "reset", "g1", "old")
            await answer(producer, "deleted", "g1", "old")
            await answer(producer, "cut", "g1", "half", " an")
            await until_equal(database, reader, "before", "reset", "deleted", "cut")
            await ask("POST", "reset/reset")
            await ask("POST", "cut/fork", sessionId="child")
            await ask("DELETE", "deleted")
            await ask("PUT", "cut/generations/g2", continues="g1")
            await until_equal(database, reader, "before", "reset", "cut", "child")
        await answer(producer, "reset", "g2", "new")
        await answer(producer, "deleted", "g2", "another one of this name")
        await answer(producer, "cut", "g3", "on its own")
        await ask("DELETE", "before")
        await ask("POST", "child/reset")
        with Life(*command):
            await until_equal(database, reader, "reset", "deleted", "cut", "child")
            await answer(producer, "child", "g9", "more")
            await until_equal(database, reader, "reset", "deleted", "cut", "child")


@on_sqlite
async def test_only_named_sessions_are_kept_also_those_to_come(database: Database, broker: Broker) -> None:
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "other", "g1", "not asked for")
        with Life("--to", database.dsn, "--session", "mine", "--session", "later", "--url", broker.url):
            await answer(producer, "mine", "g1", "asked for")
            await until_equal(database, reader, "mine")
            await answer(producer, "later", "g1", "asked for")
            await until_equal(database, reader, "mine", "later")


@on_sqlite
async def test_once_ends_when_all_is_there(database: Database, broker: Broker) -> None:
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "a", "g1", "one")
        await answer(producer, "b", "g1", "two")
        with Life("--to", database.dsn, "--all", "--once", "--url", broker.url) as life:
            assert await anyio.to_thread.run_sync(life.exit_status) == 0
        await until_equal(database, reader, "a", "b")


@on_sqlite
async def test_the_broker_may_be_away(database: Database, broker: Broker) -> None:
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "a", "g1", "one")
        with Life("--to", database.dsn, "--all", "--url", broker.url):
            await until_equal(database, reader, "a")
            await broker.restart()
            await answer(producer, "a", "g2", "two")
            await answer(producer, "b", "g1", "three")
            await until_equal(database, reader, "a", "b")


@without_direct
async def test_of_two_the_later_one_goes_on_and_the_other_ends(database: Database, broker: Broker) -> None:
    command = ["--to", database.dsn, "--all", "--url", broker.url]
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "a", "g0", "zero")
        with Life(*command) as first:
            await until_equal(database, reader, "a")
            with Life(*command):
                await eventually(lambda: _has_epoch(database, 2))
                number = 0
                while first.is_alive:
                    number += 1
                    await answer(producer, "a", f"g{number}", "more")
                assert first.exit_status() == 4
                await until_equal(database, reader, "a")


async def _has_epoch(database: Database, epoch: int) -> bool:
    (row,) = await database.query("SELECT epoch FROM streamfold_epoch")
    return bool(row["epoch"] >= epoch)


@without_direct
async def test_rows_say_what_a_model_said_also_what_text_columns_cannot_hold(
    database: Database, broker: Broker
) -> None:
    """NUL and half a surrogate pair are in the JSON as they were, and in the text as a replacement."""
    async with Reader(broker.url) as reader, Producer(broker.url) as producer:
        await answer(producer, "a", "g1", "nul \0, half \ud83d")
        with Life("--to", database.dsn, "--all", "--url", broker.url):
            await until_equal(database, reader, "a")
    (row,) = await database.query("SELECT text, status, role FROM streamfold_messages")
    assert row == {"text": "nul \ufffd, half \ufffd", "status": "complete", "role": "assistant"}


@on_sqlite
async def test_a_session_that_is_not_there_is_not_kept(database: Database, broker: Broker) -> None:
    with Life("--to", database.dsn, "--session", "never", "--once", "--url", broker.url) as life:
        assert await anyio.to_thread.run_sync(life.exit_status) == 0
    assert await kept(database) == {}
