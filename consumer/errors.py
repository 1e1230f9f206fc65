"""What can go wrong for a reader, and what its caller can do about it.

    ConsumerError
    ├── Refused             the broker will never answer this request; it carries the broker's problem
    │   ├── AccessDenied    401, 403: other credentials may help
    │   ├── StreamNotFound  404: no such stream or session, or it was deleted meanwhile
    │   └── OffsetGone      410: the offset belongs to a stream that is no more; read from the start
    ├── Unavailable         no answer within the deadline; nothing was lost, go on from the last offset
    ├── BadAnswer           an answer that no Durable Streams server gives: a proxy, another service, or a bug
    ├── TooLarge            more in one answer than the limit allows
    └── AttemptFailed       one attempt of many; seen by callers only as the cause of Unavailable

An impossible argument is a ValueError: a bug of the caller, not of this tree.
"""

from __future__ import annotations

from typing import ClassVar

from consumer.wire import Code, Problem

__all__ = [
    "AccessDenied",
    "AttemptFailed",
    "BadAnswer",
    "ConsumerError",
    "OffsetGone",
    "Refused",
    "StreamNotFound",
    "TooLarge",
    "Unavailable",
]


class ConsumerError(Exception):
    """Every error of this library.

    `code` is stable and made for branching, `status` is the HTTP status of the answer where there was one.
    `retryable` says whether the same call may succeed later.
    """

    code: str = "CONSUMER_ERROR"
    retryable: ClassVar[bool] = False

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Refused(ConsumerError):
    """The broker answered that this request is wrong, whenever it is sent; `problem` is what it said."""

    def __init__(self, problem: Problem) -> None:
        text = f"{problem.title}: {problem.detail}" if problem.detail else problem.title
        super().__init__(f"{problem.code}: {text}", status=problem.status)
        self.code = problem.code
        self.problem = problem


class AccessDenied(Refused):
    """These credentials, or none at all, do not open this stream."""


class StreamNotFound(Refused):
    """There is no such stream or session: not yet, or no more."""


class OffsetGone(Refused):
    """What the offset belongs to is gone: the stream was deleted or reset since, or dropped its oldest records.

    What was read before may not be what the stream holds now. Forget it and read from the start.
    """


class Unavailable(ConsumerError):
    """The deadline passed and no attempt was answered; `__cause__` is what the last one ran into.

    Nothing is lost: go on from the offset of the last batch.
    """

    code = Code.UNAVAILABLE
    retryable = True


class BadAnswer(ConsumerError):
    """What came back breaks the protocol, and nothing was taken from it. The URL may not be a broker's."""

    code = "BAD_ANSWER"


class TooLarge(ConsumerError):
    """One answer, or one live batch, is above `batch_bytes_max`. Only a higher limit gets past it."""

    code = "TOO_LARGE"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"more than {bytes_max} bytes in one batch; batch_bytes_max allows no more")
        self.bytes_max = bytes_max


class AttemptFailed(ConsumerError):
    """One attempt had no usable answer: no connection, a lost one, silence, 408, 429 or 5xx.

    `retry_after_s` is how long the broker asked to wait, None if it did not say.
    """

    code = "ATTEMPT_FAILED"
    retryable = True

    def __init__(self, text: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(text, status=status)
        self.retry_after_s = retry_after_s
