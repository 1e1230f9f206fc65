"""broker/store/whole.py: a store as one file, out of one in use and into the place of another."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from broker.core.page import byte_page
from broker.data_dir import DataDir
from broker.errors import Unavailable
from broker.store import Checkpoint, Head, whole
from broker.store.sqlite import SqliteStore

LIFE = 7


def change(index: int) -> Checkpoint:
    page = byte_page(b"%03d" % index, 3 * (index - 1))
    return Checkpoint(Head(index, index, b"mark %d" % index), {}, [(LIFE, [page])], [])


def content(path: Path) -> tuple[bytes, bytes]:
    """Mark and pages of a store that nobody has open."""
    with closing(sqlite3.connect(path)) as connection:
        pages = connection.execute("SELECT data FROM page ORDER BY start").fetchall()
        return connection.execute("SELECT mark FROM head").fetchone()[0], b"".join(data[5:] for (data,) in pages)


async def filled(path: Path, count: int) -> SqliteStore:
    store = SqliteStore(DataDir(path))
    await store.open()
    for index in range(1, count + 1):
        await store.write(change(index))
    return store


async def test_copy_is_what_the_last_checkpoint_left_with_a_mark_and_a_uuid_of_its_own(tmp_path: Path) -> None:
    store = await filled(tmp_path / "a", 3)
    head = await store.copy(tmp_path / "copy", lambda mark: mark + b", of nobody")
    await store.write(change(4))
    await store.aclose()
    assert head == Head(3, 3, b"mark 3")
    assert content(tmp_path / "copy") == (b"mark 3, of nobody", b"001002003")
    assert not list(tmp_path.glob("copy-*"))  # it is one file
    copied, original = (uuid_of(path) for path in (tmp_path / "copy", tmp_path / "a" / "store.sqlite"))
    assert copied != original


def uuid_of(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        return bytes(connection.execute("SELECT uuid FROM head").fetchone()[0])


async def test_copy_takes_the_place_of_what_an_earlier_one_left(tmp_path: Path) -> None:
    store = await filled(tmp_path / "a", 1)
    (tmp_path / "copy").write_bytes(b"half of something")
    (tmp_path / "copy-journal").write_bytes(b"and its journal")
    await store.copy(tmp_path / "copy", bytes)
    await store.aclose()
    assert content(tmp_path / "copy") == (b"mark 1", b"001")


async def test_damaged_store_is_not_copied(tmp_path: Path) -> None:
    store = await filled(tmp_path / "a", 1)
    await store.aclose()
    path = tmp_path / "a" / "store.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    at = data.index(b"001", 8192)
    assert at > 0
    path.write_bytes(data[:8192] + b"\xff" * 8192 + data[2 * 8192 :])
    copying = whole.Copying(lambda: sqlite3.connect(path, isolation_level=None), tmp_path / "copy", bytes)
    with pytest.raises(Unavailable):
        copying.run()


@pytest.mark.parametrize("steps", range(7))
async def test_process_that_dies_while_a_store_is_replaced_leaves_one_of_both_or_none(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the file of one with the WAL of the other."""
    folder = tmp_path / "a"
    await (await filled(tmp_path / "b", 5)).aclose()
    store = await filled(folder, 2)
    path, fresh = folder / "store.sqlite", folder / "fresh"
    await store.copy(fresh, lambda _: b"fresh")
    wal = path.with_name("store.sqlite-wal").read_bytes()
    await store.aclose()
    path.with_name("store.sqlite-wal").write_bytes(wal)  # as a crash leaves it
    left = iter(range(steps))

    def step() -> bool:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return True

    unlink, replace = Path.unlink, Path.replace
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: step() and unlink(self, missing_ok))
    monkeypatch.setattr(Path, "replace", lambda self, target: step() and replace(self, target))
    died = False
    try:
        whole.replace(path, fresh)
    except KeyboardInterrupt:
        died = True
    monkeypatch.undo()
    assert died == (steps < 5)

    async def restore(head: Head | None) -> None:
        assert head is None or head in (Head(2, 2, b"mark 2"), Head(2, 2, b"fresh"))

    again = SqliteStore(DataDir(folder), restore=restore)
    head = await again.open()
    await again.aclose()
    if died and steps > 0:
        assert head == Head()  # the old one was gone, the new one not yet there
    else:
        assert head == Head(2, 2, b"fresh" if not died else b"mark 2")
