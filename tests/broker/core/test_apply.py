"""broker/core/apply.py: what is neither a stream's nor a session's, and the table of proposers."""

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from broker.core.apply import Proposers, apply, keys
from broker.core.entry import Entry, Kind
from broker.core.outcome import Result
from broker.core.state import stream_key
from tests.broker.core.entries import append, create, noop
from tests.broker.core.replica import BEGIN_MS, Replica

DAY_MS = 24 * 3600 * 1000


def test_noop_is_accepted_and_changes_nothing() -> None:
    replica = Replica()
    assert replica.do(noop()).result is Result.ACCEPTED
    assert replica.rows == {}
    assert keys(noop()) == []


@pytest.mark.parametrize("kind", [Kind.IMPORT, Kind.MOVING, Kind.MOVED, 99])
def test_kind_that_this_program_cannot_apply_stops_it(kind: int) -> None:
    """CORE 1: an exception, never a refusal: another node may know the kind."""
    with pytest.raises(ValueError, match=f"entry kind {int(kind)} is reserved"):
        apply({}, Entry(kind, "p"), 1, BEGIN_MS)


def test_row_of_another_type_under_a_key_is_a_bug_and_told_as_one() -> None:
    replica = Replica()
    replica.do(create())
    row = replica.do(append(b"1", producer=("p", 0, 0))).stream
    with pytest.raises(TypeError, match="a Stream under the key of a Producer"):
        apply(dict.fromkeys(keys(append(b"2", producer=("p", 0, 1))), row), append(b"2", producer=("p", 0, 1)), 3, 0)


def test_rows_are_left_alone_until_changes_are_installed() -> None:
    """CORE 1: all changes are computed, then installed."""
    rows = dict.fromkeys(keys(create(nonce=1)))
    _, changes = apply(rows, create(nonce=1), 1, BEGIN_MS)
    assert rows[stream_key("a/b")] is None
    assert changes.puts[stream_key("a/b")] is not None


# -- late copies of settled proposals --------------------------------------------------------------------------------


def proposal(boot: int, number: int) -> Entry:
    return replace(noop(), boot=boot, proposal=number)


def test_late_copy_of_a_settled_proposal_is_not_admitted() -> None:
    """So that a refusal, once told, is final."""
    proposers = Proposers()
    admitted = [proposers.admit(proposal(1, number), 0) for number in (1, 2, 2, 1, 5, 4, 6)]
    assert admitted == [True, True, False, False, True, False, True]


def test_proposers_do_not_know_of_each_other() -> None:
    proposers = Proposers()
    assert proposers.admit(proposal(1, 9), 0)
    assert proposers.admit(proposal(2, 3), 0)
    assert not proposers.admit(proposal(1, 4), 0)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), max_size=30), st.integers(0, 30))
def test_table_that_was_stored_and_read_back_goes_on_the_same(proposals: list[tuple[int, int]], cut: int) -> None:
    whole, first = Proposers(), Proposers()
    expected = [whole.admit(proposal(*made), 0) for made in proposals]
    admitted = [first.admit(proposal(*made), 0) for made in proposals[:cut]]
    second = Proposers(first.stored())
    admitted += [second.admit(proposal(*made), 0) for made in proposals[cut:]]
    assert admitted == expected
    assert second.stored() == whole.stored()


def test_proposer_silent_for_a_day_is_forgotten_when_another_comes() -> None:
    proposers = Proposers()
    proposers.admit(proposal(1, 9), 0)
    proposers.admit(proposal(2, 9), 1)
    proposers.admit(proposal(3, 1), DAY_MS + 1)
    assert not proposers.admit(proposal(2, 8), DAY_MS + 1)
    assert proposers.admit(proposal(1, 8), DAY_MS + 1)


def test_proposer_that_goes_on_is_remembered_from_its_newest_proposal() -> None:
    proposers = Proposers()
    proposers.admit(proposal(1, 1), 0)
    proposers.admit(proposal(1, 2), DAY_MS)
    proposers.admit(proposal(2, 1), DAY_MS + 1)
    assert not proposers.admit(proposal(1, 2), DAY_MS + 1)
