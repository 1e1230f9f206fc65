"""What an answer of the broker means: pure, the one place where a status becomes a value or an error."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeVar

import msgspec

from consumer.wire import REQUEST_ID, Code, Problem
from producer.errors import AttemptFailed, Fenced, Gap, ProducerError, Refused
from producer.transport import Response

__all__ = ["check", "read"]

T = TypeVar("T")

RETRIED = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
DETAIL_CHARS_MAX = 200


def check(response: Response) -> None:
    """Nothing for a 2xx. Raises AttemptFailed if the same request may succeed later, else Fenced, Gap or Refused."""
    if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
        raise _error(response)


def read(response: Response, shape: type[T]) -> T:
    """The body of a 2xx. Raises what `check` raises, and AttemptFailed for a 2xx that is not the broker's own.

    A login page of a captive portal comes with a 200; it must not count as an acknowledgement.
    """
    check(response)
    try:
        return msgspec.json.decode(response.body, type=shape)
    except msgspec.DecodeError as error:
        raise AttemptFailed(f"the answer is not a broker's: {error}", status=response.status) from error


def _error(response: Response) -> ProducerError:
    status = response.status
    problem = _problem(response)
    if status in RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return AttemptFailed(f"{status} {problem.code}", status=status, retry_after_s=_retry_after_s(response, problem))
    if problem.code == Code.FENCED:
        return Fenced(
            problem.reason or "finished",
            current_epoch=problem.current_epoch,
            generation_status=problem.generation_status,
            status=status,
        )
    if problem.code == Code.SEQ_GAP:
        return Gap(problem.expected_seq, problem.received_seq, status=status)
    return Refused(problem)


def _problem(response: Response) -> Problem:
    """The problem that the broker states; one made up from the status where a proxy answered in its place."""
    try:
        return msgspec.json.decode(response.body, type=Problem)
    except msgspec.DecodeError:
        return Problem(
            response.status,
            code=f"HTTP_{response.status}",
            title=f"the answer has status {response.status} and no problem in it",
            detail=response.body[:DETAIL_CHARS_MAX].decode(errors="replace"),
            request_id=response.headers.get(REQUEST_ID, ""),
        )


def _retry_after_s(response: Response, problem: Problem) -> float | None:
    """How long to wait at least: seconds or a date (RFC 9110 section 10.2.3), else what the problem says."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None if problem.retry_after_ms is None else problem.retry_after_ms / 1000
