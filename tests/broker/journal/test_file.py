"""What only the journal in files does while it runs, on real files and through real failures."""

import asyncio
import errno
import os
import shutil
import threading
from collections import deque
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from broker.errors import EngineStopped, Unavailable
from broker.journal import Commit
from broker.journal.durable import BLOCK_BYTES, DirectWrite
from broker.journal.segments import Segments
from broker.limits import KIB, MIB, SEGMENT_SPARES_MAX
from tests.broker.journal.bench import UUID, Bench, MakeEntry
from tests.broker.journal.segment_files import files, pretend_kill, replayed, write


class Disk:
    """A disk whose writes can be held up or made to fail."""

    def __init__(self) -> None:
        self.road = threading.Event()
        self.road.set()
        self.writes = 0
        self._write = DirectWrite()
        self._failures: deque[tuple[int, bool]] = deque()

    def fail(self, *numbers: int, written: bool) -> None:
        """The next writes fail with these errors, though all of it reached the disk if `written`."""
        self._failures.extend((number, written) for number in numbers)

    def write(self, file: FileIO, data: bytes, at: int) -> None:
        assert self.road.wait(30)
        self.writes += 1
        number, written = self._failures.popleft() if self._failures else (0, True)
        if written:
            self._write(file, data, at)
        if number:
            raise OSError(number, os.strerror(number))


@pytest.fixture
def disk(bench: Bench) -> Disk:
    """The disk of `bench`, in working order."""
    disk = Disk()
    bench.write = disk.write
    return disk


# -- commits -----------------------------------------------------------------------------------------------------


async def test_what_is_proposed_while_a_commit_runs_shares_the_next_one(
    bench: Bench, entry: MakeEntry, disk: Disk
) -> None:
    journal, heard = await bench.started()
    disk.road.clear()
    for n in range(20):
        journal.propose(entry(n))
        await asyncio.sleep(0)  # each in an iteration of its own
    assert heard.commits == []
    disk.road.set()
    await journal.aclose()
    assert len(heard.commits) <= 2
    assert heard.indexes == list(range(1, 21))


async def test_a_commit_is_one_write(bench: Bench, entry: MakeEntry, disk: Disk) -> None:
    journal, heard = await bench.started()
    disk.writes = 0
    for n in range(30):
        journal.propose(entry(n))
    await heard.until_entries(30)
    assert (len(heard.commits), disk.writes) == (1, 1)


async def test_a_commit_is_bounded_in_bytes_and_may_be_larger_than_a_segment(bench: Bench, entry: MakeEntry) -> None:
    journal, heard = await bench.started()
    body = b"x" * MIB
    for n in range(30):
        journal.propose(entry(n, body))
    await journal.aclose()
    assert [len(commit.entries) for commit in heard.commits] == [8, 8, 8, 6]
    assert await replayed(await bench.opened()) == heard.commits


async def test_replay_gives_what_was_handed_back_beyond_the_store_over_many_segments(
    bench: Bench, entry: MakeEntry
) -> None:
    bench.segment_bytes = BLOCK_BYTES
    heard = await write(bench, [entry(n, b"body %d" % n * 80) for n in range(40)])
    assert len(files(bench)) > 5
    for applied_index in (0, 7, 39, 40):
        journal = await bench.opened(applied_index)
        assert await replayed(journal) == heard.commits[applied_index:]
        await journal.aclose()


async def test_replay_begins_inside_a_commit_when_the_store_ends_there(bench: Bench, entry: MakeEntry) -> None:
    journal, heard = await bench.started()
    for n in range(6):
        journal.propose(entry(n))
    await journal.aclose()
    commits = await replayed(await bench.opened(applied_index=4))
    assert commits == [Commit(5, heard.commits[0].time_ms, heard.commits[0].entries[4:])]


@pytest.mark.parametrize("killed", [False, True])
async def test_time_goes_on_from_the_last_commit_when_the_wall_clock_has_stepped_back(
    bench: Bench, entry: MakeEntry, *, killed: bool
) -> None:
    await write(bench, [entry(1)])
    if killed:
        pretend_kill(bench)
    bench.wall_ms -= 700_000
    assert (await bench.opened()).now_ms() == 1_000_000


async def test_a_store_ahead_of_the_journal_goes_on_behind_it(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(n) for n in range(3)])
    heard = await write(bench, [entry(1)], applied_index=10)
    assert heard.indexes == [11]
    assert await replayed(await bench.opened(applied_index=10)) == heard.commits


