import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import msgspec
import pytest

from consumer.answer import Response, check, read
from consumer.errors import (
    AccessDenied,
    AttemptFailed,
    BadAnswer,
    BadRequest,
    BodyTooLarge,
    Closed,
    Conflict,
    Fenced,
    Gap,
    Gone,
    NotFound,
    Refused,
    TooLarge,
)


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


@pytest.mark.parametrize(
    ("status", "effect_unknown"), [(408, False), (429, False), (503, False), (500, True), (504, True)]
)
def test_failed_attempt_tells_whether_it_may_have_had_its_effect(status: int, *, effect_unknown: bool) -> None:
    with pytest.raises(AttemptFailed) as caught:
        check(problem(status, "OVERLOADED"))
    assert caught.value.effect_unknown == effect_unknown


@pytest.mark.parametrize("status", [301, 304, 307])
def test_redirect_is_no_answer_of_a_broker(status: int) -> None:
    with pytest.raises(BadAnswer):
        check(Response(status, {"location": "http://127.0.0.1:1/"}))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequest),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (405, BadRequest),
        (409, Conflict),
        (410, Gone),
        (413, BodyTooLarge),
        (415, BadRequest),
        (422, BadRequest),
    ],
)
def test_answer_that_will_never_be_better_is_a_refusal(status: int, error: type[Refused]) -> None:
    with pytest.raises(Refused) as caught:
        check(problem(status, "INVALID_BODY", detail="no"))
    assert type(caught.value) is error
    assert isinstance(caught.value, TooLarge) == (status == 413)
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


# Any other server of the protocol says it by headers (PROTOCOL.md 5.2, 5.2.1).


def test_closed_is_told_by_its_header_and_where_it_ended() -> None:
    with pytest.raises(Closed) as caught:
        check(Response(409, {"stream-closed": "TRUE", "stream-next-offset": "0007"}))
    assert (caught.value.offset, caught.value.status) == ("0007", 409)


def test_fence_is_told_by_its_header() -> None:
    with pytest.raises(Fenced) as caught:
        check(Response(403, {"producer-epoch": "5"}, b"stale"))
    assert (caught.value.current_epoch, caught.value.reason) == (5, "superseded")


def test_gap_is_told_by_its_headers() -> None:
    with pytest.raises(Gap) as caught:
        check(Response(409, {"producer-expected-seq": "3", "producer-received-seq": "5"}))
    assert (caught.value.expected_seq, caught.value.received_seq) == (3, 5)


def test_conflict_that_expects_what_it_got_is_no_gap() -> None:
    with pytest.raises(Conflict):
        check(Response(409, {"producer-expected-seq": "5", "producer-received-seq": "5"}))


@pytest.mark.parametrize("value", ["", "-1", "x", "1.5", "\u0663"])
def test_epoch_that_is_no_number_is_not_believed(value: str) -> None:
    with pytest.raises(Fenced) as caught:
        check(Response(403, {"producer-epoch": value}))
    assert caught.value.current_epoch is None


def test_code_of_the_broker_says_more_than_a_header() -> None:
    headers = {"producer-expected-seq": "3", "producer-received-seq": "5", "stream-closed": "true"}
    with pytest.raises(Conflict) as caught:
        check(problem(409, "PAYLOAD_MISMATCH", headers))
    assert type(caught.value) is Conflict


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
