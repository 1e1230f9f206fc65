"""What an answer means: pure, the one place where a status becomes a value or an error, for readers and writers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from consumer.errors import (
    AccessDenied,
    AttemptFailed,
    BadAnswer,
    BadRequest,
    BodyTooLarge,
    ClientError,
    Closed,
    Conflict,
    Fenced,
    Gap,
    Gone,
    NotFound,
    Refused,
)
from consumer.wire import (
    PRODUCER_EPOCH,
    PRODUCER_EXPECTED_SEQ,
    PRODUCER_RECEIVED_SEQ,
    REQUEST_ID,
    STREAM_CLOSED,
    STREAM_NEXT_OFFSET,
    Code,
    Problem,
)

__all__ = ["Response", "check", "error_of", "is_success", "is_true", "media_type", "number", "read"]

T = TypeVar("T")

_RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_WITHOUT_EFFECT: Final = _RETRIED | {HTTPStatus.SERVICE_UNAVAILABLE}
"""What says that the request was not carried out. After any other 5xx nobody knows."""
_REFUSALS: Final[Mapping[int, type[Refused]]] = {
    HTTPStatus.UNAUTHORIZED: AccessDenied,
    HTTPStatus.FORBIDDEN: AccessDenied,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Gone,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: BodyTooLarge,
}
_DETAIL_CHARS_MAX: Final = 200


class Response(msgspec.Struct, frozen=True, gc=False):
    """A whole answer, of any status; the names of `headers` are looked up in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


def is_success(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


def is_true(value: str | None) -> bool:
    """The one value that the protocol's flags have (PROTOCOL.md 4.1)."""
    return value is not None and value.lower() == "true"


def media_type(content_type: str) -> str:
    """Without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def number(value: str | None) -> int | None:
    """What a header counts; None if it is absent or no number."""
    return int(value) if value is not None and value.isascii() and value.isdecimal() else None


def check(response: Response) -> None:
    """Nothing for a 2xx. Raises what any other answer stands for: see `error_of`."""
    if not is_success(response.status):
        raise error_of(response)


def read(response: Response, shape: type[T]) -> T:
    """The body of a 2xx. Raises what `check` raises, and AttemptFailed for a 2xx that is not the broker's own.

    A login page of a captive portal comes with a 200; it must not count as an acknowledgement.
    """
    check(response)
    try:
        return msgspec.json.decode(response.body, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise AttemptFailed(f"the answer is not a broker's: {error}", status=response.status) from error


def error_of(response: Response) -> ClientError:
    """The error that an answer without success stands for.

    AttemptFailed if the same request may succeed later (408, 429, 5xx); BadAnswer below 400, where no redirect is
    followed; Fenced, Gap or a Refused for every other.
    """
    status = response.status
    problem = _problem(response)
    if status in _RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return AttemptFailed(
            f"{status} {problem.code}",
            status=status,
            retry_after_s=_retry_after_s(response.headers, problem),
            effect_unknown=status not in _WITHOUT_EFFECT,
        )
    if status < HTTPStatus.BAD_REQUEST:
        return BadAnswer(f"status {status} is no answer of a broker", status=status)
    if status == HTTPStatus.FORBIDDEN and _is_fence(response.headers, problem):
        return _fenced(response.headers, problem)
    if status == HTTPStatus.CONFLICT and _is_gap(response.headers, problem):
        return _gap(response.headers, problem)
    return _refusal(response, problem)


def _refusal(response: Response, problem: Problem) -> Refused:
    kind = _REFUSALS.get(response.status, BadRequest)
    if kind is Conflict and _is_closed(response.headers, problem):
        kind = Closed
    return kind(problem, offset=response.headers.get(STREAM_NEXT_OFFSET, problem.next_offset))


# A broker of ours says by its code what it means; any other server of the protocol by these headers alone.


def _states_code(problem: Problem) -> bool:
    return not problem.code.startswith("HTTP_")


def _is_fence(headers: Mapping[str, str], problem: Problem) -> bool:
    return problem.code == Code.FENCED or (not _states_code(problem) and PRODUCER_EPOCH in headers)


def _is_gap(headers: Mapping[str, str], problem: Problem) -> bool:
    if _states_code(problem):
        return problem.code == Code.SEQ_GAP
    expected, received = headers.get(PRODUCER_EXPECTED_SEQ), headers.get(PRODUCER_RECEIVED_SEQ)
    return expected is not None and expected != received


def _is_closed(headers: Mapping[str, str], problem: Problem) -> bool:
    if _states_code(problem):
        return problem.code == Code.STREAM_CLOSED
    return is_true(headers.get(STREAM_CLOSED))


def _fenced(headers: Mapping[str, str], problem: Problem) -> Fenced:
    epoch = problem.current_epoch
    ended = "finished" if problem.generation_status else "superseded"
    return Fenced(
        problem.reason or ended,
        current_epoch=number(headers.get(PRODUCER_EPOCH)) if epoch is None else epoch,
        generation_status=problem.generation_status,
        status=problem.status,
    )


def _gap(headers: Mapping[str, str], problem: Problem) -> Gap:
    expected, received = problem.expected_seq, problem.received_seq
    return Gap(
        number(headers.get(PRODUCER_EXPECTED_SEQ)) if expected is None else expected,
        number(headers.get(PRODUCER_RECEIVED_SEQ)) if received is None else received,
        status=problem.status,
    )


def _problem(response: Response) -> Problem:
    """The problem that the broker states; one made up from the status where another answered."""
    try:
        return msgspec.json.decode(response.body, type=Problem)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Problem(
            response.status,
            code=f"HTTP_{response.status}",
            title=f"the answer has status {response.status} and no problem in it",
            detail=response.body[:_DETAIL_CHARS_MAX].decode(errors="replace"),
            request_id=response.headers.get(REQUEST_ID, ""),
        )


def _retry_after_s(headers: Mapping[str, str], problem: Problem) -> float | None:
    """How long to wait at least: seconds or a date (RFC 9110 section 10.2.3), else what the problem says."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None if problem.retry_after_ms is None else problem.retry_after_ms / 1000
