"""The fast path and the application give the same answers, whatever they are asked."""

import asyncio
import gzip
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings, strategies as st

from broker import Settings, create_app
from broker.http.fast_path import protocol

Answer = tuple[int, dict[str, str], bytes]
CRLF = b"\r\n"


@asynccontextmanager
async def serving(*, fast: bool, idle_s: int = 60) -> AsyncIterator[int]:
    """A broker in memory behind uvicorn, with the fast path or without; its port."""
    app = create_app(Settings(engine="memory"))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=protocol(app.fast_appends) if fast else "httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=idle_s,
    )
    server = uvicorn.Server(config)
    async with app.running():
        task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001 -- `serve` takes over the signals
        while not server.started:  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


@pytest.fixture(scope="module")
def both() -> Any:
    """A function that sends the same bytes to a fast and to a plain broker, each with a stream or two."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ports: list[int] = []

    async def run(ready: Callable[[], None]) -> None:
        async with serving(fast=True) as fast, serving(fast=False) as plain:
            ports.extend((fast, plain))
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
    return int(status_line.split()[1]), headers, body


headers_of_appends = st.fixed_dictionaries(
    {
        "content-type": st.sampled_from(
            ["application/json", "text/plain", "application/json; charset=utf-8", "nonsense"]
        )
    },
    optional={
        "producer-id": st.sampled_from(["p", "q", ""]),
        "producer-epoch": st.sampled_from(["0", "1", "-1", "x"]),
        "producer-seq": st.sampled_from(["0", "1", "2", "9007199254740992"]),
        "stream-seq": st.sampled_from(["a", "b", "c"]),
        "connection": st.sampled_from(["keep-alive", "close"]),
        "x-request-id": st.sampled_from(["mine", "not fit"]),
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
        "/health",
    ]
)
bodies = st.sampled_from([b"", b"[1,2]", b'{"a":1}', b"[]", b"[1", b'"\xff"', b'"\\ud83d"', b"x" * 70_000])


@pytest.mark.parametrize("coding", ["gzip", "br"])
def test_append_in_a_content_coding_goes_the_usual_way(both: Any, coding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    (fast,), (plain,) = both(request("POST", "/v1/stream/json", gzip.compress(b"[1,2]"), headers), 1)
    assert fast == plain
    assert fast[0] == (204 if coding == "gzip" else 415)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["POST", "POST", "POST", "PUT", "GET"]), path=paths, body=bodies, headers=headers_of_appends
)
def test_both_ways_give_the_same_answer(
    both: Any, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    fast, plain = both(request(method, path, body, headers), 1)
    assert fast == plain


def test_pipelined_requests_are_answered_in_their_order(both: Any) -> None:
    """Appends and reads in one go on one connection: each sees what those before it did, and no more."""
    json = {"content-type": "application/json"}
    create = request("PUT", "/v1/stream/pipelined", b"", json)
    append = request("POST", "/v1/stream/pipelined", b"[1]", json)
    read = request("GET", "/v1/stream/pipelined", b"", {})
    fast, plain = both(create + append + read + append + append + read, 6)
    assert [answer[0] for answer in fast] == [201, 204, 200, 204, 204, 200]
    assert (fast[2][2], fast[5][2]) == (b"[1]", b"[1,1,1]")
    assert [(answer[0], answer[2]) for answer in plain] == [(answer[0], answer[2]) for answer in fast]


def test_an_append_that_arrives_byte_by_byte_is_one_append(both: Any) -> None:
    raw = request("POST", "/v1/stream/json", b'[{"slow":true}]', {"content-type": "application/json"})
    fast, plain = both(raw + raw, 2, 1)
    assert [answer[0] for answer in fast] == [answer[0] for answer in plain] == [204, 204]


@pytest.mark.parametrize("fast", [True, False])
async def test_an_idle_connection_is_closed_and_each_answer_begins_the_wait_anew(*, fast: bool) -> None:
    clock = asyncio.get_running_loop().time
    head = b"POST /v1/stream/nowhere HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with serving(fast=fast, idle_s=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
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
