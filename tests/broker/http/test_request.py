"""Requests at the edge: headers, paths, parameters, bodies."""

import asyncio
from typing import Any

import pytest

from broker import limits
from broker.http.problems import BadRequest
from broker.http.request import (
    ClientLeft,
    Receive,
    decode_path,
    headers_of,
    parameters_of,
    raw_path_of,
    read_body,
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


def receiving(*messages: dict[str, Any]) -> tuple[Receive, list[dict[str, Any]]]:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return left.pop(0)

    return receive, left


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_body_in_parts_is_joined() -> None:
    receive, _ = receiving(part(b"ab", more=True), part(b"cd", more=True), part(b"", more=False))
    assert await read_body({}, receive, 4) == b"abcd"


@pytest.mark.parametrize(
    ("headers", "parts"),
    [
        ({b"content-length": b"5"}, [part(b"abcde", more=False)]),
        ({}, [part(b"abcde", more=False)]),
        ({}, [part(b"abc", more=True), part(b"de", more=True), part(b"f", more=False)]),
    ],
)
async def test_body_beyond_the_bound_is_refused_after_it_was_let_run_out(
    headers: dict[bytes, bytes], parts: list[dict[str, Any]]
) -> None:
    receive, left = receiving(*parts)
    with pytest.raises(BadRequest) as caught:
        await read_body(headers, receive, 4)
    assert caught.value.code is Code.BODY_TOO_LARGE
    assert not left


async def test_client_that_asks_before_it_sends_too_much_is_told_at_once() -> None:
    receive, left = receiving(part(b"abcde", more=False))
    with pytest.raises(BadRequest):
        await read_body({b"content-length": b"5", b"expect": b"100-continue"}, receive, 4)
    assert len(left) == 1


async def test_body_without_end_is_not_read_for_ever() -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        await asyncio.sleep(0)
        read += limits.MIB
        return part(b"x" * limits.MIB, more=True)

    with pytest.raises(BadRequest) as caught:
        await read_body({}, receive, limits.MIB)
    assert caught.value.code is Code.BODY_TOO_LARGE
    assert read <= limits.BODY_DISCARD_BYTES_MAX + 2 * limits.MIB


async def test_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_READ_S", 0.01)
    parts = [part(b"ab", more=True)]

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else await asyncio.Future()

    with pytest.raises(BadRequest) as caught:
        await read_body({}, receive, 4)
    assert caught.value.code is Code.INVALID_BODY


async def test_client_that_leaves_before_the_end_of_its_body_is_noticed() -> None:
    receive, _ = receiving(part(b"ab", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientLeft):
        await read_body({}, receive, 4)


async def test_compressed_body_is_refused() -> None:
    receive, _ = receiving(part(b"ab", more=False))
    with pytest.raises(BadRequest) as caught:
        await read_body({b"content-encoding": b"gzip"}, receive, 4)
    assert caught.value.code is Code.INVALID_HEADER
