"""broker/http/gathering.py: tokens of uploads share a commit where there are many, and wait for nobody where not."""

from broker import limits
from broker.core.entry import Entry, Kind
from broker.core.outcome import Outcome
from broker.http.gathering import Gathering
from broker.proposals import Together
from tests.eventually import eventually


class Writer:
    """Who uploads; it hears nothing here."""

    flying = 0

    def told(self, entry: Entry, outcome: Outcome) -> None:
        raise AssertionError((entry, outcome))

    def told_error(self, entry: Entry, error: Exception) -> None:
        raise AssertionError(entry) from error


WRITER = Writer()


def entry(seq: int) -> Entry:
    return Entry(Kind.CHUNKS, "sessions/s", seq=seq)


async def test_few_are_proposed_as_they_come() -> None:
    proposed: list[Together] = []
    gathering = Gathering(proposed.extend)
    for seq in range(limits.UPLOAD_GATHER_FROM - 1):
        gathering.add(WRITER, entry(seq))
        assert len(proposed) == seq + 1


async def test_many_wait_for_each_other_and_keep_their_order() -> None:
    proposed: list[Together] = []
    gathering = Gathering(proposed.extend)
    for seq in range(2 * limits.UPLOAD_GATHER_FROM):
        gathering.add(WRITER, entry(seq))
    assert len(proposed) < 2 * limits.UPLOAD_GATHER_FROM

    async def all_are() -> bool:
        return len(proposed) == 2 * limits.UPLOAD_GATHER_FROM

    await eventually(all_are)
    assert [known.seq for _, known in proposed] == list(range(len(proposed)))


async def test_commit_of_many_is_not_waited_for() -> None:
    proposed: list[Together] = []
    gathering = Gathering(proposed.extend)
    for seq in range(limits.UPLOAD_GATHER_FROM + limits.GATHER_ENTRIES_MAX):
        gathering.add(WRITER, entry(seq))
    assert len(proposed) == limits.UPLOAD_GATHER_FROM + limits.GATHER_ENTRIES_MAX
