"""The fast path, the application, and it with a body in parts give the same answers, whatever they are asked."""

import asyncio
import gzip
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings, strategies as st
from msgspec.structs import replace

from broker import App, Settings, create_app, limits
from broker.errors import EngineStopped
from broker.http import fast_path, streams
from broker.http.fast_reads import protocol
from broker.http.request import Receive
from broker.http.response import Send
from broker.partition import Partition

Answer = tuple[int, dict[str, str], bytes]
CRLF = b"\r\n"
IN_MEMORY = Settings(engine="memory")
LONG = "x" * 300
"""More than any header that is kept may have."""


class Served(NamedTuple):
    """A broker and its port."""

    app: App
    port: int


@asynccontextmanager
async def serving(
    *, fast: bool, whole: bool = True, idle_s: int = 60, settings: Settings = IN_MEMORY
) -> AsyncIterator[Served]:
    """A broker behind uvicorn, with the fast path or without; `whole`: as bodies come, else in two parts."""
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app if whole else in_parts(app),
        http=protocol(app.fast_appends, app.fast_reads) if fast else "httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=idle_s,
        limit_concurrency=settings.connections_max,
    )
    server = uvicorn.Server(config)
    async with app.running():
        task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001 -- `serve` takes over the signals
        while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.005)
        try:
            yield Served(app, listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task


def in_parts(app: App) -> Any:
    """An application that tells of each request first that its body has begun: no append is plain there."""

    async def parted(scope: Any, receive: Receive, send: Send) -> None:
        begun = iter([{"type": "http.request", "body": b"", "more_body": True}])

        async def receive_in_parts() -> Any:
            return next(begun, None) or await receive()

        await app(scope, receive_in_parts, send)

    return parted


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


def request(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: broker", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + CRLF + CRLF + body


async def exchange(port: int, raw: bytes, answers: int, piece_bytes: int) -> list[Answer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        async with asyncio.timeout(10):
            for start in range(0, len(raw), piece_bytes):
                writer.write(raw[start : start + piece_bytes])
                await writer.drain()
                await asyncio.sleep(0)  # let the other side take it by itself
            return [await read_answer(reader) for _ in range(answers)]
    finally:
        writer.close()
        await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer, without what differs between any two: dates, ids, and incarnations."""
    head = (await reader.readuntil(CRLF + CRLF)).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    for name in ("date", "x-request-id", "content-length", "etag"):
        headers.pop(name, None)
    headers = {name: re.sub(r"_[0-9a-f]{16}", "_life", value) for name, value in headers.items()}
    body = re.sub(rb'"requestId":"[^"]*"', b'"requestId":""', re.sub(rb"_[0-9a-f]{16}", b"_life", body))
    body = re.sub(rb'"createdAt":"[^"]*"', b'"createdAt":""', body)
    return int(status_line.split()[1]), headers, body


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


# -- what a broker keeps of them ------------------------------------------------------------------------------------

JSON = {"content-type": "application/json"}
P0 = {**JSON, "producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}
STORY = [
    request("PUT", "/v1/stream/a", b"", JSON),
    request("POST", "/v1/stream/a", b"[1,2]", JSON),
    request("POST", "/v1/stream/a", b"[3]", P0),
    request("POST", "/v1/stream/a", b"[3]", P0),  # a copy
    request("POST", "/v1/stream/a", b"[4]", {**P0, "producer-seq": "7"}),  # a gap
    request("POST", "/v1/stream/a", b"[", JSON),
    request("POST", "/v1/stream/a", b"text", {"content-type": "text/plain"}),
    request("POST", "/v1/stream/none", b"[1]", JSON),
    request("POST", "/v1/stream/a", b"[5]", {**JSON, "stream-closed": "true"}),
    request("POST", "/v1/stream/a", b"[6]", JSON),
]
"""Everything that an append can come to."""
STATUSES = [201, 204, 200, 204, 409, 400, 409, 404, 204, 409]
BATCHES = "/v1/sessions/s/generations/g/chunks"
STORY += [
    request("PUT", "/v1/sessions/s", b"", {}),
    request("POST", BATCHES, b"[1,2]", {**JSON, "producer-seq": "0"}),
    request("POST", BATCHES, b"3", {**JSON, "producer-seq": "1", "txid": "t"}),
    request("POST", BATCHES, b"3", {**JSON, "producer-seq": "1"}),  # a copy
    request("POST", BATCHES, b"4", {**JSON, "producer-seq": "1"}),  # no copy
    request("POST", BATCHES, b"5", {**JSON, "producer-seq": "7"}),  # a gap
    request("POST", BATCHES, b"[]", {**JSON, "producer-seq": "2"}),
    request("POST", BATCHES, b"6", JSON),
    request("POST", "/v1/sessions/none/generations/g/chunks", b"7", {**JSON, "producer-seq": "0"}),
    request("POST", "/v1/sessions/s/generations/other/chunks", b"8", {**JSON, "producer-seq": "0"}),  # takes over
    request("POST", BATCHES, b"9", {**JSON, "producer-seq": "2"}),
]
STATUSES += [201, 200, 200, 200, 409, 409, 400, 400, 404, 200, 403]
NOT_THE_SAME = re.compile(r"streamfold_(checkpoints|unstored_bytes|commits|records_folded|folded)")
"""Metrics that depend on when a checkpoint was, or a round of the materializer."""


async def scraped(port: int) -> list[str]:
    """The metrics, but for those that differ between any two brokers."""
    [(status, _, body)] = await exchange(port, request("GET", "/metrics", b"", {}), 1, 1_000_000)
    assert status == 200
    return [line for line in body.decode().splitlines() if not NOT_THE_SAME.search(line)]


async def test_both_ways_are_counted_the_same() -> None:
    seen = []
    for fast in (True, False):
        async with serving(fast=fast) as served:
            answers = [(await exchange(served.port, raw, 1, 1_000_000))[0] for raw in STORY]
            assert [status for status, _, _ in answers] == STATUSES
            seen.append((answers, await scraped(served.port)))
    assert seen[0] == seen[1]
    assert 'streamfold_responses_total{status="4xx"} 11.0' in seen[0][1]
    assert 'streamfold_entries_total{kind="append",result="duplicate"} 1.0' in seen[0][1]


async def test_a_bug_is_one_500_and_is_logged_and_counted_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(*_: object) -> None:
        raise ZeroDivisionError

    seen = []
    for fast in (True, False):
        caplog.clear()
        async with serving(fast=fast) as served:
            await exchange(served.port, STORY[0], 1, 1_000_000)
            with monkeypatch.context() as patched:
                for module in (fast_path, streams):
                    patched.setattr(module, "answer", stumble)
                raw = request("POST", "/v1/stream/a", b"[1]", {**JSON, "x-request-id": "mine"})
                [bug] = await exchange(served.port, raw, 1, 1_000_000)
            [after] = await exchange(served.port, STORY[1], 1, 1_000_000)
            told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
            seen.append((bug, after, told, await scraped(served.port)))
    assert seen[0] == seen[1]
    assert (seen[0][0][0], seen[0][1][0]) == (500, 204)
    assert seen[0][2] == [("streamfold.http", "ERROR", "request mine failed")]
    assert "streamfold_unexpected_errors_total 1.0" in seen[0][3]


async def test_neither_way_logs_an_append_that_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """A line for each would cost more than the append, and could hold what nobody is to read."""
    caplog.set_level(logging.INFO)
    for fast in (True, False):
        async with serving(fast=fast) as served:
            caplog.clear()
            for raw in STORY:
                await exchange(served.port, raw, 1, 1_000_000)
            assert caplog.records == []


@pytest.mark.parametrize(
    ("body_bytes", "status"), [(1_000, 204), (1_001, 413), (70_000, 413)], ids=["at", "above", "far above"]
)
async def test_the_limit_of_a_body_is_the_same(body_bytes: int, status: int) -> None:
    seen = []
    for fast in (True, False):
        async with serving(fast=fast, settings=replace(IN_MEMORY, body_bytes_max=1_000)) as served:
            await exchange(served.port, STORY[0], 1, 1_000_000)
            raw = request("POST", "/v1/stream/a", b'"%b"' % (b"x" * (body_bytes - 2)), JSON)
            seen.append(await exchange(served.port, raw, 1, 1_000_000))
    assert seen[0] == seen[1]
    assert seen[0][0][0] == status


async def test_a_broker_without_room_refuses_both_after_the_same_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BACK_PRESSURE_WAIT_S", 0.05)
    seen = []
    for fast in (True, False):
        async with serving(fast=fast) as served:
            await exchange(served.port, STORY[0], 1, 1_000_000)
            with monkeypatch.context() as patched:
                patched.setattr(limits, "IN_FLIGHT_ENTRIES_MAX", 0)
                [refused] = await exchange(served.port, STORY[1], 1, 1_000_000)
            [taken] = await exchange(served.port, STORY[1], 1, 1_000_000)
            seen.append((refused, taken, await scraped(served.port)))
    assert seen[0] == seen[1]
    assert (seen[0][0][0], seen[0][1][0]) == (503, 204)


async def test_an_engine_that_stopped_refuses_both() -> None:
    seen = []
    for fast in (True, False):
        async with serving(fast=fast) as served:
            await exchange(served.port, STORY[0], 1, 1_000_000)
            assert isinstance(served.app.partition, Partition)
            served.app.partition.failure = EngineStopped("the disk is gone")
            answers = await exchange(served.port, STORY[1] + STORY[1], 2, 1_000_000)
            seen.append((answers, await scraped(served.port)))
    assert seen[0] == seen[1]
    assert [status for status, _, _ in seen[0][0]] == [503, 503]


async def test_the_limit_of_connections_is_the_same() -> None:
    seen = []
    for fast in (True, False):
        async with serving(fast=fast, settings=replace(IN_MEMORY, connections_max=3)) as served:
            await exchange(served.port, STORY[0], 1, 1_000_000)
            idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(STORY[1])
            seen.append(await asyncio.wait_for(reader.readuntil(CRLF), 10))
            for _, open_writer in [*idle, (reader, writer)]:
                open_writer.close()
                await open_writer.wait_closed()
    assert seen == [b"HTTP/1.1 503 Service Unavailable\r\n"] * 2
