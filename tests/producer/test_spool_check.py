"""producer/spool_check.py: a spool that is whole is told to be, and one that is not where it is not."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from consumer.errors import SpoolError, SpoolInUse
from producer.batcher import Batch
from producer.spool import Spool
from producer.spool_check import check


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A spool with one generation: two batches cut, of which one is acknowledged, and a chunk behind them."""
    path = tmp_path / "spool.sqlite"
    spool = Spool(path, bytes_max=1 << 20)
    [kept] = spool.transact([lambda it: it.begin("s", "g", {"lane": "main"})])

    def change(spool: Spool) -> None:
        for n in range(5):
            spool.add(kept.id, b'"%d"' % n)
        for seq in range(2):
            spool.seal(kept.id, seq, Batch(b'["x","y"]', 2, 9, written=2))
        spool.acknowledge(kept.id, 0)

    spool.transact([change])
    spool.close()
    return path


def test_whole_spool_has_no_faults_and_says_what_waits(path: Path) -> None:
    found = check(path)
    assert (found.faults, found.is_newer) == ([], False)
    assert (found.generations, found.waiting, found.batches, found.chunks) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE batches SET seq = 7", "its batches are [7], the next one is 2"),
        ("UPDATE batches SET body = x'5b'", "batch 1 is no JSON"),
        ("UPDATE chunks SET n = 9", "chunks are missing"),
        ("UPDATE chunks SET body = x'7b'", "chunk 4 is no JSON"),
        ("UPDATE generations SET opening = x'7b'", "how it is opened"),
    ],
)
def test_spool_that_contradicts_itself_has_faults(path: Path, statement: str, fault: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)
    assert any(fault in found for found in check(path).faults)


def test_file_whose_pages_are_gone_has_faults(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    assert check(path).faults


def test_newer_spool_is_not_judged(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert check(path).is_newer


def test_spool_in_use_and_files_of_others_are_refused(path: Path, tmp_path: Path) -> None:
    spool = Spool(path, bytes_max=1 << 20)
    with pytest.raises(SpoolInUse):
        check(path)
    spool.close()
    with closing(sqlite3.connect(tmp_path / "other", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(SpoolError, match="is no spool"):
        check(tmp_path / "other")
