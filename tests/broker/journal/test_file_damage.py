"""What the journal in files makes of the files it finds: after real kills, of a bad disk, of somebody else."""

import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st

from broker.core.entry import Entry, Kind, encode
from broker.errors import Damaged, NewerFormat
from broker.journal import Commit
from broker.journal.durable import BLOCK_BYTES
from broker.journal.frame import FRAME_BYTES, HEADER_BYTES
from broker.journal.segments import Segments
from broker.limits import KIB, SEGMENT_SPARES_MAX
from tests.broker.journal.bench import UUID, Bench, MakeEntry
from tests.broker.journal.segment_files import FRAME_MAGIC, edit, files, pretend_kill, replace, replayed, write

KILLS = 20


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
        await heard.write(journal, entry(n, b"x" * 300))
        journal.trim(n - 1)
    await journal.aclose()
    assert files(bench, ".spare")
    assert len(files(bench)) + len(files(bench, ".spare")) <= SEGMENT_SPARES_MAX
    pretend_kill(bench)
    assert await replayed(await bench.opened(applied_index=58)) == heard.commits[-1:]


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


async def test_store_that_a_cluster_made_is_refused(bench: Bench) -> None:
    with pytest.raises(Damaged, match="another engine"):
        await bench.make().open(3, 0, b"a mark")
