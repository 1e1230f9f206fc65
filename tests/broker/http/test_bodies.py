"""Bodies: bounded in bytes and in time, whatever their coding makes of them."""

import asyncio
import gzip
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from broker import limits
from broker.http.bodies import Bodies
from broker.http.coding import PIECE_BYTES, inflater_of
from broker.http.problems import BadRequest
from broker.http.request import ClientLeft, Receive
from consumer.wire import Code

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODINGS: dict[bytes, Callable[[bytes], bytes]] = {b"gzip": gzip.compress, b"zstd": zstd.compress}


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
    assert await Bodies(4).read({}, receive) == b"abcd"


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
        await Bodies(4).read(headers, receive)
    assert caught.value.code is Code.BODY_TOO_LARGE
    assert not left


async def test_client_that_asks_before_it_sends_too_much_is_told_at_once() -> None:
    receive, left = receiving(part(b"abcde", more=False))
    with pytest.raises(BadRequest):
        await Bodies(4).read({b"content-length": b"5", b"expect": b"100-continue"}, receive)
    assert len(left) == 1


async def test_body_without_end_is_not_read_for_ever() -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        await asyncio.sleep(0)
        read += limits.MIB
        return part(b"x" * limits.MIB, more=True)

    with pytest.raises(BadRequest) as caught:
        await Bodies(limits.MIB).read({}, receive)
    assert caught.value.code is Code.BODY_TOO_LARGE
    assert read <= limits.BODY_DISCARD_BYTES_MAX + 2 * limits.MIB


async def test_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_READ_S", 0.01)
    parts = [part(b"ab", more=True)]

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else await asyncio.Future()

    with pytest.raises(BadRequest) as caught:
        await Bodies(4).read({}, receive)
    assert caught.value.code is Code.INVALID_BODY


async def test_client_that_leaves_before_the_end_of_its_body_is_noticed() -> None:
    receive, _ = receiving(part(b"ab", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientLeft):
        await Bodies(4).read({}, receive)


@pytest.mark.parametrize("coding", CODINGS)
@given(data=st.binary(max_size=500), times=st.integers(1, 1000), parts=st.integers(1, 50), members=st.integers(1, 3))
def test_coded_body_in_any_parts_is_what_was_coded(
    coding: bytes, data: bytes, times: int, parts: int, members: int
) -> None:
    encoded = CODINGS[coding](data * times) * members
    step = len(encoded) // parts + 1
    inflater = inflater_of({b"content-encoding": coding})
    assert inflater is not None
    pieces = [piece for at in range(0, len(encoded), step) for piece in inflater.feed(encoded[at : at + step])]
    inflater.end()
    assert b"".join(pieces) == data * times * members
    assert max(map(len, pieces), default=0) <= PIECE_BYTES


@pytest.mark.parametrize("coding", CODINGS)
async def test_bomb_is_refused_before_it_goes_off(coding: bytes) -> None:
    bodies = Bodies(100_000)
    receive, left = receiving(part(CODINGS[coding](bytes(64 * limits.MIB)), more=True), part(b"", more=False))
    with pytest.raises(BadRequest) as caught:
        await bodies.read({b"content-encoding": coding}, receive)
    assert caught.value.code is Code.BODY_TOO_LARGE
    assert bodies.inflated_bytes <= 100_000 + PIECE_BYTES
    assert not left


@pytest.mark.parametrize("coding", CODINGS)
async def test_coded_body_that_ends_too_early_is_refused(coding: bytes) -> None:
    receive, _ = receiving(part(CODINGS[coding](b"a long enough text")[:-3], more=False))
    with pytest.raises(BadRequest, match="too early") as caught:
        await Bodies(100).read({b"content-encoding": coding}, receive)
    assert caught.value.code is Code.INVALID_BODY


@pytest.mark.parametrize("coding", CODINGS)
async def test_body_that_is_not_in_its_coding_is_refused(coding: bytes) -> None:
    receive, _ = receiving(part(b"plain", more=False))
    with pytest.raises(BadRequest, match="broken") as caught:
        await Bodies(100).read({b"content-encoding": coding}, receive)
    assert caught.value.code is Code.INVALID_BODY


@pytest.mark.parametrize("coding", CODINGS)
async def test_swarm_of_empty_members_is_refused(coding: bytes) -> None:
    swarm = CODINGS[coding](b"") * (limits.CODING_MEMBERS_MAX + 2)
    receive, _ = receiving(part(swarm, more=False))
    with pytest.raises(BadRequest, match="members") as caught:
        await Bodies(limits.MIB).read({b"content-encoding": coding}, receive)
    assert caught.value.code is Code.INVALID_BODY


async def test_zstd_window_that_takes_too_much_memory_is_refused() -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: limits.ZSTD_WINDOW_LOG_MAX + 2,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    coder = zstd.ZstdCompressor(options=options)
    encoded = coder.compress(b"x" * 1000) + coder.flush()
    receive, _ = receiving(part(encoded, more=False))
    with pytest.raises(BadRequest) as caught:
        await Bodies(limits.MIB).read({b"content-encoding": b"zstd"}, receive)
    assert caught.value.code is Code.INVALID_BODY


@pytest.mark.parametrize("coding", [b"br", b"deflate", b"gzip, gzip", b"gzip, zstd"])
async def test_unknown_coding_is_refused_with_those_that_are_known(coding: bytes) -> None:
    receive, _ = receiving(part(zlib.compress(b"x"), more=False))
    with pytest.raises(BadRequest) as caught:
        await Bodies(100).read({b"content-encoding": coding}, receive)
    assert caught.value.code is Code.UNSUPPORTED_CODING
    assert dict(caught.value.headers)[b"accept-encoding"] == b"gzip, zstd"


async def test_no_coding_at_all_and_identity_are_the_same() -> None:
    receive, _ = receiving(part(b"ab", more=False))
    assert await Bodies(2).read({b"content-encoding": b"identity"}, receive) == b"ab"
