"""What only the SQLite journal does: real files, real failures, real kills."""

import asyncio
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.core.entry import Entry
from broker.errors import Damaged, EngineStopped, NewerFormat, StartError, Unavailable
from broker.journal import Commit, Journal
from broker.limits import KIB, MIB
from broker.sqlite import connect
from tests.broker.journal.bench import Bench, Heard

MakeEntry = Callable[..., Entry]
KILLS = 20


class Disk(sqlite3.Connection):
    """A connection whose commits can be held up or made to fail."""

    fails_with: int | None = None
    open_road = threading.Event()

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql.startswith(("INSERT INTO commits", "COMMIT")):
            assert self.open_road.wait(30)
            if self.fails_with is not None:
                error = sqlite3.OperationalError("as told by the test")
                error.sqlite_errorcode = self.fails_with
                raise error
        return super().execute(sql, parameters)


@pytest.fixture
def disk(bench: Bench) -> type[Disk]:
    """The disk of `bench`, in working order."""

    class OneDisk(Disk):
        open_road = threading.Event()

    OneDisk.open_road.set()
    bench.connect = lambda path: sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=OneDisk)
    return OneDisk


@contextmanager
def edited(bench: Bench) -> Iterator[sqlite3.Connection]:
    """The journal's file, to be changed behind its back."""
    with closing(connect(bench.data_dir.journal_path)) as connection:
        yield connection


def rows(bench: Bench) -> list[tuple[int, int]]:
    """(first index, count) of the commits in the file."""
    with edited(bench) as file:
        return file.execute("SELECT first_index, count FROM commits ORDER BY first_index").fetchall()


async def write(bench: Bench, entries: list[Entry], applied_index: int = 0) -> Heard:
    """Commit `entries` one by one in a journal of its own."""
    journal, heard = await bench.started(applied_index)
    for n, one in enumerate(entries, 1):
        journal.propose(one)
        await heard.until_entries(n)
    await journal.aclose()
    return heard


async def replayed(journal: Journal) -> list[Commit]:
    return [commit async for commit in journal.replay()]


# -- commits -----------------------------------------------------------------------------------------------------


async def test_what_is_proposed_while_a_commit_runs_shares_the_next_one(
    bench: Bench, entry: MakeEntry, disk: type[Disk]
) -> None:
    journal, heard = await bench.started()
    disk.open_road.clear()
    for n in range(20):
        journal.propose(entry(n))
        await asyncio.sleep(0)  # each in an iteration of its own
    assert heard.commits == []
    disk.open_road.set()
    await journal.aclose()
    assert len(heard.commits) <= 2
    assert heard.indexes == list(range(1, 21))


async def test_a_commit_is_one_row(bench: Bench, entry: MakeEntry) -> None:
    journal, heard = await bench.started()
    for n in range(30):
        journal.propose(entry(n))
    await journal.aclose()
    assert rows(bench) == [(commit.first_index, len(commit.entries)) for commit in heard.commits]
    assert rows(bench)[0] == (1, 30)


async def test_a_commit_is_bounded_in_bytes(bench: Bench, entry: MakeEntry) -> None:
    journal, heard = await bench.started()
    body = b"x" * MIB
    for n in range(30):
        journal.propose(entry(n, body))
    await journal.aclose()
    assert [len(commit.entries) for commit in heard.commits] == [8, 8, 8, 6]


async def test_replay_gives_what_was_handed_back_beyond_the_store(bench: Bench, entry: MakeEntry) -> None:
    heard = await write(bench, [entry(n, b"body %d" % n) for n in range(10)])
    assert await replayed(await bench.opened()) == heard.commits


async def test_replay_begins_inside_a_commit_when_the_store_ends_there(bench: Bench, entry: MakeEntry) -> None:
    journal, heard = await bench.started()
    for n in range(6):
        journal.propose(entry(n))
    await journal.aclose()
    commits = await replayed(await bench.opened(applied_index=4))
    assert commits == [Commit(5, heard.commits[0].time_ms, heard.commits[0].entries[4:])]


async def test_time_goes_on_from_the_last_commit_when_the_wall_clock_has_stepped_back(
    bench: Bench, entry: MakeEntry
) -> None:
    await write(bench, [entry(1)])
    bench.wall_ms -= 700_000
    assert (await bench.opened()).now_ms() == 1_000_000


