"""broker/http/gathering.py: tokens of uploads share a commit where there are many, and wait for nobody where not."""

from broker import limits
from broker.core.entry import Entry, Kind
from broker.http.gathering import Gathering
from tests.eventually import eventually


def entry(seq: int) -> Entry:
    return Entry(Kind.CHUNKS, "sessions/s", seq=seq)


async def test_few_are_proposed_as_they_come() -> None:
    proposed: list[Entry] = []
    gathering = Gathering()
    for seq in range(limits.UPLOAD_GATHER_FROM - 1):
        gathering.add(proposed.append, [entry(seq)])
        assert len(proposed) == seq + 1


async def test_many_wait_for_each_other_and_keep_their_order() -> None:
    proposed: list[Entry] = []
    gathering = Gathering()
    gathering.add(proposed.append, [entry(0)])
    for seq in range(1, 2 * limits.UPLOAD_GATHER_FROM):
        gathering.add(proposed.append, [entry(seq)])
    assert len(proposed) < 2 * limits.UPLOAD_GATHER_FROM

    async def all_are() -> bool:
        return len(proposed) == 2 * limits.UPLOAD_GATHER_FROM

    await eventually(all_are)
    assert [known.seq for known in proposed] == list(range(len(proposed)))


async def test_commit_of_many_is_not_waited_for() -> None:
    proposed: list[Entry] = []
    Gathering().add(proposed.append, [entry(seq) for seq in range(limits.GATHER_ENTRIES_MAX)])
    assert len(proposed) == limits.GATHER_ENTRIES_MAX
