"""broker/core/apply.py: what is neither a stream's nor a session's."""

import pytest

from broker.core.apply import apply, keys
from broker.core.entry import Entry, Kind
from broker.core.outcome import Result
from broker.core.state import stream_key
from tests.broker.core.entries import append, create, noop
from tests.broker.core.replica import BEGIN_MS, Replica


def test_noop_is_accepted_and_changes_nothing() -> None:
    replica = Replica()
    assert replica.do(noop()).result is Result.ACCEPTED
    assert replica.rows == {}
    assert keys(noop()) == []


@pytest.mark.parametrize("kind", [Kind.MOVING, Kind.MOVED, 99])
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
