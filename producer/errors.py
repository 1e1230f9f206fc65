"""What can go wrong for a producer, and what its caller can do about it.

    ProducerError
    ├── Fenced          the generation has ended: stopped, superseded, its lease ran out, or finished elsewhere
    ├── Gap             the broker misses a batch that it had acknowledged
    ├── Refused         the broker will never accept this request; it carries the broker's problem
    ├── Unavailable     no answer within the deadline; whether it arrived is unknown
    ├── BufferFull      no room at the moment, and the caller chose not to wait
    ├── ChunkTooLarge   one chunk above the limit; it was not queued
    ├── Finished        written, or finished again, after its own finish
    └── AttemptFailed   one attempt of many; seen by callers only as the cause of Unavailable

A chunk that is no JSON is a TypeError, an impossible argument a ValueError: bugs of the caller, not of this tree.
"""

from __future__ import annotations

from typing import Any, ClassVar

from consumer.wire import Code, Problem

__all__ = [
    "AttemptFailed",
    "BufferFull",
    "ChunkTooLarge",
    "Fenced",
    "Finished",
    "Gap",
    "ProducerError",
    "Refused",
    "Unavailable",
]


class ProducerError(Exception):
    """Every error of this library.

    `code` is stable and made for branching, `status` is the HTTP status of the broker's answer where there was one,
    `facts` holds what is known besides (for logs; no message content). `retryable` says whether the same call may
    succeed later.
    """

    code: str = "PRODUCER_ERROR"
    retryable: ClassVar[bool] = False

    def __init__(self, text: str, *, status: int | None = None, **facts: Any) -> None:
        super().__init__(text)
        self.status = status
        self.facts: dict[str, Any] = {name: fact for name, fact in facts.items() if fact is not None}


class Fenced(ProducerError):
    """The generation has ended and takes no more. What was acknowledged before stays.

    `reason` says how: `superseded`, `stopped`, `LEASE_EXPIRED` or `finished`. To write on, open a new generation.
    """

    code = Code.FENCED

    def __init__(
        self,
        reason: str,
        *,
        current_epoch: int | None = None,
        generation_status: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(
            f"the generation has ended: {reason}",
            status=status,
            reason=reason,
            current_epoch=current_epoch,
            generation_status=generation_status,
        )
        self.reason = reason
        self.current_epoch = current_epoch
        self.generation_status = generation_status


class Gap(ProducerError):
    """The broker expects an earlier batch than all that are unacknowledged: it lost what it had acknowledged.

    Nothing that this producer could send would make the generation whole; open a new one.
    """

    code = Code.SEQ_GAP

    def __init__(self, expected_seq: int | None, received_seq: int | None, *, status: int | None = None) -> None:
        super().__init__(
            f"the broker expects batch {expected_seq}, and was sent batch {received_seq}",
            status=status,
            expected_seq=expected_seq,
            received_seq=received_seq,
        )
        self.expected_seq = expected_seq
        self.received_seq = received_seq


class Refused(ProducerError):
    """The broker answered that this request is wrong, whenever it is sent; `problem` is what it said."""

    def __init__(self, problem: Problem) -> None:
        text = f"{problem.title}: {problem.detail}" if problem.detail else problem.title
        super().__init__(f"{problem.code}: {text}", status=problem.status, request_id=problem.request_id or None)
        self.code = problem.code
        self.problem = problem


class Unavailable(ProducerError):
    """The deadline passed without an answer that settles it; `__cause__` is what the last attempt ran into.

    What is unacknowledged may have arrived or not. Repeating the same call is safe: a batch or a message that did
    arrive is not stored again. A generation is taken up again with `resume=True`.
    """

    code = Code.UNAVAILABLE
    retryable = True

    def __init__(
        self,
        text: str,
        *,
        unacknowledged_batches: int = 0,
        unacknowledged_chunks: int = 0,
        status: int | None = None,
    ) -> None:
        super().__init__(
            text,
            status=status,
            unacknowledged_batches=unacknowledged_batches,
            unacknowledged_chunks=unacknowledged_chunks,
        )
        self.unacknowledged_batches = unacknowledged_batches
        self.unacknowledged_chunks = unacknowledged_chunks


class BufferFull(ProducerError):
    """The buffer has no room for this chunk, which was not queued. `write` waits instead."""

    code = "BUFFER_FULL"
    retryable = True


class ChunkTooLarge(ProducerError):
    """One chunk is above `chunk_bytes_max` and was not queued; the generation goes on."""

    code = "CHUNK_TOO_LARGE"


class Finished(ProducerError):
    """The generation was finished by this producer already."""

    code = "FINISHED"


class AttemptFailed(ProducerError):
    """One attempt had no usable answer: connection lost, time out, 408, 429 or 5xx. Its effect is unknown.

    `retry_after_s` is how long the broker asked to wait, None if it did not say.
    """

    code = "ATTEMPT_FAILED"
    retryable = True

    def __init__(self, text: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(text, status=status, retry_after_s=retry_after_s)
        self.retry_after_s = retry_after_s
