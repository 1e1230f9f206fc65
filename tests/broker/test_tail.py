"""broker/tail.py: the newest pages in memory behave like the list of records that they stand for."""

from itertools import accumulate

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.core.page import Page, json_page
from broker.tail import Tail

LIFE = 7


def tail_of(*batches: int, start: int = 0) -> Tail:
    """A tail whose batches have so many records each; record n is the number n."""
    tail = Tail(LIFE, start)
    for count in batches:
        tail.append(numbers(tail.end, tail.end + count))
    return tail


def numbers(start: int, end: int) -> Page:
    """The records [start, end) of a stream whose record n is the number n."""
    return json_page([b"%d" % number for number in range(start, end)], start)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(0, 50), st.integers(1, 40), st.data())
def test_read_begins_exactly_where_asked_and_ends_with_a_whole_batch(
    batches: list[int], start: int, bytes_max: int, data: st.DataObject
) -> None:
    tail = tail_of(*batches, start=start)
    position = data.draw(st.integers(start, tail.end - 1))
    page = tail.read(position, bytes_max)
    assert page == numbers(position, page.end)
    assert page.end in [batch.end for batch in tail.pages]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(1, 40))
def test_read_takes_as_many_batches_as_fit_and_at_least_one(batches: list[int], bytes_max: int) -> None:
    tail = tail_of(*batches)
    sizes = accumulate(len(page.data) for page in tail.pages)
    fitting = [page.end for page, size in zip(tail.pages, sizes, strict=True) if size <= bytes_max]
    assert tail.read(0, bytes_max).end == max(fitting, default=tail.pages[0].end)


@pytest.mark.parametrize(("position", "held"), [(9, False), (10, True), (14, True), (15, False), (16, False)])
def test_tail_holds_what_lies_between_its_first_page_and_its_end(position: int, *, held: bool) -> None:
    assert tail_of(2, 3, start=10).holds(position) is held


def test_empty_tail_holds_nothing() -> None:
    tail = tail_of(start=10)
    assert not tail.holds(10)
    assert tail.freeze() == []
    tail.drop(10)
    assert not tail.pages


def test_freeze_hands_out_each_page_once() -> None:
    tail = tail_of(1, 2)
    assert tail.freeze() == [numbers(0, 1), numbers(1, 3)]
    assert tail.freeze() == []
    tail.append(numbers(3, 5))
    assert tail.freeze() == [numbers(3, 5)]


def test_thaw_hands_out_again_what_the_store_has_not_got() -> None:
    tail = tail_of(1, 2)
    tail.freeze()
    tail.drop(1)
    tail.append(numbers(3, 4))
    tail.thaw()
    assert tail.freeze() == [numbers(1, 3), numbers(3, 4)]


def test_drop_lets_whole_pages_go() -> None:
    tail = tail_of(1, 2, 2)
    tail.drop(4)
    assert list(tail.pages) == [numbers(3, 5)]
    assert not tail.holds(2)
    assert tail.end == 5


class TailAndCheckpoints(RuleBasedStateMachine):
    """Appends and checkpoints, some of which fail: together, store and tail always have everything once."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = Tail(LIFE, 0)
        self.stored = 0  # the store has [0, stored)
        self.in_hand: list[Page] | None = None

    @rule(count=st.integers(1, 3))
    def append(self, count: int) -> None:
        self.tail.append(numbers(self.tail.end, self.tail.end + count))

    @precondition(lambda self: self.in_hand is None)
    @rule()
    def freeze(self) -> None:
        self.in_hand = self.tail.freeze()
        assert [page.start for page in self.in_hand[:1]] in ([], [self.stored])
        assert all(left.end == right.start for left, right in zip(self.in_hand, self.in_hand[1:], strict=False))

    @precondition(lambda self: self.in_hand is not None)
    @rule()
    def write(self) -> None:
        assert self.in_hand is not None
        if self.in_hand:
            self.stored = self.in_hand[-1].end
            self.tail.drop(self.stored)
        self.in_hand = None

    @precondition(lambda self: self.in_hand is not None)
    @rule()
    def fail(self) -> None:
        self.tail.thaw()
        self.in_hand = None

    @invariant()
    def what_the_store_has_not_got_is_in_the_tail(self) -> None:
        assert [page.start for page in self.tail.pages] == sorted(page.start for page in self.tail.pages)
        for position in range(self.stored, self.tail.end):
            assert self.tail.holds(position)
        assert not self.tail.holds(self.stored - 1)
        assert self.stored <= self.tail.frozen <= self.tail.end


TestTailAndCheckpoints = TailAndCheckpoints.TestCase
