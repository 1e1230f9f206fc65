"""broker/data_dir.py: a store that is not to be used any more."""

from pathlib import Path

from broker.data_dir import DataDir
from broker.store import Checkpoint, Head
from broker.store.sqlite import SqliteStore


async def head_of(path: Path) -> Head:
    store = SqliteStore(DataDir(path))
    try:
        return await store.open()
    finally:
        await store.aclose()


async def test_store_that_was_quarantined_is_set_aside_once_and_made_anew(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    store = SqliteStore(data_dir)
    await store.open()
    await store.write(Checkpoint(Head(7, 14), {}, [], []))
    data_dir.quarantine("another node made something else of the log")
    await store.aclose()

    assert await head_of(data_dir.path) == Head()
    (aside,) = data_dir.path.glob("set-aside-*")
    assert "something else" in (aside / "why").read_text(encoding="utf-8")
    assert await head_of(aside) == Head(7, 14)
    assert await head_of(data_dir.path) == Head()
    assert len(list(data_dir.path.glob("set-aside-*"))) == 1
