"""The producer rule: what a batch with a sequence number is, seen from what was accepted before it.

Kafka's idempotent producer (KIP-98) as the Durable Streams protocol has it (PROTOCOL.md 5.2.1). Raw producers and
generations run through the same function; only `apply` calls it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import msgspec

RECEIPTS_MAX: Final = 64
"""Receipts kept for each producer: at least as many batches as any client keeps in flight."""


class Receipt(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an accepted batch is remembered by."""

    digest: bytes
    next_position: int  # where the stream stood after it


class Sequence(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one (producer, epoch) has had accepted.

    `seq` is the highest accepted number, -1 before the first. `receipts` are those of the newest batches, oldest
    first, so receipts[-1] is that of `seq`; 0 <= len(receipts) <= min(seq + 1, RECEIPTS_MAX).
    """

    seq: int = -1
    receipts: tuple[Receipt, ...] = ()


class Verdict(Enum):
    """The five things that a batch can be."""

    NEXT = auto()
    DUPLICATE = auto()
    MISMATCH = auto()  # the seq of an accepted batch with other bytes: the client is broken
    GAP = auto()
    STALE = auto()  # of an epoch that a newer one has fenced off
    LATE_START = auto()  # a new epoch that does not begin at 0


def check(epoch: int, known: Sequence, new_epoch: int, seq: int, digest: bytes) -> Verdict:
    """Judge batch (`new_epoch`, `seq`) against `known`, the sequence of the producer's current `epoch`."""
    if new_epoch < epoch:
        return Verdict.STALE
    if new_epoch > epoch:
        return Verdict.NEXT if seq == 0 else Verdict.LATE_START
    if seq == known.seq + 1:
        return Verdict.NEXT
    if seq > known.seq:
        return Verdict.GAP
    receipt = receipt_of(known, seq)
    if receipt is not None and receipt.digest != digest:
        return Verdict.MISMATCH
    return Verdict.DUPLICATE


def receipt_of(known: Sequence, seq: int) -> Receipt | None:
    """The receipt of accepted batch `seq`, or None when it is older than the window."""
    age = known.seq - seq
    return known.receipts[-1 - age] if 0 <= age < len(known.receipts) else None


def accepted(known: Sequence, digest: bytes, next_position: int) -> Sequence:
    """The sequence after its next batch."""
    return Sequence(known.seq + 1, (*known.receipts[1 - RECEIPTS_MAX :], Receipt(digest, next_position)))