# -- a full or bad disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [False, True])
async def test_a_full_disk_refuses_and_leaves_no_trace_and_room_lets_the_next_through(
    bench: Bench, entry: MakeEntry, disk: Disk, *, written: bool
) -> None:
    """Also when all of it had reached the disk before the system said that there was no room."""
    journal, heard = await bench.started()
    journal.propose(entry(1))
    await heard.until(lambda: heard.commits)
    disk.fail(errno.ENOSPC, written=written)
    refused = entry(2, b"x" * KIB)
    journal.propose(refused)
    await heard.until(lambda: heard.refused or heard.stopped)
    assert isinstance(heard.refused[0].error, Unavailable)
    assert heard.refused[0].entries[0] is refused
    assert [commit.first_index for commit in await replayed_elsewhere(bench)] == [1]
    journal.propose(entry(3))
    await journal.aclose()
    assert [(index, one.proposal) for index, one in heard.entries] == [(1, 1), (2, 3)]
    assert await replayed(await bench.opened()) == heard.commits


async def test_a_disk_too_full_for_the_next_segment_refuses_and_room_lets_it_be_made(
    bench: Bench, entry: MakeEntry, disk: Disk
) -> None:
    bench.segment_bytes = BLOCK_BYTES
    journal, heard = await bench.started()
    journal.propose(entry(1, b"x" * 3000))
    await heard.until(lambda: heard.commits)
    disk.fail(errno.ENOSPC, written=False)
    journal.propose(entry(2, b"x" * 3000))
    await heard.until(lambda: heard.refused)
    assert (len(files(bench)), files(bench, ".spare")) == (1, [])
    journal.propose(entry(3, b"x" * 3000))
    await journal.aclose()
    assert [(index, one.proposal) for index, one in heard.entries] == [(1, 1), (2, 3)]
    assert await replayed(await bench.opened()) == heard.commits


@pytest.mark.parametrize("errors", [(errno.EIO,), (errno.ENOSPC, errno.ENOSPC)])
async def test_a_commit_of_unknown_fate_stops_the_journal(
    bench: Bench, entry: MakeEntry, disk: Disk, errors: tuple[int, ...]
) -> None:
    """A refusal that cannot be wiped out is no refusal."""
    journal, heard = await bench.started()
    disk.fail(*errors, written=True)
    journal.propose(entry(1))
    await heard.until(lambda: heard.stopped)
    assert [type(error) for error in heard.stopped] == [EngineStopped]
    with pytest.raises(EngineStopped):
        journal.propose(entry(2))
    writes = disk.writes
    await journal.aclose()
    assert (heard.commits, heard.refused, len(heard.stopped), disk.writes) == ([], [], 1, writes)


async def replayed_elsewhere(bench: Bench) -> list[Commit]:
    """What a process would find that started now."""
    with TemporaryDirectory() as folder:
        shutil.copytree(bench.data_dir.journal_path, Path(folder) / "journal")
        segments = Segments(Path(folder) / "journal", UUID)
        segments.open(0)
        found = list(segments.commits(1))
        segments.abandon()
        return found


# -- trimming ----------------------------------------------------------------------------------------------------


async def test_trimming_spares_what_the_store_lacks_and_uses_the_rest_again(bench: Bench, entry: MakeEntry) -> None:
    bench.segment_bytes = BLOCK_BYTES
    journal, heard = await bench.started()
    await heard.write(journal, *(entry(n, b"x" * 3000) for n in range(1, 31)))
    assert len(files(bench)) == 30
    journal.trim(20)
    await heard.write(journal, entry(31, b"x" * 3000))
    await journal.aclose()
    assert [int(path.stem, 16) for path in files(bench)] == list(range(21, 32))
    assert SEGMENT_SPARES_MAX - 1 <= len(files(bench, ".spare")) <= SEGMENT_SPARES_MAX  # one may be in use again
    assert await replayed(await bench.opened(applied_index=20)) == heard.commits[20:]


async def test_what_the_journal_takes_on_the_disk_stays_bounded_under_constant_load(
    bench: Bench, entry: MakeEntry
) -> None:
    bench.segment_bytes = 256 * KIB
    journal, heard = await bench.started()
    most_files = 0
    for n in range(1, 601):
        journal.propose(entry(n, b"x" * 60_000))
        await heard.until_entries(n - 8)
        journal.trim(n - 50)
        most_files = max(most_files, len(files(bench)) + len(files(bench, ".spare")))
    await journal.aclose()
    assert sum(len(one.body) for _, one in heard.entries) > 32 * MIB
    assert most_files <= 60_000 * 60 // (256 * KIB - 120_000) + SEGMENT_SPARES_MAX + 2