# -- failures ----------------------------------------------------------------------------------------------------


async def test_a_full_disk_refuses_and_leaves_no_trace_and_room_lets_the_next_through(
    bench: Bench, entry: MakeEntry
) -> None:
    """With a real SQLITE_FULL: the file may have no more pages."""
    connections: list[sqlite3.Connection] = []

    def remembered(path: Path) -> sqlite3.Connection:
        connections.append(connect(path))
        return connections[-1]

    bench.connect = remembered
    journal, heard = await bench.started()
    journal.propose(entry(1))
    await heard.until(lambda: heard.commits)
    connections[0].execute("PRAGMA max_page_count=1")  # never below what the file has
    refused = entry(2, b"x" * MIB)
    journal.propose(refused)
    await heard.until(lambda: heard.refused)
    assert isinstance(heard.refused[0].error, Unavailable)
    assert heard.refused[0].entries[0] is refused
    connections[0].execute("PRAGMA max_page_count=1000000")
    journal.propose(entry(3))
    await journal.aclose()
    assert [(index, one.proposal) for index, one in heard.entries] == [(1, 1), (2, 3)]
    assert rows(bench) == [(1, 1), (2, 1)]


async def test_a_file_that_another_program_holds_refuses(bench: Bench, entry: MakeEntry, disk: type[Disk]) -> None:
    journal, heard = await bench.started()
    disk.fails_with = sqlite3.SQLITE_BUSY
    journal.propose(entry(1))
    await heard.until(lambda: heard.refused)
    disk.fails_with = None
    journal.propose(entry(2))
    await heard.until(lambda: heard.commits)
    assert [(index, one.proposal) for index, one in heard.entries] == [(1, 2)]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CORRUPT])
async def test_a_commit_of_unknown_fate_stops_the_journal(
    bench: Bench, entry: MakeEntry, disk: type[Disk], code: int
) -> None:
    journal, heard = await bench.started()
    disk.fails_with = code
    journal.propose(entry(1))
    await heard.until(lambda: heard.stopped)
    disk.fails_with = None
    assert [type(error) for error in heard.stopped] == [EngineStopped]
    with pytest.raises(EngineStopped):
        journal.propose(entry(2))
    await journal.aclose()
    assert (heard.commits, heard.refused, len(heard.stopped)) == ([], [], 1)


async def test_a_wal_that_cannot_be_moved_stops_the_journal(bench: Bench, entry: MakeEntry) -> None:
    """A failed fsync of the file: moving again would trust pages that the kernel may have dropped."""

    class FailingDisk(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if "wal_checkpoint" in sql:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise error
            return super().execute(sql, parameters)

    bench.connect = lambda path: sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, factory=FailingDisk
    )
    bench.wal_bytes = 1
    journal, heard = await bench.started()

    def propose_on() -> None:
        if not heard.stopped:
            journal.propose(entry(0))
            asyncio.get_running_loop().call_soon(propose_on)

    propose_on()
    await heard.until(lambda: heard.stopped)
    assert heard.refused == []


# -- files that must not be opened -------------------------------------------------------------------------------


async def test_a_journal_of_another_store_is_damage(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(1)])
    bench.data_dir.uuid = b"another store..."
    with pytest.raises(Damaged, match="another store"):
        await bench.opened()


async def test_a_newer_format_is_refused(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(1)])
    with edited(bench) as file:
        file.execute("PRAGMA user_version=2")
    with pytest.raises(NewerFormat, match="format 2"):
        await bench.opened()


async def test_a_file_of_something_else_is_refused(bench: Bench) -> None:
    with edited(bench) as file:
        file.execute("CREATE TABLE theirs (x)")
    with pytest.raises(Damaged, match="not a file of Streamfold"):
        await bench.opened()
    bench.data_dir.journal_path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StartError):
        await bench.opened()


async def test_a_flipped_byte_is_damage_that_names_the_index(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(n, b"a body") for n in range(5)])
    with edited(bench) as file:
        file.execute(
            "UPDATE commits SET entries = CAST(replace(entries, 'a body', 'A body') AS BLOB) WHERE first_index = 3"
        )
    journal = await bench.opened()
    with pytest.raises(Damaged, match="index 3"):
        await replayed(journal)


