"""Requests at the edge: headers, paths, parameters, bodies."""

import pytest

from broker import limits
from broker.http.problems import BadRequest
from broker.http.request import (
    decode_path,
    headers_of,
    parameters_of,
    raw_path_of,
    request_id_of,
)
from consumer.wire import Code


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"a", "a"),
        (b"a/b.c/~d:e", "a/b.c/~d:e"),
        (b"%C3%A9%20x", "é x"),
        (b"...", "..."),
        (b"a" * limits.PATH_BYTES_MAX, "a" * limits.PATH_BYTES_MAX),
    ],
)
def test_path_is_decoded(target: bytes, path: str) -> None:
    assert decode_path(target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"/a",
        b"a/",
        b"a//b",
        b".",
        b"a/../b",
        b"a/%2e%2E/b",
        b"a%00b",
        b"a%0Ab",
        b"a%C2%85b",
        b"%FF",
        b"%zz",
        b"a%2",
        b"a" * (limits.PATH_BYTES_MAX + 1),
    ],
)
def test_absurd_path_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_path(target)
    assert caught.value.code is Code.INVALID_PATH


def test_path_that_the_server_did_not_pass_on_raw_is_encoded_again() -> None:
    assert raw_path_of({"path": "/v1/stream/é"}) == b"/v1/stream/%C3%A9"


def test_header_sent_twice_never_passes_for_one() -> None:
    headers = headers_of([(b"producer-seq", b"1"), (b"a", b"x"), (b"producer-seq", b"2")])
    assert headers == {b"producer-seq": b"1, 2", b"a": b"x"}


def test_sane_request_id_is_kept_and_any_other_replaced_by_a_new_one() -> None:
    assert request_id_of({b"x-request-id": b"req-42"}) == b"req-42"
    made = [request_id_of(headers) for headers in ({}, {b"x-request-id": b"a b"}, {b"x-request-id": b"x" * 129})]
    assert len(set(made)) == 3


def test_parameters_are_decoded_and_one_given_twice_is_refused() -> None:
    assert parameters_of(b"offset=&live=sse&x=%20") == {"offset": "", "live": "sse", "x": " "}
    for query in (b"offset=a&offset=b", b"&".join(b"p%d=" % n for n in range(100))):
        with pytest.raises(BadRequest) as caught:
            parameters_of(query)
        assert caught.value.code is Code.INVALID_PARAMETER
