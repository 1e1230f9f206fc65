"""That the network of the tests does to bytes what it says."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.eventually import eventually
from tests.faults.cluster.network import BAD, CALM, RETRANSMIT_S, SEGMENT_BYTES, Line, Weather, delay_s
from tests.kafka.cluster import Way
from tests.live import HOST, free_port

LINES = 50


class Echo:
    """Says what it hears, and keeps it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.heard: list[bytes] = []
        self._ends: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, HOST, self.port)
        try:
            yield
        finally:
            server.close()
            for end in self._ends:
                end.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.append(writer)
        while line := await reader.readline():
            self.heard.append(line)
            writer.write(line)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    async with echo.serving():
        yield echo


@pytest.fixture
async def line(echo: Echo) -> AsyncIterator[Line]:
    line = Line(Way(free_port(), echo.port), "seed")
    async with line.serving():
        yield line


@asynccontextmanager
async def connected(line: Line) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, line.way.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def said(line: Line, text: bytes) -> bytes:
    async with connected(line) as (reader, writer):
        writer.write(text)
        return await reader.readline()


async def test_line_takes_as_long_as_its_weather_and_keeps_the_order(line: Line) -> None:
    line.weather = Weather(delay_s_min=0.05, delay_s_max=0.06, loss=0.02)
    began = asyncio.get_running_loop().time()
    async with connected(line) as (reader, writer):
        for number in range(LINES):
            writer.write(b"%d\n" % number)
            await asyncio.sleep(0)
        assert [await reader.readline() for _ in range(LINES)] == [b"%d\n" % number for number in range(LINES)]
    assert asyncio.get_running_loop().time() - began >= 2 * line.weather.delay_s_min


async def test_answer_that_is_held_back_comes_after_the_cut(line: Line, echo: Echo) -> None:
    async with connected(line) as (reader, writer):
        writer.write(b"0\n")
        await reader.readline()
        line.from_kafka.open.clear()
        writer.write(b"1\n")
        await eventually(lambda: heard(echo, 2))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.1)
        line.from_kafka.open.set()
        assert await reader.readline() == b"1\n"


async def heard(echo: Echo, count: int) -> bool:
    return len(echo.heard) == count


async def test_what_somebody_said_who_has_left_since_arrives_after_the_cut(line: Line, echo: Echo) -> None:
    async with connected(line) as (reader, writer):
        writer.write(b"0\n")
        await reader.readline()
        line.to_kafka.open.clear()
        writer.write(b"late\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert await said_by_another(line, echo) == [b"0\n"]
    line.to_kafka.open.set()
    await eventually(lambda: heard(echo, 2))
    assert echo.heard[-1] == b"late\n"


async def said_by_another(line: Line, echo: Echo) -> list[bytes]:
    """What has been heard once a connection that was made during the cut has got nowhere."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(said(line, b"another\n"), 0.1)
    return list(echo.heard)


async def test_connections_that_are_reset_end_for_both(line: Line) -> None:
    async with connected(line) as (reader, writer):
        writer.write(b"0\n")
        await reader.readline()
        line.reset()
        assert await reader.read() == b""


def test_segment_that_is_lost_is_waited_for_longer_each_time() -> None:
    chance = random.Random("loss")
    assert delay_s(CALM, 10 * SEGMENT_BYTES, chance) == 0.0
    one_by_one = [delay_s(Weather(loss=0.05), SEGMENT_BYTES, chance) for _ in range(10_000)]
    lost = [took_s for took_s in one_by_one if took_s]
    assert 0.04 < len(lost) / len(one_by_one) < 0.06
    assert min(lost) == RETRANSMIT_S
    assert max(lost) >= 3 * RETRANSMIT_S
    assert all(BAD.delay_s_min <= delay_s(BAD._replace(loss=0.0), 1, chance) <= BAD.delay_s_max for _ in range(100))
