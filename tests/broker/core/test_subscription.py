"""broker/core/subscription.py: every rule of PROTOCOL.md 6 and 7 that entries decide."""

from __future__ import annotations

import pytest

from broker.core.entry import Entry, Place
from broker.core.offset import START_TOKEN, format_offset
from broker.core.outcome import Result
from broker.core.state import Link, Stream, Subscription, Wake
from broker.core.subscription import is_leased, matches, pending_tails, stream_infos
from consumer.wire import Code
from tests.broker.core.entries import SUBSCRIPTION, ack, attempt, claim, link, subscribe, unsubscribe
from tests.broker.core.replica import Replica
from tests.broker.core.subscribed import LIFE, A, B, at, wake


@pytest.fixture
def replica() -> Replica:
    """One with a webhook subscription that has A at 3."""
    replica = Replica()
    replica.do(subscribe(pattern="a/*", nonce=7))
    replica.do(link(at(3), complete=True))
    return replica


@pytest.fixture
def pull() -> Replica:
    """One with a pull-wake subscription that has A at 3."""
    replica = Replica()
    replica.do(subscribe(wake_stream="a/wake", pattern="a/*", nonce=7))
    replica.do(link(at(3), complete=True))
    return replica


def cursor(replica: Replica, path: str = A) -> int:
    return next(known.acked for known in replica.subscription(SUBSCRIPTION).links if known.path == path)


def paths(replica: Replica) -> dict[str, bool]:
    """The streams of the subscription, and whether each is explicit."""
    return {known.path: known.explicit for known in replica.subscription(SUBSCRIPTION).links}


# -- create, delete --------------------------------------------------------------------------------------------------


def test_same_configuration_confirms_and_another_one_conflicts() -> None:
    """PROTOCOL 6.2."""
    replica = Replica()
    assert replica.do(subscribe(pattern="a/*")).result is Result.CREATED
    assert replica.do(subscribe(pattern="a/*")).result is Result.UNCHANGED
    assert replica.do(subscribe(pattern="b/*")).code is Code.SUBSCRIPTION_ALREADY_EXISTS
    assert replica.do(subscribe(pattern="a/*", lease_ms=1_000)).code is Code.SUBSCRIPTION_ALREADY_EXISTS


def test_subscription_without_a_pattern_has_nothing_left_to_link() -> None:
    replica = Replica()
    replica.do(subscribe(at(3)))
    assert replica.subscription(SUBSCRIPTION).linked
    assert paths(replica) == {A: True}


@pytest.mark.parametrize(
    "entry", [link(at(0)), attempt(1, 0, at(4)), claim("w", at(4)), ack(1, "w_1"), unsubscribe()], ids=lambda e: e.kind
)
def test_deleted_subscription_is_found_by_nothing(replica: Replica, entry: Entry) -> None:
    """PROTOCOL 6.3: whatever is in flight fails and moves nothing."""
    assert replica.do(unsubscribe()).result is Result.ACCEPTED
    assert replica.do(entry).code is Code.SUBSCRIPTION_NOT_FOUND


def test_entry_for_one_life_of_an_id_does_not_reach_the_next(replica: Replica) -> None:
    replica.do(unsubscribe())
    replica.do(subscribe(at(3), nonce=8))
    assert replica.do(attempt(1, 0, at(4), birth=7)).code is Code.SUBSCRIPTION_NOT_FOUND
    assert replica.do(attempt(1, 0, at(4), birth=8)).result is Result.ACCEPTED


# -- links -----------------------------------------------------------------------------------------------------------


def test_linked_stream_keeps_its_cursor_when_it_is_linked_again(replica: Replica) -> None:
    assert replica.do(link(at(9))).result is Result.UNCHANGED
    replica.do(link(at(9), explicit=True))
    assert (cursor(replica), paths(replica)) == (3, {A: True})


