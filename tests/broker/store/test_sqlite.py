"""The SQLite store, in a file and in memory."""

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from broker.core.page import Page, byte_page, join, json_page, records
from broker.core.producer import Receipt, Sequence
from broker.core.state import (
    Generation,
    Key,
    Message,
    Producer,
    Row,
    Session,
    Stream,
    generation_key,
    message_key,
    producer_key,
    session_key,
    stream_key,
)
from broker.data_dir import DataDir
from broker.errors import Damaged, DataDirInUse, EngineStopped, NewerFormat, StartError, Unavailable
from broker.limits import MIB
from broker.sqlite import connect
from broker.store import Checkpoint, Head, Snapshot
from broker.store.sqlite import SqliteStore
from broker.store.sweep import SWEEP_PAGES_MAX, SWEEP_ROWS_MAX
from tests.broker.store import checkpointer

LIFE, OTHER_LIFE = 2**63 - 1, 5
KILLS = 12
SEQUENCE = Sequence(3, (Receipt(b"12345678", 4),))


@pytest.fixture(params=["file", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An open store."""
    store = SqliteStore(DataDir(tmp_path / "data")) if request.param == "file" else SqliteStore.in_memory()
    await store.open()
    yield store
    await store.aclose()


def changes(
    index: int = 1,
    rows: dict[Key, Row | None] | None = None,
    pages: list[tuple[int, list[Page]]] | None = None,
    ended: list[tuple[str, int]] | None = None,
    snapshots: list[Snapshot] | None = None,
) -> Checkpoint:
    """A checkpoint of these."""
    return Checkpoint(Head(index, index), rows or {}, pages or [], ended or [], snapshots or [])


def numbers(count: int, start: int = 0) -> Page:
    """A page of records that are their positions."""
    return json_page([b"%d" % position for position in range(start, start + count)], start)


def generation(gid: str) -> Generation:
    return Generation(LIFE, LIFE, gid, "m1", "main", 1, "text", "assistant", "", 30_000, 1, 1)


# -- what is written comes back ----------------------------------------------------------------------------------


async def test_rows_come_back_and_go(store: SqliteStore) -> None:
    rows: dict[Key, Row | None] = {
        stream_key("a"): Stream(LIFE, "text/plain", 1, 2, tail=3, closed_by=("p", 1, 2), ttl_s=4),
        producer_key("a", "p"): Producer(LIFE, 1, SEQUENCE, 9),
        session_key("sessions/s"): Session(LIFE, 1, 2, b"{}", open=(generation("g1"),)),
        generation_key("sessions/s", "g0"): generation("g0"),
        message_key("sessions/s", "m"): Message(LIFE, LIFE, 7, b"digest"),
    }
    await store.write(changes(1, rows))
    assert await store.load([*rows, b"none"]) == {**rows, b"none": None}
    gone: dict[Key, Row | None] = dict.fromkeys(rows)
    await store.write(changes(2, gone))
    assert await store.load(rows) == gone


async def test_the_head_comes_back_after_a_restart(tmp_path: Path) -> None:
    expected = Head()
    for written in (Head(7, 14, b"table"), Head(8, 15), Head()):
        store = SqliteStore(DataDir(tmp_path))
        assert await store.open() == expected
        await store.write(Checkpoint(written, {}, [], []))
        expected = written
        await store.aclose()
        await store.aclose()


async def test_a_read_begins_at_its_position_and_ends_with_the_page_that_fills_it(store: SqliteStore) -> None:
    big = b"x" * 200_000
    pages = [json_page([big], position) for position in range(4)]
    await store.write(changes(1, pages=[(LIFE, [numbers(10)]), (OTHER_LIFE, pages)]))
    assert await store.read(LIFE, 4, 1) == [numbers(6, 4)]
    assert await store.read(LIFE, 10, 1) == []
    assert await store.read(LIFE + 1 - 2, 0, 1) == []
    assert [page.start for page in await store.read(OTHER_LIFE, 1, 300_000)] == [1, 2]
    assert [page.start for page in await store.read(OTHER_LIFE, 1, 400_000)] == [1, 2]
    assert [page.start for page in await store.read(OTHER_LIFE, 1, 400_001)] == [1, 2, 3]


async def test_bytes_are_read_from_any_of_them_on(store: SqliteStore) -> None:
    for n in range(10):
        await store.write(changes(n + 1, pages=[(LIFE, [byte_page(b"0123456789", n * 10)])]))
    assert join(await store.read(LIFE, 93, MIB)).data == b"3456789"
    assert join(await store.read(LIFE, 0, MIB)).data == b"0123456789" * 10


async def test_small_checkpoints_are_read_back_as_one_run(store: SqliteStore) -> None:
    position, chance = 0, random.Random(3)
    for index in range(1, 120):
        added = []
        for _ in range(chance.randrange(1, 4)):
            added.append(numbers(chance.randrange(1, 400), position))
            position = added[-1].end
        await store.write(changes(index, pages=[(LIFE, added)]))
    pages = await store.read(LIFE, 17, 100 * MIB)
    assert [int(record) for page in pages for record in records(page)] == list(range(17, position))
    assert len(pages) < 20


async def test_pages_that_leave_a_hole_are_not_written(store: SqliteStore) -> None:
    await store.write(changes(1, pages=[(LIFE, [numbers(5)])]))
    with pytest.raises(EngineStopped):
        await store.write(changes(2, pages=[(LIFE, [numbers(5, 6)])]))
    assert await store.read(LIFE, 0, MIB) == [numbers(5)]


async def test_overdue_streams_come_earliest_first(store: SqliteStore) -> None:
    def stream(expires_at_ms: int | None) -> Stream:
        return Stream(LIFE, "text/plain", 0, 0, expires_at_ms=expires_at_ms)

    await store.write(
        changes(1, {stream_key(name): stream(at) for name, at in [("b", 20), ("a", 30), ("c", 10), ("never", None)]})
    )
    assert await store.overdue(29, 10) == [("c", LIFE), ("b", LIFE)]
    assert await store.overdue(30, 1) == [("c", LIFE)]
    await store.write(changes(2, {stream_key("c"): stream(None), stream_key("b"): None}))
    assert await store.overdue(99, 10) == [("a", LIFE)]


async def test_sessions_with_open_generations_are_listed(store: SqliteStore) -> None:
    busy, quiet = Session(LIFE, 1, 1, open=(generation("g"),)), Session(LIFE, 1, 1)
    await store.write(changes(1, {session_key("sessions/a"): busy, session_key("sessions/b"): quiet}))
    assert await store.watched(b"S", b"", 10) == [session_key("sessions/a")]
    await store.write(changes(2, {session_key("sessions/a"): quiet, session_key("sessions/b"): busy}))
    assert await store.watched(b"S", b"", 10) == [session_key("sessions/b")]


async def test_sessions_come_by_last_activity_newest_or_oldest_first(store: SqliteStore) -> None:
    def active(**at: int) -> dict[Key, Row | None]:
        return {session_key(name): Session(LIFE, 1, active_ms) for name, active_ms in at.items()}

    def told(found: list[tuple[int, Key]]) -> list[tuple[int, str]]:
        return [(active_ms, key[1:].decode()) for active_ms, key in found]

    await store.write(changes(1, active(a=10, b=30, c=20, d=20)))
    assert told(await store.active((99, b""), 3)) == [(30, "b"), (20, "d"), (20, "c")]
    assert told(await store.active((20, session_key("d")), 9)) == [(20, "c"), (10, "a")]
    await store.write(changes(2, {**active(a=40), session_key("b"): None}))
    assert told(await store.active((99, b""), 9)) == [(40, "a"), (20, "d"), (20, "c")]
    assert told(await store.idle((0, b""), 40, 9)) == [(20, "c"), (20, "d")]
    assert told(await store.idle((20, session_key("c")), 41, 1)) == [(20, "d")]


async def test_a_snapshot_keeps_the_messages_that_did_not_change(store: SqliteStore) -> None:
    await store.write(changes(1, snapshots=[Snapshot("s", LIFE, 4, [(0, "m0", b"a"), (1, "m1", b"b")])]))
    await store.write(changes(2, snapshots=[Snapshot("s", LIFE, 9, [(1, "m1", b"B"), (2, "m2", b"c")])]))
    assert await store.snapshot("s", LIFE) == Snapshot(
        "s", LIFE, 9, [(0, "m0", b"a"), (1, "m1", b"B"), (2, "m2", b"c")]
    )
    await store.write(changes(3, snapshots=[Snapshot("s", OTHER_LIFE, 1, [(0, "n0", b"z")])]))
    assert await store.snapshot("s", LIFE) is None
    assert await store.snapshot("s", OTHER_LIFE) == Snapshot("s", OTHER_LIFE, 1, [(0, "n0", b"z")])


async def test_reads_go_on_while_a_checkpoint_is_written(store: SqliteStore) -> None:
    await store.write(changes(1, pages=[(LIFE, [numbers(100)])]))
    rows: dict[Key, Row | None] = {stream_key(f"path {n}"): Stream(LIFE, "a/b", 0, 0) for n in range(20_000)}
    writing = asyncio.ensure_future(store.write(changes(2, rows)))
    while not writing.done():
        assert await store.read(LIFE, 0, MIB) == [numbers(100)]
        found = set((await store.load([stream_key("path 0"), stream_key("path 19999")])).values())
        assert len(found) == 1  # both or none
    await writing


# -- sweeping ----------------------------------------------------------------------------------------------------


async def test_sweeping_removes_all_of_an_ended_life_in_bounded_steps_and_nothing_else(store: SqliteStore) -> None:
    producers = 2 * SWEEP_ROWS_MAX + 7
    pages = [json_page([b"x" * 300_000], position) for position in range(SWEEP_PAGES_MAX + 1)]
    theirs: dict[Key, Row | None] = {
        producer_key("ended", f"p{n:05}"): Producer(LIFE, 0, SEQUENCE, 0) for n in range(producers)
    }
    theirs[message_key("ended", "m")] = Message(LIFE, LIFE, 1)
    theirs[generation_key("ended", "g")] = generation("g")
    others: dict[Key, Row | None] = {
        producer_key("ended", "p00300x"): Producer(OTHER_LIFE, 0, SEQUENCE, 0),
        producer_key("ended/not", "p"): Producer(LIFE, 0, SEQUENCE, 0),
        stream_key("ended"): Stream(OTHER_LIFE, "text/plain", 0, 0),
    }
    snapshot = Snapshot("ended", LIFE, 1, [(0, "m", b"x")])
    await store.write(changes(1, theirs | others, [(LIFE, pages), (OTHER_LIFE, pages)], snapshots=[snapshot]))
    await store.write(changes(2, ended=[("ended", LIFE)]))
    steps = 1
    while await store.sweep(steps_max=1):
        steps += 1
    assert steps >= 2 + 1 + 3
    assert await store.load([*theirs, *others]) == dict.fromkeys(theirs) | others
    assert await store.read(LIFE, 0, 100 * MIB) == []
    assert len(await store.read(OTHER_LIFE, 0, 100 * MIB)) == len(pages)
    assert await store.snapshot("ended", LIFE) is None
    assert await store.sweep() is False


async def test_sweeping_goes_on_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(DataDir(tmp_path))
    await store.open()
    pages = [json_page([b"x" * 300_000], position) for position in range(2 * SWEEP_PAGES_MAX)]
    await store.write(changes(1, pages=[(LIFE, pages)], ended=[("a", LIFE)]))
    assert await store.sweep(steps_max=1)
    await store.aclose()
    store = SqliteStore(DataDir(tmp_path))
    await store.open()
    assert await store.read(LIFE, len(pages) - 1, 1)
    assert not await store.sweep()
    assert await store.read(LIFE, len(pages) - 1, 1) == []
    await store.aclose()


# -- opening -----------------------------------------------------------------------------------------------------


async def test_a_folder_that_another_process_has_is_refused(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.broker.store.checkpointer", str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    with pytest.raises(DataDirInUse) as refused:
        await SqliteStore(DataDir(tmp_path)).open()
    assert refused.value.hint
    process.kill()
    await process.communicate()
    store = SqliteStore(DataDir(tmp_path))  # the lock went with the process
    await store.open()
    await store.aclose()


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError):
        await SqliteStore(DataDir(tmp_path / "file" / "data")).open()


async def test_a_newer_format_is_refused_and_the_folder_given_free(tmp_path: Path) -> None:
    store = SqliteStore(DataDir(tmp_path))
    await store.open()
    await store.aclose()
    with closing(connect(tmp_path / "store.sqlite")) as file:
        file.execute("PRAGMA user_version=2")
    for _ in range(2):
        with pytest.raises(NewerFormat):
            await SqliteStore(DataDir(tmp_path)).open()


async def test_a_journal_without_its_store_is_damage(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    with pytest.raises(Damaged, match="missing"):
        await SqliteStore(DataDir(tmp_path)).open()
    assert not (tmp_path / "store.sqlite").exists()


async def test_opening_looks_at_a_few_rows_however_many_there_are(tmp_path: Path) -> None:
    """Counted in steps of SQLite's virtual machine: a scan takes at least one for each row."""
    store = SqliteStore(DataDir(tmp_path))
    await store.open()
    many: dict[Key, Row | None] = {
        session_key(f"sessions/{n}"): Session(LIFE, 1, 1, open=(generation("g"),) if n == 777 else ())
        for n in range(20_000)
    }
    await store.write(changes(1, many))
    await store.aclose()
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 100
        return 0

    def counted(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_progress_handler(count, 100)
        return connection

    store = SqliteStore(DataDir(tmp_path), connect=counted)
    await store.open()
    open_sessions = await store.watched(b"S", b"", 10)
    await store.aclose()
    assert open_sessions == [session_key("sessions/777")]
    assert steps < 2_000


# -- failures ----------------------------------------------------------------------------------------------------


async def test_a_full_disk_refuses_a_checkpoint_and_leaves_the_one_before(tmp_path: Path) -> None:
    """With a real SQLITE_FULL: the file may have no more pages."""
    connections: list[sqlite3.Connection] = []

    def remembered(path: Path) -> sqlite3.Connection:
        connections.append(connect(path))
        return connections[-1]

    store = SqliteStore(DataDir(tmp_path), connect=remembered)
    await store.open()
    await store.write(changes(1, {stream_key("a"): Stream(LIFE, "a/b", 0, 0)}, [(LIFE, [numbers(10)])]))
    connections[0].execute("PRAGMA max_page_count=1")  # never below what the file has
    large = changes(2, {stream_key("a"): None}, [(LIFE, [json_page([b"x" * MIB], 10)])])
    with pytest.raises(Unavailable):
        await store.write(large)
    assert await store.read(LIFE, 0, 10 * MIB) == [numbers(10)]
    assert (await store.load([stream_key("a")]))[stream_key("a")] is not None
    connections[0].execute("PRAGMA max_page_count=1000000")
    await store.write(large)
    assert await store.load([stream_key("a")]) == {stream_key("a"): None}
    await store.aclose()


async def test_a_checkpoint_of_unknown_fate_stops_the_store(tmp_path: Path) -> None:
    class FailingDisk(sqlite3.Connection):
        def execute(self, sql: str, parameters: object = (), /) -> sqlite3.Cursor:
            if sql.startswith("UPDATE head"):
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error
            return super().execute(sql, parameters)  # type: ignore[arg-type] # as it came

    def failing(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=FailingDisk)

    store = SqliteStore(DataDir(tmp_path), connect=failing)
    await store.open()
    for _ in range(2):
        with pytest.raises(EngineStopped):
            await store.write(changes(1))
    await store.aclose()


async def test_the_wal_stays_bounded_while_checkpoints_and_reads_go_on(tmp_path: Path) -> None:
    store = SqliteStore(DataDir(tmp_path), wal_bytes=MIB)
    await store.open()
    wal = tmp_path / "store.sqlite-wal"
    largest_bytes = 0
    for n in range(100):
        await asyncio.gather(
            store.write(changes(n + 1, pages=[(LIFE, [json_page([b"x" * 400_000], n)])])),
            store.read(LIFE, n // 2, 2 * MIB),
        )
        largest_bytes = max(largest_bytes, wal.stat().st_size)
    await store.aclose()
    assert largest_bytes < 16 * MIB


@pytest.mark.timeout(300)
async def test_a_process_killed_while_it_writes_leaves_one_side_or_the_other(tmp_path: Path) -> None:
    chance = random.Random(4437)
    written = 0
    for _ in range(KILLS):
        written = await asyncio.to_thread(_run_and_kill, tmp_path, chance.randrange(1, 12), chance.uniform(0, 0.03))
        store = SqliteStore(DataDir(tmp_path))
        number = (await store.open()).applied_index
        assert number >= written
        expected = checkpointer.checkpoint(number)
        assert await store.load(expected.rows) == expected.rows
        assert await store.snapshot("path 0", checkpointer.INCARNATION) == expected.snapshots[0]
        pages = await store.read(checkpointer.INCARNATION, 0, 10**10)
        assert pages[-1].end == number * 10_000
        assert records(pages[-1])[-1] == b"%d" % number
        await store.aclose()
    assert written > KILLS


def _run_and_kill(path: Path, after_lines: int, wait_s: float) -> int:
    """The last checkpoint that the process saw written before it was killed, `wait_s` after some line."""
    command = [sys.executable, "-m", "tests.broker.store.checkpointer", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [int(process.stdout.readline()) for _ in range(1 + after_lines)]
        time.sleep(wait_s)  # a random moment of the next checkpoint is what this is about
        process.kill()
        lines += [int(line) for line in process.stdout if line.endswith("\n")]
    return lines[-1]
