"""What can go wrong for a client that reads or writes, and what its caller can do about it. One tree for both.

    ClientError             code, status, offset, facts, retryable
    ├── Refused             the same request will be answered like this every time; carries the broker's problem
    │   ├── BadRequest      400, and every 4xx that is not named below: mend the request
    │   ├── AccessDenied    401, 403: other credentials may help
    │   ├── NotFound        404: no such stream, session or generation, or no more
    │   ├── Conflict        409: it contradicts what is there (other content type, Stream-Seq, message, bytes)
    │   │   └── Closed      409: the stream takes no more; `offset` is where it ended
    │   ├── Gone            410: the offset, or the stream, belongs to the past; read from the start
    │   └── BodyTooLarge    413: above the limit of the broker, or of a proxy (a TooLarge as well)
    ├── Fenced              403: a newer epoch, or an ended generation, keeps this writer out
    ├── Gap                 409: the broker misses a batch that it had acknowledged
    ├── Unavailable         no answer within the deadline that settles it; `__cause__` is the last attempt
    │   ├── RateLimited     the last answer was 429; `retry_after_s` is how long the broker asked to wait
    │   └── Unhealthy       not even tried: the broker has not answered for a while; `retry_after_s` until a probe
    ├── BadAnswer           what came back is malformed: a proxy, another service, or a bug
    ├── TooLarge            above a limit of ours: in one answer, or …
    │   └── ChunkTooLarge   … in one chunk or record, which was not queued
    ├── OffsetsFailed       a store of offsets could not be read or written; `__cause__` says why
    ├── ValueFailed         a function given for a header or a parameter raised; nothing was sent
    ├── BufferFull          no room at the moment, and the caller chose not to wait
    ├── SpoolError          the spool cannot be used
    │   ├── SpoolInUse      another process has it open
    │   ├── SpoolFull       no room in it, or on its disk; nothing was taken, and what is in it stays
    │   └── SpoolCorrupt    it is damaged, and was set aside: `set_aside` says where; opening again begins a new one
    ├── Finished            written, or finished again, after the end
    └── AttemptFailed       one attempt of many; seen by callers only as the cause of Unavailable

What is no JSON is a TypeError, an impossible argument a ValueError: bugs of the caller, not of this tree.
"""

from __future__ import annotations

from typing import Any, ClassVar

from consumer.wire import Code, Problem

__all__ = [
    "AccessDenied",
    "AttemptFailed",
    "BadAnswer",
    "BadRequest",
    "BodyTooLarge",
    "BufferFull",
    "ChunkTooLarge",
    "ClientError",
    "Closed",
    "Conflict",
    "Fenced",
    "Finished",
    "Gap",
    "Gone",
    "NotFound",
    "OffsetsFailed",
    "RateLimited",
    "Refused",
    "SpoolCorrupt",
    "SpoolError",
    "SpoolFull",
    "SpoolInUse",
    "TooLarge",
    "Unavailable",
    "Unhealthy",
    "ValueFailed",
]


class ClientError(Exception):
    """Every error of these libraries.

    `code` is stable and made for branching. `status` is the HTTP status of the answer, None where there was none.
    `offset` is where the stream stands, if the answer told; otherwise, of a read, where to go on. `facts` holds what is
    known besides (for logs; no message content). `retryable` says whether the same call may succeed later.
    """

    code: str = "CLIENT_ERROR"
    retryable: ClassVar[bool] = False

    def __init__(self, text: str, *, status: int | None = None, offset: str | None = None, **facts: Any) -> None:
        super().__init__(text)
        self.status = status
        self.offset = offset
        self.facts: dict[str, Any] = {name: fact for name, fact in facts.items() if fact is not None}


class TooLarge(ClientError):
    """More than a limit allows. Nothing was taken or queued; only a higher limit, or less at once, gets past it."""

    code = "TOO_LARGE"


class ChunkTooLarge(TooLarge):
    """One chunk or record is above `chunk_bytes_max` and was not queued; the next can be written."""

    code = "CHUNK_TOO_LARGE"


class Refused(ClientError):
    """The broker answered that this request is wrong, whenever it is sent; `problem` is what it said."""

    def __init__(self, problem: Problem, *, offset: str | None = None) -> None:
        text = f"{problem.title}: {problem.detail}" if problem.detail else problem.title
        super().__init__(
            f"{problem.code}: {text}", status=problem.status, offset=offset, request_id=problem.request_id or None
        )
        self.code = problem.code
        self.problem = problem


class BadRequest(Refused):
    """The request is malformed, or not for this URL (405, 415, …)."""


class AccessDenied(Refused):
    """These credentials, or none at all, do not allow this."""


class NotFound(Refused):
    """There is no such stream, session or generation: not yet, or no more."""


class Conflict(Refused):
    """It contradicts what is there.

    Another configuration or content type, a Stream-Seq that is not above the last, other bytes under the seq of an
    accepted batch (`PAYLOAD_MISMATCH`), a message id that is taken.
    """


class Closed(Conflict):
    """The stream is closed and takes no more; what was acknowledged stays. `offset` is where it ended."""