async def test_a_flipped_time_is_damage(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(1)])
    with edited(bench) as file:
        file.execute("UPDATE commits SET time_ms = time_ms - 1")
    with pytest.raises(Damaged, match="index 1"):
        await bench.opened()


async def test_a_missing_commit_is_damage_that_names_the_index(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(n) for n in range(5)])
    with edited(bench) as file:
        file.execute("DELETE FROM commits WHERE first_index = 3")
    journal = await bench.opened()
    with pytest.raises(Damaged, match="index 3"):
        await replayed(journal)


async def test_a_journal_that_begins_beyond_the_store_is_damage(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(n) for n in range(3)], applied_index=10)
    with pytest.raises(Damaged, match="index 10"):
        await bench.opened(applied_index=9)
    assert len(await replayed(await bench.opened(applied_index=10))) == 3


async def test_a_journal_that_dropped_what_the_store_lacks_is_damage(bench: Bench, entry: MakeEntry) -> None:
    """An older store was put back and the newer journal left in place."""
    await write(bench, [entry(n) for n in range(5)])
    journal, _ = await bench.started(applied_index=5)  # trims by itself
    await journal.aclose()
    assert rows(bench) == []
    with pytest.raises(Damaged, match="up to index 5"):
        await bench.opened(applied_index=3)


async def test_a_restored_store_without_a_journal_begins_an_empty_one(bench: Bench, entry: MakeEntry) -> None:
    heard = await write(bench, [entry(1)], applied_index=41)
    assert heard.indexes == [42]


# -- trimming, and the WAL ---------------------------------------------------------------------------------------


async def test_trimming_rides_in_commits_in_steps_and_spares_what_the_store_lacks(
    bench: Bench, entry: MakeEntry
) -> None:
    await write(bench, [entry(n) for n in range(200)])
    journal, heard = await bench.started()
    journal.propose(entry(200))
    journal.trim(190)
    await heard.until(lambda: heard.commits)
    await journal.aclose()
    assert rows(bench) == [(index, 1) for index in range(191, 202)]


async def test_trimming_spares_a_commit_that_the_store_has_only_in_part(bench: Bench, entry: MakeEntry) -> None:
    journal, _ = await bench.started()
    for n in range(4):
        journal.propose(entry(n))
    await journal.aclose()
    journal, _ = await bench.started(applied_index=3)
    await journal.aclose()
    assert rows(bench) == [(1, 4)]


async def test_the_wal_stays_bounded_under_constant_load(bench: Bench, entry: MakeEntry) -> None:
    bench.wal_bytes = 256 * KIB
    journal, heard = await bench.started()
    wal = bench.data_dir.journal_path.with_name("journal.sqlite-wal")
    largest_bytes = 0
    for n in range(1, 601):
        journal.propose(entry(n, b"x" * 60_000))
        await heard.until_entries(n - 8)
        journal.trim(n - 50)
        largest_bytes = max(largest_bytes, wal.stat().st_size)
    await journal.aclose()
    assert sum(len(one.body) for _, one in heard.entries) > 32 * MIB
    assert largest_bytes < 12 * MIB


# -- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_everything_handed_back_is_there_after_kills(tmp_path: Path) -> None:
    """A process is killed at random moments; the next one finds all that was handed back, in order, each once."""
    chance = random.Random(4437)
    handed_back = 0
    for _ in range(KILLS):
        held, seen = _run_and_kill(tmp_path / "data", after_lines=chance.randrange(1, 60))
        assert held >= handed_back
        handed_back = max(held, seen)
    assert handed_back > KILLS


def _run_and_kill(path: Path, after_lines: int) -> tuple[int, int]:
    """What the process found at its start, and the last proposal that it saw handed back before it was killed."""
    command = [sys.executable, "-m", "tests.broker.journal.proposer", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [int(process.stdout.readline()) for _ in range(1 + after_lines)]
        process.kill()
        lines += [int(line) for line in process.stdout if line.endswith("\n")]
    return lines[0], lines[-1]
