"""broker/core/producer.py: the validation table of PROTOCOL.md 5.2.1, and the window of receipts behind it."""

import pytest
from hypothesis import given, strategies as st

from broker.core.producer import RECEIPTS_MAX, Sequence, Verdict, accepted, check, receipt_of


def sequence(count: int) -> Sequence:
    """What is known after batches 0 … count - 1; batch n has digest b"n" and ends at position 10 n."""
    known = Sequence()
    for number in range(count):
        known = accepted(known, b"%d" % number, 10 * number)
    return known


@pytest.mark.parametrize(
    ("epoch", "seq", "digest", "verdict"),
    [
        (5, 3, b"3", Verdict.NEXT),
        (5, 4, b"4", Verdict.GAP),
        (5, 2**53 - 1, b"", Verdict.GAP),
        (5, 2, b"2", Verdict.DUPLICATE),
        (5, 0, b"0", Verdict.DUPLICATE),
        (5, 2, b"other", Verdict.MISMATCH),
        (4, 0, b"0", Verdict.STALE),
        (4, 3, b"3", Verdict.STALE),
        (6, 0, b"0", Verdict.NEXT),
        (6, 1, b"1", Verdict.LATE_START),
        (6, 3, b"3", Verdict.LATE_START),
    ],
)
def test_batch_after_three_of_epoch_five_is_judged_by_the_table(
    epoch: int, seq: int, digest: bytes, verdict: Verdict
) -> None:
    """5.2.1 "Validation Logic"."""
    assert check(5, sequence(3), epoch, seq, digest) is verdict


@pytest.mark.parametrize(("seq", "verdict"), [(0, Verdict.NEXT), (1, Verdict.GAP)])
def test_producer_never_seen_begins_at_zero_in_any_epoch(seq: int, verdict: Verdict) -> None:
    assert check(7, Sequence(), 7, seq, b"") is verdict


@given(st.integers(0, 200), st.integers(0, 250))
def test_receipt_is_kept_for_exactly_the_newest_sixty_four_batches(count: int, seq: int) -> None:
    """CORE 2: "for the last 64 batches digest and receipt"."""
    receipt = receipt_of(sequence(count), seq)
    if max(0, count - 64) <= seq < count:
        assert receipt is not None
        assert (receipt.digest, receipt.next_position) == (b"%d" % seq, 10 * seq)
    else:
        assert receipt is None


@given(st.integers(0, 200))
def test_sequence_keeps_what_its_docstring_promises(count: int) -> None:
    known = sequence(count)
    assert known.seq == count - 1
    assert len(known.receipts) == min(count, RECEIPTS_MAX)


def test_duplicate_older_than_the_window_is_a_duplicate_whatever_its_bytes() -> None:
    known = sequence(RECEIPTS_MAX + 1)
    assert check(0, known, 0, 0, b"other") is Verdict.DUPLICATE
    assert check(0, known, 0, 1, b"other") is Verdict.MISMATCH


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from([b"x", b"y"])), max_size=60))
def test_any_order_of_batches_is_accepted_once_each_and_in_order(batches: list[tuple[int, int, bytes]]) -> None:
    """Whatever overtakes whatever: within an epoch 0, 1, 2, … once each, and epochs only rise."""
    epoch, known = 0, Sequence()
    log: list[tuple[int, int, bytes]] = []
    for new_epoch, seq, digest in batches:
        verdict = check(epoch, known, new_epoch, seq, digest)
        assert (verdict is Verdict.DUPLICATE) == (new_epoch == epoch and (new_epoch, seq, digest) in log)
        if verdict is Verdict.NEXT:
            known = accepted(known if new_epoch == epoch else Sequence(), digest, len(log))
            epoch = new_epoch
            log.append((new_epoch, seq, digest))
    assert [entry[0] for entry in log] == sorted(entry[0] for entry in log)
    for number in range(4):
        seqs = [seq for of_epoch, seq, _ in log if of_epoch == number]
        assert seqs == list(range(len(seqs)))
