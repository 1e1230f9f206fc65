"""Outcomes: what an entry did, with the facts that its proposer has to be told."""

from __future__ import annotations

from enum import StrEnum, auto

import msgspec

from broker.core.state import Generation, Session, Stream, Subscription
from consumer.wire import Code


class Result(StrEnum):
    """What became of an entry."""

    CREATED = auto()
    ACCEPTED = auto()
    UNCHANGED = auto()  # what it asks for was so already: an idempotent success
    DUPLICATE = auto()  # this very batch had been accepted before
    REFUSED = auto()  # `code` says why; nothing changed


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The result of one entry. Nothing in it is worth keeping: a replay makes it again."""

    result: Result
    code: Code | None = None
    detail: str = ""
    stream: Stream | None = None  # as it is after the entry
    session: Session | None = None
    generation: Generation | None = None
    next_position: int | None = None  # after this batch, or after the original of a duplicate while it is remembered
    epoch: int | None = None  # the current one
    seq: int | None = None  # the highest accepted
    expected_seq: int | None = None
    subscription: Subscription | None = None
    stopped: tuple[Generation, ...] = ()  # what a stop of the session has ended

    @property
    def changed(self) -> bool:
        """Whether the entry changed the state."""
        return self.result is Result.CREATED or self.result is Result.ACCEPTED


def refused(
    code: Code,
    detail: str = "",
    *,
    stream: Stream | None = None,
    generation: Generation | None = None,
    next_position: int | None = None,
    epoch: int | None = None,
    seq: int | None = None,
    expected_seq: int | None = None,
) -> Outcome:
    """A refusal, with its facts."""
    return Outcome(
        Result.REFUSED,
        code,
        detail,
        stream=stream,
        generation=generation,
        next_position=next_position,
        epoch=epoch,
        seq=seq,
        expected_seq=expected_seq,
    )
