"""What the head of an answer means: pure, the one place where a status becomes an error."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import msgspec

from consumer.errors import AccessDenied, AttemptFailed, BadAnswer, ConsumerError, OffsetGone, Refused, StreamNotFound
from consumer.wire import REQUEST_ID, Problem

__all__ = ["error_of", "is_success"]

_RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_REFUSALS: Final[Mapping[int, type[Refused]]] = {
    HTTPStatus.UNAUTHORIZED: AccessDenied,
    HTTPStatus.FORBIDDEN: AccessDenied,
    HTTPStatus.NOT_FOUND: StreamNotFound,
    HTTPStatus.GONE: OffsetGone,
}
_DETAIL_CHARS_MAX: Final = 200


def is_success(status: int) -> bool:
    return status in (HTTPStatus.OK, HTTPStatus.NO_CONTENT)


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ConsumerError:
    """The error that an answer without success stands for."""
    problem = _problem(status, headers, body)
    if status in _RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return AttemptFailed(f"{status} {problem.code}", status=status, retry_after_s=_retry_after_s(headers, problem))
    if status < HTTPStatus.BAD_REQUEST:
        return BadAnswer(f"status {status} is no answer to a read", status=status)
    return _REFUSALS.get(status, Refused)(problem)


def _problem(status: int, headers: Mapping[str, str], body: bytes) -> Problem:
    """The problem that the broker states; one made up from the status where a proxy answered in its place."""
    try:
        return msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Problem(
            status,
            code=f"HTTP_{status}",
            title=f"the answer has status {status} and no problem in it",
            detail=body[:_DETAIL_CHARS_MAX].decode(errors="replace"),
            request_id=headers.get(REQUEST_ID, ""),
        )


def _retry_after_s(headers: Mapping[str, str], problem: Problem) -> float | None:
    """How long to wait at least: seconds or a date (RFC 9110 section 10.2.3), else what the problem says."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None if problem.retry_after_ms is None else problem.retry_after_ms / 1000
