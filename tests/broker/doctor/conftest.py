"""A data folder as a killed broker leaves it: a part of it is in the store, the rest in the journal alone."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.data_dir import DataDir
from broker.journal.file import FileJournal
from broker.limits import KIB
from broker.partition import Partition
from broker.store.sqlite import SqliteStore
from tests.broker.core.entries import append, append_bytes, chunks, create, create_session

SEGMENT_BYTES = 8 * KIB
PATHS = tuple(f"text/{n}" for n in range(4))
STORED, LEFT = 24, 24
"""Appends that the store has, and those that only the journal has."""


async def fill(folder: Path, target: Path) -> int:
    """Write to `folder`, copy it to `target` as a crash would leave it; the index that its store ends at."""
    data_dir = DataDir(folder)
    journal = FileJournal(data_dir, segment_bytes=SEGMENT_BYTES)
    partition = Partition(journal, SqliteStore(data_dir), checkpoint_interval_s=3600)
    await partition.open()
    for path in PATHS:
        await partition.propose(create(path=path, content_type="text/plain"))
    await partition.propose(create(b'{"n":0}', path="json"))
    await partition.propose(create_session())
    for n in range(STORED + LEFT):
        if n == STORED:
            await partition.checkpoint()
        await partition.propose(append_bytes(b"%d" % n * 400, path=PATHS[n % 4], content_type="text/plain"))
        await partition.propose(append(b'{"n":%d}' % n, b'"x"', path="json"))
        await partition.propose(chunks("g", n, b'"word %d"' % n))
    stored_index = partition.applied_index - 3 * LEFT
    await asyncio.to_thread(shutil.copytree, folder, target)
    await partition.aclose()
    return stored_index


class Killed:
    """Makes copies of that folder; the store ends at `stored_index`, the journal at `last_index`."""

    def __init__(self, folder: Path, stored_index: int) -> None:
        self._folder = folder
        self.stored_index = stored_index
        self.last_index = stored_index + 3 * LEFT

    def copy(self, target: Path) -> Path:
        shutil.copytree(self._folder, target)
        return target


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    return Killed(folder / "copy", asyncio.run(fill(folder / "run", folder / "copy")))


@pytest.fixture
def folder(killed: Killed, tmp_path: Path) -> Path:
    """A copy of it, for one test."""
    return killed.copy(tmp_path / "data")


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("*.log"))


def edit(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change a file behind everybody's back."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def files(folder: Path) -> dict[str, bytes]:
    """What is in the folder, but for the scratch file of SQLite."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
