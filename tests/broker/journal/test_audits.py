"""broker/journal/audits.py: who is wrong when replicas differ."""

import pytest

from broker.journal.audits import Audits, Verdict

US, OTHER, THIRD, FOURTH = 1, 2, 3, 4
OURS, THEIRS, ELSE = b"ours", b"theirs", b"else"


def disputed() -> Audits:
    """Ours, after a replica with another chain was heard."""
    audits = Audits(US)
    audits.note(5, OURS)
    assert audits.hear(OTHER, 5, THEIRS) is False
    assert audits.dispute(5, until=10.0) == OURS
    return audits


def test_replicas_that_say_the_same_agree() -> None:
    audits = Audits(US)
    audits.note(5, OURS)
    assert audits.hear(OTHER, 5, OURS) is True
    assert audits.verdicts(99.0) == []


def test_what_is_too_long_ago_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.limits.CHAINS_KEPT", 2)
    audits = Audits(US)
    for position in range(4):
        audits.note(position, OURS)
    assert audits.hear(OTHER, 1, THEIRS) is None
    assert audits.hear(OTHER, 2, THEIRS) is False


def test_own_chain_is_said_once() -> None:
    audits = disputed()
    assert audits.dispute(5, until=20.0) is None
    said = Audits(US)
    said.note(5, OURS)
    said.hear(US, 5, OURS)
    said.hear(OTHER, 5, THEIRS)
    assert said.dispute(5, until=10.0) is None


def test_nobody_is_judged_before_all_had_time_and_this_replica_was_heard() -> None:
    audits = disputed()
    assert audits.verdicts(99.0) == []
    audits.hear(US, 5, OURS)
    assert audits.verdicts(9.9) == []
    assert len(audits.verdicts(10.0)) == 1
    assert audits.verdicts(11.0) == []


@pytest.mark.parametrize(
    ("third", "fourth", "who_is_wrong"),
    [
        (None, None, US),
        (OURS, None, OTHER),
        (THEIRS, None, US),
        (OURS, THEIRS, US),
        (OURS, OURS, OTHER),
        (OURS, ELSE, OTHER),
    ],
)
def test_what_most_have_counts(third: bytes | None, fourth: bytes | None, who_is_wrong: int) -> None:
    audits = disputed()
    audits.hear(US, 5, OURS)
    for boot, chain in ((THIRD, third), (FOURTH, fourth)):
        if chain is not None:
            audits.hear(boot, 5, chain)
    assert audits.verdicts(10.0) == [Verdict(5, is_wrong=who_is_wrong == US)]


def test_replica_that_began_again_meanwhile_counts_once() -> None:
    audits = disputed()
    audits.hear(US, 5, OURS)
    audits.hear(THIRD, 5, OURS)
    audits.retire(OTHER)
    audits.hear(FOURTH, 5, THEIRS)
    assert audits.verdicts(10.0) == [Verdict(5, is_wrong=False)]


def test_memory_is_bounded() -> None:
    audits = Audits(US)
    for position in range(1000):
        audits.note(position, OURS)
        audits.hear(OTHER, position, THEIRS)
        audits.dispute(position, until=1.0)
        audits.hear(US, position, OURS)
    assert len(audits.verdicts(2.0)) == 64
