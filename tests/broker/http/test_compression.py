"""broker/http/compression.py (RFC 9110: 8.4, 8.8.1, 12.5.3, 15.4.5): large whole responses, coded as is asked."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import sys
from collections.abc import AsyncIterator

import pytest

from broker import limits
from broker.http import compression
from broker.http.compression import Compression, coding_of
from broker.http.response import Response
from tests.broker.http.asgi import Answer, Client, broker

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STREAM = "/v1/stream/s"
RECORDS = [{"n": n, "text": "a word or two"} for n in range(2_000)]
UNDO = {"gzip": gzip.decompress, "zstd": zstd.decompress}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with broker() as client:
        await client.put(STREAM, body=json.dumps(RECORDS).encode())
        yield client


def plain(answer: Answer) -> bytes:
    return UNDO[answer.headers["content-encoding"]](answer.body)


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", None),
        ("identity", None),
        ("br, deflate", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP ; Q=0.5", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.9", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", "zstd"),
        ("*", "zstd"),
        ("*;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=2", None),
        ("gzip;level=9", None),
        (",,gzip,", "gzip"),
    ],
)
def test_coding_is_the_one_that_is_wanted_most(accepted: str, expected: str | None) -> None:
    assert coding_of(accepted.encode()) == (expected and expected.encode())


@pytest.mark.parametrize("coding", UNDO)
async def test_r17_page_is_coded_as_asked_for_and_says_the_same(client: Client, coding: str) -> None:
    whole = await client.get(STREAM)
    coded = await client.get(STREAM, accept_encoding=coding)
    assert plain(coded) == whole.body
    assert coded.headers["content-length"] == str(len(coded.body))
    assert len(coded.body) < len(whole.body) / 5
    assert coded.headers["vary"] == whole.headers["vary"] == "accept-encoding"
    assert coded.headers["etag"] == f"W/{whole.headers['etag']}"
    same = ("stream-next-offset", "stream-up-to-date", "cache-control", "content-type")
    assert [coded.headers[name] for name in same] == [whole.headers[name] for name in same]
    assert "content-encoding" not in whole.headers


async def test_metrics_tell_by_coding_what_was_saved(client: Client) -> None:
    whole = await client.get(STREAM)
    coded = await client.get(STREAM, accept_encoding="zstd")
    metrics = (await client.get("/metrics")).body.decode()
    assert 'streamfold_coded_responses_total{coding="zstd"} 1.0' in metrics
    assert f'streamfold_coded_plain_bytes_total{{coding="zstd"}} {float(len(whole.body))}' in metrics
    assert f'streamfold_coded_bytes_total{{coding="zstd"}} {float(len(coded.body))}' in metrics
    assert 'streamfold_coded_responses_total{coding="gzip"} 0.0' in metrics
    assert "streamfold_coders_busy_total 0.0" in metrics


async def test_tag_of_either_form_is_confirmed_as_the_client_has_it(client: Client) -> None:
    tag = (await client.get(STREAM)).headers["etag"]
    for held in (tag, f"W/{tag}"):
        answer = await client.get(STREAM, accept_encoding="gzip", if_none_match=held)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", held)
        assert answer.headers["vary"] == "accept-encoding"
        assert "content-encoding" not in answer.headers


async def test_r17_messages_and_the_list_of_sessions_are_coded_too() -> None:
    async with broker() as client:
        for number in range(60):
            message = json.dumps({"id": "m", "role": "user", "text": "a word or two " * 10})
            await client.put(f"/v1/sessions/s{number}", body=b'{"message":%b}' % message.encode())
            await client.post("/v1/sessions/s0/messages", message.replace('"m"', f'"m{number}"').encode())
        for target in ("/v1/sessions/s0/messages", "/v1/sessions"):
            whole = await client.get(target)
            assert plain(await client.get(target, accept_encoding="gzip")) == whole.body


async def test_what_is_small_or_no_text_is_sent_as_it_is(client: Client) -> None:
    await client.put("/v1/stream/small", body=b"[1]")
    data = b"a word or two " * 1_000
    await client.put("/v1/stream/bytes", "application/octet-stream", data)
    for target in ("/v1/stream/small", "/v1/stream/bytes", "/v1/stream/none"):
        answer = await client.get(target, accept_encoding="gzip")
        assert "content-encoding" not in answer.headers
        assert "vary" not in answer.headers


async def test_live_reads_are_never_coded(client: Client) -> None:
    polled = await client.get(f"{STREAM}?live=long-poll&offset=-1", accept_encoding="gzip")
    assert (polled.status, len(polled.json)) == (200, len(RECORDS))
    assert "content-encoding" not in polled.headers
    exchange = client.begin("GET", f"{STREAM}?live=sse&offset=-1", headers={"accept-encoding": "gzip"})
    start = await exchange.next()
    assert b"content-encoding" not in dict(start["headers"])
    assert "event: data" in await exchange.chunk()
    exchange.leave()
    await exchange.task


async def test_few_are_coded_at_once_beside_the_loop_and_others_go_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    text = random.Random(7).randbytes(limits.COMPRESSED_STEP_BYTES).hex().encode()
    response = Response(200, [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))], text)
    coding, headers = Compression(), {b"accept-encoding": b"gzip"}
    scope = {"method": "GET", "query_string": b""}
    several = await asyncio.gather(*(coding.apply(response, scope, headers) for _ in range(limits.COMPRESSING_MAX + 2)))
    told = [dict(each.headers).get(b"content-encoding") for each in several]
    assert told.count(b"gzip") == limits.COMPRESSING_MAX
    assert told.count(None) == coding.left_plain == 2
    assert coding.coded[b"gzip"].responses == limits.COMPRESSING_MAX
    assert coding.busy == 0

    def broken(_: bytes) -> bytes:
        raise MemoryError

    monkeypatch.setitem(compression._CODERS, b"gzip", broken)  # noqa: SLF001 -- what no body makes happen
    with pytest.raises(MemoryError):
        await coding.apply(response, scope, headers)
    assert coding.busy == 0
