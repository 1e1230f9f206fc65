"""Stores of offsets: one contract for all, and what the durable ones leave behind when they are cut off."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest

from consumer import Batch, FileOffsets, MemoryOffsets, OffsetsFailed, OffsetStore, Reader, SqliteOffsets
from tests.consumer.model import Model

Opening: TypeAlias = Callable[[Path], OffsetStore]

DURABLE: list[Opening] = [lambda folder: FileOffsets(folder / "offsets"), lambda folder: SqliteOffsets(folder / "db")]
DURABLE_IDS = ["file", "sqlite"]


@pytest.fixture(params=[lambda _: MemoryOffsets(), *DURABLE], ids=["memory", *DURABLE_IDS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OffsetStore:
    opened: OffsetStore = request.param(tmp_path)
    return opened


# -- the contract --------------------------------------------------------------------------------------------------


async def test_what_was_saved_last_is_loaded(store: OffsetStore) -> None:
    for offset in ("0001", "0002", "0002"):
        await store.save("/v1/stream/a", offset)
    await store.save("/v1/stream/b", "0009")

    assert [await store.load(f"/v1/stream/{name}") for name in "abc"] == ["0002", "0009", None]


async def test_what_is_forgotten_is_not_there(store: OffsetStore) -> None:
    await store.save("a", "0001")
    await store.save("b", "0001")
    await store.forget("a")
    await store.forget("never saved")

    assert [await store.load(name) for name in "ab"] == [None, "0001"]


async def test_many_may_save_at_once(store: OffsetStore) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(store.save, f"stream {number}", f"{number:04}")

    assert [await store.load(f"stream {number}") for number in range(20)] == [f"{number:04}" for number in range(20)]


@pytest.mark.parametrize("opening", DURABLE, ids=DURABLE_IDS)
async def test_another_process_finds_what_was_saved(opening: Opening, tmp_path: Path) -> None:
    store = opening(tmp_path)
    await store.save("a", "0001")
    await store.save("b", "0002")
    await store.forget("b")

    assert [await opening(tmp_path).load(name) for name in "ab"] == ["0001", None]


@pytest.mark.parametrize("opening", DURABLE, ids=DURABLE_IDS)
async def test_a_file_that_holds_something_else_is_an_error_and_stays_as_it_is(
    opening: Opening, tmp_path: Path
) -> None:
    for name in ("offsets", "db"):
        (tmp_path / name).write_text('{"version": 2, "offsets": {"a": "0001"}}' + "x" * 200)

    with pytest.raises(OffsetsFailed):
        await opening(tmp_path).load("a")
    with pytest.raises(OffsetsFailed):
        await opening(tmp_path).save("a", "0002")
    assert "version" in (tmp_path / "offsets").read_text()


@pytest.mark.parametrize("opening", DURABLE, ids=DURABLE_IDS)
async def test_a_folder_that_is_not_there_is_an_error(opening: Opening, tmp_path: Path) -> None:
    with pytest.raises(OffsetsFailed):
        await opening(tmp_path / "missing").save("a", "0001")


# -- what a crash leaves -------------------------------------------------------------------------------------------


async def test_a_save_that_fails_half_way_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileOffsets(tmp_path / "offsets")
    await store.save("a", "0001")

    def fail(_: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OffsetsFailed):
            await store.save("a", "0002")

    assert await store.load("a") == await FileOffsets(tmp_path / "offsets").load("a") == "0001"


KILLED = """
import anyio, sys
from consumer import {kind}

async def main():
    store = {kind}(sys.argv[1])
    number = int(await store.load("a") or 0)
    while True:
        number += 1
        await store.save("a", str(number))
        print(number, flush=True)

anyio.run(main)
"""


@pytest.mark.parametrize("kind", ["FileOffsets", "SqliteOffsets"])
def test_a_process_that_is_killed_while_it_saves_loses_nothing_that_was_saved(kind: str, tmp_path: Path) -> None:
    saved = 0
    for lines in (1, 7, 20):
        command = [sys.executable, "-c", KILLED.format(kind=kind), str(tmp_path / "offsets")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = [int(process.stdout.readline()) for _ in range(lines)]
            process.kill()
            told += [int(line) for line in process.stdout if line.endswith("\n")]
        assert saved + 1 <= told[0] <= saved + 2  # one more may have been saved, and not been told of
        saved = told[-1]


# -- a reader that uses one ----------------------------------------------------------------------------------------


async def handled(model: Model, store: OffsetStore, count: int, offset: str = "-1") -> list[Batch]:
    """So many batches, the loop being left inside the last one."""
    batches: list[Batch] = []
    async with Reader(model.url) as reader, aclosing(reader.follow("s", offset, offsets=store)) as following:
        async for batch in following:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


async def test_a_batch_counts_as_handled_when_the_next_is_asked_for(store: OffsetStore) -> None:
    async with Model(*"abcdef") as model:
        first = await handled(model, store, 2)
        second = await handled(model, store, 2)

    assert [batch.records for batch in first] == [["a", "b"], ["c", "d"]]
    assert [batch.records for batch in second] == [["c", "d"], ["e", "f"]]


async def test_the_offset_that_was_asked_for_is_where_a_reader_begins_that_never_was_there(store: OffsetStore) -> None:
    async with Model(*"abcdef") as model:
        first = await handled(model, store, 2, offset="0002")
        second = await handled(model, store, 1, offset="0000")

    assert [batch.records for batch in first + second] == [["c", "d"], ["e", "f"], ["e", "f"]]


async def test_the_last_batch_of_a_closed_stream_is_saved_with_the_end_of_the_loop(store: OffsetStore) -> None:
    async with Model(*"abc") as model:
        model.closed = True
        async with Reader(model.url) as reader:
            records = [record async for batch in reader.follow("s", offsets=store) for record in batch.records]
            again = [record async for batch in reader.follow("s", offsets=store) for record in batch.records]
            saved = await store.load(reader.name_of("s"))

    assert (records, again, saved) == ([*"abc"], [], "0003")


async def test_a_store_that_fails_stops_the_reader_with_the_batch_unhandled(tmp_path: Path) -> None:
    async with Model(*"abcdef") as model, Reader(model.url) as reader:
        batches = reader.follow("s", offsets=FileOffsets(tmp_path / "missing" / "offsets"))
        first = await anext(batches)
        with pytest.raises(OffsetsFailed) as failure:
            await anext(batches)

    assert first.records == ["a", "b"]
    assert isinstance(failure.value.__cause__, FileNotFoundError)


async def test_a_stream_has_one_name_however_it_is_told() -> None:
    async with Reader("http://127.0.0.1:1/broker") as reader:
        names = {reader.name_of("sessions/a b"), reader.name_of("http://127.0.0.1:1/broker/v1/stream/sessions/a%20b")}

    assert names == {"/v1/stream/sessions/a%20b"}


async def test_an_offset_saved_in_a_transaction_is_kept_exactly_if_that_is(tmp_path: Path) -> None:
    path = tmp_path / "application"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE seen (record TEXT)")
        with connection:
            SqliteOffsets.put(connection, "a", "0001")
            connection.execute("INSERT INTO seen VALUES ('one')")
        SqliteOffsets.put(connection, "a", "0002")
        connection.execute("INSERT INTO seen VALUES ('two')")
        connection.rollback()

    async with SqliteOffsets(path) as store:
        assert await store.load("a") == "0001"
