"""The table of docs/producer.md says what the code does with each answer."""

import json
import re
from pathlib import Path

import pytest

from consumer.answer import Response, error_of
from consumer.errors import AttemptFailed
from consumer.wire import PROBLEM_JSON, Code

PAGE = Path(__file__).parents[2] / "docs" / "producer.md"
ROW = re.compile(r"\| (?P<status>\d{3}|3xx) \| (?:`(?P<code>\w+)`)? ?\| `(?P<error>\w+)` \| ?(?P<again>.*?) ?\|")


def rows() -> list[tuple[int, str | None, str, str]]:
    found = [match for line in PAGE.read_text().splitlines() if (match := ROW.fullmatch(line))]
    return [(int(row["status"].replace("xx", "07")), row["code"], row["error"], row["again"]) for row in found]


def answer(status: int, code: str | None) -> Response:
    if code is None:  # a proxy's
        return Response(status, {"content-type": "text/html"}, b"<html>")
    body = {"status": status, "code": Code(code), "title": "", "expectedSeq": 1, "receivedSeq": 2}
    return Response(status, {"content-type": PROBLEM_JSON}, json.dumps(body).encode())


def test_the_table_is_there() -> None:
    assert len(rows()) > 20


@pytest.mark.parametrize(("status", "code", "error", "again"), rows())
def test_answer_means_what_the_table_says(status: int, code: str | None, error: str, again: str) -> None:
    raised = error_of(answer(status, code))
    assert type(raised).__name__ == error
    assert isinstance(raised, AttemptFailed) == (again == "yes")


@pytest.mark.parametrize("status", [429, 503])
def test_how_long_to_wait_is_taken_from_the_answer(status: int) -> None:
    by_header = error_of(Response(status, {"retry-after": "7"}))
    body = {"status": status, "code": Code.OVERLOADED, "title": "", "retryAfterMs": 1500}
    by_problem = error_of(Response(status, {}, json.dumps(body).encode()))
    assert isinstance(by_header, AttemptFailed)
    assert isinstance(by_problem, AttemptFailed)
    assert (by_header.retry_after_s, by_problem.retry_after_s) == (7.0, 1.5)