def test_explicit_link_that_goes_leaves_one_that_matches(replica: Replica) -> None:
    """PROTOCOL 6.4."""
    replica.do(link(at(5), at(0, "other"), explicit=True))
    replica.do(link(explicit=True, drop=(A, "other", "never there")))
    assert (cursor(replica), paths(replica)) == (3, {A: False})


def test_link_of_a_stream_that_is_no_more_goes_unless_it_is_explicit(replica: Replica) -> None:
    replica.do(link(at(0, "other"), explicit=True))
    replica.do(link(drop=(A, "other")))
    assert paths(replica) == {"other": True}


def test_subscription_never_has_its_own_wake_stream(pull: Replica) -> None:
    assert pull.do(link(at(0, "a/wake"))).result is Result.UNCHANGED
    assert pull.do(link(at(0, "a/wake"), explicit=True)).result is Result.UNCHANGED
    assert not matches(pull.subscription(SUBSCRIPTION), "a/wake")
    assert matches(pull.subscription(SUBSCRIPTION), "a/other")


def test_more_streams_than_allowed_are_refused_whole(replica: Replica) -> None:
    assert replica.do(link(at(0, "x"), at(0, "y"), explicit=True, links_max=2)).code is Code.TOO_MANY_LINKS
    assert replica.do(link(at(0, "x"), links_max=1, drop=(A,))).result is Result.ACCEPTED
    assert paths(replica) == {"x": False}


# -- attempts --------------------------------------------------------------------------------------------------------


def test_wake_needs_something_that_is_pending(replica: Replica) -> None:
    for tails in ((), (at(3),), (at(2),), (at(9, "unlinked"),)):
        assert replica.do(attempt(1, 0, *tails)).result is Result.UNCHANGED
    assert replica.do(attempt(1, 0, at(4), nonce=0x17)).result is Result.ACCEPTED
    assert replica.subscription(SUBSCRIPTION).generation == 1
    assert wake(replica) == Wake("w_0000000000000017", A, replica.now_ms, replica.index, 0, replica.now_ms + 1_000)


def test_another_life_of_a_stream_has_all_of_it_pending(replica: Replica) -> None:
    assert replica.do(attempt(1, 0, at(1, life=0xA2))).result is Result.ACCEPTED
    replica.do(ack(1, wake(replica).wake_id, done=True, snapshot=True))
    assert replica.subscription(SUBSCRIPTION).links == (Link(A, 0xA2, 1, wake_tail=1),)


def test_second_proposal_of_the_same_wake_changes_nothing(replica: Replica) -> None:
    replica.do(attempt(1, 0, at(4)))
    assert replica.do(attempt(1, 0, at(5))).result is Result.UNCHANGED
    assert replica.do(attempt(2, 0, at(5))).result is Result.UNCHANGED


def test_wake_of_a_generation_that_is_not_the_next_changes_nothing(replica: Replica) -> None:
    """It was proposed by somebody who did not know the newest."""
    assert replica.do(attempt(2, 0, at(4))).result is Result.UNCHANGED


def test_attempt_follows_the_one_before_when_it_is_due(replica: Replica) -> None:
    """PROTOCOL 7.1: the accepted attempt sets the time of the next, by the entries' clock."""
    replica.do(attempt(1, 0, at(4), delay_ms=1_000))
    assert replica.do(attempt(1, 1), after_ms=999).result is Result.UNCHANGED
    assert replica.do(attempt(1, 2), after_ms=1).result is Result.UNCHANGED
    assert replica.do(attempt(1, 1, delay_ms=2_000)).result is Result.ACCEPTED
    assert wake(replica).next_attempt_ms == replica.now_ms + 2_000
    assert replica.do(attempt(1, 1), after_ms=5_000).result is Result.UNCHANGED


