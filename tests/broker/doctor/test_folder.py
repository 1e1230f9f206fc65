"""broker/doctor: every way to damage a folder is found, told with its place, and told as a broker would take it."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st

from broker.data_dir import DataDir
from broker.doctor.finding import Finding, Weight
from broker.doctor.folder import Examined, Verdict, examine
from broker.doctor.salvage import salvage
from broker.errors import Damaged, StartError
from broker.journal.file import FileJournal
from broker.journal.frame import FRAME_BYTES, HEADER_BYTES, decode_header, frame_at
from broker.partition import Partition
from broker.store.sqlite import SqliteStore
from tests.broker.doctor.conftest import PATHS, SEGMENT_BYTES, Killed, edit, files, segments


def look(folder: Path, *, thorough: bool = True) -> Examined:
    (found,) = examine(folder, thorough=thorough, segment_bytes=SEGMENT_BYTES)
    return found


def damage(found: Examined) -> list[Finding]:
    return [finding for finding in found.findings if finding.weight is Weight.DAMAGE]


async def opened(folder: Path) -> int:
    """What a broker does; the index that it stands at. Raises StartError."""
    data_dir = DataDir(folder)
    partition = Partition(FileJournal(data_dir, segment_bytes=SEGMENT_BYTES), SqliteStore(data_dir))
    try:
        await partition.open()
        return partition.applied_index
    finally:
        await partition.aclose()


def frames(path: Path) -> list[int]:
    """Where frames begin in a segment, and where the last one ends."""
    data = memoryview(path.read_bytes())
    salt, found = decode_header(data, path.name).salt, [HEADER_BYTES]
    while frame := frame_at(data, found[-1], salt):
        found.append(frame.end)
    return found


def needed(folder: Path, killed: Killed) -> Path:
    """A segment in the middle of what only the journal has."""
    later = [path for path in segments(folder) if int(path.stem, 16) > killed.stored_index + 1]
    assert len(later) > 2
    return later[0]


# -- what is whole -------------------------------------------------------------------------------------------------


def test_folder_of_a_killed_broker_is_healthy_and_stays_as_it_is(folder: Path, killed: Killed) -> None:
    before = files(folder)
    found = look(folder)
    assert (found.verdict, found.findings, found.advice) == (Verdict.HEALTHY, [], [])
    assert found.start == f"goes on behind index {killed.stored_index}: 72 entries of the journal are applied"
    assert "5 streams" not in found.facts[0]
    assert "6 streams, 1 sessions" in found.facts[0]
    assert "not closed" in found.facts[1]
    assert files(folder) == before


async def test_folder_of_a_broker_that_was_stopped_is_healthy(folder: Path, killed: Killed) -> None:
    assert await opened(folder) == killed.last_index
    found = look(folder)
    assert (found.verdict, found.findings) == (Verdict.HEALTHY, [])
    assert "closed in order" in found.facts[1]


def test_torn_last_write_is_a_note_and_the_folder_is_healthy(folder: Path, killed: Killed) -> None:
    last = segments(folder)[-1]
    *_, begin, _ = frames(last)
    edit(last, lambda data: data.__setitem__(begin + FRAME_BYTES + 8, 0xFF))
    found = look(folder)
    (finding,) = found.findings
    assert (found.verdict, finding.weight, finding.file) == (Verdict.HEALTHY, Weight.NOTE, last.name)
    assert (finding.at, finding.first_index) == (begin, killed.last_index)
    assert found.start.endswith("71 entries of the journal are applied")


# -- the journal ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_a_needed_commit_is_found_where_it_is(killed: Killed, data: st.DataObject) -> None:
    with TemporaryDirectory() as temporary:
        folder = killed.copy(Path(temporary) / "data")
        path = needed(folder, killed)
        begins = frames(path)
        at, bit = data.draw(st.integers(HEADER_BYTES, begins[-2] - 1)), data.draw(st.integers(0, 7))
        edit(path, lambda content: content.__setitem__(at, content[at] ^ 1 << bit))
        found = look(folder)
        (finding,) = found.findings
        frame = max(begin for begin in begins if begin <= at)
        assert (found.verdict, finding.weight, finding.file) == (Verdict.DAMAGED, Weight.DAMAGE, path.name)
        assert (finding.at, finding.end) == (frame, begins[begins.index(frame) + 1])
        assert finding.first_index is not None
        assert finding.next_index == finding.first_index + 1
        assert finding.streams_behind
        assert f"index {finding.first_index} is damaged" in found.start
        assert f"everything up to index {finding.first_index - 1}" in found.advice[0]


@pytest.mark.parametrize("at", [0, 3, 12, 20, 30, 36, 41])
def test_flipped_bit_in_a_header_is_found(folder: Path, killed: Killed, at: int) -> None:
    path = needed(folder, killed)
    edit(path, lambda data: data.__setitem__(at, data[at] ^ 1))
    found = look(folder)
    assert found.verdict is Verdict.DAMAGED
    assert damage(found)[0].file == path.name
    assert found.start.startswith("refused: ")


def test_zeroed_block_is_one_hole_over_the_entries_that_lay_in_it(folder: Path, killed: Killed) -> None:
    path = needed(folder, killed)
    edit(path, lambda data: data.__setitem__(slice(1024, 1024 + 4096), bytes(4096)))
    found = look(folder)
    (finding,) = found.findings
    assert finding.at is not None
    assert finding.end is not None
    assert finding.at < 1024 + 4096 < finding.end + FRAME_BYTES
    assert finding.next_index is not None
    assert finding.first_index is not None
    assert finding.next_index - finding.first_index > 3
    assert set(finding.streams_behind) > set(PATHS)


def test_streams_of_a_damaged_commit_are_named_as_far_as_they_can_be_read(folder: Path, killed: Killed) -> None:
    path = needed(folder, killed)
    begin, end = frames(path)[2:4]
    edit(path, lambda data: data.__setitem__(end - 1, 0xFF))
    (finding,) = look(folder).findings
    assert finding.at == begin
    assert len(finding.streams) == 1
    assert finding.streams[0] in (*PATHS, "json", "sessions/s1")


def test_missing_segment_is_told_by_the_entries_that_it_had(folder: Path, killed: Killed) -> None:
    path = needed(folder, killed)
    following = segments(folder)[segments(folder).index(path) + 1]
    path.unlink()
    found = look(folder)
    (finding,) = found.findings
    assert found.verdict is Verdict.DAMAGED
    assert (finding.first_index, finding.next_index) == (int(path.stem, 16), int(following.stem, 16))


def test_journal_that_begins_beyond_the_store_is_told(folder: Path, killed: Killed) -> None:
    for path in segments(folder):
        if int(path.stem, 16) <= killed.stored_index + 1:
            path.unlink()
    found = look(folder)
    (finding,) = found.findings
    assert (finding.first_index, finding.next_index) == (killed.stored_index + 1, int(segments(folder)[0].stem, 16))
    assert "refused: the journal begins at index" in found.start


@pytest.mark.parametrize("last", [True, False])
def test_truncated_segment_is_damage_also_where_a_start_would_not_know(
    folder: Path, killed: Killed, *, last: bool
) -> None:
    path = segments(folder)[-1] if last else needed(folder, killed)
    cut = frames(path)[3]
    edit(path, lambda data: data.__delitem__(slice(cut, None)))
    found = look(folder)
    assert found.verdict is Verdict.DAMAGED
    assert any(finding.at == cut and "it was cut" in finding.what for finding in damage(found))
    assert found.start.startswith("goes on behind" if last else "refused: ")


def test_segment_of_another_store_is_told(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "store.sqlite")) as connection, connection:
        connection.execute("UPDATE head SET uuid = ?", (bytes(16),))
    found = look(folder)
    assert found.verdict is Verdict.DAMAGED
    assert damage(found)[0].what == "it belongs to another store"


def test_newer_segment_is_a_verdict_of_its_own(folder: Path) -> None:
    edit(segments(folder)[-1], lambda data: data.__setitem__(8, 2))
    found = look(folder)
    assert (found.verdict, found.findings[0].weight) == (Verdict.NEWER, Weight.NEWER)
    assert "format 2" in found.start


async def test_damage_to_what_the_store_has_is_a_warning_and_the_broker_starts(folder: Path, killed: Killed) -> None:
    path = segments(folder)[0]
    assert int(path.stem, 16) <= killed.stored_index
    edit(path, lambda data: data.__setitem__(HEADER_BYTES + FRAME_BYTES + 8, 0xFF))
    found = look(folder)
    (finding,) = found.findings
    assert (found.verdict, finding.weight) == (Verdict.HEALTHY, Weight.WARNING)
    assert found.advice
    assert await opened(folder) == killed.last_index


# -- the store -----------------------------------------------------------------------------------------------------


def changed_store(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "store.sqlite", isolation_level=None)) as connection:
        connection.create_function("spoiled", 1, lambda data: data.replace(b"{", b"<"))
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DELETE FROM page WHERE id = (SELECT max(id) FROM page)", "its pages have"),
        ('UPDATE page SET start = start + 1, "end" = "end" + 1 WHERE id = 2', "its pages have"),
        ("UPDATE page SET bytes = bytes + 1 WHERE id = 2", "bytes of data and says"),
        ("UPDATE page SET data = substr(data, 1, 3) WHERE id = 2", "cut short"),
        ("UPDATE page SET data = spoiled(data)", "no JSON"),
        ("UPDATE row SET value = x'ff' WHERE key = CAST('stext/1' AS BLOB)", "cannot be decoded"),
        ("UPDATE row SET key = CAST('Stext/1' AS BLOB) WHERE key = CAST('stext/1' AS BLOB)", "holds a Stream"),
        ("UPDATE row SET is_watched = 1 WHERE key = CAST('stext/1' AS BLOB)", "listed otherwise"),
        ("DELETE FROM head", "does not say where it stands"),
        ("UPDATE head SET mark = x'c1'", "its mark cannot be decoded"),
    ],
)  # fmt: skip
def test_store_that_contradicts_itself_is_damaged(folder: Path, statement: str, what: str) -> None:
    changed_store(folder, statement)
    found = look(folder)
    assert found.verdict is Verdict.DAMAGED
    assert any(what in finding.what for finding in damage(found)), [finding.what for finding in found.findings]


def test_broken_tree_is_told_with_its_place_in_the_file(folder: Path) -> None:
    changed_store(folder, "PRAGMA wal_checkpoint(TRUNCATE)")
    with closing(sqlite3.connect(folder / "store.sqlite")) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'page_start'").fetchone()
    at = (root - 1) * 8192
    edit(folder / "store.sqlite", lambda data: data.__setitem__(slice(at, at + 8192), bytes(8192)))
    for thorough in (True, False):
        found = look(folder, thorough=thorough)
        assert found.verdict is Verdict.DAMAGED
        assert any("SQLite" in finding.what for finding in damage(found))


def test_file_that_is_no_store_is_told(folder: Path) -> None:
    for path in folder.glob("store.sqlite*"):
        path.unlink()
    (folder / "store.sqlite").write_bytes(b"no database at all" * 1000)
    found = look(folder)
    assert found.verdict is Verdict.DAMAGED
    assert "refused: " in found.start


def test_store_that_is_missing_is_damage(folder: Path) -> None:
    for path in folder.glob("store.sqlite*"):
        path.unlink()
    found = look(folder)
    assert (found.verdict, "missing" in found.start) == (Verdict.DAMAGED, True)


def test_newer_store_is_a_verdict_of_its_own(folder: Path) -> None:
    changed_store(folder, "PRAGMA user_version = 99")
    found = look(folder)
    assert (found.verdict, "format 99" in found.start) == (Verdict.NEWER, True)


def test_lost_wal_of_the_store_is_a_hole_when_the_journal_is_trimmed(folder: Path) -> None:
    """SQLite takes a WAL that it does not believe for an empty one, and says nothing."""
    (folder / "store.sqlite-wal").unlink()
    found = look(folder)
    assert (found.verdict, "refused: " in found.start) == (Verdict.DAMAGED, True)


def test_damaged_key_is_told_as_a_start_would(folder: Path) -> None:
    (folder / "signing-key.pem").write_text("no key", encoding="ascii")
    found = look(folder)
    assert (found.verdict, "Ed25519" in found.start) == (Verdict.DAMAGED, True)


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="nothing of a broker"):
        examine(tmp_path)
    with pytest.raises(StartError):
        examine(tmp_path / "missing")


def test_folder_that_somebody_has_is_not_looked_at(folder: Path) -> None:
    holder = DataDir(folder)
    holder.take()
    try:
        assert look(folder).verdict is Verdict.IN_USE
    finally:
        holder.release()
    assert look(folder).verdict is Verdict.HEALTHY


# -- salvage -------------------------------------------------------------------------------------------------------


async def test_salvage_makes_a_folder_of_all_before_the_damage_and_a_broker_takes_it(
    folder: Path, killed: Killed, tmp_path: Path
) -> None:
    path = needed(folder, killed)
    edit(path, lambda data: data.__setitem__(frames(path)[2] + FRAME_BYTES + 8, 0xFF))
    with pytest.raises(Damaged):
        await opened(shutil.copytree(folder, tmp_path / "copy"))
    before = files(folder)
    damaged = int(path.stem, 16) + 2

    salvaged = salvage(folder, tmp_path / "new")

    assert (salvaged.index, salvaged.entries) == (damaged - 1, damaged - 1 - killed.stored_index)
    (found,) = examine(tmp_path / "new")
    assert (found.verdict, found.findings) == (Verdict.HEALTHY, [])
    assert files(folder) == before
    assert await opened(tmp_path / "new") == damaged - 1


def test_salvage_does_not_write_into_a_folder_that_holds_something(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    with pytest.raises(StartError, match="not empty"):
        salvage(folder, tmp_path / "new")


def test_salvage_of_a_damaged_store_is_refused(folder: Path, tmp_path: Path) -> None:
    changed_store(folder, "UPDATE row SET value = x'ff' WHERE key = CAST('stext/1' AS BLOB)")
    with pytest.raises(Damaged):
        salvage(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()
