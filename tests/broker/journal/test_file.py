"""What only the journal in files does: real files, real failures, real kills."""

import asyncio
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st

from broker.core.entry import Entry, Kind, encode
from broker.errors import Damaged, EngineStopped, NewerFormat, Unavailable
from broker.journal import Commit, Journal
from broker.journal.durable import BLOCK_BYTES, DirectWrite
from broker.journal.frame import FRAME_BYTES, HEADER_BYTES
from broker.journal.segments import Segments
from broker.limits import KIB, MIB, SEGMENT_SPARES_MAX
from tests.broker.journal.bench import UUID, Bench, Heard

MakeEntry = Callable[..., Entry]
KILLS = 20
FRAME_MAGIC = b"\xf3commit\xf5"


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


def files(bench: Bench, suffix: str = ".log") -> list[Path]:
    return sorted(bench.data_dir.journal_path.glob(f"*{suffix}"))


def edit(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change a file behind the journal's back."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def replace(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        at = data.index(old)
        data[at : at + len(old)] = new

    return change


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


def pretend_kill(bench: Bench) -> None:
    """Take back what a clean end has written."""
    edit(files(bench)[-1], lambda data: data.__setitem__(slice(at := data.rindex(FRAME_MAGIC), at + 8), bytes(8)))


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


# -- what a crash leaves -----------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_torn_write_is_cut_and_everything_before_it_stays(data: st.DataObject) -> None:
    """Power fails in the midst of the last write: any of its sectors may be new, or as before."""
    sizes = data.draw(st.lists(st.integers(0, 3000), min_size=2, max_size=6))
    with TemporaryDirectory() as folder:
        before = journal_of(Path(folder), sizes[:-1])
        path = max(Path(folder).glob("*.log"))
        old = path.read_bytes()
        write_all(Path(folder), sizes[-1:], first_index=len(sizes))
        new = path.read_bytes()
        sectors = [at for at in range(0, len(new), 512) if new[at : at + 512] != old[at : at + 512]]
        reached = data.draw(st.sets(st.sampled_from(sectors)))
        torn = bytearray(old)
        for at in reached:
            torn[at : at + 512] = new[at : at + 512]
        path.write_bytes(torn)
        found = commits_of(Path(folder))
        assert found[: len(before)] == before
        assert len(found) == len(before) + (len(reached) == len(sectors))
        write_all(Path(folder), [100], first_index=len(found) + 1)
        assert [commit.first_index for commit in commits_of(Path(folder))] == list(range(1, len(found) + 2))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_before_the_last_commit_never_passes(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 300), min_size=2, max_size=6))
    with TemporaryDirectory() as folder:
        write_all(Path(folder), sizes[:-1], first_index=1)
        path = next(Path(folder).glob("*.log"))
        last = len(path.read_bytes().rstrip(b"\0"))
        write_all(Path(folder), sizes[-1:], first_index=len(sizes))
        at, bit = data.draw(st.integers(0, last - 1)), data.draw(st.integers(0, 7))
        edit(path, lambda file: file.__setitem__(at, file[at] ^ 1 << bit))
        with pytest.raises((Damaged, NewerFormat)):
            commits_of(Path(folder))


def journal_of(folder: Path, sizes: list[int]) -> list[Commit]:
    """Commits of one entry each, as a killed process leaves them."""
    write_all(folder, sizes, first_index=1)
    return commits_of(folder)


