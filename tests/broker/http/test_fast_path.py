"""The fast path, the application, and it with a body in parts give the same answers, whatever they are asked."""

import asyncio
import gzip
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.broker.http.served import CRLF, Answer, exchange, request, serving

LONG = "x" * 300
"""More than any header that is kept may have."""


@pytest.fixture(scope="module")
def each() -> Any:
    """A function that sends the same bytes to a fast, to a plain and to a third broker, where bodies come in parts.

    Each has a stream or two.
    """
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ports: list[int] = []

    async def run(ready: Callable[[], None]) -> None:
        async with (
            serving(fast=True) as fast,
            serving(fast=False) as plain,
            serving(fast=False, whole=False) as parted,
        ):
            ports.extend((fast.port, plain.port, parted.port))
            ready()
            await stop.wait()

    async def ask(raw: bytes, answers: int, piece_bytes: int = 1_000_000) -> list[list[Answer]]:
        return [await exchange(port, raw, answers, piece_bytes) for port in ports]

    started = asyncio.Event()
    task = loop.create_task(run(started.set))
    loop.run_until_complete(started.wait())
    for path in ("json", "text"):
        content_type = {"json": "application/json", "text": "text/plain"}[path]
        loop.run_until_complete(ask(request("PUT", f"/v1/stream/{path}", b"", {"content-type": content_type}), 1))
    loop.run_until_complete(ask(request("PUT", "/v1/sessions/s", b"", {}), 1))
    yield lambda *asked: loop.run_until_complete(ask(*asked))
    loop.call_soon(stop.set)
    loop.run_until_complete(task)
    loop.close()


