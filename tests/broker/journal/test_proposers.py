"""Late copies of settled records are void."""

from hypothesis import given, strategies as st

from broker.journal.proposers import Proposers

DAY_MS = 24 * 3600 * 1000


def admit(proposers: Proposers, boot: int, number: int, now_ms: int) -> bool:
    """Whether the record counts; then it is noted, as the journal does."""
    if proposers.is_late(boot, number):
        return False
    proposers.note(boot, number, now_ms)
    return True


def test_late_copy_of_a_settled_record_is_not_admitted() -> None:
    """So that a refusal, once told, is final."""
    proposers = Proposers()
    admitted = [admit(proposers, 1, number, 0) for number in (1, 2, 2, 1, 5, 4, 6)]
    assert admitted == [True, True, False, False, True, False, True]


def test_proposers_do_not_know_of_each_other() -> None:
    proposers = Proposers()
    assert admit(proposers, 1, 9, 0)
    assert admit(proposers, 2, 3, 0)
    assert not admit(proposers, 1, 4, 0)


def test_nothing_of_a_boot_that_is_over_is_admitted() -> None:
    proposers = Proposers()
    admit(proposers, 1, 1, 0)
    proposers.retire(1, 0)
    proposers.retire(2, 0)
    assert not admit(proposers, 1, 2, 0)
    assert not admit(proposers, 2, 1, 0)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), max_size=30), st.integers(0, 30))
def test_table_that_was_stored_and_read_back_goes_on_the_same(records: list[tuple[int, int]], cut: int) -> None:
    whole, first = Proposers(), Proposers()
    expected = [admit(whole, *record, 0) for record in records]
    admitted = [admit(first, *record, 0) for record in records[:cut]]
    second = Proposers(first.stored())
    admitted += [admit(second, *record, 0) for record in records[cut:]]
    assert admitted == expected
    assert second.stored() == whole.stored()


def test_proposer_silent_for_a_day_is_forgotten_when_another_comes() -> None:
    proposers = Proposers()
    admit(proposers, 1, 9, 0)
    admit(proposers, 2, 9, 1)
    admit(proposers, 3, 1, DAY_MS + 1)
    assert not admit(proposers, 2, 8, DAY_MS + 1)
    assert admit(proposers, 1, 8, DAY_MS + 1)


def test_proposer_that_goes_on_is_remembered_from_its_newest_record() -> None:
    proposers = Proposers()
    admit(proposers, 1, 1, 0)
    admit(proposers, 1, 2, DAY_MS)
    admit(proposers, 2, 1, DAY_MS + 1)
    assert not admit(proposers, 1, 2, DAY_MS + 1)
