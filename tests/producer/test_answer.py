import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import msgspec
import pytest

from producer.answer import check, read
from producer.errors import AttemptFailed, Fenced, Gap, Refused
from producer.transport import Response


class Shape(msgspec.Struct):
    seq: int


def problem(status: int, code: str, headers: Mapping[str, str] | None = None, **facts: Any) -> Response:
    body = {"status": status, "code": code, "title": "a title", **facts}
    return Response(status, headers or {}, json.dumps(body).encode())


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520])
def test_answer_that_may_be_better_later_is_a_failed_attempt(status: int) -> None:
    with pytest.raises(AttemptFailed) as caught:
        check(problem(status, "OVERLOADED"))
    assert (caught.value.status, caught.value.retry_after_s) == (status, None)


@pytest.mark.parametrize("status", [301, 400, 401, 404, 409, 413, 422])
def test_answer_that_will_never_be_better_is_a_refusal(status: int) -> None:
    with pytest.raises(Refused) as caught:
        check(problem(status, "INVALID_BODY", detail="no"))
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("INVALID_BODY", status, False)
    assert caught.value.problem.detail == "no"


def test_fence_tells_why_and_what_stands() -> None:
    facts: dict[str, Any] = {"reason": "superseded", "currentEpoch": 7, "generationStatus": "aborted"}
    with pytest.raises(Fenced) as caught:
        check(problem(403, "FENCED", **facts))
    error = caught.value
    assert (error.reason, error.current_epoch, error.generation_status) == ("superseded", 7, "aborted")


def test_forbidden_without_a_fence_is_a_refusal() -> None:
    with pytest.raises(Refused):
        check(problem(403, "FORBIDDEN"))


def test_gap_tells_which_batch_is_expected() -> None:
    with pytest.raises(Gap) as caught:
        check(problem(409, "SEQ_GAP", expectedSeq=3, receivedSeq=5))
    assert (caught.value.expected_seq, caught.value.received_seq) == (3, 5)


def test_retry_after_is_read_as_seconds() -> None:
    with pytest.raises(AttemptFailed) as caught:
        check(problem(503, "OVERLOADED", {"retry-after": "7"}))
    assert caught.value.retry_after_s == 7.0


def test_retry_after_is_read_as_a_date() -> None:
    """RFC 9110 section 10.2.3."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    with pytest.raises(AttemptFailed) as caught:
        check(problem(503, "OVERLOADED", {"retry-after": later}))
    assert caught.value.retry_after_s == pytest.approx(60, abs=2)


def test_retry_after_in_the_problem_counts_where_there_is_no_header() -> None:
    with pytest.raises(AttemptFailed) as caught:
        check(problem(503, "OVERLOADED", retryAfterMs=250))
    assert caught.value.retry_after_s == 0.25


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"status":"x"}', b"\xff"])
def test_refusal_of_a_proxy_without_a_problem_is_still_told(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        check(Response(413, {"x-request-id": "r-1"}, body))
    assert (caught.value.code, caught.value.facts["request_id"]) == ("HTTP_413", "r-1")


def test_acknowledgement_is_read() -> None:
    assert read(Response(200, {}, b'{"seq":4,"more":1}'), Shape) == Shape(4)


@pytest.mark.parametrize("body", [b"<html>Please log in", b"", b'{"welcome":true}'])
def test_success_that_is_not_the_brokers_acknowledges_nothing(body: bytes) -> None:
    """A captive portal answers everything with 200."""
    with pytest.raises(AttemptFailed):
        read(Response(200, {}, body), Shape)