headers_of_appends = st.fixed_dictionaries(
    {
        "content-type": st.sampled_from(
            ["application/json", "text/plain", "application/json; charset=utf-8", "nonsense", f"a/{LONG}"]
        )
    },
    optional={
        "producer-id": st.sampled_from(["p", "q", "", LONG]),
        "producer-epoch": st.sampled_from(["0", "1", "-1", "x"]),
        "producer-seq": st.sampled_from(["0", "1", "2", "9007199254740992"]),
        "stream-seq": st.sampled_from(["a", "b", "c", LONG]),
        "stream-closed": st.sampled_from(["false", "nonsense"]),
        "traceparent": st.sampled_from(["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "no trace"]),
        "connection": st.sampled_from(["keep-alive", "close"]),
        "x-request-id": st.sampled_from(["mine", "not fit"]),
        "origin": st.just("https://elsewhere.test"),
    },
)
paths = st.sampled_from(
    [
        "/v1/stream/json",
        "/v1/stream/text",
        "/v1/stream/none",
        "/v1/stream/sessions/s",
        "/v1/stream/a//b",
        "/v1/stream/__ds/subscriptions/s/claim",
        "/v1/stream/%5f_ds/x",
        "/v1/stream/json?x=1",
        "/v1/stream/%zz",
        f"/v1/stream/{'long/' * 300}",
        "/health",
    ]
)
headers_of_batches = st.fixed_dictionaries(
    {"producer-seq": st.sampled_from(["0", "1", "2", "3", "-1", "x", "9007199254740992"])},
    optional={
        "content-type": st.sampled_from(["application/json", "application/json", "text/plain", "application/x-ndjson"]),
        "txid": st.sampled_from(["t", "not fit"]),
        "prefer": st.just("respond-async"),
        "traceparent": st.sampled_from(["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "no trace"]),
        "connection": st.sampled_from(["keep-alive", "close"]),
        "x-request-id": st.sampled_from(["mine", "not fit"]),
        "origin": st.just("https://elsewhere.test"),
    },
)
paths_of_batches = st.sampled_from(
    [
        "/v1/sessions/s/generations/g/chunks",
        "/v1/sessions/s/generations/g/chunks",
        "/v1/sessions/s/generations/h/chunks",
        "/v1/sessions/s/generations/h/chunks?format=text&lane=h",
        "/v1/sessions/none/generations/g/chunks",
        "/v1/sessions/%2e/generations/g/chunks",
        "/v1/sessions/s/generations/%zz/chunks",
        "/v1/sessions/s/generations/g/finish",
        "/v1/sessions/s/chunks",
        "/v1/sessions/s/generations/chunks",
        "/v1/sessions/s/messages/g/chunks",
    ]
)
bodies = st.sampled_from(
    [
        b"",
        b"[1,2]",
        b'{"a":1}',
        b"[]",
        b"[1",
        b'"\xff"',
        b'"\\ud83d"',
        b"x" * 70_000,
        b"[" * 130 + b"]" * 130,  # JSON_DEPTH_MAX and a little more
        b"[" + b"1," * 65_536 + b"1]",  # BATCH_RECORDS_MAX and one more: too large for the fast path
        b"[" + b"1," * 32_000 + b"1]",
    ]
)


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_append_in_a_content_coding_goes_the_usual_way(each: Any, coding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    (fast,), (plain,), (parted,) = each(request("POST", "/v1/stream/json", gzip.compress(b"[1,2]"), headers), 1)
    assert fast == plain == parted
    assert fast[0] == (204 if coding == "gzip" else 415)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["POST", "POST", "POST", "PUT", "GET"]), path=paths, body=bodies, headers=headers_of_appends
)
def test_every_way_gives_the_same_answer(
    each: Any, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    fast, plain, parted = each(request(method, path, body, headers), 1)
    assert fast == plain == parted


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=paths_of_batches, body=bodies, headers=headers_of_batches)
def test_every_way_gives_the_same_answer_to_a_batch(each: Any, path: str, body: bytes, headers: dict[str, str]) -> None:
    fast, plain, parted = each(request("POST", path, body, headers), 1)
    assert fast == plain == parted


def test_pipelined_requests_are_answered_in_their_order(each: Any) -> None:
    """Appends and reads in one go on one connection: each sees what those before it did, and no more."""
    json = {"content-type": "application/json"}
    create = request("PUT", "/v1/stream/pipelined", b"", json)
    append = request("POST", "/v1/stream/pipelined", b"[1]", json)
    read = request("GET", "/v1/stream/pipelined", b"", {})
    fast, plain, _ = each(create + append + read + append + append + read, 6)
    assert [answer[0] for answer in fast] == [201, 204, 200, 204, 204, 200]
    assert (fast[2][2], fast[5][2]) == (b"[1]", b"[1,1,1]")
    assert [(answer[0], answer[2]) for answer in plain] == [(answer[0], answer[2]) for answer in fast]


def test_an_append_that_arrives_byte_by_byte_is_one_append(each: Any) -> None:
    raw = request("POST", "/v1/stream/json", b'[{"slow":true}]', {"content-type": "application/json"})
    fast, plain, _ = each(raw + raw, 2, 1)
    assert [answer[0] for answer in fast] == [answer[0] for answer in plain] == [204, 204]


@pytest.mark.parametrize("fast", [True, False])
async def test_an_idle_connection_is_closed_and_each_answer_begins_the_wait_anew(*, fast: bool) -> None:
    clock = asyncio.get_running_loop().time
    head = b"POST /v1/stream/nowhere HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with serving(fast=fast, idle_s=1) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        begun_s = last_s = clock()
        while last_s - begun_s < 1.5:  # longer than a connection may be idle
            writer.write(head + b"Content-Length: 1\r\n\r\n1")
            answer = await reader.readuntil(CRLF * 2)
            assert answer.startswith(b"HTTP/1.1 404")
            length = re.search(rb"content-length: (\d+)", answer)
            assert length is not None
            await reader.readexactly(int(length[1]))
            last_s = clock()
            await asyncio.sleep(0.3)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert clock() - last_s >= 0.9
        writer.close()
