"""SSE readers without an ASGI task are told what those behind ASGI are told."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import pytest

from broker import Settings
from broker.http.sse import KEEP_ALIVE
from tests.broker.http.served import CRLF, JSON, Answer, Served, exchange, request, serving
from tests.eventually import eventually

TEXT = {"content-type": "text/plain"}
BINARY = {"content-type": "application/octet-stream"}
LARGE = b"[" + b",".join([b'"%b"' % (b"x" * 1000)] * 500) + b"]"
"""Half of what one look may see."""


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with quick(fast=request.param) as served:
        yield served


@asynccontextmanager
async def quick(*, fast: bool = True, keepalive_s: float = 5.0, life_s: float = 30.0) -> AsyncIterator[Served]:
    settings = Settings(engine="memory", sse_keepalive_s=keepalive_s, sse_life_s=life_s)
    async with serving(fast=fast, settings=settings) as served:
        yield served


class Listener:
    """A connection that asks for events: its head, then the body, piece by piece or until it has something."""

    def __init__(self, served: Served, path: str, headers: str = "", behind: bytes = b"") -> None:
        self.head = ""
        self.seen = b""
        self._port = served.port
        self._request = f"GET {path} HTTP/1.1\r\nhost: broker\r\n{headers}\r\n".encode() + behind

    async def __aenter__(self) -> Self:
        self.reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(self._request)
        self.head = (await self.reader.readuntil(CRLF + CRLF)).decode()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def piece(self) -> bytes:
        """The next chunk; empty at the end of the response."""
        async with asyncio.timeout(10):
            size = int(await self.reader.readuntil(CRLF), 16)
            data = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == CRLF
        self.seen += data
        return data

    async def until(self, text: bytes) -> bytes:
        while text not in self.seen:
            assert await self.piece(), f"{text!r} never came, only {self.seen[-300:]!r}"
        return self.seen

    async def to_end(self) -> bytes:
        while await self.piece():
            pass
        return self.seen


async def ask(
    served: Served, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    [answer] = await exchange(served.port, request(method, path, body, headers or {}))
    assert answer[0] < 400, answer
    return answer


def same(seen: bytes) -> bytes:
    """Without what differs between any two."""
    return re.sub(rb'"streamCursor":"\d+"', b'"streamCursor":""', re.sub(rb"_[0-9a-f]{16}", b"_life", seen))


async def story(served: Served, content_type: dict[str, str], bodies: list[bytes], offset: str) -> tuple[str, bytes]:
    """What a reader is told who comes after the first append, of that, all others and the end."""
    await ask(served, "PUT", "/v1/stream/a", b"", content_type)
    await ask(served, "POST", "/v1/stream/a", bodies[0], content_type)
    async with Listener(served, f"/v1/stream/a?offset={offset}&live=sse", "x-request-id: mine\r\n") as listener:
        await listener.until(b'"upToDate":true')
        for body in bodies[1:]:
            told = len(listener.seen)
            answer = await ask(served, "POST", "/v1/stream/a", body, content_type)
            if answer[1]["stream-next-offset"]:
                await eventually_told(listener, told)
        await ask(served, "POST", "/v1/stream/a", b"", content_type | {"stream-closed": "true"})
        return re.sub(r"date: .*", "date:", listener.head), same(await listener.to_end())


async def eventually_told(listener: Listener, told: int) -> None:
    """One append, one piece: what is told does not depend on who was faster."""
    while len(listener.seen) == told:
        assert await listener.piece()


@pytest.mark.parametrize("offset", ["-1", "now"])
@pytest.mark.parametrize(
    ("content_type", "bodies"),
    [
        (JSON, [b"[1,2]", b'[{"a":"\\n"}]', b"[3]", LARGE]),
        (TEXT, [b"one\r\ntwo", b" three", "späßig".encode()]),
        (BINARY, [b"\x00\xff", b"more"]),
    ],
    ids=["json", "text", "binary"],
)
async def test_both_ways_tell_the_same_events(content_type: dict[str, str], bodies: list[bytes], offset: str) -> None:
    async with quick(fast=True) as fast, quick(fast=False) as plain:
        told = [await story(served, content_type, bodies, offset) for served in (fast, plain)]
    assert told[0] == told[1]
    assert b'"streamClosed":true' in told[0][1]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("offset=x&live=sse", "INVALID_OFFSET"),
        ("live=sse", "INVALID_OFFSET"),
        ("offset=-1&live=sse&live=long-poll", "INVALID_PARAMETER"),
    ],
)
async def test_read_that_makes_no_sense_is_refused(served: Served, query: str, code: str) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    raw = f"GET /v1/stream/a?{query} HTTP/1.1\r\nhost: broker\r\n\r\n".encode()
    answers = await exchange(served.port, raw * 2, 2, 1_000_000)
    assert [status for status, _, _ in answers] == [400, 400]
    assert code.encode() in answers[0][2]


async def test_stream_that_is_not_there_is_told(served: Served) -> None:
    raw = b"GET /v1/stream/none?offset=-1&live=sse HTTP/1.1\r\nhost: broker\r\n\r\n"
    [(status, headers, body)] = await exchange(served.port, raw)
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert b"STREAM_NOT_FOUND" in body


async def test_live_in_the_path_is_no_wish_for_events(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/live=sse", b"[1]", JSON)
    [(status, _, body)] = await exchange(
        served.port, b"GET /v1/stream/live=sse HTTP/1.1\r\nhost: broker\r\n\r\n", 1, 1_000_000
    )
    assert (status, body) == (200, b"[1]")


async def test_reader_of_more_than_one_look_gets_all_of_it(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    for _ in range(5):
        await ask(served, "POST", "/v1/stream/a", LARGE, JSON)
    async with Listener(served, "/v1/stream/a?offset=-1&live=sse") as listener:
        seen = await listener.until(b'"upToDate":true')
    assert seen.count(b'"xxxx') == 2500


async def test_reader_that_takes_nothing_for_a_while_has_missed_nothing(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    async with Listener(served, "/v1/stream/a?offset=now&live=sse") as listener:
        await listener.until(b'"upToDate":true')
        for _ in range(20):  # more than both sockets hold
            await ask(served, "POST", "/v1/stream/a", LARGE, JSON)
        await ask(served, "POST", "/v1/stream/a", b'["last"]', JSON | {"stream-closed": "true"})
        seen = await listener.to_end()
    assert (seen.count(b'"xxxx'), seen.count(b'"last"')) == (10_000, 1)


async def test_silent_connection_is_kept_alive_and_ends_after_its_life() -> None:
    async with quick(keepalive_s=0.05, life_s=0.5) as served:
        await ask(served, "PUT", "/v1/stream/a", b"", JSON)
        async with Listener(served, "/v1/stream/a?offset=now&live=sse") as listener:
            seen = await listener.to_end()
        assert seen.count(KEEP_ALIVE) >= 3
        assert served.app.live.counts["sse"] == 0


async def test_stream_with_a_ttl_outlives_it_while_somebody_listens() -> None:
    async with quick(keepalive_s=0.2) as served:
        await ask(served, "PUT", "/v1/stream/a", b"", JSON | {"stream-ttl": "1"})
        ends_at = asyncio.get_running_loop().time() + 2
        async with Listener(served, "/v1/stream/a?offset=now&live=sse") as listener:
            while asyncio.get_running_loop().time() < ends_at:
                assert await listener.piece()
        await ask(served, "HEAD", "/v1/stream/a")


async def test_readers_of_a_deleted_stream_are_let_go(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    async with Listener(served, "/v1/stream/a?offset=now&live=sse") as listener:
        await listener.until(b'"upToDate":true')
        await ask(served, "DELETE", "/v1/stream/a")
        assert b"streamClosed" not in await listener.to_end()


async def test_draining_broker_sends_readers_elsewhere(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    async with Listener(served, "/v1/stream/a?offset=now&live=sse") as listener:
        await listener.until(b'"upToDate":true')
        served.app.drain()
        assert (await listener.to_end()).endswith(b"retry: 1000\n\n")


async def test_reader_that_leaves_leaves_nothing(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    async with Listener(served, "/v1/stream/a?offset=now&live=sse") as listener:
        await listener.until(b'"upToDate":true')
        assert served.app.live.counts["sse"] == 1

    async def nobody_is_left() -> bool:
        return served.app.live.counts["sse"] == 0

    await eventually(nobody_is_left)
    await ask(served, "POST", "/v1/stream/a", b"[1]", JSON)


async def test_request_behind_a_reader_is_answered_at_its_end(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    behind = b"GET /v1/stream/a?offset=-1 HTTP/1.1\r\nhost: broker\r\n\r\n"
    async with Listener(served, "/v1/stream/a?offset=-1&live=sse", behind=behind) as listener:
        await ask(served, "POST", "/v1/stream/a", b"[7]", JSON | {"stream-closed": "true"})
        await listener.to_end()
        async with asyncio.timeout(10):
            assert (await listener.reader.readuntil(CRLF)).startswith(b"HTTP/1.1 200")
            assert await listener.reader.readuntil(b"[7]")


async def test_reader_that_asks_for_it_has_its_connection_closed_at_the_end(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"[1]", JSON | {"stream-closed": "true"})
    async with Listener(served, "/v1/stream/a?offset=-1&live=sse", "connection: close\r\n") as listener:
        assert "connection: close" in listener.head
        await listener.to_end()
        async with asyncio.timeout(10):
            assert await listener.reader.read() == b""


async def test_many_readers_of_one_stream_are_all_told_of_every_append(served: Served) -> None:
    await ask(served, "PUT", "/v1/stream/a", b"", JSON)
    listeners = [Listener(served, "/v1/stream/a?offset=now&live=sse") for _ in range(150)]
    try:
        for listener in listeners:
            await listener.__aenter__()
            await listener.until(b'"upToDate":true')
        for number in range(5):
            await ask(served, "POST", "/v1/stream/a", b'["n%d"]' % number, JSON)
        for listener in listeners:
            seen = await listener.until(b'"n4"')
            assert re.findall(rb'"n(\d)"', seen) == [b"0", b"1", b"2", b"3", b"4"]
    finally:
        for listener in listeners:
            await listener.__aexit__(None, None, None)
