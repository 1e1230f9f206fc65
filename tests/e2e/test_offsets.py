"""Readers that are killed at any moment and go on where their store says, against a real broker."""

import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path

import anyio
import pytest

from producer import Producer
from tests.faults.history import place_of
from tests.live import Broker

COUNT = 400
LIVES_MAX = 50

# Prints each record when it has it, and the offset it stands at when it comes to life.
AT_LEAST_ONCE = """
import anyio, sys
from consumer import FileOffsets, Reader

async def main(url, path):
    store = FileOffsets(path)
    async with Reader(url) as reader:
        print("from", await store.load(reader.name_of("s")), flush=True)
        async for batch in reader.follow("s", offsets=store):
            for record in batch.records:
                print(record, flush=True)
    print("closed", flush=True)

anyio.run(main, *sys.argv[1:])
"""

EXACTLY_ONCE = """
import anyio, sqlite3, sys
from consumer import Reader, SqliteOffsets

async def main(url, path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE IF NOT EXISTS seen (record INTEGER)")
    async with Reader(url) as reader, SqliteOffsets(path) as store:
        name = reader.name_of("s")
        async for batch in reader.follow("s", await store.load(name) or "-1"):
            with connection:
                connection.executemany("INSERT INTO seen VALUES (?)", [[record] for record in batch.records])
                store.put(connection, name, batch.next_offset)
            print(batch.next_offset, flush=True)
    print("closed", flush=True)

anyio.run(main, *sys.argv[1:])
"""

pytestmark = pytest.mark.usefixtures("stream_s")


async def append_all(broker: Broker) -> None:
    async with Producer(broker.url) as producer:
        for number in range(COUNT):
            await producer.streams.append("s", number)
            await anyio.sleep(0.005)  # so that some lives are spent waiting for the next
        await producer.streams.close("s")


def life(program: str, broker: Broker, path: Path, lines: int) -> list[str]:
    """What a process said that is killed as soon as it has said so much, or until its end."""
    command = [sys.executable, "-c", program, broker.url, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [*islice(process.stdout, lines)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    return [line.strip() for line in said if line.endswith("\n")]


async def lives(program: str, broker: Broker, path: Path) -> list[list[str]]:
    chance = random.Random(3)
    said: list[list[str]] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append_all, broker)
        for age in range(1, LIVES_MAX):
            lines = chance.randrange(1, 50 * age)  # a life must be able to handle all that has gathered meanwhile
            said.append(await anyio.to_thread.run_sync(life, program, broker, path, lines))
            if said[-1] and said[-1][-1] == "closed":
                return said
    raise AssertionError("it never came to the end")


async def test_a_reader_that_is_killed_misses_nothing_and_repeats_only_what_was_not_saved(
    broker: Broker, tmp_path: Path
) -> None:
    reached = 0  # how many records all lives so far have handled
    for said in await lives(AT_LEAST_ONCE, broker, tmp_path / "offsets"):
        began, *records = [line for line in said if line != "closed"] or ["from None"]
        saved = began.removeprefix("from ")
        first = 0 if saved == "None" else place_of(saved).position
        assert records == [str(number) for number in range(first, first + len(records))]
        assert first <= reached
        reached = max(reached, first + len(records))

    assert reached == COUNT


async def test_a_reader_that_saves_in_its_own_transaction_has_each_record_once(broker: Broker, tmp_path: Path) -> None:
    said = await lives(EXACTLY_ONCE, broker, tmp_path / "db")

    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        seen = [number for (number,) in connection.execute("SELECT record FROM seen ORDER BY rowid")]
    assert seen == list(range(COUNT))
    assert len(said) > 2