@pytest.mark.parametrize("how", [ack(1, "w_0000000000000017", delivered=True), ack(1, "w_0000000000000017")])
def test_delivered_wake_has_no_further_attempt(replica: Replica, how: Entry) -> None:
    """Whoever delivered says so, or the receiver itself proves it by its callback."""
    replica.do(attempt(1, 0, at(4), nonce=0x17))
    replica.do(how)
    assert replica.do(attempt(1, 1), after_ms=99_999).result is Result.UNCHANGED


# -- claims ----------------------------------------------------------------------------------------------------------


def test_claim_takes_the_wake_that_is_there(pull: Replica) -> None:
    pull.do(attempt(1, 0, at(4)))
    assert pull.do(claim("me", at(4))).result is Result.ACCEPTED
    assert (pull.subscription(SUBSCRIPTION).generation, wake(pull).holder, wake(pull).next_attempt_ms) == (
        1,
        "me",
        None,
    )


def test_claim_makes_the_wake_itself_when_work_is_pending(pull: Replica) -> None:
    assert pull.do(claim("me", at(3))).code is Code.NO_PENDING_WORK
    assert pull.do(claim("me", at(4))).result is Result.ACCEPTED
    assert pull.subscription(SUBSCRIPTION).generation == 1


def test_second_claim_is_told_who_holds_it(pull: Replica) -> None:
    pull.do(claim("me", at(4)))
    outcome = pull.do(claim("you", at(4)))
    assert outcome.code is Code.ALREADY_CLAIMED
    assert outcome.subscription is not None
    assert outcome.subscription.wake == wake(pull)


def test_wake_whose_work_is_gone_is_handed_out_all_the_same(pull: Replica) -> None:
    """Refused, it would stay in the way of every later wake: its event has been read already."""
    pull.do(attempt(1, 0, at(4)))
    assert pull.do(claim("me")).result is Result.ACCEPTED


def test_webhook_subscription_cannot_be_claimed(replica: Replica) -> None:
    assert replica.do(claim("me", at(4))).code is Code.INVALID_REQUEST


# -- acks ------------------------------------------------------------------------------------------------------------


def test_ack_moves_cursors_and_renews(pull: Replica) -> None:
    pull.do(claim("me", at(6)))
    assert pull.do(ack(1, wake(pull).wake_id, at(5))).result is Result.ACCEPTED
    assert (cursor(pull), wake(pull).renewed_index, wake(pull).holder) == (5, pull.index, "me")


def test_done_ends_the_wake_and_the_next_one_is_another_generation(pull: Replica) -> None:
    pull.do(claim("me", at(6)))
    first = wake(pull).wake_id
    pull.do(ack(1, first, at(5), done=True))
    assert pull.do(claim("me", at(6))).result is Result.ACCEPTED
    assert (pull.subscription(SUBSCRIPTION).generation, wake(pull).wake_id != first) == (2, True)


@pytest.mark.parametrize("stale", [(1, "w_00000000000000ff"), (2, "w_0000000000000017"), (0, "w_0000000000000017")])
def test_ack_of_another_wake_or_generation_is_fenced(replica: Replica, stale: tuple[int, str]) -> None:
    """PROTOCOL 7.3."""
    replica.do(attempt(1, 0, at(4), nonce=0x17))
    assert replica.do(ack(*stale, at(4), done=True)).code is Code.FENCED
    assert cursor(replica) == 3


def test_ack_after_the_end_is_fenced(replica: Replica) -> None:
    replica.do(attempt(1, 0, at(4), nonce=0x17))
    replica.do(ack(1, wake(replica).wake_id, done=True))
    assert replica.do(ack(1, "w_0000000000000017", at(4))).code is Code.FENCED


@pytest.mark.parametrize("wrong", [at(2), at(4, "unlinked")])
def test_ack_that_is_wrong_in_one_stream_moves_none(pull: Replica, wrong: Place) -> None:
    pull.do(claim("me", at(6)))
    assert pull.do(ack(1, wake(pull).wake_id, at(5), wrong)).code is Code.INVALID_OFFSET
    assert cursor(pull) == 3


