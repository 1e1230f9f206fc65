"""A stream with too many producers: one idle for a week makes room, by an entry (CORE 2)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker import limits
from broker.core.entry import AppendOptions, CreateOptions, Entry, Kind, body_digest, encode_options
from broker.core.outcome import Outcome, Result
from broker.journal.memory import MemoryJournal
from broker.partition import Partition
from broker.store.sqlite import SqliteStore
from broker.sweeper import Sweeper
from consumer.wire import Code

PATH = "s"
PRODUCERS_MAX = 3


class Clock:
    """Milliseconds that pass when told to."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def partition(clock: Clock) -> AsyncIterator[Partition]:
    made = Partition(MemoryJournal(wall_ms=clock, monotonic_ms=clock), SqliteStore(None))
    await made.open()
    await made.propose(Entry(Kind.CREATE, PATH, options=encode_options(CreateOptions("text/plain"))))
    yield made
    await made.aclose()


async def append(partition: Partition, producer_id: str, seq: int = 0) -> Outcome:
    options = encode_options(AppendOptions("text/plain", producers_max=PRODUCERS_MAX))
    entry = Entry(
        Kind.APPEND, PATH, producer_id=producer_id, seq=seq, digest=body_digest(b"x"), options=options, body=b"x"
    )
    return await partition.propose(entry)


async def test_one_more_producer_is_refused_until_one_has_been_idle_for_a_week(
    partition: Partition, clock: Clock
) -> None:
    sweeper = Sweeper(partition)
    await asyncio.gather(*(append(partition, f"p{number}") for number in range(PRODUCERS_MAX)))
    await partition.checkpoint()
    assert (await append(partition, "late")).code is Code.TOO_MANY_PRODUCERS
    await sweeper.clear_up()
    assert (await append(partition, "late")).code is Code.TOO_MANY_PRODUCERS

    clock.now_ms += limits.PRODUCER_IDLE_MS + 1
    await append(partition, "p1", seq=1)  # not idle any more
    assert (await append(partition, "late")).code is Code.TOO_MANY_PRODUCERS
    await sweeper.clear_up()
    assert (await append(partition, "late")).result is Result.ACCEPTED
    assert (await append(partition, "p1", seq=2)).result is Result.ACCEPTED