class Gone(Refused):
    """What the offset belongs to is gone: the stream was deleted or reset since, or dropped its oldest records.

    Or the stream itself is deleted, and only its forks remain.

    What was read before may not be what the stream holds now. Forget it and read from the start.
    """


class BodyTooLarge(Refused, TooLarge):
    """The broker, or a proxy before it, takes no body of this size. Send less at once."""


class Fenced(ClientError):
    """This writer is kept out for ever. What was acknowledged before stays.

    Of a generation, `reason` says how it ended: `superseded`, `stopped`, `LEASE_EXPIRED` or `finished`; to write on,
    open a new generation. Of a raw stream's producer, another has taken `current_epoch`; to write on, enter with a
    higher one, if the other may be shut out.
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
            f"no more may be written: {reason}",
            status=status,
            reason=reason,
            current_epoch=current_epoch,
            generation_status=generation_status,
        )
        self.reason = reason
        self.current_epoch = current_epoch
        self.generation_status = generation_status


class Gap(ClientError):
    """The broker expects an earlier batch than all that are unacknowledged: it lost what it had acknowledged.

    Nothing that this producer could send would make it whole; open a new generation, or a new epoch.
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


class Unavailable(ClientError):
    """The deadline passed without an answer that settles it; `__cause__` is what the last attempt ran into.

    A reader loses nothing: go on from the offset of the last batch. What a writer has unacknowledged may have arrived
    or not. Repeating the same call is safe: a batch or a message that did arrive is not stored again (a raw `append`
    without Stream-Seq is the exception, see there). A generation is taken up again with `resume=True`.
    """

    code: str = Code.UNAVAILABLE
    retryable = True

    def __init__(
        self,
        text: str,
        *,
        unacknowledged_batches: int = 0,
        unacknowledged_chunks: int = 0,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(
            text,
            status=status,
            unacknowledged_batches=unacknowledged_batches,
            unacknowledged_chunks=unacknowledged_chunks,
            retry_after_s=retry_after_s,
        )
        self.unacknowledged_batches = unacknowledged_batches
        self.unacknowledged_chunks = unacknowledged_chunks
        self.retry_after_s = retry_after_s


class RateLimited(Unavailable):
    """It asked for too much at once, and was told so until the deadline. Come back after `retry_after_s`."""

    code = "RATE_LIMITED"


class Unhealthy(Unavailable):
    """Nothing was sent: many attempts in a row had no answer, and until a probe has one new work fails at once.

    Come back after `retry_after_s`, or give the work to a spool.
    """

    code = "UNHEALTHY"


class BadAnswer(ClientError):
    """What came back breaks the protocol, and nothing was taken from it. The URL may not be a broker's."""

    code = "BAD_ANSWER"


class OffsetsFailed(ClientError):
    """The store of a reader's offsets could not be read or written; `__cause__` is why.

    The batch whose offset was to be saved has been handed out and counts as not handled: the next reader gets it again.
    """

    code = "OFFSETS_FAILED"


class ValueFailed(ClientError):
    """A function that was given for a header or a parameter raised, took too long, or returned no text.

    `__cause__` is what it raised. Nothing was sent, and it is not tried again: the function knows best when to.
    """

    code = "VALUE_FAILED"


class BufferFull(ClientError):
    """The buffer has no room for this chunk, which was not queued. The call that waits takes it."""

    code = "BUFFER_FULL"
    retryable = True


class SpoolError(ClientError):
    """The file in which a producer keeps what is not delivered yet cannot be used: `__cause__` says why."""

    code = "SPOOL_FAILED"


class SpoolInUse(SpoolError):
    """Another process has this spool open. One of the two has to end, or to take another file."""

    code = "SPOOL_IN_USE"


class SpoolFull(SpoolError):
    """The spool is as large as it may be, or its disk is full. The chunk was not taken; everything before it is kept.

    There will be room when the broker has taken some of it, or the disk is freed.
    """

    code = "SPOOL_FULL"
    retryable = True


class SpoolCorrupt(SpoolError):
    """The file is damaged. It was set aside as it is, for a look at what can be saved; nothing was deleted.

    The next opening begins an empty spool. `set_aside` is where the damaged one lies now, None while it is in use.
    """

    code = "SPOOL_CORRUPT"

    def __init__(self, text: str, *, set_aside: str | None = None) -> None:
        super().__init__(text, set_aside=set_aside)
        self.set_aside = set_aside


class Finished(ClientError):
    """This writer has been ended by its own caller already."""

    code = "FINISHED"


class AttemptFailed(ClientError):
    """One attempt had no usable answer: no connection, a lost one, silence, 408, 429, 5xx, or a malformed success.

    `retry_after_s` is how long the broker asked to wait, None if it did not say. `effect_unknown` says whether the
    request may have had its effect all the same.
    """

    code = "ATTEMPT_FAILED"
    retryable = True

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        effect_unknown: bool = True,
    ) -> None:
        super().__init__(text, status=status, retry_after_s=retry_after_s)
        self.retry_after_s = retry_after_s
        self.effect_unknown = effect_unknown