def write_all(folder: Path, sizes: list[int], first_index: int) -> None:
    segments = Segments(folder, UUID, segment_bytes=32 * KIB)
    segments.open(0)
    for index, size in enumerate(sizes, first_index):
        # The body holds what could be taken for a frame, were it not for the salt.
        body = (FRAME_MAGIC + bytes([index]) * 92) * (size // 100) + b"x" * (size % 100)
        segments.append(index, index, [encode(Entry(Kind.APPEND, "a/path", proposal=index, body=body))])
    segments.abandon()


def commits_of(folder: Path) -> list[Commit]:
    segments = Segments(folder, UUID, segment_bytes=32 * KIB)
    try:
        segments.open(0)
        return list(segments.commits(1))
    finally:
        segments.abandon()


async def test_a_damaged_last_commit_of_a_journal_that_was_closed_is_damage(bench: Bench, entry: MakeEntry) -> None:
    """Nothing can have been torn there."""
    await write(bench, [entry(1), entry(2, b"a body")])
    edit(files(bench)[0], replace(b"a body", b"A body"))
    with pytest.raises(Damaged, match="index 2"):
        await bench.opened()


async def test_frames_of_a_segments_former_life_are_not_found(bench: Bench, entry: MakeEntry) -> None:
    bench.segment_bytes = BLOCK_BYTES
    journal, heard = await bench.started()
    for n in range(1, 60):
        journal.propose(entry(n, b"x" * 300))
        await heard.until_entries(n)
        journal.trim(n - 1)
    await journal.aclose()
    assert files(bench, ".spare")
    assert len(files(bench)) + len(files(bench, ".spare")) <= SEGMENT_SPARES_MAX
    pretend_kill(bench)
    assert await replayed(await bench.opened(applied_index=58)) == heard.commits[-1:]


# -- files that must not be opened -------------------------------------------------------------------------------


async def test_a_journal_of_another_store_is_damage(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(1)])
    bench.data_dir.uuid = b"another store..."
    with pytest.raises(Damaged, match="another store"):
        await bench.opened()


async def test_a_newer_format_is_refused(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(1)])
    edit(files(bench)[0], lambda data: data.__setitem__(8, 2))
    with pytest.raises(NewerFormat, match="format 2"):
        await bench.opened()


@pytest.mark.parametrize("content", [b"", b"no journal at all" * 1000])
async def test_a_file_of_something_else_is_refused(bench: Bench, content: bytes) -> None:
    bench.data_dir.journal_path.mkdir()
    (bench.data_dir.journal_path / f"{1:016x}.log").write_bytes(content)
    with pytest.raises(Damaged, match="not a segment of Streamfold"):
        await bench.opened()


async def test_a_missing_segment_is_damage_that_names_the_index(bench: Bench, entry: MakeEntry) -> None:
    bench.segment_bytes = BLOCK_BYTES
    await write(bench, [entry(n, b"x" * 3000) for n in range(5)])
    files(bench)[2].unlink()
    with pytest.raises(Damaged, match="index 3"):
        await bench.opened()


async def test_a_segment_under_another_name_is_damage(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(1)])
    path = files(bench)[0]
    path.rename(path.with_name(f"{7:016x}.log"))
    with pytest.raises(Damaged, match="begins at index 1"):
        await bench.opened()


async def test_damage_that_the_store_has_whole_hinders_nobody(bench: Bench, entry: MakeEntry) -> None:
    bench.segment_bytes = BLOCK_BYTES
    heard = await write(bench, [entry(n, b"x" * 3000) for n in range(5)])
    edit(files(bench)[0], lambda data: data.__setitem__(HEADER_BYTES + FRAME_BYTES + 20, 0))
    assert await replayed(await bench.opened(applied_index=3)) == heard.commits[3:]


async def test_a_journal_that_begins_beyond_the_store_is_damage(bench: Bench, entry: MakeEntry) -> None:
    await write(bench, [entry(n) for n in range(3)], applied_index=10)
    with pytest.raises(Damaged, match="index 9"):
        await bench.opened(applied_index=9)
    assert len(await replayed(await bench.opened(applied_index=10))) == 3


async def test_a_restored_store_without_a_journal_begins_an_empty_one(bench: Bench, entry: MakeEntry) -> None:
    heard = await write(bench, [entry(1)], applied_index=41)
    assert heard.indexes == [42]


# -- trimming ----------------------------------------------------------------------------------------------------


async def test_trimming_spares_what_the_store_lacks_and_uses_the_rest_again(bench: Bench, entry: MakeEntry) -> None:
    bench.segment_bytes = BLOCK_BYTES
    journal, heard = await bench.started()
    for n in range(1, 31):
        journal.propose(entry(n, b"x" * 3000))
        await heard.until_entries(n)
    assert len(files(bench)) == 30
    journal.trim(20)
    journal.propose(entry(31, b"x" * 3000))
    await heard.until_entries(31)
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


async def test_store_that_a_cluster_made_is_refused(bench: Bench) -> None:
    with pytest.raises(Damaged, match="another engine"):
        await bench.make().open(3, 0, b"a mark")
