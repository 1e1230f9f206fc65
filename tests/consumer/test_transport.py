"""Requests over sockets whose other end is the test's own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from consumer.errors import AttemptFailed
from consumer.limits import RequestLimits
from consumer.transport import HttpTransport, Pool, Request

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
IMPATIENT = RequestLimits(attempt_timeout_s=0.3)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handle: Handler) -> AsyncIterator[str]:
    """The URL of a server that treats each connection so."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # what waits in the kernel counts as sent
    server = await asyncio.start_server(connected, sock=listener)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def transport(url: str, limits: RequestLimits = IMPATIENT) -> AsyncIterator[HttpTransport]:
    opened = HttpTransport(url, limits, Pool(answer_bytes_max=1000))
    try:
        yield opened
    finally:
        await opened.aclose()


class Heads:
    """A server that answers everything, and keeps the heads of the requests."""

    def __init__(self) -> None:
        self.received: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            self.received.append(head.decode())
            writer.write(ANSWER)


async def test_a_request_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads()
    async with listening(heads) as proxy:
        monkeypatch.setenv("http_proxy", proxy.replace("//", "//user:secret@"))
        async with transport("http://broker.test/chat") as http:
            assert (await http.send(Request("GET", "/v1/x?a=1"))).body == b"hi"
    assert heads.received[0].startswith("GET http://broker.test/chat/v1/x?a=1 HTTP/1.1")
    assert "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in heads.received[0]


async def test_no_proxy_is_asked_for_a_broker_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with listening(Heads()) as url, transport(url) as http:
        assert (await http.send(Request("GET", "/x"))).body == b"hi"


async def test_an_escaped_target_arrives_as_it_was_written() -> None:
    heads = Heads()
    async with listening(heads) as url, transport(url) as http:
        await http.send(Request("GET", "/v1/stream/a%2Fb%20%41?offset=a%2Bb&x=%7E"))
    assert heads.received[0].startswith("GET /v1/stream/a%2Fb%20%41?offset=a%2Bb&x=%7E HTTP/1.1")


async def test_a_body_that_nobody_takes_is_given_up() -> None:
    async def nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async with listening(nothing) as url, transport(url) as http:
        with pytest.raises(AttemptFailed) as raised:
            await http.send(Request("POST", "/x", bytes(30_000_000)))
        assert raised.value.effect_unknown


async def test_a_body_that_takes_longer_than_one_may_be_silent_arrives() -> None:
    size, silence_s_max = 40_000_000, 1.0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received = 0
        while received < size:
            received += len(await reader.read(128 * 1024))
            await asyncio.sleep(0.008)
        writer.write(ANSWER)

    async with listening(slow) as url, transport(url, RequestLimits(attempt_timeout_s=silence_s_max)) as http:
        begun_s = asyncio.get_running_loop().time()
        assert (await http.send(Request("POST", "/x", bytes(size)))).body == b"hi"
        assert asyncio.get_running_loop().time() - begun_s > silence_s_max


async def test_an_answer_that_comes_before_the_body_has_left_is_heard() -> None:
    """A body that is too large, say."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\n")
        await reader.read(1024 * 1024)
        await asyncio.sleep(0.05)  # more of the body leaves meanwhile
        await reader.read(1024 * 1024)
        writer.write(b"no")
        while await reader.read(1024 * 1024):
            pass

    async with listening(refuse) as url, transport(url) as http:
        answer = await http.send(Request("POST", "/x", bytes(30_000_000)))
    assert (answer.status, answer.body) == (413, b"no")


async def test_what_could_not_be_sent_has_had_no_effect() -> None:
    async with listening(Heads()) as url:
        pass
    async with transport(url) as http:
        with pytest.raises(AttemptFailed) as raised:
            await http.send(Request("POST", "/x", b"1"))
    assert not raised.value.effect_unknown


async def test_a_connection_that_is_lost_behind_a_request_leaves_its_effect_open() -> None:
    async def hang_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with listening(hang_up) as url, transport(url) as http:
        with pytest.raises(AttemptFailed) as raised:
            await http.send(Request("POST", "/x", b"1"))
    assert raised.value.effect_unknown


async def test_nothing_is_sent_by_a_transport_that_is_closed() -> None:
    async with listening(Heads()) as url:
        async with transport(url) as http:
            await http.send(Request("GET", "/x"))
        with pytest.raises(RuntimeError, match="closed"):
            await http.send(Request("GET", "/x"))
