"""broker/journal/spares.py: the next segment is there before a commit needs it."""

from io import FileIO
from pathlib import Path

import pytest

from broker.journal.durable import write_durably
from broker.journal.segments import Segments
from broker.journal.spares import Spares
from broker.limits import MIB
from tests.broker.journal.bench import UUID


class Writes:
    """What the caller had to write itself."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, file: FileIO, data: bytes, at: int) -> None:
        self.count += 1
        write_durably(file, data, at)


def test_spare_that_was_foreseen_is_taken_without_a_write(tmp_path: Path) -> None:
    spares = Spares(tmp_path, writes := Writes())
    spares.foresee(MIB)
    spare = spares.take(MIB)
    assert (spare.read_bytes(), writes.count) == (bytes(MIB), 0)
    assert list(tmp_path.iterdir()) == [spare]


def test_spare_that_nobody_foresaw_is_made_when_it_is_taken(tmp_path: Path) -> None:
    spares = Spares(tmp_path, writes := Writes())
    assert spares.take(MIB + 1).read_bytes() == bytes(MIB + 1)
    assert writes.count > 1


def test_spare_that_is_too_small_is_not_taken(tmp_path: Path) -> None:
    spares = Spares(tmp_path, Writes())
    spares.foresee(MIB)
    assert spares.take(2 * MIB).stat().st_size == 2 * MIB


def test_second_spare_is_not_made_where_one_is_left(tmp_path: Path) -> None:
    segment = tmp_path / "0000000000000001.log"
    segment.write_bytes(bytes(MIB))
    spares = Spares(tmp_path, Writes())
    spares.keep(segment)
    spares.foresee(MIB)
    spares.settle()
    assert list(tmp_path.iterdir()) == [segment.with_suffix(".spare")]


def test_spare_that_cannot_be_made_is_told_when_it_is_taken(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "missing", Writes())
    spares.foresee(MIB)
    with pytest.raises(FileNotFoundError):
        spares.take(MIB)


def test_segment_that_is_half_full_has_the_next_one_made(tmp_path: Path) -> None:
    segments = Segments(tmp_path, UUID, segment_bytes=MIB, write=Writes())
    segments.open(0)
    segments.append(1, 0, [bytes(MIB // 4)])
    segments.abandon()
    assert not list(tmp_path.glob("*.spare"))
    segments = Segments(tmp_path, UUID, segment_bytes=MIB, write=(writes := Writes()))
    segments.open(0)
    segments.append(2, 0, [bytes(MIB // 2)])
    before = writes.count
    segments.append(3, 0, [bytes(MIB // 2)])
    segments.close()
    assert writes.count == before + len(["the header", "the commit", "the end"])
    assert Segments(tmp_path, UUID).look(0) == 3