def test_snapshot_acks_what_the_wake_named_and_never_takes_a_cursor_back(replica: Replica) -> None:
    """PROTOCOL 7.1: `{"done": true}`."""
    replica.do(link(at(0, B)))
    replica.do(attempt(1, 0, at(6), at(2, B)))
    held = wake(replica).wake_id
    replica.do(ack(1, held, at(8)))
    replica.do(ack(1, held, done=True, snapshot=True))
    assert (cursor(replica), cursor(replica, B)) == (8, 2)


def test_late_word_of_a_delivery_is_no_error(replica: Replica) -> None:
    assert replica.do(ack(1, "w_1", delivered=True)).result is Result.UNCHANGED


# -- leases ----------------------------------------------------------------------------------------------------------


def test_lease_runs_from_the_delivery_of_a_webhook(replica: Replica) -> None:
    assert not is_leased(replica.subscription(SUBSCRIPTION))
    replica.do(attempt(1, 0, at(4)))
    assert not is_leased(replica.subscription(SUBSCRIPTION))
    replica.do(ack(1, wake(replica).wake_id, delivered=True))
    assert is_leased(replica.subscription(SUBSCRIPTION))


def test_lease_runs_from_the_claim_of_a_pull_wake(pull: Replica) -> None:
    pull.do(attempt(1, 0, at(4)))
    pull.do(ack(1, wake(pull).wake_id, delivered=True))
    assert not is_leased(pull.subscription(SUBSCRIPTION))
    pull.do(claim("me", at(4)))
    assert is_leased(pull.subscription(SUBSCRIPTION))


def test_lease_that_nobody_renewed_ends_the_wake(pull: Replica) -> None:
    pull.do(claim("me", at(4)))
    held, claimed_index = wake(pull).wake_id, pull.index
    pull.do(ack(1, held))
    assert pull.do(ack(1, held, expires=claimed_index)).result is Result.UNCHANGED
    assert pull.do(ack(1, held, expires=wake(pull).renewed_index)).result is Result.ACCEPTED
    assert pull.subscription(SUBSCRIPTION).wake is None
    assert pull.do(ack(1, held, at(4))).code is Code.FENCED


# -- what clients are told -------------------------------------------------------------------------------------------


def told(subscription: Subscription, stream: Stream | None, *, at_wake: bool = False) -> list[tuple[str, str, bool]]:
    streams = {} if stream is None else {A: stream}
    infos = stream_infos(subscription, streams, at_wake=at_wake)
    return [(info.acked_offset, info.tail_offset, info.has_pending) for info in infos]


def test_offsets_told_are_the_streams_own(replica: Replica) -> None:
    stream = Stream(LIFE, "t", 0, 0, tail=5)
    replica.do(attempt(1, 0, at(4)))
    subscription = replica.subscription(SUBSCRIPTION)
    three, four, five = (format_offset(position, LIFE) for position in (3, 4, 5))
    assert told(subscription, stream) == [(three, five, True)]
    assert told(subscription, stream, at_wake=True) == [(three, four, True)]
    assert pending_tails(subscription, {A: stream}) == (at(5),)


def test_stream_that_is_not_there_is_told_only_if_it_is_explicit(replica: Replica) -> None:
    assert told(replica.subscription(SUBSCRIPTION), None) == []
    replica.do(link(at(0), explicit=True))
    assert told(replica.subscription(SUBSCRIPTION), None) == [(START_TOKEN, START_TOKEN, False)]


def test_next_life_of_a_stream_is_told_from_its_start(replica: Replica) -> None:
    replica.do(attempt(1, 0, at(4)))
    stream = Stream(0xA2, "t", 0, 0, tail=1)
    begin, end = format_offset(0, 0xA2), format_offset(1, 0xA2)
    assert told(replica.subscription(SUBSCRIPTION), stream) == [(begin, end, True)]
    assert told(replica.subscription(SUBSCRIPTION), stream, at_wake=True) == [(begin, begin, False)]
