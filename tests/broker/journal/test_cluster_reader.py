"""broker/journal/cluster_reader.py: what is known of records before their turn comes."""

from collections.abc import Sequence

import pytest

from broker.core.entry import Entry, encode as encode_entry
from broker.errors import NewerFormat
from broker.journal.cluster_reader import RecordReader
from broker.journal.cluster_record import Envelope, encode
from tests.broker.journal.bench import MakeEntry
from tests.broker.journal.memory_log import MemoryLog, Records

OURS, ANOTHER = 1, 2


class Foresight:
    """Who is told of what comes, a list for each time."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []

    async def __call__(self, entries: Sequence[Entry]) -> None:
        self.told.append([entry.proposal for entry in entries])


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def foresight() -> Foresight:
    return Foresight()


@pytest.fixture
def reader(records: Records, foresight: Foresight) -> RecordReader:
    reader = RecordReader(MemoryLog(records), OURS)
    reader.foresee = foresight
    return reader


def put(records: Records, number: int, *entries: Entry, boot: int = ANOTHER) -> None:
    records.put(encode(Envelope(boot, number, tuple(map(encode_entry, entries)))))


async def test_entries_of_many_records_are_told_of_at_once_before_the_first_is_handed_out(
    reader: RecordReader, records: Records, foresight: Foresight, entry: MakeEntry
) -> None:
    for number in range(1, 4):
        put(records, number, entry(2 * number), entry(2 * number + 1))
    first = await reader.next()
    assert foresight.told == [[2, 3, 4, 5, 6, 7]]
    rest = [await reader.next() for _ in range(2)]
    assert [[each.proposal for each in read.entries] for read in (first, *rest)] == [[2, 3], [4, 5], [6, 7]]
    assert len(foresight.told) == 1


async def test_no_more_is_looked_at_together_than_may_be_in_memory_twice(
    reader: RecordReader,
    records: Records,
    foresight: Foresight,
    entry: MakeEntry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.limits.AHEAD_BYTES", 1_000)
    monkeypatch.setattr("broker.limits.AHEAD_RECORDS", 3)
    for number, size in enumerate((600, 600, 10, 10, 10, 10), start=1):
        put(records, number, entry(number, b"x" * size))
    assert [(await reader.next()).record.position for _ in range(6)] == list(range(6))
    assert foresight.told == [[1, 2], [3, 4, 5], [6]]


async def test_record_that_cannot_be_decoded_holds_up_nobody_before_it(
    reader: RecordReader, records: Records, foresight: Foresight, entry: MakeEntry
) -> None:
    put(records, 1, entry(1))
    records.put(b"SF\xff")
    put(records, 2, entry(2))
    before, newer, after = [await reader.next() for _ in range(3)]
    assert isinstance(newer.error, NewerFormat)
    assert (before.error, after.error) == (None, None)
    assert foresight.told == [[1, 2]]


async def test_what_this_process_wrote_it_need_not_be_told_of(
    reader: RecordReader, records: Records, foresight: Foresight, entry: MakeEntry
) -> None:
    put(records, 1, entry(1), boot=OURS)
    records.put(b"somebody else's")
    ours, foreign = [await reader.next() for _ in range(2)]
    assert (ours.entries, foreign.envelope, foresight.told) == ([], None, [])
